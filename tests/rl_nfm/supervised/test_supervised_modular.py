import csv
import json
import math

import pytest
import torch
from torch import nn, optim

from rl_nfm.modular import HierarchicallyModular, boolean_task
from rl_nfm.supervised.cli import main as supervised
from rl_nfm.supervised.data import modular_data
from rl_nfm.supervised.data.modular_data import BitRows, DigitRows, epoch_data, split_rows
from rl_nfm.supervised.loop.options import parse_config, plain
from rl_nfm.supervised.loop.seed_batch import OPTIMIZERS, SeedBatch, seed_generator
from rl_nfm.supervised.loop.trial import Trial
from rl_nfm.supervised.registry import task_entry
from rl_nfm.supervised.report.command import main as report
from rl_nfm.supervised.tasks import modular
from rl_nfm.supervised.tasks.modular import ModularTask, batch_losses, rate_factor
from rl_nfm.supervised.tasks.modular_config import PRESETS, ModularConfig
from rl_nfm.supervised.tasks.modular_models import MODELS
from rl_nfm.supervised.tasks.modular_report import format_table, label, labels, pooled
from rl_nfm.support.bare_flags import spell_out
from rl_nfm.support.configuration import validate

COMMON = (
    "--experiment generalization --num_tasks 1 --dataset_path ./datasets/generalization/ "
    "--result_path ./results/ --modularity 6 3 2 2 "
)
MLP = (
    "--model mlp --arch 6 36 36 36 2 --pruning_ratio 50.0 --learning_rate 0.1 --batch_size 8 "
    "--epochs 200 --seed 1"
)
OWN = (
    "--model hierarchically_modular --num_modules 3 2 --module_arch 2 12 1 --learning_rate 0.01 "
    "--learning_rate_module_input 0.1 --batch_size 8 --epochs 200 --seed 1"
)
SHARED = (
    "--model hierarchically_modular_shared_modules --num_shared_modules 2 --num_slots 3 2 "
    "--module_arch 2 12 1 --learning_rate 0.01 --learning_rate_module_input 0.1 "
    "--learning_rate_module_location 0.1 --batch_size 8 --epochs 200 --seed 1"
)
GUMBEL = " --use_gumbel --tau 1.0 --per_sample_routing"
PUBLISHED = {
    MLP: 2990,
    OWN: 271,
    OWN + " --known_module_input": 271,
    OWN + GUMBEL: 271,
    SHARED: 134,
    SHARED + GUMBEL: 134,
    SHARED + " --known_module_input --known_module_locations": 134,
}


CPU = torch.device("cpu")
main = task_entry("modular").main


def run(out, *flags):
    assert main(["--device", "cpu", "--out", str(out), *flags]) == 0
    return json.loads((out / "result.json").read_text())


