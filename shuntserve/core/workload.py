"""What arrives: how long prompts and outputs are, as a distribution, not as two means."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from shuntserve.errors import InvalidInput


@dataclass(frozen=True)
class Workload:
    """Prompt and output lengths in tokens, one pair per request (or one pair for all).

    `mean_context` is what a *resident* sequence holds on average: long outputs stay longer, so it is weighted by
    output length, not by request. `mean_held` is the same where the whole output is reserved on admission.
    `output_cv` is the coefficient of variation of output lengths.
    """

    input_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    name: str = ""
    mean_input: float = field(init=False)
    mean_output: float = field(init=False)
    mean_context: float = field(init=False)
    mean_held: float = field(init=False)
    mean_input_squared: float = field(init=False)
    max_total: int = field(init=False)
    output_cv: float = field(init=False)

    def __post_init__(self) -> None:
        if not self.input_tokens or len(self.input_tokens) != len(self.output_tokens):
            raise InvalidInput("workload", "it has no requests, or prompts and outputs differ in number", "give pairs")
        if min(self.input_tokens) < 1 or min(self.output_tokens) < 1:
            raise InvalidInput("workload", "a prompt or output is shorter than one token", "give lengths of 1 or more")
        count = len(self.input_tokens)
        total_out = sum(self.output_tokens)
        held = sum((i + (o + 1) / 2) * o for i, o in zip(self.input_tokens, self.output_tokens, strict=True))
        object.__setattr__(self, "mean_input", sum(self.input_tokens) / count)
        object.__setattr__(self, "mean_output", total_out / count)
        object.__setattr__(self, "mean_context", held / total_out)
        reserved = sum((i + o) * o for i, o in zip(self.input_tokens, self.output_tokens, strict=True))
        object.__setattr__(self, "mean_held", reserved / total_out)
        object.__setattr__(self, "mean_input_squared", sum(i * i for i in self.input_tokens) / count)
        spread = sum((o - total_out / count) ** 2 for o in self.output_tokens) / count
        object.__setattr__(self, "output_cv", math.sqrt(spread) / (total_out / count))
        object.__setattr__(
            self, "max_total", max(i + o for i, o in zip(self.input_tokens, self.output_tokens, strict=True))
        )

    def __hash__(self) -> int:
        return hash((self.name, len(self.input_tokens), self.mean_input, self.mean_output))

    @classmethod
    def fixed(cls, input_tokens: float, output_tokens: float) -> Workload:
        """Every request alike. Lengths are rounded to whole tokens."""
        for label, value in (("input", input_tokens), ("output", output_tokens)):
            if not math.isfinite(value) or value < 1:
                raise InvalidInput(f"workload {label} length {value}", "not a positive number of tokens", "use 763:232")
        return cls((round(input_tokens),), (round(output_tokens),), f"{round(input_tokens)}:{round(output_tokens)}")

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, int]], name: str = "") -> Workload:
        """From (prompt tokens, output tokens) of each request."""
        listed = list(pairs)
        return cls(tuple(i for i, _ in listed), tuple(o for _, o in listed), name)

    def requests(self, count: int) -> Sequence[tuple[int, int]]:
        """The first `count` requests, repeating the distribution in order."""
        size = len(self.input_tokens)
        return [(self.input_tokens[k % size], self.output_tokens[k % size]) for k in range(count)]
