"""Neural Function Modules over lists of layers: algorithm 1 and every variant."""

import copy
import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rl_nfm.nfm import NFM_PRESETS, NeuralFunctionModule, NFMConfig, Places, record_attention
from rl_nfm.nfm.module import make_schedule

SMALL = {"key_size": 3, "value_size": 5, "heads": 2}


def make_layers(in_channels: int = 3, channels: tuple[int, ...] = (4, 6, 8)) -> list[nn.Module]:
    """Convolutions that halve the size, with something nonlinear before each but the first."""
    layers: list[nn.Module] = []
    for index, width in enumerate(channels):
        conv = nn.Conv2d(in_channels, width, 3, stride=2 if index else 1, padding=1)
        layers.append(nn.Sequential(nn.Tanh(), conv))
        in_channels = width
    return layers


def make_net(channels: tuple[int, ...] = (4, 6, 8), **options: Any) -> NeuralFunctionModule:
    torch.manual_seed(0)
    config = NFMConfig(**{**SMALL, **options})
    return NeuralFunctionModule(make_layers(channels=channels), channels=channels, config=config)


def open_gates(net: nn.Module) -> None:
    """Gammas away from 0, so that what is read matters."""
    for name, parameter in net.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.7)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# 1. gamma = 0


def test_at_the_start_the_network_is_its_last_pass_alone():
    net = make_net()
    x = torch.randn(2, 3, 13, 11)
    alone = nn.Sequential(*make_layers())
    alone.load_state_dict(net.passes[1].state_dict())
    expected = alone(x)
    assert torch.equal(net(x), expected)


def test_at_the_start_only_gamma_and_the_last_pass_get_gradients():
    net = make_net()
    net(torch.randn(2, 3, 13, 11)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        learns = name.endswith("gamma") or name.startswith("passes.1.")
        assert bool(parameter.grad.any()) == learns, name


@pytest.mark.parametrize(
    "options",
    [
        {"passes": 3},
        {"share_passes": True, "read_passes": "all"},
        {"write_places": (1,)},
        {"read_places": (0,)},
        {"kv_owner": "reader", "write_places": (0, 1)},
    ],
)
def test_no_parameter_is_without_a_gradient_path(options):
    net = make_net(**options)
    open_gates(net)
    net(torch.randn(2, 3, 13, 11)).square().sum().backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]


