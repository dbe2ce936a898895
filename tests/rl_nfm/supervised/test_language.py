"""Language modelling: texts, numbering, chunks, carried states, losses, and whole runs."""

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rl_nfm.supervised.cli import main
from rl_nfm.supervised.data.text import SPLITS, docstrings, load_corpus, number
from rl_nfm.supervised.tasks.language import (
    LanguageConfig,
    LanguageModel,
    LanguageTask,
    chunks,
)
from tests.rl_nfm.supervised.test_supervised_sequences import MODELS

CPU = torch.device("cpu")
TEXTS = {
    "train": " = Title = \n a b a c a b <unk> d \n\n" * 9,
    "validation": " a b e b \n",
    "test": " c a d a a \n b c \n",
}
SIZES = {"hidden_size": 10, "embedding_size": 10, "batch_size": 2, "bptt_steps": 5}


@pytest.fixture
def folder(tmp_path):
    """Files with the names of WikiText-2."""
    for split, name in (("train", "train"), ("validation", "valid"), ("test", "test")):
        (tmp_path / f"wiki.{name}.tokens").write_text(TEXTS[split], encoding="utf-8")
    return tmp_path


def task_of(folder, **options):
    options = {**SIZES, "data": "wikitext2", "data_folder": folder, "unit": "word", **options}
    return LanguageTask(LanguageConfig(**options), CPU)


def test_words_are_numbered_by_their_frequency_in_training(folder):
    """In a training line: a thrice, <eos> thrice, = and b twice; <unk> is number 0 whatever."""
    corpus = load_corpus("wikitext2", folder, "word", 1)
    assert corpus.symbols == ["<unk>", "<eos>", "a", "=", "b", "Title", "c", "d"]
    assert corpus.texts["validation"].tolist() == [2, 4, 0, 4, 1]  # e was never seen
    assert corpus.texts["test"].tolist() == [6, 2, 7, 2, 2, 1, 4, 6, 1]
    assert corpus.texts["train"][:5].tolist() == [3, 5, 3, 1, 2]


def test_characters_and_rare_symbols():
    corpus = number({"train": "aabbbc", "validation": "abcx", "test": "b"}, "character", 2)
    assert corpus.symbols == ["<unk>", "b", "a"]
    assert corpus.texts["train"].tolist() == [2, 2, 1, 1, 1, 0]
    assert corpus.texts["validation"].tolist() == [2, 1, 0, 0]


def test_unigram_baseline_by_hand():
    """Counts a 3, b 1, unknown 0, each plus one of 7 in all: a 4/7, b 2/7, unknown 1/7."""
    corpus = number({"train": "aaba", "validation": "ab", "test": "ax"}, "character")
    assert corpus.unigram_nats("validation") == pytest.approx(-math.log(4 / 7 * 2 / 7) / 2)
    assert corpus.unigram_nats("test") == pytest.approx(-math.log(4 / 7 * 1 / 7) / 2)


