"""Text for language models: documentation that every Python has, or files of the user's.

`docstrings` are those of Python's standard library, which is on the machine of everyone who runs
this: about 1.6 million characters of English prose and examples in Python 3.11 (licence: PSF).
Whole modules are held out, so that hardly anything near a test text is trained on: modules repeat
few paragraphs of each other (0.6 % of the test text's, by characters). Other versions of Python
have other texts, so numbers are comparable within one version; a result file names it.

`wikitext2` are the files `wiki.train.tokens`, `wiki.valid.tokens` and `wiki.test.tokens` of
WikiText-2 (Merity et al. 2016), or any text under these names, in a folder of the user's.
"""

import ast
import dataclasses
import hashlib
import itertools
import random
import sysconfig
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

TextData = Literal["docstrings", "wikitext2"]
TextUnit = Literal["character", "word"]
SPLITS = ("train", "validation", "test")
UNKNOWN, END_OF_LINE = "<unk>", "<eos>"
_FILES = {
    "train": "wiki.train.tokens",
    "validation": "wiki.valid.tokens",
    "test": "wiki.test.tokens",
}
_SHARES = (0.8, 0.9)
"""Where in the modules validation and test begin."""
_LEFT_OUT = ("site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """Three texts as numbers."""

    symbols: Sequence[str]
    """The vocabulary, of the training text; symbol 0 stands for all others."""
    texts: Mapping[str, Tensor]
    """Int64 [N] for each of `SPLITS`."""

    @cached_property
    def digest(self) -> str:
        """Tells these texts from others, whatever their folder is called."""
        found = hashlib.sha256("\n".join(self.symbols).encode())
        for name in SPLITS:
            found.update(self.texts[name].numpy().data)
        return found.hexdigest()[:16]

    def unigram_nats(self, split: str) -> float:
        """Nats per symbol of a text under the frequencies of the training text.

        Every symbol counts once more than it was seen, so that none is impossible.
        """
        counts = torch.bincount(self.texts["train"], minlength=len(self.symbols)) + 1.0
        logs = (counts / counts.sum()).log()
        return -float(logs[self.texts[split]].mean())


def load_corpus(data: TextData, folder: Path | None, unit: TextUnit, min_count: int) -> Corpus:
    """Read the texts and number their symbols.

    Args:
        data: which texts.
        folder: of the files of `wikitext2`.
        unit: what a symbol is: a character, or a word between spaces with a symbol for each line's
            end.
        min_count: symbols that occur more rarely in the training text count as unknown.

    Raises:
        ValueError: no folder or no such file, or nothing to read in it.
    """
    texts = docstrings() if data == "docstrings" else _read_folder(folder)
    return number(texts, unit, min_count)


def number(texts: Mapping[str, str], unit: TextUnit, min_count: int = 1) -> Corpus:
    """Number the symbols of texts, in the order of their frequency in the training text."""
    split = {name: _words(text) if unit == "word" else list(text) for name, text in texts.items()}
    counts = Counter(split["train"])
    counts.pop(UNKNOWN, None)
    known = sorted((s for s in counts if counts[s] >= min_count), key=lambda s: (-counts[s], s))
    symbols = [UNKNOWN, *known]
    index = {symbol: i for i, symbol in enumerate(symbols)}
    return Corpus(
        symbols=symbols,
        texts={
            name: torch.tensor([index.get(symbol, 0) for symbol in parts], dtype=torch.int64)
            for name, parts in split.items()
        },
    )


def _words(text: str) -> list[str]:
    return [word for line in text.splitlines() for word in (*line.split(), END_OF_LINE)]


def _read_folder(folder: Path | None) -> dict[str, str]:
    if folder is None:
        raise ValueError(
            "data_folder: needed for wikitext2, a folder with " + ", ".join(_FILES.values())
        )
    texts = {}
    for split, name in _FILES.items():
        try:
            texts[split] = (folder / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise ValueError(f"data_folder: {folder / name} cannot be read ({reason})") from None
        if not texts[split].strip():
            raise ValueError(f"data_folder: {folder / name} is empty")
    return texts


def docstrings(root: Path | None = None) -> dict[str, str]:
    """The docstrings of a library, modules in an order that is always the same.

    Args:
        root: folder of the library; None: Python's standard library.
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    files = sorted(path for path in root.rglob("*.py") if _is_read(path.relative_to(root)))
    random.Random(0).shuffle(files)
    modules = [text for path in files if (text := _docstrings_of(path))]
    ends = list(itertools.accumulate(map(len, modules)))
    parts: dict[str, list[str]] = {name: [] for name in SPLITS}
    for text, end in zip(modules, ends, strict=True):
        share = (end - len(text)) / ends[-1]
        parts[SPLITS[sum(share >= border for border in _SHARES)]].append(text)
    return {name: "".join(texts) for name, texts in parts.items()}


def _is_read(path: Path) -> bool:
    return not any(part in _LEFT_OUT or part.startswith("config-") for part in path.parts)


def _docstrings_of(path: Path) -> str:
    """The docstrings of a module, each followed by an empty line; "" if it cannot be parsed."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return "".join(f"{text}\n\n" for text in found if text)
