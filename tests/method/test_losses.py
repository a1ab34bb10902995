"""Losses without kernels."""

import numpy as np
import torch

from ktse_dist.method.losses import global_alignment_loss


def test_global_alignment_matches_the_published_numbers(golden):
    arrays = golden("global_align")
    cam, erased = (torch.from_numpy(arrays[name]).requires_grad_() for name in ("cam", "cam_mask"))
    loss = global_alignment_loss(cam, erased, torch.from_numpy(arrays["label"]))
    loss.backward()
    for ours, name in ((loss.detach(), "loss"), (cam.grad, "grad_cam"), (erased.grad, "grad_cam_mask")):
        np.testing.assert_allclose(ours.numpy(), arrays[name], rtol=1e-4, atol=1e-6)
