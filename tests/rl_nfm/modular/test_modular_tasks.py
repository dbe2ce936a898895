import itertools

import pytest
import torch

from rl_nfm.modular import boolean_task, known_routing


def rows(task):
    return [tuple(int(v) for v in row) for row in task.truth_table()[0]]


def labels(task):
    return [tuple(int(v) for v in row) for row in task.truth_table()[1]]


def test_the_table_has_all_rows_in_counting_order():
    task = boolean_task((6, 3, 2, 2))
    assert rows(task) == list(itertools.product((0, 1), repeat=6))


NAIVE = {
    (6, 2): lambda x: (x[0] ^ x[1], x[2] ^ x[3]),
    (6, 2, 2): lambda x: (x[0] ^ x[1], x[2] ^ x[3]),
    (6, 3, 2, 2): lambda x: (
        (x[0] ^ x[1]) & (x[2] ^ x[3]),
        (x[2] ^ x[3]) & (x[4] ^ x[5]),
    ),
    # g1 = f1 f2, g2 = f2 f3, g3 = f1 f3; outputs g1 or g3, g2 or g3
    (6, 3, 3, 2, 2): lambda x: (
        ((x[0] ^ x[1]) & (x[2] ^ x[3])) | ((x[0] ^ x[1]) & (x[4] ^ x[5])),
        ((x[2] ^ x[3]) & (x[4] ^ x[5])) | ((x[0] ^ x[1]) & (x[4] ^ x[5])),
    ),
    # the bits of two digits, highest first
    (2, 2, 3, 2, 2): lambda x: (
        (x[0] ^ x[3]) & (x[1] ^ x[4]),
        (x[1] ^ x[4]) & (x[2] ^ x[5]),
    ),
}


@pytest.mark.parametrize("modularity", NAIVE)
def test_labels_are_the_published_functions(modularity):
    task = boolean_task(modularity)
    assert labels(task) == [NAIVE[modularity](row) for row in rows(task)]


@pytest.mark.parametrize(
    ("task", "naive"),
    [
        (1, lambda x: ((x[0] | x[2]) & (x[3] | x[4]), (x[1] | x[5]) & (x[3] | x[4]))),
        (2, lambda x: ((x[0] | x[2]) & (x[4] ^ x[5]), (x[0] ^ x[1]) & (x[3] | x[4]))),
    ],
)
def test_the_other_two_tasks_are_the_published_functions(task, naive):
    variant = boolean_task((6, 3, 2, 2), task)
    assert labels(variant) == [naive(row) for row in rows(variant)]


def test_digits_share_a_bit_pattern():
    # 5 = 101 and 3 = 011: XOR 110, outputs (1 and 1, 1 and 0); 5 and 5: XOR 000
    task = boolean_task((2, 2, 3, 2, 2))
    bits = torch.tensor([[1, 0, 1, 0, 1, 1], [1, 0, 1, 1, 0, 1]])
    assert task.labels(bits).tolist() == [[True, False], [False, False]]


def test_all_zeros_scores_three_quarters():
    # XOR is 1 in half of the rows, the AND of two independent ones in a quarter
    assert boolean_task((6, 3, 2, 2)).truth_table()[1].mean(0).tolist() == [0.25, 0.25]


def test_other_modularities_have_tasks_too():
    task = boolean_task((8, 4, 5, 2, 2))
    inputs, outputs = task.truth_table()
    assert inputs.shape == (256, 8)
    assert outputs.shape == (256, 2)
    assert [len(level) for level in task.levels] == [4, 5, 2]
    assert [level[0].operation for level in task.levels] == ["xor", "and", "or"]


@pytest.mark.parametrize(
    ("modularity", "message"),
    [
        ((6, 4, 2, 2), r"'6 4 2 2' has no task: level 1 has 4 gates, but 6 give 3 disjoint"),
        ((6, 3, 4, 4), r"level 2 has 4 gates, but 3 give 3 pairs"),
        ((6, 3, 2, 3), r"both numbers must be equal"),
        ((6,), r"needs inputs and outputs"),
        ((6, 0), r"all positive"),
        ((40, 2), r"at most 16 inputs"),
    ],
)
def test_a_modularity_without_task_is_refused_in_one_line(modularity, message):
    with pytest.raises(ValueError, match=message) as error:
        boolean_task(modularity)
    assert "allowed, for example: 6 2; 6 2 2; 6 3 2 2" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("modularity", "task"), [((6, 3, 2, 2), 3), ((6, 2, 2), 1)])
def test_a_task_that_does_not_exist_is_refused(modularity, task):
    with pytest.raises(ValueError, match=r"num_tasks: .*allowed: up to 3 with 6 3 2 2, else 1"):
        boolean_task(modularity, task)


def test_known_routing_is_the_published_table():
    routing = known_routing([boolean_task((6, 3, 2, 2))], (3, 2), 2)
    assert routing.module_inputs == ((((0, 1), (2, 3), (4, 5)), ((0, 1), (1, 2)), ((0, 1),)),)
    assert routing.modules == (((0, 0, 0), (1, 1)),)


def test_modules_of_several_tasks_are_placed_by_operation():
    tasks = [boolean_task((6, 3, 2, 2), t) for t in range(3)]
    routing = known_routing(tasks, (6, 2))
    # XOR works at positions 0 to 2, OR at 3 to 5
    first, second, third = routing.module_inputs
    assert first == (((0, 1), (2, 3), (4, 5), (0, 1), (0, 1), (0, 1)), ((0, 1), (1, 2)), ((0, 1),))
    assert second[0][3:] == ((0, 2), (1, 5), (3, 4))
    assert second[1] == ((3, 5), (4, 5))
    assert third[0] == ((4, 5), (0, 1), (0, 1), (0, 2), (3, 4), (0, 1))
    assert third[1] == ((3, 0), (1, 4))
    assert routing.modules is None


def test_slots_of_several_tasks_name_their_module():
    tasks = [boolean_task((6, 3, 2, 2), t) for t in range(3)]
    routing = known_routing(tasks, (4, 2), 3)
    assert routing.modules is not None
    # modules in the order of first use: xor, and, or; an idle slot has module 0
    assert routing.modules[0] == ((0, 0, 0, 0), (1, 1))
    assert routing.modules[1] == ((2, 2, 2, 0), (1, 1))
    assert routing.modules[2] == ((2, 0, 0, 2), (1, 1))


@pytest.mark.parametrize(
    ("tasks", "positions", "shared", "message"),
    [
        (1, (3,), None, r"num_modules: \(3,\) has 1 levels \(allowed with known routing: 2\)"),
        (1, (2, 2), None, r"num_modules: 2 at level 1 is too few .*at least 3"),
        (3, (3, 2), None, r"num_modules: 3 at level 1 is too few .*at least 6"),
        (3, (3, 2), 3, r"num_slots: 3 at level 1 is too few .*at least 4"),
        (1, (3, 2), 1, r"num_shared_modules: 1 cannot compute xor, and .*at least 2"),
    ],
)
def test_a_network_too_small_for_known_routing_is_refused(tasks, positions, shared, message):
    with pytest.raises(ValueError, match=message):
        known_routing([boolean_task((6, 3, 2, 2), t) for t in range(tasks)], positions, shared)
