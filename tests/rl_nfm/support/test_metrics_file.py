import json

from rl_nfm.support.metrics_file import MetricsFile


def test_numbers_that_are_not_finite_become_null_wherever_they_stand(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl", "steps")
    line = {"steps": 1, "loss": float("nan"), "episode_returns": [1.0, float("inf")]}
    assert metrics.append(line) == {"steps": 1, "loss": None, "episode_returns": [1.0, None]}
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert metrics.read().lines == [json.loads(text)]