def test_reading_in_all_passes_wastes_only_the_last_read_of_earlier_ones():
    net = make_net(read_passes="all", passes=3)
    open_gates(net)
    net(torch.randn(2, 3, 13, 11)).square().sum().backward()
    without = {n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    # What place 2 reads in passes 0 and 1 goes nowhere: its own entry was written before.
    assert {name.rsplit(".", 1)[0][:15] for name in without} == {
        "places.places.2",
        "places.places.5",
    }
    assert not [name for name in without if "project" in name]


# 3. the null slot


def out_of_nothing(places: Places, x: Tensor) -> Tensor:
    """x + gamma * out(0), the output where nothing is read."""
    place = places.places[0]
    nothing = torch.zeros(x.shape[0], x.shape[2:].numel(), 2 * 5)
    return x + place.gamma * on_map(place.out(nothing, x.shape[2:]), x)


def on_map(rows: Tensor, x: Tensor) -> Tensor:
    """Rows [B, P, C] as a map of the shape of x [B, C, H, W]."""
    return rows.movedim(-1, 1).reshape(x.shape)


@pytest.mark.parametrize("case", ["no_keys_and_values", "real_slots_lose"])
def test_null_slot_reads_nothing(case):
    config = NFMConfig(**SMALL, passes=1)
    places = Places(config, channels=[4], ranks=[2])
    open_gates(places)
    x = torch.randn(2, 4, 3, 5)
    project = places.places[0].project
    with torch.no_grad():
        if case == "no_keys_and_values":
            project.weight[6:] = 0
            project.bias[6:] = 0
        else:  # query and key of opposite sign everywhere: score -3 * 100 / sqrt(3) in each head
            project.weight[:12] = 0
            project.bias[:6] = 10
            project.bias[6:12] = -10
    torch.testing.assert_close(places(x, [], pass_index=0, place=0), out_of_nothing(places, x))


# 4. one pass, one place


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_memory_of_itself_alone_is_a_gate(temperature):
    """With own entry and null only, a head reads sigmoid(q . k / (sqrt(d) temperature)) * v."""
    config = NFMConfig(**SMALL, passes=1, temperature=temperature)
    places = Places(config, channels=[4], ranks=[2])
    open_gates(places)
    place = places.places[0]
    x = torch.randn(2, 4, 3, 5)
    query, key, value = place.project(x.movedim(1, -1)).split([6, 6, 10], dim=-1)
    heads = [t.unflatten(-1, (2, -1)) for t in (query, key, value)]
    gate = ((heads[0] * heads[1]).sum(-1, keepdim=True) / 3**0.5 / temperature).sigmoid()
    read = (gate * heads[2]).flatten(-2).flatten(1, 2)
    expected = x + place.gamma * on_map(place.out(read, (3, 5)), x)
    torch.testing.assert_close(places(x, [], pass_index=0, place=0), expected)


# 5. symmetries


def visit_all(places: Places, states: list[Tensor], order: list[int]) -> Tensor:
    """Write states of a first pass in the given order, then read behind place 0 of the second."""
    memory: list = []
    for place in order:
        places(states[place], memory, pass_index=0, place=place)
    return places(states[0], memory, pass_index=1, place=0)


@pytest.mark.parametrize("mode", ["masked", "sab", "dense"])
def test_order_of_memory_does_not_matter(mode):
    config = NFMConfig(**SMALL, top_k=3, top_k_mode=mode)
    places = Places(config, channels=[4, 6, 8], ranks=[2] * 3)
    open_gates(places)
    states = [torch.randn(2, 4, 5, 6), torch.randn(2, 6, 3, 3), torch.randn(2, 8, 11, 12)]
    expected = visit_all(places, states, [0, 1, 2])
    for order in ([2, 1, 0], [1, 2, 0]):
        torch.testing.assert_close(visit_all(places, states, order), expected)


def test_batch_and_translation_equivariance():
    places = Places(NFMConfig(**SMALL, top_k=2), channels=[4, 4], ranks=[2, 2])
    open_gates(places)
    states = [torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6)]
    read = visit_all(places, states, [0, 1])
    turned = visit_all(places, [s.flip(0) for s in states], [0, 1])
    torch.testing.assert_close(turned.flip(0), read)
    moved = visit_all(places, [s.roll((1, 2), (2, 3)) for s in states], [0, 1])
    torch.testing.assert_close(moved.roll((-1, -2), (2, 3)), read)


@pytest.mark.parametrize(("kernel", "reach"), [(1, 0), (3, 2)])
def test_positions_do_not_see_one_another(kernel, reach):
    """A changed pixel changes its own position, or the 5x5 around it with two 3x3 maps."""
    torch.manual_seed(0)
    places = Places(NFMConfig(**SMALL, out_kernel=kernel), channels=[4, 4], ranks=[2, 2])
    open_gates(places)
    states = [torch.randn(1, 4, 9, 9), torch.randn(1, 4, 9, 9)]
    before = visit_all(places, states, [0, 1])
    changed = [s.clone() for s in states]
    for state in changed:
        state[:, :, 3, 5] += 1
    differs = (visit_all(places, changed, [0, 1]) != before).any(1)[0]
    expected = torch.zeros(9, 9, dtype=torch.bool)
    expected[3 - reach : 4 + reach, 5 - reach : 6 + reach] = True
    assert torch.equal(differs, expected)


# 7. parameter counts


@pytest.mark.parametrize(
    ("channels", "options", "expected"),
    [
        ([48, 96, 192, 384], {"passes": 2}, 4_638_344),
        ([24, 48, 96, 192], {"passes": 1}, 719_332),
        ([64, 128, 256, 512], {"passes": 2, "key_size": 32, "value_size": 32}, 9_226_760),
        (
            [256] * 4,
            {"passes": 2, "key_size": 32, "value_size": 32, "cat_input": True},
            12_594_184,
        ),
    ],
)
def test_published_parameter_counts(channels, options, expected):
    # Of each place: 2 (C dk h + dk h) + C dv h + dv h + 9 dv h C + C + 2C + 9 C^2 + C + 1.
    published = {"key_size": 16, "value_size": 16, "out_kernel": 3, "out_norm": "batch"}
    config = NFMConfig(**{**published, "read_passes": "all", **options})
    assert count(Places(config, channels=channels, ranks=[2] * 4)) == expected


