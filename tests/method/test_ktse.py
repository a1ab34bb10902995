"""The whole step against the published update, and what every switch changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ktse_dist.config.method import Detach, Erasing, Method, PseudoLabel, Segmentation, Transfer
from ktse_dist.data.palette import IGNORE
from ktse_dist.method.batch import Batch
from ktse_dist.method.ktse import KTSE
from ktse_dist.models.cam_head import CamHead
from ktse_dist.models.naming import GATES, from_published_name

PUBLISHED = Method(
    preset="published",
    transfer=Transfer(pairs=4),
    pseudo_label=PseudoLabel(division="raw", pixels="truncated", padding="labelled"),
    detach=Detach(**{"transfer": False, "local": False, "global": False}),
)
CORRECTED = Method()


class TinyBackbone(nn.Module):
    """The small network of the golden step (tests/golden/README.md), with its names."""

    channels, stride = 32, 8
    mean = tuple(255 * m for m in (0.485, 0.456, 0.406))
    std = tuple(255 * s for s in (0.229, 0.224, 0.225))

    def __init__(self):
        super().__init__()
        self.conv1a = nn.Conv2d(3, 12, 3, stride=2, padding=1, bias=False).requires_grad_(False)
        self.b2 = nn.ModuleDict({"conv": nn.Conv2d(12, 16, 3, stride=2, padding=1, bias=False)})
        self.b3 = nn.ModuleDict({"conv": nn.Conv2d(16, 24, 3, stride=2, padding=1)})
        self.b7 = nn.ModuleDict({"conv": nn.Conv2d(24, 32, 1, bias=False)})
        self.bn7 = nn.BatchNorm2d(32).requires_grad_(False).eval()

    def forward(self, images, keys=None):
        x = self.conv1a(images)
        for layer in (self.b2, self.b3, self.b7):
            x = layer["conv"](x).relu()
        return self.bn7(x).relu()


def ktse_of(arrays, config):
    module = KTSE(TinyBackbone(), CamHead(32, 20, hidden=16), config)
    start = {name[3:]: torch.from_numpy(array) for name, array in arrays.items() if name.startswith("w0_")}
    state = {from_published_name(name): tensor for name, tensor in start.items()}
    module.load_state_dict({name: tensor for name, tensor in state.items() if name})
    return module


def batch_of(arrays, pairs=4):
    labels, partner_labels = (torch.from_numpy(arrays[name]) for name in ("label", "label2"))
    count, size = len(labels), arrays["img"].shape[-1]
    whole = torch.tensor([[0, 0, size, size]]).expand(count, 4)
    pixels = torch.zeros(count, 3, size, size, dtype=torch.uint8)
    return Batch(
        pixels,
        whole,
        labels,
        torch.arange(count),
        pixels[:pairs],
        whole[:pairs],
        partner_labels[:pairs],
        pictures=count,
        pairs=pairs,
        local_pairs=pairs,
        most_tags=3,
    )


def losses_of(arrays, config, phase=2, batch=None):
    module, batch = ktse_of(arrays, config), batch or batch_of(arrays)
    images, partners = (torch.from_numpy(arrays[name]) for name in ("img", "img2"))
    return module, module.step(images, partners[: len(batch.partners)], batch, phase)


@pytest.fixture
def step(golden):
    return golden("step")


@pytest.mark.parametrize("phase", [1, 2])
def test_gradients_and_updated_weights_are_the_published_ones(step, phase):
    module, losses = losses_of(step, PUBLISHED, phase)
    losses["total"].backward()
    short = {name.removeprefix("backbone.").removeprefix("head."): p for name, p in module.named_parameters()}
    names = {GATES.get(name, name): parameter for name, parameter in short.items()}
    checked = 0
    for name, parameter in names.items():
        assert bool(step[f"p{phase}_hasgrad_{name}"]) == (parameter.grad is not None), name
        if parameter.grad is not None:
            np.testing.assert_allclose(
                parameter.grad, step[f"p{phase}_grad_{name}"], rtol=1e-4, atol=1e-6, err_msg=name
            )
            decay, rate = (0.0, 2.0) if name.endswith("bias") else (5e-4, 1.0)
            updated = parameter.detach() - 0.01 * rate * (parameter.grad + decay * parameter.detach())
            np.testing.assert_allclose(updated, step[f"p{phase}_w1_{name}"], rtol=1e-4, atol=1e-6, err_msg=name)
            checked += 1
    assert checked == 12


TERMS = {
    "cls": "p2_cls",
    "transfer": "p2_attr_loss_kt",
    "local": "p2_attr_loss_local_align",
    "global": "p2_attr_loss_global_align",
    "seg_bg": "p2_seg_bg",
    "seg_fg": "p2_attr_loss_seg_fg",
    "seg_inter": "p2_attr_loss_inter",
    "total": "p2_total",
}


@pytest.mark.parametrize("name", TERMS)
def test_every_loss_is_logged_under_its_true_value(step, name):
    _, losses = losses_of(step, PUBLISHED)
    np.testing.assert_allclose(losses[name].item(), step[TERMS[name]], rtol=1e-4, atol=1e-6)


def test_the_mixed_segmentation_loss_is_the_published_one(step):
    _, losses = losses_of(step, PUBLISHED)
    mixed = losses["mixed_bg"] + PUBLISHED.segmentation.fg_weight * losses["mixed_fg"]
    np.testing.assert_allclose(mixed.item(), step["p2_attr_loss_seg_two"], rtol=1e-4, atol=1e-6)


def test_phase_one_is_classification_alone(step):
    _, losses = losses_of(step, PUBLISHED, phase=1)
    assert losses.keys() == {"cls", "total"}
    np.testing.assert_allclose(losses["total"].item(), step["p1_total"], rtol=1e-4, atol=1e-6)


SWITCHES = {
    "sie": ({"sie": 0.0}, "transfer"),
    "ssr": ({"ssr": 0.0}, "seg_bg"),
    "mga": ({"mga": 0.0}, "local"),
}


@pytest.mark.parametrize("part", SWITCHES)
def test_a_part_with_weight_zero_is_off(step, part):
    change, gone = SWITCHES[part]
    _, losses = losses_of(step, PUBLISHED.model_copy(update=change))
    assert gone not in losses
    assert torch.isfinite(losses["total"])


def test_all_parts_off_is_classification(step):
    off = PUBLISHED.model_copy(update={"sie": 0.0, "ssr": 0.0, "mga": 0.0})
    _, losses = losses_of(step, off)
    assert torch.equal(losses["total"], losses["cls"])


VALUE_SWITCHES = {
    "erasing threshold": ({"erasing": Erasing(threshold=0.2)}, "local"),
    "alignment margin": ({"erasing": Erasing(margin=0.0)}, "local"),
    "transfer margin": ({"transfer": Transfer(margin=0.0, pairs=4)}, "transfer"),
    "division": ({"pseudo_label": PUBLISHED.pseudo_label.model_copy(update={"division": "relu"})}, "seg_bg"),
    "foreground weight": ({"segmentation": Segmentation(fg_weight=0.1)}, "total"),
    "runner-up weight": ({"segmentation": Segmentation(inter_weight=0.1)}, "total"),
    "runner-up threshold": ({"segmentation": Segmentation(inter_threshold=0.9)}, "seg_inter"),
    "pseudo-label levels": ({"pseudo_label": PUBLISHED.pseudo_label.model_copy(update={"high": 0.9})}, "seg_fg"),
}


@pytest.mark.parametrize("name", VALUE_SWITCHES)
def test_a_switch_changes_the_loss_it_is_about(step, name):
    change, loss = VALUE_SWITCHES[name]
    _, published = losses_of(step, PUBLISHED)
    _, changed = losses_of(step, PUBLISHED.model_copy(update=change))
    assert not torch.equal(published[loss], changed[loss])


@pytest.mark.parametrize(("switch", "loss"), [("transfer", "transfer"), ("local", "local"), ("global", "global")])
def test_detaching_a_teacher_changes_gradients_and_not_values(step, switch, loss):
    gradients = []
    for detached in (False, True):
        detach = Detach(**{"transfer": False, "local": False, "global": False} | {switch: detached})
        module, losses = losses_of(step, PUBLISHED.model_copy(update={"detach": detach}))
        losses[loss].backward()
        gradients.append((losses[loss].detach(), module.head.fc9.weight.grad))
    (value, attached), (same_value, detached) = gradients
    assert torch.equal(value, same_value)
    assert not torch.allclose(attached, detached)


@pytest.mark.parametrize("padding", ["labelled", "ignored"])
def test_padding_has_labels_or_is_ignored(step, padding):
    module = ktse_of(step, PUBLISHED.model_copy(update={"pseudo_label": PseudoLabel(padding=padding)}))
    batch = replace(batch_of(step), inside=torch.tensor([[0, 0, 64, 40]]).expand(4, 4))
    pictures = torch.cat([torch.from_numpy(step[name]) for name in ("img", "img2")])
    targets, _ = module._targets(pictures, torch.rand(8, 21, 8, 8), batch)
    assert bool((targets[:, :, 40:] == IGNORE).all()) == (padding == "ignored")
    assert (targets[:, :64, :40] != IGNORE).any()


def test_a_rank_without_pairs_adds_nothing_but_makes_the_same_passes(step):
    batch = replace(batch_of(step, pairs=1), local_pairs=0, pairs=1)
    module = ktse_of(step, CORRECTED)
    passes = []
    module.backbone.register_forward_hook(lambda *_: passes.append(1))
    images, partners = (torch.from_numpy(step[name]) for name in ("img", "img2"))
    losses = module.step(images, partners[:1], batch, 2)
    assert len(passes) == 3  # pictures with partners, erased pictures, mixed pictures
    assert losses["transfer"] == losses["mixed_bg"] == losses["mixed_fg"] == 0


def test_no_loss_is_nan_when_no_pixel_is_background(step):
    everything = PseudoLabel(high=1e-6, low=1e-7)
    _, losses = losses_of(step, CORRECTED.model_copy(update={"pseudo_label": everything}))
    assert all(torch.isfinite(loss) for loss in losses.values())
