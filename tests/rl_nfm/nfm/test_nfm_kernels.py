"""The fused CPU kernels against the plain path, their oracle."""

import math
import pickle

import pytest
import torch
from torch import Tensor
from torch.nn.utils import prune

from rl_nfm.encoders import make_encoder
from rl_nfm.nfm import NeuralFunctionModule, NFMConfig, NFMWrapper, attention, kernels, places
from rl_nfm.nfm.call import Options
from rl_nfm.nfm.kernel_call import run_forward
from rl_nfm.nfm.places import Place
from rl_nfm.nfm.rescale import Grid
from rl_nfm.support import cpp

pytestmark = pytest.mark.skipif(not kernels.available(), reason="no C++ compiler")

SOURCES = [(5, 7), (3, 2), (11, 13), (1, 1), (6, 3)]
TARGET = (5, 7)
HEADS = 3


def make(
    sizes: tuple[int, ...], width: int, dtype: torch.dtype, *, batch: int = 2, packed: bool = True
) -> Tensor:
    """A leaf [B, P, HEADS * width], or a strided view as a split of channels gives it."""
    channels, positions = HEADS * width, math.prod(sizes)
    x = torch.randn(batch, positions, channels if packed else 3 * channels).to(dtype)
    return (x if packed else x[..., channels : 2 * channels]).detach().requires_grad_()


def attend(query, keys, values, grid: Grid, k: int, *, fused: bool, null_slot: bool = True):
    """What the heads read."""
    if fused:
        options = {"heads": HEADS, "scale": 0.3, "top_k": k, "null_slot": null_slot}
        return kernels.attend(query, keys, values, grid, **options)[0]
    scores = attention.slot_scores(query, keys, grid, HEADS, 0.3, null_slot)
    return attention.mix_values(attention.masked_top_k(scores, k), values, grid)


def run(query, keys, values, grid: Grid, k: int, *, fused: bool, **options) -> list[Tensor]:
    """What is read, and the gradients of all inputs."""
    read = attend(query, keys, values, grid, k, fused=fused, **options)
    torch.manual_seed(7)
    loss = (read.double() * torch.randn(read.shape).double()).sum()
    return [read, *torch.autograd.grad(loss, [query, *keys, *values])]


