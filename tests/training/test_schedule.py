"""Steps, epochs, phases: arithmetic that a resumed run depends on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktse_dist.config_file import load_config
from ktse_dist.training.schedule import Schedule


def schedule(samples=100, *keys):
    return Schedule(load_config(None, ["train.epochs=5", "train.phase1_epochs=2", *keys]), samples)


@given(st.integers(20, 300), st.integers(1, 16), st.integers(1, 16))
def test_walking_over_places_meets_every_batch_of_every_epoch_once(samples, first, later):
    plan = schedule(samples, f"train.batch=[[0,{first}],[3,{later}]]", "ray.workers=1")
    places = [plan.place(step) for step in range(plan.total_steps)]
    expected = [(e, b) for e in range(5) for b in range(samples // (first if e < 3 else later))]
    assert [(p.epoch, p.batch) for p in places] == expected
    assert plan.pictures_after(0) == sum(p.batch_size for p in places)


def test_phase_two_begins_with_its_epoch():
    plan = schedule(100, "train.batch=[[0,16]]")
    assert plan.phase1_steps == 12
    assert [plan.phase(step) for step in (0, 11, 12)] == [1, 1, 2]


def test_the_published_horizon_counts_updates_of_eight_pictures():
    plan = schedule(10_582, "method.preset=published", "train.epochs=40", "train.phase1_epochs=10",
                    "train.batch=[[0,8],[10,16]]")  # fmt: skip
    assert (plan.horizon, plan.total_steps) == (52_880, 33_050)


def test_pictures_left_shrink_with_every_step():
    plan = schedule(100, "train.batch=[[0,16]]")
    assert plan.pictures_after(0) - plan.pictures_after(7) == 7 * 16
    assert plan.pictures_after(plan.total_steps) == 0


def test_the_published_horizon_exists_for_a_handful_of_pictures():
    assert schedule(5, "method.preset=published", "train.batch=[[0,2]]").horizon == 5


def test_the_learning_rate_rises_over_the_warm_up_and_then_decays():
    plan = schedule(100, "optimiser.warmup_steps=4", "optimiser.phase1.lr=0.1", "optimiser.power=0.9")
    plain = schedule(100, "optimiser.warmup_steps=0", "optimiser.phase1.lr=0.1", "optimiser.power=0.9")
    shares = [plan.lr(step) / plain.lr(step) for step in range(7)]
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1])


def test_the_learning_rate_scales_with_the_batch_where_asked_for():
    rates = ("train.batch=[[0,8],[1,32]]", "optimiser.phase1.lr=0.01", "optimiser.warmup_steps=0")
    scaled, plain = schedule(100, *rates, "optimiser.lr_batch=16"), schedule(100, *rates)
    assert scaled.lr(0) / plain.lr(0) == pytest.approx(0.5)
    assert scaled.lr(12) / plain.lr(12) == pytest.approx(2)


def test_the_learning_rate_does_not_fall_below_its_floor():
    keys = ("train.batch=[[0,10]]", "optimiser.phase2.lr=0.01", "optimiser.phase2.head_rate=1")
    floored, plain = schedule(100, *keys, "optimiser.floor=0.001"), schedule(100, *keys)
    assert floored.lr(49) == 0.001 > plain.lr(49)
    assert floored.lr(30) == plain.lr(30)
