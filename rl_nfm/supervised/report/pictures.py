"""The pictures that runs made at their evaluations: some of each row's first seed, in a table."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from rl_nfm.supervised.report.table import Row

_MAX_PICTURES = 4
"""Of a row: the first, the last and some between."""


def copy_pictures(rows: Sequence[Row], out: Path, task: str) -> list[tuple[str, list[Path]]]:
    """Copy pictures of each row's first seed into the report's folder.

    Args:
        rows: the rows of one task.
        out: folder of the report.
        task: its name, the beginning of the copies' names.

    Returns:
        The row's and the picture's name, and the copies in the order of the epochs.
    """
    table: list[tuple[str, list[Path]]] = []
    for number, row in enumerate(rows, 1):
        kinds: dict[str, list[Path]] = {}
        for path in sorted(row.runs[0].folder.glob("*_*.png")):
            kinds.setdefault(path.stem.rpartition("_")[0], []).append(path)
        for kind, paths in kinds.items():
            copies = [out / f"{task}_{number}_{path.name}" for path in _some(paths)]
            for source, copy in zip(_some(paths), copies, strict=True):
                shutil.copyfile(source, copy)
            table.append((f"{row.name}, {kind}, seed {row.runs[0].seed}", copies))
    return table


def _some(paths: Sequence[Path]) -> list[Path]:
    """At most `_MAX_PICTURES`, evenly spaced, the first and the last among them."""
    if len(paths) <= _MAX_PICTURES:
        return list(paths)
    last = _MAX_PICTURES - 1
    return [paths[i * (len(paths) - 1) // last] for i in range(_MAX_PICTURES)]


def pictures_markdown(table: Sequence[tuple[str, Sequence[Path]]]) -> list[str]:
    """The lines of a table of pictures; empty without any."""
    if not table:
        return []
    wide = max(len(copies) for _, copies in table)
    lines = [["pictures", *[""] * wide], ["---"] * (wide + 1)]
    for name, copies in table:
        cells = [f"epoch {_epoch(path)} ![{path.name}]({path.name})" for path in copies]
        lines.append([name, *cells, *[""] * (wide - len(cells))])
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def _epoch(path: Path) -> str:
    number = path.stem.rpartition("_")[2]
    return str(int(number)) if number.isdigit() else number
