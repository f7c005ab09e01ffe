"""Baselines: every answer can be run as it stands, none beats trying everything or the planner's bound."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise, permutations, product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuntserve.catalog import load_catalog
from shuntserve.core.engine_profile import Precision
from shuntserve.core.planning.baselines import Placement, validate
from shuntserve.core.planning.baselines.alpaserve import alpaserve
from shuntserve.core.planning.baselines.beam import beam
from shuntserve.core.planning.baselines.hexgen import hexgen
from shuntserve.core.planning.baselines.homogeneous import homogeneous
from shuntserve.core.planning.baselines.lines import Lines
from shuntserve.core.planning.baselines.placement import best_subset
from shuntserve.core.planning.columns import Place
from shuntserve.core.planning.estimator_times import EstimatorTimes
from shuntserve.core.planning.objectives import Objective
from shuntserve.core.planning.plan import PlanRequest, plan_fleet
from shuntserve.core.planning.stage_times import Seat, StageTimes
from shuntserve.core.pools import Pool
from shuntserve.core.workload import Workload
from shuntserve.errors import InvalidInput

CATALOG = load_catalog()
TYPES = ("g5.12xlarge", "g6.12xlarge", "g6e.xlarge")
PRICE = {"g5.12xlarge": 2.3, "g6.12xlarge": 1.9, "g6e.xlarge": 0.7}


def small_times(layers: int, memory_gb: float, gpus: int = 4, types: Sequence[str] = TYPES) -> EstimatorTimes:
    """Llama-3.1-70B cut to a few layers, on machines with fewer GPUs of less memory (a layer takes 1.7 GB)."""
    whole = CATALOG.model("Llama-3.1-70B")
    model = replace(whole, layers=whole.layers[:layers], vocab=8000)
    instances = [
        replace(
            instance,
            gpu=replace(instance.gpu, memory_bytes=memory_gb * 1e9 * (2 if instance.gpus == 1 else 1)),
            gpus=min(instance.gpus, gpus),
        )
        for instance in (CATALOG.instance(name) for name in types)
    ]
    return EstimatorTimes(model, Workload.fixed(763, 232), CATALOG.engine("vllm"), Precision(), instances)


def pool(instance_type: str, count: int, zone: str = "", usd_per_h: float | None = None) -> Pool:
    return Pool(instance_type, count, usd_per_h or PRICE[instance_type], zone)


def all_baselines(times: StageTimes, pools: Sequence[Pool], objective: Objective) -> list[Placement]:
    return [
        homogeneous(times, pools, objective),
        alpaserve(times, pools, objective),
        hexgen(times, pools, Random(0), population=8, generations=6, objective=objective),
        beam(times, pools, width=2, objective=objective),
    ]


clusters = st.lists(
    st.tuples(st.sampled_from(TYPES), st.integers(1, 2), st.sampled_from(("", "a"))),
    min_size=1,
    max_size=3,
    unique_by=lambda entry: (entry[0], entry[2]),
).map(lambda entries: tuple(pool(*entry) for entry in entries))
objectives = st.sampled_from((Objective("throughput"), Objective("cost")))


@settings(max_examples=8)
@given(pools=clusters, layers=st.integers(2, 9), memory_gb=st.sampled_from((6.0, 9.0, 24.0)), objective=objectives)
def test_every_baseline_can_be_run_and_yields_what_it_says(
    pools: tuple[Pool, ...], layers: int, memory_gb: float, objective: Objective
) -> None:
    """Layers add up, no machine is overfilled, zones are kept apart, and the sum is the estimator's."""
    times = small_times(layers, memory_gb)

    placements = all_baselines(times, pools, objective)

    for placement in placements:
        validate(placement, times, pools)


tiny = st.sampled_from(
    (
        {"g6.12xlarge": 2},
        {"g5.12xlarge": 1, "g6.12xlarge": 1},
        {"g6.12xlarge": 1, "g6e.xlarge": 2},
        {"g5.12xlarge": 1, "g6e.xlarge": 1},
    )
)


@settings(max_examples=10)
@given(counts=tiny, layers=st.integers(2, 5), memory_gb=st.sampled_from((5.0, 6.0, 9.0)), objective=objectives)
def test_no_baseline_beats_trying_everything(
    counts: dict[str, int], layers: int, memory_gb: float, objective: Objective
) -> None:
    """On machines of two GPUs every cut, grouping, order and split is tried; no baseline finds more."""
    times = small_times(layers, memory_gb, gpus=2, types=tuple(counts))
    pools = tuple(pool(name, count) for name, count in counts.items())

    best = best_of_all(times, pools, objective)

    for placement in all_baselines(times, pools, objective):
        assert placement.merit(pools, objective) <= best * (1 + 1e-9), placement.name


