import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from rl_nfm.modular import (
    HierarchicallyModular,
    Level,
    ModuleBank,
    PrunedMLP,
    RoutingConfig,
    boolean_task,
    known_routing,
)

TASK = boolean_task((6, 3, 2, 2))


def levels(shared: int | None = None, arch: tuple[int, ...] = (2, 12, 1)) -> list[Level]:
    return [Level(positions=n, arch=arch, num_shared=shared) for n in (3, 2)]


def network(shared: int | None = None, *, known: bool = False, seed: int = 0, **routing):
    torch.manual_seed(seed)
    table = known_routing([TASK], (3, 2), shared) if known else None
    return HierarchicallyModular(
        6,
        2,
        levels(shared),
        routing=RoutingConfig(**routing),
        known_inputs=table,
        known_modules=table if shared else None,
    )


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_parameter_counts_are_the_published_ones():
    assert count(PrunedMLP((6, 36, 36, 36, 2))) == 2990
    # five modules of 2*12 + 12 + 12 + 1 = 49; logits 6*3 + 3*2 + 2*1 = 26
    assert count(network()) == 5 * 49 + 26 == 271
    # two modules; the same logits; locations 2*3 + 2*2 = 10
    assert count(network(2)) == 2 * 49 + 26 + 10 == 134
    assert count(network(known=True)) == 271


def test_a_bank_equals_its_modules_one_by_one():
    torch.manual_seed(0)
    bank = ModuleBank(4, (3, 5, 7, 2))
    x = torch.randn(6, 4, 3)
    out = bank(x)
    for module in range(4):
        h = x[:, module]
        for depth, (weight, bias) in enumerate(zip(bank.weights, bank.biases, strict=True)):
            h = nn.functional.linear(h.relu() if depth else h, weight[module], bias[module])
        torch.testing.assert_close(out[:, module], h)


def naive_forward(model: HierarchicallyModular, x, task_id):
    """Row by row, module by module, from the logits' order alone."""

    def best(logits, k):
        return sorted(range(len(logits)), key=lambda i: -logits[i])[:k]

    rows = []
    for row, task in zip(x, task_id.tolist(), strict=True):
        units = row.tolist()
        for depth, level in enumerate(model.levels):
            out = []
            for position in range(level.positions):
                chosen = best(model.module_input_logits[depth][task, :, position].tolist(), 2)
                read = torch.tensor([units[i] for i in chosen])
                shared = level.num_shared is not None
                module = position
                if shared:
                    module = best(model.location_logits[depth][task, :, position].tolist(), 1)[0]
                bank = model.banks[0 if shared else depth]
                stacked = read.expand(1, bank.weights[0].shape[0], 2)
                out.append(bank(stacked)[0, module, 0].item())
            units = out
        chosen = best(model.module_input_logits[-1][task, :, 0].tolist(), model.num_outputs)
        rows.append([units[i] for i in chosen])
    return torch.tensor(rows)


@pytest.mark.parametrize("shared", [None, 3])
@pytest.mark.parametrize("training", [False, True])
def test_forward_equals_a_naive_one_with_several_tasks(shared, training):
    torch.manual_seed(1)
    model = HierarchicallyModular(
        5, 2, [Level(positions=n, arch=(2, 7, 1), num_shared=shared) for n in (4, 3)], num_tasks=3
    ).train(training)
    x, task_id = torch.randn(11, 5), torch.randint(3, (11,))
    torch.testing.assert_close(model(x, task_id), naive_forward(model, x, task_id))


def set_gate(bank: ModuleBank, module: int, operation: str) -> None:
    """Write XOR or AND of inputs in {0, 1} into a 2-12-1 module with output 0 or 1."""
    with torch.no_grad():
        for parameter in (*bank.weights, *bank.biases):
            parameter[module] = 0
        bank.weights[0][module, :2] = 1.0  # h0 = relu(a + b), h1 = relu(a + b - 1)
        bank.biases[0][module, 1] = -1.0
        # XOR = h0 - 2 h1; AND = h1
        weights = {"xor": (1.0, -2.0), "and": (0.0, 1.0)}[operation]
        bank.weights[1][module, 0, :2] = torch.tensor(weights)