@pytest.mark.parametrize("mode", ["space_to_depth", "nearest"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("key_size", "value_size"), [(32, 32), (16, 16), (8, 8), (8, 16), (4, 7), (32, 16), (3, 1)]
)
@pytest.mark.parametrize("packed", [True, False])
def test_kernels_equal_the_plain_path(mode, dtype, key_size, value_size, packed):
    torch.manual_seed(0)
    query = make(TARGET, key_size, dtype, packed=packed)
    keys = [make(s, key_size, dtype, packed=packed) for s in SOURCES]
    values = [make(s, value_size, dtype, packed=packed) for s in SOURCES]
    grid = Grid.of(TARGET, SOURCES, mode)
    plain = run(query, keys, values, grid, 4, fused=False)
    fused = run(query, keys, values, grid, 4, fused=True)
    rounding = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    for expected, actual in zip(plain, fused, strict=True):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_once_for_all_readers(dtype):
    """Computed in float32; results and gradients are rounded once, whatever the readers."""
    torch.manual_seed(0)
    grid = Grid.of(TARGET, SOURCES, "space_to_depth")
    options = {"heads": HEADS, "scale": 0.3, "top_k": 4, "null_slot": True}
    query = make(TARGET, 8, dtype, packed=False)
    memory = [make(s, 8, dtype, packed=False) for s in (*SOURCES, *SOURCES)]
    found = []
    for tensors in ((query, *memory), [x.float() for x in (query, *memory)]):
        inputs = [x.detach().requires_grad_() for x in tensors]
        split, total = 1 + len(SOURCES), torch.zeros(())
        keys, values = inputs[1:split], inputs[split:]
        for _ in range(3):
            read, keys, values = kernels.attend(inputs[0], keys, values, grid, **options)
            assert read.dtype == inputs[0].dtype
            assert {x.dtype for x in (*keys, *values)} == {torch.float32}
            total = total + read.float().sum()
        found.append([read, *torch.autograd.grad(total, inputs)])
    halves, full = found
    for half, expected in zip(halves[:1] + halves[2:], full[:1] + full[2:], strict=True):
        assert torch.equal(half, expected.to(dtype))
    # The query's gradient comes back from each reader by itself.
    torch.testing.assert_close(halves[1].float(), full[1], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("heads", [1, 4, 5, 11])
@pytest.mark.parametrize("k", [3, 4, 5])
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_any_number_of_heads(heads, k, dtype, rounding):
    """They are ranked several at a time: also where some of these places have no head."""
    torch.manual_seed(heads)
    query, keys, value = (torch.randn(2, 35, heads * 8, dtype=dtype) for _ in range(3))
    grid = Grid.of(TARGET, [TARGET], "space_to_depth")
    wide = Grid.of((1, 1), [TARGET], "space_to_depth")
    for one, rows in ((grid, query), (wide, query[:, :1])):
        scores = attention.slot_scores(rows, [keys], one, heads, 0.3, True)
        plain = attention.mix_values(attention.masked_top_k(scores, k), [value], one)
        options = {"heads": heads, "scale": 0.3, "top_k": k, "null_slot": True}
        fused, *_ = kernels.attend(rows, [keys], [value], one, **options)
        torch.testing.assert_close(fused, plain, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("spread", [1, 30, 88, 300])
def test_weights_of_scores_far_apart(spread):
    """The kernels' own exponential against float64, down to weights that vanish."""
    torch.manual_seed(spread)
    scores = torch.randn(500, 3) * spread
    query = torch.ones(1, 500, 1)
    layers = [column.contiguous().view(1, 500, 1) for column in scores.T]
    grid = Grid.of((500,), [(500,)] * 3, "nearest")
    options = Options.of(grid, heads=1, scale=1.0, top_k=4, null_slot=True)
    _, weights, _ = run_forward(query, layers, layers, options)
    every = torch.cat([scores, torch.zeros(500, 1)], dim=1).double()
    exact = torch.softmax(every, dim=1).sort(dim=1, descending=True).values
    torch.testing.assert_close(weights[0, :, 0].double(), exact, rtol=2e-5, atol=1e-37)


@pytest.mark.parametrize("sizes", [[(4,), (9,), (2,)], [(2, 3, 2), (3, 2, 5), (1, 4, 2)]])
def test_one_and_three_dimensions(sizes):
    torch.manual_seed(0)
    query = make(sizes[0], 4, torch.float32)
    keys = [make(s, 4, torch.float32) for s in sizes]
    values = [make(s, 4, torch.float32) for s in sizes]
    grid = Grid.of(sizes[0], sizes, "space_to_depth")
    plain = run(query, keys, values, grid, 3, fused=False)
    fused = run(query, keys, values, grid, 3, fused=True)
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 4, 9, 100])
@pytest.mark.parametrize("null_slot", [True, False])
def test_any_k_with_and_without_null_slot(k, null_slot):
    torch.manual_seed(k)
    sources = [(2, 2), (5, 3), (3, 3)]
    query = make((2, 2), 4, torch.float64, batch=3)
    keys = [make(s, 4, torch.float64, batch=3) for s in sources]
    values = [make(s, 5, torch.float64, batch=3) for s in sources]
    grid = Grid.of((2, 2), sources, "space_to_depth")
    plain = run(query, keys, values, grid, k, fused=False, null_slot=null_slot)
    fused = run(query, keys, values, grid, k, fused=True, null_slot=null_slot)
    torch.testing.assert_close(fused, plain, rtol=1e-9, atol=1e-12)


def test_readers_in_turn_add_to_one_gradient():
    torch.manual_seed(0)
    sources = [TARGET, (3, 2), (6, 4)]
    queries = [make(TARGET, 4, torch.float64) for _ in range(3)]
    keys = [make(s, 4, torch.float64) for s in sources]
    values = [make(s, 4, torch.float64) for s in sources]
    options = {"heads": HEADS, "scale": 0.3, "top_k": 4, "null_slot": True}
    results = []
    for fused in (True, False):
        handed_keys, handed_values, reads = keys, values, []
        for query, count in zip(queries, (2, 3, 3), strict=True):  # one layer is written between
            grid = Grid.of(TARGET, sources[:count], "space_to_depth")
            memory = [*handed_keys[:count]], [*handed_values[:count]]
            if fused:
                read, *handed = kernels.attend(query, *memory, grid, **options)
                handed_keys = [*handed[0], *keys[count:]]
                handed_values = [*handed[1], *values[count:]]
            else:
                read = attend(query, *memory, grid, 4, fused=False)
            reads.append(read)
        loss = sum((n + 1) * read.square().sum() for n, read in enumerate(reads))
        assert isinstance(loss, Tensor)
        inputs = [*queries, *keys, *values]
        first = torch.autograd.grad(loss, inputs, retain_graph=True)
        again = torch.autograd.grad(loss, inputs)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        results.append(first)
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)


