"""Which ranks hang: a pure account of when each was heard last and when it finished its last step."""

from dataclasses import dataclass

FIRST_STEP = 3  # times the usual limit, for what only the first step after a start has to do: fetch, compile


@dataclass
class Life:
    """What is known of a rank; seen, moved: seconds on the listener's clock."""

    host: str
    pid: int
    step: int
    seen: float  # its last sign of life
    moved: float  # its last new step


class Watch:
    """Told by the ranks, asked by the watchdog.

    limit: seconds without a finished step that count as hanging; before the first one of a process FIRST_STEP times as
    many, as long as it gives signs of life.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._ranks: dict[int, Life] = {}

    def beat(self, rank: int, host: str, pid: int, step: int, now: float) -> None:
        """A sign of life of a rank that has finished `step` steps."""
        known = self._ranks.get(rank)
        moved = known.moved if known and (known.pid, known.step) == (pid, step) else now
        self._ranks[rank] = Life(host, pid, step, now, moved)

    def forget(self, rank: int) -> None:
        """A rank that has ended, or is about to be ended."""
        self._ranks.pop(rank, None)

    def hanging(self, now: float) -> dict[int, str]:
        """The ranks at fault and a line for each; empty while all is well.

        A rank that hangs stops all others within a step: those that still give signs of life only wait for it. Where
        all give them, the ranks that are furthest behind are at fault.
        """
        stuck = {rank: life for rank, life in self._ranks.items() if self._is_stuck(life, now)}
        if not stuck:
            return {}
        silent = {rank for rank, life in stuck.items() if now - life.seen >= self._limit / 2}
        behind = min(life.step for life in stuck.values())
        guilty = silent or {rank for rank, life in stuck.items() if life.step == behind}
        return {rank: self._line(rank, stuck[rank], now) for rank in sorted(guilty)}

    def _is_stuck(self, life: Life, now: float) -> bool:
        patience = self._limit if life.step else FIRST_STEP * self._limit
        return now - life.moved >= patience or now - life.seen >= self._limit

    def _line(self, rank: int, life: Life, now: float) -> str:
        return (
            f"rank {rank} (host {life.host}, process {life.pid}) hangs after step {life.step}: no step for "
            f"{now - life.moved:.0f} s, no sign of life for {now - life.seen:.0f} s; train.hang_seconds allows "
            f"{self._limit:.0f}"
        )
