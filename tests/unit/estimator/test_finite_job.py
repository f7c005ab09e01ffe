"""A finite job: everything is served once, the clock agrees with the steady state, dispatch does what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shuntserve.core.catalog import Catalog
from shuntserve.core.engine_profile import EngineProfile, Precision
from shuntserve.core.estimate import pipeline_estimate
from shuntserve.core.finite_job import PipelineSpec, deal, job_estimate
from shuntserve.core.simulated_pipeline import NETWORK_CREDIT_S, Hop
from shuntserve.core.stage import StageSpec
from shuntserve.core.workload import Workload
from shuntserve.errors import InvalidInput


def pipe(catalog: Catalog, *parts: tuple[str, int, int]) -> PipelineSpec:
    """(instance type, tp, layers) each, in order, every stage on its own machine."""
    specs, at = [], 0
    for name, tp, layers in parts:
        specs.append(StageSpec.on(catalog.instance(name), tp, at, at + layers))
        at += layers
    return PipelineSpec(tuple(specs))


@pytest.fixture
def engine(catalog: Catalog) -> EngineProfile:
    return catalog.engine("vllm")


def test_one_request_takes_its_prefill_and_its_tokens(catalog: Catalog, engine: EngineProfile) -> None:
    """A single request alone: the simulation is the fixed batch of one."""
    model, spec = catalog.model("Qwen3-8B"), pipe(catalog, ("g6.xlarge", 1, 36))

    job = job_estimate(model, [spec], [(700, 100)], engine)

    alone = pipeline_estimate(model, spec.stages, Workload.fixed(700, 100), engine, batch=1)
    assert job.makespan_s == pytest.approx(alone.batch_latency_s, rel=0.01)
    assert job.ttft_mean_s == pytest.approx(alone.ttft_s, rel=0.02)


def test_a_long_job_runs_at_the_steady_rate(catalog: Catalog, engine: EngineProfile) -> None:
    """Many waves of requests and no preemption: the mean rate is the steady state's, ramp and tail being small."""
    model, load = catalog.model("Llama-3.1-70B"), Workload.fixed(763, 232)
    spec = pipe(catalog, ("g6.12xlarge", 4, 40), ("g6.12xlarge", 4, 40))
    engine = replace(engine, reserves_output=True)

    job = job_estimate(model, [spec], load.requests(3000), engine)

    steady = pipeline_estimate(model, spec.stages, load, engine)
    assert job.job_rps == pytest.approx(steady.throughput_rps, rel=0.15)


def test_every_request_is_served_once_and_every_token_counted(catalog: Catalog, engine: EngineProfile) -> None:
    """Also when the cache is so small that sequences are preempted again and again."""
    model, spec = catalog.model("Qwen3-8B"), pipe(catalog, ("g6.xlarge", 1, 36))
    requests = [(200 + 37 * k % 900, 1 + 91 * k % 700) for k in range(120)]

    job = job_estimate(model, [spec], requests, engine)

    assert job.pipelines[0].preemptions > 0
    assert job.pipelines[0].requests == len(requests)
    assert job.pipelines[0].output_tokens == sum(o for _, o in requests)


def test_reserving_output_prevents_preemption(catalog: Catalog, engine: EngineProfile) -> None:
    """A sequence admitted with room for its whole output never gives its cache back."""
    model, spec = catalog.model("Qwen3-8B"), pipe(catalog, ("g6.xlarge", 1, 36))
    requests = [(200 + 37 * k % 900, 1 + 91 * k % 700) for k in range(120)]

    job = job_estimate(model, [spec], requests, replace(engine, reserves_output=True))

    assert job.pipelines[0].preemptions == 0
    assert job.pipelines[0].requests == len(requests)


def test_pulling_balances_unlike_pipelines_without_weights(catalog: Catalog, engine: EngineProfile) -> None:
    """A slow and a fast pipeline end nearly together when they pull, far apart when dealt equal hands."""
    model = catalog.model("Qwen3-8B")
    pipes = [pipe(catalog, ("g6.xlarge", 1, 36)), pipe(catalog, ("g6e.xlarge", 1, 36))]
    requests = Workload.fixed(500, 200).requests(800)

    pulled = job_estimate(model, pipes, requests, engine)
    dealt = job_estimate(model, pipes, requests, engine, dispatch="wrr", weights=[1, 1])

    ends = [run.finish_s for run in pulled.pipelines]
    assert min(ends) > 0.8 * max(ends)
    assert [run.requests for run in dealt.pipelines] == [400, 400]
    assert pulled.makespan_s < 0.75 * dealt.makespan_s


def test_weights_near_the_rates_make_dealing_as_good_as_pulling(catalog: Catalog, engine: EngineProfile) -> None:
    """Weighted round robin with the steady rates as weights ends within a tenth of pulling."""
    model, load = catalog.model("Qwen3-8B"), Workload.fixed(500, 200)
    pipes = [pipe(catalog, ("g6.xlarge", 1, 36)), pipe(catalog, ("g6e.xlarge", 1, 36))]
    rates = [pipeline_estimate(model, p.stages, load, engine).throughput_rps for p in pipes]

    dealt = job_estimate(model, pipes, load.requests(800), engine, dispatch="wrr", weights=rates)

    pulled = job_estimate(model, pipes, load.requests(800), engine)
    assert dealt.makespan_s == pytest.approx(pulled.makespan_s, rel=0.1)


