"""Pictures of attention: on a video and a still, in TensorBoard, for NFM and for RIMs."""

import json

import cv2
import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents import cli
from agents.commands.evaluate import randomise
from agents.config import make_config, to_plain
from agents.playing import attention
from agents.presets import read_preset
from agents.saving import checkpoint
from agents.training.train import train
from rl_nfm.nfm.places import Place


def debug_run(folder, encoder, **changes):
    values = {**to_plain(read_preset("debug")), "encoder": encoder, **changes}
    values["steps"] = 100
    values["env"]["max_num_frames_per_episode"] = 120
    return train(make_config(values), out=folder)


def frames_of(path):
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    capture.release()
    return np.stack(frames)


NFM = {"nfm": {"depth": 10, "width": 4, "nfm": {"key_size": 2, "value_size": 3, "heads": 2}}}
RIM = {
    "rim": {"hidden_size": 12, "num_rims": 3, "num_active": 2},
    "brims": {"hidden_size": 12, "num_rims": [3, 2], "num_active": [2, 1]},
    "nature": {"width": 4},
}


def test_nfm_attention_in_video_still_and_tensorboard(tmp_path, capsys):
    run = debug_run(tmp_path / "run", "nfm", **NFM)
    out = tmp_path / "attention.mp4"
    scores = tmp_path / "scores.json"
    arguments = ["evaluate", str(run), "--episodes", "1", "--attention", str(out)]
    assert cli.main([*arguments, "--json", str(scores)]) == 0
    rows = json.loads(scores.read_text())["attention"]
    assert [row["reader"] for row in rows] == [f"pass 2 layer {n}" for n in (1, 2, 3, 4)]
    for row in rows:
        assert sum(row["shares"].values()) == pytest.approx(1, abs=1e-3)
        assert 0 < row["entropy"] <= 1
        assert row["gain"] != 0, "it has been trained"
        assert row["relative_size"] > 0
    assert "pass 2 layer 4" in capsys.readouterr().out
    video = frames_of(out)
    assert len(video) == 31  # 30 steps of 4 frames, and the first observation
    still = imageio.imread(out.with_suffix(".png"))
    assert still.shape == video.shape[1:]
    below = still[512:]
    assert len(np.unique(below.reshape(-1, 3), axis=0)) > 50, "something is drawn below the game"
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    assert board.Tags()["images"] == ["attention/map"]
    histograms = board.Tags()["histograms"]
    assert "attention/pass 2 layer 4/null" in histograms
    assert len(histograms) == 6 + 7 + 8 + 9  # sources of the four readers, null among them


def test_random_attention_plays_with_noise(tmp_path, capsys):
    """As told in the result; refused where there is no attention to replace."""
    run = debug_run(tmp_path / "run", "nfm", **NFM)
    found = checkpoint.open_checkpoint(checkpoint.find(run))
    network = checkpoint.load_network(found, torch.device("cpu")).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, Place) and hasattr(module, "gamma"):
                module.gamma.fill_(1.0)
        obs = torch.randint(0, 256, (1, 2, 4, 84, 84), dtype=torch.uint8)
        zeros = torch.zeros(1, 2, dtype=torch.int64)
        extras = {"last_action": zeros, "last_reward": zeros, "episode_step": zeros}
        before = [network.features(obs, (), None, extras)[0] for _ in range(2)]
        randomise(network, "nfm")
        after = [network.features(obs, (), None, extras)[0] for _ in range(2)]
    torch.testing.assert_close(before[0], before[1])
    assert not torch.allclose(after[0], before[0]), "noise chooses other slots"
    assert not torch.allclose(after[0], after[1]), "and others again at every forward"
    scores = tmp_path / "scores.json"
    arguments = ["evaluate", str(run), "--episodes", "1", "--random-attention"]
    assert cli.main([*arguments, "--json", str(scores)]) == 0
    assert json.loads(scores.read_text())["random_attention"] is True
    assert "with random attention" in capsys.readouterr().out
    plain = debug_run(tmp_path / "plain", "nature", nature={"width": 4})
    assert cli.main(["evaluate", str(plain), "--random-attention"]) == 2
    assert "random_attention: encoder 'nature' has no att" in capsys.readouterr().err
    assert cli.main(["evaluate", "debug", "--random", "--random-attention"]) == 2


def test_summary_is_the_recorded_attention():
    """Shares of all sources add up to 1 at every position and belong to the given observations."""
    config = make_config({"encoder": "nfm", **NFM, "head": {"hidden_size": 8}})
    network = checkpoint.build_network(config, (4, 84, 84), 9).eval()
    obs = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8)
    weights, image = attention.summary(network, obs)
    first = [v for name, v in weights.items() if name.startswith("pass 2 layer 1/")]
    torch.testing.assert_close(sum(first), torch.ones(3 * 21 * 21))
    assert image.dtype == np.uint8
    other, _ = attention.summary(network, obs.flip(0))
    assert not torch.equal(other["pass 2 layer 1/null"], weights["pass 2 layer 1/null"])


@pytest.mark.parametrize(("encoder", "active"), [("rim", 2), ("brims", 3)])
def test_rim_activity(tmp_path, encoder, active):
    run = debug_run(tmp_path / "run", encoder, **RIM)
    out = tmp_path / "activity.mp4"
    assert cli.main(["evaluate", str(run), "--episodes", "1", "--attention", str(out)]) == 0
    assert len(frames_of(out)) == 31
    network = checkpoint.load_network(
        checkpoint.open_checkpoint(checkpoint.find(run)), torch.device("cpu")
    )
    zeros = torch.zeros(1, 2, dtype=torch.int64)
    extras = {"last_action": zeros, "last_reward": zeros, "episode_step": zeros}
    with attention.attention_view(network) as view:
        for _ in range(5):
            network.features(torch.zeros(1, 2, 4, 84, 84, dtype=torch.uint8), (), None, extras)
    assert [row.sum() for row in view.activity] == [active] * 5, "exactly num_active at each step"


def test_nothing_to_show(tmp_path, capsys):
    run = debug_run(tmp_path / "run", "nature")
    arguments = ["evaluate", str(run), "--attention", str(tmp_path / "x.mp4")]
    assert cli.main(arguments) == 2
    assert "attention: this encoder (NatureEncoder) has none to show" in capsys.readouterr().err
    assert not list(tmp_path.glob("x.*"))
    network = checkpoint.load_network(
        checkpoint.open_checkpoint(checkpoint.find(run)), torch.device("cpu")
    )
    assert not network.encoder.shows


@pytest.mark.parametrize("other", ["--video=a.mp4", "--json=a.png", "--json=a.mp4"])
def test_no_file_is_written_twice(other, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", "zoo:ms_pacman-nfm", "--attention", "a.mp4", other]) == 2
    assert "would be written twice" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_random_play_has_no_encoder(tmp_path, capsys):
    arguments = ["evaluate", "debug", "--random", "--attention", str(tmp_path / "x.mp4")]
    assert cli.main(arguments) == 2
    assert "not allowed with --random" in capsys.readouterr().err
