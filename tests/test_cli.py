"""`ktse VERB` is `python -m ktse_dist.VERB`."""

import importlib

import pytest

from ktse_dist.cli import VERBS, dispatch


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
