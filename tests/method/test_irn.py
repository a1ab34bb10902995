"""IRN's losses against the published ones."""

import numpy as np
import torch

from ktse_dist.method.irn import count_pairs, irn_losses, pair_kinds
from ktse_dist.method.paths import paths


def losses_of(arrays):
    edge, displacement = (torch.tensor(arrays[name], requires_grad=True) for name in ("edge_logits", "disp"))
    return edge, displacement, irn_losses(edge, displacement, torch.tensor(arrays["seg_maps"]))


def test_losses_are_the_published_ones(golden):
    arrays = golden("irn")
    _, _, losses = losses_of(arrays)
    displacement = arrays["loss_dp_fg"] + arrays["loss_dp_bg"]
    for name, expected in (
        ("same", arrays["loss_pos"]),
        ("different", arrays["loss_neg"]),
        ("displacement", displacement),
        ("total", arrays["loss_total"]),
    ):
        np.testing.assert_allclose(losses[name].item(), expected, rtol=1e-4)


def test_gradients_are_the_published_ones(golden):
    arrays = golden("irn")
    edge, displacement, losses = losses_of(arrays)
    losses["total"].backward()
    np.testing.assert_allclose(edge.grad, arrays["grad_edge"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(displacement.grad, arrays["grad_disp"], rtol=1e-4, atol=1e-6)


def test_pairs_are_the_published_ones(golden):
    arrays = golden("irn")
    labels = torch.tensor(arrays["seg_maps"])
    pairs = tuple(arrays["aff_shape"])
    published = [np.unpackbits(arrays[f"aff_{kind}"], axis=-1, count=pairs[2]) for kind in ("bg_pos", "fg_pos", "neg")]
    for number, way in enumerate(paths(10)):
        for kind, expected in zip(pair_kinds(labels, way.end), published, strict=True):
            np.testing.assert_array_equal(kind.flatten(1), expected[:, number])
    assert count_pairs(labels).tolist() == [kind.sum() for kind in published]


def test_a_batch_without_any_known_pair_has_a_loss_of_zero():
    edge, displacement = torch.randn(1, 1, 24, 24, requires_grad=True), torch.randn(1, 2, 24, 24, requires_grad=True)
    total = irn_losses(edge, displacement, torch.full((1, 24, 24), 255, dtype=torch.uint8))["total"]
    total.backward()
    assert total == 0
    assert not edge.grad.any() and not displacement.grad.any()