@settings(max_examples=6)
@given(pools=clusters, layers=st.integers(3, 8), memory_gb=st.sampled_from((6.0, 9.0)), objective=objectives)
def test_no_baseline_beats_the_planners_bound(
    pools: tuple[Pool, ...], layers: int, memory_gb: float, objective: Objective
) -> None:
    """What the planner proves about all plans holds for the baselines'."""
    times = small_times(layers, memory_gb)
    placements = all_baselines(times, pools, objective)
    best = max(placement.merit(pools, objective) for placement in placements)
    if best == 0:
        return

    plan = plan_fleet(PlanRequest(times, pools, objective), time.monotonic)

    assert best <= plan.merit * (1 + plan.gap) * (1 + 1e-9)


def test_the_same_seed_gives_the_same_genetic_answer() -> None:
    """Chance comes from the argument alone."""
    times, pools = small_times(8, 6.0), (pool("g5.12xlarge", 2), pool("g6e.xlarge", 2))

    answers = [hexgen(times, pools, Random(7), population=10, generations=8) for _ in range(2)]

    assert answers[0] == answers[1]
    assert answers[0].rps > 0


def test_more_generations_are_never_worse() -> None:
    """The best survive: a longer search from the same seed starts with the shorter one."""
    times, pools = small_times(8, 6.0), (pool("g5.12xlarge", 2), pool("g6e.xlarge", 2))

    rps = [hexgen(times, pools, Random(3), population=8, generations=n).rps for n in (0, 4, 12)]

    assert rps == sorted(rps)


def test_plain_vllm_is_one_even_pipeline_per_type() -> None:
    """On the authors' cluster the even pipelines are the ones they published: 40+40, 27+27+26 and 4 times 20 layers."""
    times = EstimatorTimes(
        CATALOG.model("Llama-3.1-70B"),
        Workload.fixed(763, 232),
        CATALOG.engine("vllm"),
        Precision(),
        [CATALOG.instance(name) for name in TYPES],
    )

    placement = homogeneous(times, (pool("g5.12xlarge", 2), pool("g6.12xlarge", 3), pool("g6e.xlarge", 4)))

    shapes = [[(times.kinds[seat.kind].tp, seat.layers) for seat in stages] for stages in placement.pipelines]
    assert [sorted(shape, reverse=True) for shape in shapes] == [
        [(4, 40), (4, 40)],
        [(4, 27), (4, 27), (4, 26)],
        [(1, 20)] * 4,
    ]


def test_a_type_that_cannot_hold_the_model_contributes_nothing() -> None:
    """Eight layers of 1.7 GB do not fit one GPU of 12 GB, but do fit four of 6 GB."""
    times = small_times(8, 6.0)

    placement = homogeneous(times, (pool("g6e.xlarge", 1), pool("g6.12xlarge", 1)))

    assert [{place.pool for place in places} for places in placement.machines] == [{1}]


def test_no_baseline_finds_anything_where_the_model_cannot_fit() -> None:
    """An empty placement, not an error, when all memory together is too small."""
    times, pools = small_times(9, 6.0), (pool("g6e.xlarge", 1),)

    placements = all_baselines(times, pools, Objective("throughput"))

    assert [(placement.pipelines, placement.rps) for placement in placements] == [((), 0.0)] * 4


@settings(max_examples=6)
@given(pools=clusters, layers=st.integers(2, 8))
def test_equal_groups_are_never_worse_than_plain_vllm(pools: tuple[Pool, ...], layers: int) -> None:
    """One even group over all machines of a type is among the groups that are tried."""
    times = small_times(layers, 6.0)

    groups, plain = alpaserve(times, pools), homogeneous(times, pools)

    assert groups.rps >= plain.rps * (1 - 1e-9)


def test_for_cost_a_dear_pipeline_is_left_out() -> None:
    """Two equal pools, one ten times as dear: the cheap one alone gives more requests per dollar."""
    times = small_times(4, 9.0)
    pools = (pool("g6.12xlarge", 1, "a"), pool("g6.12xlarge", 1, "b", usd_per_h=19.0))
    both = homogeneous(times, pools)

    kept = best_subset(both, times, pools, Objective("cost"))

    assert len(both.pipelines) == 2
    assert kept.usd_per_h(pools) == pools[0].usd_per_h


def test_order_of_machines_does_not_change_what_they_can_do() -> None:
    """The best line is found for a set of machines, and each stage stays on a machine that has its kind."""
    times = small_times(8, 6.0)
    kinds = [number for number, kind in enumerate(times.kinds) if kind.tp == 1]
    loads = (kinds[0],) * 2, (kinds[1],) * 2, (kinds[2],)

    lines = [Lines(times).best(order) for order in (loads, loads[::-1])]

    assert lines[0] is not None
    assert lines[1] is not None
    assert lines[0].rps == lines[1].rps
    assert all(seat.kind in loads[load] for seat, load in zip(lines[0].stages, lines[0].load_of, strict=True))


