"""The replay buffer against a naive twin, written from what it promises and not from its code.

The twin keeps every row ever added, in Python lists, and works out one item at a time by walking
from row to row. T positions, E environments, C frames of a stack.
"""

import dataclasses
import math
import random
import types
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from agents.replay.batch import Batch
from agents.replay.buffer import Replay
from agents.replay.config import ReplayConfig
from agents.replay.layout import replay_bytes
from agents.replay.priorities import importance_weights
from agents.replay.returns import ReturnConfig

CPU = torch.device("cpu")
HEIGHT, WIDTH, STATE = 2, 3, 2
Row = dict[str, Any]


class Stream:
    """Random rows of one environment, as a NEXT_STEP autoreset environment gives them."""

    def __init__(self, rng: random.Random):
        self.rng, self.next, self.age = rng, "start", 0

    def row(self, cut: bool) -> Row:
        """The next row; `cut`: a resumed run begins a new episode wherever the old one was."""
        rng = self.rng
        kind = "start" if cut else self.next
        self.age = 0 if kind == "start" else self.age + 1
        terminated = kind != "last" and rng.random() < 0.12
        truncated = kind != "last" and rng.random() < 0.1
        self.next = {True: "last", False: "inside"}[terminated or truncated]
        if kind == "last":
            self.next = "start"
        return {
            "frame": [[rng.randrange(256) for _ in range(WIDTH)] for _ in range(HEIGHT)],
            "action": rng.randrange(18),
            # the autoreset's step is no transition: nothing of it may be used
            "reward": 1e9 if kind == "last" else rng.choice([0.0, 0.25, -0.5, 1.0, -3.0, 7.0]),
            "discount": rng.random() < 0.5 if kind == "last" else not terminated,
            "episode_start": kind == "start",
            "life_loss": rng.random() < (0.5 if terminated or kind == "last" else 0.15),
            "episode_step": self.age,
            "state": [rng.uniform(-1, 1) for _ in range(STATE)],
        }


class NaiveReplay:
    """What the buffer promises, with lists and loops."""

    def __init__(self, config: ReplayConfig, returns: ReturnConfig, stack: int, rows: int):
        self.config, self.returns, self.stack, self.rows = config, returns, stack, rows
        self.history: list[list[Row]] = []  # [time][environment]
        self.weights: dict[tuple[int, int], float] = {}
        self.max_priority = 1.0

    def row(self, time: int, env: int) -> Row:
        return self.history[time][env]

    def starts(self, time: int, env: int) -> bool:
        return self.row(time, env)["episode_start"]

    def add(self, rows: list[Row]) -> None:
        """Append a row; new starts get the largest priority."""
        self.history.append(rows)
        weight = self.max_priority**self.config.priority_exponent
        now = {key: self.weights.get(key, weight) for key in self.eligible()}
        self.weights = now

    def eligible(self) -> list[tuple[int, int]]:
        """Starts of sequences of which every needed row is held, and one a transition."""
        config, newest = self.config, len(self.history) - 1
        oldest = max(0, len(self.history) - self.rows)
        # before the burn-in: the rest of the stack, at least the row of the last action
        before = config.burn_in_steps + max(1, self.stack - 1)
        return [
            (time, env)
            for time in range(oldest + before, newest + 1)
            for env in range(len(self.history[0]))
            if time % (config.sequence_steps - config.overlap_steps) == 0
            and time + config.sequence_steps - 1 + self.returns.n_steps <= newest
            and not all(self.starts(time + p + 1, env) for p in range(config.sequence_steps))
        ]

    def observation(self, time: int, env: int) -> list[Any]:
        """Oldest frame first; black before the episode."""
        frames: list[Any] = []
        black = [[0] * WIDTH] * HEIGHT
        while len(frames) < self.stack:
            frames.insert(0, self.row(time, env)["frame"])
            if self.starts(time, env):
                break
            time -= 1
        return [black] * (self.stack - len(frames)) + frames

    def reset(self, time: int, env: int) -> bool:
        lost = self.returns.terminal_on_life_loss and self.row(time - 1, env)["life_loss"]
        return self.starts(time, env) or lost

    def extras(self, time: int, env: int) -> tuple[int, float, int]:
        """Last action, last reward, step of the episode."""
        step = self.row(time, env)["episode_step"]
        if self.starts(time, env):
            return 0, 0.0, step
        return self.row(time - 1, env)["action"], self.row(time - 1, env)["reward"], step

    def transition(self, time: int, env: int) -> tuple[float, float, int] | None:
        """Return, discount and the row to bootstrap from; None where there is no transition."""
        if self.starts(time + 1, env):
            return None
        total, clip, gamma = 0.0, self.returns.reward_clip, self.returns.discount
        for step in range(self.returns.n_steps):
            if self.starts(time + step + 1, env):  # no step was taken from an episode's last frame
                return total, gamma**step, time + step
            row = self.row(time + step, env)
            reward = row["reward"]
            if clip is not None:
                reward = max(-clip, min(clip, reward))
            total += gamma**step * reward
            lost = self.returns.terminal_on_life_loss and row["life_loss"]
            if not row["discount"] or lost:
                return total, 0.0, -1
        return total, gamma**self.returns.n_steps, time + self.returns.n_steps

    def update(self, key: tuple[int, int], errors: list[float]) -> None:
        valid = [
            error
            for position, error in enumerate(errors)
            if not self.starts(key[0] + position + 1, key[1])
        ]
        eta = self.config.max_weight
        priority = eta * max(valid) + (1 - eta) * sum(valid) / len(valid) + 1e-6
        self.max_priority = max(self.max_priority, priority)
        self.weights[key] = priority**self.config.priority_exponent


