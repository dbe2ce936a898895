"""The report as one page: what is inside it, where it leads, and who may fetch what."""

import html.parser
import threading
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote

import imageio.v3 as imageio
import numpy as np
import pytest

from agents.config import make_config, to_plain, write_config
from agents.presets import read_preset
from agents.reporting import runs_shown
from agents.reporting.blocks import Bullets, Heading, Link, Paragraph, Table, to_markdown
from agents.reporting.page import write_page
from agents.reporting.report import write_report
from agents.reporting.served import make_server
from rl_nfm.support.event_writer import CurveWriter


class Page(html.parser.HTMLParser):
    """Tags that are open at the end, attributes of each kind of tag, and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.text = [], {}, ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "!doctype"):
            self.open.append(tag)
        self.attributes.setdefault(tag, []).append(dict(attrs))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def runs(tmp_path):
    """Two runs with hand-made metrics, in a folder whose name must be quoted."""
    paths = []
    for seed in (1, 2):
        path = tmp_path / "my runs <b>" / f"seed{seed}"
        path.mkdir(parents=True)
        write_config(
            make_config({**to_plain(read_preset("debug")), "seed": seed}), path / "config.yaml"
        )
        (path / "metrics.jsonl").write_text('{"steps": 300, "episode_returns": [7.0, 9.0]}\n')
        paths.append(path)
    (paths[1] / "tensorboard").mkdir()
    writer = CurveWriter(paths[1] / "tensorboard")
    for step in (10, 300):
        frames = np.full((2, 4, 4), step % 256, np.uint8)
        gif = imageio.imwrite("<bytes>", frames, extension=".gif")
        writer.add_gif("eval/video", gif, (4, 4), step)
    writer.close()
    return paths


def test_the_page_needs_no_other_file_and_leads_to_the_runs(runs, tmp_path):
    out = tmp_path / "report"
    names = [file.name for file in write_report(runs, out)]
    assert names.index("report.md") == 0
    page = Page((out / "index.html").read_text())
    assert page.open == []
    assert not {"script", "link"} & set(page.attributes)
    sources = [image["src"] for image in page.attributes["img"]]
    assert len(sources) == 2, "the curves, and the clip of the second seed"
    assert [source.split(";")[0] for source in sources] == ["data:image/png", "data:image/gif"]
    assert "after 300 steps" in page.text, "the last clip"
    links = [anchor["href"] for anchor in page.attributes["a"]]
    local = [link for link in links if not link.startswith("https://")]
    assert len(local) == 2 * 3
    for link in local:
        assert (out / unquote(link)).exists()
    assert "1 run" not in (out / "report.md").read_text()
    assert "https://arxiv.org/abs/2108.13264" in links


def test_a_small_video_is_inside_and_a_large_one_is_a_link(runs, tmp_path, monkeypatch):
    (runs[0] / "play.mp4").write_bytes(b"x" * 100)
    write_report(runs, tmp_path / "small")
    page = Page((tmp_path / "small" / "index.html").read_text())
    assert page.attributes["video"][0]["src"] == "data:video/mp4;base64," + "eHh4" * 33 + "eA=="
    monkeypatch.setattr(runs_shown, "CLIP_BYTES", 99)
    write_report([runs[0]], tmp_path / "large")
    page = Page((tmp_path / "large" / "index.html").read_text())
    assert "video" not in page.attributes
    assert any(anchor["href"].endswith("play.mp4") for anchor in page.attributes["a"])


def test_text_is_escaped_and_the_same_in_both_forms(tmp_path):
    text = [
        Heading(1, "A <b> & c"),
        Paragraph("1 < 2"),
        Heading(2, "Rows"),
        Table([{"x": "<i>", "y": Link("here", 'a"b')}, {"x": "2", "y": "-"}]),
        Bullets(["one", Link("two", "2.html")]),
    ]
    write_page(tmp_path / "index.html", text, [])
    page = Page((tmp_path / "index.html").read_text())
    assert page.open == []
    assert not {"b", "i"} & set(page.attributes)
    for piece in ("A <b> & c", "1 < 2", "<i>", "one"):
        assert piece in page.text
    assert [anchor["href"] for anchor in page.attributes["a"]] == ['a"b', "2.html"]
    assert to_markdown(text) == (
        '# A <b> & c\n\n1 < 2\n\n## Rows\n\n| x | y |\n| --- | --- |\n| <i> | [here](a"b) |\n'
        "| 2 | - |\n\n* one\n* [two](2.html)\n"
    )


def test_only_the_report_and_its_runs_are_served(runs, tmp_path):
    out = tmp_path / "report"
    write_report(runs, out)
    secret = tmp_path / "secret.txt"
    secret.write_text("mine")
    (out / "leak.txt").symlink_to(secret)
    (out / "folder").mkdir()
    (out / "folder/index.html").symlink_to(secret)
    server, url = make_server(out, [*runs])
    assert url.startswith("http://127.0.0.1:")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            content = answer.read()
        assert content == (out / "index.html").read_bytes()
        anchors = Page(content.decode()).attributes["a"]
        link = next(a["href"] for a in anchors if a["href"].endswith("metrics.jsonl"))
        with urllib.request.urlopen(url.rsplit("/", 1)[0] + "/" + link, timeout=60) as answer:
            assert answer.read() == (runs[0] / "metrics.jsonl").read_bytes()
        root = url.rsplit("/", 2)[0]
        for refused in ("/report/folder/", "/report/%00"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(root + refused, timeout=60)
        for refused in ("/secret.txt", "/report/leak.txt", "/", "/report/../secret.txt"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(root + refused, timeout=60)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert Path(secret).read_text() == "mine"
