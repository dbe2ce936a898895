"""TensorBoard of an agent's run, read back with TensorBoard's own readers."""

import dataclasses
import io
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
import yaml
from tensorboard import context
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from agents.config import make_config, to_plain
from agents.playing import clip
from agents.playing.evaluate import PlayStep
from agents.presets import read_preset
from agents.saving.run_folder import RunFolder, read_metrics
from agents.saving.tensorboard import tag_of
from agents.training import evaluation, train
from rl_nfm.support.event_writer import CurveWriter

RUN = {
    "log_every_steps": 24,
    "checkpoint_every_steps": 48,
    "eval_every_steps": 24,
    "eval_episodes": 2,
}
RIM = {"rim": {"hidden_size": 12, "num_rims": 3, "num_active": 2}, "nature": {"width": 4}}


def tiny(steps=72, **changes):
    """The debug preset on the memory task, whose episodes last a few steps."""
    values = {**to_plain(read_preset("debug")), "game": "memory_cue", "steps": steps}
    values["env"] = {"num_envs": 3}
    values["replay"] = {"capacity_steps": 150, "min_steps": 30, "batch_size": 3}
    values["head"] = {"hidden_size": 8, "num_cosines": 4}
    for name, change in {"run": RUN, **changes}.items():
        values[name] = {**values.get(name, {}), **change} if isinstance(change, dict) else change
    return make_config(values)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train.train(tiny(), out=tmp_path_factory.mktemp("board") / "run")


def board_of(run):
    return EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0}).Reload()


def scalars_of(board, tag):
    return [(event.step, event.value) for event in board.Scalars(tag)]


