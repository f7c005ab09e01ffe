"""Steady state and fixed batches: memory, bottlenecks, latencies, refusals."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest

from shuntserve.calibrate import read_measurements
from shuntserve.catalog import tables_dir
from shuntserve.core.catalog import Catalog
from shuntserve.core.engine_profile import EngineProfile, Precision
from shuntserve.core.estimate import PipelineEstimate, pipeline_estimate, seat_tokens, time_parts
from shuntserve.core.measurement import predict
from shuntserve.core.stage import StageSpec, hop_bytes_per_s, stage_cost, sustained_hop_bytes_per_s
from shuntserve.core.workload import Workload
from shuntserve.errors import InvalidInput

AZURE = Workload.fixed(763, 232)


def stages(catalog: Catalog, *parts: tuple[str, int, int]) -> list[StageSpec]:
    """(instance type, tp, layers) each, in order."""
    specs, at = [], 0
    for name, tp, layers in parts:
        specs.append(StageSpec.on(catalog.instance(name), tp, at, at + layers))
        at += layers
    return specs


def estimate(
    catalog: Catalog, *parts: tuple[str, int, int], model: str = "Llama-3.1-70B", **more: object
) -> PipelineEstimate:
    """A pipeline of the model under the vLLM profile."""
    return pipeline_estimate(
        catalog.model(model),
        stages(catalog, *parts),
        AZURE,
        catalog.engine("vllm"),
        **more,  # type: ignore[arg-type]
    )


def test_kv_blocks_are_what_memory_leaves(catalog: Catalog) -> None:
    """Blocks = (GPU × utilisation − engine − weights) / (bytes per token × 16), on the tightest stage."""
    got = estimate(catalog, ("g6.48xlarge", 8, 80))
    cost = stage_cost(
        catalog.model("Llama-3.1-70B"), stages(catalog, ("g6.48xlarge", 8, 80))[0], catalog.engine("vllm"), Precision()
    )
    engine = catalog.engine("vllm")
    left = 23.66e9 * engine.memory_utilization - engine.runtime_bytes - engine.graph_bytes
    left -= cost.rates.activation_bytes() + (68.4514e9 + 2 * 128256 * 8192) * 2 / 8

    assert got.kv_blocks == pytest.approx(left / (40960 * 16), rel=0.005)


def test_the_tightest_stage_sets_the_seats(catalog: Catalog) -> None:
    """A stage with more layers on the same GPUs leaves fewer seats to the whole pipeline."""
    even = estimate(catalog, ("g6.12xlarge", 4, 40), ("g6.12xlarge", 4, 40))
    uneven = estimate(catalog, ("g6.12xlarge", 4, 36), ("g6.12xlarge", 4, 44))

    assert uneven.max_concurrency < even.max_concurrency
    assert min(s.cost.kv_tokens for s in uneven.stages) == uneven.stages[1].cost.kv_tokens


def test_the_cycle_is_no_shorter_than_any_of_its_bounds(catalog: Catalog) -> None:
    """Σ stages + hops + host, and S times the slowest stage."""
    got = estimate(catalog, ("g6.12xlarge", 4, 30), ("g5.12xlarge", 4, 30), ("g6e.xlarge", 1, 20))
    work = [s.step_s for s in got.stages]

    assert got.cycle_s >= sum(work) + sum(s.transfer_s for s in got.stages)
    assert got.cycle_s >= 3 * max(work)
    assert got.throughput_rps == pytest.approx(got.max_concurrency / (232 * got.cycle_s))
    assert all(0 < s.utilisation <= 1 for s in got.stages)


def test_a_fixed_batch_serves_round_after_round(catalog: Catalog) -> None:
    """Requests/s is batch over the round's latency, and the round is first token plus the other tokens."""
    got = estimate(catalog, ("g6.48xlarge", 8, 80), batch=2)

    assert got.throughput_rps == pytest.approx(2 / got.batch_latency_s)
    assert got.batch_latency_s == pytest.approx(got.ttft_s + 231 * got.tpot_s)
    assert got.max_concurrency == 2


