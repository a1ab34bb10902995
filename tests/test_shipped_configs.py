"""The configs for VOC and COCO, against packed miniatures of those data sets in their true layouts."""

from pathlib import Path

import pytest

from ktse_dist import train
from ktse_dist.config_file import load_config
from ktse_dist.data.pack.__main__ import main as pack
from ktse_dist.training.schedule import Schedule

CONFIGS = Path(__file__).parents[1] / "configs"
PICTURES = 130  # the large batch takes 128
DATA = {"voc": "voc", "voc_published": "voc", "voc_large_batch": "voc", "coco": "coco"}
CLASSES = {"voc": 20, "coco": 4}


@pytest.fixture(scope="module")
def packed(voc_tree, coco_tree, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    for kind, tree in (("voc", voc_tree), ("coco", coco_tree)):
        pack([kind, str(tree(PICTURES, 2)), str(folder / kind), "--workers", "1"])
    return folder


@pytest.mark.parametrize("name", DATA)
def test_a_dry_run_resolves_the_config_and_counts_the_packed_pictures(packed, name, tmp_path, capsys):
    data = DATA[name]
    train.main(
        ["--config", str(CONFIGS / f"{name}.yaml"), "--dry-run", f"data.path={packed / data}", f"run.root={tmp_path}"]
    )
    shown = capsys.readouterr().out
    assert f"training pictures, {CLASSES[data]} classes, {packed / data}" in shown
    assert "backbone: resnet38d" in shown and "of KTSE" in shown
    assert not list(tmp_path.iterdir())


def test_the_published_config_takes_the_published_number_of_updates():
    schedule = Schedule(load_config(CONFIGS / "voc_published.yaml"), 10_582)
    assert (schedule.phase1_steps, schedule.total_steps, schedule.horizon) == (13_220, 33_050, 52_880)


def test_the_large_batch_reaches_its_scaled_rate_after_five_epochs():
    plain, large = (Schedule(load_config(CONFIGS / f"{name}.yaml"), 10_582) for name in ("voc", "voc_large_batch"))
    steps = 5 * (10_582 // 128)
    assert large.optimiser.warmup_steps == steps
    share = large.lr(steps) / large.sgd(steps).lr
    assert share == pytest.approx(8 * plain.lr(5 * (10_582 // 16)) / plain.sgd(0).lr, rel=1e-2)
