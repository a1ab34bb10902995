"""Masks of a folder are made alike, or not at all."""

import json
import shlex
from types import SimpleNamespace

import pytest

from ktse_dist.config.stages import Masks
from ktse_dist.data.mask_settings import keep_settings, kept_settings, masks_command
from ktse_dist.errors import UserError
from ktse_dist.files import write_text
from ktse_dist.masks import with_mask_keys


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


def test_masks_whose_settings_are_gone_are_nobodys(made):
    (made / "masks" / "settings.json").unlink()
    (made / "masks" / "train-00000.tar").write_bytes(b"")
    pictures = [SimpleNamespace(split="val", sha256="a")]
    with pytest.raises(UserError, match=r"settings\.json: not there; delete .*masks to make its masks anew"):
        keep_settings(made / "masks", made / "model", Masks(), "opencv", pictures)
    with pytest.raises(UserError, match=r"settings\.json: not there"):
        kept_settings(made / "masks")


def test_the_command_for_missing_masks_has_the_keys_that_the_others_were_made_with(masked_run):
    config = with_mask_keys(masked_run.read_config(), ["masks.refine=irn", "masks.pictures.train=3"])
    write_text(masked_run.masks / "settings.json", config.masks.model_dump_json())
    expected = f"ktse masks --run {masked_run.path} masks.pictures.train=3 'masks.refine=\"irn\"'"
    assert masks_command(masked_run.masks) == expected
    assert with_mask_keys(masked_run.read_config(), shlex.split(expected)[4:]) == config
