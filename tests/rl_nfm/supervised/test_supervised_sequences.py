import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rl_nfm.backbones.matching import count_parameters
from rl_nfm.supervised.cli import main
from rl_nfm.supervised.tasks import copying, sequential_digits
from rl_nfm.supervised.tasks.recurrent import RecurrentConfig, SequenceModel

MODELS = ["lstm", "gru", "rim_lstm", "rim_gru", "brim_lstm", "brim_gru"]
TINY = ["--hidden-size", "12", "--batch-size", "5", "--epochs", "1", "--device", "cpu"]


def metrics_of(folder):
    return json.loads((folder / "result.json").read_text())["mean"]


def test_copying_sequences_follow_the_definition():
    inputs, symbols = copying.make_sequences(33, 7, torch.Generator().manual_seed(0))
    assert inputs.shape == (33, 27)
    for row, wanted in zip(inputs.tolist(), symbols.tolist(), strict=True):
        # ten symbols, T - 1 = 6 blanks, the marker, ten blanks
        assert row == [*wanted, *[0] * 6, 9, *[0] * 10]
        assert all(1 <= symbol <= 8 for symbol in wanted)
    assert symbols.unique().tolist() == list(range(1, 9))


class Memoryless(nn.Module):
    """Knows when to answer and the symbols' distribution, and nothing else."""

    def forward(self, sequence, last):
        logits = torch.full((*sequence.shape, copying.SYMBOLS), -40.0)
        logits[..., 0] = 0.0
        logits[:, -10:] = -40.0
        logits[:, -10:, 1:9] = 0.0
        return logits[:, -last:]


def copying_task(**options):
    config = copying.CopyingConfig(**options)
    return copying.CopyingTask(config, torch.device("cpu"))


def test_memoryless_baseline_of_copying():
    task = copying_task(batch_size=9, test_examples=60, updates_per_epoch=2)
    batches = list(task.batches(0))
    assert len(batches) == 2
    # all T + 20 steps: 10 ln 8 / 70 = 0.297; the last ten alone: ln 8 = 2.079
    assert task.loss(Memoryless(), batches[0]).item() == pytest.approx(10 * math.log(8) / 70)
    metrics = task.evaluate(Memoryless())
    assert metrics["last10_ce_50"] == pytest.approx(math.log(8))
    assert metrics["last10_ce_200"] == pytest.approx(math.log(8))
    assert metrics["accuracy_200"] == pytest.approx(1 / 8, abs=0.06)


class Perfect(nn.Module):
    def forward(self, sequence, last):
        targets = torch.cat([torch.zeros_like(sequence[:, 10:]), sequence[:, :10]], dim=1)
        return 50.0 * F.one_hot(targets, copying.SYMBOLS).float()[:, -last:]


def test_a_perfect_copier_has_no_loss():
    task = copying_task(batch_size=3, test_examples=7, updates_per_epoch=1)
    (batch,) = task.batches(0)
    assert task.loss(Perfect(), batch).item() < 1e-6
    assert task.evaluate(Perfect())["accuracy_200"] == 1.0


def test_tokens_are_the_rounded_nearest_pixels_row_by_row():
    images = torch.zeros(1, 1, 2, 3, dtype=torch.uint8)
    images[0, 0] = torch.tensor([[0, 127, 128], [255, 1, 200]])
    # 4 x 4 from 2 x 3: rows 0 0 1 1; columns floor(i * 3 / 4) = 0 0 1 2
    expected = [[0, 0, 0, 1]] * 2 + [[1, 1, 0, 1]] * 2
    tokens = sequential_digits.to_tokens(images, 4)
    np.testing.assert_array_equal(tokens.view(4, 4), expected)


def test_sequential_digits_splits_and_summary():
    config = sequential_digits.PRESETS["small"]
    torch.manual_seed(0)
    task = sequential_digits.SequentialDigitsTask(config, torch.device("cpu"))
    assert len(task.tests["validation"][0]) == 287  # 20 % of 1437
    assert len(task.train[0]) == 1150
    assert task.tests["accuracy_14"][0].shape == (360, 14 * 14)
    rows = [
        {"validation": 0.5, "a": 1.0},
        {"validation": 0.7, "a": 2.0},
        {"validation": 0.6, "a": 3},
    ]
    assert task.summarise(rows)["a"] == 2.0


@pytest.mark.parametrize("model", MODELS)
def test_copying_smoke(tmp_path, model):
    flags = ["--updates-per-epoch", "2", "--train-blanks", "3", "--test-blanks", "5"]
    flags += ["--test-examples", "4", "--out", str(tmp_path / "run")]
    assert main(["copying", "--model", model, *TINY, *flags]) == 0
    assert {"last10_ce_3", "accuracy_5"} <= set(metrics_of(tmp_path / "run"))


def test_baselines_are_printed_beside_the_results(tmp_path, capsys):
    flags = [
        "--model",
        "gru",
        "--epochs",
        "0",
        "--hidden-size",
        "5",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(["adding", *flags]) == 0
    assert "(baseline: 0.1667)" in capsys.readouterr().out


@pytest.mark.parametrize("model", MODELS)
def test_adding_smoke(tmp_path, model):
    flags = ["--updates-per-epoch", "2", "--train-steps", "3", "--test-steps", "5"]
    flags += ["--test-examples", "4", "--out", str(tmp_path / "run")]
    assert main(["adding", "--model", model, *TINY, *flags]) == 0
    assert {"mse_3", "mse_5"} <= set(metrics_of(tmp_path / "run"))


@pytest.mark.parametrize("model", MODELS)
def test_sequential_digits_smoke(tmp_path, model):
    flags = ["--train-size", "2", "--test-sizes", "3", "--batch-size", "600"]
    flags += ["--out", str(tmp_path / "run")]
    assert main(["sequential_digits", "--model", model, *TINY, *flags]) == 0
    assert {"accuracy_2", "accuracy_3", "validation"} <= set(metrics_of(tmp_path / "run"))


@pytest.mark.parametrize("model", MODELS)
def test_cores_are_deterministic_in_eval_and_causal(model):
    torch.manual_seed(0)
    config = RecurrentConfig(model=model, hidden_size=12, num_rims=3, num_active=2, dropout=0.5)
    net = SequenceModel(config, inputs=4, input_size=5, outputs=3).eval()
    tokens = torch.randint(4, (2, 7))
    outputs = net(tokens, 7)
    torch.testing.assert_close(net(tokens, 7), outputs, atol=0, rtol=0)
    torch.testing.assert_close(net(tokens, 2), outputs[:, -2:])
    changed = tokens.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 4
    torch.testing.assert_close(net(changed, 7)[:, :4], outputs[:, :4])


def test_published_size_of_the_rim_core():
    config = RecurrentConfig(model="rim_lstm", hidden_size=300)
    assert count_parameters(SequenceModel(config, inputs=None, input_size=600, outputs=1).core) == (
        544_100
    )


def test_rims_that_do_not_divide_the_hidden_size_are_refused(tmp_path):
    with pytest.raises(ValueError, match="7"):
        main(["copying", "--model", "rim_lstm", "--num-rims", "7", "--out", str(tmp_path / "run")])


@pytest.mark.slow
def test_gru_learns_to_copy_over_a_short_pause(tmp_path):
    flags = ["--hidden-size", "100", "--train-blanks", "1", "--test-blanks", "2", "--epochs", "15"]
    flags += ["--model", "gru", "--learning-rate", "0.003", "--out", str(tmp_path / "run")]
    assert main(["copying", *flags]) == 0
    assert metrics_of(tmp_path / "run")["accuracy_1"] > 0.5  # chance: 12.5 %
