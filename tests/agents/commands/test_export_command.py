"""Agents to hand on: exported, listed, evaluated, loaded by `zoo:NAME`, and trained further."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import agents
from agents import cli
from agents.config import make_config, to_plain
from agents.presets import read_preset
from agents.reporting.card import model_card
from agents.saving import checkpoint, zoo
from agents.saving.run_folder import RunFolder
from agents.training.train import train
from envs import random_and_human_score

LIMIT_BYTES = 12_000_000
"""All agents that come with the package."""


def config(**changes):
    plain = to_plain(read_preset("debug"))
    plain["env"] = {**plain["env"], "max_num_frames_per_episode": 120}
    plain["run"] = {**plain["run"], "log_every_steps": 40}
    return make_config({**plain, "steps": 120, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(config(), out=tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "tiny-nature"
    assert cli.main(["export", str(run), "--out", str(out), "--episodes", "3"]) == 0
    return out


@pytest.fixture
def in_zoo(exported, tmp_path, monkeypatch):
    """`zoo:tiny-nature` is there, as if it came with the package."""
    shutil.copytree(exported, tmp_path / "zoo" / "tiny-nature")
    monkeypatch.setattr(zoo, "ZOO", tmp_path / "zoo")


def weights(path):
    return checkpoint.open_checkpoint(checkpoint.find(path)).tensors("network")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def fails(capsys, *argv):
    assert cli.main(argv) == 2
    return capsys.readouterr().err


def test_what_is_written(run, exported):
    names = {path.name for path in exported.iterdir()}
    assert names == {
        *("meta.json", "network.safetensors", "README.md"),
        *("scores.json", "curve.csv", "preset.yaml"),
    }
    assert same(weights(run), weights(exported))
    scores = json.loads((exported / "scores.json").read_text())
    assert len(scores["returns"]) == scores["episodes"] == 3
    assert scores["mean"] == np.mean(scores["returns"])
    assert scores["mean_interval"][0] <= scores["mean"] <= scores["mean_interval"][1]
    assert scores["protocol"]["env_id"] == "ale_py.vector_env/ms_pacman"
    assert scores["checkpoint_steps"] == 120
    assert str(run) not in "".join(path.read_text() for path in exported.glob("*.[jmy]*"))
    header, *lines = (exported / "curve.csv").read_text().splitlines()
    assert header.startswith("steps,updates,episodes,mean_return")
    assert [int(line.split(",")[0]) for line in lines] == [40, 80, 120]
    assert read_preset(str(exported / "preset.yaml")) == config()


@pytest.mark.usefixtures("in_zoo")
def test_an_agent_is_a_preset_too(exported, tmp_path, capsys):
    assert read_preset(str(exported)) == config()
    assert (
        cli.main(["train", "zoo:tiny-nature", "--steps", "16", "--out", str(tmp_path / "a")]) == 0
    )
    assert RunFolder.open(tmp_path / "a").config() == dataclasses.replace(config(), steps=16)
    assert "zoo: 'tinynature' is unknown" in fails(capsys, "train", "zoo:tinynature")
    for card in Path("agents/zoo").glob("*/README.md"):
        name = f"zoo:{card.parent.name}"
        assert f"rl-nfm train {name} --init {name} " in card.read_text()


def test_the_card_has_the_metadata_of_model_hubs(exported):
    _, head, text = (exported / "README.md").read_text().split("---\n", 2)
    data = yaml.safe_load(head)
    assert (data["library_name"], data["license"]) == ("rl-nfm", "mit")
    (entry,) = data["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "tiny-nature"
    assert result["task"]["type"] == "reinforcement-learning"
    assert result["dataset"] == {"name": "ms_pacman", "type": "ale_py.vector_env/ms_pacman"}
    scores = json.loads((exported / "scores.json").read_text())
    (metric,) = result["metrics"]
    assert metric["type"] == "mean_reward"
    assert metric["value"] == f"{scores['mean']:.2f} +/- {scores['standard_deviation']:.2f}"
    assert "95 % interval" in text
    assert "repeat_action_probability: 0.25" in text


@pytest.mark.usefixtures("in_zoo")
def test_episodes_that_are_alike_are_told(exported, capsys):
    scores = json.loads((exported / "scores.json").read_text())
    agent = {"obs_shape": (4, 84, 84), "updates": 1, "parameters": 2, "config": to_plain(config())}
    for repeated in (None, [61, 20.0]):
        content = {**scores, "episodes": 100, "repeated": repeated}
        told = "; 61 of 100 episodes returned exactly this |" in model_card("x", content, agent)
        (zoo.ZOO / "tiny-nature" / "scores.json").write_text(json.dumps(content))
        assert cli.main(["agents"]) == 0
        listed = "  61 of 100 episodes returned exactly 20\n" in capsys.readouterr().out
        assert (told, listed) == (repeated is not None,) * 2


def test_it_plays_as_the_run_does(run, exported, tmp_path):
    found = []
    for path in (run, exported):
        out = tmp_path / "scores.json"
        assert cli.main(["evaluate", str(path), "--episodes", "2", "--json", str(out)]) == 0
        found.append(json.loads(out.read_text())["returns"])
    assert found[0] == found[1]
    obs = np.random.default_rng(0).integers(0, 256, (3, 4, 84, 84), np.uint8)
    actions = [agents.load(path).predict(obs)[0] for path in (run, exported)]
    assert np.array_equal(*actions)


def test_by_the_name_of_a_shipped_agent(in_zoo, exported, tmp_path, capsys):
    assert cli.main(["agents"]) == 0
    assert "tiny-nature  nature" in capsys.readouterr().out
    assert cli.main(["agents", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["steps"], row["random"]) == ("tiny-nature", 120, 307.3)
    assert row["bytes"] == sum(path.stat().st_size for path in exported.iterdir())
    assert cli.main(["evaluate", "zoo:tiny-nature", "--episodes", "1"]) == 0
    assert cli.main(["evaluate", "zoo:tiny-nature", "--episodes", "1", "--random"]) == 0
    obs = np.zeros((2, 4, 84, 84), np.uint8)
    actions = [agents.load(path).predict(obs)[0] for path in ("zoo:tiny-nature", exported)]
    assert np.array_equal(*actions)
    assert "zoo: 'tiny-natur' is unknown; did you mean 'tiny-nature'" in fails(
        capsys, "evaluate", "zoo:tiny-natur"
    )


def test_training_starts_from_an_agent(in_zoo, exported, tmp_path):
    """No update is made in so few steps: what the run saves is what it began with."""
    copied = shutil.copytree(exported, tmp_path / "agent")
    start = ["train", "debug", "--steps", "40", "--seed", "7"]
    for number, name in enumerate(("zoo:tiny-nature", str(copied))):
        out = tmp_path / str(number)
        assert cli.main([*start, "--init", name, "--out", str(out)]) == 0
        assert same(weights(out), weights(exported))
        assert read_preset(str(out / "config.yaml")).init == name
    target = checkpoint.open_checkpoint(checkpoint.find(out)).tensors("training")
    assert all(torch.equal(target[f"target.{k}"], v) for k, v in weights(exported).items())
    # A run that goes on has its own weights, and does not ask for the agent again.
    shutil.rmtree(copied)
    assert cli.main(["train", "--resume", str(out), "--steps", "80"]) == 0


def test_for_another_game_the_head_begins_anew(exported, tmp_path, capsys):
    out = tmp_path / "run"
    argv = ["train", "debug", "--game", "qbert", "--steps", "40", "--init", str(exported)]
    assert cli.main([*argv, "--out", str(out)]) == 0
    assert "the head of" in capsys.readouterr().out
    begun, before = weights(out), weights(exported)
    for name in before:
        assert torch.equal(begun[name], before[name]) == name.startswith("encoder.") or (
            "head." in name and begun[name].shape != before[name].shape
        )


def test_as_many_actions_of_another_meaning_need_another_head(tmp_path, capsys):
    """Pong moves to the right where Q*bert hops up."""
    first, second, same_game = (tmp_path / name for name in "abc")
    train = ["train", "debug", "--steps", "40"]
    assert cli.main([*train, "--game", "pong", "--out", str(first)]) == 0
    capsys.readouterr()
    init = ["--init", str(first)]
    other = ["--game", "qbert", "--seed", "5"]
    assert cli.main([*train, *init, *other, "--out", str(second)]) == 0
    out = capsys.readouterr().out
    assert "note: init: the head of" in out
    assert "(actions NOOP FIRE RIGHT LEFT RIGHTFIRE LEFTFIRE); it begins anew" in out
    assert cli.main([*train, *init, "--game", "pong", "--seed", "5", "--out", str(same_game)]) == 0
    assert "begins anew" not in capsys.readouterr().out
    before = weights(first)
    assert same(weights(same_game), before)
    for name, value in weights(second).items():
        if not name.endswith("sigma"):  # all begin alike
            assert torch.equal(value, before[name]) == name.startswith("encoder."), name


def test_another_encoder_is_refused_before_a_folder_is_made(exported, tmp_path, capsys):
    argv = ["train", "debug", "--encoder", "impala", "--init", str(exported)]
    error = fails(capsys, *argv, "--out", str(tmp_path / "run"))
    assert "its encoder 'nature' has other weights than the one here" in error
    assert not (tmp_path / "run").exists()
    error = fails(capsys, "train", "debug", "--init", "zoo:nobody", "--out", str(tmp_path / "run"))
    assert "zoo: 'nobody' is unknown" in error


def test_a_folder_with_something_in_it_is_never_written_over(run, exported, capsys):
    before = (exported / "README.md").read_bytes()
    error = fails(capsys, "export", str(run), "--out", str(exported))
    assert "is not empty (allowed: a new folder, or an empty one)" in error
    assert (exported / "README.md").read_bytes() == before


def test_a_flipped_byte_is_found(exported, tmp_path, capsys):
    broken = shutil.copytree(exported, tmp_path / "broken")
    content = bytearray((broken / "network.safetensors").read_bytes())
    content[-5] ^= 1
    (broken / "network.safetensors").write_bytes(content)
    assert "truncated or changed" in fails(capsys, "evaluate", str(broken))


def test_an_exported_agent_is_no_run_to_go_on_with(exported, capsys):
    assert "not a run" in fails(capsys, "train", "--resume", str(exported))


def test_it_can_be_exported_again_but_has_no_curve_then(exported, tmp_path):
    out = tmp_path / "again"
    assert cli.main(["export", str(exported), "--out", str(out), "--episodes", "1"]) == 0
    assert same(weights(out), weights(exported))
    assert not (out / "curve.csv").exists()
    assert "+/-" not in (out / "README.md").read_text(), "one episode has no spread"


def test_scores_say_which_checkpoint_was_exported(run, tmp_path):
    """Not by the folder's name, which is the user's."""
    shutil.copytree(run, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.copytree(next(checkpoints.glob("step_*")), checkpoints / "best")
    for which, name in (("best", "mine"), ("last", "best")):
        out, scores = tmp_path / name, tmp_path / f"{which}.json"
        words = [str(tmp_path / "run"), "--which", which, "--out", str(out), "--episodes", "1"]
        assert cli.main(["export", *words]) == 0
        assert json.loads((out / "scores.json").read_text())["which"] == which
        assert cli.main(["evaluate", str(out), "--episodes", "1", "--json", str(scores)]) == 0
        assert json.loads(scores.read_text())["which"] == which


def test_every_agent_that_comes_with_the_package_is_whole_and_small():
    sizes = 0
    for name in zoo.agent_names():
        folder = zoo.ZOO / name
        sizes += sum(path.stat().st_size for path in folder.iterdir())
        agent = agents.load(f"zoo:{name}", device="cpu")
        agent.predict(np.zeros((1, *agent.obs_shape), np.uint8))
        scores = json.loads((folder / "scores.json").read_text())
        assert scores["episodes"] >= 30
    assert sizes <= LIMIT_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.agent_names())
def test_agents_that_come_with_the_package_play_as_their_cards_say(name, tmp_path):
    """With other games' seeds the mean is within three times the interval's half-width."""
    out = tmp_path / "scores.json"
    argv = ["evaluate", f"zoo:{name}", "--episodes", "24", "--seed", "77", "--json", str(out)]
    assert cli.main(argv) == 0
    told, found = (json.loads(path.read_text()) for path in (zoo.ZOO / name / "scores.json", out))
    low, high = told["mean_interval"]
    half = (high - low) / 2 * (told["episodes"] / 24) ** 0.5
    assert abs(found["mean"] - told["mean"]) <= 3 * half + 0.05 * abs(told["mean"])
    assert found["mean"] > (random_and_human_score(told["game"]) or (0.25, 1.0))[0]


def test_the_folder_in_which_one_stands_can_be_exported_to(run, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert cli.main(["export", str(run), "--out", ".", "--episodes", "1"]) == 0
    assert checkpoint.find(tmp_path / "here") == tmp_path / "here"


def test_one_agent_has_no_best_one(exported, capsys):
    assert "holds one agent, no run with its best one" in fails(
        capsys, "evaluate", str(exported), "--which", "best"
    )


def test_metrics_that_are_no_numbers_are_told_before_any_episode_is_played(run, tmp_path, capsys):
    copy = Path(shutil.copytree(run, tmp_path / "run", symlinks=True))
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"steps": 100, "episode_returns": [null]}\n')
    assert cli.main(["export", str(copy), "--out", str(tmp_path / "out")]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.endswith("metrics.jsonl: the line of step 100 holds other than numbers")
    assert not (tmp_path / "out").exists()
