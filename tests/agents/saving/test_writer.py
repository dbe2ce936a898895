"""Which rows of the replay go into which file of a checkpoint."""

import pytest

from agents.saving.writer import chunks


@pytest.mark.parametrize(("rows", "size"), [(7, 3), (6, 2), (5, 9), (1, 1)])
def test_a_chunk_is_named_by_the_newest_row_in_it(rows, size):
    """So what is in a file of that name is never out of date."""
    ring = []
    for row in range(4 * rows):
        ring[row % rows : row % rows + 1] = [row]
        files = chunks(row + 1, rows, size)
        assert [held for place in files.values() for held in ring[place]] == ring
        for name, place in files.items():
            assert name == f"replay-{place.start:08d}-{max(ring[place]):012d}"
