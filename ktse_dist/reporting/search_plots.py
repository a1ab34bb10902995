"""Plots of a search: which keys mattered, and which values went with which score."""

import math
import warnings
from collections.abc import Mapping, Sequence

import optuna
from matplotlib import colormaps
from matplotlib.ticker import FixedLocator

from ktse_dist.reporting.plots import BASELINE, RUN, data_uri, new_figure
from ktse_dist.search import Range

FEWEST = 8  # trials: among fewer, the best quarter is one trial, which says nothing about keys
QUANTILE = 0.25


def importance(space: Mapping[str, Range], points: Sequence[tuple[Mapping[str, float], float]]) -> dict[str, float]:
    """key -> share of its importance, 1 in all, for reaching the best quarter of the scores (PED-ANOVA).

    points: (values, score). Empty for fewer than FEWEST of them, and where all scores are the same.
    """
    if len(points) < FEWEST or len({score for _, score in points}) == 1:
        return {}
    distributions = {
        key: optuna.distributions.FloatDistribution(bounds.low, bounds.high, log=bounds.log)
        for key, bounds in space.items()
    }
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for values, score in points:
        study.add_trial(optuna.create_trial(params=dict(values), distributions=distributions, value=score))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls itself experimental
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=QUANTILE)
        return optuna.importance.get_param_importances(study, evaluator=evaluator)


def importance_plot(shares: Mapping[str, float]) -> str:
    figure, axes = new_figure(height=0.6 + 0.35 * len(shares))
    names = list(shares)[::-1]
    axes.barh(names, [shares[name] for name in names], color=RUN, height=0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of importance")
    return data_uri(figure)


def parallel_plot(space: Mapping[str, Range], points: Sequence[tuple[Mapping[str, float], float]]) -> str:
    """A line a trial through its values, an axis each, to its score; the darker the better, the best one in red."""
    figure, axes = new_figure(height=3.2)
    figure.set_figwidth(1.6 * (len(space) + 2))
    scores = [score for _, score in points]
    low, high = min(scores), max(scores)
    ranges = {**space, "score": Range(low=low, high=high if high > low else low + 1, log=False)}
    for values, score in sorted(points, key=lambda point: point[1]):
        heights = [height(bounds, (dict(values) | {"score": score})[key]) for key, bounds in ranges.items()]
        best = score == high
        shade = colormaps["Blues"](0.25 + 0.75 * heights[-1])
        axes.plot(heights, color=BASELINE if best else shade, linewidth=2.2 if best else 1.1)
    for place, bounds in enumerate(ranges.values()):
        axes.axvline(place, color="#888888", linewidth=0.8)
        for end, value in ((-0.06, bounds.low), (1.03, bounds.high)):
            axes.text(place, end, f"{value:.4g}", ha="center", fontsize=7)
    axes.xaxis.set_major_locator(FixedLocator(range(len(ranges))))
    axes.set_xticklabels([key.replace(".", ".\n") for key in ranges], fontsize=7)
    axes.set(ylim=(-0.1, 1.1), yticks=[])
    axes.spines[:].set_visible(False)
    return data_uri(figure)


def height(bounds: Range, value: float) -> float:
    """Where a value lies on its axis, 0 to 1."""
    low, high, at = (math.log(v) if bounds.log else v for v in (bounds.low, bounds.high, value))
    return (at - low) / (high - low)
