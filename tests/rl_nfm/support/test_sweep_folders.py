import os

import pytest

from rl_nfm.support.sweep_folders import seed_folders


def test_the_runs_of_a_sweep_and_nothing_else(tmp_path):
    for name in ("alien/nfm/seed-1", "alien/nfm/seed-0", "alien/nfm/other", "qbert/rim/seed-2/x"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "alien/nfm/seed-0.log").write_text("")
    (tmp_path / "sweep.yaml").write_text("")
    names = ["alien/nfm/seed-0", "alien/nfm/seed-1", "qbert/rim/seed-2"]
    assert seed_folders(tmp_path) == [tmp_path / name for name in names]
    assert seed_folders(tmp_path / "sweep.yaml") == seed_folders(tmp_path / "none") == []


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch):
    (tmp_path / "alien/nfm/seed-1").mkdir(parents=True)
    scan = os.scandir

    def denied(path):
        if path == tmp_path / "alien/nfm":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(PermissionError, match="alien/nfm"):
        seed_folders(tmp_path)