def test_a_reader_without_gradients_leaves_the_memory_to_later_ones():
    torch.manual_seed(0)
    keys = [make(TARGET, 4, torch.float64)]
    values = [make(TARGET, 4, torch.float64)]
    query, grid = make(TARGET, 4, torch.float64), Grid.of(TARGET, [TARGET], "nearest")
    options = {"heads": HEADS, "scale": 0.3, "top_k": 1, "null_slot": True}
    with torch.no_grad():
        _, *handed = kernels.attend(query, keys, values, grid, **options)
    kernels.attend(query, *handed, grid, **options)[0].square().sum().backward()
    assert keys[0].grad is not None
    assert values[0].grad is not None
    assert values[0].grad.any()


def test_second_derivatives():
    torch.manual_seed(2)
    sources = ((2, 2), (3, 4))
    grid = Grid.of((2, 2), sources, "space_to_depth")
    query = make((2, 2), 2, torch.float64, batch=1)
    memory = [make(s, 2, torch.float64, batch=1) for s in sources * 2]
    options = {"heads": HEADS, "scale": 0.7, "top_k": 2, "null_slot": True}

    def two_readers(query: Tensor, *memory: Tensor) -> Tensor:
        read, *handed = kernels.attend(query, memory[:2], memory[2:], grid, **options)
        return read + 2 * kernels.attend(query, *handed, grid, **options)[0]

    assert torch.autograd.gradgradcheck(two_readers, (query, *memory))


def test_nan_is_passed_on():
    query = make(TARGET, 4, torch.float32).detach()
    keys, values = [make(TARGET, 4, torch.float32).detach() for _ in range(2)]
    query[0, 3, :4] = math.nan  # one head of one position
    keys[1, 5, -4:] = math.nan  # the last head of the position that reads it
    grid = Grid.of(TARGET, [TARGET], "nearest")
    options = {"heads": HEADS, "scale": 1.0, "top_k": 2, "null_slot": True}
    read, *_ = kernels.attend(query, [keys], [values], grid, **options)
    expected = torch.zeros_like(read, dtype=torch.bool)
    expected[0, 3, :4] = True
    expected[1, 5, -4:] = True
    assert torch.equal(read.isnan(), expected)


@pytest.mark.parametrize("wrong", ["type", "batch", "positions", "width", "heads"])
def test_tensors_that_do_not_fit_are_refused(wrong):
    query, key = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    value, heads = torch.randn(2, 4, 3), 3
    match wrong:
        case "type":
            key = key.bfloat16()
        case "batch":
            value = value[:1]
        case "positions":
            key = key[:, :2]
        case "width":
            key = key[..., :3]
        case "heads":
            heads = 2
    grid = Grid.of((2, 2), [(2, 2)], "nearest")
    options = {"heads": heads, "scale": 1.0, "top_k": 2, "null_slot": True}
    with pytest.raises(ValueError, match="do not fit each other"):
        kernels.attend(query, [key], [value], grid, **options)


