"""Groups of environments that take turns: the same games, rows and results as one group."""

import dataclasses

import numpy as np
import pytest
import torch

from agents.config import EnvConfig, make_config
from agents.saving.run_folder import RunFolder, read_metrics
from agents.training import turns
from agents.training.trainer import Trainer

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def config_of(groups: int, **changes):
    """Four games of a game of memory, in which nothing is drawn for an action."""
    values = {
        "game": "memory_cue",
        "encoder": "lstm",
        "steps": 160,
        "env": {"num_envs": 4, "num_groups": groups},
        "replay": {"capacity_steps": 200, "min_steps": 40, "batch_size": 4, "sequence_steps": 2,
                   "overlap_steps": 0},
        "learner": {"precision": "fp32", "steps_per_update": 8, "num_action_quantiles": 3},
        "head": {"hidden_size": 8, "noisy": False, "num_cosines": 4},
        "run": {"log_every_steps": 40, "eval_episodes": 0, "checkpoint_every_steps": 80},
        "nature": {"width": 2},
        "lstm": {"trunk": "nature", "hidden_size": 6},
        **changes,
    }  # fmt: skip
    return make_config(values)


def run(config, folder):
    trainer = Trainer(config, CPU)
    files = RunFolder.create(config, folder)
    with files.held():
        trainer.run(files, None)
    return trainer, read_metrics(folder / "metrics.jsonl")


def without_times(lines):
    timed = ("time/", "steps_per_second", "updates_per_second")
    return [{k: v for k, v in line.items() if not k.startswith(timed)} for line in lines]


def play_known_actions(monkeypatch):
    """Actions that depend on the environment and on how often it has acted, and on nothing else."""

    act = turns.Collector.act

    def choose(self, group):
        act(self, group)  # fills the row
        first = group * self._each
        self.taken = getattr(self, "taken", [0] * self._groups)
        self.taken[group] += 1
        actions = (np.arange(first, first + self._each) + self.taken[group]) % 2
        self.players[group]._chosen.copy_(torch.from_numpy(actions))
        return actions

    monkeypatch.setattr(turns.Collector, "act", choose)


@pytest.mark.parametrize("groups", [2, 4])
def test_groups_play_the_games_of_one_group(groups: int, tmp_path, monkeypatch) -> None:
    """Frames, rewards and ends of all rows, where actions are the same."""
    play_known_actions(monkeypatch)
    changes = {"steps": 120, "replay": {"capacity_steps": 200, "min_steps": 200, "batch_size": 4}}
    one, lines = run(config_of(1, **changes), tmp_path / "one")
    several, others = run(config_of(groups, **changes), tmp_path / "several")
    assert len(several.turns.envs) == groups
    for name, rows in one.replay.row_stores.items():
        if name != "action":  # the row holds what the network would have done
            assert torch.equal(rows, several.replay.row_stores[name]), name
    assert one.replay.row_stores["reward"].any()
    assert lines[-1]["episodes"] == others[-1]["episodes"] > 0
    assert lines[-1]["return_last_100"] == others[-1]["return_last_100"]


def test_running_ahead_changes_no_result(tmp_path, monkeypatch) -> None:
    """A run that never begins a round early, and one that does wherever nothing is due."""
    _, ahead = run(config_of(2), tmp_path / "ahead")
    receive = turns.Turns.receive
    monkeypatch.setattr(
        turns.Turns, "receive", lambda self, *, epsilon, ahead: receive(
            self, epsilon=epsilon, ahead=False)
    )  # fmt: skip
    _, behind = run(config_of(2), tmp_path / "behind")
    assert without_times(ahead) == without_times(behind)
    assert ahead[-1]["updates"] > 10


def test_a_group_plays_while_another_is_received(monkeypatch) -> None:
    """The order of calls; before the last round, and where something is due, no round begins."""
    trainer = Trainer(config_of(2), CPU)
    calls = []
    for number, env in enumerate(trainer.turns.envs):
        for name in ("send", "recv"):
            call = getattr(env, name)

            def noted(*args, call=call, note=(name, number)):
                calls.append(note)
                return call(*args)

            monkeypatch.setattr(env, name, noted)
    epsilon = torch.ones(4)
    trainer.turns.begin(seed=1, epsilon=epsilon)
    for ahead in (True, False):
        trainer.turns.send()
        trainer.turns.receive(epsilon=epsilon, ahead=ahead)
    start = [("send", 0), ("send", 1)]
    first = [("recv", 0), ("send", 0), ("recv", 1), ("send", 1)]
    assert calls == [*start, *first, ("recv", 0), ("recv", 1)]
    trainer.turns.send()
    trainer.turns.drop()
    trainer.turns.drop()
    assert calls[8:] == [*start, ("recv", 0), ("recv", 1)]
    trainer.turns.close()


def test_how_many_groups() -> None:
    for num_envs, asked, cpu, cuda in ((32, 0, 1, 2), (31, 0, 1, 1), (16, 0, 1, 1), (9, 3, 3, 3)):
        config = EnvConfig(num_envs=num_envs, num_groups=asked)
        assert turns.num_groups(config, CPU) == cpu
        assert turns.num_groups(config, CUDA) == cuda
    with pytest.raises(ValueError, match=r"env.num_groups: 3 is not allowed.*\(4\)"):
        turns.num_groups(EnvConfig(num_envs=4, num_groups=3), CPU)
    with pytest.raises(ValueError, match=r"env.num_groups: 3 is not allowed"):
        Trainer(dataclasses.replace(config_of(1), env=EnvConfig(num_envs=4, num_groups=3)), CPU)