def _sound() -> tuple[Placement, EstimatorTimes, tuple[Pool, ...]]:
    times = small_times(6, 9.0)
    pools = (pool("g6.12xlarge", 2, "a"), pool("g6e.xlarge", 1, "b"))
    tp2 = next(n for n, kind in enumerate(times.kinds) if (kind.instance_type, kind.tp) == ("g6.12xlarge", 2))
    seats = (Seat(tp2, 3, True), Seat(tp2, 3))
    return Placement.of("sound", times, [(seats, [Place(0, 1)] * 2)]), times, pools


def test_a_sound_placement_is_accepted() -> None:
    """Two halves of one machine hold the model."""
    placement, times, pools = _sound()

    validate(placement, times, pools)

    assert placement.rps > 0


@pytest.mark.parametrize(
    ("broken", "cause"),
    [
        (lambda p: replace(p, rps=p.rps * 1.01), "claims"),
        (lambda p: replace(p, machines=()), "lists of machines"),
        (lambda p: replace(p, machines=((Place(0, 0), Place(0, 1)),)), "joined"),
        (lambda p: replace(p, machines=((Place(0, 2), Place(0, 2)),)), "machine 2 of 2"),
        (lambda p: replace(p, machines=((Place(7, 0), Place(7, 0)),)), "pool 7"),
        (lambda p: replace(p, machines=((Place(1, 0), Place(1, 0)),)), "in pool g6e.xlarge"),
        (lambda p: replace(p, pipelines=p.pipelines * 2, machines=p.machines * 2, rps=p.rps * 2), "8 GPUs taken"),
        (lambda p: replace(p, pipelines=((replace(p.pipelines[0][0], layers=4), p.pipelines[0][1]),)), "layers"),
    ],
)
def test_a_placement_that_cannot_be_run_is_refused(broken: object, cause: str) -> None:
    """The error names what is wrong."""
    placement, times, pools = _sound()

    with pytest.raises(InvalidInput) as refused:
        validate(broken(placement), times, pools)  # type: ignore[operator]

    assert cause in str(refused.value)


# --- trying everything ---


def best_of_all(times: StageTimes, pools: Sequence[Pool], objective: Objective) -> float:
    """The best merit of any set of pipelines: every cut of every machine, every grouping, order and split."""
    machines = [Place(number, i) for number, p in enumerate(pools) for i in range(p.count)]
    known: dict[tuple[tuple[int, int, int], ...], float] = {}
    best = 0.0
    for cuts in product(*(_cuts(times, pools[place.pool].instance_type) for place in machines)):
        parts = [(kind, place) for place, cut in zip(machines, cuts, strict=True) for kind in cut]
        for groups in _groupings(parts):
            used = {place for group in groups for _, place in group}
            rps = sum(_best_line(times, group, known) for group in groups)
            best = max(best, objective.merit(sum(pools[place.pool].usd_per_h for place in used), rps))
    return best


def _cuts(times: StageTimes, instance_type: str) -> Iterator[tuple[int, ...]]:
    """Ways to cut a machine into stages, using all its GPUs (a grouping may leave stages idle)."""
    kinds = [(number, kind) for number, kind in enumerate(times.kinds) if kind.instance_type == instance_type]
    gpus = kinds[0][1].machine_gpus
    for numbers in product(*(range(gpus // kind.tp + 1) for _, kind in kinds)):
        if sum(count * kind.tp for count, (_, kind) in zip(numbers, kinds, strict=True)) == gpus:
            yield tuple(number for count, (number, _) in zip(numbers, kinds, strict=True) for _ in range(count))


def _groupings(parts: list[tuple[int, Place]]) -> Iterator[list[list[tuple[int, Place]]]]:
    """Ways to put some of the parts into groups."""
    if not parts:
        yield []
        return
    first, rest = parts[0], parts[1:]
    yield from _groupings(rest)
    for size in range(len(rest) + 1):
        for chosen in combinations(range(len(rest)), size):
            left = [part for i, part in enumerate(rest) if i not in chosen]
            for groups in _groupings(left):
                yield [[first, *(rest[i] for i in chosen)], *groups]


def _best_line(
    times: StageTimes, group: list[tuple[int, Place]], known: dict[tuple[tuple[int, int, int], ...], float]
) -> float:
    key = tuple(sorted((kind, place.pool, place.machine) for kind, place in group))
    if key not in known:
        known[key] = max((times.rps(stages) for stages in _lines(times, group)), default=0.0)
    return known[key]


def _lines(times: StageTimes, group: list[tuple[int, Place]]) -> Iterator[tuple[Seat, ...]]:
    count = len(group)
    for row in set(permutations(group)):
        joined = [a[1] == b[1] for a, b in pairwise(row)] + [False]
        for ends in combinations(range(1, times.layers), count - 1):
            layers = [b - a for a, b in pairwise((0, *ends, times.layers))]
            yield tuple(Seat(kind, n, j) for (kind, _), n, j in zip(row, layers, joined, strict=True))
