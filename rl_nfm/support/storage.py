"""Atomic directories of tensors and plain values: the form of every checkpoint.

A checkpoint is a directory with `meta.json` (plain types, a format version and the SHA-256 of every
other file) and `*.safetensors`. It is written beside its final place and renamed into it, so a
directory of that name is always whole. Nothing is ever unpickled.
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


class CheckpointError(ValueError):
    """A checkpoint that is missing, truncated, foreign or tampered with."""


def file_sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write one safetensors file, flushed to disk; returns its SHA-256."""
    data: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        memory = value.untyped_storage().data_ptr()
        # safetensors refuses tensors that share memory, such as tied weights
        data[name] = value.clone() if memory in seen else value
        seen.add(memory)
    safetensors.torch.save_file(data, path)
    _flush(path)
    return file_sha256(path)


def save_directory(
    target: Path,
    *,
    kind: str,
    meta: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    links: Mapping[str, tuple[Path, str]] | None = None,
) -> None:
    """Write a checkpoint directory atomically; an existing `target` is replaced.

    Replacing takes two renames. A process killed just between them leaves the old directory as
    `.<name>.old`, which the next write puts back first.

    Args:
        target: final place.
        kind: what it is, checked by `load_meta`.
        meta: plain JSON values.
        tensors: file stem to named tensors; each becomes `<stem>.safetensors`.
        links: file name to (existing immutable file, its SHA-256): hard-linked, not rewritten.

    Raises:
        OSError: when it cannot be written; `target` is then as it was before.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _put_back(target)
    try:
        partial.mkdir()
        digests = {}
        for stem, named in tensors.items():
            digests[f"{stem}.safetensors"] = write_tensors(partial / f"{stem}.safetensors", named)
        for name, (source, digest) in (links or {}).items():
            _link(source, partial / name)
            digests[name] = digest
        content = {**meta, "kind": kind, "files": digests}
        content["sha256"] = _meta_sha256(content)
        (partial / META).write_text(json.dumps(content, indent=1), encoding="utf-8")
        _flush(partial / META)
        _flush(partial)
        _replace_directory(partial, target)
    except BaseException as error:
        _put_back(target)
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, safetensors.SafetensorError):  # how a full disk shows itself there
            raise OSError(f"{target}: {error}") from error
        raise


def load_meta(directory: Path, *, kind: str, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """The meta data of a checkpoint, after checking that its files are there and unchanged.

    Args:
        directory: the checkpoint.
        kind: what it must be.
        skip: files whose name begins so are not read (large ones that are not needed).

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
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError):
        raise CheckpointError(f"{path}: damaged, or not written by rl-nfm") from None
    if found != kind:
        raise CheckpointError(f"{directory}: holds {found!r}, expected {kind!r}")
    if meta.pop("sha256", None) != _meta_sha256(meta):
        raise CheckpointError(f"{path}: changed since it was written")
    for name, digest in items:
        if not (directory / name).is_file() or Path(name).name != name:
            raise CheckpointError(f"{directory / name}: missing")
        if not name.startswith(skip) and file_sha256(directory / name) != digest:
            raise CheckpointError(f"{directory / name}: truncated or changed since it was written")
    return meta


def _meta_sha256(meta: Mapping[str, Any]) -> str:
    """Digest of the meta data as JSON gives it back."""
    plain = json.loads(json.dumps(meta))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, on the CPU.

    Raises:
        CheckpointError: missing or damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def _replace_directory(source: Path, target: Path) -> None:
    old = _aside(target)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    _flush(target.parent)


def _put_back(target: Path) -> None:
    """Undo a replacement that was cut short between its two renames."""
    if _aside(target).exists() and not target.exists():
        _aside(target).rename(target)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
