"""`ktse VERB` is `python -m ktse_dist.VERB`."""

import importlib

import pytest

from ktse_dist.cli import VERBS, dispatch
from ktse_dist.errors import UserError


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_that_names_itself(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        dispatch([verb, "--help"])
    assert stop.value.code == 0
    assert "usage: ktse " in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_a_module_with_a_main(verb):
    assert callable(importlib.import_module(VERBS[verb].module).main)


def test_help_names_every_verb(capsys):
    dispatch(["--help"])
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines() if line.startswith("  ")] == list(VERBS)


@pytest.mark.parametrize(("verb", "key"), [("masks", "masks.workers=0"), ("segment", 'segment.crf="plain"')])
def test_help_tells_the_keys_of_a_stage_with_their_defaults(capsys, verb, key):
    with pytest.raises(SystemExit):
        dispatch([verb, "--help"])
    assert key in capsys.readouterr().out


@pytest.mark.parametrize(
    "line", [["train", "--config"], ["masks"], ["pack", "folder"], ["export", "--run", "r", "--fo"]]
)
def test_a_line_that_cannot_be_parsed_is_one_line_that_points_to_the_help(line):
    with pytest.raises(UserError, match=rf"; ktse {line[0]}.* --help tells what is allowed$"):
        dispatch(line)


@pytest.mark.parametrize(
    ("verb", "mend"), [("evalute", "did you mean 'evaluate'"), ("--run", "it comes first, and allowed are ")]
)
def test_a_verb_that_is_none_is_one_line_with_its_mend(verb, mend):
    with pytest.raises(UserError, match=rf"^'{verb}' is no verb; .*{mend}"):
        dispatch([verb])


def test_options_may_stand_between_keys(tmp_path):
    with pytest.raises(UserError, match=r"no config\.yaml there"):
        dispatch(["masks", "--run", str(tmp_path), "masks.strength=0.2", "--refine", "none", "masks.workers=0"])
