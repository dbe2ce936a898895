"""One run on several ranks is the run of one process: real processes, joined by gloo on the CPU.

Letters: W ranks, E environments, R rows.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from agents import cli
from agents.learning.config import LearnerConfig
from agents.learning.learner import Learner
from agents.replay.buffer import Replay
from agents.replay.config import ReplayConfig
from agents.replay.priorities import importance_weights
from agents.replay.returns import ReturnConfig
from agents.saving import checkpoint, shards
from agents.saving.restoring import restore
from agents.saving.run_folder import RunFolder, read_metrics
from agents.training import parts, train
from agents.training.parts import share_of
from agents.training.step import GradientStep
from rl_nfm.support.ranks import ALONE, Ranks
from tests.small_runs import tiny

CPU = torch.device("cpu")
ENVS, ROWS, UPDATES, BATCH = 4, 40, 6, 8
RAINBOW = {"distribution": "iqn", "dueling": True, "noisy": True}


# shares


def test_the_shares_of_a_config_add_up_to_it():
    config = tiny(
        env={"num_envs": 6, "num_threads": 3},
        replay={"capacity_steps": 1003, "min_steps": 41, "batch_size": 9},
        learner={"steps_per_update": 8.0},
    )
    assert share_of(config, ALONE) is config
    shares = [share_of(config, Ranks(rank=rank, size=3)) for rank in range(3)]
    for share in shares:
        assert share.env.num_envs == 2
        assert share.env.num_threads == 1
        assert share.replay.batch_size == 3
        # the same rows as in one process, each a third as wide
        assert share.replay.rows(2) == config.replay.rows(6) == 167
        assert share.replay.min_steps == 14  # 7 rows of 2 there, 7 rows of 6 here
        assert share.learner.steps_per_update == pytest.approx(8 / 3)
        assert share.steps == config.steps
    assert len({share.seed for share in shares}) == 3
    assert shares[0].seed == config.seed


@pytest.mark.parametrize(
    ("threads", "size", "share"),
    [(0, 4, 16), (1, 2, 1), (3, 4, 1), (4, 4, 1), (8, 4, 2), (0, 99, 1)],
)
def test_threads_are_shared_by_the_ranks_of_a_machine(monkeypatch, threads, size, share):
    monkeypatch.setattr(parts, "cores", lambda: 64)
    config = tiny(env={"num_envs": size}, replay={"batch_size": size, "capacity_steps": 99 * size})
    config.env.__dict__["num_threads"] = threads  # more than this machine has
    ranks = Ranks(rank=0, size=size, local_size=size)
    assert share_of(config, ranks).env.num_threads == share


@pytest.mark.parametrize(
    ("field", "value"), [("env.num_envs", 5), ("replay.batch_size", 7), ("env.num_envs", 1)]
)
def test_totals_that_cannot_be_split_are_refused(field, value):
    group, name = field.split(".")
    config = tiny(**{group: {name: value}})
    with pytest.raises(ValueError, match=f"^{field}: {value} is not allowed with 2 ranks"):
        share_of(config, Ranks(rank=1, size=2))


def test_exploration_is_spread_over_the_environments_of_all_ranks():
    config = tiny(exploration={"epsilon_start": 0.4, "epsilon_final": 0.4, "epsilon_power": 7.0})
    one = train.Trainer(config, CPU)
    one.counters.steps = 80
    expected = one.rank_epsilon()
    one.env.close()
    assert len(set(expected.tolist())) == 4
    found = []
    for rank in range(2):
        # Ranks that do not speak are enough to build a trainer but for its weights.
        trainer = train.Trainer.__new__(train.Trainer)
        trainer.ranks = Ranks(rank=rank, size=2)
        trainer.share = share_of(config, trainer.ranks)
        trainer.epsilon, trainer.counters = one.epsilon, one.counters
        found.append(trainer.rank_epsilon())
    assert torch.equal(torch.cat(found), expected)


# the update


@dataclasses.dataclass
class Draws:
    """What is drawn in each update: rows and environments of the joined replay."""

    rows: torch.Tensor
    envs: torch.Tensor


def forced_draws():
    """The first half of each batch from the first half of the environments."""
    g = torch.Generator().manual_seed(5)
    rows = torch.randint(3, ROWS - 6, (UPDATES, BATCH), generator=g)
    rows -= (rows % 13 == 12).long()  # an episode's last frame is no transition
    envs = torch.randint(0, ENVS // 2, (UPDATES, BATCH), generator=g)
    envs[:, BATCH // 2 :] += ENVS // 2
    return Draws(rows, envs)


def filled(ranks, toys):
    """This rank's environments of a replay with priorities that differ."""
    own = ENVS // ranks.size
    mine = slice(ranks.rank * own, (ranks.rank + 1) * own)
    replay = Replay(
        ReplayConfig(
            capacity_steps=ROWS * own, batch_size=BATCH // ranks.size, priority_exponent=0.7
        ),
        ReturnConfig(n_steps=3, discount=0.9, reward_clip=1.0, terminal_on_life_loss=False),
        num_envs=own,
        obs_shape=toys.obs_shape,
        device=CPU,
        ranks=ranks,
    )
    g = torch.Generator().manual_seed(3)
    for time_ in range(ROWS - 2):
        ended = torch.full((ENVS,), time_ % 13 == 11)
        row = {
            "frame": torch.randint(0, 256, (ENVS, 3, 2), generator=g, dtype=torch.uint8),
            "action": torch.randint(0, 3, (ENVS,), generator=g),
            "reward": torch.randn(ENVS, generator=g),
            "discount": ~ended,
            "episode_start": torch.full((ENVS,), time_ % 13 == 0),
            "life_loss": torch.zeros(ENVS, dtype=torch.bool),
            "episode_step": torch.full((ENVS,), time_ % 13),
        }
        replay.add(**{name: value[mine] for name, value in row.items()})
    weights = torch.rand(ROWS, ENVS, generator=g, dtype=torch.float64)
    eligible = replay.priorities.weights.view(ROWS, own) > 0
    replay.priorities.load(torch.where(eligible, weights[:, mine], 0.0).reshape(-1))
    return replay


