"""What a search asks of Ray, without starting it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import ray.train
from ray import tune
from ray.tune.schedulers import TrialScheduler

from ktse_dist.errors import UserError
from ktse_dist.launch import ray_tune
from ktse_dist.launch.ray_tune import Halving, Plan, concurrent, label
from ktse_dist.run_folder import RunFolder
from ktse_dist.search import load_search
from ktse_dist.training.divergence import Diverged

TUNE = Path(__file__).parents[2] / "configs" / "tune_erasing.yaml"


def plan(*overrides: str) -> Plan:
    return Plan(*load_search(TUNE, overrides), RunFolder(Path("/runs/x")), 5, [6, 7])


@pytest.mark.parametrize(
    ("keys", "fits"),
    [
        (["ray.workers=1"], 16),
        (["ray.workers=2", "ray.threads=3"], 2),
        (["ray.workers=2", "ray.use_gpu=true"], 2),
        (["ray.workers=1", "search.concurrent=3"], 3),
    ],
)
def test_cores_and_gpus_are_shared_out_by_what_a_trial_needs(keys, fits, monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 4.0, "memory": 1e9})
    assert concurrent(plan(*keys)) == fits


def test_a_trial_that_no_cluster_of_this_size_could_run_is_refused(monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0})
    with pytest.raises(UserError, match=r"ray\.workers: a trial needs 2 CPU and 2 GPU, the cluster has 16 and 0"):
        concurrent(plan("ray.workers=2", "ray.use_gpu=true"))


def halving(*scores: list[float]) -> Halving:
    """A scheduler to which trials 0, 1... are added that had these scores before a restart."""
    scheduler = Halving(metric="score", mode="max", time_attr="rung", max_t=4, grace_period=1, reduction_factor=2)
    for name, known in enumerate(scores):
        scheduler.on_trial_add(None, SimpleNamespace(trial_id=name, last_result={"scores": known}))
    return scheduler


def test_a_restarted_search_measures_new_trials_against_the_scores_of_before():
    worse, result = SimpleNamespace(trial_id=9, last_result=None), {"rung": 1, "score": 20.0}
    for known, decision in (([], TrialScheduler.CONTINUE), ([[30.0, 31.0], [29.0]], TrialScheduler.STOP)):
        scheduler = halving(*known)
        scheduler.on_trial_add(None, worse)
        assert scheduler.on_trial_result(None, worse, result) == decision


def test_a_trial_that_goes_on_is_not_given_up_for_a_score_that_it_says_again():
    scheduler = halving([30.0, 31.0], [29.0], [28.0])
    again = SimpleNamespace(trial_id=2)
    assert scheduler.on_trial_result(None, again, {"rung": 1, "score": 28.0}) == TrialScheduler.CONTINUE


def test_a_trial_is_called_by_the_last_parts_of_its_keys_unless_two_are_the_same():
    assert label({"method.erasing.threshold": 0.5, "optimiser.phase2.lr": 0.00123456}) == "threshold=0.5 lr=0.001235"
    same = {"method.erasing.margin": 0.1, "method.transfer.margin": 0.2}
    assert label(same) == "method.erasing.margin=0.1 method.transfer.margin=0.2"
    assert label({"arm": "+SIE"}) == "+SIE"


def trial_that_fails_with(monkeypatch, mistake: UserError) -> list[dict]:
    """What a trial tells Tune whose training ends in a user's mistake."""

    class Fails:
        def fit(self):
            raise ray.train.TrainingFailedError

    told = []
    monkeypatch.setattr(ray_tune, "trainer", lambda *about: Fails())
    monkeypatch.setattr(ray_tune, "user_error", lambda error: mistake)
    monkeypatch.setattr(ray_tune, "name_cluster", lambda: None)
    monkeypatch.setattr(ray_tune, "TuneReportCallback", lambda: None)
    monkeypatch.setattr(tune, "get_context", lambda: SimpleNamespace(get_trial_id=lambda: "a"))
    monkeypatch.setattr(tune, "report", told.append)
    ray_tune.trainable(plan())({"optimiser.phase2.lr": 0.02})
    return told


def test_a_trial_whose_loss_is_no_number_scores_0_and_ends_no_other(monkeypatch):
    told = trial_that_fails_with(monkeypatch, Diverged("optimiser.phase2.lr: the loss is nan"))
    assert told == [{"rung": 2, "score": 0.0, "scores": [], "failed": "optimiser.phase2.lr: the loss is nan"}]


def test_what_says_nothing_of_a_trials_settings_is_no_score(monkeypatch):
    with pytest.raises(UserError, match="No space left"):
        trial_that_fails_with(monkeypatch, UserError("checkpoints: No space left on device"))
