"""What `ktse inspect` found, for people."""

from collections.abc import Iterator
from typing import Any

WIDTH = 24  # letters of a class name


def overview(found: dict[str, Any]) -> str:
    """The text of what `inspect` returns. Names from the data set lose what a terminal would take for commands."""
    lines = [f"{found['dataset']}: {len(found['classes'])} classes"]
    for split, figures in found["splits"].items():
        lines += ["", *_split(split, figures)]
    if found["val_pictures_in_train"]:
        lines += ["", f"{found['val_pictures_in_train']:,} of val's pictures stand in train, too: scores will flatter"]
    return "\n".join([*lines, "", *_problems(found)])


def _split(split: str, figures: dict[str, Any]) -> Iterator[str]:
    megabytes, shards = figures["bytes"] / 1e6, figures["shards"]
    yield f"{split}: {figures['pictures']:,} pictures in {shards} shard{'s' * (shards != 1)}, {megabytes:,.1f} MB"
    if figures["width"]:
        sides = (f"{side} {' / '.join(map(str, figures[side].values()))}" for side in ("width", "height"))
        yield f"  pixels     {', '.join(sides)} (smallest / median / largest)"
    tags = ", ".join(f"{tags}: {n:,}" for tags, n in figures["tags_per_picture"].items())
    yield f"  tags       a picture has {tags} (tags: pictures)"
    yield from _masks(figures["masks"], figures["pictures"]) if figures["masks"] else ["  masks      none"]
    yield from _classes(figures)
    yield from _pairs(figures)


def _masks(masks: dict[str, Any], pictures: int) -> Iterator[str]:
    yield (
        f"  masks      {masks['pictures']:,} pictures ({masks['pictures'] / pictures:.0%}); pixels: "
        f"{masks['background']:.1%} background, {masks['ignored']:.1%} ignored"
    )
    if masks["contradictions"]:
        yield f"             {masks['contradictions']:,} of them show a class that the tags lack"


def _classes(figures: dict[str, Any]) -> Iterator[str]:
    masks = figures["masks"]
    yield f"  {'class':{WIDTH}} {'pictures':>9} {'share':>6}" + ("  in masks" if masks else "")
    for name, count in figures["classes"].items():
        seen = f" {masks['classes'][name]:9,}" if masks else ""
        yield f"  {short(name):{WIDTH}} {count:9,} {count / figures['pictures']:6.1%}{seen}"


def _pairs(figures: dict[str, Any]) -> Iterator[str]:
    """Which classes share pictures: the whole matrix of a few classes, the largest entries of many."""
    if not figures["together"]:
        return
    if figures["matrix"]:
        yield "  pictures with both the class of the line and the class of the column"
        yield f"  {'':{WIDTH}}" + "".join(f" {name[:7]:>7}" for name in map(short, figures["classes"]))
        for name, counts in zip(figures["classes"], figures["matrix"], strict=True):
            yield f"  {short(name):{WIDTH}}" + "".join(f" {count:7,}" for count in counts)
        return
    yield "  most often together"
    for one, other, count in figures["together"]:
        yield f"  {short(one):{WIDTH}} + {short(other):{WIDTH}} {count:9,} {count / figures['pictures']:6.1%}"


def short(name: str) -> str:
    """A name in WIDTH printable letters."""
    plain = printable(name)
    return plain if len(plain) <= WIDTH else plain[: WIDTH - 3] + "..."


def printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _problems(found: dict[str, Any]) -> Iterator[str]:
    for problem in found["problems"]:
        yield printable(": ".join(part for part in problem.values() if part))
    hidden = found["problem_count"] - len(found["problems"])
    if hidden:
        yield f"... and {hidden:,} more"
    if found["problem_count"]:
        yield f"{found['problem_count']:,} problem{'s' * (found['problem_count'] != 1)}; pack the data set again"
    elif found["verified"]:
        yield "whole: every hash, member and tag is as dataset.json and the indices say"
    else:
        yield "no problem seen; --verify checks every hash and every member"
