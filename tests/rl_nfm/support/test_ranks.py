"""What the ranks of a run tell each other, on real processes joined by gloo."""

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from rl_nfm.support.ranks import ALONE, FirstRankError, LostRank, OtherRankError, Ranks

CPU = torch.device("cpu")


def test_alone_everything_is_what_it_was(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")  # of something else than torchrun
    ranks = Ranks.of_torchrun()
    assert ranks == ALONE
    value = torch.tensor([1.5])
    assert ranks.maximum(value) is value
    ranks.average_([value])
    ranks.copy_first_([value])
    with ranks.joined(CPU):
        assert value.tolist() == [1.5]
    assert ranks.agree(3, 4) == (3, 4)
    assert ranks.gather("x") == ["x"]
    assert ranks.of_first(lambda: 5) == 5
    assert ranks.share("batch", 7) == 7
    assert ranks.seed(12) == 12
    assert ranks.device(CPU) == CPU


def test_shares_are_even_or_refused_in_one_line():
    ranks = [Ranks(rank=rank, size=3) for rank in range(3)]
    assert [r.share("x", 12) for r in ranks] == [4, 4, 4]
    with pytest.raises(ValueError, match=r"^replay.batch_size: 32 is not allowed with 3 ranks"):
        ranks[0].share("replay.batch_size", 32)


def test_no_two_ranks_or_runs_share_a_seed():
    seeds = [Ranks(rank=rank, size=64).seed(seed) for rank in range(64) for seed in range(50)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert Ranks(rank=0, size=64).seed(7) == 7


def speak():
    ranks = Ranks.of_torchrun()
    own = float(ranks.rank)
    with ranks.joined(CPU):
        found = {
            "agree": ranks.agree(ranks.rank, 10 - ranks.rank, 0),
            "gather": ranks.gather({"rank": ranks.rank}),
            "first": ranks.of_first(lambda: f"made by {ranks.rank}"),
            "maximum": ranks.maximum(torch.tensor([own, -own], dtype=torch.float64)).tolist(),
        }
        # one of another memory order and one that is a part of a larger tensor
        a = (torch.arange(24.0).view(1, 2, 3, 4) * (1 + own)).to(memory_format=torch.channels_last)
        b = torch.full((4, 4), own)
        c = torch.tensor(own)
        ranks.average_([a, b[:, 1], c])
        found["average"] = [a.tolist(), b.tolist(), c.item()]
        d = torch.tensor([own, 5 + own])
        e = torch.tensor(ranks.rank)
        ranks.copy_first_([d, e])
        found["first's"] = [d.tolist(), e.item()]
        try:
            ranks.of_first(lambda: ranks.share("env.num_envs", 5))
        except ValueError as error:
            found["failure"] = (type(error), str(error))
    return found


@pytest.mark.parametrize("size", [2, 3])
def test_they_speak(in_ranks, size):
    results = in_ranks(size, speak).wait()
    last, middle = size - 1, (size - 1) / 2
    for rank, found in enumerate(results):
        assert found["agree"] == (last, 10, 0)
        assert found["gather"] == [{"rank": r} for r in range(size)]
        assert found["first"] == "made by 0"
        assert found["maximum"] == [last, 0]
        a, b, c = found["average"]
        assert a == (torch.arange(24.0).view(1, 2, 3, 4) * (1 + middle)).tolist()
        assert b == [[rank, middle, rank, rank]] * 4
        assert c == middle
        assert found["first's"] == [[0, 5], 0]
        kind, text = found["failure"]
        assert kind is (FirstRankError if rank else ValueError)
        assert text.startswith(f"env.num_envs: 5 is not allowed with {size} ranks")


LEAVING = """
import os, torch
from rl_nfm.support.ranks import Ranks

ranks = Ranks.of_torchrun()
with ranks.joined(torch.device("cpu")):
    net = torch.nn.Linear(2, 2)
    net(torch.ones(1, 2)).sum().backward()
    torch.optim.Adam(net.parameters(), fused=True).step()  # imports the compiler
    ranks.average_([net.weight])
names = [open(f"/proc/self/task/{t}/comm").read().strip() for t in os.listdir("/proc/self/task")]
assert not any("gloo" in name for name in names), names
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of threads")
def test_threads_of_the_group_end_with_it(tmp_path):
    """Those that lived on until Python ended aborted the process now and then."""
    script = tmp_path / "leaving.py"
    script.write_text(LEAVING)
    options = ["--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *options, str(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def lose(victim):
    ranks = Ranks.of_torchrun()
    try:
        with ranks.joined(CPU):
            ranks.agree()
            if ranks.rank == victim:
                os.kill(os.getpid(), signal.SIGKILL)
            ranks.agree()
    except ValueError as error:
        return type(error), str(error)


@pytest.mark.parametrize(("size", "victim"), [(2, 0), (2, 1), (3, 1)])
def test_a_killed_rank_ends_the_others_in_one_line(in_ranks, size, victim):
    begun = time.monotonic()
    results = in_ranks(size, lambda: lose(victim)).wait()
    assert time.monotonic() - begun < 100, "not by the time limit"
    assert results[victim] is None
    for rank in set(range(size)) - {victim}:
        kind, text = results[rank]
        assert kind is (OtherRankError if rank else LostRank)
        assert text.startswith(f"rank {rank}: another rank" if rank else "another rank of this run")
        assert "\n" not in text
        assert len(text) < 300


def stand_still():
    ranks = Ranks.of_torchrun()
    try:
        with ranks.joined(CPU, timedelta(seconds=3)):
            ranks.agree()
            if ranks.rank == 1:
                os.kill(os.getpid(), signal.SIGSTOP)
            ranks.average_([torch.ones(3)])
    except ValueError as error:
        return type(error)


def test_a_rank_that_stands_still_ends_the_others_at_the_time_limit(in_ranks):
    forks = in_ranks(2, stand_still)
    deadline = time.monotonic() + 200
    while not forks.receivers[0].poll():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(forks.pids[1], signal.SIGKILL)
    assert forks.wait()[0] is LostRank


def come_back(port, restarts):
    """One of two ranks whose store outlives the tries; after a restart the second one is slow."""
    os.environ |= {
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": str(restarts),
    }
    ranks = Ranks.of_torchrun()
    if restarts and not ranks.first:
        time.sleep(6)  # longer than gloo tries an address
    try:
        with ranks.joined(CPU):
            return ranks.gather((restarts, ranks.rank))
    except ValueError as error:
        return str(error)


def test_a_restart_does_not_look_for_ranks_where_they_were_before(in_ranks):
    """torchrun keeps one store over restarts unless told of another rendezvous."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    for restarts in (0, 1):
        results = in_ranks(2, lambda restarts=restarts: come_back(port, restarts)).wait()
        assert results == [[(restarts, 0), (restarts, 1)]] * 2
    del store
