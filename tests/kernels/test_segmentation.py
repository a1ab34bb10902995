"""seg_loss: the published numbers, one answer from both paths, and the cases at the edge."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels.ops.present import all_pixels
from kernels.ops.segmentation import eager, reference

PATHS = pytest.mark.parametrize("path", [reference, eager], ids=["reference", "eager"])
CASES = pytest.mark.parametrize("case", ["mixed", "nomulti", "nosingle", "all255", "nobg", "nofg_single"])
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def run(path, logits, *rest, **named):
    """total, terms and the gradient of 3 * total (so that a lost factor shows)."""
    logits = logits.detach().clone().requires_grad_()
    total, terms = path.seg_loss(logits, *rest, **named)
    (grad,) = torch.autograd.grad(3 * total, logits)
    return total.detach(), terms, grad / 3


def published(golden, name, case):
    """Logits, then the arrays of one case, published NaN values (terms without pixels) as 0."""
    arrays = {key: torch.from_numpy(array) for key, array in golden(name).items()}
    values = {key.removeprefix(f"{case}_"): array for key, array in arrays.items() if key.startswith(f"{case}_")}
    values = {key: array.nan_to_num() if array.is_floating_point() else array for key, array in values.items()}
    return arrays["cam_seg"], values, arrays.get("cam_fg")


@st.composite
def problems(draw):
    """Logits with ties, targets with ignored pixels, tags of none, one or several classes, a foreground."""
    batch, classes = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 5, 20, 90]))
    small = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    large = draw(st.tuples(st.integers(1, 17), st.integers(1, 17)))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(batch, classes + 1, *small) * 2
    if draw(st.booleans()):
        logits[:, 1:] = logits[:, 1:2]  # every class ties with the best
    target = torch.randint(0, classes + 1, (batch, *large))
    target[torch.rand(batch, *large) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = 255
    labels = (torch.rand(batch, classes) < draw(st.sampled_from([0.0, 0.1, 0.6]))).float()
    target = target.to(draw(st.sampled_from([torch.uint8, torch.int64])))
    return logits, target, labels, torch.rand(batch, 1, *large)


@PATHS
@CASES
def test_terms_match_the_published_numbers(golden, path, case):
    logits, values, foreground = published(golden, "seg_loss", case)
    _, terms, _ = run(path, logits, values["label"], values["cls"], foreground)
    expected = {"bg": values["bg_true"], "fg": values["fg"].reshape(()), "inter": values["inter"].reshape(())}
    torch.testing.assert_close(terms, expected, **CLOSE)


@PATHS
@CASES
def test_total_is_the_published_weighting_of_the_terms(golden, path, case):
    logits, values, foreground = published(golden, "seg_loss", case)
    total, _, _ = run(path, logits, values["label"], values["cls"], foreground)
    expected = values["bg_true"] + 0.0125 * values["fg"].sum() + 0.005 * values["inter"].sum()
    torch.testing.assert_close(total, expected, **CLOSE)


@PATHS
@CASES
def test_gradient_matches_the_published_numbers(golden, path, case):
    logits, values, foreground = published(golden, "seg_loss", case)
    _, _, grad = run(path, logits, values["label"], values["cls"], foreground)
    torch.testing.assert_close(grad, values["grad_cam_seg"], rtol=1e-4, atol=1e-8)


@PATHS
@CASES
def test_loss_without_tags_matches_the_published_numbers(golden, path, case):
    logits, values, _ = published(golden, "seg_loss2", case)
    total, terms, grad = run(path, logits, values["label"], None, None)
    torch.testing.assert_close(grad, values["grad_cam_seg"], rtol=1e-4, atol=1e-8)
    expected = 0.0125 * terms["fg"] if case == "nobg" else values["total"]  # published: NaN
    torch.testing.assert_close(total, expected, **CLOSE)


@settings(max_examples=60, deadline=None)
@given(problems(), st.booleans())
def test_fast_loss_and_gradient_equal_the_reference(problem, with_tags):
    logits, target, labels, foreground = problem
    rest = (target, labels, foreground) if with_tags else (target, None, None)
    fast, plain = (run(path, logits, *rest, fg_weight=0.5, inter_weight=0.7) for path in (eager, reference))
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)


def test_the_path_that_never_asks_the_host_equals_the_reference(golden, monkeypatch):
    monkeypatch.setattr(eager, "weighted_pixels", all_pixels)
    logits, values, foreground = published(golden, "seg_loss", "mixed")
    dense, plain = (run(path, logits, values["label"], values["cls"], foreground) for path in (eager, reference))
    torch.testing.assert_close(dense, plain, rtol=1e-5, atol=1e-7)


def test_autocast_does_not_lower_the_precision_of_the_gradient():
    logits, target = torch.randn(2, 5, 7, 7), torch.randint(0, 5, (2, 32, 32))
    with torch.autocast("cpu", torch.bfloat16):
        lowered = run(eager, logits, target, None, None)
    torch.testing.assert_close(lowered, run(eager, logits, target, None, None), rtol=0, atol=0)


@settings(max_examples=20, deadline=None)
@given(problems())
def test_parts_over_the_counts_of_all_add_up_to_the_whole(problem):
    logits, target, labels, foreground = problem
    whole = run(eager, *problem)
    counts = kernels.seg_counts(target, labels, foreground)
    pieces = [run(eager, *(x[i : i + 1] for x in problem), counts=counts) for i in range(len(logits))]
    torch.testing.assert_close(sum(piece[0] for piece in pieces), whole[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([piece[2] for piece in pieces]), whole[2], rtol=1e-5, atol=1e-5)


def test_counts_are_the_pixels_of_each_term():
    target = torch.tensor([[[0, 1, 255]], [[0, 0, 2]], [[2, 1, 1]]], dtype=torch.uint8)
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    foreground = torch.tensor([0.9, 0.9, 0.9, 0.2, 0.3, 0.1, 0.9, 0.9, 0.9]).view(3, 1, 1, 3)
    assert kernels.seg_counts(target, labels, foreground).tolist() == [3, 1, 1]
    assert kernels.seg_counts(target, None, None).tolist() == [3, 5, 0]


@PATHS
def test_a_batch_of_ignored_pixels_costs_nothing(path):
    target = torch.full((2, 6, 6), 255, dtype=torch.uint8)
    total, terms, grad = run(path, torch.randn(2, 4, 3, 3), target, None, None)
    assert total == 0 and all(term == 0 for term in terms.values()) and grad.abs().max() == 0


@PATHS
def test_an_image_without_tags_counts_for_background_only(path):
    target = torch.tensor([[[0, 1], [2, 255]]], dtype=torch.uint8)
    _, terms, _ = run(path, torch.randn(1, 4, 2, 2), target, torch.zeros(1, 3), torch.ones(1, 1, 2, 2))
    assert terms["bg"] > 0 and terms["fg"] == 0 and terms["inter"] == 0


@PATHS
def test_every_class_that_ties_with_the_best_counts_as_zero(path):
    logits = torch.tensor([0.0, 3.0, 3.0, 2.0]).view(1, 4, 1, 1)
    target, labels = torch.full((1, 1, 1), 255, dtype=torch.uint8), torch.ones(1, 3)
    _, terms, grad = run(path, logits, target, labels, torch.ones(1, 1, 1, 1), inter_weight=1.0)
    assert terms["inter"].item() == pytest.approx(2.0 - 3.0, abs=1e-4)
    assert grad.flatten().tolist() == pytest.approx([0, 0, 0, 1], abs=1e-4)


@PATHS
def test_terms_carry_no_gradient(path):
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    total, terms = path.seg_loss(logits, torch.zeros(1, 4, 4, dtype=torch.uint8), None, None)
    assert total.requires_grad and not any(term.requires_grad for term in terms.values())


@PATHS
def test_logits_without_gradient_give_the_same_loss(path):
    logits, target = torch.randn(2, 3, 2, 2), torch.randint(0, 3, (2, 8, 8))
    with torch.no_grad():
        total, _ = path.seg_loss(logits, target, None, None)
    torch.testing.assert_close(total, run(path, logits, target, None, None)[0])


@PATHS
def test_half_precision_logits_get_a_gradient_close_to_that_of_single_precision(path):
    logits, target = torch.randn(2, 3, 4, 4).bfloat16(), torch.randint(0, 3, (2, 16, 16))
    half, single = run(path, logits, target, None, None), run(path, logits.float(), target, None, None)
    torch.testing.assert_close(half[0], single[0])
    assert half[2].dtype == torch.bfloat16
    torch.testing.assert_close(half[2].float(), single[2], rtol=2e-2, atol=1e-4)