@dataclasses.dataclass
class Pair:
    """A buffer and its twin, fed alike."""

    replay: Replay
    twin: NaiveReplay
    streams: list[Stream]
    rng: random.Random

    def add(self) -> None:
        cut = self.rng.random() < 0.02
        rows = [stream.row(cut) for stream in self.streams]
        self.twin.add(rows)

        def column(name: str, dtype: torch.dtype) -> Tensor:
            return torch.tensor([row[name] for row in rows], dtype=dtype)

        self.replay.add(
            frame=column("frame", torch.uint8),
            action=column("action", torch.int64),
            reward=column("reward", torch.float32),
            discount=column("discount", torch.bool),
            episode_start=column("episode_start", torch.bool),
            life_loss=column("life_loss", torch.bool),
            episode_step=column("episode_step", torch.int64),
            state=(column("state", torch.float32),) if self.replay.recurrent else (),
        )

    def index(self, key: tuple[int, int]) -> int:
        return key[0] % self.replay.rows * self.replay.num_envs + key[1]


def make_pair(seed: int, **fixed: Any) -> Pair:
    """A random setting; `fixed` pins some of its values."""
    rng = random.Random(seed)

    def pick(name: str, value: Any) -> Any:
        return fixed.get(name, value)

    sequence = pick("sequence_steps", rng.choice([1, 1, 1, 2, 3, 5]))
    burn_in = pick("burn_in_steps", rng.choice([0, 0, 1, 4]))
    overlap = pick("overlap_steps", rng.randrange(sequence))
    stack, n_steps = pick("stack", rng.randint(1, 4)), pick("n_steps", rng.randint(1, 5))
    num_envs = pick("num_envs", rng.randint(1, 4))
    recurrent = sequence + burn_in > 1 or pick("recurrent", rng.random() < 0.3)
    stride = sequence - overlap
    least = burn_in + max(1, stack - 1) + sequence - 1 + n_steps + stride
    rows = least // stride * stride + stride * rng.randint(1, 6)
    config = ReplayConfig(
        capacity_steps=rows * num_envs + rng.randrange(num_envs),
        batch_size=7,
        priority_exponent=pick("priority_exponent", rng.choice([0.0, 0.5, 1.0])),
        sequence_steps=sequence,
        burn_in_steps=burn_in,
        overlap_steps=overlap,
        initial_state=rng.choice(["stored", "zero"]),
        max_weight=rng.choice([0.0, 0.9, 1.0]),
    )
    returns = ReturnConfig(
        n_steps=n_steps,
        discount=rng.choice([0.9, 0.99, 1.0]),
        reward_clip=rng.choice([None, 1.0, 0.3]),
        terminal_on_life_loss=pick("terminal_on_life_loss", rng.random() < 0.5),
    )
    replay = Replay(
        config,
        returns,
        num_envs=num_envs,
        obs_shape=(stack, HEIGHT, WIDTH),
        device=torch.get_default_device(),
        state=(torch.zeros(1, STATE),) if recurrent else (),
    )
    assert replay.rows == rows
    streams = [Stream(random.Random(1000 * seed + env)) for env in range(num_envs)]
    return Pair(replay, NaiveReplay(config, returns, stack, rows), streams, rng)