def test_a_batch_beyond_the_seats_runs_in_waves(catalog: Catalog) -> None:
    """Twice the seats takes about twice as long, not the same time."""
    seats = int(estimate(catalog, ("g6.48xlarge", 8, 80)).max_concurrency)

    one = estimate(catalog, ("g6.48xlarge", 8, 80), batch=seats)
    two = estimate(catalog, ("g6.48xlarge", 8, 80), batch=2 * seats)

    assert two.batch_latency_s == pytest.approx(2 * one.batch_latency_s, rel=0.05)
    assert two.binds == "seats (KV cache)"


def test_stages_on_one_machine_skip_the_network(catalog: Catalog) -> None:
    """The hop inside a machine is faster than the one between machines, which is one 5 Gbit/s flow at most."""
    apart = estimate(catalog, ("g6.48xlarge", 4, 40), ("g6.48xlarge", 4, 40))
    together = estimate(catalog, ("g6.48xlarge", 4, 40), ("g6.48xlarge", 4, 40), same_machine=[True])
    first, second = stages(catalog, ("g6.48xlarge", 4, 40), ("g6e.xlarge", 1, 40))

    assert together.stages[0].transfer_s < apart.stages[0].transfer_s
    assert hop_bytes_per_s(first, first, False) == 5e9 / 8
    assert hop_bytes_per_s(first, second, False) == 5e9 / 8  # on a g6e.xlarge's credits
    assert sustained_hop_bytes_per_s(first, second, False) == 2.5e9 / 8  # once they are spent


def test_a_network_without_credits_binds_in_the_long_run(catalog: Catalog) -> None:
    """Prompts through two machines of 2.5 Gbit/s baseline: no more than that crosses, and it is named."""
    load = Workload.fixed(2000, 2)
    parts = stages(catalog, ("g6e.xlarge", 1, 18), ("g6e.xlarge", 1, 18))

    got = pipeline_estimate(catalog.model("Qwen3-8B"), parts, load, catalog.engine("vllm"))

    sent_bytes = 2 * 4096 * 2 * 2002
    assert got.binds == "network"
    assert got.throughput_rps * sent_bytes <= 2.5e9 / 8 * 1.001


def test_an_engine_slower_than_its_gpu_is_named(catalog: Catalog) -> None:
    """A small model on a fast GPU waits for the host, and no more cache would help."""
    slow = replace(catalog.engine("vllm"), step_s=0.05)

    got = pipeline_estimate(catalog.model("Qwen3-8B"), stages(catalog, ("p5.4xlarge", 1, 36)), AZURE, slow)

    assert got.binds == "engine host time"
    assert got.stages[0].utilisation < 0.5


def test_prompts_in_steps_of_their_own_cost_throughput(catalog: Catalog) -> None:
    """An engine that does not mix prompts and decoding reads its weights more often."""
    mixed = catalog.engine("vllm")
    parts = stages(catalog, ("g6.12xlarge", 4, 40), ("g6.12xlarge", 4, 40))

    apart = pipeline_estimate(catalog.model("Llama-3.1-70B"), parts, AZURE, replace(mixed, mixes_prefill=False))

    both = pipeline_estimate(catalog.model("Llama-3.1-70B"), parts, AZURE, mixed)
    assert 0.5 * both.throughput_rps < apart.throughput_rps < both.throughput_rps


def test_an_engine_that_reserves_output_holds_fewer_sequences(catalog: Catalog) -> None:
    """TRT-LLM's no-evict policy needs prompt + output per seat, vLLM only what is there on average."""
    vllm, trtllm = catalog.engine("vllm"), catalog.engine("trtllm")

    assert seat_tokens(AZURE, vllm) == pytest.approx(763 + 116.5)
    assert seat_tokens(AZURE, trtllm) == 995


def test_large_gpus_get_the_limits_vllm_gives_them(catalog: Catalog) -> None:
    """1,024 sequences on H100 but 256 on A100 and L4, and on a pipeline that has one of those."""
    engine = catalog.engine("vllm")
    h100, a100, l4 = catalog.gpu("H100"), catalog.gpu("A100-80"), catalog.gpu("L4")

    assert engine.tuned_for([h100]).max_seqs == 1024
    assert engine.tuned_for([a100]).max_seqs == engine.tuned_for([h100, l4]).max_seqs == 256