def test_single_linear_output_costs_what_the_synbols_table_says():
    # dk h = 16, dv h = 64, one linear output: 29 368 on a PreActResNet of 12 planes.
    config = NFMConfig(passes=1, heads=1, key_size=16, value_size=64, out_layers=1)
    # of each: 2 (16 C + 16) + 64 C + 64 + 64 C + C + 1 = 161 C + 97; 180 * 161 + 4 * 97
    assert count(Places(config, channels=[12, 24, 48, 96], ranks=[2] * 4)) == 29_368


# Every variant

VARIANTS: list[dict[str, Any]] = [
    {"passes": 1},
    {"passes": 3},
    {"share_passes": True},
    {"share_passes": True, "read_passes": "all"},
    {"read_passes": "all"},
    {"read_places": (0, 2)},
    {"write_places": (1,)},
    {"read_places": (2,), "write_places": (0, 1), "passes": 1},
    {"top_k": 1},
    {"top_k": 50},
    {"top_k_mode": "sab"},
    {"top_k_mode": "sab_published"},
    {"top_k_mode": "dense"},
    {"temperature": 0.3},
    {"null_slot": False},
    {"null_slot": False, "passes": 1, "top_k": 1},
    {"rescale": "nearest"},
    {"kv_owner": "reader"},
    {"kv_owner": "reader", "share_passes": True},
    {"out_kernel": 3},
    {"out_layers": 1},
    {"out_layers": 1, "out_kernel": 3, "cat_input": True},
    {"out_norm": "batch"},
    {"out_norm": "group", "out_kernel": 3},
    {"cat_input": True},
    {"attention_dropout": 0.3},
    {"attention_dropout": 0.3, "top_k_mode": "sab"},
    {"random_attention": True},
]


def variant_name(options: dict[str, Any]) -> str:
    return "-".join(f"{key}={value}" for key, value in options.items())


@pytest.mark.parametrize("options", VARIANTS, ids=variant_name)
def test_variant_builds_runs_and_differentiates(options):
    net = make_net(**options)
    open_gates(net)
    x = torch.randn(2, 3, 13, 11, requires_grad=True)
    y = net(x)
    assert y.shape == (2, 8, 4, 3)
    y.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    assert all(grad.isfinite().all() for grad in grads)
    if "attention_dropout" in options:
        assert not torch.equal(net(x), y)
    if "random_attention" not in options:
        net.eval()
        assert torch.equal(net(x), net(x))


SMOOTH = [v for v in VARIANTS if not {"attention_dropout", "random_attention"} & v.keys()]


@pytest.mark.parametrize("options", SMOOTH, ids=variant_name)
def test_variant_gradients_against_finite_differences(options):
    net = make_net(channels=(2, 3, 2), **options).double()
    open_gates(net)
    with torch.no_grad():  # passes that start with equal weights write equal entries: ties
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    weigh = torch.randn(2, 2, 2, 2, dtype=torch.float64)
    parameters = list(net.parameters())
    start = [parameter.detach().clone() for parameter in parameters]
    gradients = torch.autograd.grad((net(x) * weigh).sum(), parameters, allow_unused=True)
    for _ in range(3):
        along = [torch.randn_like(parameter) for parameter in parameters]

        def value(step: float, along: list[Tensor] = along) -> float:
            with torch.no_grad():
                for parameter, s, d in zip(parameters, start, along, strict=True):
                    parameter.copy_(s + step * d)
                return (net(x) * weigh).sum().item()

        slope = (value(1e-7) - value(-1e-7)) / 2e-7
        pairs = zip(gradients, along, strict=True)
        expected = sum((g * d).sum().item() for g, d in pairs if g is not None)
        assert slope == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("preset", sorted(NFM_PRESETS))
