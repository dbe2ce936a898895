"""Published results for these tasks, as rows that stand beside runs with the same setting.

NFM: Lamb et al. 2021, tables 2 and 4 to 8; `±` as printed there. RIMs: Goyal et al. 2019, section
4.1. A row stands beside runs that have the options it names: the same data, model and sizes.
Other differences from the published setting are listed below the table.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rl_nfm.supervised.columns import Published

_NFM, _RIMS = "Lamb et al. 2021, table", "Goyal et al. 2019"


def _percent(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value / 100 for name, value in values.items()}


def _row(
    source: str,
    setting: Mapping[str, Any],
    mean: Mapping[str, float],
    deviation: Mapping[str, float] | None = None,
) -> Published:
    """A row whose values are given in %."""
    return Published(
        source=source,
        mean=_percent(mean),
        deviation=_percent(deviation or {}),
        **_with_nfm(setting),
    )


def _with_nfm(setting: Mapping[str, Any]) -> dict[str, Any]:
    """The setting; of NFM two passes unless it says otherwise, and never without sparsity."""
    if setting["model"] != "nfm":
        return {"setting": setting}
    return {"setting": {"nfm.passes": 2, **setting}, "never": {"nfm.top_k_mode": "dense"}}


def _classification() -> Iterator[Published]:
    table_2 = {
        ("cifar10", 18): ((96.27, 0.2), (96.56, 0.09)),
        ("cifar10", 34): ((96.79, 0.1), (97.05, 0.1)),
        ("cifar10", 50): ((97.31, 0.1), (97.58, 0.2)),
        ("cifar100", 18): ((78.15, 0.1), (78.66, 0.3)),
        ("cifar100", 34): ((80.13, 0.3), (80.77, 0.1)),
    }
    ablations = {
        "resnet": {"accuracy_occluded": 82.46},
        "nfm": {"accuracy_occluded": 84.11, "accuracy_random_attention": 88.5},
    }
    for (data, depth), pair in table_2.items():
        for model, (mean, deviation) in zip(("resnet", "nfm"), pair, strict=True):
            more = ablations[model] if (data, depth) == _ABLATED else {}
            yield _row(
                _NFM + " 2",
                {"model": model, "data": data, "depth": depth},
                {"accuracy": mean, **more},
                {"accuracy": deviation},
            )
    for sizes, mean in TABLE_8.items():
        names = ("nfm.heads", "nfm.top_k", "nfm.key_size", "nfm.value_size")
        setting = {"model": "nfm", "data": "cifar100", "depth": 34}
        setting |= dict(zip(names, sizes, strict=True))
        yield _row(_NFM + " 8", setting, {"accuracy": mean})


_ABLATED = ("cifar10", 18)
"""Data and depth of the tests with boxes and with random attention (section 4.2)."""
TABLE_8: Mapping[tuple[int, int, int, int], float] = {
    (2, 3, 8, 16): 80.37,
    (2, 3, 8, 32): 80.47,
    (2, 3, 8, 64): 80.41,
    (2, 4, 8, 16): 80.26,
    (2, 4, 8, 32): 80.77,
    (2, 4, 8, 64): 80.52,
    (4, 3, 16, 16): 80.31,
    (4, 3, 16, 32): 80.26,
    (4, 3, 16, 64): 80.27,
    (4, 3, 32, 32): 80.40,
    (4, 4, 16, 32): 80.55,
    (4, 4, 32, 64): 80.33,
}
"""Heads, top-k, d_k, d_v to accuracy on CIFAR-100 with PreActResNet34."""


def _stacked_digits() -> Iterator[Published]:
    table_5 = {
        (1, 3, "cnn"): (99.27, 76.7, 87.83, 62.57, 24.27),
        (1, 3, "nfm"): (99.23, 88.36, 87.78, 66.12, 29.48),
        (1, 5, "cnn"): (99.22, 74.69, 57.11, 75.90, 68.87),
        (1, 5, "nfm"): (99.16, 84.01, 66.58, 79.04, 71.76),
    }
    for (*counts, model), values in table_5.items():
        yield _row(
            _NFM + " 5",
            {"model": model, "data": "mnist", "train_counts": counts},
            {f"exact_{count}": value for count, value in enumerate(values, 1)},
        )


def _sort_of_clevr() -> Iterator[Published]:
    kinds = ("relational", "non_relational")
    table_6 = {
        "cnn": ((68.26, 71.78), (0.61, 9.3)),
        "nfm": ((74.95, 79.37), (1.58, 2.0)),
    }
    for model, (mean, deviation) in table_6.items():
        yield _row(
            _NFM + " 6",
            {"model": model, "held_out": 0},
            dict(zip(kinds, mean, strict=True)),
            dict(zip(kinds, deviation, strict=True)),
        )
    one_pass = {"model": "nfm", "held_out": 0, "nfm.passes": 1}
    yield _row(_NFM + " 6, one pass", one_pass, {kinds[0]: 73.07}, {kinds[0]: 1.17})
    table_7 = {
        1: {"cnn": (57.67, 57.0), "rn": (50.67, 48.0), "nfm": (54.67, 59.0)},
        2: {"cnn": (47.0, 54.33), "rn": (45.0, 43.33), "nfm": (46.0, 57.0)},
        3: {"cnn": (20.66, 42.33), "rn": (40.67, 46.0), "nfm": (38.33, 49.67)},
    }
    for held_out, models in table_7.items():
        for model, values in models.items():
            mean = {f"held_out/{kind}": value for kind, value in zip(kinds, values, strict=True)}
            yield _row(_NFM + " 7", {"model": model, "held_out": held_out}, mean)


def _copying() -> Iterator[Published]:
    length = {"train_blanks": 50, "test_blanks": 200}
    modules = {"model": "rim_lstm", "hidden_size": 600, "num_rims": 6, "num_active": 4}
    lstms = [
        ({"model": "lstm", "hidden_size": 300}, 4.32),
        ({"model": "lstm", "hidden_size": 600}, 3.56),
    ]
    for setting, value in [(modules, 0.0), *lstms]:
        mean = {"last10_ce_200": value}
        yield Published(source=_RIMS + ", section 4.1", setting={**setting, **length}, mean=mean)


def _sequential_digits() -> Iterator[Published]:
    modules = {"model": "rim_lstm", "hidden_size": 600, "num_rims": 6, "num_active": 4}
    rows = [
        (modules, (90.0, 73.4, 38.1)),
        ({"model": "lstm", "hidden_size": 300}, (86.8, 42.3, 25.2)),
    ]
    for setting, values in rows:
        names = ("accuracy_16", "accuracy_19", "accuracy_24")
        more = {"data": "mnist", "train_size": 14}
        mean: Mapping[str, float] = dict(zip(names, values, strict=True))
        yield _row(_RIMS + ", section 4.1", {**setting, **more}, mean)


def _language() -> Iterator[Published]:
    setting = {"model": "rim_lstm", "data": "wikitext2", "unit": "word", "hidden_size": 510}
    setting |= {"num_rims": 5, "num_active": 5}
    for layers, perplexity in ((1, 102.0), (2, 99.0)):
        yield Published(
            source="the RIMs repository, WikiText-2, about",
            setting={**setting, "num_layers": layers},
            mean={"perplexity_test": perplexity},
        )


def _gan() -> Iterator[Published]:
    """Table 4 on CIFAR-10; its second data set, ImageNet in 32x32, has no loader here."""
    rows = {"sngan": (16.77, 7.97), "infomax": (15.12, 8.08), "nfm": (13.15, 8.34)}
    for model, (fid, inception_score) in rows.items():
        yield Published(
            source=f"{_NFM} 4: FID {fid}, Inception score {inception_score}, in the features of "
            "Inception; feature_distance is no FID",
            mean={"fid": fid},
            **_with_nfm({"model": model, "data": "cifar10"}),
        )


CLASSIFICATION: Sequence[Published] = tuple(_classification())
STACKED_DIGITS: Sequence[Published] = tuple(_stacked_digits())
SORT_OF_CLEVR: Sequence[Published] = tuple(_sort_of_clevr())
COPYING: Sequence[Published] = tuple(_copying())
SEQUENTIAL_DIGITS: Sequence[Published] = tuple(_sequential_digits())
LANGUAGE: Sequence[Published] = tuple(_language())
GAN: Sequence[Published] = tuple(_gan())
