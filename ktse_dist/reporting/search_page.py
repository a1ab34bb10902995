"""What a search leaves behind for people: a table of its trials, best first, as text, CSV and a page."""

import csv
import io
from collections.abc import Sequence

from ktse_dist.config import Config
from ktse_dist.reporting.page import template
from ktse_dist.reporting.search_plots import FEWEST, importance, importance_plot, parallel_plot
from ktse_dist.search import Search, Trial


def render(config: Config, search: Search, rungs: list[int], trials: Sequence[Trial], best: str) -> str:
    """The page's HTML. rungs: steps; trials: best first; best: what best.yaml holds."""
    # every trial has a score at its first rung: later ones are of the better trials only
    points = [(trial.values, trial.scores[0]) for trial in trials if trial.scores] if search.space else []
    shares = importance(search.space, points)
    return template("search.html").render(
        name=config.run.name,
        steps=rungs,
        pictures=config.masks.pictures.train,
        trials=trials,
        reduction=search.reduction if search.space else None,
        importance=importance_plot(shares) if shares else None,
        parallel=parallel_plot(search.space, points) if points else None,
        fewest=FEWEST,
        best=best,
    )


def as_csv(rungs: list[int], trials: Sequence[Trial]) -> str:
    """A row a trial, a column a key and a score; what a trial has not is empty."""
    keys = sorted({key for trial in trials for key in trial.values})
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["trial", "label", *keys, *(f"score_at_{step}" for step in rungs), "seconds", "note"])
    for trial in trials:
        scores = [*trial.scores, *[""] * (len(rungs) - len(trial.scores))]
        values = [trial.values.get(key, "") for key in keys]
        writer.writerow([trial.name, trial.label, *values, *scores, trial.seconds, trial.note(len(rungs))])
    return file.getvalue()


def table(rungs: list[int], trials: Sequence[Trial]) -> str:
    """Lines for people, in columns."""
    lines = ["".join(f"{f'step {step}':>12}" for step in rungs) + "  trial"]
    for trial in trials:
        scores = [f"{score:12.2f}" for score in trial.scores] + [" " * 12] * (len(rungs) - len(trial.scores))
        note = trial.note(len(rungs))
        lines.append("".join(scores) + f"  {trial.label}" + (f" ({note})" if note else ""))
    return "\n".join(lines)
