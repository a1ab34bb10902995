"""Co-training, against the published step."""

import numpy as np
import pytest
import torch
from torch import nn

from ktse_dist.config.stages import Segment
from ktse_dist.method.batch import MaskedBatch
from ktse_dist.method.cotrain import CoTraining, Mixed, mix, step_losses
from ktse_dist.method.mixing import Scene, classes_in, confident
from ktse_dist.method.pixels import normalise_levels

PAIRED = [0, 2, 1, 3]  # the published output lists a pair's two items side by side; ours keeps the batch's order
CLASSES = 20
WARM_UP, MAIN = ("warm", "beco"), ("main", "beco_main")


@pytest.fixture(params=[WARM_UP, MAIN], ids=["warm_up", "main"])
def step(request, golden):
    """The arrays of a step, ours in the order of the batch."""
    prefix, file = request.param
    arrays = {name.removeprefix(f"{prefix}_"): torch.from_numpy(a) for name, a in golden(file).items()}
    of_outputs = ("mix_img", "mix_label", "mix_mask", "bdry", "mixed", "logits1", "logits2", "grad1", "grad2")
    arrays |= {name: arrays[name][PAIRED] for name in of_outputs}
    return arrays | {"is_main": prefix == "main"}


def chosen_classes(step) -> torch.Tensor:
    """bool [4,C] from the published draws, which are listed for the mixed items in the published order."""
    chosen = torch.zeros(4, CLASSES, dtype=torch.bool)
    picks = iter(range(4))
    for item in PAIRED:
        if step["mixed"][item]:
            chosen[item, step[f"choice{next(picks)}_picked"] - 1] = True
    return chosen


def offline(step) -> Scene:
    return Scene(step["img"], step["label"], step["mask"][:, 0] > 0)


def published_mix(step) -> Mixed:
    """Boundaries weigh nothing in the warm-up (docs/method.md 4)."""
    source, objects = offline(step), step["label"]
    if step["is_main"]:
        source = Scene(step["img"], *confident((step["online_logits1"] + step["online_logits2"]) / 2, 0.95))
        objects = source.labels * source.trusted
    found = mix(offline(step), source, objects, step["mixed"] > 0, chosen_classes(step))
    return found if step["is_main"] else found._replace(boundary=torch.zeros_like(found.boundary))


def test_online_labels_are_the_published_ones(golden):
    arrays = {name: torch.from_numpy(a) for name, a in golden("beco_main").items()}
    labels, sure = confident((arrays["main_online_logits1"] + arrays["main_online_logits2"]) / 2, 0.95)
    assert (labels == arrays["main_online_label"]).all()
    assert (sure == arrays["main_online_mask"][:, 0].bool()).all()


def test_mixing_is_the_published_one(step):
    found = published_mix(step)
    np.testing.assert_array_equal(found.scene.images, step["mix_img"])
    np.testing.assert_array_equal(found.scene.labels, step["mix_label"])
    np.testing.assert_array_equal(found.scene.trusted, step["mix_mask"] > 0)
    np.testing.assert_array_equal(found.boundary, step["bdry"] > 0)


def test_losses_and_gradients_are_the_published_ones(step):
    logits = [step[f"logits{n}"].clone().requires_grad_() for n in (1, 2)]
    found = step_losses(logits, published_mix(step), 0.2)
    names = {"ce1": "ce1", "ce2": "ce2", "cot1": "cot1", "cot2": "cot2", "total": "loss"}
    for ours, theirs in names.items():
        np.testing.assert_allclose(found[ours].item(), step[theirs].item(), rtol=1e-5)
    found["total"].backward()
    for one, n in zip(logits, (1, 2), strict=True):
        np.testing.assert_allclose(one.grad, step[f"grad{n}"], rtol=1e-4, atol=1e-9)


class Tiny(nn.Module):
    mean, std = (127.0,) * 3, (128.0,) * 3

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, images):
        return self.head(self.norm(self.conv(images)).relu())


