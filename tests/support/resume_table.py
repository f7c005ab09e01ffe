"""Prints the resume matrix at the end of a test run: features × engines, and where anything differed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from tests.support.resume_matrix import CUTS, NOTE

_NOTHING = "–"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """pytest's hook; silent when no test of the run belongs to the matrix."""
    cells = [
        value
        for kind in ("passed", "failed")
        for report in terminalreporter.stats.get(kind, [])
        for name, value in getattr(report, "user_properties", [])
        if name == NOTE
    ]
    if cells:
        terminalreporter.section("resume matrix: continued sequences equal to undisturbed ones")
        for line in table(cells):
            terminalreporter.write_line(line)


def table(cells: Iterable[Any]) -> Iterator[str]:
    """Lines of the table from (engine, case, cut, equal, of) cells. A cell of the table sums over the cuts."""
    equal: dict[tuple[str, str], int] = defaultdict(int)
    total: dict[tuple[str, str], int] = defaultdict(int)
    engines: dict[str, None] = {}
    cases: dict[str, None] = {}
    cuts: set[str] = set()
    exceptions = []
    for engine, case, where, same, rows in cells:
        engines[engine] = cases[case] = None
        cuts.add(where)
        equal[engine, case] += same
        total[engine, case] += rows
        if same != rows:
            exceptions.append(f"  not equal: {engine}, {case}, cut after {where}: {same} of {rows}")
    width = max(map(len, cases))
    letters = {engine: chr(ord("A") + number) for number, engine in enumerate(engines)}
    yield f"cut after {', '.join(where for where in CUTS if where in cuts)} tokens"
    yield from (f"  {letter}  {engine}" for engine, letter in letters.items())
    yield f"{'':{width}}" + "".join(f"{letter:>9}" for letter in letters.values())
    for case in cases:
        shown = (
            f"{equal[engine, case]}/{total[engine, case]}" if (engine, case) in total else _NOTHING
            for engine in engines
        )
        yield f"{case:{width}}" + "".join(f"{cell:>9}" for cell in shown)
    sums = (
        "/".join(str(sum(n for (name, _), n in counts.items() if name == engine)) for counts in (equal, total))
        for engine in engines
    )
    yield f"{'all':{width}}" + "".join(f"{cell:>9}" for cell in sums)
    yield from exceptions