def test_presets_run(preset):
    torch.manual_seed(0)
    net = NeuralFunctionModule(make_layers(), channels=(4, 6, 8), config=NFM_PRESETS[preset])
    open_gates(net)
    assert net(torch.randn(2, 3, 13, 11)).isfinite().all()


def test_official_preset_is_the_published_code():
    official = NFM_PRESETS["official"]
    assert (official.passes, official.read_passes, official.top_k) == (2, "last", 3)
    assert (official.rescale, official.out_kernel, official.out_norm) == ("nearest", 3, "batch")
    assert official.null_slot
    gan = NFM_PRESETS["official_gan"]
    assert (gan.null_slot, gan.cat_input, gan.attention_dropout) == (False, True, 0.1)


# The published code, derived again with explicit loops, against the preset `official`.


def test_official_preset_equals_its_description():
    torch.manual_seed(0)
    config = NFM_PRESETS["official"]
    channels, sizes = [4, 6], [(5, 7), (3, 4)]
    places = Places(config, channels=channels, ranks=[2, 2]).eval()
    open_gates(places)
    states = [
        [torch.randn(1, c, *size) for c, size in zip(channels, sizes, strict=True)]
        for _ in range(2)
    ]
    memory: list = []
    keys, values = [], []
    size = config.heads * config.key_size
    for p, i in itertools.product(range(2), range(2)):
        x, place = states[p][i], places.places[2 * p + i]
        actual = places(x, memory, pass_index=p, place=i)
        parts = place.project(x.movedim(1, -1)).movedim(-1, 1)  # queries, keys, values
        keys.append(parts[:, -2 * size : -size])
        values.append(parts[:, -size:])
        if p == 0:
            assert torch.equal(actual, x)
            continue
        query = parts[:, :size].unflatten(1, (4, 32))
        target = x.shape[2:]
        slots = [
            [F.interpolate(t, target, mode="nearest").unflatten(1, (4, 32)) for t in stored]
            for stored in (keys, values)
        ]
        read = torch.zeros(1, 4, 32, *target)
        for head, row, column in itertools.product(range(4), range(target[0]), range(target[1])):
            at = (0, head, slice(None), row, column)
            scores = [(query[at] @ k[at]).item() / 32**0.5 for k in slots[0]] + [0.0]
            w = torch.tensor(scores).softmax(0)
            if len(w) > 4:
                border = w.sort(descending=True).values[3] + 1e-7
                w = (w - border).clamp(min=0)
                w = w / (w.sum() + 1e-7)
            read[at] = sum(a * v[at] for a, v in zip(w, slots[1], strict=False))
        rows = read.flatten(1, 2).flatten(2).movedim(1, -1)
        expected = x + 0.7 * on_map(place.out(rows, target), x)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_one_shared_memory_spans_passes():
    """Reading in all passes, the second pass sees the first: changing its weights matters."""
    net = make_net()
    open_gates(net)
    x = torch.randn(2, 3, 13, 11)
    before = net(x)
    with torch.no_grad():
        net.passes[0][2][1].bias.add_(1.0)
    assert not torch.allclose(net(x), before)


def test_random_attention_only_outside_training():
    net = make_net(random_attention=True)
    plain = make_net()
    for one in (net, plain):
        open_gates(one)
    plain.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 13, 11)
    assert torch.equal(net(x), plain(x))
    net.eval()
    assert not torch.allclose(net(x), plain(x))
    assert not torch.allclose(net(x), net(x))


def test_random_attention_leaves_padding_alone():
    """Of 13x11 pixels, read at 4x3 positions, a window holds four columns or five."""
    net = make_net(random_attention=True, top_k_mode="dense")
    x = torch.randn(2, 3, 13, 11)
    unread = []
    for training in (True, False):
        with record_attention(net.train(training)) as record:
            net(x)
        unread.append(record.readers[1, 2].weights == 0)
    assert unread[0].any()
    assert torch.equal(*unread)


def test_copies_own_their_memory():
    net = make_net()
    open_gates(net)
    x = torch.randn(2, 3, 13, 11)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    assert not torch.allclose(net(x), twin(x))
    twin.load_state_dict(net.state_dict())
    assert torch.equal(net(x), twin(x))


