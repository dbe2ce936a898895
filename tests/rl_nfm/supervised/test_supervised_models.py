"""Models of supervised tasks by name, also those of other packages."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rl_nfm.supervised.cli import main
from rl_nfm.supervised.models import MODELS, Models, check_reads
from rl_nfm.supervised.registry import task_entry, task_names
from tests.installed import installed

ROOT = Path(__file__).parents[3]
CORE = """
import dataclasses
from torch import nn
from rl_nfm.supervised.tasks.recurrent import CORES


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanConfig:
    \"\"\"Options of mean.\"\"\"

    before: int = 1
    \"\"\"Zeros that are counted as seen before.\"\"\"


class Mean(nn.Module):
    def __init__(self, inputs, outputs, before):
        super().__init__()
        self.linear, self.before = nn.Linear(inputs, outputs), before

    def forward(self, sequence):
        count = self.before + sequence.new_ones(sequence.shape[:2]).cumsum(1)[..., None]
        return self.linear(sequence.cumsum(1) / count), None


@CORES.register("mean", "the mean of what was seen", reads=("num_rims",), options=MeanConfig)
def make(config, input_size):
    return Mean(input_size, config.hidden_size, config.mean.before)
"""
TAKEN = "from rl_nfm.supervised.tasks.recurrent import CORES\nCORES.register('gru', 'mine')(len)"
COMMON = """
from rl_nfm.supervised.tasks.recurrent import CORES
CORES.register('last', 'the last step', reads=('hidden_size',))(len)
"""
PROGRAM = """
from pathlib import Path
from agents.cli import main
from agents.sweeping.supervised import SupervisedPlan
from rl_nfm.supervised.registry import task_entry

tiny = ["--updates-per-epoch", "2", "--epochs", "1", "--test-examples", "7", "--hidden-size", "5"]
mean = ["supervised", "adding", "--model", "mean", "--mean.before", "3", *tiny]
assert main([*mean, "--out", "run"]) == 0
assert main(["supervised", "adding", "--resume", "run", "--epochs", "2"]) == 0
assert main(["supervised", "adding", "--model", "gru", "--mean.before", "3", *tiny]) == 2
assert main([*mean, "--mean.befor", "3"]) == 2
assert main(["supervised", "adding", "--model", "gru", *tiny, "--out", "built_in"]) == 0
Path("more.yaml").write_text("mean: {before: 7}")
assert task_entry("adding").presets["more.yaml"].mean.before == 7
assert main(["supervised", "evaluate", "run"]) == 0
assert main(["supervised", "report", "run"]) == 0
vary = {"num_rims": ("5", "1"), "mean.before": ("2",)}
plan = SupervisedPlan(task="adding", models=("gru", "mean"), seeds=(0,), vary=vary, flags=(*tiny,))
print([run.method for run in plan.runs(Path("sweep"))])
main(["supervised", "copying", "--help"])
"""


def test_an_installed_package_adds_a_model_and_broken_ones_are_left_out(tmp_path):
    installed(tmp_path, "rl_nfm.models", "mean", CORE)
    installed(
        tmp_path,
        "rl_nfm.models",
        "gone",
        CORE.replace('"mean"', '"gone"') + "raise RuntimeError('not today')",
    )
    installed(tmp_path, "rl_nfm.models", "taken", TAKEN)
    installed(tmp_path, "rl_nfm.models", "common", COMMON)
    installed(tmp_path, "rl_nfm.models", "seed", CORE.replace('"mean"', '"seed"'))
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert found.returncode == 0, found.stderr
    assert "| mean |" in found.stdout, "the report"
    assert (
        "['gru', 'mean,num_rims=5,mean.before=2', 'mean,num_rims=1,mean.before=2']" in found.stdout
    ), "the sweep"
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["mean"] == {"before": 3}
    assert "mean: has no effect on model 'gru' (read by: mean)" in found.stderr
    assert "Zeros that are counted as seen before." in found.stdout, "the help of another task"
    assert "mean       the mean of what was seen" in found.stdout, "the help of another task"
    for name in ("gone", "last", "seed"):
        assert f"  {name} " not in found.stdout
    for said in (
        "the model plug-in gone (plugin_gone) is left out: RuntimeError: not today",
        "plug-in taken (plugin_taken) is left out: ValueError: model 'gru' of recurrent is already",
        "plug-in common (plugin_common) is left out: ValueError: reads: 'hidden_size' of model",
        "plug-in seed (plugin_seed) is left out: ValueError: model 'seed': ",
    ):
        assert said in found.stderr


@pytest.fixture
def table():
    """A table of two models, which no task has; it is forgotten after the test."""
    models = Models("test")
    models.register("small", "the least")(lambda task: task)
    models.register("large", "the most", reads=("width", "depth"))(lambda task: task)
    yield models
    for key in [key for key in MODELS if key[0] == "test"]:
        del MODELS[key]


def test_which_models_read_an_option_follows_from_the_models(table):
    assert [*table] == ["small", "large"]
    assert table.used_by == {"width": ["large"], "depth": ["large"]}
    table.register("wide", "between", reads=("width",))(len)
    assert table.used_by == {"width": ["large", "wide"], "depth": ["large"]}
    check_reads([("test", "wide")])
    with pytest.raises(ValueError, match="model 'wide' of test is already registered"):
        table.register("wide", "twice")
    table.register("other", "reads what all read", reads=("dept",))(len)
    with pytest.raises(ValueError, match=r"'dept' of model 'other' is no option .*'depth'"):
        check_reads([("test", "other")])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a task, or of a model."""

    width: int = 1


def test_options_of_a_model_are_a_group_of_its_name(table):
    assert table.with_options(Options) is Options
    table.register("own", "brings options", options=Options)(len)
    assert table.used_by["own"] == ["own"]
    check_reads([("test", "own")])
    assert table.with_options(Options)(width=2).own == Options(width=1)
    assert table.with_options(Options) is table.with_options(Options)
    with pytest.raises(ValueError, match="its name must be a Python identifier"):
        table.register("two words", "no", options=Options)
    table.register("width", "the name of an option", options=Options)(len)
    with pytest.raises(ValueError, match="model 'width': Options has an option of that name"):
        table.with_options(Options)


@pytest.mark.parametrize("task", task_names())
def test_every_task_names_its_models_and_answers_an_unknown_one(task, capsys, tmp_path):
    models = task_entry(task).models
    if models is None:
        pytest.skip("one model, or models named by the config")
    assert all(models[name].summary for name in models)
    options = vars(next(iter(task_entry(task).presets.values())))
    assert options["model"] in [*models]
    assert set(models.used_by) <= set(options)
    with pytest.raises(SystemExit):
        main([task, "--help"])
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in models)
    wrong = f"{options['model']}x"
    allowed = ", ".join(models)
    message = rf"^model: '{wrong}' is unknown; did you mean '\w+'\? \(allowed: {allowed}\)$"
    with pytest.raises(ValueError, match=message):
        main([task, "--model", wrong, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
