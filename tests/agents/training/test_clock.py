"""When things are due, and how exploration goes on."""

import pytest

from agents.learning.config import ExplorationConfig
from agents.training.clock import Clock, Epsilon, Stopwatch


def test_a_count_is_due_once_for_each_multiple_that_is_passed():
    clock = Clock(log=10, save=25)
    told = {now: clock.due(now - 4, now) for now in range(4, 101, 4)}
    assert [now for now, due in told.items() if "log" in due] == [
        12, 20, 32, 40, 52, 60, 72, 80, 92, 100,
    ]  # fmt: skip
    assert [now for now, due in told.items() if "save" in due] == [28, 52, 76, 100]


def test_a_step_longer_than_the_interval_is_due_once():
    assert Clock(log=3).due(0, 64) == {"log"}
    assert Clock(log=100).due(100, 164) == frozenset()


def test_actions_are_random_until_learning_begins_whatever_the_schedule():
    """Presets with noisy layers have an epsilon of 0 from the first step."""
    noisy = ExplorationConfig(epsilon_start=0.0, epsilon_final=0.0, epsilon_decay_steps=1)
    epsilon = Epsilon(noisy, num_envs=3, min_steps=40)
    assert epsilon(0).tolist() == epsilon(39).tolist() == [1.0, 1.0, 1.0]
    assert epsilon(40).tolist() == epsilon(1000).tolist() == [0.0, 0.0, 0.0]


def test_one_environment_has_the_plain_schedule():
    config = ExplorationConfig(epsilon_power=7.0, epsilon_decay_steps=10, epsilon_final=0.2)
    assert Epsilon(config, num_envs=1, min_steps=5)(10).tolist() == pytest.approx([0.6])


def test_the_stopwatch_gives_each_part_its_time_and_begins_anew(monkeypatch):
    times = iter([0.0, 1.0, 1.5, 3.5, 4.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    watch = Stopwatch()
    for name in ("act", "learn", "act"):
        watch.lap(name)
    assert watch.milliseconds(2) == {"time/act": 1500.0, "time/learn": 250.0}
    watch.lap("learn")
    assert watch.milliseconds(1) == {"time/learn": 500.0}