def hyperparameters(run):
    """What TensorBoard's hyperparameter dashboard shows: of each run, options, scores and state."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(run)).Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(run))
    told = base_plugin.TBContext(logdir=str(run), multiplexer=multiplexer, data_provider=provider)
    request = api_pb2.ListSessionGroupsRequest(
        slice_size=10,
        allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_RUNNING, api_pb2.STATUS_UNKNOWN],
    )
    handler = list_session_groups.Handler(
        context.RequestContext(), backend_context.Context(told), "", request
    )
    return list(handler.run().session_groups)


def test_scalars_are_the_metrics_in_groups(run):
    board, lines = board_of(run), read_metrics(run / "metrics.jsonl")
    tags = set(board.Tags()["scalars"])
    assert {tag.split("/")[0] for tag in tags} == {"train", "eval", "time"}
    expected = {}
    for line in lines:
        for name, value in line.items():
            if name != "steps" and not isinstance(value, list):
                expected.setdefault(tag_of(name), []).append((line["steps"], np.float32(value)))
    assert tags == set(expected)
    assert all(scalars_of(board, tag) == expected[tag] for tag in tags)
    assert len(expected["eval/return_mean"]) == 3


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("loss", "train/loss"),
        ("updates", "train/updates"),
        ("eval_return_mean", "eval/return_mean"),
        ("steps_per_second", "time/steps_per_second"),
        ("time/act", "time/act"),
    ],
)
def test_tags(name, tag):
    assert tag_of(name) == tag


def test_config_is_there_as_text(run):
    text = board_of(run).Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert all(line.startswith("    ") for line in text.splitlines()), "a block of code"
    told = yaml.safe_load(text.replace("\n    ", "\n").removeprefix("    "))
    assert told == yaml.safe_load((run / "config.yaml").read_text())


def test_hyperparameters_stand_beside_the_final_scores(run):
    (group,) = hyperparameters(run)
    assert group.hparams["learner.n_steps"].number_value == 3
    assert group.hparams["encoder"].string_value == "nature"
    assert group.hparams["env.noop_max"].string_value == "none"
    last = read_metrics(run / "metrics.jsonl")[-1]
    scores = {value.name.tag: value.value for value in group.metric_values}
    assert scores["eval/return_mean"] == pytest.approx(last["eval_return_mean"])
    assert scores["train/return_last_100"] == pytest.approx(last["return_last_100"])
    assert group.sessions[0].status == api_pb2.STATUS_SUCCESS


def test_the_last_evaluation_and_every_fifth_leave_a_clip(run):
    clips = board_of(run).Images("eval/video")
    assert [event.step for event in clips] == [24, 72]
    pictures = imageio.imread(io.BytesIO(clips[-1].encoded_image_string), index=None)
    assert len(pictures) > 3
    assert pictures.shape[1:3] == (clips[-1].height, clips[-1].width) == (36 * 5 + 18, 36 * 5)
    assert (pictures[0] != pictures[-1]).any()


def test_clips_are_due():
    def due(steps, num_envs, every, between=10):
        run = dataclasses.replace(tiny().run, eval_every_steps=between, video_every_evals=every)
        env = dataclasses.replace(tiny().env, num_envs=num_envs)
        config = dataclasses.replace(tiny(), steps=steps, env=env, run=run)
        evaluated = evaluations(steps, num_envs, between)
        return [n for n, now in enumerate(evaluated, 1) if evaluation.clip_due(config, now)]

    def evaluations(steps, num_envs, between):
        rounds = range(num_envs, steps + num_envs, num_envs)
        return [now for now in rounds if now // between > (now - num_envs) // between]

    assert due(104, 1, 3) == [1, 4, 7, 10]
    assert due(35, 1, 3) == [1, 3], "the last one"
    assert due(5000, 64, 100, between=1000) == [1, 5]
    assert due(200, 64, 100, between=30) == [1, 4], "more games than steps between evaluations"
    assert due(100, 1, 0) == []


def test_what_is_looked_at_changes_nothing_that_a_run_computes(tmp_path):
    """Clips and RIM activity on and off: the same metrics, but for the times, and weights."""
    results = []
    for every in (0, 1):
        config = tiny(encoder="rim", **RIM, run={**RUN, "video_every_evals": every})
        run = train.train(config, out=tmp_path / str(every))
        lines = read_metrics(run / "metrics.jsonl")
        times = ("time", "steps_per", "updates_per")
        results.append(
            [{k: v for k, v in line.items() if not k.startswith(times)} for line in lines]
        )
        assert ("eval/video" in board_of(run).Tags()["images"]) == bool(every)
    assert results[0] == results[1]


def test_rim_activity_is_told_at_every_checkpoint(tmp_path):
    run = train.train(tiny(encoder="rim", **RIM), out=tmp_path / "run")
    board = board_of(run)
    shares = [scalars_of(board, f"attention/rim {number} active") for number in (1, 2, 3)]
    assert [[step for step, _ in one] for one in shares] == [[48, 72]] * 3
    total = np.sum([[value for _, value in one] for one in shares], axis=0)
    assert total == pytest.approx([2, 2]), "num_active of them at every step"
    assert [event.step for event in board.Images("attention/rims")] == [48, 72]
    train.resume(run, lambda old: dataclasses.replace(old, steps=96))
    again = board_of(run)
    steps = [step for step, _ in scalars_of(again, "attention/rim 1 active")]
    assert steps == [48, 72, 96], "kept, although metrics.jsonl does not hold them"
    assert scalars_of(again, "attention/rim 1 active")[:2] == shares[0]
    assert [event.step for event in again.Images("eval/video")] == [24, 72, 96]
    assert [step for step, _ in scalars_of(again, "train/updates")] == [24, 48, 72, 96]


def test_going_on_cuts_pictures_and_curves_and_renames_old_ones(run, tmp_path):
    """An event file of an earlier version, with flat tags, torn at its end."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.metrics_path.write_text('{"steps": 10, "loss": 0.5}\n{"steps": 20, "loss": 0.25}\n')
    (folder.path / "tensorboard").mkdir()
    writer = CurveWriter(folder.path / "tensorboard")
    for step in (10, 20):
        writer.add_scalar("loss", 0.5, step)
        writer.add_histogram("attention/pass 1 layer 1/null", torch.arange(5.0), step)
        writer.add_image("attention", np.zeros((4, 4, 3), np.uint8), step, dataformats="HWC")
    writer.close()
    (file,) = (folder.path / "tensorboard").iterdir()
    content = file.read_bytes()
    for damaged in (content, content[:-7], content + b"\x01\x02"):
        for path in (folder.path / "tensorboard").iterdir():
            path.unlink()
        file.write_bytes(damaged)
        folder.begin(tiny(), 15)
        folder.curves.close()
        board = board_of(folder.path)
        assert scalars_of(board, "train/loss") == [(10, 0.5)]
        assert "loss" not in board.Tags()["scalars"]
        assert [event.step for event in board.Images("attention")] == [10]
        assert [event.step for event in board.Histograms("attention/pass 1 layer 1/null")] == [10]
        assert not file.exists()
        folder.metrics_path.write_text('{"steps": 10, "loss": 0.5}\n{"steps": 20, "loss": 0.25}\n')


def test_a_clip_ends_with_its_episode_and_has_a_limit(monkeypatch):
    def step(number, end=False, channels=None):
        shape = (1, 4, 6, 5) if channels is None else (1, 2 * channels, 6, 5)
        return PlayStep(
            obs=np.full(shape, number, np.uint8),
            reward=np.array([1.0], np.float32),
            info={"episode_start": np.array([number == 0]), "episode_end": np.array([end])},
            action=np.zeros(1, np.int64),
            actor=None,
            frame_channels=channels or 1,
        )

    one = clip.EpisodeClip()
    for number in range(8):
        one(step(number, end=number == 5))
    pictures = imageio.imread(io.BytesIO(one.gif()), index=None)
    assert [int(picture[-1, 0, 0]) for picture in pictures] == [0, 2, 4, 5]
    monkeypatch.setattr(clip, "MAX_PICTURES", 2)
    colour = clip.EpisodeClip()
    for number in range(8):
        colour(step(20 * number, channels=3))
    assert imageio.imread(io.BytesIO(colour.gif()), index=None).shape[0] == 2


def test_docs_name_every_group_of_tags(run):
    text = (
        (Path(__file__).parents[3] / "docs" / "metrics.md").read_text().split("## TensorBoard")[1]
    )
    tags = [tag for kind in ("scalars", "images") for tag in board_of(run).Tags()[kind]]
    for tag in tags:
        assert f"`{tag}`" in text or tag.startswith(("train/", "time/")), tag
    assert "`train/NAME`" in text