@pytest.mark.parametrize("command", PUBLISHED, ids=range(len(PUBLISHED)))
def test_published_commands_run_as_printed(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    words = (COMMON + command).replace("--epochs 200", "--epochs 2").split()
    assert main(words) == 0
    (path,) = (tmp_path / "results").glob("*/result.json")
    result = json.loads(path.read_text())
    assert result["parameters"] == PUBLISHED[command]
    assert result["config"]["use_gumbel"] is ("--use_gumbel" in words)
    assert result["config"]["known_module_input"] is ("--known_module_input" in words)
    assert result["config"]["epochs"] == 2
    table = tmp_path / "datasets" / "generalization" / "6-3-2-2" / "task0.csv"
    lines = table.read_text().splitlines()
    assert len(lines) == 65
    assert lines[0] == "x0,x1,x2,x3,x4,x5,y0,y1"
    # 100110: f = 1, 0, 1: both outputs 0; 100100: f = 1, 1, 0 gives 1, 0
    assert "1,0,0,1,1,0,1,1" in lines  # f = 1, 1, 1
    assert "1,0,0,1,0,0,1,0" in lines


def test_flags_without_value_are_spelled_out_and_others_kept():
    words = ["--use_gumbel", "--tau", "1.0", "--known-module-input", "False", "--use_gumbel"]
    assert spell_out(words, ModularConfig) == [
        *["--use_gumbel", "True", "--tau", "1.0", "--known-module-input", "False"],
        *["--use_gumbel", "True"],
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--modularity 6 4 2 2", r"modularity: '6 4 2 2' has no task: .*allowed, for example: 6 2"),
        (
            "--model mlp --arch 7 36 2",
            r"arch: \(7, 36, 2\) does not match .*allowed: 6 first and 2",
        ),
        ("--model mlp --arch 6 36 3", r"allowed: 6 first and 2 last"),
        ("--model mlp --num_tasks 3", r"allowed: 9 first and 2 last"),
        ("--model mlp --pruning_ratio 100", r"pruning_ratio: 100.0 is not allowed \(allowed: 0 to"),
        ("--model mlp --pruning_ratio -1", r"pruning_ratio: -1.0 is not allowed"),
        ("--num_tasks 4", r"num_tasks: .*allowed: up to 3 with 6 3 2 2, else 1"),
        ("--module_arch 2 12 2", r"module_arch: \(2, 12, 2\) must end in 1"),
        ("--known_module_input --num_modules 2 2", r"num_modules: 2 at level 1 is too few"),
        ("--known_module_input --module_arch 3 5 1", r"must begin with 2"),
        ("--num_modules 3 1", r"the last level has 1 units, too few for 2 outputs"),
        ("--dataset_split 0.99", r"dataset_split: 0.99 of 64 rows leaves 63 to train on"),
        ("--model mlp --use_gumbel", r"use_gumbel: has no effect on model 'mlp'"),
        ("--known_module_locations", r"known_module_locations: has no effect on model"),
        ("--modularity 2 2 3 2 2 --img_module_arch 64 9 2", r"allowed: 64 first and 3 last"),
        ("--img_module_arch 64 9 3", r"img_module_arch: has no effect on bits"),
        ("--model hierarchical", r"model"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, flags, message):
    with pytest.raises(ValueError, match=message) as error:
        main([*flags.split(), "--out", str(tmp_path / "a")])
    if "hierarchical" not in flags:
        assert "\n" not in str(error.value)
    assert not (tmp_path / "a").exists()


def test_a_split_uses_every_row_once_and_is_equal_for_all_seeds():
    split = split_rows(64, 0.25, 40)
    parts = [split.train, split.validation, split.test]
    assert [len(part) for part in parts] == [16, 24, 24]
    assert sorted(torch.cat(parts).tolist()) == list(range(64))
    assert torch.equal(split.train, split_rows(64, 0.25, 40).train)
    assert not torch.equal(split.train, split_rows(64, 0.25, 41).train)


def test_an_epoch_holds_every_training_row_of_every_task_once():
    tasks = [boolean_task((6, 3, 2, 2), t) for t in range(3)]
    source = BitRows(tasks, noise=0.0)
    train = torch.tensor([5, 63, 17])
    data = epoch_data(source, train, 2, [0, 1], epoch=4)
    assert data.inputs.shape == (2, 18, 6)
    weights = torch.tensor([32.0, 16, 8, 4, 2, 1])
    for seed in range(2):
        rows = (data.inputs[seed] @ weights).long()
        found = sorted(zip(rows.tolist(), data.task_id[seed].tolist(), strict=True))
        assert found == sorted([(row, t) for row in (5, 17, 63) for t in range(3)] * 2)
        for x, y, t in zip(rows, data.labels[seed], data.task_id[seed], strict=True):
            assert torch.equal(y, tasks[t].truth_table()[1][x])
    assert not torch.equal(data.inputs[0], data.inputs[1])  # each seed has an order of its own
    again = epoch_data(source, train, 2, [1], epoch=4)
    assert torch.equal(again.inputs[0], data.inputs[1])  # and the same one alone


def test_noise_is_on_training_inputs_only_and_new_each_epoch():
    source = BitRows([boolean_task((6, 3, 2, 2))], noise=0.1)
    rows = torch.arange(64).repeat(50)
    inputs = source.draw(rows, seed_generator(0, 0))
    assert (inputs - source.bits[rows]).std().item() == pytest.approx(0.1, rel=0.02)
    assert not torch.equal(inputs, source.draw(rows, seed_generator(0, 1)))
    assert torch.equal(source.test_inputs(), source.bits)


def test_digit_images_are_those_of_the_row_and_split_by_image():
    source = DigitRows([boolean_task((2, 2, 3, 2, 2))], 0.0, "digits", None)
    assert source.digits[0].tolist() == [0, 0]
    assert source.digits[0b101011].tolist() == [5, 3]
    train = source.draw(torch.full((300,), 0b101011), seed_generator(0, 0))
    assert train.shape == (300, 2, 64)

    def rows(pixels):
        return {tuple((255 * p).round().int().tolist()) for p in pixels}

    starts = source.train_places.tolist()
    fives, threes = (rows(source.train_pixels[starts[d] : starts[d + 1]]) for d in (5, 3))
    assert rows(train[:, 0]) <= fives
    assert rows(train[:, 1]) <= threes
    assert len(rows(train[:, 0])) > 50
    test = source.test_inputs()
    assert test.shape == (64 * source.copies, 2, 64)
    place = source.test_places.tolist()
    row = test.view(64, source.copies, 2, 64)[0b101011]
    assert rows(row[:, 0]) <= rows(source.test_pixels[place[5] : place[6]])


def test_figures_by_hand():
    # a model that answers 0 always, whose bias is far below 0
    config = ModularConfig(model="mlp", trials=2, device="cpu", dataset_split=(0.25,))
    task = ModularTask(config, CPU)
    model = task.build_model()
    assert isinstance(model, SeedBatch)
    with torch.no_grad():
        for name in ("layers.3.weight", "layers.3.bias"):
            model.values[name].fill_(0.0 if "weight" in name else -9.0)
    labels = boolean_task((6, 3, 2, 2)).truth_table()[1]
    zeros = labels[task.split.test] == 0
    for row in task.figures(model.eval(), []):
        assert row["test_accuracy"] == pytest.approx(zeros.float().mean().item())
        assert row["test_accuracy"] == pytest.approx(task.baseline())
        assert row["test_output_1"] == pytest.approx(zeros[:, 1].float().mean().item())
        assert row["test_rows"] == pytest.approx(zeros.all(1).float().mean().item())
        # of all 64 rows, both outputs are 0 in 64 - 16 - 16 + 8 = 40
        assert row["all_rows"] == pytest.approx(40 / 64)
        assert row["per_row"] == (labels == 0).float().mean(1).tolist()
        assert "right_modules" not in row


def test_a_candidate_that_diverged_is_not_the_best():
    config = ModularConfig(trials=1, device="cpu", dataset_split=(0.25,), routing_candidates=3)
    task = ModularTask(config, CPU)
    model = task.build_model().eval()
    assert isinstance(model, SeedBatch)
    (before,) = task.figures(model, [])
    losses = task._train_losses(model)
    worst = int(losses.argmax())
    with torch.no_grad():
        for value in model.values.values():
            value[worst] = math.nan
    assert task.figures(model, []) == [before]


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"use_gumbel": True, "per_sample_routing": True},
        {"model": "hierarchically_modular_shared_modules", "routing_candidates": 3},
        {"routing_candidates": 4, "search_every_epochs": 1},
        {"model": "mlp", "pruning_ratio": 30.0},
    ],
)
def test_a_seed_is_the_same_alone_and_among_others(tmp_path, flags):
    def train(seed, trials):
        config = ModularConfig(
            seed=seed, trials=trials, epochs=4, batch_size=7, dataset_split=(0.25,), **flags
        )
        trial = Trial(ModularTask, config, CPU, tmp_path / f"{seed}", seed)
        trial.run()
        assert isinstance(trial.model, SeedBatch)
        return trial.model.values

    together, alone = train(5, 3), train(7, 1)
    for name, parameter in alone.items():
        count = len(parameter)
        torch.testing.assert_close(parameter, together[name][2 * count :], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "model", ["hierarchically_modular", "hierarchically_modular_shared_modules"]
)
def test_known_routing_learns_the_task_from_half_of_the_rows(tmp_path, model):
    flags = ["--model", model, "--known_module_input", "--trials", "2", "--dataset_split", "0.5"]
    if "shared" in model:
        flags += ["--known_module_locations"]
    flags += ["--epochs", "250", "--batch_size", "16", "--learning_rate", "0.03"]
    result = run(tmp_path / "a", *flags)
    assert result["splits"][0]["mean"]["all_rows"] == 1.0
    assert result["splits"][0]["mean"]["right_modules"] == 1.0


