"""The script that tells whether two checkouts compute the same can tell when they do not."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "same_metrics.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("same_metrics", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(folder: Path, *lines: dict) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_times_may_differ_and_nothing_else(script: ModuleType, tmp_path: Path) -> None:
    first = {
        "steps": 4,
        "loss": 0.5,
        "steps_per_second": 1.0,
        "time/act": 2.0,
        "in": {"seconds": 3},
    }
    a = script.results(write(tmp_path / "a", first))
    later = {**first, "steps_per_second": 9.0, "time/act": 1.0, "in": {"seconds": 4}}
    assert script.difference(a, script.results(write(tmp_path / "b", later))) is None
    other = script.results(write(tmp_path / "c", {**first, "loss": 0.5000001}))
    assert script.difference(a, other) == "metrics.jsonl, line 1: [('loss', 0.5, 0.5000001)]"
    longer = script.results(write(tmp_path / "d", first, first))
    assert script.difference(a, longer) == "metrics.jsonl: 1 and 2 lines"
    assert script.difference({}, {}) is not None
