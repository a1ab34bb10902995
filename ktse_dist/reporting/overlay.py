"""A prediction to look at: the picture in grey under its CAMs, the mask's outlines, and what the colours mean."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ktse_dist.reporting.drawing import COLOURS, heat, outline

LETTERS, PAD, CHIP = 13, 6, 11  # pixels
LEAST_WIDTH = 220  # of the whole, so that names beside a narrow picture can be read


class Entry(NamedTuple):
    """One line of the legend; value: the class in the mask, None where there is no class."""

    value: int | None
    text: str


class Tinted(Protocol):
    """rgb uint8 [H,W,3] and what lies over it: keys int [n], the classes of cams float [n,H,W] between 0 and 1."""

    rgb: np.ndarray
    keys: np.ndarray
    cams: np.ndarray


def overlay(tinted: Tinted, labels: np.ndarray, entries: Sequence[Entry]) -> Image.Image:
    """The maps of `tinted` over its picture with the outlines of labels uint8 [H,W], above a legend."""
    values = [entry.value for entry in entries if entry.value is not None]
    colours = {value: COLOURS[place % len(COLOURS)] for place, value in enumerate(values)}
    drawn = outline(heat(tinted.rgb, tinted, colours), labels, colours)
    return with_legend(Image.fromarray(drawn), [(colours.get(e.value), e.text) for e in entries])


def with_legend(picture: Image.Image, lines: Sequence[tuple[str | None, str]]) -> Image.Image:
    """The picture above one line of text for each (colour of its square, text); text that is too long is cut."""
    step = LETTERS + PAD
    width = max(picture.width, LEAST_WIDTH)
    whole = Image.new("RGB", (width, picture.height + len(lines) * step + PAD), "white")
    whole.paste(picture, (0, 0))
    pen = ImageDraw.Draw(whole)
    for place, (colour, text) in enumerate(lines):
        top = picture.height + PAD + place * step
        if colour:
            pen.rectangle((PAD, top + 1, PAD + CHIP, top + 1 + CHIP), fill=colour)
        left = 2 * PAD + CHIP if colour else PAD
        pen.text((left, top - 1), _fitting(text, width - left - PAD), fill="black", font=_font())
    return whole


def _fitting(text: str, width: int) -> str:
    """Class names come from data: no line breaks, no control characters, no more than fits."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text[:200])
    if _font().getlength(text) <= width:
        return text
    while text and _font().getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@cache
def _font() -> ImageFont.FreeTypeFont:
    """The font that matplotlib brings along: it has most alphabets."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), LETTERS)