def test_a_killed_run_goes_on_to_the_same_result(tmp_path, monkeypatch):
    flags = [
        "--epochs",
        "8",
        "--eval_every_epochs",
        "2",
        "--trials",
        "2",
        "--dataset_split",
        "0.25",
        "0.5",
    ]
    flags += ["--use_gumbel", "--routing_candidates", "4", "--search_every_epochs", "3"]
    whole = run(tmp_path / "whole", *flags)
    save = Trial._save

    def save_and_die(self):
        save(self)
        if self.epoch == 4 and self.folder.name == "split0.5":
            raise KeyboardInterrupt

    monkeypatch.setattr(Trial, "_save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", *flags)
    monkeypatch.undo()
    assert main(["--resume", str(tmp_path / "broken")]) == 0
    resumed = json.loads((tmp_path / "broken" / "result.json").read_text())
    for one, two in zip(resumed["splits"], whole["splits"], strict=True):
        assert one["trials"] == two["trials"]


def test_each_purpose_draws_its_own_numbers(tmp_path, monkeypatch):
    taken = []

    def watched(seed, step):
        taken.append((seed, step))
        return seed_generator(seed, step)

    for module in (modular, modular_data):
        monkeypatch.setattr(module, "seed_generator", watched)
    flags = ["--epochs", "4", "--eval_every_epochs", "2", "--use_gumbel"]
    run(tmp_path / "a", *flags, "--routing_candidates", "4", "--search_every_epochs", "1")
    # per epoch: the order of examples, and the noise of each candidate; three redraws
    assert len(taken) == 4 * (1 + 4) + 3
    assert len(set(taken)) == len(taken)


