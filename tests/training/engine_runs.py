"""What test_engine.py measures: small siamese trainings in 1, 2 or 4 processes. `python engine_runs.py WORLD OUT`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from ranks import joined, start
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ktse_dist.errors import UserError
from ktse_dist.training.engine import Engine, build_engine
from ktse_dist.training.optim import parameter_groups, poly

STEPS, HALF, BATCH, CLASSES = 10, 5, 6, 5
ENGINES = {"ddp": ("ddp", 0), "zero1": ("deepspeed", 1), "zero2": ("deepspeed", 2), "zero3": ("deepspeed", 3)}


class Backbone(nn.Module):
    """A frozen stem with its BatchNorm, then a kernel large enough (147,456) for ZeRO 3 to really split it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 128, 3, stride=2, padding=1).requires_grad_(False)
        self.norm = nn.BatchNorm2d(128).requires_grad_(False).eval()
        self.wide = nn.Conv2d(128, 128, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        normed = F.batch_norm(
            self.stem(images), self.norm.running_mean, self.norm.running_var, self.norm.weight, self.norm.bias
        )
        return self.wide(normed.relu()).relu()


class Head(nn.Module):
    """17 x 17 gate weights, a size that neither 2 nor 4 ranks divide, used twice in one call."""

    def __init__(self) -> None:
        super().__init__()
        self.fc8 = nn.Conv2d(128, 17, 1, bias=False)
        self.gate = nn.Parameter(torch.randn(17, 17) * 0.1)
        self.fc9 = nn.Conv2d(17, CLASSES, 1)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.fc8(features).relu()
        hidden = hidden + torch.einsum("ij,bjhw->bihw", self.gate @ self.gate, hidden)
        return self.fc9(hidden)


class Siamese(nn.Module):
    """One pass and classification in phase 1; two more passes through the same sub-modules in phase 2."""

    def __init__(self, bf16: bool = False) -> None:
        super().__init__()
        self.backbone, self.head, self.bf16 = Backbone(), Head(), bf16

    def forward(self, batch: dict[str, Tensor], phase: int) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            cam = self.cam(batch["images"])
            logits = cam.float().mean((2, 3))
            share = batch["workers"] / (BATCH * CLASSES)  # the mean over ranks is the mean over the global batch
            loss = F.binary_cross_entropy_with_logits(logits, batch["labels"], reduction="sum") * share
            if phase == 2:
                erased = self.cam(batch["images"] * (batch["images"] < 0.6))
                mixed = self.cam(torch.cat([batch["images"], batch["images"].flip(0)], dim=2))
                for other in (erased, mixed[:, :, : cam.shape[2]]):
                    loss = loss + ((other - cam).float() - 0.05).relu().mean((2, 3)).sum() * share
            return {"total": loss, "cam": cam}

    def cam(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


def build(kind: str, seed: int = 0, bf16: bool = False) -> Engine:
    torch.manual_seed(seed)
    module = Siamese(bf16)
    nn.init.uniform_(module.backbone.norm.running_var, 0.5, 1.5)
    module.to(memory_format=torch.channels_last)
    name, zero = ENGINES.get(kind, (kind, 0))
    groups = parameter_groups(module)
    return build_engine(SimpleNamespace(name=name, zero=zero), module, groups, torch.device("cpu"))


def batch(step: int, rank: int, workers: int) -> dict[str, Tensor]:
    """Rank's pictures r, r + W, ... of a global batch of 6: with 4 workers two ranks have 2, two have 1."""
    generator = torch.Generator().manual_seed(step)
    images, labels = torch.rand(BATCH, 3, 12, 12, generator=generator), torch.rand(BATCH, CLASSES, generator=generator)
    return {
        "images": images[rank::workers],
        "labels": (labels[rank::workers] > 0.7).float(),
        "workers": torch.tensor(float(workers)),
    }


def train(engine: Engine, first: int, last: int, rank: int = 0, workers: int = 1) -> None:
    """Phase 1 up to HALF, then phase 2 with other momentum; the rates fall in every step."""
    for step in range(first, last):
        for group in engine.groups:
            group["lr"] = 0.02 * poly(step, STEPS) * group["rate"] * (3 if group["head"] and step < HALF else 1)
            group["momentum"] = 0.9 if step < HALF else 0.8
        engine.update(engine(batch(step, rank, workers), phase=1 if step < HALF else 2)["total"])


def write(out: Path, name: str, state: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
    if not dist.is_initialized() or dist.get_rank() == 0:
        save_file(state[0], out / f"{name}.weights")
        save_file(state[1], out / f"{name}.momentum")
    if dist.is_initialized():
        dist.barrier()


def read(out: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return load_file(out / f"{name}.weights"), load_file(out / f"{name}.momentum")


def go_on(out: Path, kind: str, source: str, name: str, rank: int = 0, workers: int = 1) -> None:
    """From another run's state at HALF to the end, in an engine that began with other weights."""
    engine = build(kind, seed=1)
    engine.load(*read(out, source))
    train(engine, HALF, STEPS, rank, workers)
    write(out, name, engine.state())


def alone(_: int, out: Path) -> dict:
    engine = build("torch")
    train(engine, 0, HALF)
    write(out, "torch-half", engine.state())
    train(engine, HALF, STEPS)
    write(out, "torch", engine.state())
    go_on(out, "torch", "torch-half", "torch-resumed")
    engine.load(read(out, "torch-half")[0], {})
    write(out, "torch-forked", engine.state())
    return {
        "imported": [name for name in ("deepspeed", "ray") if name in sys.modules],
        "process group": dist.is_initialized(),
    }


def pair(rank: int, out: Path) -> dict:
    for kind in ENGINES:
        engine = build(kind)
        train(engine, 0, HALF, rank, 2)
        write(out, f"{kind}-half", engine.state())
        train(engine, HALF, STEPS, rank, 2)
        write(out, kind, engine.state())
        go_on(out, kind, f"{kind}-half", f"{kind}-resumed", rank, 2)
        go_on(out, kind, "torch-half", f"{kind}-from-torch", rank, 2)
        engine.load(read(out, "torch-half")[0], {})
        write(out, f"{kind}-forked", engine.state())
    facts = {"half precision": {}, "torch engine": refusal(lambda: build("torch"))}
    for kind in ("ddp", "zero3"):
        engine = build(kind, bf16=True)
        facts["half precision"][kind] = str(engine(batch(0, rank, 2), phase=1)["cam"].dtype)
        train(engine, 0, STEPS, rank, 2)
        write(out, f"{kind}-bf16", engine.state())
    return facts | deepspeed_facts(rank)


def deepspeed_facts(rank: int) -> dict:
    import deepspeed

    engine = build("zero2")
    lost = engine(batch(0, rank, 2), phase=1)["total"] * float("inf")
    return {
        "compiled helper": deepspeed.comm.comm.cdb.shm_comm_op is not None,
        "not finite": refusal(lambda: engine.update(lost)),
    }


def refusal(call: Callable[[], object]) -> str | None:
    try:
        call()
    except (UserError, FloatingPointError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def four(rank: int, out: Path) -> dict:
    for kind in ("zero1", "zero3"):
        engine = build(kind)
        train(engine, 0, STEPS, rank, 4)
        write(out, f"{kind}-of-4", engine.state())
    go_on(out, "zero3", "zero2-half", "zero3-of-4-from-2", rank, 4)
    return {}


def worker(rank: int, workers: int, port: int, out: Path) -> None:
    with joined(rank, workers, port):
        facts = {1: alone, 2: pair, 4: four}[workers](rank, out)
        if rank == 0:
            (out / f"facts-{workers}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    start(worker, int(sys.argv[1]), Path(sys.argv[2]))