def test_time_parts_add_up_to_the_layers_time(catalog: Catalog) -> None:
    """What a bottleneck is named after is a split of the time itself."""
    stage = estimate(catalog, ("g6.12xlarge", 4, 40), ("g6.12xlarge", 4, 40)).stages[0]
    layers_s = stage.cost.rates.time(stage.step, 0, 40).per_layer_s * 40

    assert sum(time_parts(stage.cost, stage.step).values()) == pytest.approx(layers_s)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([("g6.12xlarge", 4, 80)], "weights per GPU"),
        ([("g6.48xlarge", 8, 79)], "79 layers"),
        ([("g6.48xlarge", 8, 81)], "81"),
        ([("g6.12xlarge", 8, 80)], "4 GPU"),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(
    catalog: Catalog, parts: list[tuple[str, int, int]], says: str
) -> None:
    """Too large, layers that do not add up, more GPUs than the machine has."""
    with pytest.raises(InvalidInput, match=says):
        estimate(catalog, *parts)


def test_a_model_too_large_says_how_many_layers_fit(catalog: Catalog) -> None:
    """The number it names does fit, and one more does not."""
    with pytest.raises(InvalidInput) as caught:
        estimate(catalog, ("g6.12xlarge", 4, 60), ("g6.12xlarge", 4, 20))
    fits = int(caught.value.next_step.split()[2])

    def room(layers: int) -> int:
        first = StageSpec.on(catalog.instance("g6.12xlarge"), 4, 0, layers)
        return stage_cost(catalog.model("Llama-3.1-70B"), first, catalog.engine("vllm"), Precision()).kv_tokens

    assert 40 < fits < 60
    assert room(fits) > 0
    assert room(fits + 1) == 0


@pytest.mark.parametrize("name", ["memory_utilization", "max_seqs", "max_batched_tokens", "version_factor"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_an_engine_that_makes_no_sense_is_refused(catalog: Catalog, name: str, value: float) -> None:
    """Zero, negative, NaN and infinite settings never become an estimate."""
    with pytest.raises(InvalidInput, match=name):
        replace(catalog.engine("vllm"), **{name: value})  # type: ignore[arg-type]


def test_an_unknown_weight_type_is_refused() -> None:
    """The error lists the known ones."""
    with pytest.raises(InvalidInput, match="fp8"):
        Precision("fp7")


def test_the_published_sweeps_are_met(catalog: Catalog) -> None:
    """Fixed batches of Llama-3.1-70B on 8×L4 and 8×A10G: mean error ≤ 7 % (vLLM), ≤ 6 % (TRT-LLM), none > 20 %."""
    measured = read_measurements(tables_dir() / "measurements.csv")
    errors: dict[str, list[float]] = {}
    for row in measured:
        errors.setdefault(row.engine, []).append(abs(predict(catalog, row) / row.value - 1))

    assert len(measured) == 46
    assert sum(errors["vllm"]) / len(errors["vllm"]) <= 0.07
    assert sum(errors["trtllm"]) / len(errors["trtllm"]) <= 0.06
    assert max(map(max, errors.values())) <= 0.20


def test_the_sweeps_table_names_its_source_in_every_row() -> None:
    """The measurements that ship say which file of which commit they are from."""
    with (tables_dir() / "measurements.csv").open(newline="", encoding="utf-8") as handle:
        assert all("@" in row["source"] for row in csv.DictReader(handle))


def test_host_time_grows_with_what_is_in_flight() -> None:
    """A round of S micro-batches costs S steps and the extra for each further one, scaled by the release's factor."""
    engine = EngineProfile("test", step_s=1.0, seq_s=0.1, micro_batch_s=5.0)

    assert engine.host_s(1, 10) == pytest.approx(2.0)
    assert engine.host_s(3, 10) == pytest.approx(3 * 2.0 + 2 * 5.0)
    assert replace(engine, version_factor=0.5).host_s(3, 10) == pytest.approx(8.0)