def check_weights(pair: Pair) -> None:
    """Exactly the eligible starts can be drawn, each with its weight."""
    expected = [0.0] * (pair.replay.rows * pair.replay.num_envs)
    for key, weight in pair.twin.weights.items():
        expected[pair.index(key)] = weight
    wanted = torch.tensor(expected, dtype=torch.float64)
    assert torch.allclose(pair.replay.priorities.weights, wanted, rtol=1e-12, atol=0)
    assert float(pair.replay.max_priority) == pytest.approx(pair.twin.max_priority, rel=1e-12)


def check_batch(pair: Pair, batch: Batch) -> None:
    """Every field of every item."""
    total = sum(pair.twin.weights.values())
    keys = {pair.index(key): key for key in pair.twin.weights}
    extras = {name: value.tolist() for name, value in batch.extras.items()}
    plain = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    plain = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in plain.items()}
    for b, index in enumerate(plain["index"]):
        key = keys[index]
        assert math.isclose(plain["probability"][b], pair.twin.weights[key] / total, rel_tol=1e-12)
        check_item(pair, types.SimpleNamespace(**{**plain, "extras": extras}), b, *key)


def check_item(pair: Pair, batch: Any, b: int, start: int, env: int) -> None:
    """Item `b` of a batch in plain lists."""
    twin, config, feed_forward = pair.twin, pair.replay.config, not pair.replay.recurrent
    first = config.burn_in_steps
    shown = {0: start} if feed_forward else {}
    if not feed_forward:
        span = first + config.sequence_steps + twin.returns.n_steps
        assert len(batch.obs) == span
        shown = {i: start - first + i for i in range(span)}
        stored = [twin.row(start - first, env)["state"], [0.0] * STATE]
        expected = stored[config.initial_state == "zero"]
        assert batch.state[0][b].tolist() == torch.tensor(expected).tolist()
    for position in range(config.sequence_steps):
        time = start + position
        transition = twin.transition(time, env)
        assert batch.mask[position][b] == (transition is not None)
        if transition is None:
            continue
        value, discount, bootstrap = transition
        assert batch.a_tm1[position][b] == twin.row(time, env)["action"]
        assert math.isclose(batch.r_t[position][b], value, rel_tol=1e-5, abs_tol=1e-6)
        assert math.isclose(batch.discount_t[position][b], discount, rel_tol=1e-6)
        place = batch.bootstrap[position][b]
        assert 0 <= place < len(batch.obs)
        if discount > 0 and feed_forward:
            shown[place] = bootstrap
        elif discount > 0:
            assert shown[place] == bootstrap
    for place, time in shown.items():
        assert batch.obs[place][b] == twin.observation(time, env)
        assert batch.reset[place][b] == twin.reset(time, env)
        names = ("last_action", "last_reward", "episode_step")
        found = tuple(batch.extras[name][place][b] for name in names)
        assert found == twin.extras(time, env)


