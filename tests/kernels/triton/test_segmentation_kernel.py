"""seg_loss and seg_counts as kernels, in Triton's interpreter: the published numbers, and the reference everywhere."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.ops.segmentation import function, reference

WEIGHTS = {"fg_weight": 0.5, "inter_weight": 0.7}  # large enough for every term to show


def run(path, logits, *rest, **named):
    """total, terms and the gradient of 3 * total (so that a lost factor shows)."""
    logits = logits.detach().requires_grad_()
    total, terms = path.seg_loss(logits, *rest, **named)
    (grad,) = torch.autograd.grad(3 * total, logits)
    return total.detach(), terms, grad.float() / 3


def both(*problem, **named):
    return run(function, *problem, **WEIGHTS, **named), run(reference, *problem, **WEIGHTS, **named)


def problem(batch=2, classes=5, small=(1, 2), large=(9, 13), seed=0, ignored=0.3, tagged=0.5):
    """Logits, targets with ignored pixels, tags, a foreground; all noise."""
    noise = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, classes + 1, *small, generator=noise)
    target = torch.randint(0, classes + 1, (batch, *large), generator=noise)
    target[torch.rand(batch, *large, generator=noise) < ignored] = 255
    labels = (torch.rand(batch, classes, generator=noise) < tagged).float()
    return logits, target, labels, torch.rand(batch, 1, *large, generator=noise)


@st.composite
def problems(draw, dtype=torch.float32):
    """Any shape and layout; no label to all labels; no pixel ignored to all; noise, zero logits, or exact ties.

    Tied logits are whole numbers and their scale is 8, so that scores are exact in any order of operations:
    F.interpolate rounds equal channels differently, which in the reference breaks ties.
    """
    kind = draw(st.sampled_from(["noise", "noise", "ties", "zero"]))
    batch, small = draw(st.sampled_from([(1, (3, 2)), (1, (2, 3)), (2, (1, 2)), (5, (1, 1))]))
    large = tuple(8 * length if kind == "ties" else draw(st.integers(1, 10 * length)) for length in small)
    logits, target, labels, foreground = problem(
        batch, draw(st.sampled_from([1, 2, 5, 20, 90])), small, large, draw(st.integers(0, 2**31)),
        draw(st.sampled_from([0.0, 0.3, 1.0])), draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
    )  # fmt: skip
    logits = {"noise": logits, "ties": logits.round(), "zero": logits * 0}[kind].to(dtype)
    if draw(st.booleans()):
        target[target == 0] = 255
    target = target.to(draw(st.sampled_from([torch.uint8, torch.int64])))
    logits = logits.contiguous(memory_format=torch.channels_last) if draw(st.booleans()) else logits
    return (logits, target, labels, foreground) if draw(st.booleans()) else (logits, target, None, None)


def published(golden, name, case):
    """Logits and foreground, then the arrays of one case; published NaN values (terms without pixels) as 0."""
    arrays = {key: torch.from_numpy(array) for key, array in golden(name).items()}
    values = {key.removeprefix(f"{case}_"): array for key, array in arrays.items() if key.startswith(f"{case}_")}
    values = {key: array.nan_to_num() if array.is_floating_point() else array for key, array in values.items()}
    return arrays["cam_seg"], arrays.get("cam_fg"), values


def test_terms_total_and_gradient_match_the_published_numbers(golden):
    logits, foreground, values = published(golden, "seg_loss", "mixed")
    total, terms, grad = run(function, logits, values["label"], values["cls"], foreground)
    expected = {"bg": values["bg_true"], "fg": values["fg"], "inter": values["inter"]}
    torch.testing.assert_close(terms, expected, rtol=1e-4, atol=1e-6)
    weighted = expected["bg"] + 0.0125 * expected["fg"] + 0.005 * expected["inter"]
    torch.testing.assert_close(total, weighted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(grad, values["grad_cam_seg"], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("case", ["nomulti", "nosingle", "all255", "nobg", "nofg_single"])
def test_an_image_over_the_counts_of_its_batch_gets_the_published_gradient(golden, case):
    logits, foreground, values = published(golden, "seg_loss", case)
    batch = values["label"], values["cls"], foreground
    image = values["grad_cam_seg"].abs().sum(dim=(1, 2, 3)).argmax()
    drawn = (tensor[image : image + 1] for tensor in (logits, *batch))
    *_, grad = run(function, *drawn, counts=function.seg_counts(*batch))
    torch.testing.assert_close(grad[0], values["grad_cam_seg"][image], rtol=1e-4, atol=1e-8)


def test_an_image_without_tags_gets_the_published_gradient(golden):
    logits, _, values = published(golden, "seg_loss2", "mixed")
    counts = function.seg_counts(values["label"], None, None)
    *_, grad = run(function, logits[:1], values["label"][:1], None, None, counts=counts)
    torch.testing.assert_close(grad, values["grad_cam_seg"][:1], rtol=1e-4, atol=1e-8)


@settings(max_examples=18)
@given(problems())
def test_loss_and_gradient_equal_the_reference(drawn):
    torch.testing.assert_close(*both(*drawn), rtol=1e-5, atol=1e-5)


@settings(max_examples=6)
@given(problems(torch.bfloat16))
def test_half_precision_logits_give_the_loss_and_gradient_of_the_reference(drawn):
    fused, plain = both(*drawn)
    torch.testing.assert_close(fused[:2], plain[:2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused[2], plain[2], rtol=2e-2, atol=1e-5)


@settings(max_examples=25)
@given(problems())
def test_counts_equal_those_of_the_reference(drawn):
    assert torch.equal(function.seg_counts(*drawn[1:]), reference.seg_counts(*drawn[1:]))


@pytest.mark.parametrize("large", [(1, 1), (3, 2), (5, 4), (7, 31), (30, 24)])
def test_any_scale_equals_the_reference(large):
    torch.testing.assert_close(*both(*problem(1, 4, (3, 4), large)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("classes", [64, 130, 1000])
def test_any_number_of_classes_equals_the_reference(classes):
    torch.testing.assert_close(*both(*problem(1, classes, (1, 1), (8, 6))), rtol=1e-5, atol=1e-5)


def test_layouts_change_no_bit_of_the_loss_and_of_the_gradient():
    logits, *rest = problem(1, 5, (1, 2), (8, 16))
    sliced = torch.cat([torch.full((1, 2, 1, 2), 9.0), logits], dim=1).contiguous(memory_format=torch.channels_last)
    for other in (logits.contiguous(memory_format=torch.channels_last), sliced[:, 2:], logits.mT.contiguous().mT):
        torch.testing.assert_close(run(function, other, *rest), run(function, logits, *rest), rtol=0, atol=0)


def test_parts_over_the_counts_of_all_ranks_add_up_to_the_whole():
    drawn = problem(2, 3, (1, 2))
    whole = run(function, *drawn)
    ranks = [tuple(tensor[rank : rank + 1] for tensor in drawn) for rank in (0, 1)]
    counts = sum(function.seg_counts(*rank[1:]) for rank in ranks)
    parts = [run(function, *rank, counts=counts) for rank in ranks]
    torch.testing.assert_close(sum(part[0] for part in parts), whole[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.cat([part[2] for part in parts]), whole[2], rtol=1e-5, atol=1e-6)


def test_every_class_that_ties_with_the_best_counts_as_zero():
    logits = torch.tensor([0.0, 3.0, 3.0, 2.0]).view(1, 4, 1, 1)
    target, labels = torch.full((1, 1, 1), 255, dtype=torch.uint8), torch.ones(1, 3)
    _, terms, grad = run(function, logits, target, labels, torch.ones(1, 1, 1, 1), inter_weight=1.0)
    assert terms["inter"].item() == pytest.approx(2.0 - 3.0, abs=1e-4)
    assert grad.flatten().tolist() == pytest.approx([0, 0, 0, 1], abs=1e-4)


@pytest.mark.parametrize("second_bests", [(2, 3), (1, 70), (66, 75)])
def test_of_several_second_bests_the_first_alone_gets_a_gradient(second_bests):
    logits = torch.zeros(1, 81, 2, 2)
    logits[:, 5], logits[:, second_bests] = 4.0, 3.0
    target, labels = torch.full((1, 8, 8), 255, dtype=torch.uint8), torch.ones(1, 80)
    *_, grad = run(function, logits, target, labels, torch.ones(1, 1, 8, 8), inter_weight=1.0)
    assert grad.sum(dim=(0, 2, 3)).nonzero().flatten().tolist() == [second_bests[0]]
    assert grad.sum().item() == pytest.approx(1.0, abs=1e-4)


def test_a_runner_up_that_is_also_the_target_gets_both_gradients():
    logits = torch.tensor([0.0, 3.0, 2.0, 1.0]).view(1, 4, 1, 1).expand(1, 4, 2, 2)
    target, labels = torch.full((1, 16, 16), 2), torch.tensor([[1.0, 1.0, 0.0]])
    target[:, :8] = 0
    torch.testing.assert_close(*both(logits, target, labels, torch.ones(1, 1, 16, 16)), rtol=1e-5, atol=1e-6)


def test_a_batch_of_ignored_pixels_costs_nothing():
    logits, target, labels, _ = problem(2, 4)
    total, terms, grad = run(function, logits, target.fill_(255), labels, torch.zeros(2, 1, 9, 13))
    assert total == 0 and all(term == 0 for term in terms.values()) and grad.abs().max() == 0


def test_logits_of_thousands_give_the_loss_and_gradient_of_the_reference():
    logits, *rest = problem(2, 5, (1, 2))
    torch.testing.assert_close(*both(1000 * logits, *rest), rtol=1e-5, atol=1e-5)


def test_a_broken_logit_breaks_the_loss():
    logits, target, *_ = problem(1, 4, (1, 2), ignored=0.0)
    logits[0, 3, 0, 1] = float("nan")
    assert function.seg_loss(logits, target, None, None)[0].isnan()


def test_terms_carry_no_gradient_and_a_loss_without_gradient_is_the_same():
    logits, *rest = problem()
    total, terms = function.seg_loss(logits.requires_grad_(), *rest)
    assert total.requires_grad and not any(term.requires_grad for term in terms.values())
    torch.testing.assert_close(function.seg_loss(logits.detach(), *rest), (total.detach(), terms), rtol=0, atol=0)
