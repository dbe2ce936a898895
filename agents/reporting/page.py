"""A report as one HTML page that needs no other file: pictures and clips are inside it.

Plain markup and a few rules of style, no script, so a template engine would have nothing to do.
"""

import base64
import dataclasses
import html
from collections.abc import Sequence
from pathlib import Path

from agents.reporting.blocks import Block, Bullets, Heading, Inline, Link, Paragraph, Picture, Table
from rl_nfm.support.output_files import written

PAGE = "index.html"
_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.7rem; margin: 0.5rem 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 0.5rem; border-bottom: 1px solid #ccc; }
a { color: #0b5394; }
.wide { overflow-x: auto; margin: 0.5rem 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.92rem; }
th, td { text-align: left; padding: 0.3rem 0.8rem 0.3rem 0; border-bottom: 1px solid #e2e2e2;
  white-space: nowrap; }
th { border-bottom-color: #888; }
img.figure { max-width: max(100%, 36rem); height: auto; }
.clips { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; max-width: 100%; }
figcaption { font-size: 0.9rem; color: #444; }
.clips img, .clips video { max-width: 100%; max-height: 24rem; background: #000; }
ul { padding-left: 1.2rem; overflow-wrap: anywhere; }
ul.columns { columns: 22rem; font-size: 0.92rem; }
"""


@dataclasses.dataclass(frozen=True)
class Clip:
    """Moving pictures that only the page can hold."""

    caption: str
    content: bytes
    kind: str
    """image/gif or video/mp4."""


def write_page(path: Path, text: Sequence[Block], runs: Sequence[Block | Clip]) -> None:
    """Write the page.

    Args:
        path: of the file, in the folder of the report's pictures.
        text: the report; its pictures are shown first.
        runs: what follows it.

    Raises:
        OSError: a picture cannot be read, or the page not be written.
    """
    title = next(block.text for block in text if isinstance(block, Heading))
    pictures = [block for block in text if isinstance(block, Picture)]
    first = next(
        i for i, block in enumerate(text) if isinstance(block, Heading) and block.level > 1
    )
    rest = [block for block in text[first:] if not isinstance(block, Picture)]
    head = [block for block in text[:first] if not isinstance(block, Picture)]
    body = [_html(block, path.parent) for block in (*head, *pictures, *rest)]
    clips = [block for block in runs if isinstance(block, Clip)]
    body += [_html(block, path.parent) for block in runs if not isinstance(block, Clip)]
    if clips:
        body += ["<h2>Play</h2>", '<div class="clips">', *map(_clip, clips), "</div>"]
    page = [
        "<!doctype html>",
        '<html lang="en">',
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        *body,
        "</html>",
    ]
    with written(path) as partial:
        partial.write_text("\n".join(page) + "\n", encoding="utf-8")


def _html(block: Block, folder: Path) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
        case Paragraph():
            return f"<p>{html.escape(block.text)}</p>"
        case Bullets():
            items = "".join(f"<li>{_inline(item)}</li>" for item in block.items)
            kind = ' class="columns"' if len(block.items) > 8 else ""
            return f"<ul{kind}>{items}</ul>"
        case Picture():
            source = _data("image/png", (folder / block.name).read_bytes())
            image = f'<img class="figure" alt="{html.escape(block.name)}" src="{source}">'
            return f'<div class="wide">{image}</div>'
        case Table():
            names = "".join(f"<th>{html.escape(name)}</th>" for name in block.rows[0])
            rows = [
                "<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row.values()) + "</tr>"
                for row in block.rows
            ]
            table = "\n".join([f"<tr>{names}</tr>", *rows])
            return f'<div class="wide"><table>\n{table}\n</table></div>'


def _clip(clip: Clip) -> str:
    source = _data(clip.kind, clip.content)
    shown = f'<img alt="" src="{source}">'
    if clip.kind.startswith("video/"):
        shown = f'<video controls loop muted playsinline src="{source}"></video>'
    return f"<figure>{shown}<figcaption>{html.escape(clip.caption)}</figcaption></figure>"


def _inline(value: Inline) -> str:
    if isinstance(value, Link):
        return f'<a href="{html.escape(value.href)}">{html.escape(value.text)}</a>'
    return html.escape(value)


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
