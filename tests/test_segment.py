"""Stage 2: from the masks of a run to a segmentation network, its masks and its score."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ktse_dist import segment
from ktse_dist.config import load_config
from ktse_dist.data.index import Index
from ktse_dist.data.pack.stickers import pack_stickers
from ktse_dist.data.reader import Reader
from ktse_dist.errors import UserError
from ktse_dist.inference.formats import encode_confidence, encode_mask
from ktse_dist.inference.mask_shards import MaskFiles, MaskIndex, write_mask_index, write_mask_shard
from ktse_dist.models.segmenter import load_segmenter
from ktse_dist.run_folder import RunFolder
from ktse_dist.training import checkpoint
from ktse_dist.training.loop import run

KEYS = ["data.crop=64", "train.batch=[[0,4]]", "train.epochs=3", "train.phase1_epochs=1", "train.log_steps=1"]
KEYS += ["segment.scales=[0.5]", "masks.processes=0"]
PICTURES = 8


@pytest.fixture
def made(tmp_path) -> RunFolder:
    """A run whose masks are the ground truth, half of each picture trusted."""
    folder = RunFolder(tmp_path / "run")
    pack_stickers(tmp_path / "data", train=12, val=4)
    keys = ["engine.name=torch", f"data.path={tmp_path}/data", "data.crop=64", "data.long_side=[64,96]"]
    config = load_config(None, [*keys, f"masks.pictures.train={PICTURES}", "train.precision=fp32"])
    folder.write_config(config)
    index = Index.open(tmp_path / "data", "train")
    reader, palette = Reader(index), np.asarray(index.palette, np.uint8)
    for number, shard in enumerate(index.shards):
        rows = np.flatnonzero(index.samples["shard"][:PICTURES] == number).tolist()
        truths = ((index.key(row), reader.truth(row)) for row in rows)
        files = (MaskFiles(key, encode_mask(t, palette), encode_confidence(np.ones(t.shape))) for key, t in truths)
        write_mask_shard(folder.masks / shard.name, files)
    write_mask_index(folder.masks, index)
    (folder.masks / "settings.json").write_text(config.masks.model_dump_json())
    return folder


def call(folder: RunFolder, *more: str) -> None:
    segment.main(["--run", str(folder.path), *KEYS, *more])


def test_masks_become_a_network_its_masks_of_val_and_a_score(made):
    call(made)
    model = load_segmenter(made.segment.model)
    assert len(model.networks) == 2 and len(model.classes) == 20
    lines = [json.loads(line) for line in made.segment.metrics_file.read_text().splitlines()]
    assert [line["phase"] for line in lines] == [1, 1, 2, 2, 2, 2]
    assert lines[-1].keys() >= {"ce1", "ce2", "cot1", "cot2", "total"}
    val = Index.open(made.path.parent / "data", "val")
    masks = MaskIndex(made.segment.masks, val)
    assert all(masks.has(row) for row in range(len(val)))
    summary = made.read_summary()
    assert all(0 <= summary[f"network_miou_{look}"] <= 100 for look in ("single", "multi", "final"))
    before = made.segment.masks.stat().st_mtime_ns
    call(made)  # finds everything there
    assert made.segment.masks.stat().st_mtime_ns >= before


class Interrupted:
    rank, world, step = 0, 1, 0

    def __init__(self, steps: int):
        self.left = steps

    def report(self, metrics, checkpoint_path=None):
        pass

    def should_stop(self) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.mark.parametrize("count", [1, 2])
def test_a_stopped_stage_goes_on_to_the_same_weights(made, count):
    config = segment.stage2(made.read_config(), [*KEYS, f"segment.networks={count}", "segment.sure=0.2"])
    whole, parts = (segment.job_of(made, config) for _ in range(2))
    parts = segment.Job(config, RunFolder(made.path / "parts"), task=whole.task, forks=False, free=whole.free)
    run(whole, Interrupted(-1))
    for _ in range(3):
        run(parts, Interrupted(2))
    expected, found = (load_file(job.folder.model) for job in (whole, parts))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert checkpoint.latest(parts.folder.checkpoints).name == "step-00000006"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["run.name=other"], "may be set here"),
        (["segment.mixx=1"], "Did you mean 'segment.mix'"),
        (["train.batch=[[0,5]]"], "multiples of 2"),
        (["train.micro_batch=2"], "train.micro_batch"),
        (["segment.area=[0.8,0.5]"], "segment.area"),
        (["model.backbone=resnet101", "model.output_stride=8"], "model.weights"),
    ],
)
def test_a_mistake_is_one_line(made, keys, said):
    with pytest.raises(UserError, match=said.replace("[", r"\[")):
        call(made, *keys)


def test_missing_masks_are_named(made):
    (made.masks / "settings.json").write_text(json.dumps({"pictures": {"train": PICTURES + 2}}))
    with pytest.raises(UserError, match="no mask of"):
        call(made)