@pytest.mark.parametrize("shared", [None, 2])
def test_known_routing_with_hand_set_gates_is_the_task(shared):
    model = network(shared, known=True)
    if shared:
        set_gate(model.banks[0], 0, "xor")
        set_gate(model.banks[0], 1, "and")
    else:
        for module in range(3):
            set_gate(model.banks[0], module, "xor")
        for module in range(2):
            set_gate(model.banks[1], module, "and")
    inputs, outputs = TASK.truth_table()
    for training in (False, True):
        assert torch.equal(model.train(training)(inputs), outputs)


@pytest.mark.parametrize("shared", [None, 2])
def test_known_logits_are_fixed_and_the_rest_is_trained(shared):
    model = network(shared, known=True)
    before = [logits.clone() for logits in model.logits()]
    assert before[0][0, :, 0].tolist() == pytest.approx([1.1, 1.0, 0, 0, 0, 0])
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=0.1)
    model(torch.rand(4, 6)).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.logits(), strict=True))
    assert all(p.grad is not None for name, p in model.named_parameters() if "logits" not in name)


@pytest.mark.parametrize("shared", [None, 2])
def test_gradient_reaches_every_logit(shared):
    model = network(shared, use_gumbel=True)
    model(torch.rand(16, 6)).square().sum().backward()
    for logits in model.logits():
        assert logits.grad is not None
        assert (logits.grad != 0).any()
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize("shared", [None, 2])
def test_module_gradients_match_finite_differences(shared):
    model = network(shared).double()
    x = torch.rand(3, 6, dtype=torch.float64)
    names = [n for n, _ in model.named_parameters() if "banks" in n]
    values = [
        p.detach().clone().requires_grad_() for n, p in model.named_parameters() if n in names
    ]

    def run(*values):
        return functional_call(model, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, tuple(values))


@pytest.mark.parametrize("shared", [None, 2])
def test_eval_is_invariant_to_noise_and_temperature(shared):
    plain = network(shared).eval()
    noisy = network(shared, use_gumbel=True, tau=0.1, per_sample_routing=True).eval()
    noisy.load_state_dict(plain.state_dict())
    x = torch.rand(7, 6)
    noise = noisy.sample_noise(7)
    assert torch.equal(plain(x), noisy(x))
    assert torch.equal(plain(x), noisy(x, noise=noise))


def test_noise_is_drawn_per_batch_or_per_row():
    x = torch.rand(1, 6).expand(64, 6)
    batch = network(use_gumbel=True)(x)
    rows = network(use_gumbel=True, per_sample_routing=True)(x)
    assert (batch == batch[0]).all()
    assert len(rows.unique(dim=0)) > 8


def test_noise_handed_in_decides_alone():
    model = network(2, use_gumbel=True)
    x, noise = torch.rand(5, 6), model.sample_noise(5, torch.Generator().manual_seed(3))
    again = model.sample_noise(5, torch.Generator().manual_seed(3))
    assert torch.equal(model(x, noise=noise), model(x, noise=again))
    # noise that outweighs the logits chooses the units
    forced = [torch.zeros_like(n) for n in noise]
    forced[2][0, 0] = 1e6
    swapped = [n.clone() for n in forced]
    swapped[2][0, 0], swapped[2][0, 1] = 0.0, 1e6
    torch.testing.assert_close(model(x, noise=forced), model(x, noise=swapped).flip(1))


@pytest.mark.parametrize("shared", [None, 2])
def test_seeds_in_one_batch_equal_seeds_one_by_one(shared):
    models = [network(shared, seed=seed, use_gumbel=True) for seed in range(3)]
    parameters, buffers = stack_module_state(models)
    x = torch.rand(3, 5, 6)
    noises = [model.sample_noise(5) for model in models]
    stacked = [torch.stack(parts) for parts in zip(*noises, strict=True)]

    def run(parameters, buffers, x, noise):
        return functional_call(models[0], (parameters, buffers), (x,), {"noise": noise})

    together = vmap(run)(parameters, buffers, x, stacked)
    for index, model in enumerate(models):
        torch.testing.assert_close(together[index], model(x[index], noise=noises[index]))


def test_image_levels_read_whole_images():
    torch.manual_seed(0)
    images = Level(positions=2, arch=(64, 9, 3), reads=1, num_shared=1)
    table = known_routing([boolean_task((2, 2, 3, 2, 2))], (3, 2))
    model = HierarchicallyModular(2, 2, [images, *levels()])
    assert [logits.shape[1] for logits in model.module_input_logits] == [2, 6, 3, 2]
    assert table.module_inputs[0][0] == ((0, 3), (1, 4), (2, 5))
    with torch.no_grad():  # both slots read image 0: the other has no say
        model.module_input_logits[0].copy_(torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]))
    x = torch.rand(4, 2, 64)
    other = x.clone()
    other[:, 1] = 0
    assert torch.equal(model(x), model(other))
    assert not torch.equal(model(x), model(x.flip(1)))


