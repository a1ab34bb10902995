"""What every Triton kernel takes of a GPU, compiled for sm_80 and sm_90 without one: registers, spills, shared memory.

The public functions run on CPU tensors at the shapes of VOC and COCO, forward and backward, in fp32 and bf16, and each
launch compiles its kernel instead, with the arguments and the row of the tuning table that a GPU would get.
python benchmarks/kernel_resources.py [--quick] [--save benchmarks/results/kernel_resources.csv]
"""

import argparse
import csv
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # read when triton is imported
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas

from kernels import tuning

ARCHITECTURES = {"sm_80": 80, "sm_90": 90}
CLASSES = {"voc": 20, "coco": 80}
OPS = ("erasing", "transfer", "segmentation", "affinity", "pyramid")
BATCH, CAM, IMAGE = 2, 40, 320  # the batch does not change a kernel, the sizes do
FIELDS = ("kernel", "architecture", "shapes", "dtype", "variant", "options", "registers", "spilled", "shared",
          "nan_max", "triton")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="COCO's shapes only, about half a minute")
    parser.add_argument("--save", type=Path, metavar="FILE.csv", help="also write the table to this file")
    options = parser.parse_args()
    rows = sorted(compiled(["coco"] if options.quick else list(CLASSES)), key=lambda row: [row[f] for f in FIELDS[:5]])
    for row in rows:
        print(" ".join(str(row[field]) for field in FIELDS[:-1]))
    if options.save:
        save(rows, options.save)
    print(json.dumps(result(rows)))


def result(rows: list[dict]) -> dict:
    figures = {
        "kernels": len({row["kernel"] for row in rows}),
        "spilled_bytes": max(row["spilled"] for row in rows),
        "most_registers": max(row["registers"] for row in rows),
    }
    targets = {"spilled_bytes": {"max": 0}}
    device = f"none, compiled for {' and '.join(ARCHITECTURES)}"
    holds = figures["spilled_bytes"] <= targets["spilled_bytes"]["max"]
    return {"benchmark": "kernel_resources", "device": device, "figures": figures, "targets": targets, "holds": holds}


def save(rows: list[dict], path: Path) -> None:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, [*FIELDS, "date"], lineterminator="\n")
        table.writeheader()
        table.writerows(row | {"date": datetime.date.today().isoformat()} for row in rows)


def compiled(shapes: list[str]) -> Iterator[dict]:
    """One row for each different binary: the same kernel may be launched with other constants."""
    for name, capability in ARCHITECTURES.items():
        triton.runtime.driver.set_active(Driver(capability))
        for op in OPS:
            function = import_module(f"kernels.ops.{op}.function")
            for shape in shapes:
                for dtype in (torch.float32, torch.bfloat16):
                    found: list[dict] = []
                    function.launch = compiler(name, capability, found)
                    CALLS[op](function, CLASSES[shape], dtype)
                    kind = {"architecture": name, "shapes": shape, "dtype": str(dtype).removeprefix("torch.")}
                    yield from (row | kind for row in numbered(found))


class Driver:
    """The few questions that Triton asks a driver before it compiles."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def compiler(architecture: str, capability: int, rows: list[dict]) -> Callable:
    """What stands in for `kernels.launch.launch`: adds a row instead of starting the kernel."""

    def compile_only(kernel, grid, device, *arguments, **constants) -> None:
        options = tuning.options(kernel.fn.__name__, architecture)
        binary = kernel.warmup(*arguments, **constants, **options, grid=(1,))
        text = " ".join(f"{name}={value}" for name, value in options.items())
        rows.append({"kernel": kernel.fn.__name__, "options": text, "triton": triton.__version__}
                    | resources(binary, capability))  # fmt: skip

    return compile_only


def resources(binary, capability: int) -> dict[str, int]:
    """Registers and spilled bytes of a thread, by ptxas; bytes of shared memory; maxima that keep NaN."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(binary.asm["ptx"])
        target = f"--gpu-name=sm_{capability}{'a' if capability >= 90 else ''}"
        command = [get_ptxas(capability).path, "-v", target, str(source), "-o", f"{folder}/kernel.cubin"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled = sum(int(number) for number in re.findall(r"(\d+) bytes spill", text))
    return {"registers": int(re.search(r"Used (\d+) registers", text)[1]), "spilled": spilled,
            "shared": binary.metadata.shared, "nan_max": binary.asm["ptx"].count("max.NaN.f32")}  # fmt: skip


def numbered(rows: list[dict]) -> list[dict]:
    """Different binaries of one kernel as variants 1, 2, ...; the same one once."""
    variants: dict[str, list[dict]] = {}
    for row in rows:
        known = variants.setdefault(row["kernel"], [])
        if row not in known:
            known.append(row)
    return [row | {"variant": i} for known in variants.values() for i, row in enumerate(known, 1)]


def erasing(function, classes: int, dtype: torch.dtype) -> None:
    cam, labels = maps(classes, CAM, dtype), torch.ones(BATCH, classes)
    function.foreground(cam, labels)
    function.foreground(cam, labels, (IMAGE, IMAGE))
    function.erase(torch.zeros(BATCH, 3, IMAGE, IMAGE, dtype=dtype), cam, labels, 0.6)


def transfer(function, classes: int, dtype: torch.dtype) -> None:
    cam, labels = maps(classes, CAM, dtype), torch.ones(BATCH, classes)
    mix = torch.cat([cam, cam], dim=2)
    function.transfer_loss(cam, cam, mix, labels).backward()
    for kept in (torch.bool, torch.float32):
        function.align_loss(cam, cam, torch.ones(BATCH, 1, CAM, CAM, dtype=kept), labels).backward()


def segmentation(function, classes: int, dtype: torch.dtype) -> None:
    logits, labels = maps(classes + 1, CAM, dtype), torch.ones(BATCH, classes)
    foreground = torch.zeros(BATCH, 1, IMAGE, IMAGE)
    for kind in (torch.uint8, torch.int64):
        target = torch.zeros(BATCH, IMAGE, IMAGE, dtype=kind)
        function.seg_loss(logits, target, labels, foreground)[0].backward()
        function.seg_loss(logits, target, None, None)[0].backward()
    function.seg_loss(logits.detach(), target, labels, foreground)


def affinity(function, classes: int, dtype: torch.dtype) -> None:
    for masks in (4, 8):  # two thresholds, a background and one to three classes
        function.par(torch.zeros(BATCH, 3, IMAGE // 2, IMAGE // 2), maps(masks, IMAGE // 2, dtype))


def pyramid(function, classes: int, dtype: torch.dtype) -> None:
    gates = [tuple(torch.zeros(2, 2 * classes, 3, 3, requires_grad=True) for _ in range(2)) for _ in range(3)]
    gpp, scores = function.pyramid_gate(maps(classes, CAM, dtype), gates)
    (gpp.sum() + scores.sum()).backward()


def maps(channels: int, size: int, dtype: torch.dtype) -> Tensor:
    return torch.zeros(BATCH, channels, size, size, dtype=dtype, requires_grad=True)


CALLS = {"erasing": erasing, "transfer": transfer, "segmentation": segmentation,
         "affinity": affinity, "pyramid": pyramid}  # fmt: skip

if __name__ == "__main__":
    main()
