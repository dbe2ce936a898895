"""RIMs in JAX against our PyTorch cells: outputs, states, active RIMs and gradients."""

import numpy as np
import pytest
import torch

jax = pytest.importorskip("jax")
jnp = jax.numpy

from rl_nfm.rims import RIM_LSTM, RIMGRUCell, RIMLSTMCell, in_jax  # noqa: E402

CELLS = {"lstm": RIMLSTMCell, "gru": RIMGRUCell}


def make(kind, sizes=(7, 12, 3, 2), seed=0):
    """A cell away from its small initial weights, without dropout."""
    torch.manual_seed(seed)
    cell = CELLS[kind](*sizes).eval()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.normal_(std=0.4)
    return cell


def inputs(cell, steps, batch):
    torch.manual_seed(1)
    x = torch.randn(steps, batch, cell.input_size)
    count = 2 if cell.kind == "lstm" else 1
    return x, [torch.randn(batch, cell.hidden_size) for _ in range(count)]


def array(tensor):
    return jnp.asarray(tensor.detach().numpy())


def close(found, wanted):
    np.testing.assert_allclose(np.asarray(found), wanted.detach().numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize(
    ("sizes", "steps", "batch"),
    [((7, 12, 3, 2), 9, 3), ((5, 20, 5, 4), 2, 1), ((3, 6, 1, 1), 1, 4)],
)
def test_outputs_and_gradients_equal_those_of_our_cells(kind, sizes, steps, batch):
    cell = make(kind, sizes)
    x, state = inputs(cell, steps, batch)
    leaves = [part.requires_grad_() for part in (x, *state)]
    output, hidden, memory, active = cell.run(*leaves)
    last = [part for part in (hidden, memory) if part is not None]
    weights = [torch.randn_like(part) for part in (output, *last)]
    loss = sum((w * part).sum() for w, part in zip(weights, (output, *last), strict=True))
    named = {name: getattr(cell, name) for name in in_jax.Params._fields}
    wanted = torch.autograd.grad(loss, [*leaves, *named.values()])

    def objective(params, x, state):
        output, last, active = in_jax.run(params, x, state, num_active=sizes[3])
        parts = zip(map(array, weights), (output, *last), strict=True)
        return sum((w * part).sum() for w, part in parts), (output, last, active)

    call = jax.jit(jax.value_and_grad(objective, argnums=(1, 2, 0), has_aux=True))
    arguments = in_jax.from_torch(cell), array(x), tuple(map(array, state))
    (_, (found, found_last, found_active)), grads = call(*arguments)
    close(found, output)
    for actual, expected in zip(found_last, last, strict=True):
        close(actual, expected)
    assert np.array_equal(np.asarray(found_active), active.numpy())
    of_x, of_state, of_params = grads
    for actual, expected in zip((of_x, *of_state, *of_params), wanted, strict=True):
        close(actual, expected)


@pytest.mark.parametrize("kind", CELLS)
def test_a_state_is_zero_unless_given_and_of_equals_the_lower_are_active(kind):
    cell = make(kind)
    x, _ = inputs(cell, 2, 3)
    output, _, active = in_jax.run(in_jax.from_torch(cell), array(x), num_active=2)
    close(output, cell.run(x)[0])
    assert np.asarray(active)[0].tolist() == [[True, True, False]] * 3


@pytest.mark.parametrize("kind", CELLS)
def test_weights_go_there_and_back(kind):
    cell, other = make(kind), make(kind, seed=5)
    in_jax.to_torch(in_jax.from_torch(cell), other)
    for (name, a), b in zip(cell.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    with pytest.raises(RuntimeError, match="size mismatch"):
        in_jax.to_torch(in_jax.from_torch(cell), make(kind, (7, 12, 4, 2)))


@pytest.mark.parametrize("kind", CELLS)
def test_fresh_weights_are_distributed_as_ours(kind):
    cell = CELLS[kind](60, 120, 6, 4)
    params = in_jax.init(jax.random.key(0), 60, 120, 6, cell=kind)
    for name, value in params._asdict().items():
        own = getattr(cell, name)
        assert value.shape == own.shape, name
        assert float(value.std()) == pytest.approx(own.std().item(), rel=0.25), name


def test_layers_stack_by_handing_on_what_active_rims_computed():
    rims = RIM_LSTM(5, 6, 3, 2, num_layers=2).eval()
    x = torch.randn(4, 2, 5)
    hidden = array(x)
    for cell in rims.cells:
        output, _, active = in_jax.run(in_jax.from_torch(cell), hidden, num_active=2)
        hidden = output * jnp.repeat(active, 2, -1)
    close(output, rims(x)[0])


def test_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="official"):
        in_jax.from_torch(RIMLSTMCell(4, 6, 3, 2, variant="paper"))
    with pytest.raises(ValueError, match="cell: 'rnn'"):
        in_jax.init(jax.random.key(0), 4, 6, 3, cell="rnn")
    with pytest.raises(ValueError, match="hidden_size: 7"):
        in_jax.init(jax.random.key(0), 4, 7, 3)


@pytest.mark.parametrize("kind", CELLS)
def test_half_precision_chooses_rims_as_float32_does(kind):
    """The choice is made in float32 from the same numbers, as in our cells."""
    cell = make(kind, (7, 60, 12, 5))
    cell.to(torch.bfloat16)
    params = in_jax.from_torch(cell)
    assert {p.dtype for p in params} == {jnp.dtype("bfloat16")}
    wide = in_jax.Params(*(p.astype(jnp.float32) for p in params))
    x, state = inputs(cell, 1, 500)
    x, *state = (jnp.asarray(part.numpy(), jnp.bfloat16) for part in (x, *state))
    output, last, active = in_jax.run(params, x, state, num_active=5)
    assert output.dtype == last[0].dtype == jnp.bfloat16
    wide_state = tuple(part.astype(jnp.float32) for part in state)
    exact = in_jax.run(wide, x.astype(jnp.float32), wide_state, num_active=5)[2]
    assert bool((active == exact).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_of_any_precision_go_there_and_back(dtype):
    cell, other = make("lstm").to(dtype), make("lstm", seed=3).to(dtype)
    in_jax.to_torch(in_jax.from_torch(cell), other)
    for a, b in zip(cell.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_weights_are_not_written_into_a_cell_of_another_variant():
    cell = make("lstm")
    other = RIMLSTMCell(7, 12, 3, 2, variant="previous")
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(ValueError, match="variant: only 'official' is allowed"):
        in_jax.to_torch(in_jax.from_torch(cell), other)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


def test_sizes_and_types_that_do_not_fit_are_told():
    params = in_jax.from_torch(make("lstm"))
    x = jnp.zeros((2, 3, 7))
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"num_active: {count} is not allowed: must be 1 to 3"):
            in_jax.run(params, x, num_active=count)
    for wrong in (jnp.zeros((0, 3, 7)), jnp.zeros((2, 0, 7)), jnp.zeros((3, 7))):
        with pytest.raises(ValueError, match="x: shape"):
            in_jax.run(params, wrong, num_active=2)
    with pytest.raises(ValueError, match="x: bfloat16 is not allowed: must be float32"):
        in_jax.run(params, x.astype(jnp.bfloat16), num_active=2)
    state = (jnp.zeros((3, 12), jnp.bfloat16),) * 2
    with pytest.raises(ValueError, match="state: bfloat16 is not allowed: must be float32"):
        in_jax.run(params, x, state, num_active=2)
    key = jax.random.PRNGKey(0)
    for sizes, name in (
        ((0, 12, 3), "input_size"),
        ((7, 12, 0), "num_rims"),
        ((7, 0, 3), "hidden"),
    ):
        with pytest.raises(ValueError, match=name):
            in_jax.init(key, *sizes)
