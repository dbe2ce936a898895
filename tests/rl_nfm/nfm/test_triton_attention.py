"""The attention in Triton against the plain path in float64: interpreted, or with -m gpu."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rl_nfm.encoders import make_encoder
from rl_nfm.nfm import NeuralFunctionModule, NFMConfig, triton_attention
from rl_nfm.nfm import triton_launch as launch
from rl_nfm.nfm.call import Options, plain_read
from rl_nfm.nfm.places import Place
from rl_nfm.nfm.rescale import Grid
from rl_nfm.nfm.triton_attention import Packed
from rl_nfm.support.triton_guard import TritonGuard
from tests.triton_devices import interpreted_only

ROUNDING = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


class Readers:
    """One memory that grows, and readers of it: packed rows as the places make them."""

    def __init__(
        self, device: str, heads: int, key: int, value: int, *, batch: int = 2, dtype=torch.float32
    ):
        self.device, self.batch, self.dtype, self.heads = device, batch, dtype, heads
        self.parts = heads * key, heads * key, heads * value
        self.leaves: list[Tensor] = []
        self.made: list[tuple[tuple[int, ...], Packed]] = []

    def write(self, *sizes: int, query: bool = True) -> "Readers":
        parts = self.parts if query else (0, *self.parts[1:])
        return self._make(sizes, parts)

    def ask(self, *sizes: int) -> "Readers":
        """A query without keys and values."""
        return self._make(sizes, (self.parts[0], 0, 0))

    def _make(self, sizes, parts) -> "Readers":
        generator = torch.Generator().manual_seed(len(self.leaves))
        rows = torch.randn(self.batch, math.prod(sizes), sum(parts), generator=generator)
        self.leaves.append(rows.to(self.device, self.dtype).requires_grad_())
        self.made.append((sizes, Packed(self.leaves[-1], parts)))
        return self

    def reads(self, readers, *, fused: bool, mode="space_to_depth", top_k=4, null_slot=True):
        """What `readers`, by their number among all made, read; and leaves to differentiate by."""
        leaves = self.leaves if fused else [x.detach().cpu().double() for x in self.leaves]
        leaves = [x.detach().requires_grad_() for x in leaves]
        made = [Packed(x, packed.parts) for x, (_, packed) in zip(leaves, self.made, strict=True)]
        handed, results = None, []
        for reader in readers:
            memory = [n for n, (_, x) in enumerate(self.made[: reader + 1]) if x.parts[1]]
            grid = Grid.of(self.made[reader][0], [self.made[n][0] for n in memory], mode)
            options = Options.of(
                grid, heads=self.heads, scale=0.4, top_k=top_k, null_slot=null_slot
            )
            packed = [*(made[n] for n in memory), made[reader]]
            if fused:
                read, handed = triton_attention.attend(packed, options, handed)
            else:
                _, keys, values = zip(*(x.split() for x in packed[:-1]), strict=True)
                read = plain_read(packed[-1].split()[0], keys, values, options)
            results.append(read)
        return results, leaves


def assert_close(ours, plain, dtype=torch.float32):
    for x, y in zip(ours, plain, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            x, y = x.detach().cpu().double(), y.detach().cpu().double()
            assert x.shape == y.shape
            assert (x - y).norm() <= ROUNDING[dtype] * y.norm() + 1e-9


def weighted_sum(reads: list[Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for n, read in enumerate(reads):
        generator = torch.Generator().manual_seed(50 + n)
        weights = torch.randn(read.shape, generator=generator, dtype=torch.float64)
        total = total + (read.cpu().double() * weights).sum()
    return total


def assert_same(made: Readers, readers: list[int], **options) -> None:
    """Values, and gradients of all leaves."""
    results = []
    for fused in (True, False):
        reads, leaves = made.reads(readers, fused=fused, **options)
        grads = torch.autograd.grad(weighted_sum(reads), leaves, allow_unused=True)
        results.append(
            [*reads, *(x if g is None else g for x, g in zip(leaves, grads, strict=True))]
        )
    assert_close(*results, made.dtype)


@pytest.mark.parametrize(
    ("mode", "dtype"),
    [
        ("space_to_depth", torch.float32),
        ("space_to_depth", torch.bfloat16),
        ("nearest", torch.float16),
    ],
)
def test_readers_of_a_growing_memory(device, mode, dtype):
    """Two passes over three sizes that do not divide one another, the second of them reading."""
    made = Readers(device, heads=4, key=8, value=16, batch=1, dtype=dtype)
    for query in (False, True):
        made.write(5, 3, query=query).write(3, 2, query=query).write(1, 2, query=query)
    assert_same(made, [3, 4, 5], mode=mode)


@interpreted_only
@pytest.mark.parametrize(("heads", "key", "value"), [(5, 1, 1), (2, 32, 2)])
def test_heads_and_widths_of_extremes(device, heads, key, value):
    assert_same(Readers(device, heads, key, value).write(3, 2).write(2, 1), [0, 1])


@pytest.mark.parametrize(("heads", "key", "value"), [(3, 5, 7), (1, 24, 40)])
def test_heads_and_widths_that_are_no_powers_of_two(device, heads, key, value):
    made = Readers(device, heads, key, value, batch=3).write(3, 2).write(2, 1)
    assert_same(made, [0, 1])


@interpreted_only
@pytest.mark.parametrize("top_k", [1, 2, 3, 8, 17, 100])
@pytest.mark.parametrize("null_slot", [True, False])
def test_any_number_of_kept_slots(device, top_k, null_slot):
    made = Readers(device, heads=2, key=4, value=4).write(5, 5).write(1, 2)
    assert_same(made, [1], top_k=top_k, null_slot=null_slot)


@pytest.mark.parametrize(
    "sizes", [[(1,), (4,), (9,), (2,)], [(2, 3, 2), (3, 2, 5), (1, 4, 2)], [(40,), (3,), (1,)]]
)
@interpreted_only
@pytest.mark.parametrize(
    ("mode", "dtype", "options"),
    [
        ("space_to_depth", torch.float32, {}),
        ("nearest", torch.float32, {}),
        ("space_to_depth", torch.bfloat16, {"null_slot": False, "top_k": 1}),
        ("nearest", torch.float16, {"null_slot": False, "top_k": 8}),
    ],
)
def test_one_and_three_dimensions(device, sizes, mode, dtype, options):
    made = Readers(device, heads=2, key=4, value=4, batch=1, dtype=dtype)
    for size in sizes:
        made.write(*size)
    assert_same(made, [*range(len(sizes))], mode=mode, **options)


def test_more_slots_and_visits_than_are_unrolled(device):
    """A reader of 288 slots, and a row of memory that 144 positions can read."""
    made = Readers(device, heads=2, key=4, value=4, batch=1).write(12, 12).write(1, 1).write(12, 12)
    assert_same(made, [1, 2])
    assert_same(made, [1], top_k=17)


@interpreted_only
def test_more_readers_than_one_launch_gathers(device, monkeypatch):
    monkeypatch.setattr(launch, "MOST_READERS", 2)
    made = Readers(device, heads=2, key=4, value=4, batch=1)
    for sizes in [(4, 3), (2, 2), (1, 1), (3, 2), (5, 2)]:
        made.write(*sizes)
    assert_same(made, [0, 1, 2, 3, 4])


@interpreted_only
def test_gradients_of_several_launches_are_rounded_once(device, monkeypatch):
    """In half precision they are no further from the exact ones than those of one launch."""
    made = Readers(device, heads=2, key=4, value=4, batch=1, dtype=torch.bfloat16)
    for _ in range(7):
        made.write(3, 2)

    def gradient(*, fused: bool) -> Tensor:
        reads, leaves = made.reads([*range(7)], fused=fused)
        return torch.autograd.grad(weighted_sum(reads), leaves[:1])[0].cpu().double()

    errors, expected = [], gradient(fused=False)
    for most in (7, 1):
        monkeypatch.setattr(launch, "MOST_READERS", most)
        errors.append(float((gradient(fused=True) - expected).norm()))
    assert errors[1] <= 1.1 * errors[0]


def test_queries_of_layers_that_are_not_written(device):
    made = Readers(device, heads=2, key=4, value=4).write(4, 4).ask(2, 2).write(3, 3).ask(5, 5)
    assert_same(made, [1, 3])


def test_a_query_that_is_not_used_gets_zeros(device):
    made = Readers(device, heads=2, key=4, value=4).write(4, 4).write(2, 2)
    (read,), leaves = made.reads([1], fused=True)
    first, _ = torch.autograd.grad(read.float().sum(), leaves)
    assert not first[..., :8].any()
    assert first[..., 8:].any()


def test_gradients_are_equal_from_run_to_run_and_of_what_is_asked_for_alone(device):
    made = Readers(device, heads=2, key=4, value=4, batch=1).write(5, 3).write(2, 2).write(5, 3)
    reads, leaves = made.reads([0, 1, 2], fused=True)
    plain, plain_leaves = made.reads([0, 1, 2], fused=False)
    for part in ([0], [2], [0, 2], [1], [0]):  # nothing of one may come back in the next
        loss = weighted_sum([reads[n] for n in part])
        ours = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
        expected = torch.autograd.grad(
            weighted_sum([plain[n] for n in part]),
            plain_leaves,
            retain_graph=True,
            allow_unused=True,
        )
        zeros = [torch.zeros_like(x) for x in leaves]
        filled = [z if g is None else g for g, z in zip(ours, zeros, strict=True)]
        wanted = [z if g is None else g for g, z in zip(expected, zeros, strict=True)]
        assert_close(filled, wanted)
    one, two = (
        torch.autograd.grad(weighted_sum(reads), leaves, retain_graph=True) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    (last,) = torch.autograd.grad(weighted_sum(reads), leaves[2:])
    assert torch.equal(last, one[2])


@interpreted_only
def test_second_derivatives(device):
    made = Readers(device, heads=2, key=3, value=2).write(3, 3).write(2, 2).write(3, 3)
    results = []
    for fused in (True, False):
        reads, leaves = made.reads([0, 1, 2], fused=fused, top_k=2)
        first = torch.autograd.grad(weighted_sum(reads).square(), leaves, create_graph=True)
        results.append([*first, *torch.autograd.grad(weighted_sum(list(first)), leaves)])
    assert_close(results[0], results[1])


def test_rows_that_do_not_lie_side_by_side(device):
    made = Readers(device, heads=2, key=4, value=4).write(3, 3).write(2, 2)
    reads, leaves = made.reads([0, 1], fused=True)
    apart = [x.detach().mT.contiguous().mT.requires_grad_() for x in leaves]
    assert apart[0].stride(-1) != 1
    wide = (
        torch.randn(2, 9, 99, device=device)[..., 3:27].detach().copy_(leaves[0]).requires_grad_()
    )
    for moved in (apart, [wide, leaves[1].detach().requires_grad_()]):
        made.leaves = moved
        again, moved = made.reads([0, 1], fused=True)
        assert all(torch.equal(a, b) for a, b in zip(reads, again, strict=True))
        expected = torch.autograd.grad(weighted_sum(reads), leaves, retain_graph=True)
        grads = torch.autograd.grad(weighted_sum(again), moved)
        assert all(torch.equal(a, b) for a, b in zip(expected, grads, strict=True))


def test_without_gradients_the_memory_is_left_to_later_readers(device):
    made = Readers(device, heads=2, key=4, value=4).write(3, 3).write(2, 2)
    with torch.no_grad():
        quiet, leaves = made.reads([0, 1], fused=True)
    assert not quiet[0].requires_grad
    options = Options.of(
        Grid.of((3, 3), [(3, 3)], "nearest"), heads=2, scale=0.4, top_k=2, null_slot=True
    )
    packed = [Packed(leaves[0], made.parts)] * 2
    with torch.no_grad():
        _, handed = triton_attention.attend(packed, options)
    read, _ = triton_attention.attend(packed, options, handed)
    assert torch.autograd.grad(read.sum(), leaves[0])[0][..., 16:].any()


def test_an_empty_batch(device):
    made = Readers(device, heads=2, key=4, value=4, batch=0).write(3, 3).write(2, 2)
    assert_same(made, [0, 1])


def read_one(device, scores, top_k, null_slot):
    """One head of one position over layers of one row, whose values are those of a unit matrix."""
    n = len(scores)
    query = torch.ones(1, 1, 1, device=device)
    rows = [
        torch.cat([torch.full((1, 1, 1), s), torch.eye(n)[i].view(1, 1, n)], -1).to(device)
        for i, s in enumerate(scores)
    ]
    packed = [*(Packed(x, (0, 1, n)) for x in rows), Packed(query, (1, 0, 0))]
    options = Options([1] * (n + 1), "nearest", 1, 1.0, top_k, null_slot)
    return triton_attention.attend(packed, options)[0].flatten().cpu()


def test_ties_keep_the_first(device):
    # softmax of 2, 2, 2 and the first 1: 1 / (3 + exp(-1)) and exp(-1) / (3 + exp(-1))
    high, low = 0.296923, 0.109232
    read = read_one(device, [1.0, 2.0, 2.0, 1.0, 2.0, 1.0], 4, False)
    torch.testing.assert_close(read, torch.tensor([low, high, high, 0, high, 0]), atol=1e-6, rtol=0)
    # The null slot comes last, so a score of -0 stands before it.
    assert torch.equal(read_one(device, [-1.0, -0.0], 1, True), torch.tensor([0.0, 1.0]))


@interpreted_only
def test_signs_and_extremes_of_scores(device):
    scores = [-1e30, -3.0, 3e38, -1e-40, 5.0, float("-inf")]
    assert torch.equal(read_one(device, scores, 1, False), torch.eye(6)[2])
    read = read_one(device, [-2.0, -1.0, -3.0], 2, False)
    expected = torch.tensor([1 / (1 + math.e), math.e / (1 + math.e), 0])
    torch.testing.assert_close(read, expected)


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # the interpreter's NumPy
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_is_passed_on(device):
    assert read_one(device, [1.0, math.nan, 2.0], 2, True).isnan().all()
    assert read_one(device, [1.0, -math.nan, 2.0], 1, True).isnan().all()


VARIANTS = [
    {},
    {"read_passes": "all", "kv_owner": "reader", "out_norm": "batch", "cat_input": True},
    {"share_passes": True, "null_slot": False, "rescale": "nearest", "out_kernel": 3},
    {"read_places": (1,), "write_places": (0,), "out_layers": 1},
    pytest.param(
        {"passes": 3, "read_passes": "all", "out_norm": "group", "top_k": 1},
        marks=pytest.mark.slow,
    ),
]


def make_net(device, **options) -> NeuralFunctionModule:
    torch.manual_seed(0)
    config = NFMConfig(**{"key_size": 3, "value_size": 5, "heads": 2, "top_k": 3} | options)
    lists = [
        [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)]
        for _ in range(1 if config.share_passes else config.passes)
    ]
    layers = lists[0] if config.share_passes else lists
    net = NeuralFunctionModule(layers, channels=(4, 6), config=config).to(device)
    for place in net.places.places:
        if hasattr(place, "gamma"):
            nn.init.constant_(place.gamma, 0.7)
    return net


def results(net: nn.Module, x: Tensor, *, use_kernels: bool) -> list[Tensor]:
    for place in net.modules():
        if isinstance(place, Place):
            place.use_kernels = use_kernels
    y = net(x)
    loss = (y * torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape)).sum()
    parameters = [p for p in net.parameters() if p.requires_grad]
    return [y, *torch.autograd.grad(loss, parameters, materialize_grads=True)]


@interpreted_only
@pytest.mark.parametrize("options", VARIANTS)
def test_whole_networks(device, options, monkeypatch):
    launched = []
    net, x = make_net(device, **options), torch.randn(2, 3, 5, 4, device=device)
    attend = triton_attention.attend
    monkeypatch.setattr(
        triton_attention,
        "attend",
        lambda *args, **more: launched.append(1) or attend(*args, **more),
    )
    with torch.backends.cudnn.flags(allow_tf32=False):
        ours = results(net, x, use_kernels=True)
        assert launched
        plain = results(net, x, use_kernels=False)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * (1 + float(b.detach().abs().max())))
    with torch.no_grad():
        torch.testing.assert_close(net(x), ours[0], rtol=1e-4, atol=1e-4)


@interpreted_only
def test_a_frozen_first_pass(device):
    net, x = make_net(device), torch.randn(2, 3, 6, 6, device=device)
    for p in [*net.passes[0].parameters(), *net.places.places[0].parameters()]:
        p.requires_grad_(False)
    ours, plain = results(net, x, use_kernels=True), results(net, x, use_kernels=False)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_kernels_that_differ_are_not_used(device, monkeypatch, caplog):
    def wrong(*_):
        yield torch.ones(2), torch.zeros(2)

    monkeypatch.setattr(triton_attention, "guard", TritonGuard("attention", wrong))
    monkeypatch.setattr(triton_attention, "attend", None)
    net, x = make_net(device), torch.randn(2, 3, 6, 6, device=device)
    ours, plain = results(net, x, use_kernels=True), results(net, x, use_kernels=False)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert len(caplog.records) == 1


def test_a_failed_launch_means_the_plain_path(device, monkeypatch, caplog):
    guard = TritonGuard("attention", lambda *_: [])
    monkeypatch.setattr(triton_attention, "guard", guard)
    monkeypatch.setattr(launch, "launch", lambda *_, **__: 1 / 0)
    net, x = make_net(device), torch.randn(2, 3, 6, 6, device=device)
    ours, plain = results(net, x, use_kernels=True), results(net, x, use_kernels=False)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    where = "cpu" if device == "cpu" else "cuda:0"
    assert [record.message for record in caplog.records] == [
        f"slower on {where} without the Triton attention: division by zero"
    ]


@pytest.mark.parametrize("good", [0, 1, 2])
@pytest.mark.parametrize("kernel", ["query_gradient", "memory_gradient"])
def test_a_failed_launch_in_the_backward_means_the_plain_path(
    device, kernel, good, monkeypatch, caplog
):
    """After `good` launches of the kernel, so that gradients of both kinds meet."""
    real, launched = launch.launch, []

    def fail(name, *args, **constants):
        launched.append(name)
        if launched.count(kernel) > good:
            raise RuntimeError("out of resource: shared memory")
        real(name, *args, **constants)

    monkeypatch.setattr(triton_attention, "guard", TritonGuard("attention", lambda *_: []))
    monkeypatch.setattr(launch, "launch", fail)
    options = {"read_passes": "all", "rescale": "nearest" if good == 2 else "space_to_depth"}
    net, x = make_net(device, **options), torch.randn(2, 3, 6, 5, device=device)
    ours = results(net, x, use_kernels=True)
    assert launched.count(kernel) > good
    for a, b in zip(ours, results(net, x, use_kernels=False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert len(caplog.records) == 1
    assert "slower" in caplog.text


@pytest.mark.parametrize("kernel", ["none", "read_memory", "query_gradient", "memory_gradient"])
def test_the_operators_of_a_compiler_fall_back_too(device, kernel, monkeypatch, caplog):
    real = launch.launch

    def fail(name, *args, **constants):
        if name == kernel:
            raise RuntimeError("out of resource: shared memory")
        real(name, *args, **constants)

    monkeypatch.setattr(triton_attention, "guard", TritonGuard("attention", lambda *_: []))
    monkeypatch.setattr(launch, "launch", fail)
    generator = torch.Generator().manual_seed(0)
    grid = Grid.of((3, 2), [(6, 4), (3, 2)], "space_to_depth")
    options = Options.of(grid, heads=2, scale=0.4, top_k=3, null_slot=True)
    sizes = [(6, 6), (24, 6), (6, 6), (24, 10), (6, 10)]
    inputs = [torch.randn(2, *size, generator=generator).to(device) for size in sizes]
    query, *memory = inputs
    read, weights, slots = triton_attention._operator(query, memory[:2], memory[2:], *options)
    grad = torch.randn(read.shape, generator=generator).to(device)
    found = triton_attention._backward_operator(grad, query, memory, weights, slots, *options)
    exact = [x.double().requires_grad_() for x in inputs]
    expected = plain_read(exact[0], exact[1:3], exact[3:], options)
    wanted = torch.autograd.grad(expected, exact, grad.double())
    assert_close([read, *found], [expected, *wanted])
    assert len(caplog.records) == (kernel != "none")


@interpreted_only
def test_the_check_passes(device, caplog):
    guard = TritonGuard("attention", triton_attention._check)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        with torch.no_grad(), FlopCounterMode(display=False) as counter, torch.device("meta"):
            assert guard.ready(torch.device(device), dtype, 3, 24, 40, 4, True)
        assert counter.get_total_flops() == 0
    assert not caplog.records


@pytest.mark.gpu
def test_captured_and_compiled():
    device = "cuda"
    encoder = make_encoder("nfm", obs_shape=(4, 84, 84), width=16, norm="group").to(device)
    for place in encoder.modules():
        if isinstance(place, Place) and hasattr(place, "gamma"):
            nn.init.constant_(place.gamma, 0.5)
    frames = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8, device=device)
    parameters = list(encoder.parameters())

    def step(net=encoder):
        with torch.autocast("cuda", torch.bfloat16):
            loss = net(frames).float().square().mean()
        return [loss, *torch.autograd.grad(loss, parameters)]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        expected = step()
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = step()
    for tensor in captured:
        tensor.zero_()
    graph.replay()
    for a, b in zip(captured, expected, strict=True):
        assert (a - b).norm() <= 2e-2 * b.norm() + 1e-6
    compiled = step(torch.compile(encoder, backend="aot_eager", fullgraph=True))
    for a, b in zip(compiled, expected, strict=True):
        assert (a - b).norm() <= 5e-2 * b.norm() + 1e-6


@pytest.mark.gpu
def test_offsets_beyond_32_bits():
    device, batch, sizes = "cuda", 6000, (64, 64)
    made = Readers(device, heads=4, key=8, value=8, batch=1, dtype=torch.bfloat16).write(*sizes)
    rows = made.leaves[0].detach()
    parts, options = made.parts, Options([*sizes, *sizes], "nearest", 4, 0.4, 2, True)
    many = rows.expand(batch, -1, -1).contiguous().requires_grad_()
    assert many.numel() > 2**31
    few = rows.clone().requires_grad_()
    reads = [triton_attention.attend([Packed(x, parts)] * 2, options)[0] for x in (many, few)]
    assert torch.equal(reads[0][-1], reads[1][0])
    grads = [torch.autograd.grad(r.sum(), x)[0] for r, x in zip(reads, (many, few), strict=True)]
    assert torch.equal(grads[0][-1], grads[1][0])
