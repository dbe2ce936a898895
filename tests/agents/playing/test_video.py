"""The video of an episode: whole, in step with what the agent sees, or not there at all."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from agents.config import EnvConfig, make_config, to_plain
from agents.playing import video
from agents.playing.clip import EpisodeClip
from agents.playing.evaluate import play
from agents.playing.video import FPS, record_first_episode
from agents.presets import read_preset
from envs.memory import MemoryCueVecEnv
from rl_nfm.support import video as video_files

SEED = 5


def config(game, **env):
    values = to_plain(read_preset("debug"))
    return make_config({**values, "game": game, "env": env})


def record(path, played, **arguments):
    with record_first_episode(path, played, seed=SEED) as recorder:
        return play(None, played, epsilon=1.0, seed=SEED, on_step=recorder, **arguments)


def frames_of(path):
    """Frames per second, and the frames in RGB."""
    reader, frames = cv2.VideoCapture(str(path)), []
    while (read := reader.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    return reader.get(cv2.CAP_PROP_FPS), frames


def test_the_whole_first_episode_is_in_it(tmp_path):
    # 80 emulator frames are 20 steps, and 21 observations with the first and the last.
    played = config("breakout", max_num_frames_per_episode=80)
    scores = record(tmp_path / "v.mp4", played, episodes=5, num_envs=2)
    assert scores.lengths == [20] * 5
    fps, frames = frames_of(tmp_path / "v.mp4")
    assert len(frames) == 21
    assert fps == FPS
    assert frames[0].shape == (512, 1120, 3)
    game, view = frames[0][32:, :640].astype(int), frames[0][32:, 640:].astype(int)
    assert np.ptp(game, axis=2).max() > 100, "the game is in colour"
    assert np.ptp(view, axis=2).max() < 20, "what the agent sees is gray"
    assert frames[0][:32].max() > 200, "text"
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]


def test_nothing_is_counted_otherwise_because_of_the_video(tmp_path):
    played = config("pong", max_num_frames_per_episode=200)
    plain = play(None, played, episodes=3, num_envs=2, epsilon=1.0, seed=SEED)
    assert record(tmp_path / "v.mp4", played, episodes=3, num_envs=2) == plain


@pytest.mark.parametrize("protocol", ["dopamine", "rltime"])
def test_colours_are_in_step_with_what_the_agent_sees(protocol, tmp_path, monkeypatch):
    """At every step, sticky actions, no-ops and FIRE included."""
    pairs = []

    def draw(self, picture, step):
        pairs.append((picture, step.newest))
        return np.zeros((512, 1120, 3), np.uint8)

    monkeypatch.setattr(video.EpisodeVideo, "_draw", draw)
    played = config("breakout", protocol=protocol, max_num_frames_per_episode=400)
    record(tmp_path / "v.mp4", played, episodes=1)
    differences = []
    for picture, seen in pairs:
        gray = cv2.resize(
            cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), (84, 84), interpolation=cv2.INTER_AREA
        )
        differences.append(np.abs(gray.astype(int) - seen).mean())
    assert len(pairs) > 60
    # The maximum over two frames is taken per colour there: a few pixels of things that move.
    assert max(differences) < 0.2
    shifted = [
        np.abs(a[1].astype(int) - b[1]).mean() for a, b in zip(pairs, pairs[5:], strict=False)
    ]
    assert np.mean(shifted) > 0.2, "the test would see it if they were out of step"


def test_a_game_without_an_emulator(tmp_path):
    record(tmp_path / "v.mp4", config("memory_cue"), episodes=1)
    _, frames = frames_of(tmp_path / "v.mp4")
    assert len(frames) == 8  # cue, five blanks, the choice, the end
    assert frames[0].shape == (512, 480, 3)


def test_pictures_keep_their_shape():
    """A picture of 30x60 in a field of 480x640 is 320 high and 640 wide, in the middle."""
    fitted = video._fitted(np.full((30, 60, 3), 255, np.uint8), (480, 640))
    assert fitted.shape == (480, 640, 3)
    assert (fitted[80:400] == 255).all()
    assert fitted[:80].max() == fitted[400:].max() == 0


@pytest.mark.parametrize(("channels", "shape"), [(1, ()), (2, ()), (3, (3,)), (4, ()), (10, ())])
def test_a_clip_of_frames_of_any_number_of_channels(channels, shape):
    frame = np.zeros((channels, 10, 12), np.uint8)
    frame[-1, 4, 5] = 255
    picture = EpisodeClip()._draw(frame)
    scale = round(168 / 12)
    assert picture.shape == (18 + 10 * scale, 12 * scale, *shape)
    assert (picture[18:].reshape(10, scale, 12, scale, -1)[4, :, 5, :, -1] == 255).all()
    assert np.count_nonzero(picture[18:]) == scale**2


def test_a_game_that_its_seed_does_not_determine_is_not_recorded(tmp_path, monkeypatch):
    recorded = MemoryCueVecEnv._collect
    draws = iter(range(1000))

    def collect(env):
        obs, rewards, *rest = recorded(env)
        return obs, rewards + next(draws), *rest

    monkeypatch.setattr(MemoryCueVecEnv, "_collect", collect)
    with pytest.raises(ValueError, match="memory_cue' cannot be recorded: its seed does not"):
        record(tmp_path / "v.mp4", config("memory_cue"), episodes=1)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_recording_leaves_nothing(tmp_path):
    path = tmp_path / "v.mp4"
    path.write_text("an older one")

    def interrupt(step):
        recorder(step)
        raise KeyboardInterrupt

    played = config("memory_cue")
    with pytest.raises(KeyboardInterrupt), record_first_episode(path, played, seed=1) as recorder:
        play(None, played, episodes=1, epsilon=1.0, seed=1, on_step=interrupt)
    assert path.read_text() == "an older one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("script", ["exit 3", "cat > /dev/null; echo disk full >&2; exit 1"])
def test_a_failing_encoder_is_an_error(script, tmp_path, monkeypatch):
    """At once or only at the end, as on a full disk."""
    (tmp_path / "ffmpeg").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setattr(video_files, "get_ffmpeg_exe", lambda: str(tmp_path / "ffmpeg"))
    with pytest.raises(OSError, match="cannot be written") as raised:
        record(tmp_path / "v.mp4", config("memory_cue"), episodes=1)
    assert ("disk full" in str(raised.value)) == ("disk full" in script)
    assert [path.name for path in tmp_path.iterdir()] == ["ffmpeg"]


def test_protocols_cannot_change_the_rate():
    """FPS is right as long as four emulator frames are one step and no option changes it."""
    assert "frameskip" not in {field.name for field in dataclasses.fields(EnvConfig)}


def test_a_colon_in_a_name_is_no_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with video_files.video_writer(Path("gym:a.mp4"), (32, 32), 15) as append:
        append(np.zeros((32, 32, 3), np.uint8))
    assert len(frames_of(tmp_path / "gym:a.mp4")[1]) == 1
