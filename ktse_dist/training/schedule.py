"""Which epoch, phase, batch and learning rate a step has: functions of the step, so that resuming is arithmetic."""

from dataclasses import dataclass
from itertools import accumulate

from ktse_dist.config import Config
from ktse_dist.config.training import Phase
from ktse_dist.errors import UserError
from ktse_dist.training.optim import poly


@dataclass(frozen=True)
class Place:
    """A step's place: global batch `batch` of `batch_size` pictures in `epoch`."""

    epoch: int
    batch: int
    batch_size: int

    @property
    def samples_consumed(self) -> int:
        return self.batch * self.batch_size


class Schedule:
    """The steps of a whole run over `samples` training pictures."""

    def __init__(self, config: Config, samples: int):
        self.train, self.optimiser, self.samples = config.train, config.optimiser, samples
        self._sizes = [self.train.batch_size(epoch) for epoch in range(self.train.epochs)]
        if samples < max(self._sizes):
            raise UserError(
                f"train.batch: a batch of {max(self._sizes)} from {samples} training pictures; "
                f"allowed is at most {samples}: lower train.batch or pack more pictures"
            )
        self._ends = list(accumulate(samples // size for size in self._sizes))  # first step after each epoch
        self.total_steps = self._ends[-1]
        self.phase1_steps = self._ends[self.train.phase1_epochs - 1] if self.train.phase1_epochs else 0

    def place(self, step: int) -> Place:
        epoch = next(e for e, end in enumerate(self._ends) if step < end)
        return Place(epoch, step - (self._ends[epoch - 1] if epoch else 0), self._sizes[epoch])

    def epoch_end(self, epoch: int) -> int:
        return self._ends[epoch]

    def phase(self, step: int) -> int:
        return 1 if step < self.phase1_steps else 2

    def sgd(self, step: int) -> Phase:
        return self.optimiser.phase1 if self.phase(step) == 1 else self.optimiser.phase2

    def lr(self, step: int) -> float:
        """The learning rate of a backbone weight in the update after `step` finished ones (docs/method.md 1.3).

        Polynomial decay; where asked for, a linear rise over the first steps and linear scaling with the batch.
        """
        optimiser = self.optimiser
        scale = self.place(step).batch_size / optimiser.lr_batch if optimiser.lr_batch else 1.0
        rise = min(1.0, (step + 1) / (optimiser.warmup_steps + 1))
        return max(optimiser.floor or 0.0, self.sgd(step).lr * scale * rise * poly(step, self.horizon, optimiser.power))

    @property
    def horizon(self) -> int:
        """The update at which the learning rate would reach 0 (docs/method.md 1.3; quirk 3 for batch_8)."""
        if self.optimiser.horizon == "batch_8":
            return max(1, self.samples // 8) * self.train.epochs  # 1: fewer than 8 pictures in all
        return self.total_steps

    def pictures_after(self, step: int) -> int:
        """Pictures that the run still has to see from `step` on."""
        starts = [0, *self._ends[:-1]]
        remaining = (
            max(0, end - max(step, start)) * size
            for start, end, size in zip(starts, self._ends, self._sizes, strict=True)
        )
        return sum(remaining)
