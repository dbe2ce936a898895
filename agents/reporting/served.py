"""A report's page in a browser: a local server that offers only the report and its runs."""

import os
import webbrowser
from collections.abc import Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

from agents.reporting.page import PAGE


def serve(out: Path, paths: Sequence[Path]) -> None:
    """Open the page and serve it until interrupted.

    Args:
        out: folder of the report.
        paths: of the runs that it links to.
    """
    server, url = make_server(out, paths)
    print(f"serving {url} (end with Ctrl-C)", flush=True)
    webbrowser.open(url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()


def make_server(out: Path, paths: Sequence[Path]) -> tuple[ThreadingHTTPServer, str]:
    """A server at a free port of the loopback address, and the page's address.

    The links of the page lead out of the report's folder, so what both lie in is the root, and all
    else below it is refused.
    """
    shown = [path.resolve() for path in (out, *paths)]
    root = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in shown]))
    handler = partial(_Handler, directory=str(root), shown=shown)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    page = quote(str((shown[0] / PAGE).relative_to(root)))
    return server, f"http://127.0.0.1:{server.server_port}/{page}"


class _Handler(SimpleHTTPRequestHandler):
    """Serves what lies in the given folders, and says nothing on the terminal."""

    def __init__(self, *args: Any, shown: Sequence[Path], **kwargs: Any):
        self._shown = shown
        super().__init__(*args, **kwargs)

    def translate_path(self, path: str) -> str:
        """The file of a request; for a refused one, a name that no file has."""
        file = Path(super().translate_path(path))
        # A folder is answered with its page, which may be a link that leads out of it.
        asked = [file, *(file / page for page in ("index.html", "index.htm"))]
        try:
            allowed = all(
                any(one.resolve().is_relative_to(folder) for folder in self._shown) for one in asked
            )
        except (OSError, ValueError):  # a name that no file can have
            allowed = False
        return str(file) if allowed else os.devnull + "/refused"

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""
