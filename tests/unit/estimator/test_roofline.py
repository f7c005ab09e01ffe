"""Kernel times obey the bounds that hardware sets, and follow the shapes that models have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shuntserve.core.catalog import Catalog
from shuntserve.core.engine_profile import Precision
from shuntserve.core.hardware import Link
from shuntserve.core.roofline import StageRates, Step, stage_rates
from shuntserve.errors import InvalidInput


def rates(
    catalog: Catalog, model: str = "Llama-3.1-70B", gpu: str = "L4", tp: int = 1, weights: str = "bf16"
) -> StageRates:
    """Rates of a model on bare GPUs under the vLLM profile."""
    found = catalog.gpu(gpu)
    precision = Precision(weights, "bf16")
    return stage_rates(catalog.model(model), found, catalog.link_of(found), tp, catalog.engine("vllm"), precision)


def test_a_small_decode_step_is_bound_by_reading_the_weights(catalog: Catalog) -> None:
    """One sequence: a layer takes its weights over the achieved bandwidth, plus the small kernels, and little else."""
    priced = rates(catalog)
    shape = priced.model.layers[0]
    floor = shape.params() * 2 / priced.bandwidth

    got = priced.layer_s(shape, Step.decode(1, 800))

    assert floor + priced.engine.layer_s < got < 1.03 * (floor + priced.engine.layer_s)


def test_a_large_prefill_is_bound_by_arithmetic(catalog: Catalog) -> None:
    """8,192 tokens: at least the multiplications over the achieved rate, at most a third more."""
    priced = rates(catalog)
    shape = priced.model.layers[0]
    floor = 2 * 8192 * shape.params() / priced.gemm_flops

    got = priced.layer_s(shape, Step(prefill_tokens=8192, prefill_context=400))

    assert floor < got < 1.33 * floor


def test_four_bit_weights_cut_a_bandwidth_bound_step_nearly_fourfold(catalog: Catalog) -> None:
    """Decoding one sequence reads weights only."""
    shape = catalog.model("Llama-3.1-70B").layers[0]
    step = Step.decode(1, 1)

    wide, narrow = rates(catalog), rates(catalog, weights="int4")

    small = wide.engine.layer_s
    assert 3.3 < (wide.layer_s(shape, step) - small) / (narrow.layer_s(shape, step) - small) < 3.8


def test_fp8_weights_use_the_fp8_units_where_there_are_some(catalog: Catalog) -> None:
    """H100 multiplies FP8 about twice as fast as bf16; A100, without FP8 units, not at all faster."""
    h100, h100_fp8 = rates(catalog, gpu="H100"), rates(catalog, gpu="H100", weights="fp8")
    a100, a100_fp8 = rates(catalog, gpu="A100-80"), rates(catalog, gpu="A100-80", weights="fp8")

    assert 1.6 < h100_fp8.gemm_flops / h100.gemm_flops < 2.4
    assert a100_fp8.gemm_flops == a100.gemm_flops


def test_latent_attention_is_not_divided_among_gpus(catalog: Catalog) -> None:
    """DeepSeek caches 576 numbers per token and layer whatever the TP; grouped-query heads are divided, then copied."""
    latent = catalog.model("DeepSeek-V3").layers[0]
    grouped = catalog.model("Llama-3.1-70B").layers[0]

    assert latent.kv_values_per_token(1) == latent.kv_values_per_token(8) == 576
    assert [grouped.kv_values_per_token(tp) for tp in (1, 8, 16)] == [2048, 256, 256]


def test_a_window_caps_what_attention_reads(catalog: Catalog) -> None:
    """Beyond the window a longer context costs a windowed layer nothing and a full one more."""
    priced = rates(catalog, "gpt-oss-20b", "H100")
    windowed = next(s for s, _ in priced.model.kinds() if s.window)
    full = next(s for s, _ in priced.model.kinds() if not s.window)
    near, far = Step.decode(8, 8 * 1000), Step.decode(8, 8 * 4000)

    assert priced.layer_s(windowed, near) == priced.layer_s(windowed, far)
    assert priced.layer_s(full, near) < priced.layer_s(full, far)


def test_one_token_reads_only_the_experts_it_chooses(catalog: Catalog) -> None:
    """Mixtral decoding one sequence reads two experts of eight; 64 sequences touch all of them."""
    priced = rates(catalog, "Mixtral-8x7B", "A100-80")
    shape = priced.model.layers[0]
    one_expert = sum(g.n * g.k for g in shape.expert_gemms(1)) * 2 / priced.bandwidth

    assert priced.experts_s(shape, 1) == pytest.approx(2 * one_expert, rel=0.05)
    assert priced.experts_s(shape, 64) > 7.9 * one_expert


def test_an_all_reduce_takes_the_faster_protocol() -> None:
    """Small messages pay latency under LL, large ones half the time under Simple; one GPU pays nothing."""
    link = Link("test", {4: 10e9, 8: 5e9}, hop_ll_s=1e-6, hop_simple_s=10e-6)

    assert link.all_reduce_s(16, 4) == pytest.approx(6e-6, rel=1e-2)
    assert link.all_reduce_s(1e9, 4) == pytest.approx(1e9 * 1.5 / 10e9, rel=1e-2)
    assert link.all_reduce_s(1e9, 8) == pytest.approx(1e9 * 1.75 / 5e9, rel=1e-2)
    assert link.all_reduce_s(1e9, 1) == 0.0


def test_parts_of_a_stage_time_add_up(catalog: Catalog) -> None:
    """`StageTime` is affine in layers: total = fixed + layers × per layer + ends."""
    parts = rates(catalog, tp=4).time(Step.decode(32, 32 * 900))

    assert parts.total(20, True, True) - parts.total(10, True, True) == pytest.approx(10 * parts.per_layer_s)
    assert parts.total(20, True, True) == pytest.approx(parts.total(20, False, False) + parts.first_s + parts.last_s)


@pytest.mark.parametrize(
    ("model", "tp", "says"), [("Qwen2.5-7B", 8, "28 attention heads"), ("Llama-3.1-70B", 0, "tp=0")]
)
def test_a_tp_that_does_not_divide_the_heads_is_refused(catalog: Catalog, model: str, tp: int, says: str) -> None:
    """The error names the heads, and what would do."""
    gpu = catalog.gpu("L4")
    engine = catalog.engine("vllm")

    with pytest.raises(InvalidInput, match=says):
        StageRates(catalog.model(model), gpu, catalog.link_of(gpu), tp, engine, Precision())


def test_a_gpu_without_tensor_arithmetic_is_refused(catalog: Catalog) -> None:
    """No 16-bit rate, no estimate."""
    gpu = replace(catalog.gpu("L4"), flops={})

    with pytest.raises(InvalidInput, match="16-bit"):
        StageRates(
            catalog.model("Qwen3-8B"), gpu, catalog.link_of(catalog.gpu("L4")), 1, catalog.engine("vllm"), Precision()
        )
