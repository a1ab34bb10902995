"""A worker group that grows or shrinks of its own accord leaves a checkpoint first, so that no step is done twice."""

import time

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.train.v2._internal.execution.callback import ControllerCallback  # RunConfig takes it; no public name
from ray.train.v2._internal.execution.controller.state import ResizingState, TrainControllerState

PAUSE = 0.2  # seconds between two looks


class SaveBeforeResize(ControllerCallback):
    """Lives in Ray Train's controller, which waits for it. seconds: as long as it waits for the ranks at most.

    Ray tells of a resize it has decided on, never of a lost node: there the last checkpoint is where the run goes on.
    """

    def __init__(self, board: ActorHandle, seconds: float) -> None:
        self._board, self._seconds = board, seconds

    def after_controller_state_update(self, previous: TrainControllerState, current: TrainControllerState) -> None:
        if not isinstance(current, ResizingState):
            return
        deadline = time.monotonic() + self._seconds
        try:
            ray.get(self._board.resize.remote(True), timeout=self._seconds)
            while time.monotonic() < deadline and ray.get(self._board.ranks.remote(), timeout=self._seconds):
                time.sleep(PAUSE)
        except RayError:
            return  # without the board there is no driver either
        finally:
            self._board.resize.remote(False)
