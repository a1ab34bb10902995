"""Pictures with tags and no masks anywhere: trained, masked, scored by their tags and shown."""

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ktse_dist import masks, report, train
from ktse_dist.data.decode import decode_mask
from ktse_dist.data.index import Index
from ktse_dist.data.mask_shards import MaskIndex
from ktse_dist.data.pack.writer import Sample, new_dataset, write_about, write_split
from ktse_dist.errors import UserError
from ktse_dist.run_folder import RunFolder

SMALL = ["data.crop=64", "data.long_side=[64,72]", "train.epochs=2", "train.phase1_epochs=1", "train.batch=[[0,6]]"]
SMALL += ["masks.scales=[1.0]", "masks.processes=1", "train.precision=fp32"]


def pack(out: Path, classes: list[str], tags: Callable[[int], list[int]]) -> None:
    def samples() -> Iterator[Sample]:
        for n in range(12):
            rgb = np.random.default_rng(n).integers(0, 90, (60, 72, 3), np.uint8)
            rgb[15:40, 20:50, n % 3] = 230
            file = io.BytesIO()
            Image.fromarray(rgb).save(file, "JPEG")
            yield Sample(f"{n}", file.getvalue(), tags(n), None, "drawn by the test")

    with new_dataset(out) as building:
        splits = {s: write_split(building, s, samples(), len(classes), 10**6) for s in ("train", "val")}
        write_about(building, classes, splits)


def train_own(root: Path, *more: str) -> RunFolder:
    train.main(["--config", "own", f"run.root={root}", f"data.path={root / 'data'}", "run.name=mine", *SMALL, *more])
    return RunFolder(root / "mine")


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> tuple[RunFolder, str]:
    """A run of the four commands, without the packing, and what the last one says."""
    root = tmp_path_factory.mktemp("own")
    pack(root / "data", ["red", "green", "blue"], lambda n: [n % 3])
    folder = train_own(root)
    masks.main(["--run", str(folder.path)])
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", said)
        report.main(["--run", str(folder.path)])
    return folder, said.getvalue()


def test_no_miou_is_given_and_that_is_said(told):
    folder, said = told
    summary = folder.read_summary()
    assert all(summary[f"{kind}_miou"] is None for kind in ("seed", "mask", "baseline_seed"))
    assert "scored          0 of" in said
    assert "no ground truth, so no mIoU" in said and "There is no mIoU" in folder.report.read_text()


def test_tags_of_held_out_pictures_are_scored_and_the_thresholds_are_named(told):
    folder, said = told
    summary = folder.read_summary()
    assert 0 <= summary["tag_map"] <= 100 and 0 <= summary["tag_threshold"] <= 1 and 0 <= summary["tag_f1"] <= 100
    assert f"{summary['tag_map']}" in said and f"{summary['background']['strength']}, the default" in said
    assert {name: found["pictures"] for name, found in summary["tags"].items()} == {"red": 4, "green": 4, "blue": 4}


def test_a_strength_that_is_given_is_used_and_said(told, tmp_path, capsys):
    folder, _ = told
    shutil.copytree(folder.path, tmp_path / "mine")
    shutil.rmtree(tmp_path / "mine" / "masks")
    (tmp_path / "mine" / "summary.json").unlink()
    masks.main(["--run", str(tmp_path / "mine"), "masks.refine=none", "masks.strength=0.45", "masks.pictures.train=1"])
    report.main(["--run", str(tmp_path / "mine")])
    assert RunFolder(tmp_path / "mine").read_summary()["background"]["strength"] == 0.45
    assert "0.45, as given" in capsys.readouterr().out


def test_pictures_that_are_shrunk_for_the_work_have_masks_of_their_own_size(told, tmp_path):
    folder, _ = told
    shutil.copytree(folder.path, tmp_path / "mine")
    shutil.rmtree(tmp_path / "mine" / "masks")
    (tmp_path / "mine" / "config.yaml").write_text(
        (tmp_path / "mine" / "config.yaml").read_text().replace("long_side: 640", "long_side: 64")
    )
    masks.main(["--run", str(tmp_path / "mine"), "masks.pictures.train=1"])
    report.main(["--run", str(tmp_path / "mine")])
    made = MaskIndex(tmp_path / "mine" / "masks", Index.open(folder.path.parent / "data", "val"))
    assert decode_mask(made.read(0, "mask")).shape == (60, 72)


def test_every_picture_gets_a_mask_and_the_report_shows_some_by_the_score_of_their_tags(told):
    folder, _ = told
    for split in ("train", "val"):
        index = Index.open(folder.path.parent / "data", split)
        assert all(MaskIndex(folder.masks, index).has(row) for row in range(12))
    page = folder.report.read_text()
    for heading in ("Surest of their tags", "Median", "Least sure of their tags"):
        assert f"<h3>{heading}</h3>" in page
    assert page.count("tag score") == 9


@pytest.mark.parametrize("classes", [["dog"], ["dog", "cat"]])
def test_pictures_whose_tags_are_all_alike_are_refused_in_one_line(tmp_path, classes):
    pack(tmp_path / "data", classes, lambda n: [0])
    with pytest.raises(UserError, match=r"every training picture has the same tags \(dog\).*without any tag"):
        train_own(tmp_path)
    assert not (tmp_path / "mine").exists()


@pytest.mark.slow
def test_one_class_beside_pictures_without_it_is_enough(tmp_path):
    pack(tmp_path / "data", ["dog"], lambda n: [0] * (n % 2))
    folder = train_own(tmp_path)
    masks.main(["--run", str(folder.path)])
    report.main(["--run", str(folder.path)])
    assert folder.read_summary()["tag_map"] is not None