def make_mlp_with_nfm() -> NFMWrapper:
    torch.manual_seed(0)
    mlp = torch.nn.Sequential(*(torch.nn.Linear(6, 6) for _ in range(4)))
    net = NFMWrapper(mlp, ["0", "1", "2"], example=torch.rand(1, 6))
    for place in net.places.places:
        if hasattr(place, "gamma"):
            torch.nn.init.ones_(place.gamma)
    return net


def test_layers_of_other_precisions_fall_back_to_the_plain_path():
    net = make_mlp_with_nfm()
    forward = net.passes[1][1].forward

    def in_full_precision(x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return forward(x.float())

    net.passes[1][1].forward = in_full_precision
    x, results = torch.randn(5, 6), []
    for use in (True, False):
        for place in net.places.places:
            place.use_kernels = use
        with torch.autocast("cpu", torch.bfloat16):
            results.append(net(x).float())
    results[0].sum().backward()
    torch.testing.assert_close(*results, rtol=3e-2, atol=3e-2)


def test_a_projection_with_hooks_is_called():
    net = make_mlp_with_nfm()
    place = net.places.places[0]
    prune.l1_unstructured(place.project, "weight", amount=0.5)
    for _ in range(2):  # the second fails if the weight is that of the first graph
        net(torch.randn(3, 6)).sum().backward()


def test_pickled_where_there_is_a_compiler_and_used_where_there_is_none(monkeypatch):
    net = make_mlp_with_nfm()
    x, data = torch.randn(3, 6), pickle.dumps(net)
    monkeypatch.setattr(kernels, "library", lambda _source: None)
    for place in net.places.places:
        place.use_kernels = False
    assert torch.equal(pickle.loads(data)(x), net(x))


def test_a_network_is_made_without_building_the_kernels(monkeypatch):
    """It may be on its way to a GPU, where a run would wait a minute for what it never uses."""
    asked = []
    library = kernels.library
    monkeypatch.setattr(kernels, "library", lambda source: asked.append(source) or library(source))
    net = make_mlp_with_nfm()
    assert not kernels.available(torch.device("cuda"))
    assert not asked
    net(torch.randn(3, 6))
    assert asked


def test_a_reader_whose_result_is_unused_passes_gradients_on():
    keys = [torch.randn(1, 4, HEADS * 2, requires_grad=True)]
    query, grid = torch.randn(1, 4, HEADS * 2), Grid.of((2, 2), [(2, 2)], "nearest")
    options = {"heads": HEADS, "scale": 0.3, "top_k": 2, "null_slot": True}
    _, handed, values = kernels.attend(query, keys, [k.clone() for k in keys], grid, **options)
    (2 * handed[0] + values[0]).sum().backward()
    assert keys[0].grad is not None
    torch.testing.assert_close(keys[0].grad, torch.full_like(keys[0], 3.0))


def test_ties_keep_the_first():
    scores = [1.0, 2.0, 2.0, 1.0, 2.0, 1.0]
    keys = [torch.full((1, 1, 1), score) for score in scores]
    values = list(torch.eye(6).view(6, 1, 1, 6))
    grid = Grid.of((1,), [(1,)] * 6, "nearest")
    options = {"heads": 1, "scale": 1.0, "top_k": 4, "null_slot": False}
    read, *_ = kernels.attend(torch.ones(1, 1, 1), keys, values, grid, **options)
    # softmax of 2, 2, 2 and the first 1: 1 / (3 + exp(-1)) and exp(-1) / (3 + exp(-1))
    high, low = 0.296923, 0.109232
    expected = torch.tensor([low, high, high, 0.0, high, 0.0])
    torch.testing.assert_close(read.flatten(), expected, atol=1e-6, rtol=0)


def test_gradients_against_finite_differences():
    torch.manual_seed(1)
    sources = ((2, 3), (3, 5), (1, 2))
    grid = Grid.of((2, 3), sources, "space_to_depth")
    query = make((2, 3), 2, torch.float64, batch=1)
    keys = [make(s, 2, torch.float64, batch=1) for s in sources]
    values = [make(s, 3, torch.float64, batch=1) for s in sources]

    def read(query: Tensor, *memory: Tensor) -> Tensor:
        return attend(query, memory[:3], memory[3:], grid, 3, fused=True)

    assert torch.autograd.gradcheck(read, (query, *keys, *values))


def test_operators_are_well_formed():
    query = make((2, 3), 2, torch.float32)
    keys = [make(s, 2, torch.float32) for s in ((2, 3), (3, 5))]
    values = [make(s, 4, torch.float32) for s in ((2, 3), (3, 5))]
    sizes = [2, 3, 2, 3, 3, 5]
    options = (sizes, "space_to_depth", HEADS, 0.3, 4, True)
    torch.library.opcheck(torch.ops.rl_nfm.attend, (query, keys, values, *options))


def test_results_do_not_depend_on_threads():
    torch.manual_seed(0)
    query = make(TARGET, 8, torch.float32, batch=5)
    keys = [make(s, 8, torch.float32, batch=5) for s in SOURCES]
    values = [make(s, 8, torch.float32, batch=5) for s in SOURCES]
    grid = Grid.of(TARGET, SOURCES, "space_to_depth")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(run(query, keys, values, grid, 3, fused=True))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kv_owner", "mode", "most"),
    [("source", "masked", 128), ("reader", "masked", 128), ("source", "dense", 128),
     ("source", "dense", 6)],
)  # fmt: skip
def test_network_is_the_same_without_kernels(dtype, kv_owner, mode, most, monkeypatch):
    monkeypatch.setattr(places, "MOST_DENSE_SLOTS", most)
    torch.manual_seed(0)
    convs = [
        [torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 12, 3, stride=2)] for _ in range(2)
    ]
    config = NFMConfig(key_size=4, value_size=4, kv_owner=kv_owner, top_k_mode=mode)
    net = NeuralFunctionModule(convs, channels=(8, 12), config=config)
    for place in net.places.places:
        if place.parts[0]:
            torch.nn.init.ones_(place.gamma)
    x = torch.randn(2, 3, 9, 10)
    results, attended, attend = [], [], kernels.attend
    monkeypatch.setattr(kernels, "attend", lambda *a, **o: attended.append(1) or attend(*a, **o))
    for use in (True, False):
        attended.clear()
        for place in net.places.places:
            assert isinstance(place, Place)
            place.use_kernels = use
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = net(x)
        readers = sum(place.parts[0] > 0 for place in net.places.places)
        # the finer layer reads 3 slots; the coarser one, which reads it in windows of 3 x 3, 20
        assert len(attended) == use * (readers if most > 6 else 1)
        grads = torch.autograd.grad(y.float().square().sum(), list(net.parameters()))
        results.append([y, *grads])
    rounding = 1e-4 if dtype == torch.float32 else 3e-2
    for fused, plain in zip(*results, strict=True):
        assert (fused - plain).norm() <= rounding * plain.norm()


@pytest.mark.parametrize("switch", ["RL_NFM_KERNELS=0", "CXX=/nonexistent/compiler"])
def test_without_a_compiler_the_plain_path_runs(switch, monkeypatch, caplog):
    monkeypatch.setenv(*switch.split("="))
    cpp.library.cache_clear()
    try:
        assert not kernels.available()
        net = make_encoder("nfm", obs_shape=(1, 36, 36), width=4, depth=10)
        features, _ = net(torch.zeros(1, 2, 1, 36, 36, dtype=torch.uint8))
    finally:
        cpp.library.cache_clear()
    assert features.isfinite().all()
    assert ("slower" in caplog.text) == ("CXX" in switch)
