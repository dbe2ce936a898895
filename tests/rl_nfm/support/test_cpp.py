"""The cache of built kernels, under what can befall it."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rl_nfm.support import cpp

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small C++ file, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("RL_NFM_KERNELS", "1")
    folder = tmp_path / "answers"
    folder.mkdir()
    path = folder / "answer.cpp"
    path.write_text(
        '#ifndef ANSWER\n#define ANSWER 42\n#endif\nextern "C" int answer() { return ANSWER; }\n'
    )
    cpp.library.cache_clear()
    yield path
    cpp.library.cache_clear()


def write_compiler(tmp_path: Path, script: str) -> str:
    path = tmp_path / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def answer(source: Path) -> int | None:
    library = cpp.library(source)
    return None if library is None else library.answer()


def test_built_once_and_kept_in_a_folder_of_this_user_alone(source, tmp_path, capsys):
    built = cpp.build(source, ["g++"])
    assert capsys.readouterr().err.startswith("compiling answers/answer.cpp, once ")
    assert built.parent == tmp_path / "cache" / "rl_nfm" / "kernels"
    assert built.parent.stat().st_mode & 0o777 == 0o700
    first = built.stat()
    assert cpp.build(source, ["g++"]) == built
    assert capsys.readouterr().err == ""  # said only while it is made
    assert built.stat().st_mtime_ns == first.st_mtime_ns
    assert [path.name for path in built.parent.iterdir()] == [built.name]
    assert answer(source) == 42
    source.write_text(source.read_text().replace("42", "43"))
    assert cpp.build(source, ["g++"]) != built


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped"])
def test_a_damaged_file_is_built_anew_and_never_loaded(source, damage):
    """Loading one that is cut off would end the process by SIGBUS."""
    built = cpp.build(source, ["g++"])
    whole = built.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    built.write_bytes({"empty": b"", "cut": whole[:middle], "flipped": flipped}[damage])
    again = cpp.build(source, ["g++"])
    assert again.name.endswith(f"-{cpp._digest(again)}.so")
    assert len(again.read_bytes()) == len(whole)
    assert len(list(again.parent.iterdir())) == 1
    assert answer(source) == 42


def test_a_compiler_with_options(source, monkeypatch):
    monkeypatch.setenv("CXX", "g++ -O1 '-DANSWER=40 + 3'")
    assert answer(source) == 43


@pytest.mark.parametrize("options", ["g++ '", "/nonexistent/compiler", "false"])
def test_a_compiler_that_cannot_be_run(source, options, monkeypatch, caplog):
    monkeypatch.setenv("CXX", options)
    assert answer(source) is None
    assert "slower without answer.cpp" in caplog.text


def test_messages_that_are_no_utf_8(source, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CXX", write_compiler(tmp_path, "printf 'bad \\377\\376' >&2; exit 3"))
    assert answer(source) is None
    assert "ends with 3: bad \ufffd\ufffd" in caplog.text


def test_a_compiler_that_hangs_is_ended_with_all_that_it_began(
    source, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(cpp, "COMPILER_TIMEOUT_S", 1)
    script = f"sleep 600 &\necho $! > {tmp_path}/child\nwait"
    monkeypatch.setenv("CXX", write_compiler(tmp_path, script))
    start = time.monotonic()
    assert answer(source) is None
    assert time.monotonic() - start < 60
    assert "longer than 1 seconds" in caplog.text
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _is_running(child):
        time.sleep(0.05)
    assert not _is_running(child)


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.mark.parametrize("kind", ["others may write", "a link", "a file"])
def test_a_cache_that_is_not_ours_alone_is_not_used(source, tmp_path, kind, caplog):
    cpp.build(source, ["g++"])
    folder = tmp_path / "cache" / "rl_nfm" / "kernels"
    if kind == "others may write":
        folder.chmod(0o777)
    else:
        folder.rename(tmp_path / "elsewhere")
        if kind == "a link":
            folder.symlink_to(tmp_path / "elsewhere")
        else:
            folder.write_text("")
    assert answer(source) is None
    assert "slower without answer.cpp" in caplog.text
    assert os.fspath(folder) in caplog.text
