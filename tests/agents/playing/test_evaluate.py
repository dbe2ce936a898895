"""`rl-nfm evaluate`: what is counted, what is written, and what is refused."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from agents import cli
from agents.commands import evaluate as command
from agents.config import make_config, to_plain, write_config
from agents.playing.counter import EpisodeCounter
from agents.playing.evaluate import play
from agents.playing.scores import Scores
from agents.presets import read_preset
from agents.saving import checkpoint
from envs import human_normalized_score
from rl_nfm.support import storage
from rl_nfm.support.yaml_file import read_yaml

KEYS = {
    "game",
    "episodes",
    "returns",
    "mean",
    "median",
    "hns",
    "protocol",
    "checkpoint_steps",
    "encoder",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with episodes of 20 steps, evaluated once in training. Tests copy what they change."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    flags = ["--env.max-num-frames-per-episode", "80", "--run.eval-episodes", "2"]
    flags += ["--run.eval-every-steps", "100", "--seed", "7", "--steps", "200"]
    assert cli.main(["train", "debug", "--out", str(folder), *flags]) == 0
    (folder.parent / "supervised").mkdir()
    (folder.parent / "supervised/config.json").write_text("{}")
    return folder


def run(capsys, *argv):
    code = cli.main([str(word) for word in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def memory(**changes):
    return make_config({**to_plain(read_preset("debug")), "game": "memory_cue", **changes})


def test_scores_of_a_run(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "evaluate", trained, "--episodes", 5, "--json", "s.json")
    assert code == 0, err
    content = json.loads((tmp_path / "s.json").read_text())
    assert set(content) >= KEYS
    assert (content["game"], content["encoder"]) == ("ms_pacman", "nature")
    assert content["episodes"] == len(content["returns"]) == 5
    assert content["lengths"] == [20] * 5
    assert content["mean"] == pytest.approx(np.mean(content["returns"]))
    assert content["median"] == pytest.approx(np.median(content["returns"]))
    # random 307.3, human 6951.6
    assert content["hns"] == pytest.approx((content["mean"] - 307.3) / 6644.3)
    assert (content["checkpoint_steps"], content["train_seed"]) == (200, 7)
    protocol = content["protocol"]
    assert protocol["repeat_action_probability"] == 0.25
    assert protocol["max_num_frames_per_episode"] == 80
    assert (protocol["epsilon"], protocol["num_envs"]) == (0.001, 5)
    assert protocol["episodes_counted"] == "first started"
    assert protocol["fractions"] == "drawn"
    assert protocol["env_id"] == "ale_py.vector_env/ms_pacman"
    assert f"{content['mean']:.2f}" in out
    assert f"{content['hns']:.4f}" in out
    for name in protocol:
        assert name in out, name
    assert "5 of 5 episodes (100 %)" in err, "a line of progress, where there is no terminal"
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]


def test_a_checkpoint_alone_scores_as_its_run(trained, tmp_path, capsys):
    """Same seed, same returns; and nothing but the network is needed."""
    copy = tmp_path / "somewhere"
    shutil.copytree(checkpoint.find(trained), copy)
    for file in copy.glob("replay-*"):
        file.write_bytes(b"")
    paths = {trained: tmp_path / "a.json", copy: tmp_path / "b.json"}
    for path, file in paths.items():
        assert run(capsys, "evaluate", path, "--episodes", 3, "--json", file)[0] == 0
    a, b = (json.loads(file.read_text()) for file in paths.values())
    assert a["returns"] == b["returns"]
    assert (a["checkpoint_steps"], a["protocol"]) == (b["checkpoint_steps"], b["protocol"])


def test_fractions_are_drawn_from_the_seed_unless_fixed(trained):
    """Fixed: one observation, one action. Drawn: not so, but the same for the same seed."""
    found = checkpoint.open_checkpoint(checkpoint.find(trained))
    network = checkpoint.load_network(found, torch.device("cpu")).eval()
    values, asked = network.values, []

    def watch(features, num_quantiles, *, noise, fixed_fractions):
        assert noise == "off"
        got, tau = values(features, num_quantiles, noise=noise, fixed_fractions=fixed_fractions)
        asked.append(tau.clone())
        return got, tau

    network.values = watch
    taus = {}
    for seed, fixed in ((3, False), (3, False), (4, False), (3, True)):
        asked.clear()
        scores = play(
            network, found.config, episodes=1, epsilon=0.0, seed=seed, fixed_fractions=fixed
        )
        assert scores.protocol["fractions"] == ("fixed" if fixed else "drawn")
        taus.setdefault((seed, fixed), []).append(torch.cat(asked))
    once, again = taus[3, False]
    assert torch.equal(once, again)
    assert len({tuple(step) for step in once.tolist()}) == len(once), "anew at every step"
    assert not torch.equal(once, taus[4, False][0])
    assert len({tuple(step) for step in taus[3, True][0].tolist()}) == 1


@pytest.mark.parametrize("terminal", [False, True])
def test_a_lost_life_resets_the_state_where_it_ends_the_return(terminal, trained):
    found = checkpoint.open_checkpoint(checkpoint.find(trained))
    network = checkpoint.load_network(found, torch.device("cpu")).eval()
    env = dataclasses.replace(found.config.env, terminal_on_life_loss=terminal)
    config, steps = dataclasses.replace(found.config, env=env), []
    play(network, config, episodes=1, epsilon=0.0, seed=3, on_step=steps.append)
    assert steps[0].actor.resets_on_life_loss is terminal


@pytest.mark.parametrize(
    ("returns", "repeated"),
    [
        ([210.0, 60.0, 210.0, 210.0, 90.0], (3, 210.0)),
        ([210.0, 60.0, 210.0, 60.0], None),
        ([5.0, 5.0], None),
        ([0.0, 0.0, 0.0], (3, 0.0)),
    ],
)
def test_most_episodes_with_one_score_are_told(
    returns, repeated, trained, capsys, tmp_path, monkeypatch
):
    scores = Scores(
        game="ms_pacman", returns=returns, lengths=[9] * len(returns), protocol={"epsilon": 0.0}
    )
    assert scores.repeated == repeated
    monkeypatch.setattr(command, "play", lambda *_, **__: scores)
    file = tmp_path / "s.json"
    code, out, _ = run(capsys, "evaluate", trained, "--json", file)
    assert code == 0
    assert ("episodes returned exactly" in out) == (repeated is not None)
    assert json.loads(file.read_text())["repeated"] == (repeated and list(repeated))
    if repeated == (3, 210.0):
        assert "3 of 5 episodes returned exactly 210:" in out
    code, out, _ = run(capsys, "evaluate", trained, "--random")
    assert code == 0
    assert "stuck" not in out, "random play cannot be"


def test_spread_and_interval_are_scipys(trained, capsys, tmp_path, monkeypatch):
    from scipy import stats

    returns = [10.0, 20.0, 30.0, 40.0, 400.0, 70.0]
    scores = Scores(game="ms_pacman", returns=returns, lengths=[9] * 6, protocol={"epsilon": 0.0})
    monkeypatch.setattr(command, "play", lambda *_, **__: scores)
    file = tmp_path / "s.json"
    code, out, _ = run(capsys, "evaluate", trained, "--json", file)
    assert code == 0
    content = json.loads(file.read_text())
    assert content["standard_deviation"] == pytest.approx(np.std(returns, ddof=1))
    expected = stats.bootstrap(
        (returns,), np.mean, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    assert content["mean_interval"] == pytest.approx([expected.low, expected.high], rel=0.03)
    low, high = content["mean_interval"]
    assert f"mean return             95.00, 95 % interval {low:.2f} to {high:.2f}" in out
    assert "standard deviation 150.83" in out
    assert out.splitlines()[-1] == f"scores:                 {file}"


def test_one_episode_has_no_spread(trained, capsys, tmp_path):
    file = tmp_path / "s.json"
    assert run(capsys, "evaluate", trained, "--episodes", 1, "--json", file)[0] == 0
    content = json.loads(file.read_text())
    assert content["standard_deviation"] is content["mean_interval"] is None


def test_the_best_checkpoint(trained, tmp_path, capsys):
    file = tmp_path / "best.json"
    arguments = ["--which", "best", "--episodes", 1, "--json", file]
    assert run(capsys, "evaluate", trained, *arguments)[0] == 0
    content = json.loads(file.read_text())
    assert content["which"] == "best"
    assert (
        content["checkpoint_steps"]
        == checkpoint.open_checkpoint(checkpoint.find(trained, "best")).steps
    )


def test_video_on_demand(trained, tmp_path, capsys):
    code, _, err = run(capsys, "evaluate", trained, "--episodes", 1, "--video", tmp_path / "v.mp4")
    assert code == 0, err
    assert (tmp_path / "v.mp4").stat().st_size > 1000


@pytest.mark.parametrize("what", ["run", "checkpoint", "preset"])
def test_random_play(what, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = {"run": trained, "checkpoint": checkpoint.find(trained), "preset": "short"}[what]
    short = {**read_yaml(trained / "config.yaml")}
    monkeypatch.setattr(command, "preset_names", lambda: ["short"])
    monkeypatch.setattr(command, "read_preset", lambda name: make_config(short))
    code, out, err = run(capsys, "evaluate", path, "--random", "--episodes", 3, "--json", "r.json")
    assert code == 0, err
    content = json.loads((tmp_path / "r.json").read_text())
    assert (content["encoder"], content["checkpoint_steps"]) == ("random", None)
    assert content["protocol"]["epsilon"] == 1.0
    assert content["protocol"]["max_num_frames_per_episode"] == 80
    assert "ms_pacman, random" in out


def test_an_agent_may_play_another_game_than_it_was_trained_on(trained, tmp_path, capsys):
    """Crazy Climber has as many actions as Ms. Pacman."""
    file = tmp_path / "s.json"
    arguments = ["--game", "CrazyClimber", "--episodes", 2, "--json", file]
    code, out, err = run(capsys, "evaluate", trained, *arguments)
    assert code == 0, err
    content = json.loads(file.read_text())
    assert (content["game"], content["trained_on"]) == ("crazy_climber", "ms_pacman")
    assert content["protocol"]["env_id"] == "ale_py.vector_env/crazy_climber"
    assert content["config"]["game"] == "ms_pacman"
    assert "crazy_climber, nature after 200 steps of ms_pacman" in out
    code, _, err = run(capsys, "evaluate", trained, "--game", "pong")
    assert (code, err) == (2, "rl-nfm: pong: has 6 actions, the network was made for 9\n")


def test_a_supervised_evaluation_of_an_agent_says_what_takes_it(trained, capsys):
    code, _, err = run(capsys, "supervised", "evaluate", trained)
    assert code == 2
    assert "holds no supervised run; rl-nfm evaluate takes agents" in err


def test_a_game_without_a_human_score(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    write_config(memory(), tmp_path / "run" / "config.yaml")
    file = tmp_path / "s.json"
    arguments = ["--random", "--episodes", 4, "--json", file]
    code, out, _ = run(capsys, "evaluate", tmp_path / "run", *arguments)
    content = json.loads(file.read_text())
    assert (code, content["hns"], content["game"]) == (0, None, "memory_cue")
    assert "no human score" in out
    assert content["protocol"]["name"] == "memory_cue", "what was played, not what was asked for"
    assert content["protocol"]["env_id"] == "envs.memory/memory_cue"
    assert "ale_py" not in content["protocol"]


BAD = [
    (["{tmp}/nothing"], "nothing: does not exist"),
    (["{tmp}"], "neither a run nor an exported agent nor a checkpoint"),
    (["{tmp}", "--random"], "neither a run nor an exported agent nor a checkpoint"),
    (["debugg", "--random"], "debugg: does not exist"),
    ([], "path: must be given"),
    (["{run}/../supervised"], "a supervised run; see rl-nfm supervised evaluate"),
    (["{run}", "--episods", "3"], "--episodes"),
    (["{run}", "--episodes", "0"], "episodes: 0 is not allowed"),
    (["{run}", "--episodes", "many"], "--episodes"),
    (["{run}", "--epsilon", "1.5"], "epsilon: 1.5 is not allowed"),
    (["{run}", "--epsilon", "nan"], "epsilon: nan is not allowed"),
    (["{run}", "--seed", "-1"], "seed: -1 is not allowed"),
    (["{run}", "--which", "bset"], "--which: 'bset' is not allowed (allowed: last, best)"),
    (["{run}", "--device", "tpu"], "--device: 'tpu' is not allowed (allowed: auto, cpu, cuda)"),
    (["{run}", "--num-envs", "0"], "num_envs: 0 is not allowed"),
    (["{run}", "--game", "alein"], "did you mean 'alien'"),
    (["{run}", "--game", "memory_cue"], "env.max_num_frames_per_episode: 80 is not allowed"),
    (
        ["zoo:memory_cue-lstm", "--game", "pong"],
        "those that the agent was trained on (memory_cue) (1,",
    ),
    (["{run}", "--random", "--epsilon", "0.5"], "epsilon: not allowed with --random"),
    (["{run}", "--random", "--fractions", "fixed"], "fractions: not allowed with --random"),
    (["{run}", "--random", "--which", "best"], "which: not allowed with --random"),
    (["{run}", "--json", "{tmp}/no/s.json"], "json: "),
    (["{run}", "--json", "{tmp}"], "is a folder"),
    (["{run}", "--video", "{tmp}/v.gif"], "must end in .mp4"),
    (["{run}", "--video", "{tmp}/no/v.mp4"], "cannot be written"),
]


@pytest.mark.parametrize(("argv", "message"), BAD, ids=[" ".join(a) or "-" for a, _ in BAD])
def test_bad_input_is_told_before_anything_is_played(
    argv, message, trained, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(command, "play", lambda *_, **__: pytest.fail("played"))
    argv = [word.format(run=trained, tmp=tmp_path) for word in argv]
    code, out, err = run(capsys, "evaluate", *argv)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert len(err.splitlines()) <= 12
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_game_is_refused(trained, tmp_path, capsys):
    """Nine actions of Ms. Pacman do not fit Pong's six."""
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint.find(trained), copy)
    meta = json.loads((copy / "meta.json").read_text())
    meta["config"]["game"] = "pong"
    del meta["sha256"]
    meta["sha256"] = storage._meta_sha256(meta)  # as if a run had written it
    (copy / "meta.json").write_text(json.dumps(meta))
    code, _, err = run(capsys, "evaluate", copy)
    assert (code, err) == (2, "rl-nfm: pong: has 6 actions, the network was made for 9\n")


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    flags = (
        "episodes",
        "json",
        "video",
        "epsilon",
        "seed",
        "which",
        "device",
        "num-envs",
        "random",
        "fractions",
    )
    for flag in flags:
        assert f"--{flag} " in out, flag
    assert "(default: 100)" in out