def tiny_batch() -> MaskedBatch:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(256, (4, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(4, (4, 32, 32), generator=generator, dtype=torch.uint8)
    return MaskedBatch(images, labels, labels < 3, torch.arange(4), pictures=4, classes=3)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("phase", [1, 2])
def test_a_step_reaches_every_parameter_and_repeats_bit_by_bit(count, phase):
    torch.manual_seed(0)
    module = CoTraining([Tiny() for _ in range(count)], Segment(networks=count, sure=0.3))
    first, again = (module(tiny_batch(), phase)["total"] for _ in range(2))
    first.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    if phase == 1:  # later ones also look through the running statistics, which have moved
        assert first == again


def test_answers_that_are_never_labels_leave_the_warm_up_as_it_is():
    module = CoTraining([Tiny()], Segment(networks=1, sure=None))
    first, second = (module(tiny_batch(), phase)["total"] for phase in (1, 2))
    assert torch.equal(first, second)


def test_one_network_has_no_partner_to_learn_from():
    module = CoTraining([Tiny()], Segment(networks=1))
    assert module(tiny_batch(), 2).keys() == {"ce1", "total"}


def test_bf16_is_the_networks_alone():
    """The losses of fp32 within bf16's rounding; the pictures stay exact."""
    torch.manual_seed(0)
    networks = [Tiny(), Tiny()]
    exact, fast = (CoTraining(networks, Segment(), precision)(tiny_batch(), 1) for precision in ("fp32", "bf16"))
    for name, loss in exact.items():
        assert fast[name].dtype == torch.float32
        assert fast[name].item() == pytest.approx(loss.item(), rel=0.02)


@pytest.mark.parametrize("source", ["off", "on"])
@pytest.mark.parametrize("share", [0, 1])
def test_whole_batches_are_mixed_as_published(golden, source, share):
    """The published draws are not written down; the pictures show which classes were pasted."""
    arrays = {name: torch.from_numpy(array) for name, array in golden("imgmix").items()}
    expected = {name: arrays[f"{source}_p{share}_{name}"][PAIRED] for name in ("img", "label", "mask", "bdry")}
    own = Scene(arrays["img"], arrays["label"], arrays["mask"][:, 0] > 0)
    online = Scene(arrays["img"], arrays["label_online"], arrays["mask_online"][:, 0] > 0)
    given, objects = (own, own.labels) if source == "off" else (online, online.labels * online.trusted)
    chosen = torch.zeros(4, CLASSES, dtype=torch.bool)
    for item in range(4):
        partner = (item + 2) % 4
        pasted = objects[partner][(expected["img"][item] == arrays["img"][partner]).all(0)].unique().long()
        chosen[item, pasted[(pasted > 0) & (pasted < 255)] - 1] = True
    found = mix(own, given, objects, torch.full((4,), share == 1), chosen)
    np.testing.assert_array_equal(found.scene.images, expected["img"])
    np.testing.assert_array_equal(found.scene.labels, expected["label"])
    np.testing.assert_array_equal(found.scene.trusted, expected["mask"] > 0)
    if source == "on":
        np.testing.assert_array_equal(found.boundary, expected["bdry"] > 0)
    if share:
        present = classes_in(objects, CLASSES).roll(2, 0)
        assert (chosen.sum(1) == (present.sum(1) + 1) // 2).all()


def seen_by_the_network(**keys) -> torch.Tensor:
    module, seen = CoTraining([Tiny()], Segment(networks=1, **keys)), []
    module.networks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module(tiny_batch(), 1)
    return seen[0]


def test_pictures_are_mixed_and_recoloured_only_where_the_config_says_so():
    plain = seen_by_the_network(mix=0, colour=False)
    assert torch.equal(plain, normalise_levels(tiny_batch().images.float(), Tiny.mean, Tiny.std))
    assert not torch.equal(seen_by_the_network(mix=1, colour=False), plain)
    assert not torch.equal(seen_by_the_network(mix=0, colour=True), plain)


def test_pasted_edges_cost_more_with_their_weight():
    torch.manual_seed(0)
    networks = [Tiny()]
    with torch.no_grad():
        networks[0].head.weight *= 20  # its answers then differ from pixel to pixel
    light, heavy = (
        CoTraining(networks, Segment(networks=1, mix=1, sure=0.3, boundary_weight=weight))(tiny_batch(), 2)["ce1"]
        for weight in (0, 5)
    )
    assert heavy > light
