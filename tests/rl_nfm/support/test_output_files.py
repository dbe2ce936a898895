import os
from pathlib import Path

import pytest

from rl_nfm.support.output_files import check_name, made_folder, written


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    target = tmp_path / "play.mp4"
    target.write_text("before")
    with (
        pytest.raises(OSError, match=r"^video: .*/play\.mp4 cannot be written$"),
        written(target) as partial,
    ):
        raise OSError(f"video: {partial} cannot be written")
    assert target.read_text() == "before"
    assert os.listdir(tmp_path) == ["play.mp4"]


def test_a_name_that_is_no_text_is_refused(tmp_path):
    bad = tmp_path / os.fsdecode(b"bad\xff\xfe")
    with pytest.raises(ValueError, match=r"^out: .* is not allowed: it is no UTF-8$"):
        check_name("out", bad)
    with pytest.raises(ValueError, match="it is no UTF-8"), made_folder("out", bad):
        pass
    assert not bad.exists()
    check_name("out", Path("lauf ü 雪"))