def test_a_file_is_whole_or_as_it_was(trained, tmp_path, capsys, monkeypatch):
    """Interrupted in the middle of playing."""
    file, video = tmp_path / "s.json", tmp_path / "v.mp4"
    file.write_text("older")

    def interrupted(*arguments, on_step, **options):
        def stop(step):
            on_step(step)
            raise KeyboardInterrupt

        return play(*arguments, on_step=stop, **options)

    monkeypatch.setattr(command, "play", interrupted)
    code, _, err = run(capsys, "evaluate", trained, "--json", file, "--video", video)
    assert (code, "interrupted" in err) == (130, True)
    assert file.read_text() == "older"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(("num_envs", "episodes"), [(1, 3), (4, 10), (16, 5)])
def test_episodes_of_the_memory_task(num_envs, episodes):
    scores = play(None, memory(), episodes=episodes, epsilon=1.0, seed=3, num_envs=num_envs)
    assert scores.lengths == [7] * episodes
    assert set(scores.returns) <= {0.0, 1.0}
    assert scores.protocol["num_envs"] == min(num_envs, episodes)
    assert scores.hns is None


def test_every_observation_is_shown_the_last_one_too():
    steps = []
    play(None, memory(), episodes=1, epsilon=1.0, seed=3, on_step=steps.append)
    assert len(steps) == 8
    assert [bool(s.info["episode_start"][0]) for s in steps] == [True] + [False] * 7
    assert [s.info["episode_end"].any() for s in steps] == [False] * 7 + [True]
    assert steps[0].actor is None
    shown = [int(s.obs[0, -1].max()) for s in steps]
    assert shown[:7] == [255, 0, 0, 0, 0, 0, 255]  # cue, five blanks, choice