def test_docstrings_of_a_library(tmp_path):
    """Modules are held out whole; tests, and what is no Python, are left out."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "test").mkdir()
    for index in range(30):
        text = f'"""Module {index}."""\n\ndef f():\n    """Function {index}."""\n    "no docs"\n'
        (tmp_path / ("sub" if index % 2 else "") / f"m{index}.py").write_text(text)
    (tmp_path / "broken.py").write_text('"""Broken."""\ndef (')
    (tmp_path / "test" / "t.py").write_text('"""Tests."""')
    texts = docstrings(tmp_path)
    assert docstrings(tmp_path) == texts
    assert list(texts) == list(SPLITS)
    whole = "".join(texts.values())
    for index in range(30):
        where = [name for name, text in texts.items() if f"Module {index}." in text]
        assert where == [name for name, text in texts.items() if f"Function {index}." in text]
        assert len(where) == 1
    assert "no docs" not in whole
    assert "Broken" not in whole
    assert "Tests" not in whole
    shares = [len(texts[name]) / len(whole) for name in SPLITS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.05)


def test_chunks_are_streams_side_by_side():
    text = torch.arange(25)
    parts = list(chunks(text, streams=3, steps=5))
    # 24 symbols have a successor: three streams of eight
    assert [inputs.shape for inputs, _, _ in parts] == [(3, 5), (3, 3)]
    assert [is_first for _, _, is_first in parts] == [True, False]
    inputs, targets = (torch.cat([part[i] for part in parts], 1) for i in (0, 1))
    assert inputs.tolist() == [[8 * row + i for i in range(8)] for row in range(3)]
    assert torch.equal(targets, inputs + 1)


@pytest.mark.parametrize("core", MODELS)
def test_chunks_with_carried_states_are_the_text_read_at_once(folder, core):
    task = task_of(folder, model=core)
    torch.manual_seed(0)
    model = task.build_model().eval()
    text = task.corpus.texts["train"]
    length = (len(text) - 1) // 2
    with torch.no_grad():
        losses = [(task.loss(model, part), part[0].shape[1]) for part in task.batches(0)]
        logits, _ = model(text[: 2 * length].view(2, length))
        whole = F.cross_entropy(logits.flatten(0, 1), text[1 : 2 * length + 1])
    assert len(losses) > 3
    mean = sum(float(loss) * steps for loss, steps in losses) / length
    assert mean == pytest.approx(float(whole), rel=1e-5)


def test_errors_flow_back_within_a_chunk_alone(folder):
    """Truncated: after two chunks, the gradient of the second is that of a constant state."""
    task = task_of(folder, model="lstm", dropout=0.0)
    model = task.build_model()
    first, second = list(task.batches(0))[:2]
    _, state = model(first[0])
    logits, _ = model(second[0], tuple(part.detach() for part in state))
    expected = torch.autograd.grad(
        F.cross_entropy(logits.flatten(0, 1), second[1].flatten()), model.core.weight_hh_l0
    )
    task.loss(model, first)
    loss = task.loss(model, second)
    torch.testing.assert_close(torch.autograd.grad(loss, model.core.weight_hh_l0), expected)


def test_every_epoch_begins_without_a_state(folder):
    task = task_of(folder, model="gru")
    model = task.build_model().eval()
    epochs = [[task.loss(model, part).item() for part in task.batches(epoch)] for epoch in (0, 1)]
    assert epochs[0] == epochs[1]


class Uniform(nn.Module):
    """Every symbol is as likely as any other."""

    def __init__(self, symbols):
        super().__init__()
        self.symbols = symbols

    def forward(self, symbols, state=None):
        return torch.zeros(*symbols.shape, self.symbols), torch.zeros(1)


def test_a_uniform_model_is_as_perplexed_as_it_has_symbols(folder):
    task = task_of(folder)
    metrics = task.evaluate(Uniform(8))
    assert metrics == pytest.approx(
        {"perplexity_validation": 8, "perplexity_test": 8, "validation": math.log(8)}
    )
    task = task_of(folder, unit="character")
    metrics = task.evaluate(Uniform(16))
    assert metrics == pytest.approx(
        {"bits_validation": 4, "bits_test": 4, "validation": math.log(16)}
    )
    assert set(task.baselines()) == {"bits_validation", "bits_test"}


def test_tied_weights_are_one_and_have_one_size(folder):
    tied, untied = (task_of(folder, tied=tied).build_model() for tied in (True, False))
    assert sum(p.numel() for p in untied.parameters()) - sum(
        p.numel() for p in tied.parameters()
    ) == pytest.approx(8 * 10)
    with pytest.raises(ValueError, match="tied: needs embedding_size 7 = hidden_size 10"):
        LanguageModel(LanguageConfig(**{**SIZES, "embedding_size": 7}), 8)


@pytest.mark.parametrize("core", ["lstm", "gru", "rim_lstm", "rim_gru"])
def test_layers_are_stacked(folder, core):
    one, two = (task_of(folder, model=core, num_layers=n).build_model() for n in (1, 2))
    _, state = two(torch.zeros(2, 3, dtype=torch.int64))
    assert (state[0] if isinstance(state, tuple) else state).shape == (2, 2, 10)
    assert sum(p.numel() for p in two.parameters()) > sum(p.numel() for p in one.parameters())


FLAGS = ["--data", "wikitext2", "--unit", "word", "--device", "cpu"] + [
    word for name, value in SIZES.items() for word in (f"--{name}".replace("_", "-"), str(value))
]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "data_folder: needed for wikitext2"),
        ("--data-folder nowhere", "wiki.train.tokens cannot be read"),
        ("--data-folder {folder} --batch-size 7", "batch_size: 7 is not allowed, must be below"),
        ("--data-folder {folder} --model brim_gru --num-layers 3", "num_layers: has no effect"),
    ],
)
def test_bad_options(flags, message, folder):
    run = folder / "run"
    with pytest.raises(ValueError, match=message):
        main(["language", *FLAGS, *flags.format(folder=folder).split(), "--out", str(run)])
    assert not (run / "config.json").exists()


def test_a_run_goes_on_bit_for_bit_and_is_reported(folder, capsys):
    flags = [*FLAGS, "--data-folder", str(folder), "--rim-dropout", "0.1", "--dropout", "0.1"]
    whole, resumed = folder / "whole", folder / "resumed"
    assert main(["language", *flags, "--out", str(whole), "--epochs", "3"]) == 0
    assert main(["language", *flags, "--out", str(resumed), "--epochs", "2"]) == 0
    assert main(["language", "--resume", str(resumed), "--epochs", "3"]) == 0
    results = [json.loads((run / "result.json").read_text()) for run in (whole, resumed)]
    assert results[0]["mean"] == results[1]["mean"]
    assert results[0]["mean"]["train_loss"] < math.log(8)
    capsys.readouterr()
    assert main(["report", str(whole), "--out", str(folder / "report")]) == 0
    assert "perplexity_test" in capsys.readouterr().out


@pytest.mark.parametrize("weights", ["best", "last"])
def test_a_run_is_evaluated_where_its_text_lies_now_and_on_no_other(weights, folder, capsys):
    run, moved = folder / "run", folder / "moved"
    assert main(["language", *FLAGS, "--data-folder", str(folder), "--out", str(run)]) == 0
    moved.mkdir()
    for file in folder.glob("wiki.*"):
        file.rename(moved / file.name)
    command = ["evaluate", str(run), "--weights", weights, "--data-folder", str(moved)]
    found = folder / "found.json"
    assert main([*command, "--json", str(found)]) == 0
    trained = json.loads((run / "result.json").read_text())["mean"]
    assert json.loads(found.read_text())["mean"].items() <= trained.items()
    test = moved / "wiki.test.tokens"
    test.write_text(test.read_text(encoding="utf-8") + "\na", encoding="utf-8")
    with pytest.raises(ValueError, match=r"data: .*run was trained on others"):
        main(command)


def test_the_published_perplexity_stands_beside_its_setting_alone(folder):
    """A hand-made result of the published sizes, and one of another size."""
    run = folder / "run"
    flags = [*FLAGS, "--data-folder", str(folder), "--epochs", "0"]
    assert main(["language", *flags, "--out", str(run)]) == 0
    result = json.loads((run / "result.json").read_text())
    assert main(["report", str(run), "--out", str(folder / "a")]) == 0
    assert "| 102 |" not in (folder / "a" / "report.md").read_text()
    result["config"]["hidden_size"] = 510
    (run / "result.json").write_text(json.dumps(result))
    assert main(["report", str(run), "--out", str(folder / "b")]) == 0
    assert "| 102 |" in (folder / "b" / "report.md").read_text()
