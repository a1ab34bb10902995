"""`ktse masks --refine irn`: labels, training, walk; stopped and gone on with; what it refuses."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ktse_dist import evaluate, masks, predict, report
from ktse_dist.config_file import load_config
from ktse_dist.data.decode import decode_mask
from ktse_dist.data.index import Index
from ktse_dist.data.mask_shards import MaskIndex
from ktse_dist.errors import UserError
from ktse_dist.models.refinement import load_refinement
from ktse_dist.run_folder import RunFolder
from ktse_dist.training import checkpoint
from ktse_dist.training.context import LocalContext

pytest.importorskip("pydensecrf")

KEYS = ["masks.irn.crop=96", "masks.irn.batch=2", "masks.irn.epochs=1", "masks.irn.lr=0.01"]
ASKED, STEPS = 8, 4


@pytest.fixture(scope="module")
def run(untrained_run) -> Path:
    keys = ["engine.name=torch", "train.checkpoint_steps=2", f"masks.pictures.train={ASKED}"]
    return untrained_run("run", *keys, train=ASKED + 1, val=2)


@pytest.fixture(scope="module")
def finished(run) -> Path:
    masks.main(["--run", str(run), "--refine", "irn", *KEYS])
    return run


def files(folder: RunFolder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder.refinement.model, *folder.masks.glob("*.tar"))}


def test_every_picture_asked_for_has_a_mask_of_its_tags_and_half_of_it_is_sure(finished):
    folder = RunFolder(finished)
    index = Index.open(finished.parent / "data", "train")
    made = MaskIndex(folder.masks, index)
    assert [made.has(row) for row in range(ASKED + 1)] == [True] * ASKED + [False]
    for row in range(ASKED):
        mask, sure = (decode_mask(made.read(row, member)) for member in ("mask", "conf"))
        assert set(np.unique(mask)) <= {0, row % 3 + 1} and set(np.unique(sure)) <= {0, 255}
        assert abs((sure > 0).sum() - mask.size / 2) <= 1


def test_labels_are_tags_background_or_unknown(finished):
    index = Index.open(finished.parent / "data", "train")
    made = MaskIndex(RunFolder(finished).refinement_labels, index)
    found = [set(np.unique(decode_mask(made.read(row, "mask"))).tolist()) for row in range(ASKED)]
    assert all(values <= {0, row % 3 + 1, 255} for row, values in enumerate(found))
    assert any(row % 3 + 1 in values for row, values in enumerate(found))


def test_training_stopped_in_the_middle_ends_in_the_same_network_and_masks(finished, run, tmp_path, monkeypatch):
    again = tmp_path / "again"
    shutil.copytree(run, again, ignore=shutil.ignore_patterns("masks"))
    monkeypatch.setattr(LocalContext, "should_stop", lambda context: context.step == 3)
    with pytest.raises(SystemExit) as stopped:
        masks.main(["--run", str(again), "--refine", "irn", *KEYS])
    assert stopped.value.code == 143
    folder = RunFolder(again)
    assert checkpoint.latest(folder.refinement.checkpoints).name == "step-00000003"
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"^masks\.irn\.lr: 0\.02, but .* was trained with 0\.01"):
        masks.main(["--run", str(again), "--refine", "irn", *KEYS, "masks.irn.lr=0.02"])
    masks.main(["--run", str(again), "--refine", "irn", *KEYS])
    assert files(folder) == files(RunFolder(finished))


def test_a_second_command_makes_nothing_again(finished):
    before = files(RunFolder(finished))
    assert masks.make_masks(RunFolder(finished), masks.with_mask_keys(*asked(finished))) == 0
    assert files(RunFolder(finished)) == before


def test_finished_masks_need_no_network_again(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    folder.refinement.model.unlink()
    assert masks.make_masks(folder, masks.with_mask_keys(*asked(finished))) == 0
    assert not folder.refinement.model.exists()


def asked(run: Path):
    return load_config(run / "config.yaml"), ["masks.refine=irn", *KEYS]


def test_the_network_learned_and_its_backbone_did_not(finished):
    trained = load_refinement(RunFolder(finished).refinement.model)
    steps = checkpoint.latest(RunFolder(finished).refinement.checkpoints)
    assert steps.name == f"step-{STEPS:08}"
    momentum = checkpoint.load(steps).momentum
    assert all(name.startswith("head.") for name in momentum)
    assert any(value.any() for value in momentum.values())
    assert trained.head.dp_layers[6][4].running_mean.abs().min() > 0
    assert not any(parameter.requires_grad for parameter in trained.backbone.stem.parameters())


def test_scores_report_and_predictions_know_it(finished, tmp_path):
    evaluate.main(["--run", str(finished)])
    report.main(["--run", str(finished)])
    assert "after IRN" in (finished / "report" / "index.html").read_text()
    from ktse_dist.data.reader import Reader

    index = Index.open(finished.parent / "data", "val")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(Reader(index).read(0, "image"))
    predict.main(["--run", str(finished), str(tmp_path / "photos"), "--out", str(tmp_path / "out")])
    assert list((tmp_path / "out").rglob("one*.png"))


def test_a_change_of_its_settings_is_refused(finished):
    with pytest.raises(UserError, match=r"masks\.irn: .*'beta': 3\.0"):
        masks.main(["--run", str(finished), "--refine", "irn", *KEYS, "masks.irn.beta=3"])


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("masks.irn.batch=32", r"masks\.irn\.batch: a batch of 32 from 8 training pictures"),
        ("masks.irn.backbone=resnet50", r"masks\.irn\.weights: 'imagenet' comes with efficientnet_lite0 only"),
        ("masks.irn.low=0.4", r"masks\.irn\.low is 0\.4"),
    ],
)
def test_what_cannot_be_trained_is_said_before_any_label_is_made(run, tmp_path, key, said):
    again = tmp_path / "again"
    shutil.copytree(run, again, ignore=shutil.ignore_patterns("masks"))
    with pytest.raises(UserError, match=said):
        masks.main(["--run", str(again), "--refine", "irn", *KEYS, key])
    assert not list(again.rglob("*.tar")) and not list(again.rglob("settings.json"))  # so it can be mended


def command(run: Path, *keys: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "ktse_dist.masks", "--run", str(run), "--refine", "irn", *KEYS, *keys]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.slow
def test_killed_at_random_times_it_ends_in_the_same_masks(run, tmp_path):
    """Each kill leaves it a little more time, so that labels, training and masks are all hit."""
    whole, broken = (shutil.copytree(run, tmp_path / name, ignore=shutil.ignore_patterns("masks")) for name in "ab")
    undisturbed = command(whole)
    assert undisturbed.wait(300) == 0, undisturbed.stderr.read()
    seed = random.randrange(10_000)
    print("seed", seed)
    draw, kills = random.Random(seed), 0
    for tenths in range(20, 600, 4):
        attempt = command(broken)
        try:
            assert attempt.wait(tenths / 10 * draw.uniform(0.5, 1)) == 0, attempt.stderr.read()
            break
        except subprocess.TimeoutExpired:
            attempt.kill()
            attempt.wait()
            kills += 1
    print("kills", kills)
    assert files(RunFolder(broken)) == files(RunFolder(whole))


@pytest.mark.slow
def test_ray_workers_make_labels_train_and_make_masks(run, tmp_path):
    pytest.importorskip("ray")
    there = shutil.copytree(run, tmp_path / "ray", ignore=shutil.ignore_patterns("masks"))
    file = RunFolder(there).config_file
    file.write_text(file.read_text().replace("name: torch", "name: ddp"))
    done = command(there, "masks.workers=2")
    assert done.wait(400) == 0, done.stderr.read()
    index = Index.open(run.parent / "data", "train")
    made = MaskIndex(RunFolder(there).masks, index)
    assert all(made.has(row) for row in range(ASKED))