def test_shares_of_rows_are_evaluated_one_at_a_time(tmp_path, capsys):
    trained = run(tmp_path / "a", "--epochs", "1", "--dataset_split", "0.25", "0.5")
    with pytest.raises(ValueError, match="trial: this run has 2 settings; choose one with --trial"):
        supervised(["evaluate", str(tmp_path / "a")])
    file = tmp_path / "b.json"
    words = ["evaluate", str(tmp_path / "a"), "--trial", "1", "--json", str(file)]
    assert supervised(words) == 0
    assert json.loads(file.read_text())["mean"] == trained["splits"][1]["mean"]


def test_a_later_share_that_does_not_fit_is_refused_before_the_first_is_trained(tmp_path):
    with pytest.raises(ValueError, match=r"dataset_split: 0.99 of 64 rows"):
        run(tmp_path / "a", "--epochs", "1", "--dataset_split", "0.25", "0.99")
    assert not (tmp_path / "a").exists()


def test_a_report_joins_runs(tmp_path):
    run(tmp_path / "a", "--model", "mlp", "--epochs", "1", "--trials", "2")
    run(tmp_path / "b", "--epochs", "1", "--dataset_split", "0.25", "0.5")
    files = [str(tmp_path / "b"), str(tmp_path / "a" / "result.json")]
    assert report([*files, "--out", str(tmp_path / "c")]) == 0
    lines = (tmp_path / "c" / "table.md").read_text().splitlines()
    assert len(lines) == 2 + 2 + 1
    assert lines[2].startswith("| modules, learned routing | 271 | 16 | 1 |")
    assert lines[4].startswith("| MLP | 2990 | 51 | 2 |")
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    for name in ("a", "b", "c"):
        picture = (tmp_path / name / "accuracy.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 10_000


def test_a_report_pools_the_seeds_of_runs_with_equal_settings(tmp_path):
    flags = ["--epochs", "1", "--dataset_split", "0.25", "0.5"]
    alone = [run(tmp_path / str(seed), *flags, "--seed", str(seed)) for seed in (3, 4)]
    other = run(tmp_path / "other", *flags, "--seed", "3", "--learning-rate", "0.5")
    files = [str(tmp_path / name) for name in ("4", "other", "3")]
    assert report([*files, "--out", str(tmp_path / "c")]) == 0
    table = (tmp_path / "c" / "table.md").read_text()
    assert table.count("| 271 | 16 | 2 |") == table.count("| 271 | 16 | 1 |") == 1
    together = pooled([alone[0], other, alone[1]])
    assert [trial["seed"] for trial in together[0]["splits"][1]["trials"]] == [3, 4]
    tests = [result["splits"][1]["mean"]["test_accuracy"] for result in alone]
    assert together[0]["splits"][1]["mean"]["test_accuracy"] == pytest.approx(sum(tests) / 2)
    with pytest.raises(ValueError, match="seed: 3 twice with equal settings"):
        pooled([alone[0], alone[0]])
    one = {**alone[0], "splits": alone[0]["splits"][1:]}  # as if trained with 0.5 alone
    with pytest.raises(ValueError, match="seed: 3 twice with equal settings"):
        pooled([alone[0], {**one, "config": {**one["config"], "dataset_split": [0.5]}}])
    resumed = {**one, "splits": [{**one["splits"][0], "learning_rates": "3 epochs, then 4"}]}
    assert len(pooled([alone[0], resumed])) == 2
    split = {**one["splits"][0], "data_digest": "aa"}
    read = {**one, "splits": [split], "config": {**one["config"], "data_folder": "x/mnist"}}
    elsewhere = {**read, "config": {**one["config"], "data_folder": "y/other"}}
    with pytest.raises(ValueError, match="seed: 3 twice with equal settings"):
        pooled([read, elsewhere])
    others = {**read, "splits": [{**split, "data_digest": "bb"}]}
    assert len(pooled([read, others])) == 2, "other images"
    assert len({*labels([read, others], [])}) == 2
    with (tmp_path / "c/runs.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if "learning_rate=0.5" not in row["model"]]
    of_half = [row for row in rows if "dataset_split=0.5" in row["model"]]
    assert [row["seed"] for row in of_half] == ["3", "4"]
    for result, row in zip(alone, of_half, strict=True):
        test = result["splits"][1]["trials"][0]["test_accuracy"]
        assert float(row["test_accuracy"]) == pytest.approx(test)


def test_runs_of_other_settings_have_other_labels():
    base = plain(PRESETS["small"])
    results = [
        {"config": base | {"learning_rate": rate, "dataset_split": [s]}, "splits": [{}]}
        for rate, s in RATES_AND_SHARES
    ]
    learned = "modules, learned routing"
    assert labels(results, []) == [
        f"{learned} (learning_rate=0.1)",
        f"{learned} (learning_rate=0.1)",
        f"{learned} (learning_rate=1)",
    ]
    assert labels(results[:2], []) == [learned, learned]


RATES_AND_SHARES = [(0.1, 0.5), (0.1, 0.8), (1, 0.5)]


def test_a_table_by_hand():
    trials = [
        {"test_accuracy": 0.5, "all_rows": 1.0, "right_modules": 1.0},
        {"test_accuracy": 1.0, "all_rows": 0.5, "right_modules": 0.5},
    ]
    mean = {"train_accuracy": 0.9, "test_accuracy": 0.75, "test_output_0": 0.7, "test_rows": 0.6}
    split = {"train_rows": 16, "baseline": 0.8, "mean": mean, "trials": trials}
    config = {"model": "hierarchically_modular", "known_module_input": True}
    config |= {"known_module_locations": False, "use_gumbel": True, "routing_candidates": 8}
    result = {"config": config, "parameters": 5, "splits": [split]}
    assert label(result) == "modules, known routing, Gumbel, search of 8"
    row = format_table([result]).splitlines()[2]
    assert row == (
        "| modules, known routing, Gumbel, search of 8 | 5 | 16 | 2 | 90.0 | 75.0 | 50.0 to 100.0 "
        "| 70.0 | 60.0 | 80.0 | 1/2 | 1/2 |"
    )


@pytest.mark.parametrize(
    "model", ["hierarchically_modular", "hierarchically_modular_shared_modules"]
)
@pytest.mark.parametrize("known", [False, True])
def test_digit_images_train(tmp_path, model, known):
    flags = ["--modularity", "2", "2", "3", "2", "2", "--model", model, "--epochs", "1"]
    if known:
        flags += ["--known_module_input"]
        flags += ["--known_module_locations"] if "shared" in model else []
    result = run(tmp_path / "a", *flags)
    mean = result["splits"][0]["mean"]
    assert 0 <= mean["test_accuracy"] <= 1
    assert "right_modules" not in mean
    if known:
        config = validate(ModularConfig, result["config"])
        net = MODELS[config.model].build(config, [boolean_task((2, 2, 3, 2, 2))], 64)
        assert isinstance(net, HierarchicallyModular)
        assert net.chosen_units()[0][0].flatten().tolist() == [0, 1]
        assert net.chosen_units()[1][0].T.tolist() == [[0, 3], [1, 4], [2, 5]]


def test_several_tasks_train_together(tmp_path):
    flags = ["--num_tasks", "3", "--epochs", "2", "--use_gumbel", "--per_sample_routing"]
    result = run(tmp_path / "a", *flags, "--num_modules", "6", "4")
    # routing of each task; modules for all: 10 * 49 + 3 (6 * 6 + 6 * 4 + 4)
    assert result["parameters"] == 10 * 49 + 3 * (36 + 24 + 4)
    assert math.isfinite(result["splits"][0]["mean"]["test_accuracy"])
    flags = ["--num_tasks", "3", "--epochs", "2", "--model", "mlp", "--arch", "9", "8", "2"]
    assert run(tmp_path / "b", *flags)["parameters"] == 9 * 8 + 8 + 8 * 2 + 2


@pytest.mark.parametrize(
    ("name", "published"),
    [("BCE", nn.BCELoss()), ("MSE", nn.MSELoss()), ("CE", nn.CrossEntropyLoss())],
)
def test_losses_are_those_of_pytorch_on_probabilities(name, published):
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 7, 2), (torch.rand(3, 7, 2) > 0.5).float()
    wanted = [published(one.sigmoid(), label) for one, label in zip(logits, labels, strict=True)]
    torch.testing.assert_close(batch_losses(name, logits, labels), torch.stack(wanted))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_seed_is_updated_as_alone(name):
    """Against one model of the published code's optimiser, over a falling step size."""
    x, rates = torch.randn(5, 3), {"weight": 0.05, "": 0.01}
    batch = SeedBatch(lambda: nn.Linear(3, 2), [3, 4])
    of_batch = batch.make_optimizer(name, rates, weight_decay=0.1)
    torch.manual_seed(4)
    alone = nn.Linear(3, 2)
    kinds = {"adam": optim.Adam, "sgd": optim.SGD, "momentum": optim.SGD, "rms": optim.RMSprop}
    more = {"momentum": 0.9, "nesterov": True} if name == "momentum" else {}
    groups = [{"params": alone.weight, "lr": 0.05}, {"params": alone.bias, "lr": 0.01}]
    optimizer = kinds[name](groups, weight_decay=0.1, **more)
    scheduler = optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
    for epoch in range(4):
        for group in of_batch.param_groups:
            group["lr"] = 0.9**epoch * group["initial_lr"]
        of_batch.zero_grad()
        batch(x.expand(2, 5, 3)).square().mean((1, 2)).sum().backward()
        of_batch.step()
        optimizer.zero_grad()
        alone(x).square().mean().backward()
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(batch.values["weight"][1], alone.weight)
    torch.testing.assert_close(batch.values["bias"][1], alone.bias)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_with_another_optimiser_goes_on_where_it_stopped(tmp_path, name):
    flags = ["--optimizer", name, "--gamma", "0.9", "--loss", "MSE", "--eval_every_epochs", "3"]
    flags += ["--epochs", "6", "--trials", "2", "--dataset_split", "0.5"]
    whole = run(tmp_path / "whole", *flags)
    parts = [*flags]
    parts[parts.index("6")] = "3"
    run(tmp_path / "parts", *parts)
    assert main(["--resume", str(tmp_path / "parts"), "--epochs", "6"]) == 0
    again = json.loads((tmp_path / "parts" / "result.json").read_text())
    assert again["splits"][0]["trials"] == whole["splits"][0]["trials"]
    states = [(tmp_path / d / "split0.5" / "checkpoint" / "model.safetensors").read_bytes()
              for d in ("whole", "parts")]  # fmt: skip
    assert states[0] == states[1]


def test_step_sizes_fall_as_asked_for():
    exponential = validate(ModularConfig, {"gamma": 0.5})
    assert [rate_factor(exponential, epoch) for epoch in range(3)] == [1, 0.5, 0.25]
    cosine = validate(ModularConfig, {"scheduler": "cosine", "epochs": 4})
    factors = [rate_factor(cosine, epoch) for epoch in range(5)]
    assert factors == pytest.approx([1, 0.853553, 0.5, 0.146447, 0], abs=1e-6)


@pytest.mark.parametrize("model", [OWN, SHARED])
def test_known_outputs_are_fixed_and_the_rest_is_learned(tmp_path, model):
    words = model.replace("--epochs 200", "--epochs 3").split()
    config = parse_config(
        spell_out([*words, "--known_func_outputs"], ModularConfig), task="modular", presets=PRESETS
    )
    net = MODELS[config.model].build(config, [boolean_task((6, 3, 2, 2))], 6)
    *learned, outputs = net.module_input_logits
    assert not outputs.requires_grad
    assert outputs.flatten().tolist() == pytest.approx([1.1, 1.0])  # the published table
    assert all(logits.requires_grad for logits in [*learned, *net.location_logits])
    run(tmp_path / "run", *words, "--known_func_outputs")
    with pytest.raises(ValueError, match="known_func_outputs: has no effect beside"):
        run(tmp_path / "both", *words, "--known_func_outputs", "--known_module_input")
    with pytest.raises(ValueError, match="gamma: has no effect"):
        run(tmp_path / "rate", *words, "--gamma", "0.5", "--scheduler", "cosine")


def test_presets_are_the_published_programs_defaults_and_its_readme_s_commands():
    """`main.py` and README.md of ShreyasMalakarjunPatil/modular-NNs at 1e76e9a, `boolean/`."""
    small, paper = PRESETS["small"], PRESETS["paper"]
    names = ("dataset_noise", "dataset_split", "tau", "weight_decay", "batch_size", "epochs")
    assert [getattr(small, name) for name in names] == [0.0, (0.8,), 1.0, 1e-4, 64, 1000]
    assert [getattr(paper, name) for name in names] == [0.1, (0.5,), 2.0, 1e-3, 64, 1000]
    rates = ("learning_rate", "learning_rate_module_input", "learning_rate_module_location")
    assert [getattr(paper, name) for name in rates] == [0.01, 0.1, 0.1]