def test_lists_of_layers_for_each_pass():
    config = NFMConfig(**SMALL)
    lists = [make_layers(), make_layers()]
    net = NeuralFunctionModule(lists, channels=(4, 6, 8), config=config)
    assert net.passes[1][0] is lists[1][0]
    with pytest.raises(ValueError, match="1 lists of layers, but 2"):
        NeuralFunctionModule(lists[:1], channels=(4, 6, 8), config=config)
    with pytest.raises(ValueError, match="2 numbers for 3 layers"):
        NeuralFunctionModule(make_layers(), channels=(4, 6), config=config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k"),
        ({"passes": 0}, "passes"),
        ({"heads": -1}, "heads"),
        ({"key_size": 0}, "key_size"),
        ({"temperature": 0.0}, "temperature"),
        ({"attention_dropout": 1.0}, "attention_dropout"),
        ({"top_k_mode": "soft"}, "top_k_mode"),
        ({"out_kernel": 2}, "out_kernel"),
        ({"read_places": (3,)}, r"read_places: 3 is no place .*0 to 2"),
        ({"write_places": ()}, r"write_places: \(\)"),
        ({"write_places": (2,), "passes": 1}, "write_places: .* before place 0 reads"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_net(**options)


@pytest.mark.parametrize(
    ("layers", "rank", "shape", "given"),
    [
        ([nn.Conv2d(3, 8, 3), nn.Conv2d(8, 9, 3)], 2, (2, 3, 9, 9), r"place 1 gave \(2, 9, 5, 5\)"),
        ([nn.Linear(3, 8), nn.Linear(8, 8)], 2, (2, 3), r"place 0 gave \(2, 8\), not 8 channels"),
        ([nn.Linear(3, 8), nn.Linear(8, 8)], 0, (3,), r"place 0 gave \(8,\)"),
    ],
)
def test_an_output_of_another_shape_than_said_is_refused(layers, rank, shape, given):
    net = NeuralFunctionModule(layers, channels=[8, 8], rank=rank)
    with pytest.raises(ValueError, match=given):
        net(torch.zeros(shape))


def test_sizes_of_zero_are_refused():
    with pytest.raises(ValueError, match=r"place 1 gave .*size of zero"):
        Places(NFMConfig(), channels=[4, 6], ranks=[2, 2])(
            torch.zeros(2, 6, 0, 5), [], pass_index=0, place=1
        )
    with pytest.raises(ValueError, match="channels"):
        Places(NFMConfig(), channels=[4, 0], ranks=[2, 2])


def test_passes_may_write_behind_places_of_their_own():
    """As the authors' ResNet: stages 2 to 4 in the first pass, all four in the second."""
    config = NFMConfig(early_write_places=(1, 2, 3))
    schedule = make_schedule(config, 4)
    assert [visit.writes for visit in schedule] == [False, *[True] * 7]
    assert [visit.reads for visit in schedule] == [False] * 4 + [True] * 4
    config = NFMConfig(early_write_places=(2,), write_places=(0, 1), passes=3, read_passes="all")
    with pytest.raises(ValueError, match="writes nothing before place 0 reads"):
        make_schedule(config, 4)
    config = dataclasses.replace(config, read_passes="last")
    wanted = [False, False, True, False] * 2 + [True, True, False, False]
    assert [visit.writes for visit in make_schedule(config, 4)] == wanted
    with pytest.raises(ValueError, match=r"early_write_places: .* single pass"):
        make_schedule(NFMConfig(passes=1, early_write_places=(1,)), 4)
    with pytest.raises(ValueError, match=r"early_write_places: 9"):
        make_schedule(NFMConfig(early_write_places=(9,)), 4)


def test_a_module_list_for_each_pass_is_a_list():
    lists = [nn.ModuleList([nn.Linear(3, 3)]) for _ in range(2)]
    net = NeuralFunctionModule(lists, channels=[3], rank=0)
    assert [len(one) for one in net.passes] == [1, 1]
    assert net(torch.randn(2, 3)).shape == (2, 3)


def test_a_layer_that_returns_no_tensor_is_named():
    net = NeuralFunctionModule([nn.LSTM(3, 3)], channels=[3], rank=1)
    with pytest.raises(ValueError, match="place 0 gave tuple, not one tensor"):
        net(torch.randn(2, 5, 3))
