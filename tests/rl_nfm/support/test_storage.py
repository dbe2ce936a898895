import errno
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from rl_nfm.support import storage
from rl_nfm.support.output_files import write_json
from rl_nfm.support.storage import META, CheckpointError

KIND = "test 1"


def write(target: Path, value: float = 1.0) -> None:
    storage.save_directory(
        target,
        kind=KIND,
        meta={"value": value},
        tensors={"a": {"x": torch.full((3, 5), value)}, "b": {"y": torch.arange(7)}},
    )


def read(target: Path) -> float:
    """The value, after checking that meta data and tensors belong together."""
    meta = storage.load_meta(target, kind=KIND)
    tensors = storage.load_tensors(target / "a.safetensors")
    assert torch.equal(tensors["x"], torch.full((3, 5), meta["value"]))
    return meta["value"]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "one"
    tensors = {
        "bf16": torch.randn(3, 5).bfloat16(),
        "bytes": torch.randint(0, 256, (2, 3), dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(0.1, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "transposed": torch.randn(4, 3).T,
        "slice": torch.randn(10, 2)[3:7],
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    meta = {"numbers": [1, 2.5, None], "nested": {"text": "é\n"}}
    storage.save_directory(target, kind=KIND, meta=meta, tensors={"t": tensors})
    loaded = storage.load_meta(target, kind=KIND)
    assert {key: loaded[key] for key in meta} == meta
    found = storage.load_tensors(target / "t.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach()), name
    assert names(target) == {META, "t.safetensors"}
    assert names(target.parent) == {"one"}


def test_tied_weights_are_written_twice(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    network[1].weight = network[0].weight
    storage.save_directory(tmp_path / "a", kind=KIND, meta={}, tensors={"n": network.state_dict()})
    found = storage.load_tensors(tmp_path / "a" / "n.safetensors")
    for name, value in network.state_dict().items():
        assert torch.equal(found[name], value)


def test_parts_of_one_tensor_are_written_apart(tmp_path: Path) -> None:
    whole = torch.randn(6, 2)
    parts = {"first": whole[:3], "second": whole[3:], "overlapping": whole[2:4]}
    storage.save_directory(tmp_path / "a", kind=KIND, meta={}, tensors={"n": parts})
    found = storage.load_tensors(tmp_path / "a" / "n.safetensors")
    assert all(torch.equal(found[name], value) for name, value in parts.items())


def test_meta_data_cannot_take_the_place_of_the_digests(tmp_path: Path) -> None:
    storage.save_directory(
        tmp_path / "a",
        kind=KIND,
        meta={"kind": "other", "files": {}},
        tensors={"t": {"x": torch.ones(2)}},
    )
    assert list(storage.load_meta(tmp_path / "a", kind=KIND)["files"]) == ["t.safetensors"]


def test_an_existing_directory_is_replaced_whole(tmp_path: Path) -> None:
    write(tmp_path / "one", 1.0)
    (tmp_path / "one" / "stray").write_text("left over")
    write(tmp_path / "one", 2.0)
    assert read(tmp_path / "one") == 2.0
    assert names(tmp_path) == {"one"}
    assert names(tmp_path / "one") == {META, "a.safetensors", "b.safetensors"}


def test_leftovers_of_a_killed_run_do_no_harm(tmp_path: Path) -> None:
    write(tmp_path / "one", 1.0)
    shutil.copytree(tmp_path / "one", tmp_path / ".one.partial")
    shutil.copytree(tmp_path / "one", tmp_path / ".one.old")
    (tmp_path / ".one.partial" / "stray").write_text("left over")
    write(tmp_path / "one", 2.0)
    assert read(tmp_path / "one") == 2.0
    assert names(tmp_path) == {"one"}
    assert "stray" not in names(tmp_path / "one")


def test_a_directory_lost_between_two_renames_is_put_back(tmp_path: Path) -> None:
    """A run killed while it replaced `one` leaves the old one aside; a failing write keeps it."""
    write(tmp_path / ".one.old", 1.0)
    with pytest.raises(OSError, match="no space"), failing_at("write", 0):
        write(tmp_path / "one", 2.0)
    assert read(tmp_path / "one") == 1.0
    assert names(tmp_path) == {"one"}


@contextmanager
def failing_at(step: str, count: int) -> Iterator[None]:
    """The `count`-th call (from 0) of one of the steps of a write fails."""
    calls = {"n": 0}
    owners: dict[str, tuple[Any, str]] = {
        "write": (storage, "_write_bytes"),
        "fsync": (os, "fsync"),
        "rename": (Path, "rename"),
    }
    owner, name = owners[step]
    real: Callable[..., Any] = getattr(owner, name)

    def fail(*args: Any, **kwargs: Any) -> Any:
        calls["n"] += 1
        if calls["n"] == count + 1:
            raise OSError(errno.ENOSPC, "no space")
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, fail)
        yield
    assert calls["n"] > count, f"{step} was called only {calls['n']} times"


STEPS = [
    ("write", 0),
    ("write", 1),
    ("write", 2),  # the meta data
    ("fsync", 0),
    ("fsync", 3),  # the directory
    ("rename", 0),
    ("rename", 1),
]


@pytest.mark.parametrize(("step", "count"), STEPS)
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_in_the_middle_keeps_the_old_directory_whole(
    step: str, count: int, existing: bool, tmp_path: Path
) -> None:
    if step == "rename" and count == 1 and not existing:
        pytest.skip("a new directory needs one rename only")
    if existing:
        write(tmp_path / "one", 1.0)
    with pytest.raises(OSError, match="no space"), failing_at(step, count):
        write(tmp_path / "one", 2.0)
    if existing:
        assert read(tmp_path / "one") == 1.0
    assert names(tmp_path) == ({"one"} if existing else set())
    write(tmp_path / "one", 3.0)  # and the next one succeeds
    assert read(tmp_path / "one") == 3.0


def test_an_interrupt_in_the_middle_keeps_the_old_directory_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "one", 1.0)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "_replace_directory", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "one", 2.0)
    assert read(tmp_path / "one") == 1.0
    assert names(tmp_path) == {"one"}


def test_a_file_that_may_not_grow_is_an_os_error(tmp_path: Path) -> None:
    """A real failure of the operating system, in the library that writes the tensors."""
    write(tmp_path / "one", 1.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = {"t": {"x": torch.zeros(2**20)}}
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(OSError, match="one"):
            storage.save_directory(tmp_path / "one", kind=KIND, meta={}, tensors=large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read(tmp_path / "one") == 1.0
    assert names(tmp_path) == {"one"}


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file"):
        write(tmp_path / "file" / "one")


def draft_with_link(target: Path, source: Path, digest: str) -> bool:
    with storage.Draft(target) as draft:
        linked = draft.link("kept.safetensors", source, digest)
        draft.write("a", {"x": torch.full((3, 5), 2.0)})
        draft.commit(kind=KIND, meta={"value": 2.0})
    return linked


def test_links_share_the_file_and_survive_the_first_directory(tmp_path: Path) -> None:
    write(tmp_path / "one", 1.0)
    digest = storage.load_meta(tmp_path / "one", kind=KIND)["files"]["b.safetensors"]
    assert draft_with_link(tmp_path / "two", tmp_path / "one" / "b.safetensors", digest)
    first, second = tmp_path / "one" / "b.safetensors", tmp_path / "two" / "kept.safetensors"
    assert first.samefile(second)
    storage.remove(tmp_path / "one")
    assert names(tmp_path) == {"two"}
    assert read(tmp_path / "two") == 2.0
    assert torch.equal(storage.load_tensors(second)["y"], torch.arange(7))


def test_a_file_that_is_gone_or_cannot_be_linked_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source.bin"
    assert not draft_with_link(tmp_path / "one", source, "")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "other file system")

    source.write_bytes(b"data")
    monkeypatch.setattr(os, "link", refuse)
    assert not draft_with_link(tmp_path / "one", source, "")
    assert read(tmp_path / "one") == 2.0
    assert names(tmp_path / "one") == {META, "a.safetensors"}


def test_a_link_to_a_changed_file_is_found(tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(b"data")
    digest = storage.file_sha256(source)
    source.write_bytes(b"Data")
    assert draft_with_link(tmp_path / "one", source, digest)
    with pytest.raises(CheckpointError, match=r"kept\.safetensors: truncated or changed"):
        storage.load_meta(tmp_path / "one", kind=KIND)


def test_what_a_link_points_to_is_never_removed(tmp_path: Path) -> None:
    """Leftovers and old directories that someone has replaced by links to elsewhere."""
    write(tmp_path / "elsewhere" / "mine", 7.0)
    for name in (".one.partial", ".one.old", ".one.removed", "one"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere" / "mine")
    write(tmp_path / "one", 2.0)
    assert read(tmp_path / "one") == 2.0
    assert not (tmp_path / "one").is_symlink()
    assert names(tmp_path) == {"one", "elsewhere"}
    assert read(tmp_path / "elsewhere" / "mine") == 7.0


def test_the_digest_taken_while_writing_is_that_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for piece, size in ((1, 3), (7, 100), (64, 64), (2**20, 300_000)):
        monkeypatch.setattr(storage, "PIECE_BYTES", piece)
        digest = storage.write_tensors(tmp_path / "x", {"x": torch.randn(size)})
        assert digest == storage.file_sha256(tmp_path / "x")


def test_a_directory_between_its_two_renames_is_found(tmp_path: Path) -> None:
    assert storage.present(tmp_path / "one") is None
    write(tmp_path / ".one.old", 1.0)
    found = storage.present(tmp_path / "one")
    assert found is not None
    assert read(found) == 1.0
    write(tmp_path / "one", 2.0)
    assert storage.present(tmp_path / "one") == tmp_path / "one"


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    meta = json.loads((path / META).read_text())
    result = edit(meta)
    meta = meta if result is None else result
    if isinstance(meta, dict) and "sha256" in meta:  # signed anew, as someone who knows how could
        del meta["sha256"]
        meta["sha256"] = storage._meta_sha256(meta)
    (path / META).write_text(json.dumps(meta))


def test_tampered_truncated_and_missing_files_are_named(tmp_path: Path) -> None:
    def fresh() -> Path:
        write(tmp_path / "one")
        return tmp_path / "one" / "a.safetensors"

    data = bytearray(fresh().read_bytes())
    data[-1] ^= 1
    fresh().write_bytes(data)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: truncated or changed"):
        read(tmp_path / "one")
    os.truncate(fresh(), 40)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: truncated or changed"):
        read(tmp_path / "one")
    os.truncate(fresh(), 0)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: truncated or changed"):
        read(tmp_path / "one")
    fresh().unlink()
    with pytest.raises(CheckpointError, match=r"a\.safetensors: missing"):
        read(tmp_path / "one")
    path = fresh()
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match=r"a\.safetensors: missing"):
        read(tmp_path / "one")


def test_skipped_files_must_be_there_but_are_not_read(tmp_path: Path) -> None:
    write(tmp_path / "one")
    (tmp_path / "one" / "b.safetensors").write_bytes(b"changed")
    assert storage.load_meta(tmp_path / "one", kind=KIND, skip=("b",))["value"] == 1.0
    with pytest.raises(CheckpointError, match=r"b\.safetensors: truncated or changed"):
        storage.load_meta(tmp_path / "one", kind=KIND, skip=("a",))
    (tmp_path / "one" / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"b\.safetensors: missing"):
        storage.load_meta(tmp_path / "one", kind=KIND, skip=("b",))


def test_a_foreign_kind_is_told(tmp_path: Path) -> None:
    write(tmp_path / "one")
    with pytest.raises(CheckpointError, match="holds 'test 1', expected 'test 2'"):
        storage.load_meta(tmp_path / "one", kind="test 2")


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match=r"not a checkpoint \(no meta\.json\)"):
            storage.load_meta(path, kind=KIND)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        "{}",
        '{"kind": "test 1"}',
        '{"kind": "test 1", "files": []}',
        '{"kind": "test 1", "files": null}',
        '{"files": {}}',
        "[" * 100_000,
        '{"kind": "test 1", "files": {}, "n": ' + "1" * 5000 + "}",
        b"\xff\xfe{}",
    ],
)
def test_foreign_meta_data_is_one_clear_error(text: str | bytes, tmp_path: Path) -> None:
    write(tmp_path / "one")
    (tmp_path / "one" / META).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match="damaged, or not written by rl-nfm"):
        storage.load_meta(tmp_path / "one", kind=KIND)


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/hostname", "sub/inside", ".", "..", "", "a\0b", "./a.safetensors"]
)
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    write(tmp_path / "one")
    (tmp_path / "outside").write_text("x")
    (tmp_path / "one" / "sub").mkdir()
    (tmp_path / "one" / "sub" / "inside").write_text("x")
    change(tmp_path / "one", lambda meta: meta["files"].update({name: "0" * 64}))
    with pytest.raises(CheckpointError, match="missing"):
        storage.load_meta(tmp_path / "one", kind=KIND, skip=("",))


@pytest.mark.parametrize("digest", [None, 3, [], "", "0" * 64])
def test_a_digest_of_any_type_must_be_the_file_s(digest: object, tmp_path: Path) -> None:
    write(tmp_path / "one")
    change(tmp_path / "one", lambda meta: meta["files"].update({"a.safetensors": digest}))
    with pytest.raises(CheckpointError, match="truncated or changed"):
        storage.load_meta(tmp_path / "one", kind=KIND)


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{", b"\xff" * 64, b"pickle"])
def test_damaged_tensor_files_are_one_clear_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(CheckpointError, match=r"x\.safetensors: cannot be read"):
        storage.load_tensors(path)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.safetensors: cannot be read"):
        storage.load_tensors(path)


def test_errors_of_checkpoints_are_user_errors() -> None:
    assert issubclass(CheckpointError, ValueError)


def test_a_link_stays_one_and_its_target_is_written(tmp_path):
    target, link = tmp_path / "folder/scores.json", tmp_path / "latest.json"
    target.parent.mkdir()
    target.write_text("1")
    link.symlink_to(target)
    write_json(link, 2)
    assert link.is_symlink()
    assert target.read_text() == "2\n"
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "folder",
        "latest.json",
        "scores.json",
    ]
