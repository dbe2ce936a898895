"""What a model that has learned nothing reaches, against scikit-learn's constant classifier."""

import json

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyClassifier

from rl_nfm.supervised.cli import main
from rl_nfm.supervised.data.datasets import constant_accuracy, load_images
from rl_nfm.supervised.tasks.classification import ClassificationConfig, ClassificationTask
from rl_nfm.supervised.tasks.sequential_digits import SequentialDigitsConfig, SequentialDigitsTask
from rl_nfm.supervised.tasks.stacked_digits import StackedDigitsConfig, StackedDigitsTask

CPU = torch.device("cpu")


def constant(train, test):
    """Accuracy of scikit-learn's most frequent class."""
    fitted = DummyClassifier(strategy="most_frequent").fit(np.zeros((len(train), 1)), train)
    return fitted.score(np.zeros((len(test), 1)), test)


def test_the_most_frequent_answer_by_hand():
    labels = torch.tensor([2, 0, 2, 1])
    assert constant_accuracy(labels, torch.tensor([2, 1, 2, 0, 0])) == pytest.approx(2 / 5)
    # rows: 1 0 twice, 1 1 and 0 1 once, so 1 0 is answered; of the test rows only the second fits
    train = torch.tensor([[1.0, 0], [1, 1], [1, 0], [0, 1]])
    assert constant_accuracy(train, torch.tensor([[1.0, 1], [1, 0], [0, 0]])) == pytest.approx(
        1 / 3
    )


def test_classification_and_sequential_digits_name_the_most_frequent_class():
    data = load_images("digits", None)
    config = ClassificationConfig(data="digits", occlusion=2, validation=0.2)
    task = ClassificationTask(config, CPU)
    labels = data.train_labels[task.kept]
    found = task.baselines()
    assert set(found) == {"accuracy", "accuracy_last", "accuracy_occluded", "validation"}
    assert found["accuracy"] == pytest.approx(constant(labels, data.test_labels))
    assert found["validation"] == pytest.approx(constant(labels, data.train_labels[task.held_out]))
    assert sorted([*task.kept.tolist(), *task.held_out.tolist()]) == list(range(1437))
    assert (
        "validation"
        not in ClassificationTask(ClassificationConfig(data="digits", occlusion=2), CPU).baselines()
    )
    sequential = SequentialDigitsTask(
        SequentialDigitsConfig(data="digits", train_size=3, test_sizes=(4,)), CPU
    )
    found = sequential.baselines()
    assert set(found) == {"accuracy_3", "accuracy_4", "validation"}
    expected = constant(sequential.train[1], data.test_labels)
    assert found["accuracy_3"] == found["accuracy_4"] == pytest.approx(expected)


def test_stacked_digits_name_the_most_frequent_set_and_each_usual_bit():
    config = StackedDigitsConfig(
        data="digits", train_counts=(1, 5), train_frames=60, test_counts=(1, 2), test_frames=50
    )
    torch.manual_seed(3)
    task = StackedDigitsTask(config, CPU)
    found = task.baselines()
    train = torch.cat([bits for _, bits in task.train.values()])
    as_numbers = 2 ** np.arange(10)
    for count in (1, 2):
        bits = task.tests[count][1]
        expected = constant(train.numpy() @ as_numbers, bits.numpy() @ as_numbers)
        assert found[f"exact_{count}"] == pytest.approx(expected)
        each = [constant(train[:, k], bits[:, k]) for k in range(10)]
        assert found[f"label_{count}"] == pytest.approx(np.mean(each))
    assert found["exact_1"] > 0


@pytest.mark.parametrize(
    "words",
    [
        "classification --model resnet --width 2 --epochs 1 --occlusion 2",
        "sequential_digits --model gru --hidden-size 4 --embedding-size 3 --epochs 1 "
        "--train-size 3 --test-sizes 4",
        "stacked_digits --model cnn --width 2 --epochs 1 --train-frames 12 --validation-frames 4 "
        "--test-frames 10",
    ],
)
def test_a_result_and_its_report_hold_the_baseline(tmp_path, words, capsys):
    assert main([*words.split(), "--device", "cpu", "--out", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(result["baselines"]) <= set(result["mean"])
    assert result["baselines"]
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "report")]) == 0
    assert "baseline: nothing learned" in capsys.readouterr().out
