"""Which published form of NFM each task runs, and how `--nfm.preset` changes it."""

import dataclasses
import json

import pytest
import torch

from rl_nfm.nfm import NFM_PRESETS, NeuralFunctionModule, NFMConfig, TaskNFMConfig
from rl_nfm.supervised.cli import main
from rl_nfm.supervised.loop.options import parse_config
from rl_nfm.supervised.tasks import classification, sort_of_clevr, stacked_digits
from rl_nfm.supervised.tasks.relational import NFMAnswerer

TASKS = {
    "classification": classification.PRESETS,
    "sort_of_clevr": sort_of_clevr.PRESETS,
    "stacked_digits": stacked_digits.PRESETS,
}
# top-k, d_k = d_v, norm of the output block: settings of appendix B to F
PAPER = {
    "classification": (5, 32, "batch"),
    "sort_of_clevr": (5, 16, "batch"),
    "stacked_digits": (5, 16, "none"),  # "no batch norm" in appendix C
}


def reads(model):
    """How many modules read, of the only NFM in the model."""
    (nfm,) = (m for m in model.modules() if isinstance(m, NeuralFunctionModule))
    return [visit.pass_index for visit in nfm.places.schedule if visit.reads]


def build(task, nfm):
    if task == "classification":
        resnet = classification.ResNetConfig(depth=10, width=4, stem="pixel")
        return classification.Classifier(resnet, nfm, in_channels=1, classes=10)
    if task == "stacked_digits":
        return stacked_digits.StackedDigitsNet(4, nfm)
    return NFMAnswerer(nfm, width=4, size=75, question_bits=11, answers=10)


@pytest.mark.parametrize("task", TASKS)
def test_the_papers_eight_modules_all_read(task):
    """Two passes of four places; the preset `small` keeps the four reads its results came from."""
    nfm = TASKS[task]["paper"].nfm
    assert reads(build(task, nfm)) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert reads(build(task, TASKS[task]["small"].nfm)) == [1, 1, 1, 1]
    top_k, size, norm = PAPER[task]
    assert (nfm.top_k, nfm.key_size, nfm.value_size) == (top_k, size, size)
    assert (nfm.heads, nfm.passes, nfm.out_norm) == (4, 2, norm)
    # all else is the preset's
    sizes = {"top_k": top_k, "key_size": size, "value_size": size, "out_norm": norm}
    form = {k: v for k, v in dataclasses.asdict(nfm).items() if k != "preset"}
    assert NFMConfig(**form) == dataclasses.replace(NFM_PRESETS["paper"], **sizes)


@pytest.mark.parametrize("task", TASKS)
def test_nfm_preset_is_where_the_other_flags_begin(task):
    presets = TASKS[task]

    def parse(*flags):
        return parse_config(flags, task=task, presets=presets).nfm

    size = PAPER[task][1]
    for preset in ("small", "paper"):
        official = parse("--preset", preset, "--nfm.preset", "official")
        assert (official.top_k_mode, official.top_k, official.out_kernel) == ("sab_published", 3, 3)
        assert (official.read_passes, official.key_size) == ("last", size)
        assert parse("--preset", preset, "--nfm.preset=paper") == presets["paper"].nfm
        assert parse("--preset", preset, "--nfm.preset", "none") == presets["small"].nfm
    changed = parse("--nfm.preset", "official_gan", "--nfm.heads", "2")
    assert (changed.preset, changed.heads, changed.cat_input) == ("official_gan", 2, True)


def test_a_wrong_preset_and_a_resume_with_another_are_refused(tmp_path):
    with pytest.raises(ValueError, match="official"):
        TaskNFMConfig().with_preset("oficial")
    flags = ["classification", "--epochs", "0", "--out", str(tmp_path / "run")]
    assert main([*flags, "--nfm.preset", "paper"]) == 0
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["config"]["nfm"]["preset"] == "paper"
    with pytest.raises(ValueError, match=r"^nfm\.preset: official differs from .* paper .*epochs"):
        main(["classification", "--resume", str(tmp_path / "run"), "--nfm.preset", "official"])


def test_questions_one_by_one_make_the_published_number_of_updates(monkeypatch):
    """9800 images of 20 questions in batches of 64: the authors' code drops the last half batch."""
    config = sort_of_clevr.PRESETS["paper"]
    assert 9800 * 20 // 64 == 3062
    assert -(-9800 // 64) == 154
    small = dataclasses.replace(
        config, train_images=7, test_images=2, batch_size=9, batch_of="questions"
    )
    torch.manual_seed(0)
    task = sort_of_clevr.SortOfClevrTask(small, torch.device("cpu"))
    images, questions, answers = task.train
    batches = list(task.batches(0))
    assert [len(a) for _, _, a in batches] == [9] * 15 + [5]  # 7 * 20 = 140
    seen = set()
    for pixels, asked, wanted in batches:
        assert asked.shape[1:] == (1, 11)
        assert wanted.shape[1:] == (1,)
        for b in range(len(pixels)):
            (image,) = [i for i in range(7) if torch.equal(images[i], pixels[b])]
            places = [
                (kind, q)
                for kind in range(2)
                for q in range(10)
                if torch.equal(questions[image, kind, q], asked[b, 0])
                and answers[image, kind, q] == wanted[b, 0]
            ]
            assert places
            seen.update((image, *place) for place in places)
    assert len(seen) == 140, "each question of each image once an epoch"
