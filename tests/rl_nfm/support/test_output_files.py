import os
from pathlib import Path

import pytest

from rl_nfm.support.output_files import check_file, check_name, made_folder, written


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


def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(ValueError, match=rf"^json: {path} is a device or a pipe, must be a"):
            check_file("json", path)
    check_file("json", tmp_path / "new.json")
