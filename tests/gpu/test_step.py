"""A training step on a GPU never waits for it: CUDA's own check, of which tests/method has a copy for CPUs."""

import pytest
import torch

from ktse_dist import models
from ktse_dist.config_file import load_config
from ktse_dist.method.batch import Batch
from ktse_dist.method.ktse import KTSE


@pytest.mark.parametrize(("preset", "precision"), [("published", "fp32"), ("corrected", "bf16")])
@pytest.mark.parametrize("phase", [1, 2])
def test_no_step_waits_for_the_device(preset, precision, phase):
    config = load_config(None, [f"method.preset={preset}", "model.weights=none"])
    module = KTSE(*models.build(config.model, 3), config.method, precision).cuda()
    pictures = batch().to(torch.device("cuda"))
    for _ in range(2):  # kernels are compiled, constants reach the device, graphs are recorded
        module(pictures, phase)["total"].backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        total = module(pictures, phase)["total"]
        total.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(total)


def batch() -> Batch:
    size, pictures, pairs = 64, 2, 1
    pixels = torch.randint(0, 256, (pictures + pairs, 3, size, size), dtype=torch.uint8)
    inside = torch.tensor([[0, 0, size, size]] * (pictures + pairs), dtype=torch.int32)
    labels = torch.tensor([[1.0, 0, 1], [0, 1, 0], [0, 1, 1]])
    own, others = (pixels[:2], inside[:2], labels[:2], torch.arange(2)), (pixels[2:], inside[2:], labels[2:])
    return Batch(*own, *others, pictures=pictures, pairs=pairs, local_pairs=pairs, most_tags=2)
