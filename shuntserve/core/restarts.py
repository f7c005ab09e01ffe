"""When a worker that died is started again, and when no more: a decision on what its lives have achieved."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lives:
    """How one worker's slot has fared. A life is fruitful when it generated a token or committed a chunk."""

    fruitless_in_a_row: int = 0
    restarts: int = 0

    def ended(self, *, fruitful: bool) -> Lives:
        """After one more life."""
        return Lives(0 if fruitful else self.fruitless_in_a_row + 1, self.restarts + 1)


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """The first restart is immediate: on spot machines and out-of-memory kills the second try usually holds."""

    first_delay_s: float = 0.25
    longest_delay_s: float = 30.0
    most_fruitless_lives: int = 10

    def delay_s(self, lives: Lives) -> float | None:
        """Seconds until the next start, doubling with each fruitless life; None when the slot is given up."""
        if lives.fruitless_in_a_row >= self.most_fruitless_lives:
            return None
        if lives.fruitless_in_a_row <= 1:
            return 0.0
        return min(self.longest_delay_s, self.first_delay_s * 2.0 ** (lives.fruitless_in_a_row - 2))
