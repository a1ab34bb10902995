"""Masks of a folder are made alike, or not at all."""

import json
from types import SimpleNamespace

import pytest

from ktse_dist.config.stages import Masks
from ktse_dist.data.mask_settings import keep_settings, kept_settings
from ktse_dist.errors import UserError


@pytest.fixture
def made(tmp_path):
    (tmp_path / "model").write_bytes(b"weights")
    keep_settings(tmp_path / "masks", tmp_path / "model", Masks(), "opencv", [SimpleNamespace(split="val", sha256="a")])
    return tmp_path


def test_the_same_settings_go_on_and_more_processes_do_not_matter(made):
    pictures = [SimpleNamespace(split="val", sha256="a")]
    keep_settings(made / "masks", made / "model", Masks(processes=7), "opencv", pictures)
    assert kept_settings(made / "masks").scales == Masks().scales


def test_masks_of_other_pictures_are_not_mixed(made):
    with pytest.raises(UserError, match=r"data\.path: other pictures .* \(index of val\)"):
        keep_settings(made / "masks", made / "model", Masks(), "opencv", [SimpleNamespace(split="val", sha256="b")])


@pytest.mark.parametrize("key", ["index of val", "resize", "scales"])
def test_masks_of_an_older_version_are_told_as_such(made, key):
    file = made / "masks" / "settings.json"
    kept = json.loads(file.read_text())
    del kept[key]
    file.write_text(json.dumps(kept))
    with pytest.raises(UserError, match=rf"settings\.json: lacks '{key}', so an older version made .* delete .*masks"):
        keep_settings(made / "masks", made / "model", Masks(), "opencv", [SimpleNamespace(split="val", sha256="a")])


def test_masks_of_another_model_are_not_mixed(made):
    (made / "model").write_bytes(b"other weights")
    with pytest.raises(UserError, match="another one than the masks"):
        keep_settings(made / "masks", made / "model", Masks(), "opencv", [SimpleNamespace(split="val", sha256="a")])


def test_another_refinement_is_told_as_such_and_not_as_an_older_version(made):
    pictures = [SimpleNamespace(split="val", sha256="a")]
    with pytest.raises(UserError, match=r"masks\.refine: 'irn', but the masks in .* were made with 'crf'"):
        keep_settings(made / "masks", made / "model", Masks(refine="irn"), "opencv", pictures)


@pytest.mark.parametrize("content", ["", '{"refine": "crf"', "\x80"])
def test_damaged_settings_are_one_line_that_tells_the_mend(made, content):
    (made / "masks" / "settings.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"settings\.json: damaged.*; delete .*masks to make its masks anew"):
        kept_settings(made / "masks")