@pytest.mark.parametrize(
    ("num_inputs", "shape", "message"),
    [
        (6, {"arch": (3, 12, 1)}, r"level 1: module_arch \(3, 12, 1\) does not begin with the 2"),
        (6, {"arch": (2,)}, r"at least two positive sizes"),
        (1, {"arch": (2, 12, 1)}, r"cannot read 2 of 1 units \(allowed: 1 to 1\)"),
        (6, {"arch": (2, 12, 1), "positions": 0}, r"at least one module"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(num_inputs, shape, message):
    with pytest.raises(ValueError, match=message):
        HierarchicallyModular(num_inputs, 1, [Level(**{"positions": 3, **shape})])


@pytest.mark.parametrize("ratio", [0.0, 12.5, 50.0, 99.0])
def test_pruning_removes_the_exact_share_of_all_weights(ratio):
    torch.manual_seed(0)
    arch = (6, 36, 36, 36, 2)
    model = PrunedMLP(arch, ratio)
    masks = [b for name, b in model.named_buffers() if name.startswith("weight")]
    total = 6 * 36 + 2 * 36 * 36 + 36 * 2
    kept = sum(int(mask.sum()) for mask in masks)
    assert abs(kept - total * (1 - ratio / 100)) <= 1
    # global, not per layer: the layers' shares differ
    if ratio == 50.0:
        assert len({mask.mean().item() for mask in masks}) > 1


def test_a_bias_is_pruned_only_with_its_whole_row():
    torch.manual_seed(0)
    model = PrunedMLP((6, 36, 2), 95.0)
    rows = model.get_buffer("weight_mask_0").any(1)
    assert 0 < int(rows.sum()) < 36
    assert torch.equal(model.get_buffer("bias_mask_0"), rows.float())


def test_masks_survive_training():
    torch.manual_seed(0)
    model = PrunedMLP((6, 8, 2), 60.0)
    mask = model.get_buffer("weight_mask_0").clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=1e-3)
    for _ in range(5):
        loss = model(torch.rand(9, 6)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(model.get_buffer("weight_mask_0"), mask)
    # an input whose weights are all pruned has no say
    first = model.layers[0]
    assert isinstance(first, nn.Linear)
    assert first.weight.grad is not None
    assert (first.weight.grad[mask == 0] == 0).all()


def test_the_task_is_appended_one_hot():
    torch.manual_seed(0)
    model = PrunedMLP((6 + 3, 4, 2), num_tasks=3)
    x = torch.rand(5, 6)
    task_id = torch.tensor([0, 2, 1, 1, 0])
    plain = PrunedMLP((9, 4, 2))
    plain.load_state_dict(model.state_dict())
    joined = torch.cat([x, nn.functional.one_hot(task_id, 3).float()], dim=1)
    assert torch.equal(model(x, task_id), plain(joined))


@pytest.mark.parametrize("ratio", [-1.0, 100.0, 250.0])
def test_a_pruning_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ValueError, match=r"pruning_ratio: .*allowed: 0 to below 100 percent"):
        PrunedMLP((6, 4, 2), ratio)


def test_sizes_and_temperatures_that_make_no_network_are_refused():
    with pytest.raises(ValueError, match=r"arch: \(6,\) is not allowed"):
        PrunedMLP([6])
    with pytest.raises(ValueError, match=r"tau: 0\.0 is not allowed: must be above 0"):
        RoutingConfig(tau=0.0)


def test_levels_share_a_bank_only_if_it_has_as_many_modules():
    levels = [
        Level(positions=3, arch=(2, 12, 1), num_shared=2),
        Level(positions=2, arch=(2, 12, 1), num_shared=3),
        Level(positions=2, arch=(2, 12, 1), num_shared=3),
    ]
    network = HierarchicallyModular(6, 2, levels)
    assert network.bank_of == [0, 1, 1]
    assert network(torch.zeros(4, 6)).shape == (4, 2)


def test_a_module_that_reads_nothing_is_refused():
    with pytest.raises(ValueError, match="does not begin with the 0 units read"):
        HierarchicallyModular(6, 2, [Level(positions=3, arch=(2, 12, 1), reads=0)])
