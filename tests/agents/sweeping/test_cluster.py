"""A real Ray cluster of two nodes on this machine, one of which is killed in mid-run."""

import socket
import sys
import threading
import time

import pytest

from agents.commands import sweep as command
from agents.presets import read_preset
from agents.saving.run_folder import read_metrics
from agents.sweeping import cluster
from agents.sweeping.plan import Plan
from agents.sweeping.runs import saved_steps
from rl_nfm.support.commit import commit, release
from rl_nfm.support.sweep_folders import LOG_HEADER

STEPS = 600
WORDS = f"debug --seeds 0..3 --steps {STEPS} --env.max-num-frames-per-episode 80".split()


def test_without_ray_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"ray: is not installed; pip install 'rl-nfm\[ray\]'"):
        command.main([*WORDS, "--out", str(tmp_path), "--ray", "auto"])


def test_options_of_a_cluster_are_refused_without_one(tmp_path):
    with pytest.raises(ValueError, match="cpus_per_run: has no effect without --ray"):
        command.main([*WORDS, "--out", str(tmp_path), "--cpus-per-run", "2"])
    with pytest.raises(ValueError, match="at_once: not allowed with --ray"):
        command.main([*WORDS, "--out", str(tmp_path), "--ray", "auto", "--at-once", "2"])


def test_a_run_gets_no_more_emulator_threads_than_its_machine_has_cores(tmp_path, monkeypatch):
    """`ray start --num-cpus 8` on a machine of 2 cores: the environments refuse 4 threads there."""
    plan = Plan(base=read_preset("debug"), games=("qbert",), encoders=("nature",), seeds=(3,))
    runs = plan.runs(tmp_path, threads=4)
    begun = []

    def execute(run, threads, _, *, folder):
        begun.append((run, threads, folder))

    monkeypatch.setattr(cluster, "execute", execute)
    monkeypatch.setattr(cluster.os, "cpu_count", lambda: 2)
    cluster._execute(runs[0], 4, commit(), tmp_path)
    cluster._execute(runs[0], 1, commit(), tmp_path)
    for (run, threads, folder), expected in zip(begun, (2, 1), strict=True):
        assert folder == tmp_path
        assert threads == expected
        for words in (run.begin, run.resume):
            assert words[words.index("--env.num-threads") + 1] == str(expected)
    assert runs[0].begin[:-4] == begun[0][0].begin[:-4], "everything else stays"


def test_a_machine_with_other_code_or_without_the_folder_is_refused(tmp_path, monkeypatch):
    (run,) = Plan(
        base=read_preset("debug"), games=("qbert",), encoders=("nature",), seeds=(3,)
    ).runs(tmp_path, threads=1)
    begun = []
    monkeypatch.setattr(cluster, "execute", lambda *_, **__: begun.append(1))
    monkeypatch.setattr(cluster, "commit", lambda: "aaaa")
    with pytest.raises(ValueError, match="has rl-nfm at aaaa, the sweep at bbbb"):
        cluster._execute(run, 1, "bbbb", tmp_path)
    with pytest.raises(ValueError, match=r"nowhere: is not there on "):
        cluster._execute(run, 1, "aaaa", tmp_path / "nowhere")
    assert not begun
    cluster._execute(run, 1, release(), tmp_path)  # of a machine without git
    assert begun


def test_an_address_where_nothing_listens_is_refused_at_once(tmp_path):
    pytest.importorskip("ray")
    with socket.socket() as taken:  # bound, so that no one else has it, but not listening
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for ray in (address, f"ray://{address}"):
            with pytest.raises(ValueError, match=f"ray: no cluster at '{ray}' .*refused"):
                command.main([*WORDS, "--out", str(tmp_path / "a"), "--ray", ray])


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.filterwarnings("ignore")  # of Ray's own
def test_runs_of_a_lost_node_go_on_elsewhere(tmp_path):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    lost = nodes.add_node(num_cpus=1)
    folders = [tmp_path / "ms_pacman/nature" / f"seed-{seed}" for seed in range(4)]
    killed = threading.Event()

    def kill_the_second_node() -> None:
        """As soon as both nodes have a run with a checkpoint that is not done."""
        while not killed.is_set():
            steps = [saved_steps(folder) for folder in folders]
            if sum(0 < done < STEPS for done in steps) == 2:
                nodes.remove_node(lost, allow_graceful=False)
                killed.set()
            time.sleep(0.05)

    killer = threading.Thread(target=kill_the_second_node, daemon=True)
    try:
        nodes.wait_for_nodes()
        killer.start()
        code = command.main([*WORDS, "--out", str(tmp_path), "--ray", nodes.address])
        assert killed.is_set(), "no node was lost: the runs were too short"
        assert code == 0
    finally:
        killed.set()
        killer.join()
        ray.shutdown()
        nodes.shutdown()
    for folder in folders:
        assert saved_steps(folder) >= STEPS
        steps = [line["steps"] for line in read_metrics(folder / "metrics.jsonl")]
        assert steps == sorted(set(steps))
    logs = [folder.with_suffix(".log").read_text() for folder in folders]
    begun = sum(text.count(LOG_HEADER) for text in logs)
    assert begun == 5, "one run, and only one, was continued"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_is_too_small_is_refused():
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        with pytest.raises(ValueError, match="no machine of the cluster has 3 cores"):
            cluster.RayExecutor(nodes.address, cpus=3, gpus=0)
    finally:
        ray.shutdown()
        nodes.shutdown()