def force(replay, ranks, draws):
    """Let `sample` draw what it is told, with the probabilities with which W ranks draw it."""
    own, update = replay.num_envs, itertools.count()
    part = slice(ranks.rank * (BATCH // ranks.size), (ranks.rank + 1) * (BATCH // ranks.size))

    def sample(count):
        now = next(update)
        row, env = draws.rows[now][part], draws.envs[now][part]
        assert len(row) == count
        weights = replay.priorities.weights.view(ROWS, own)
        halves = weights.split(ENVS // 2, 1)  # as two ranks have them
        totals = torch.stack([half.sum() for half in halves])
        which = (env - ranks.rank * own) // (ENVS // 2)
        local = env - ranks.rank * own
        return row * own + local, weights[row, local] / totals[which]

    replay.priorities.sample = sample


@contextlib.contextmanager
def same_randomness():
    """Fractions and noise that depend neither on the batch's size nor on what was drawn before."""

    def rand(*shape, **_):
        size = torch.Size(shape[0] if isinstance(shape[0], tuple) else shape)
        return ((torch.arange(size[-1]) * 0.618034 + 0.05) % 1.0).expand(size)

    def randn(*shape, **_):
        size = torch.Size(shape[0] if isinstance(shape[0], tuple) else shape)
        return torch.sin(torch.arange(size.numel()) * 1.7 + 0.3).view(size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", rand)
        patch.setattr(torch, "randn", randn)
        yield


def updates(ranks, toys, options, batch_norm=False):
    """Everything that the updates make, after each of them; from the same randomness."""
    with same_randomness():
        return made_by_updates(ranks, toys, options, batch_norm)


def made_by_updates(ranks, toys, options, batch_norm):
    replay = filled(ranks, toys)
    force(replay, ranks, forced_draws())
    weights = 1 if ranks.first else 9  # another rank's own weights do not count
    learner = Learner(
        LearnerConfig(precision="fp32", target_every_updates=2, learning_rate=1e-3, **options),
        toys.make_network(toys.LinearEncoder(batch_norm), weights, **RAINBOW),
        toys.make_network(toys.LinearEncoder(batch_norm), 2, **RAINBOW),
        device=CPU,
        ranks=ranks,
    )
    step, found = GradientStep(learner, replay), []
    for number in range(UPDATES):
        step.set_schedule(number / UPDATES)
        step()
        state = {f"online.{k}": v for k, v in learner.online.state_dict().items()}
        state |= {f"target.{k}": v for k, v in learner.target.state_dict().items()}
        state |= {f"metric.{k}": torch.tensor(v) for k, v in learner.metrics().items()}
        state["max_priority"] = replay.max_priority
        own = {"priorities": replay.priorities.weights.view(ROWS, -1)}
        found.append(tuple({k: v.clone().numpy() for k, v in x.items()} for x in (state, own)))
    return found


@pytest.mark.parametrize("options", [{"max_grad_norm": 0.05}, {"max_grad_norm": None}])
def test_two_ranks_update_as_one_process_with_the_joined_batch(in_ranks, toys, options):
    """Weights, target, metrics, priorities; from the same draws, fractions and noise."""

    def work():
        ranks = Ranks.of_torchrun()
        with ranks.joined(CPU):
            return updates(ranks, toys, options)

    ranks = in_ranks(2, work)
    joined = updates(ALONE, toys, options)
    parts = ranks.wait()
    for number, (expected, (a, b)) in enumerate(zip(joined, zip(*parts, strict=True), strict=True)):
        for name, value in expected[0].items():
            assert (a[0][name] == b[0][name]).all(), f"{name} differs between the ranks"
            torch.testing.assert_close(
                torch.from_numpy(a[0][name]),
                torch.from_numpy(value),
                rtol=2e-5,
                atol=2e-6,
                msg=lambda text, name=name, number=number: f"update {number}, {name}: {text}",
            )
        both = torch.cat([torch.from_numpy(x[1]["priorities"]) for x in (a, b)], 1)
        torch.testing.assert_close(
            both, torch.from_numpy(expected[1]["priorities"]), rtol=2e-5, atol=2e-6
        )
    first, last = joined[0][0], joined[-1][0]
    assert not (first["online.encoder.layer.weight"] == last["online.encoder.layer.weight"]).all()


def test_batch_norm_has_the_same_statistics_on_all_ranks(in_ranks, toys):
    """Means over the ranks, each of which normalises with those of its own batch."""

    def work():
        ranks = Ranks.of_torchrun()
        with ranks.joined(CPU):
            return updates(ranks, toys, {}, batch_norm=True)[-1][0]

    a, b = in_ranks(2, work).wait()
    assert any("running_mean" in name for name in a)
    for name in a:
        assert (a[name] == b[name]).all(), name


class LossOf(nn.Module):
    """The loss of a batch as a module, for DistributedDataParallel."""

    def __init__(self, learner):
        super().__init__()
        self.online, self.loss = learner.online, learner.objective

    def forward(self, batch):
        return (self.loss(batch).loss[0] * batch.weight).mean()


def test_gradients_are_those_of_distributed_data_parallel(in_ranks, toys):
    """The oracle is PyTorch's own module for this."""

    def work():
        ranks = Ranks.of_torchrun()
        with ranks.joined(CPU), same_randomness():
            replay = filled(ranks, toys)
            force(replay, ranks, forced_draws())
            replay.set_schedule(0.5)
            batch = replay.sample(BATCH // 2)

            def fresh(learner_ranks):
                return Learner(
                    LearnerConfig(precision="fp32", max_grad_norm=None),
                    toys.make_network(toys.LinearEncoder(), 1, **RAINBOW),
                    toys.make_network(toys.LinearEncoder(), 2, **RAINBOW),
                    device=CPU,
                    ranks=learner_ranks,
                )

            oracle, alone, ours = fresh(ALONE), fresh(ALONE), fresh(ranks)
            parallel = nn.parallel.DistributedDataParallel(LossOf(oracle))  # must outlive backward
            parallel(batch).backward()
            LossOf(alone)(batch).backward()
            ours.gradient_step(batch)
            learners = (oracle, alone, ours)
            gradients = [[p.grad.tolist() for p in x.online.parameters()] for x in learners]
            del parallel  # its reducer belongs to the process group, which ends with this block
            return gradients

    results = in_ranks(2, work).wait()
    for expected, alone, found in results:
        assert all(
            torch.allclose(torch.tensor(e), torch.tensor(f), rtol=1e-5, atol=1e-7)
            for e, f in zip(expected, found, strict=True)
        )
        assert not all(
            torch.allclose(torch.tensor(a), torch.tensor(f), rtol=1e-3, atol=1e-7)
            for a, f in zip(alone, found, strict=True)
        ), "a rank's own gradients would do"


def test_importance_weights_undo_what_the_ranks_draw():
    """With beta 1 every item counts the same, however unequal the totals of the ranks are.

    Rank 0 holds priorities 1 and 3, rank 1 holds 10, 20 and 70. Each draws half of the batch, so
    the probabilities are 1/8, 3/8 and 1/20, 2/20, 7/20.
    """

    class Told(Ranks):
        def maximum(self, value):
            return torch.maximum(value, torch.tensor(10.0, dtype=value.dtype))

    held = [torch.tensor([1.0, 3.0]).double(), torch.tensor([10.0, 20.0, 70.0]).double()]
    counted = []
    for rank, priorities in enumerate(held):
        probability = priorities / priorities.sum()
        weights = importance_weights(probability, torch.ones(()), Told(rank=rank, size=2))
        counted += (probability / 2 * weights.double()).tolist()
    assert counted == pytest.approx([1 / 20] * 5)


# whole runs


def train_together(config, out):
    """In a rank: train, and say how it ended."""
    try:
        return str(train.train(config, out=out))
    except train.Stop as stop:
        return f"stopped by {stop}"


def test_two_ranks_train_evaluate_log_and_save(in_ranks, tmp_path):
    config, out = tiny(), tmp_path / "run"
    assert in_ranks(2, lambda: train_together(config, out)).wait() == [str(out)] * 2
    one = train.train(config, out=tmp_path / "one")
    lines, alone = (read_metrics(folder / "metrics.jsonl") for folder in (out, one))
    for name in ("steps", "updates", "epsilon", "beta", "learning_rate"):
        assert [line[name] for line in lines] == [line[name] for line in alone], name
    # every environment counts: four of them, whose episodes last seven steps
    assert lines[-1]["episodes"] == alone[-1]["episodes"] == 12
    assert sum(len(line["episode_returns"]) for line in lines) == 12
    assert [line["steps"] for line in lines if "eval_return_mean" in line] == [48, 96]
    assert RunFolder.open(out).config() == config
    assert checkpoint.find(out, "best").is_dir()
    for rank in range(2):
        folder = shards.folder_of(out / "checkpoints", rank)
        assert [path.name for path in checkpoint.list_checkpoints(folder)] == ["step_000000096"]
        saved = checkpoint.open_checkpoint(folder / "step_000000096", replay=True)
        assert saved.meta.ranks == 2
        assert saved.meta.replay == checkpoint.ReplayMeta(rows=50, added_rows=24)
        assert saved.config == config
    stores = [
        checkpoint.open_checkpoint(
            shards.folder_of(out / "checkpoints", rank) / "step_000000096"
        ).tensors("replay-00000000-000000000023")["frame"]
        for rank in range(2)
    ]
    assert stores[0].shape[:2] == (24, 2)
    assert not torch.equal(*stores), "both ranks play the same games"


def test_as_many_ranks_go_on_exactly(in_ranks, tmp_path):
    """The next updates after a restore are, bit for bit, those of the ranks that went on."""
    config, out = tiny(head={"noisy": True}), tmp_path / "run"

    def work():
        ranks = Ranks.of_torchrun()
        with ranks.joined(CPU):
            trainer = train.Trainer(config, CPU, ranks=ranks)
            folder = RunFolder(ranks.of_first(lambda: RunFolder.create(config, out).path))
            trainer.run(folder, None)
            other = train.Trainer(dataclasses.replace(config, seed=7), CPU, ranks=ranks)
            last = checkpoint.open_checkpoint(checkpoint.find(out))
            part = shards.part_of(last, ranks)
            assert part is not None
            restore(part, other.learner, other.replay, other.others)
            other.env.close()
            for step in (trainer.step, other.step):
                step.set_schedule(0.5)
            for _ in range(2):
                state = torch.get_rng_state()
                trainer.step()
                torch.set_rng_state(state)
                other.step()
            pairs = zip(
                trainer.learner.online.parameters(), other.learner.online.parameters(), strict=True
            )
            same = [torch.equal(a, b) for a, b in pairs]
            return all(same), trainer.learner.updates, [x.tolist() for x in part_rng(part)]

    (a, updates_a, rng_a), (b, updates_b, rng_b) = in_ranks(2, work).wait()
    assert a
    assert b
    assert updates_a == updates_b == 9  # (96 - 40) / 8 + 2
    assert rng_a != rng_b, "both ranks draw the same"


def part_rng(part):
    return [part.tensors("training")["rng.cpu"]]


def test_another_number_of_ranks_goes_on_with_a_replay_filled_anew(in_ranks, tmp_path, capsys):
    out = tmp_path / "run"
    in_ranks(2, lambda: train_together(tiny(), out)).wait()
    before = checkpoint.open_checkpoint(checkpoint.find(out))
    train.resume(out, lambda old: dataclasses.replace(old, steps=160))
    told = capsys.readouterr().out
    assert "going on with 1 processes from a checkpoint of 2: weights" in told
    lines = read_metrics(out / "metrics.jsonl")
    assert [line["steps"] for line in lines] == list(range(16, 161, 16))
    # 40 steps fill the replay; then one update per 8
    updates = {line["steps"]: line["updates"] for line in lines}
    assert updates[128] == updates[96] == before.meta.counters["updates"]
    assert updates[160] == updates[96] + 3  # of the steps 140, 148, 156
    saved = checkpoint.open_checkpoint(checkpoint.find(out), replay=True)
    assert saved.meta.ranks == 1
    assert saved.meta.replay == checkpoint.ReplayMeta(rows=50, added_rows=16)
    assert not list((out / "checkpoints").glob("rank-*")), "left by a rank that is no more"
    config = dataclasses.replace(RunFolder.open(out).config(), steps=224)
    again = in_ranks(4, lambda: train_together(config, out)).wait()  # the command, repeated
    assert again == [str(out)] * 4
    assert read_metrics(out / "metrics.jsonl")[-1]["updates"] > updates[160]
    assert checkpoint.open_checkpoint(checkpoint.find(out)).meta.ranks == 4


def test_a_run_goes_on_from_the_last_checkpoint_that_all_ranks_have(in_ranks, tmp_path):
    """A rank was killed before its part of the last one was whole."""
    out = tmp_path / "run"
    in_ranks(2, lambda: train_together(tiny(steps=64), out)).wait()
    folder = out / "checkpoints"
    first = folder / "step_000000064"
    assert shards.newest(folder) == first
    torn = folder / "step_000000096"
    shutil.copytree(first, torn)
    assert shards.newest(folder) == first
    shards.forget_others(folder, Ranks(rank=0, size=2), 64)
    assert checkpoint.list_checkpoints(folder) == [first]
    (folder / "rank-1" / "step_000000064").rename(folder / "rank-1" / "elsewhere")
    assert shards.newest(folder) == first, "the weights go on all the same"
    assert shards.part_of(checkpoint.open_checkpoint(first), Ranks(rank=0, size=2)) is None


def test_of_many_checkpoints_ranks_keep_the_last_that_all_have(tmp_path, monkeypatch):
    """Names are ordered by their number, also beyond nine digits."""
    first, second, third = (f"step_{steps:09d}" for steps in (10**9 - 32, 10**9, 10**9 + 32))
    held = {0: [first, second, third], 1: [first, second, third], 2: [first, second]}
    for rank, names in held.items():
        for name in names:
            (shards.folder_of(tmp_path, rank) / name).mkdir(parents=True)
    meta = SimpleNamespace(ranks=3)
    monkeypatch.setattr(
        shards, "open_checkpoint", lambda path: SimpleNamespace(path=path, meta=meta)
    )
    assert shards.newest(tmp_path) == tmp_path / second
    for rank in held:
        shards.forget_others(tmp_path, Ranks(rank=rank, size=3), 10**9)
        left = checkpoint.list_checkpoints(shards.folder_of(tmp_path, rank))
        assert [path.name for path in left] == [first, second]
    shards.forget_former_ranks(tmp_path, Ranks(rank=0, size=2))
    assert (tmp_path / "rank-2").is_dir(), "no checkpoint of two ranks is whole yet"
    meta.ranks = 2
    shards.forget_former_ranks(tmp_path, Ranks(rank=0, size=2))
    assert [path.name for path in tmp_path.glob("rank-*")] == ["rank-1"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_any_rank_stops_all_with_a_checkpoint(in_ranks, tmp_path, rank):
    config = tiny(steps=10**6, run={"eval_every_steps": 10**6, "log_every_steps": 10**6})
    out = tmp_path / "run"
    forks = in_ranks(2, lambda: train_together(config, out))
    wait_until(lambda: checkpoint.list_checkpoints(out / "checkpoints"))
    os.kill(forks.pids[rank], signal.SIGTERM)
    assert forks.wait() == ["stopped by SIGTERM"] * 2
    last = checkpoint.open_checkpoint(checkpoint.find(out))
    assert shards.is_whole(last)
    assert last.steps == read_metrics(out / "metrics.jsonl")[-1]["steps"]


@pytest.mark.parametrize("fault", ["a file in its place", "no shared storage"])
def test_a_rank_that_cannot_save_says_so_before_it_trains(in_ranks, tmp_path, fault):
    out = tmp_path / "run"
    folder = RunFolder.create(tiny(steps=64), out)
    folder.checkpoints.mkdir()
    if fault == "a file in its place":
        (folder.checkpoints / "rank-1").touch()
        message = f"{folder.checkpoints / 'rank-1'}: cannot be made (File exists)"
    else:
        folder.config_path.unlink()
        message = f"out: {out} is not there: all ranks need storage that they share"
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        shards.begin(out, Ranks(rank=1, size=2))


def test_a_signal_while_rank_0_evaluates_is_heard(in_ranks, tmp_path):
    """Evaluation of a hundred thousand episodes; rank 1 waits for it, and is asked to end."""
    often = {"eval_every_steps": 16, "eval_episodes": 10**5, "checkpoint_every_steps": 16}
    config, out = tiny(steps=10**6, run=often), tmp_path / "run"

    forks = in_ranks(2, lambda: train_together(config, out))
    wait_until((out / "metrics.jsonl").exists)
    time.sleep(2)  # most likely it evaluates now; the result is the same if not
    os.kill(forks.pids[1], signal.SIGTERM)
    assert forks.wait() == ["stopped by SIGTERM"] * 2


# the command


def torchrun(*arguments, ranks=2, options=()):
    """Begin `rl-nfm train` on ranks of this machine."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    return subprocess.Popen(
        [*command, *options, "-m", "agents.cli", "train", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_debug_by_torchrun(tmp_path):
    out = tmp_path / "run"
    flags = ["--steps", "160", "--device", "cpu", "--out", str(out)]
    process = torchrun("debug", *flags)
    told, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors
    assert told.count("done:") == 1, "one rank speaks for all"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(line["steps"], line["updates"]) for line in lines] == [(100, 2), (160, 10)]
    assert RunFolder.open(out).config().env.num_envs == 2, "one for each rank"


def test_what_torchrun_needs_is_said_in_one_line(monkeypatch, capsys, tmp_path):
    for name, value in {
        "TORCHELASTIC_RUN_ID": "x",
        "TORCHELASTIC_MAX_RESTARTS": "1",
        "WORLD_SIZE": "2",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
    }.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["train", "debug"]) == 2
    assert capsys.readouterr().err.startswith("rl-nfm: out: is needed with torchrun --max-restarts")
    flags = ["--out", str(tmp_path / "run"), "--env.num-envs", "3"]
    assert cli.main(["train", "debug", *flags]) == 2
    err = capsys.readouterr().err
    assert err == "rl-nfm: env.num_envs: 3 is not allowed with 2 ranks (must be a multiple)\n"
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["train", "debug", *flags]) == 2
    assert capsys.readouterr().err == "", "rank 0 has said it"
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL wants a GPU for each rank")
def test_on_gpus_the_all_reduce_is_captured_with_the_update(tmp_path):
    flags = ["--steps", "600", "--device", "cuda", "--out", str(tmp_path / "run")]
    process = torchrun("debug", *flags)
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors
    assert "cannot be captured" not in errors
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["updates"] == 65


@pytest.mark.slow
def test_a_killed_rank_is_begun_again_and_the_run_goes_on(tmp_path):
    out = tmp_path / "run"
    flags = ["--steps", "1200", "--device", "cpu", "--run.checkpoint-every-steps", "40"]
    process = torchrun("debug", *flags, "--out", str(out), options=["--max-restarts", "1"])
    wait_until(lambda: checkpoint.list_checkpoints(out / "checkpoints" / "rank-1"), process)
    os.kill(rank_of(process.pid, 1), signal.SIGKILL)
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors
    assert errors.count("another rank of this run has ended") == 1
    lines = read_metrics(out / "metrics.jsonl")
    assert [line["steps"] for line in lines] == list(range(100, 1201, 100))
    # (1200 - 80) / 8: none was made twice, none left out
    assert lines[-1]["updates"] == 140
    assert shards.is_whole(checkpoint.open_checkpoint(checkpoint.find(out)))


@pytest.mark.slow
def test_a_signal_to_a_rank_ends_a_run_that_torchrun_would_repeat(tmp_path):
    out = tmp_path / "run"
    flags = ["--steps", "1000000", "--device", "cpu", "--run.checkpoint-every-steps", "40"]
    process = torchrun("debug", *flags, "--out", str(out), options=["--max-restarts", "2"])
    wait_until(lambda: checkpoint.list_checkpoints(out / "checkpoints" / "rank-1"), process)
    os.kill(rank_of(process.pid, 1), signal.SIGTERM)
    told, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert told.count("stopped by SIGTERM after a checkpoint") == 1
    last = checkpoint.open_checkpoint(checkpoint.find(out))
    assert shards.is_whole(last)
    assert read_metrics(out / "metrics.jsonl")[-1]["steps"] == last.steps


def wait_until(holds, process=None):
    """Return when `holds` gives something; a process that is given must still be running."""
    deadline = time.monotonic() + 200
    while not holds():
        assert process is None or process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def rank_of(parent: int, rank: int) -> int:
    """The process of a rank that torchrun (`parent`) has begun."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            is_child = f"\nPPid:\t{parent}\n" in (path / "status").read_text()
            variables = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if is_child and f"RANK={rank}".encode() in variables:
            return int(path.name)
    raise AssertionError(f"no rank {rank}")