def test_neighbouring_seeds_share_no_game():
    shown = []
    for seed in (3, 4):
        steps = []
        play(None, memory(), episodes=40, epsilon=1.0, seed=seed, num_envs=2, on_step=steps.append)
        shown.append(np.stack([step.obs for step in steps]))
    assert not np.array_equal(shown[0][:, 1], shown[1][:, 0]), "seed 3 + 1 is not seed 4"


def test_training_goes_on_as_if_nothing_had_been_played():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    play(None, memory(), episodes=2, epsilon=1.0, seed=3)
    assert torch.equal(torch.rand(3), expected)


def naive_first_started(ends, num_envs, episodes):
    """Returns of the first N started, from per-step lists of (env, return) that ended."""
    running = {env: env for env in range(num_envs)}
    begun, done = num_envs, {}
    for step in ends:
        for env, score in sorted(step):
            done[running[env]] = score
            running[env] = begun
            begun += 1
        if all(number in done for number in range(episodes)):
            break
    return [done[number] for number in range(episodes)]


@pytest.mark.parametrize("seed", range(20))
def test_the_first_started_episodes_count(seed):
    rng = np.random.default_rng(seed)
    num_envs = int(rng.integers(1, 6))
    episodes = num_envs + int(rng.integers(0, 9))
    counted = EpisodeCounter(num_envs, episodes)
    ends, score = [], 0
    while not counted.done:
        # one environment is slow: its first episode ends last
        ended = rng.random(num_envs) < np.linspace(0.02, 0.6, num_envs)
        scores = score + np.arange(num_envs, dtype=float)
        score += num_envs
        ends.append([(i, scores[i]) for i in np.flatnonzero(ended)])
        info = {"episode_end": ended, "episode_return": scores, "episode_steps": scores}
        counted.step(info)
    assert counted.returns == naive_first_started(ends, num_envs, episodes)


def test_hns_is_of_the_mean():
    assert human_normalized_score("ms_pacman", 307.3) == 0
