"""max_norm, foreground and erase: the published numbers, one answer from both paths, and the cases at the edge."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels.ops.erasing import eager, function, reference

PATHS = pytest.mark.parametrize("path", [reference, eager, function], ids=["reference", "eager", "triton"])
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


@st.composite
def tagged_cams(draw):
    """A CAM with signed, flat and tied places, tags (also none), and a size to upsample to (or None)."""
    batch, classes = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 9, 20]))
    height, width = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    noise = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    cam = torch.randn(batch, classes, height, width, generator=noise)
    cam = (cam * 2).round() if draw(st.booleans()) else cam
    cam = cam.contiguous(memory_format=torch.channels_last) if draw(st.booleans()) else cam
    labels = (torch.rand(batch, classes, generator=noise) < draw(st.sampled_from([0.0, 0.3, 1.0]))).float()
    size = draw(st.none() | st.tuples(st.integers(1, 20), st.integers(1, 20)))
    return cam, labels, size


def test_max_norm_matches_the_published_numbers(golden):
    arrays = {name: torch.from_numpy(array) for name, array in golden("max_norm").items()}
    torch.testing.assert_close(reference.max_norm(arrays["cam"]), arrays["out"], **CLOSE)


def test_max_norm_gradient_matches_the_published_numbers(golden):
    arrays = {name: torch.from_numpy(array) for name, array in golden("max_norm").items()}
    cam = arrays["cam"].requires_grad_()
    (reference.max_norm(cam) * arrays["R"]).sum().backward()
    torch.testing.assert_close(cam.grad, arrays["grad_cam"], **CLOSE)


@PATHS
def test_foreground_of_the_small_map_matches_the_published_numbers(golden, path):
    arrays = {name: torch.from_numpy(array) for name, array in golden("local_align").items()}
    torch.testing.assert_close(path.foreground(arrays["cam"], arrays["label"]), arrays["cam_ori_fg"], **CLOSE)


@PATHS
def test_foreground_of_the_upsampled_map_matches_the_published_numbers(golden, path):
    arrays = {name: torch.from_numpy(array) for name, array in golden("erase_mask").items()}
    torch.testing.assert_close(path.foreground(arrays["cam"], arrays["label"], (64, 64)), arrays["cam_fg"], **CLOSE)


@PATHS
def test_erase_matches_the_published_numbers(golden, path):
    arrays = {name: torch.from_numpy(array) for name, array in golden("erase_mask").items()}
    erased = path.erase(arrays["img"], arrays["cam"], arrays["label"], 0.6)
    certain = ((arrays["cam_fg"] - 0.6).abs() >= 1e-4).expand_as(erased)
    torch.testing.assert_close(erased[certain], arrays["erased"][certain], **CLOSE)


@settings(max_examples=60, deadline=None)
@given(tagged_cams())
def test_fast_foreground_equals_the_reference(drawn):
    torch.testing.assert_close(eager.foreground(*drawn), reference.foreground(*drawn), rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(tagged_cams(), st.floats(0.05, 0.95))
def test_fast_erase_equals_the_reference_away_from_the_threshold(drawn, threshold):
    cam, labels, _ = drawn
    images = torch.randn(len(cam), 3, 17, 13)
    certain = (reference.foreground(cam, labels, (17, 13)) - threshold).abs() > 1e-5
    fast, plain = (path.erase(images, cam, labels, threshold) * certain for path in (eager, reference))
    torch.testing.assert_close(fast, plain, rtol=0, atol=0)


def test_the_path_that_never_asks_the_host_equals_the_reference(monkeypatch):
    monkeypatch.setattr(eager, "most_tags", lambda labels: labels.shape[1])
    cam, labels = torch.randn(2, 19, 4, 5), (torch.rand(2, 19) < 0.5).float()
    dense, plain = (path.foreground(cam, labels, (16, 20)) for path in (eager, reference))
    torch.testing.assert_close(dense, plain, rtol=1e-5, atol=1e-5)


@PATHS
def test_an_image_without_labels_keeps_every_pixel(path):
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(path.erase(images, torch.randn(2, 5, 4, 4), torch.zeros(2, 5), 0.6), images)


@PATHS
def test_more_present_classes_than_fit_at_once_all_count(path):
    cam = -torch.ones(1, 90, 4, 4)
    cam[0, 77, 1, 2] = 3.0
    assert path.foreground(cam, torch.ones(1, 90))[0, 0, 1, 2] > 0.99


@PATHS
def test_an_absent_class_erases_nothing(path):
    cam = torch.zeros(1, 2, 4, 4)
    cam[0, 1, 0, 0] = 9.0
    assert path.foreground(cam, torch.tensor([[1.0, 0.0]])).max() == 0


def test_nothing_carries_gradient():
    cam, images = torch.randn(1, 2, 4, 4, requires_grad=True), torch.randn(1, 3, 8, 8, requires_grad=True)
    outputs = kernels.foreground(cam, torch.ones(1, 2)), kernels.erase(images, cam, torch.ones(1, 2), 0.5)
    assert not any(output.requires_grad for output in outputs)


@PATHS
def test_half_precision_pictures_stay_half_precision(path):
    images, cam = torch.randn(1, 3, 8, 8).bfloat16(), torch.randn(1, 2, 4, 4).bfloat16()
    assert path.erase(images, cam, torch.ones(1, 2), 0.5).dtype == torch.bfloat16
