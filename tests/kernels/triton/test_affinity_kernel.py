"""par as kernels: one answer with the reference for any shape, layout and dilations.

The interpreter's time goes by programs, not by pixels: one program takes a whole picture here.
"""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels import tuning
from kernels.ops.affinity import function, reference

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True, scope="module")
def large_blocks():
    with pytest.MonkeyPatch.context() as patch:
        for kernel in ("affinity", "propagate"):
            patch.setitem(tuning.DEFAULT[kernel], "PIXELS", 4096)
        yield


@pytest.fixture
def small_blocks(monkeypatch):
    for kernel in ("affinity", "propagate"):
        monkeypatch.setitem(tuning.DEFAULT[kernel], "PIXELS", 32)


def test_the_published_numbers_after_ten_iterations(golden):
    arrays = {name: torch.from_numpy(array) for name, array in golden("par").items()}
    refined = function.par(arrays["img"][1:], arrays["mask_small"][1:])
    torch.testing.assert_close(refined, arrays["out_small"][1:], rtol=1e-4, atol=1e-6)


def test_the_published_numbers_after_one_iteration(golden):
    arrays = {name: torch.from_numpy(array) for name, array in golden("par").items()}
    refined = function.par(arrays["img"], arrays["mask"], iterations=1)
    torch.testing.assert_close(refined, arrays["out_iter1"], rtol=1e-4, atol=1e-6)


@st.composite
def problems(draw):
    """(pictures with runs of equal pixels, masks, dilations, iterations); any type and layout, channels sliced."""
    batch, height, width = draw(st.integers(1, 5)), draw(st.integers(1, 14)), draw(st.integers(1, 14))
    noise = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    images = torch.rand(batch, 4, height, width, generator=noise).mul(255).round().div(255)
    images[..., : draw(st.integers(0, width))] = 0.4
    count = draw(st.sampled_from([1, 3, 4, 5, 8, 11]))
    size = draw(st.sampled_from([(height, width), (5, 4)]))
    masks = draw(st.sampled_from([0, 1])) * torch.rand(batch, count + 1, *size, generator=noise)
    layout = draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
    types = st.sampled_from([torch.float32, torch.bfloat16])
    images, masks = (x.to(draw(types)).contiguous(memory_format=layout)[:, 1:] for x in (images, masks))
    return images, masks, draw(st.sampled_from([(1,), (2, 5), (3, 1, 24)])), draw(st.integers(0, 3))


@settings(max_examples=15)
@given(problems())
@example((torch.rand(1, 3, 5, 7), torch.rand(1, 90, 5, 7), (1,), 1))
def test_par_equals_the_reference(problem):
    images, masks, dilations, iterations = problem
    refined, expected = (path.par(images, masks, dilations, iterations) for path in (function, reference))
    close = CLOSE if masks.dtype == torch.float32 else {"rtol": 2e-2, "atol": 1e-5}
    torch.testing.assert_close(refined, expected, **close)


@pytest.mark.usefixtures("small_blocks")
def test_pictures_of_many_blocks_fit_together():
    images, masks = torch.rand(2, 3, 9, 11), torch.rand(2, 9, 9, 11)
    refined, expected = (path.par(images, masks, (1, 4), 2) for path in (function, reference))
    torch.testing.assert_close(refined, expected, **CLOSE)


def test_given_tensors_are_not_written_to():
    images, masks = torch.rand(1, 3, 4, 4), torch.rand(1, 4, 4, 4).contiguous(memory_format=torch.channels_last)
    before = masks.clone()
    function.par(images, masks, (1,), 3)
    assert torch.equal(masks, before)


def test_a_flat_picture_gives_the_mean_of_the_neighbours():
    refined = function.par(torch.full((1, 3, 3, 3), 0.3), torch.eye(9).view(1, 9, 3, 3), (1,), 1)
    expected = reference.par(torch.zeros(1, 3, 3, 3), torch.eye(9).view(1, 9, 3, 3), (1,), 1)
    torch.testing.assert_close(refined, expected, **CLOSE)


def test_masks_carry_no_gradient():
    assert not function.par(torch.rand(1, 3, 8, 8), torch.rand(1, 2, 8, 8, requires_grad=True), (1, 2), 2).requires_grad