def draw_all(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Batch:
    """Every start once, through the real `sample`."""
    keys = sorted(pair.twin.weights)
    index = torch.tensor([pair.index(key) for key in keys])
    weights = pair.replay.priorities.weights
    with monkeypatch.context() as patch:
        patch.setattr(
            pair.replay.priorities, "sample", lambda _: (index, weights[index] / weights.sum())
        )
        return pair.replay.sample(len(index))


def run(pair: Pair, monkeypatch: pytest.MonkeyPatch, laps: int = 3) -> None:
    torch.manual_seed(0)
    for time in range(laps * pair.replay.rows + 5):
        pair.add()
        check_weights(pair)
        assert pair.replay.steps == min(time + 1, pair.replay.rows) * pair.replay.num_envs
        if not pair.replay.ready or time % 7 != 0:
            continue
        assert pair.twin.weights, "ready, but nothing can be drawn"
        check_batch(pair, pair.replay.sample(pair.replay.config.batch_size))
        check_batch(pair, draw_all(pair, monkeypatch))
        if pair.replay.config.priority_exponent > 0:
            update_priorities(pair)
            check_weights(pair)


def update_priorities(pair: Pair) -> None:
    """New priorities, between 1e-9 and 1e9, for some of the starts."""
    keys = pair.rng.sample(sorted(pair.twin.weights), k=(len(pair.twin.weights) + 1) // 2)
    length = pair.replay.config.sequence_steps
    errors = [[10.0 ** pair.rng.uniform(-9, 9) for _ in range(length)] for _ in keys]
    mask = [[not pair.twin.starts(t + p + 1, env) for p in range(length)] for t, env in keys]
    pair.replay.update_priorities(
        torch.tensor([pair.index(key) for key in keys]),
        torch.tensor(errors, dtype=torch.float64).T,
        torch.tensor(mask).T,
    )
    for key, values in zip(keys, errors, strict=True):
        pair.twin.update(key, values)


@pytest.mark.parametrize("seed", range(24))
def test_random_settings_equal_the_naive_twin(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run(make_pair(seed), monkeypatch)


@pytest.mark.parametrize("stack", [1, 4])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_feed_forward_settings_equal_the_naive_twin(
    stack: int, n_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = make_pair(
        100 + 10 * stack + n_steps,
        sequence_steps=1,
        burn_in_steps=0,
        overlap_steps=0,
        stack=stack,
        n_steps=n_steps,
        num_envs=3,
        recurrent=False,
    )
    run(pair, monkeypatch)


def run_compiled(sequence: int) -> None:
    pair = make_pair(
        sequence, sequence_steps=sequence, burn_in_steps=0, overlap_steps=0, stack=4, n_steps=3,
        num_envs=3, recurrent=False, priority_exponent=0.5,
    )  # fmt: skip
    counters.clear()
    pair.replay.compile()
    for time in range(2 * pair.replay.rows + 5):
        pair.add()
        if pair.replay.ready and time % 5 == 0:
            check_batch(pair, pair.replay.sample(pair.replay.config.batch_size))
            update_priorities(pair)
            check_weights(pair)
    assert counters["stats"]["unique_graphs"] >= 2
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize("sequence", [1, 3])
def test_compiled_drawing_and_priorities_equal_the_naive_twin(sequence: int) -> None:
    run_compiled(sequence)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_compiled_drawing_and_priorities_equal_the_naive_twin_on_a_gpu() -> None:
    with torch.device("cuda"):
        run_compiled(1)


def test_extreme_priorities_in_a_buffer_are_drawn_in_proportion() -> None:
    pair = make_pair(7, sequence_steps=1, burn_in_steps=0, priority_exponent=1.0, recurrent=False)
    for _ in range(3 * pair.replay.rows):
        pair.add()
    keys = sorted(pair.twin.weights)
    index = torch.tensor([pair.index(key) for key in keys])
    errors = torch.full((1, len(keys)), 1e-30, dtype=torch.float64)
    errors[0, 0] = 1e30
    pair.replay.update_priorities(index, errors, torch.ones(1, len(keys), dtype=torch.bool))
    batch = pair.replay.sample(64)
    assert batch.index.tolist() == [int(index[0])] * 64
    assert batch.probability.tolist() == pytest.approx([1.0] * 64)
    # the next rows get that priority too, and are then as likely
    for _ in range(pair.replay.future_steps + 1):
        pair.add()
    assert float(pair.replay.priorities.weights.max()) == pytest.approx(1e30)


def test_a_sequence_without_a_transition_is_not_drawn_again() -> None:
    pair = make_pair(7, sequence_steps=1, burn_in_steps=0, priority_exponent=1.0, recurrent=False)
    index, mask = torch.tensor([0, 1]), torch.tensor([[False, True]])
    pair.replay.update_priorities(index, torch.ones(1, 2), mask)
    assert (pair.replay.priorities.weights[index] > 0).tolist() == [False, True]


def test_uniform_replay_ignores_errors() -> None:
    pair = make_pair(3, sequence_steps=1, burn_in_steps=0, priority_exponent=0.0)
    for _ in range(2 * pair.replay.rows):
        pair.add()
    batch = pair.replay.sample(8)
    pair.replay.update_priorities(batch.index, torch.rand(1, 8) * 100, torch.ones(1, 8).bool())
    check_weights(pair)
    assert set(pair.twin.weights.values()) == {1.0}


def test_resumed_run_continues_the_episodes_of_none() -> None:
    """A cut without termination bootstraps from the last frame kept, with gamma^m."""
    config = ReplayConfig(capacity_steps=40, priority_exponent=0.0)
    returns = ReturnConfig(n_steps=3, discount=0.5, reward_clip=None, terminal_on_life_loss=False)
    replay = Replay(config, returns, num_envs=1, obs_shape=(2, 1, 1), device=CPU)
    for time in range(12):  # rewards 1, 2, 3, ...; the run is resumed before row 6
        replay.add(
            frame=torch.tensor([[[10 + time]]], dtype=torch.uint8),
            action=torch.tensor([time]),
            reward=torch.tensor([float(time + 1)]),
            discount=torch.tensor([True]),
            episode_start=torch.tensor([time in (0, 6)]),
            life_loss=torch.tensor([False]),
            episode_step=torch.tensor([time % 6]),
        )
    batch = replay.sample(200)
    found = {}
    for b, row in enumerate(batch.index.tolist()):
        found[row] = (
            float(batch.r_t[0, b]),
            float(batch.discount_t[0, b]),
            batch.obs[1, b].flatten().tolist(),
        )
    # row 2: 3 + 4/2 + 5/4 = 6.25, bootstrap 1/8 from row 5; row 3: 4 + 5/2 = 6.5, 1/4 from row 5;
    # row 4: 5, 1/2 from row 5; row 5 is no start; row 6: 7 + 8/2 + 9/4 = 13.25, 1/8 from row 9
    assert {row: found[row] for row in (2, 3, 4, 6)} == {
        2: (6.25, 0.125, [14, 15]),
        3: (6.5, 0.25, [14, 15]),
        4: (5.0, 0.5, [14, 15]),
        6: (13.25, 0.125, [18, 19]),
    }
    assert set(found) == {1, 2, 3, 4, 6, 7, 8}
    first = batch.index.tolist().index(6)
    assert batch.obs[0, first].flatten().tolist() == [0, 16]  # the stack begins anew


@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_life_loss_ends_the_return_where_asked_and_never_the_stack(n_steps: int) -> None:
    for terminal in (False, True):
        returns = ReturnConfig(
            n_steps=n_steps, discount=0.5, reward_clip=1.0, terminal_on_life_loss=terminal
        )
        replay = Replay(
            ReplayConfig(capacity_steps=30, priority_exponent=0.0),
            returns,
            num_envs=1,
            obs_shape=(3, 1, 1),
            device=CPU,
        )
        for time in range(12):  # the step from row 5 loses a life; every reward is 4, clipped to 1
            replay.add(
                frame=torch.tensor([[[time + 1]]], dtype=torch.uint8),
                action=torch.tensor([0]),
                reward=torch.tensor([4.0]),
                discount=torch.tensor([True]),
                episode_start=torch.tensor([time == 0]),
                life_loss=torch.tensor([time == 5]),
                episode_step=torch.tensor([time]),
            )
        batch = replay.sample(300)
        for b, row in enumerate(batch.index.tolist()):
            ends = terminal and row <= 5 < row + n_steps
            steps = 5 - row + 1 if ends else n_steps
            assert float(batch.r_t[0, b]) == sum(0.5**k for k in range(steps))
            assert float(batch.discount_t[0, b]) == (0.0 if ends else 0.5**n_steps)
            assert batch.obs[0, b].flatten().tolist() == [row - 1, row, row + 1]


def test_too_small_a_buffer_is_refused_with_the_least_that_works() -> None:
    returns = ReturnConfig(n_steps=3, discount=0.9, reward_clip=1.0, terminal_on_life_loss=False)

    def build(capacity: int) -> Replay:
        config = ReplayConfig(
            capacity_steps=capacity, sequence_steps=5, overlap_steps=1, burn_in_steps=2
        )
        return Replay(config, returns, num_envs=3, obs_shape=(4, 2, 2), device=CPU)

    # rows before: 2 + 3; after: 4 + 3; one stride: 4; so more than 16, in whole strides: 20
    with pytest.raises(ValueError, match=r"capacity_steps: 59 is not allowed.*at least 60$"):
        build(59)
    assert build(60).rows == 20


def test_overlap_must_be_below_the_sequence() -> None:
    with pytest.raises(ValueError, match=r"overlap_steps: 3 is not allowed: must be below"):
        ReplayConfig(sequence_steps=3, overlap_steps=3)


def test_importance_weights_by_hand() -> None:
    probability = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
    # (1/P)^0.5 = sqrt(10), sqrt(5), sqrt(2.5); divided by the largest: 1, sqrt(1/2), 1/2
    weights = importance_weights(probability, torch.tensor(0.5))
    assert weights.tolist() == pytest.approx([1, math.sqrt(0.5), 0.5], rel=1e-6)
    assert importance_weights(probability, torch.tensor(0.0)).tolist() == [1, 1, 1]
    assert importance_weights(probability, torch.tensor(1.0)).tolist() == pytest.approx(
        [1, 0.5, 0.25]
    )
    wide = torch.tensor([1e-60, 1.0], dtype=torch.float64)
    assert importance_weights(wide, torch.tensor(1.0)).tolist() == [1.0, 0.0]
    assert importance_weights(wide, torch.tensor(0.25)).tolist() == pytest.approx([1.0, 1e-15])


def held_bytes(replay: Replay) -> tuple[int, int]:
    """Bytes of everything kept, and of the states."""
    states = sum(s.nbytes for s in replay.recurrent)
    rows = sum(s.nbytes for s in replay.row_stores.values())
    return rows + states + replay.priorities.weights.nbytes, states


@pytest.mark.parametrize(("sequence", "overlap", "envs"), [(1, 0, 4), (6, 2, 4), (20, 10, 7)])
def test_bytes_are_told_before_they_are_taken(sequence: int, overlap: int, envs: int) -> None:
    config = ReplayConfig(
        capacity_steps=4 * 300, sequence_steps=sequence, overlap_steps=overlap, burn_in_steps=3
    )
    returns = ReturnConfig(n_steps=3, discount=0.9, reward_clip=1.0, terminal_on_life_loss=False)
    state = (torch.zeros(1, 17), torch.zeros(1, 2, 3)) if sequence > 1 else ()
    shape = (4, 84, 84)
    replay = Replay(config, returns, num_envs=envs, obs_shape=shape, device=CPU, state=state)
    told = replay_bytes(config, num_envs=envs, obs_shape=shape, state=state)
    assert told == held_bytes(replay)


def test_a_million_steps_take_at_most_7_2_gigabytes() -> None:
    total, states = replay_bytes(ReplayConfig(), num_envs=8, obs_shape=(4, 84, 84), state=())
    assert total <= 7.2e9
    assert states == 0


def test_a_loaded_state_is_the_one_that_was_saved() -> None:
    fixed = {"priority_exponent": 0.5, "recurrent": True}
    pair, other = make_pair(11, **fixed), make_pair(11, **fixed).replay
    for _ in range(pair.replay.rows + 3):
        pair.add()
    update_priorities(pair)
    saved = pair.replay.state()
    other.load_state(saved)
    for name, value in other.state().items():
        assert torch.equal(value, saved[name]), name
    assert float(other.max_priority) == pytest.approx(pair.twin.max_priority, rel=1e-12)


def test_stored_rows_are_those_that_were_added() -> None:
    """What a checkpoint reads: one entry per row, in place of the row a lap before."""
    pair = make_pair(11, num_envs=2)
    for _ in range(pair.replay.rows + 3):
        pair.add()
    stores = pair.replay.row_stores
    newest = len(pair.twin.history) - 1
    for time in range(newest - pair.replay.rows + 1, newest + 1):
        for env in range(2):
            for name, store in stores.items():
                value = store[time % pair.replay.rows, env].tolist()
                assert value == pair.twin.row(time, env)[name]


def test_a_batch_of_nothing_teaches_nothing_and_is_not_drawn_again() -> None:
    """All complete rows end episodes, as after three resumes within the smallest buffer."""
    config = ReplayConfig(capacity_steps=7, min_steps=1, batch_size=2, priority_exponent=0.5)
    returns = ReturnConfig(n_steps=3, discount=0.9, reward_clip=None, terminal_on_life_loss=False)
    replay = Replay(config, returns, num_envs=1, obs_shape=(3, 1, 1), device=CPU)
    for time in range(1007):
        replay.add(
            frame=torch.tensor([[[time % 256]]], dtype=torch.uint8),
            action=torch.tensor([0]),
            reward=torch.tensor([1.0]),
            discount=torch.tensor([True]),
            episode_start=torch.tensor([time in (0, 3, 4, 5)]),
            life_loss=torch.tensor([False]),
            episode_step=torch.tensor([0]),
        )
        if time < 6:
            continue
        batch = replay.sample(2)
        assert (batch.index < 7).all()
        assert batch.mask.any() == (time > 7)
        replay.update_priorities(batch.index, torch.full((1, 2), 5.0), batch.mask)
        assert replay.priorities.weights[batch.index].bool().any() == (time > 7)
