"""Who is told to hang, and who only waits for one that does; what a start after a crash knows of the steps before."""

from ktse_dist.run_folder import RunFolder
from ktse_dist.training.reached import Reached, going_on, last_step
from ktse_dist.training.watchdog import Watch


def watch(*beats: tuple[int, int, float]) -> Watch:
    """Of (rank, step, time); a rank's process is 100 more than its number."""
    found = Watch(limit=10)
    for rank, step, now in beats:
        found.beat(rank, "node", 100 + rank, step, now)
    return found


def test_nobody_hangs_while_steps_are_finished():
    assert watch((0, 1, 0), (1, 1, 0), (0, 2, 9), (1, 2, 9)).hanging(18) == {}


def test_the_silent_rank_is_named_and_not_the_one_that_waits_for_it():
    found = watch((0, 7, 0), (1, 7, 0), (0, 7, 9)).hanging(10)
    assert list(found) == [1]
    assert "rank 1 (host node, process 101) hangs after step 7" in found[1]


def test_where_all_give_signs_of_life_the_rank_behind_is_named():
    assert list(watch((0, 8, 0), (1, 7, 0), (0, 8, 9), (1, 7, 9)).hanging(10)) == [1]


def test_the_process_that_replaces_a_rank_has_its_whole_time():
    found = watch((0, 7, 0))
    found.beat(0, "node", 200, 7, 9)
    assert found.hanging(12) == {}


def test_the_first_step_of_a_process_has_longer_while_it_lives():
    alive = watch((0, 0, 0), (1, 0, 0), (0, 0, 29), (1, 0, 29))
    assert alive.hanging(29) == {}
    assert list(alive.hanging(30)) == [0, 1]
    assert list(watch((0, 0, 0), (1, 0, 0), (0, 0, 9)).hanging(10)) == [1]


def test_the_last_step_is_known_after_a_crash(tmp_path):
    folder = RunFolder(tmp_path)
    assert last_step(folder) is None
    noted = Reached(folder)
    for step in (9, 10, 11):
        noted.note(step)
    assert last_step(folder) == 11  # never closed


def test_what_is_done_again_is_unknown_where_another_machine_went_further(tmp_path):
    folder = RunFolder(tmp_path)
    assert going_on(folder, 0) is None
    (folder.checkpoints / "step-00000008").mkdir(parents=True)
    assert "not known" in going_on(folder, 8)
    Reached(folder).note(6)  # from before the other machine
    assert "not known" in going_on(folder, 8)
    Reached(folder).note(10)
    assert going_on(folder, 8) == "goes on from step 8; 2 steps are done again"


def test_a_fork_does_nothing_again(tmp_path):
    assert going_on(RunFolder(tmp_path), 20) == "goes on from step 20; 0 steps are done again"
