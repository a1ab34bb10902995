"""The operations on fixed inputs: pictures, CAMs and labels of one batch, and what runs each operation on them.

Needs torch and triton only. ops.py measures, tests/gpu compares.
"""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import published_ops
import torch
from torch import Tensor

import kernels
from kernels.dispatch import choose

NEAR = 1e-4  # pixels so near to the erasing threshold may fall on either side
TIED = 1e-5  # of the best score: rounding may choose between classes so near to each other
THRESHOLD = 0.6


class Case(NamedTuple):
    """One operation on fixed inputs. `call(api)` runs the function of that name that `api` has, on `leaves` and others.

    leaves: the inputs that get a gradient in training. `trained` says that the result is a loss, to be timed with its
    backward pass. decided: 1 where the result does not hang on rounding, [B,1,H,W] or a number.
    """

    folder: str
    function: str
    call: Callable[[Any], Tensor]
    leaves: tuple[Tensor, ...]
    bound: int
    trained: bool = True
    decided: Tensor | float = 1.0


class Inputs:
    """Pictures, CAMs and labels of one batch; the same for every variant."""

    def __init__(self, classes: int, device: torch.device, dtype: torch.dtype, pictures: int = 16, size: int = 320):
        random = torch.Generator().manual_seed(0)
        self.cam_size, self.classes, self.pictures, self.size = size // 8, classes, pictures, size

        def draw(*shape: int, smooth: int = 1) -> Tensor:
            coarse = torch.randn(*shape[:2], -(-shape[2] // smooth), -(-shape[3] // smooth), generator=random)
            return published_ops.upsample(coarse, shape[2:]) if smooth > 1 else coarse

        def cams(count: int, channels: int, height: int = self.cam_size) -> Tensor:
            return draw(count, channels, height, self.cam_size, smooth=4).to(device, dtype).requires_grad_()

        self.tags = [1 + (i % 5 > 2) + (i % 8 == 7) for i in range(pictures)]  # 60, 30, 10 % with 1, 2, 3 tags
        self.labels = torch.zeros(pictures, classes)
        for row, tags in zip(self.labels, self.tags, strict=True):
            row[torch.randperm(classes, generator=random)[:tags]] = 1
        colours = (draw(pictures, 3, size, size, smooth=20) + 0.05 * draw(pictures, 3, size, size)).sigmoid()
        images = (colours - 0.45) / 0.22
        regions = draw(pictures, 2, size, size, smooth=16)
        nearest = self.labels.argmax(dim=1)[:, None, None] + 1
        target = torch.where(regions[:, 0] > 0.3, nearest, 0).masked_fill(regions[:, 1] > 1.2, 255)
        self.labels, self.images, self.target = (
            self.labels.to(device), images.to(device, dtype), target.to(device, torch.uint8)
        )  # fmt: skip
        self.small = published_ops.upsample(colours, (size // 2, size // 2)).to(device, dtype)
        self.cam, self.erased = cams(pictures, classes), cams(pictures, classes)
        self.partner, self.mixed = cams(pictures, classes), cams(pictures, classes, 2 * self.cam_size)
        self.logits = cams(pictures, classes + 1)
        self.gates = [
            tuple((0.1 * draw(2, 2 * classes, 3, 3)).to(device).requires_grad_() for _ in range(2)) for _ in range(3)
        ]
        self.seeds = self._seeds(draw(pictures, max(self.tags), size // 2, size // 2, smooth=8)).to(device, dtype)

    def _seeds(self, planes: Tensor) -> Tensor:
        """[B, 2 * (1 + most tags), h, w]: background and present classes for two background planes; absent ones 0."""
        absent = torch.arange(max(self.tags)) >= torch.tensor(self.tags)[:, None]
        planes = planes.masked_fill(absent[:, :, None, None], -torch.inf)
        levels = (torch.full_like(planes[:, :1], level) for level in (0.3, 0.15))
        return torch.cat([torch.cat([level, planes], dim=1).softmax(dim=1) for level in levels], dim=1)


def cases(x: Inputs) -> dict[str, Case]:
    """What is measured. Bounds in bytes: every input read once, every result and gradient written once."""
    present, keep = sum(x.tags), (reference_foreground(x) < THRESHOLD).to(x.cam.dtype)
    strongest = reference_foreground(x, (x.size, x.size))
    decided = ((strongest - THRESHOLD).abs() > NEAR).float()
    confident = strongest * untied(x)  # else `inter` may lower one class or another
    pixels, item, small = x.pictures * x.size**2, x.cam.element_size(), x.pictures * (x.size // 2) ** 2
    cam_bytes, image_bytes = x.cam.numel() * item, x.images.numel() * item
    tagged_bytes = present * x.cam_size**2 * item
    seg_bytes = 2 * x.logits.numel() * item + pixels + strongest.numel() * 4
    # PAR: colours and masks once, the 48 weights written once, then weights and masks in each of 10 iterations
    par_bytes = small * (3 * item + 4 * 48 * 11 + 2 * 10 * 4 * x.seeds.shape[1])

    def transfer(count: int) -> Case:
        halves = x.cam[:count], x.partner[:count], x.mixed[:count]
        leaves = tuple(part.detach().requires_grad_() for part in halves)
        union = torch.maximum(x.labels, x.labels.roll(1, 0))[:count]
        bound = 2 * sum(leaf.numel() for leaf in leaves) * item
        return Case("transfer", "transfer_loss", lambda api: api.transfer_loss(*leaves, union), leaves, bound)

    all_gates = tuple(weight for pair in x.gates for weight in pair)
    upstream = torch.linspace(-1, 1, x.labels.numel(), device=x.cam.device).view_as(x.labels)
    return {
        "foreground": Case(
            "erasing", "foreground", lambda api: api.foreground(x.cam, x.labels, (x.size, x.size)),
            (), tagged_bytes + 4 * pixels, trained=False,
        ),
        "erase": Case(
            "erasing", "erase", lambda api: api.erase(x.images, x.cam, x.labels, THRESHOLD),
            (), tagged_bytes + 2 * image_bytes, trained=False, decided=decided,
        ),
        "transfer": transfer(min(4, x.pictures)),
        "transfer16": transfer(x.pictures),
        "align": Case(
            "transfer", "align_loss", lambda api: api.align_loss(x.cam, x.erased, keep, x.labels),
            (x.cam, x.erased), 4 * cam_bytes + keep.numel() * item,
        ),
        "seg_loss": Case(
            "segmentation", "seg_loss", lambda api: api.seg_loss(x.logits, x.target, x.labels, confident)[0],
            (x.logits,), seg_bytes,
        ),
        "par": Case("affinity", "par", lambda api: api.par(x.small, x.seeds), (), par_bytes, trained=False),
        "pyramid_gate": Case(
            "pyramid", "pyramid_gate", lambda api: (api.pyramid_gate(x.cam, x.gates)[1] * upstream).sum(),
            (x.cam, *all_gates), 4 * cam_bytes,
        ),
    }  # fmt: skip


def untied(x: Inputs) -> Tensor:
    """1 where the three best classes are told apart by more than rounding, [B,1,H,W]."""
    scores = published_ops.upsample(x.logits.detach().float().relu()[:, 1:], (x.size, x.size))
    first, second, third = scores.topk(3, dim=1).values.split(1, dim=1)
    return (torch.minimum(first - second, second - third) > TIED * first).float()


def reference_foreground(x: Inputs, size: tuple[int, int] | None = None) -> Tensor:
    return in_mode("reference", lambda: kernels.foreground(x.cam, x.labels, size))


def published(x: Inputs) -> SimpleNamespace:
    """The published functions for the inputs; in fp32, which is all that the published code knows."""
    half = x.seeds.shape[1] // 2

    def par(images: Tensor, seeds: Tensor) -> Tensor:
        """Each picture's present masks, for each background plane, as a graph that nobody uses: autograd is on."""
        parts = [seeds[:, :half], seeds[:, half:]]
        masks = [[part[i : i + 1, : 1 + tags].requires_grad_() for part in parts] for i, tags in enumerate(x.tags)]
        result = torch.zeros_like(seeds)
        for i, planes in enumerate(published_ops.par_each(images, masks)):
            for k, refined in enumerate(planes):
                result[i, k * half : k * half + refined.shape[1]] = refined[0].detach()
        return result

    return SimpleNamespace(**{name: in_fp32(getattr(published_ops, name)) for name in FUNCTIONS if name != "par"},
                           par=in_fp32(par))  # fmt: skip


FUNCTIONS = ("foreground", "erase", "transfer_loss", "align_loss", "seg_loss", "par", "pyramid_gate")


def in_fp32(function: Callable) -> Callable:
    def cast(x: Any) -> Any:
        return x.float() if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x

    return lambda *arguments: function(*(cast(argument) for argument in arguments))


def in_mode(mode: str, call: Callable[[], Any]) -> Any:
    before = kernels.mode()
    kernels.set_mode(mode)
    try:
        return call()
    finally:
        kernels.set_mode(before)


def compiled(case: Case) -> SimpleNamespace:
    torch._dynamo.reset()
    return SimpleNamespace(**{case.function: torch.compile(getattr(reference_of(case), case.function), dynamic=False)})


def reference_of(case: Case) -> ModuleType:
    return import_module(f"kernels.ops.{case.folder}.reference")


def run(case: Case, api: Any) -> list[Tensor]:
    """The value and, of a loss, the gradients for all leaves."""
    value = case.call(api)
    if not case.trained:
        return [value.detach()]
    return [value.detach(), *torch.autograd.grad(value, case.leaves)]


def disagreement(case: Case, found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference to the reference, relative to the largest value of each tensor; NaN counts as infinite."""
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = (x.double() * case.decided for x in (ours, theirs))
        scale = theirs.abs().amax().clamp(min=1e-30)
        worst = max(worst, ((ours - theirs).abs().amax() / scale).nan_to_num(nan=torch.inf).item())
    return worst


def variants(case: Case, x: Inputs, with_compile: bool) -> dict[str, Any]:
    """What runs the case, by name; ours is called by what ran: `triton`, or `fast path` in torch."""
    ours = choose(case.folder, x.cam).__name__.rpartition(".")[2]
    found = {"published": published(x), "reference": reference_of(case)}
    if with_compile:
        found["compile"] = compiled(case)
    return found | {{"function": "triton", "eager": "fast path"}[ours]: kernels}
