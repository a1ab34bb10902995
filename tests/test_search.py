"""Section `search`: what it may say, the trials that it means, and what is told of them."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from ktse_dist.config_file import load_config, to_yaml
from ktse_dist.errors import UserError
from ktse_dist.reporting import search_page
from ktse_dist.reporting.search_plots import FEWEST, importance
from ktse_dist.search import Range, Trial, as_given, best_first, load_search, rung_steps, variant
from ktse_dist.training.schedule import Schedule

CONFIGS = Path(__file__).parents[1] / "configs"
TUNE, ABLATION = CONFIGS / "tune_erasing.yaml", CONFIGS / "ablation.yaml"


def test_the_shipped_search_varies_erasing_margin_backgrounds_and_learning_rate_around_its_run():
    config, search = load_search(TUNE, [])
    assert {key.split(".")[-1] for key in search.space} == {"threshold", "margin", "high", "low", "lr"}
    assert as_given(config, search)["method.erasing.threshold"] == config.method.erasing.threshold  # it is a trial
    steps = Schedule(config, 1500)
    rungs = rung_steps(search.rungs, steps.phase1_steps, steps.total_steps)
    assert [step - steps.phase1_steps for step in rungs] == [46, 93, 139, 186]  # as its comment says


def test_the_shipped_ablation_has_the_papers_arms():
    config, search = load_search(ABLATION, [])
    weights = {name: variant(config, values).method for name, values in search.arms.items()}
    assert {name: (method.sie, method.ssr, method.mga) for name, method in weights.items()} == {
        "baseline": (0, 0, 0),
        "+SIE": (1, 0, 0),
        "+SIE+SSR": (1, 1, 0),
        "+SIE+SSR+MGA": (1, 1, 1),
    }


def test_an_override_narrows_one_end_of_a_range():
    _, search = load_search(TUNE, ["search.trials=3", "search.space.optimiser.phase2.lr.high=0.005"])
    assert search.trials == 3
    assert search.space["optimiser.phase2.lr"] == Range(low=0.002, high=0.005, log=True)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("search.trails=3", "search.trails: no such key. Did you mean 'search.trials'?"),
        ("search.space.method.erasing.treshold={low: 0.1, high: 0.2}", "method.erasing.treshold: no such key. Did you"),
        ("search.space.train.epochs={low: 1, high: 2}", "search.space: 'train.epochs'; allowed are keys of optim"),
        ("search.space.method.erasing.threshold.low=0.9", "search.space.method.erasing.threshold.low is 0.9, high is"),
        ("search.space.method.pseudo_label.low.high=0.6", "method.pseudo_label.low is 0.6; allowed is less than high"),
        ("search.space.method.mga={low: -1, high: 1}", "method.mga: found -1.0; input should be greater"),
        ("search.space.method.transfer.pairs={low: 1, high: 4}", "search.space: 'method.transfer.pairs' is 4, no dec"),
        ("search.arms.x={method.sie: 0}", "search.space, search.arms: both given; give one"),
        ("search=none", "search: no such section"),
    ],
)
def test_a_search_that_no_run_could_take_is_refused_in_one_line(override, told):
    with pytest.raises(UserError, match=re.escape(told)):
        load_search(TUNE, [override])


def test_a_file_without_the_section_is_refused():
    with pytest.raises(UserError, match="no such section"):
        load_search(CONFIGS / "demo.yaml", [])


def test_the_config_is_no_trial_where_it_lies_outside_the_space():
    config, search = load_search(TUNE, ["method.erasing.threshold=0.3"])
    assert as_given(config, search) is None


def test_trials_need_a_phase_1_to_share_and_steps_to_be_scored_after():
    with pytest.raises(UserError, match=r"train\.phase1_epochs"):
        rung_steps(2, 0, 10)
    with pytest.raises(UserError, match=r"search\.rungs: 11 scores in 10 steps"):
        rung_steps(11, 5, 15)
    assert rung_steps(10, 5, 15) == list(range(6, 16))


def trial(name: str, *scores: float, failed: str | None = None, **values: float) -> Trial:
    return Trial(name, f"<{name}>", values, list(scores), 1.5, failed)


TRIALS = [trial("a", 30.0, x=0.1), trial("b", 10.0, 20.0, x=0.3), trial("c", 11.0, 21.0, x=0.2), trial("d", failed="!")]


def test_a_trial_that_came_further_ranks_before_one_that_was_better_earlier():
    assert [one.name for one in best_first(TRIALS)] == ["c", "b", "a", "d"]


def test_table_and_csv_hold_every_trial_best_first_and_why_it_ended():
    lines = search_page.table([5, 9], best_first(TRIALS)).splitlines()[1:]
    assert [re.search("<(.)>", line)[1] for line in lines] == ["c", "b", "a", "d"]
    assert "given up after 1 of 2" in lines[2] and "(!)" in lines[3]
    rows = list(csv.DictReader(search_page.as_csv([5, 9], best_first(TRIALS)).splitlines()))
    assert [row["score_at_9"] for row in rows] == ["21.0", "20.0", "", ""]
    assert [row["x"] for row in rows] == ["0.2", "0.3", "0.1", ""]


def test_the_page_is_whole_and_escapes_what_it_tells():
    config, search = load_search(TUNE, [])
    values = as_given(config, search)
    found = [Trial(f"{n}", f"<{n}>", values, [10.0 + n], 1.0) for n in range(3)]
    page = search_page.render(config, search, [5], found, to_yaml(config))
    assert page.count("data:image/png;base64,") == 1  # parallel coordinates, and too few trials for importance
    assert f"it takes {FEWEST}" in page
    assert "&lt;2&gt;" in page and "<2>" not in page
    assert "http://" not in page and "https://" not in page and "{%" not in page and "--bar" in page


def test_importance_finds_the_key_that_decides_the_score():
    draw = np.random.default_rng(0)
    space = {"decides": Range(low=0.001, high=1, log=True), "idle": Range(low=0, high=1)}
    points = [{"decides": 10 ** draw.uniform(-3, 0), "idle": draw.uniform(0, 1)} for _ in range(40)]
    shares = importance(space, [(values, np.log(values["decides"])) for values in points])
    assert list(shares) == ["decides", "idle"] and shares["decides"] > 0.7
    assert importance(space, [(values, float(n)) for n, values in enumerate(points[: FEWEST - 1])]) == {}
    assert importance(space, [(values, 1.0) for values in points]) == {}  # no quarter is the best one


def test_the_best_trials_config_is_one_that_train_reads_back(tmp_path):
    from ktse_dist.tune import best_config, of_trials

    config, _ = load_search(TUNE, [])
    best = best_config(of_trials(config), trial("a", 1.0, **{"method.erasing.threshold": 0.53}))
    (tmp_path / "best.yaml").write_text(to_yaml(best))
    read = load_config(tmp_path / "best.yaml")
    assert read == best and read.method.erasing.threshold == 0.53 and read.run.name == "tune_erasing-best"


def test_a_search_goes_on_only_as_it_was_started(tmp_path):
    from ktse_dist.run_folder import RunFolder
    from ktse_dist.tune import keep_search

    folder = RunFolder(tmp_path)
    keep_search(folder, *load_search(TUNE, []))
    keep_search(folder, *load_search(TUNE, ["ray.workers=4"]))  # how, not what
    with pytest.raises(UserError, match=r"search\.concurrent: 3, but"):  # Ray goes on with the one it began with
        keep_search(folder, *load_search(TUNE, ["search.concurrent=3"]))
    with pytest.raises(UserError, match=r"search\.trials: 5, but .* was started with 16"):
        keep_search(folder, *load_search(TUNE, ["search.trials=5"]))
    assert json.loads((tmp_path / "search.json").read_text())["search"]["trials"] == 16
