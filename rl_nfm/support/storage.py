"""Atomic directories of tensors and plain values: the form of every checkpoint.

A checkpoint is a directory with `meta.json` (plain types, a format version and the SHA-256 of every
other file) and `*.safetensors`. It is written under a temporary name beside its final place and
then renamed, so a directory with the final name is always complete. Nothing is ever unpickled.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

META = "meta.json"
PIECE_BYTES = 2**20


class CheckpointError(ValueError):
    """A checkpoint that is missing, truncated, foreign or tampered with."""


def file_sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write one safetensors file, flushed to disk; returns its SHA-256, taken while writing."""
    data: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        memory = value.untyped_storage().data_ptr()
        # safetensors refuses tensors that share memory, such as tied weights
        data[name] = value.clone() if memory in seen else value
        seen.add(memory)
    return _write_bytes(path, safetensors.torch.save(data))


def _write_bytes(path: Path, content: bytes) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("wb") as file:
            for begin in range(0, len(content), PIECE_BYTES):
                piece = memoryview(content)[begin : begin + PIECE_BYTES]
                digest.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # a failing write does not name its file
        raise OSError(error.errno, error.strerror, str(path)) from None
    return digest.hexdigest()


class Draft:
    """A directory that is being written; `commit` moves it to its final place.

    Replacing takes two renames. A process killed just between them leaves the old directory as
    `.<name>.old`, which `present` finds and the next draft puts back first.

    Args:
        target: the final place; a directory that exists there is unchanged until `commit`.

    Raises:
        OSError: if nothing can be written there.
    """

    def __init__(self, target: Path):
        self.target = target
        self._partial = _beside(target, "partial")
        self.digests: dict[str, str] = {}
        """SHA-256 of each file so far."""
        target.parent.mkdir(parents=True, exist_ok=True)
        tidy(target)
        self._partial.mkdir()

    def __enter__(self) -> "Draft":
        """A block whose exceptions remove the draft."""
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Leave nothing behind after a failure."""
        if kind is not None:
            self.discard()

    def link(self, name: str, source: Path, digest: str) -> bool:
        """Hard-link an immutable file of a known SHA-256; False where that is not possible."""
        try:
            os.link(source, self._partial / name, follow_symlinks=False)
        except OSError:  # deleted, on another file system, or on one without hard links
            return False
        self.digests[name] = digest
        return True

    def write(self, stem: str, tensors: Mapping[str, Tensor]) -> None:
        """Write `<stem>.safetensors`.

        Raises:
            OSError: if it cannot be written.
        """
        name = f"{stem}.safetensors"
        self.digests[name] = write_tensors(self._partial / name, tensors)

    def write_text(self, name: str, content: str) -> None:
        """Write a file for people: it has no digest and may be changed later.

        Raises:
            OSError: if it cannot be written.
        """
        _write_bytes(self._partial / name, content.encode())

    def commit(self, *, kind: str, meta: Mapping[str, Any]) -> None:
        """Add the meta data and move the directory to its final place.

        Args:
            kind: what it is, checked by `load_meta`.
            meta: plain JSON values.

        Raises:
            OSError: it cannot be written; `target` is then unchanged.
        """
        content = {**meta, "kind": kind, "files": self.digests}
        content["sha256"] = _meta_sha256(content)
        _write_bytes(self._partial / META, json.dumps(content, indent=1).encode())
        _flush(self._partial)
        _replace_directory(self._partial, self.target)

    def discard(self) -> None:
        """Remove what was written; the final place is unchanged."""
        _put_back(self.target)
        _clear(self._partial)


def save_directory(
    target: Path,
    *,
    kind: str,
    meta: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Write a checkpoint directory atomically; an existing `target` is replaced.

    Args:
        target: final place.
        kind: what it is, checked by `load_meta`.
        meta: plain JSON values.
        tensors: file stem to named tensors; each becomes `<stem>.safetensors`.

    Raises:
        OSError: it cannot be written; `target` is then unchanged.
    """
    with Draft(target) as draft:
        for stem, named in tensors.items():
            draft.write(stem, named)
        draft.commit(kind=kind, meta=meta)


def present(target: Path) -> Path | None:
    """The path of the directory last written as `target`, or None."""
    return next((path for path in (target, _beside(target, "old")) if path.is_dir()), None)


def remove(directory: Path) -> None:
    """Remove a directory; a process killed meanwhile leaves no partial directory of that name.

    Raises:
        OSError: if it cannot be renamed.
    """
    doomed = _beside(directory, "removed")
    _clear(doomed)
    directory.rename(doomed)
    _clear(doomed)


def tidy(target: Path) -> None:
    """Remove what a process left that was killed while it wrote or removed `target`."""
    _put_back(target)
    for state in ("partial", "old", "removed"):
        _clear(_beside(target, state))


def load_meta(directory: Path, *, kind: str, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """The meta data of a checkpoint, after checking that its files are there and unchanged.

    Args:
        directory: the checkpoint.
        kind: what it must be.
        skip: prefixes of files that are not read (large ones that are not needed).

    Raises:
        CheckpointError: missing, truncated, foreign or tampered with; the message says which.
    """
    path = directory / META
    if not directory.is_dir() or not path.is_file():
        raise CheckpointError(f"{directory}: not a checkpoint (no {META})")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        files: dict[str, str] = meta["files"]
        found = meta["kind"]
        items = list(files.items())
        intact = meta.pop("sha256", None) == _meta_sha256(meta)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{path}: damaged, or not written by rl-nfm") from None
    if found != kind:
        raise CheckpointError(f"{directory}: holds {str(found)[:100]!r}, expected {kind!r}")
    if not intact:
        raise CheckpointError(f"{path}: changed since it was written")
    for name, digest in items:
        if not (directory / name).is_file() or Path(name).name != name:
            raise CheckpointError(f"{directory / name}: missing")
        if not name.startswith(skip) and file_sha256(directory / name) != digest:
            raise CheckpointError(f"{directory / name}: truncated or changed since it was written")
    return meta


def _meta_sha256(meta: Mapping[str, Any]) -> str:
    """Digest of the meta data after a round trip through JSON."""
    plain = json.loads(json.dumps(meta))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, on the CPU.

    Raises:
        CheckpointError: missing or damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None


def _replace_directory(source: Path, target: Path) -> None:
    old = _beside(target, "old")
    _clear(old)
    if target.exists() or target.is_symlink():
        target.rename(old)
    source.rename(target)
    _flush(target.parent)
    _clear(old)


def _put_back(target: Path) -> None:
    """Undo a replacement that was cut short between its two renames."""
    old = _beside(target, "old")
    if old.is_dir() and not target.exists():
        old.rename(target)


def _clear(path: Path) -> None:
    """Remove a directory, file or link; the target of a link is not touched."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _beside(target: Path, state: str) -> Path:
    return target.with_name(f".{target.name}.{state}")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
