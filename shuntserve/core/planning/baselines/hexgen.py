"""HexGen's way: a genetic search over which GPUs form a pipeline, with the stages' layout decided within each.

A genome says for every machine how its GPUs are cut into stages and which group each stage belongs to (Jiang et al.,
ICML 2024: groups evolve by merging, splitting and swapping). The stages of a group become one pipeline; what it yields
is remembered, so a generation costs only its new groups.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from shuntserve.core.planning.baselines.lines import Line, Lines
from shuntserve.core.planning.baselines.placement import Placement, best_subset, by_zone
from shuntserve.core.planning.columns import Place
from shuntserve.core.planning.objectives import Objective
from shuntserve.core.planning.stage_times import Seat, StageTimes
from shuntserve.core.pools import Pool

IDLE = 0
CROSSED = 0.5
"""Share of children that have two parents."""
IDLE_CHANCE = 0.1
TOURNAMENT = 3
ELITE = 2

Gene = tuple[tuple[int, int], ...]
"""(kind, group) of the stages on one machine; group 0 is idle."""
Genome = tuple[Gene, ...]


def hexgen(
    times: StageTimes,
    pools: Sequence[Pool],
    random: Random,
    population: int = 48,
    generations: int = 80,
    objective: Objective | None = None,
) -> Placement:
    """The best genome seen, zone by zone. The same `random` state gives the same answer."""
    goal = objective or Objective()
    lines = Lines(times)
    pairs: list[tuple[Sequence[Seat], Sequence[Place]]] = []
    for zone in by_zone(pools):
        usable = {kind.instance_type for kind in times.kinds}
        machines = [
            Place(number, machine)
            for number in zone
            if pools[number].instance_type in usable
            for machine in range(pools[number].count)
        ]
        if machines:
            search = _Evolution(times, pools, machines, lines, goal, random)
            pairs += search.pipelines(search.best(population, generations))
    return best_subset(Placement.of("hexgen", times, pairs), times, pools, goal)


@dataclass
class _Evolution:
    times: StageTimes
    pools: Sequence[Pool]
    machines: Sequence[Place]
    lines: Lines
    objective: Objective
    random: Random

    def __post_init__(self) -> None:
        self.kind_of = {(kind.instance_type, kind.tp): number for number, kind in enumerate(self.times.kinds)}

    def best(self, population: int, generations: int) -> Genome:
        """Evolve; the best are kept from one generation to the next."""
        people = self._founders(max(population, ELITE + 1))
        for _ in range(generations):
            ranked = sorted(people, key=self._fitness, reverse=True)
            children = [self._child(ranked) for _ in range(max(population, ELITE + 1) - ELITE)]
            people = ranked[:ELITE] + children
        return max(people, key=self._fitness)

    def pipelines(self, genome: Genome) -> list[tuple[Sequence[Seat], Sequence[Place]]]:
        """(stages, places) of every group that holds the model."""
        return [
            (line.stages, [self.machines[machines[number]] for number in line.load_of])
            for machines, line in self._lines(genome)
        ]

    # --- what a genome is worth ---

    def _lines(self, genome: Genome) -> list[tuple[list[int], Line]]:
        """Machines and line of each group that holds the model."""
        groups: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for machine, gene in enumerate(genome):
            for kind, group in gene:
                if group != IDLE:
                    groups[group][machine].append(kind)
        answer = []
        for loads in groups.values():
            line = self.lines.best(tuple(tuple(sorted(load)) for load in loads.values()))
            if line is not None:
                answer.append((list(loads), line))
        return answer

    def _fitness(self, genome: Genome) -> tuple[float, float]:
        lines = self._lines(genome)
        used = {machine for machines, _ in lines for machine in machines}
        usd_per_h = sum(self.pools[self.machines[machine].pool].usd_per_h for machine in used)
        rps = sum(line.rps for _, line in lines)
        return self.objective.merit(usd_per_h, rps), rps

    # --- where genomes come from ---

    def _founders(self, population: int) -> list[Genome]:
        """All machines in one group, each type in its own, each type alone, then chance."""
        names = [self.pools[place.pool].instance_type for place in self.machines]
        types = list(dict.fromkeys(names))
        people = [
            tuple(self._whole(machine, 1) for machine in range(len(names))),
            tuple(self._whole(machine, 1 + types.index(name)) for machine, name in enumerate(names)),
        ]
        people += [
            tuple(self._whole(machine, 1 if name == alone else IDLE) for machine, name in enumerate(names))
            for alone in types
            if len(types) > 1
        ]
        while len(people) < population:
            groups = self.random.randint(1, max(1, len(names)))
            people.append(tuple(self._cut(machine, groups) for machine in range(len(names))))
        return people

    def _widths(self, machine: int) -> list[int]:
        name = self.pools[self.machines[machine].pool].instance_type
        return sorted(tp for known, tp in self.kind_of if known == name)

    def _gene(self, machine: int, stages: Sequence[tuple[int, int]]) -> Gene:
        name = self.pools[self.machines[machine].pool].instance_type
        return tuple(sorted((self.kind_of[name, tp], group) for tp, group in stages))

    def _gpus(self, machine: int) -> int:
        name = self.pools[self.machines[machine].pool].instance_type
        return next(kind.machine_gpus for kind in self.times.kinds if kind.instance_type == name)

    def _whole(self, machine: int, group: int) -> Gene:
        tp = self._widths(machine)[-1]
        return self._gene(machine, [(tp, group)] * (self._gpus(machine) // tp))

    def _cut(self, machine: int, groups: int) -> Gene:
        """Stages of one random width, in one random group or in several."""
        tp = self.random.choice(self._widths(machine))
        together = self.random.random() < 0.7
        group = self.random.randint(1, groups)
        stages = []
        for _ in range(self._gpus(machine) // tp):
            stages.append((tp, group))
            group = group if together else self.random.randint(1, groups)
        return self._gene(machine, stages)

    def _child(self, ranked: Sequence[Genome]) -> Genome:
        genome = self._chosen(ranked)
        if self.random.random() < CROSSED:
            other = self._chosen(ranked)
            genome = tuple(self.random.choice(pair) for pair in zip(genome, other, strict=True))
        for _ in range(self.random.randint(1, 3)):
            genome = self.random.choice(self._mutations())(genome)
        return genome

    def _chosen(self, ranked: Sequence[Genome]) -> Genome:
        return ranked[min(self.random.randrange(len(ranked)) for _ in range(TOURNAMENT))]

    def _mutations(self) -> tuple[Callable[[Genome], Genome], ...]:
        return (self._move, self._move_machine, self._swap, self._resize, self._merge_groups, self._split_group)

    # --- mutations; one that finds nothing to change returns the genome as it is ---

    def _groups(self, genome: Genome) -> list[int]:
        return sorted({group for gene in genome for _, group in gene if group != IDLE})

    def _some_group(self, genome: Genome) -> int:
        """An existing group, a new one, or idle."""
        groups = self._groups(genome)
        if self.random.random() < IDLE_CHANCE:
            return IDLE
        return self.random.choice([*groups, max(groups, default=0) + 1])

    def _stages(self, gene: Gene) -> list[tuple[int, int]]:
        """(tp, group) of a gene."""
        return [(self.times.kinds[kind].tp, group) for kind, group in gene]

    def _with(self, genome: Genome, machine: int, stages: Sequence[tuple[int, int]]) -> Genome:
        return (*genome[:machine], self._gene(machine, stages), *genome[machine + 1 :])

    def _move(self, genome: Genome) -> Genome:
        """One stage goes to another group."""
        machine = self.random.randrange(len(genome))
        stages = self._stages(genome[machine])
        at = self.random.randrange(len(stages))
        stages[at] = (stages[at][0], self._some_group(genome))
        return self._with(genome, machine, stages)

    def _move_machine(self, genome: Genome) -> Genome:
        """All stages of a machine go to one group."""
        machine = self.random.randrange(len(genome))
        group = self._some_group(genome)
        return self._with(genome, machine, [(tp, group) for tp, _ in self._stages(genome[machine])])

    def _swap(self, genome: Genome) -> Genome:
        """Two stages exchange their groups."""
        one, two = self.random.randrange(len(genome)), self.random.randrange(len(genome))
        if one == two:
            return genome
        ours, theirs = self._stages(genome[one]), self._stages(genome[two])
        i, j = self.random.randrange(len(ours)), self.random.randrange(len(theirs))
        (tp, group), (other_tp, other) = ours[i], theirs[j]
        ours[i], theirs[j] = (tp, other), (other_tp, group)
        return self._with(self._with(genome, one, ours), two, theirs)

    def _resize(self, genome: Genome) -> Genome:
        """One stage is cut in two, or two of equal width become one."""
        machine = self.random.randrange(len(genome))
        stages, widths = self._stages(genome[machine]), self._widths(machine)
        at = self.random.randrange(len(stages))
        tp, group = stages[at]
        if self.random.random() < 0.5 and tp // 2 in widths:
            stages[at : at + 1] = [(tp // 2, group), (tp // 2, group)]
        elif tp * 2 in widths:
            partner = next((i for i, (width, _) in enumerate(stages) if i != at and width == tp), None)
            if partner is not None:
                stages = [stage for i, stage in enumerate(stages) if i not in (at, partner)]
                stages.append((tp * 2, group))
        return self._with(genome, machine, stages)

    def _merge_groups(self, genome: Genome) -> Genome:
        """Two groups become one."""
        groups = self._groups(genome)
        if len(groups) < 2:
            return genome
        kept, gone = self.random.sample(groups, 2)
        return tuple(tuple(sorted((kind, kept if group == gone else group) for kind, group in gene)) for gene in genome)

    def _split_group(self, genome: Genome) -> Genome:
        """The machines of one group are shared out between it and a new one."""
        groups = self._groups(genome)
        if not groups:
            return genome
        old, new = self.random.choice(groups), max(groups) + 1
        return tuple(
            tuple(sorted((kind, new if group == old and leaves else group) for kind, group in gene))
            for gene in genome
            for leaves in [self.random.random() < 0.5]
        )
