"""The blocks of a report's text, and their Markdown; `agents.reporting.page` makes HTML of them.

A cell or a line of text is plain text, or a `Link`.
"""

import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Link:
    """Text that leads somewhere."""

    text: str
    href: str


Inline = str | Link


@dataclasses.dataclass(frozen=True)
class Heading:
    """A title; level 1 is the report's."""

    level: int
    text: str


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """A sentence or more."""

    text: str


@dataclasses.dataclass(frozen=True)
class Bullets:
    """A list."""

    items: Sequence[Inline]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells, at least one; the columns are those of the first row."""

    rows: Sequence[Mapping[str, Inline]]


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image in the report's folder."""

    name: str


Block = Heading | Paragraph | Bullets | Table | Picture


def to_markdown(blocks: Sequence[Block]) -> str:
    """The whole as Markdown, a blank line between blocks."""
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {block.text}"
        case Paragraph():
            return block.text
        case Bullets():
            return "\n".join(f"* {_inline(item)}" for item in block.items)
        case Picture():
            return f"![{block.name}]({block.name})"
        case Table():
            header = "| " + " | ".join(block.rows[0]) + " |"
            body = ["| " + " | ".join(map(_inline, row.values())) + " |" for row in block.rows]
            return "\n".join([header, "|" + " --- |" * len(block.rows[0]), *body])


def _inline(value: Inline) -> str:
    return f"[{value.text}]({value.href})" if isinstance(value, Link) else value
