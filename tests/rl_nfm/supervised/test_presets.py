"""Presets of the supervised tasks: YAML files, by name or path."""

import pytest

import rl_nfm.supervised  # noqa: F401  (the tasks register)
from rl_nfm.supervised.cli import main
from rl_nfm.supervised.loop.presets import FOLDER, Presets
from rl_nfm.supervised.registry import task_names
from rl_nfm.supervised.tasks.adding import AddingConfig
from rl_nfm.supervised.tasks.classification import CLASSIFICATION_NFM, ClassificationConfig


def test_every_task_has_its_presets_and_each_can_be_read(capsys):
    tasks = {path.name for path in FOLDER.iterdir()}
    assert len(tasks) == 13
    assert tasks <= set(task_names())
    for task in tasks:
        for path in (FOLDER / task).glob("*.yaml"):
            assert path.read_text().startswith("# "), f"{path}: says nothing of its source"
            with pytest.raises(SystemExit) as stopped:
                main([task, "--preset", path.stem, "--help"])
            assert stopped.value.code == 0
            assert "--device" in capsys.readouterr().out


def test_values_over_defaults_and_nfm_in_a_published_form(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("width: 3\nnfm: {preset: paper, heads: 2}\n")
    presets = Presets("classification", ClassificationConfig)
    config = presets[str(path)]
    assert (config.width, config.preset, config.depth) == (3, str(path), 18)
    assert config.nfm.heads == 2
    assert config.nfm.top_k == CLASSIFICATION_NFM.top_k == 5, "of the task, not of NFMConfig"
    assert config.nfm.read_passes == "all", "of the paper's form"
    assert list(presets) == ["small", "paper", "symbols"]
    assert len(presets) == 3


def test_a_run_from_a_preset_file(tmp_path):
    path, out = tmp_path / "mine.yaml", tmp_path / "run"
    path.write_text("hidden_size: 5\nmodel: gru\nepochs: 0\ntest_examples: 3\n")
    assert main(["adding", "--preset", str(path), "--out", str(out)]) == 0
    assert main(["adding", "--resume", str(out)]) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hidden: 5\n", "hidden is now hidden_size"),
        ("hiden_size: 5\n", "did you mean 'hidden_size'"),
        ("epochs: -1\n", "epochs: -1 is not allowed"),
        ("- 1\n", "must be a mapping"),
    ],
)
def test_a_wrong_preset_is_told_in_one_line(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        main(["adding", "--preset", str(path)])
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean 'small'\? .*or the path of a YAML file"):
        main(["adding", "--preset", "smal"])
    with pytest.raises(KeyError):
        Presets("adding", AddingConfig)["smal"]