def test_a_cap_on_concurrency_is_kept(catalog: Catalog, engine: EngineProfile) -> None:
    """With two at a time a job takes far longer, and no sequence is ever preempted."""
    model, spec = catalog.model("Qwen3-8B"), pipe(catalog, ("g6.xlarge", 1, 36))
    requests = Workload.fixed(300, 100).requests(40)

    capped = job_estimate(model, [replace(spec, max_concurrency=2)], requests, engine)
    free = job_estimate(model, [spec], requests, engine)

    assert capped.makespan_s > 4 * free.makespan_s
    assert capped.pipelines[0].preemptions == 0


def test_one_request_in_flight_is_one_after_the_other(catalog: Catalog, engine: EngineProfile) -> None:
    """Nothing overlaps: the job takes as long as its requests alone, added up."""
    model, pipes = (
        catalog.model("Qwen3-8B"),
        [pipe(catalog, ("g6.xlarge", 1, 36)), pipe(catalog, ("g6e.xlarge", 1, 36))],
    )
    requests = [(700, 50), (100, 80), (300, 20), (500, 60)]

    job = job_estimate(model, pipes, requests, engine, dispatch="wrr", in_flight=1)

    alone = sum(job_estimate(model, [pipes[k % 2]], [r], engine).makespan_s for k, r in enumerate(requests))
    assert job.makespan_s == pytest.approx(alone, rel=0.01)


def test_a_limited_client_waits_for_the_slower_pipeline(catalog: Catalog, engine: EngineProfile) -> None:
    """Equal hands to unlike pipelines: with a limit in flight the fast one starves and both end together."""
    model = catalog.model("Qwen3-8B")
    pipes = [pipe(catalog, ("g6.xlarge", 1, 36)), pipe(catalog, ("g6e.xlarge", 1, 36))]
    requests = Workload.fixed(500, 200).requests(600)

    limited = job_estimate(model, pipes, requests, engine, dispatch="wrr", in_flight=60)
    free = job_estimate(model, pipes, requests, engine, dispatch="wrr")

    assert limited.pipelines[1].finish_s > 0.8 * limited.pipelines[0].finish_s
    assert free.pipelines[1].finish_s < 0.6 * free.pipelines[0].finish_s
    assert [run.requests for run in limited.pipelines] == [300, 300]


def test_prompts_that_go_first_stop_the_others(catalog: Catalog, engine: EngineProfile) -> None:
    """Steps of prompts alone read the weights once more than mixed ones: everything is served, and later."""
    model, spec = catalog.model("Qwen3-8B"), pipe(catalog, ("g6.xlarge", 1, 36))
    requests = [(200 + 37 * k % 900, 1 + 91 * k % 300) for k in range(120)]

    apart = job_estimate(model, [spec], requests, replace(engine, mixes_prefill=False))
    mixed = job_estimate(model, [spec], requests, engine)

    assert apart.pipelines[0].output_tokens == mixed.pipelines[0].output_tokens == sum(o for _, o in requests)
    assert mixed.makespan_s < apart.makespan_s < 2 * mixed.makespan_s


def test_a_hop_is_fast_until_its_credits_are_spent() -> None:
    """A quiet network sends at the rate of a flow; one that never rests falls to its baseline."""
    hop = Hop(fixed_s=0.0, per_token_s=0.001, sustained_s=0.002)

    first = hop.arrival_s(0.0, 1000)
    at_s = first
    for _ in range(1000):
        at_s = hop.arrival_s(at_s, 1000)

    assert first == pytest.approx(1.0)
    assert at_s == pytest.approx(1001 * 2.0 - NETWORK_CREDIT_S, rel=0.01)


def test_the_deal_follows_the_weights_at_every_moment() -> None:
    """Smooth weighted round robin: 3:1 is shared out 3:1 in every four requests, never in blocks of many."""
    hands = deal(400, [3, 1])

    assert [len(hand) for hand in hands] == [300, 100]
    assert all(sum(1 for i in hands[1] if start <= i < start + 4) == 1 for start in range(0, 400, 4))


def test_a_request_that_never_fits_is_refused(catalog: Catalog, engine: EngineProfile) -> None:
    """The error names the request and the pipeline, instead of an endless loop."""
    with pytest.raises(InvalidInput, match="90000"):
        job_estimate(catalog.model("Qwen3-8B"), [pipe(catalog, ("g6.xlarge", 1, 36))], [(90000, 5)], engine)


@pytest.mark.parametrize(
    ("weights", "says"),
    [([1.0], "one per pipeline"), ([0.0, 0.0], "numbers"), ([float("nan"), 1.0], "numbers"), ([-1, 2], "numbers")],
)
def test_weights_that_make_no_sense_are_refused(
    catalog: Catalog, engine: EngineProfile, weights: list[float], says: str
) -> None:
    """Too few, all zero, negative, NaN."""
    pipes = [pipe(catalog, ("g6.xlarge", 1, 36))] * 2

    with pytest.raises(InvalidInput, match=says):
        job_estimate(catalog.model("Qwen3-8B"), pipes, [(10, 10)], engine, Precision(), dispatch="wrr", weights=weights)


def test_a_job_without_requests_or_pipelines_is_refused(catalog: Catalog, engine: EngineProfile) -> None:
    """Nothing to do is an error, not a duration of zero."""
    model = catalog.model("Qwen3-8B")

    with pytest.raises(InvalidInput, match="no requests"):
        job_estimate(model, [pipe(catalog, ("g6.xlarge", 1, 36))], [], engine)
    with pytest.raises(InvalidInput, match="no pipeline"):
        job_estimate(model, [], [(1, 1)], engine)
    with pytest.raises(InvalidInput, match="in flight 0"):
        job_estimate(model, [pipe(catalog, ("g6.xlarge", 1, 36))], [(1, 1)], engine, in_flight=0)
