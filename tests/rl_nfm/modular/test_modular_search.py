import copy

import pytest
import torch
from torch.func import stack_module_state

from rl_nfm.modular import HierarchicallyModular, Level, known_routing, redraw, wiring
from rl_nfm.modular.search import Draws, survivors
from rl_nfm.modular.tasks import boolean_task


def draws(*seeds):
    return Draws([torch.Generator().manual_seed(seed) for seed in seeds])


def test_the_best_quarter_of_each_seed_is_kept_and_the_rest_replaced_by_it():
    losses = torch.tensor(
        [0.5, 0.1, 0.9, 0.2, 0.8, 0.7, 0.6, 0.3] + [3.0, float("nan")] + [2.0] * 6
    )
    sources, new = survivors(losses, 8, draws(0, 1))
    assert new.tolist()[:8] == [True, False, True, False, True, True, True, True]
    assert set(sources[:8].tolist()) == {1, 3}
    assert sources[1] == 1
    assert sources[3] == 3
    # the second seed keeps two of its own, never the one that diverged
    assert new[8:].sum() == 6
    assert set(sources[8:].tolist()) <= {10, 11, 12, 13, 14, 15}


def candidates(shared: int | None, count: int = 8):
    models = []
    for seed in range(count):
        torch.manual_seed(seed)
        levels = [Level(positions=n, arch=(2, 5, 1), num_shared=shared) for n in (3, 2)]
        models.append(HierarchicallyModular(6, 2, levels))
    parameters, _ = stack_module_state(models)
    optimizer = torch.optim.Adam(parameters.values(), lr=0.01)
    sum((p * torch.rand_like(p)).sum() for p in parameters.values()).backward()
    optimizer.step()
    return models[0], parameters, optimizer


@pytest.mark.parametrize("shared", [None, 2])
def test_redrawn_positions_are_new_and_all_else_is_the_parent(shared):
    model, parameters, optimizer = candidates(shared)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    moments = {name: copy.deepcopy(optimizer.state[p]) for name, p in parameters.items()}
    losses = torch.tensor([5.0, 0.0, 6.0, 1.0, 7.0, 8.0, 9.0, 4.0])
    redraw(model, parameters, optimizer, losses, 8, draws(1))
    sources, new = survivors(losses, 8, draws(1))
    changed = torch.zeros(8, dtype=torch.int64)
    for name, parameter in parameters.items():
        parents = before[name][sources]
        same = (parameter == parents).flatten(1)
        assert same[~new].all(), name
        if name.startswith("banks") and shared:
            assert same.all(), name
        changed += (~same).any(1)
        # moments go with the parent, and are zero where the value is new
        average = optimizer.state[parameter]["exp_avg"]
        expected = torch.where(
            parameter == parents, moments[name]["exp_avg"][sources], torch.zeros(())
        )
        torch.testing.assert_close(average, expected)
    assert (changed[new] > 0).all()
    assert (changed[~new] == 0).all()


def test_a_seed_is_redrawn_alike_alone_and_beside_others():
    losses = torch.tensor([5.0, 0.0, 6.0, 1.0])
    found = []
    for alone in (True, False):
        model, parameters, optimizer = candidates(None, 4)
        if not alone:  # behind another seed, whose candidates come first
            _, others, _ = candidates(None, 8)
            parameters = {
                name: torch.cat([others[name].detach()[4:], p.detach()]).requires_grad_()
                for name, p in parameters.items()
            }
            optimizer = torch.optim.Adam(parameters.values(), lr=0.01)
        here = losses if alone else torch.cat([torch.tensor([0.0, 1.0, 2.0, 3.0]), losses])
        redraw(model, parameters, optimizer, here, 4, draws(7) if alone else draws(3, 7))
        found.append({name: p.detach()[-4:] for name, p in parameters.items()})
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def test_a_position_changes_as_a_whole():
    model, parameters, optimizer = candidates(None)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    losses = torch.arange(8.0)
    redraw(model, parameters, optimizer, losses, 8, draws(2))
    sources, _ = survivors(losses, 8, draws(2))
    for level in range(2):
        logits = parameters[f"module_input_logits.{level}"]
        moved = (logits != before[f"module_input_logits.{level}"][sources])[:, 0]  # [8, N, M]
        assert (moved.all(1) == moved.any(1)).all()
        bank = parameters[f"banks.{level}.weights.0"]
        weights = (bank != before[f"banks.{level}.weights.0"][sources]).flatten(2).any(2)
        assert torch.equal(weights, moved.any(1))


def test_known_logits_are_not_redrawn():
    torch.manual_seed(0)
    routing = known_routing([boolean_task((6, 3, 2, 2))], (3, 2))
    levels = [Level(positions=n, arch=(2, 5, 1)) for n in (3, 2)]
    models = [HierarchicallyModular(6, 2, levels, known_inputs=routing) for _ in range(4)]
    parameters, _ = stack_module_state(models)
    before = parameters["module_input_logits.0"].clone()
    optimizer = torch.optim.Adam([p for p in parameters.values() if p.requires_grad])
    redraw(models[0], parameters, optimizer, torch.rand(4), 4, draws(0))
    assert torch.equal(parameters["module_input_logits.0"], before)


def test_wiring_does_not_see_the_order_of_modules_and_inputs():
    one = (((0, 1), (2, 3), (4, 5)), ((0, 1), (1, 2)), ((0, 1),))
    two = (((5, 4), (0, 1), (3, 2)), ((2, 0), (2, 1)), ((1, 0),))  # modules and inputs swapped
    assert wiring(one) == wiring(two)
    outputs_swapped = (*one[:2], ((1, 0),))
    assert wiring(one) != wiring(outputs_swapped)
    assert wiring(one)[0] == frozenset({frozenset({0, 1}), frozenset({2, 3})})


def test_chosen_units_are_the_known_ones():
    routing = known_routing([boolean_task((6, 3, 2, 2))], (3, 2))
    levels = [Level(positions=n, arch=(2, 5, 1)) for n in (3, 2)]
    model = HierarchicallyModular(6, 2, levels, known_inputs=routing)
    found = tuple(
        tuple(tuple(pair) for pair in units[0].T.tolist()) for units in model.chosen_units()
    )
    assert found == routing.module_inputs[0]
