"""Groups of one size: nothing lost, nothing mixed, memory bounded."""

from hypothesis import given
from hypothesis import strategies as st

from ktse_dist.inference.same_size import WAITING, same_size

SIDES = st.integers(1, 9)


@given(st.lists(st.tuples(SIDES, SIDES)), st.integers(1, 60))
def test_every_item_comes_once_among_its_like_within_the_budget(shapes, pixels):
    taken = 0
    groups = []
    held = 0

    def arriving():
        nonlocal taken
        for number, shape in enumerate(shapes):
            taken += shape[0] * shape[1]
            yield number, shape

    for group in same_size(arriving(), lambda item: item[1], pixels):
        groups.append(group)
        (shape,) = {item[1] for item in group}
        size = shape[0] * shape[1]
        assert len(group) == 1 or len(group) * size <= pixels
        held = max(held, taken)
        taken -= len(group) * size
        assert taken <= WAITING * pixels + 81
    assert sorted(item for group in groups for item in group) == list(enumerate(shapes))


def test_pictures_of_one_size_go_together():
    assert [len(g) for g in same_size([(2, 3)] * 10, lambda item: item, 24)] == [4, 4, 2]
