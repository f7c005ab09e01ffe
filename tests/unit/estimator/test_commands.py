"""The commands `estimate`, `catalog` and `calibrate` as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from shuntserve.cli import calibrate, catalog, estimate
from shuntserve.cli.app import build_app, main
from shuntserve.errors import InvalidInput, NotFound

LLAMA = ("--model", "Llama-3.1-70B", "--workload", "763:232")


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No catalogue of this machine's user reaches the tests."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path / "shuntserve" / "catalog"


def invoke(*arguments: str) -> Any:
    """Run the planning commands; errors come through as they are."""
    app = typer.Typer()
    for module in (estimate, catalog, calibrate):
        module.register(app)
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def estimated(*arguments: str) -> dict[str, Any]:
    found = json.loads(invoke("estimate", *arguments, "--json").stdout)
    assert isinstance(found, dict)
    return found


def test_estimate_gives_what_the_interface_promises() -> None:
    """Every promised key, for the pipeline and for each stage, and numbers that agree with one another."""
    got = estimated(*LLAMA, "--stage", "g6.12xlarge:tp=4:layers=40", "--stage", "g6.12xlarge:tp=4:layers=40")

    promised = "throughput_rps output_tok_s batch_latency_s max_concurrency kv_blocks ttft_s tpot_s stages"
    assert set(promised.split()) <= set(got)
    assert got["output_tok_s"] == pytest.approx(232 * got["throughput_rps"])
    assert [stage["layers"] for stage in got["stages"]] == [40, 40]
    assert all({"gpu", "tp", "prefill_s", "decode_s", "utilisation", "bottleneck"} <= set(s) for s in got["stages"])


def test_instances_and_bare_gpus_mix_in_one_pipeline() -> None:
    """`--stage g6.12xlarge… --stage gpu=H100…`, as the interface shows it."""
    l4 = "g6.12xlarge:tp=4:layers=24"

    got = estimated(*LLAMA, "--stage", l4, "--stage", l4, "--stage", "gpu=H100:tp=1:layers=32")

    assert [stage["gpu"] for stage in got["stages"]] == ["L4", "L4", "H100-SXM5-80"]


def test_several_replicas_and_a_job() -> None:
    """Two pipelines, 300 requests dealt 2:1: totals add up, and the job has a makespan."""
    pipe = "g6.12xlarge:tp=4:layers=40,g6.12xlarge:tp=4:layers=40"

    got = estimated(
        *LLAMA, "--pipeline", pipe, "--pipeline", pipe, "--requests", "300", "--dispatch", "wrr", "--weights", "2,1"
    )

    assert [p["requests"] for p in got["pipelines"]] == [200, 100]
    assert got["throughput_rps"] == pytest.approx(sum(p["throughput_rps"] for p in got["pipelines"]))
    assert got["job_rps"] == pytest.approx(300 / got["makespan_s"])
    assert got["makespan_s"] == max(p["finish_s"] for p in got["pipelines"])


def test_a_config_json_stands_for_a_model(tmp_path: Path) -> None:
    """A directory with a Hugging Face config is as good as a name."""
    (tmp_path / "config.json").write_text(
        json.dumps(
            {"model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
             "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 128256, "head_dim": 64,
             "tie_word_embeddings": True}
        )
    )  # fmt: skip

    by_file = estimated("--model", str(tmp_path), "--workload", "100:100", "--stage", "g6.xlarge")
    by_name = estimated("--model", "Llama-3.2-1B", "--workload", "100:100", "--stage", "g6.xlarge")

    assert by_file["throughput_rps"] == pytest.approx(by_name["throughput_rps"], rel=1e-3)


def test_auto_types_follow_the_checkpoint_and_the_gpu() -> None:
    """fp16 on a T4 where bf16 is asked by nobody, FP8 for a checkpoint in FP8, FP8 cache where TRT-LLM keeps one."""
    t4 = estimated("--model", "Qwen3-4B", "--workload", "100:100", "--stage", "g4dn.xlarge")
    v3 = estimated(
        "--model",
        "DeepSeek-V3",
        "--workload",
        "100:100",
        "--stage",
        "p5e.48xlarge:tp=8",
        "--gpu-memory-utilization",
        "0.95",
    )
    trt = estimated(*LLAMA, "--stage", "gpu=H100:tp=8", "--engine", "trtllm", "--dtype", "fp8")

    assert (t4["weights"], t4["kv_cache"]) == ("fp16", "fp16")
    assert v3["weights"] == "fp8"
    assert trt["kv_cache"] == "fp8"


LLAMA_70B_ON_L4 = (*LLAMA, "--stage", "g6.48xlarge:tp=8")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--model", "Lama-3.1-70B", "--workload", "1:1", "--stage", "g6.xlarge"), "did you mean Llama-3.1-70B"),
        (("--model", "gone/config.json", "--workload", "1:1", "--stage", "g6.xlarge"), "no such file"),
        (("--workload", "1:1", "--stage", "g6.xlarge"), "--model"),
        ((*LLAMA, "--stage", "g6.12xlrge:tp=4"), "did you mean g6.12xlarge"),
        ((*LLAMA, "--stage", "gpu=H10:tp=8"), "H100"),
        ((*LLAMA, "--stage", "gpu=H100:tp=16"), "no machine carries more than 8"),
        ((*LLAMA, "--stage", "g6.48xlarge:tp=16"), "the instance has 8 GPU"),
        ((*LLAMA, "--stage", "g6.48xlarge:tp=0"), "tp=0 is not positive"),
        ((*LLAMA, "--stage", "g6.48xlarge:tp=-2"), "tp=-2 is not positive"),
        ((*LLAMA, "--stage", "g6.48xlarge:tp=nan"), "not a whole number"),
        ((*LLAMA, "--stage", "g6.48xlarge:tp=3"), "64 attention heads cannot be divided among 3 GPUs"),
        ((*LLAMA, "--stage", "g6.48xlarge:tp=8:layers=79"), "its stages hold 79 layers, the model has 80"),
        ((*LLAMA, "--stage", "g6.48xlarge:tp=8:layers=0"), "layers=0 is not positive"),
        ((*LLAMA, "--stage", "g6.48xlarge:tp=4:layers=40", "--stage", "g6.48xlarge:tp=4"), "does not say its layers"),
        ((*LLAMA, "--stage", "g6.48xlarge:8"), "not understood"),
        ((*LLAMA, "--stage", "g6.12xlarge:tp=4"), "of weights per GPU exceed"),
        ((*LLAMA,), "neither --stage nor --pipeline"),
        ((*LLAMA_70B_ON_L4, "--pipeline", "g6.48xlarge:tp=8"), "both --stage and --pipeline"),
        ((*LLAMA_70B_ON_L4, "--engine", "vlm"), "vllm"),
        ((*LLAMA_70B_ON_L4, "--batch", "0"), "--batch: 0 is not positive"),
        ((*LLAMA_70B_ON_L4, "--batch", "2.5"), "--batch"),
        ((*LLAMA_70B_ON_L4, "--dtype", "fp7"), "fp7"),
        ((*LLAMA_70B_ON_L4, "--kv-dtype", "int3"), "int3"),
        ((*LLAMA, "--stage", "g4dn.metal:tp=8", "--dtype", "bf16"), "bf16 weights on T4"),
        ((*LLAMA, "--stage", "p3dn.24xlarge:tp=8", "--dtype", "bf16"), "bf16 weights on V100"),
        ((*LLAMA, "--stage", "p3dn.24xlarge:tp=8", "--dtype", "bf16", "--engine", "trtllm"), "bf16 weights on V100"),
        ((*LLAMA, "--stage", "p3dn.24xlarge:tp=8", "--dtype", "fp8"), "fp8 weights on V100"),
        ((*LLAMA, "--stage", "g5.48xlarge:tp=8", "--kv-dtype", "fp8"), "fp8 KV cache on A10G"),
        ((*LLAMA_70B_ON_L4, "--gpu-memory-utilization", "nan"), "memory_utilization is nan"),
        ((*LLAMA_70B_ON_L4, "--gpu-memory-utilization", "1.5"), "exceeds 1"),
        ((*LLAMA_70B_ON_L4, "--max-num-seqs", "0"), "max_seqs is 0"),
        ((*LLAMA_70B_ON_L4, "--requests", "-5"), "--requests: -5 is not positive"),
        ((*LLAMA_70B_ON_L4, "--requests", "99999999999"), "too long to simulate"),
        ((*LLAMA_70B_ON_L4, "--requests", "5", "--in-flight", "0"), "--in-flight: 0 is not positive"),
        ((*LLAMA_70B_ON_L4, "--requests", "5", "--dispatch", "push"), "use pull or wrr"),
        ((*LLAMA_70B_ON_L4, "--requests", "5", "--weights", "1"), "add --dispatch wrr"),
        ((*LLAMA_70B_ON_L4, "--requests", "5", "--dispatch", "wrr", "--weights", "1,2"), "one per pipeline"),
        ((*LLAMA_70B_ON_L4, "--requests", "5", "--dispatch", "wrr", "--weights", "nan"), "numbers"),
        ((*LLAMA_70B_ON_L4, "--requests", "5", "--dispatch", "wrr", "--weights", "a"), "numbers separated by commas"),
        ((*LLAMA_70B_ON_L4, "--dispatch", "wrr"), "add --requests"),
        (("--model", "Qwen3-8B", "--workload", "0:0", "--stage", "g6.xlarge"), "not a positive number of tokens"),
        (("--model", "Qwen3-8B", "--workload", "nan:1", "--stage", "g6.xlarge"), "not a positive number of tokens"),
        (("--model", "Qwen3-8B", "--workload", "9:-3", "--stage", "g6.xlarge"), "not a positive number of tokens"),
        (("--model", "Qwen3-8B", "--workload", "inf:3", "--stage", "g6.xlarge"), "not a positive number of tokens"),
        (("--model", "Qwen3-8B", "--workload", "763", "--stage", "g6.xlarge"), "write 763:232 or name a file"),
        (("--model", "Qwen3-8B", "--workload", "gone.csv", "--stage", "g6.xlarge"), "write 763:232 or name a file"),
        (("--model", "Qwen3-8B", "--workload", "50000:9", "--stage", "g6.xlarge"), "one request needs 50009"),
    ],
)
def test_bad_input_is_a_clear_error_never_a_number(
    arguments: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, nothing on standard output, and on standard error the thing, the cause and what to do."""
    monkeypatch.setattr(sys, "argv", ["shuntserve", "estimate", *arguments])

    with pytest.raises(SystemExit) as left:
        main()

    out, err = capsys.readouterr()
    assert left.value.code == 2
    assert out == ""
    assert says in " ".join(err.split())


def test_types_and_engines_go_by_their_usual_names_too() -> None:
    """What tables and vLLM call bfloat16, gptq-int4 or TensorRT-LLM is the same as our short names."""
    for written, short in (("bfloat16", "bf16"), ("gptq-int4", "int4"), ("FP8", "fp8")):
        assert estimated(*LLAMA_70B_ON_L4, "--dtype", written) == estimated(*LLAMA_70B_ON_L4, "--dtype", short)
    assert estimated(*LLAMA_70B_ON_L4, "--engine", "TensorRT-LLM")["engine"] == "trtllm"


def test_requests_beyond_the_models_context_are_warned_about() -> None:
    """Published tables go there, vLLM does not: the estimate is given, and the warning beside it."""
    got = estimated("--model", "GPT-J-6B", "--workload", "128:2048", "--stage", "g6e.xlarge")

    assert got["throughput_rps"] > 0
    assert "2,176" in got["warnings"][0]


def test_a_part_of_a_gpu_is_a_small_gpu() -> None:
    """A g6f.xlarge has an eighth of an L4: of its memory, and of its speed."""
    whole = estimated("--model", "Qwen2.5-0.5B", "--workload", "100:100", "--stage", "g6.xlarge")
    part = estimated("--model", "Qwen2.5-0.5B", "--workload", "100:100", "--stage", "g6f.xlarge")

    assert part["kv_blocks"] < whole["kv_blocks"] / 8
    assert part["stages"][0]["prefill_s"] > 4 * whole["stages"][0]["prefill_s"]
    with pytest.raises(InvalidInput, match="exceed what its 3 GB leave"):
        invoke("estimate", "--model", "Qwen3-8B", "--workload", "100:100", "--stage", "g6f.xlarge")


def test_a_config_that_is_no_json_is_refused(tmp_path: Path) -> None:
    """The file is named."""
    (tmp_path / "config.json").write_text("{not json")

    with pytest.raises(InvalidInput, match=r"config\.json"):
        invoke("estimate", "--model", str(tmp_path), "--workload", "1:1", "--stage", "g6.xlarge")


def test_the_table_for_people_names_what_binds() -> None:
    """Without --json: every stage on a line, what most of its time goes to, and the bound of the pipeline."""
    text = invoke("estimate", *LLAMA, "--stage", "g6.48xlarge:tp=8", "--requests", "20").stdout

    assert "g6.48xlarge tp=8" in text
    assert "bound by" in text
    assert "job:" in text


@pytest.mark.parametrize("kind", ["gpus", "instances", "models", "engines"])
def test_the_catalogue_is_listed(kind: str) -> None:
    """As a table and as JSON, the same rows."""
    rows = json.loads(invoke("catalog", kind, "--json").stdout)

    text = invoke("catalog", kind).stdout

    assert len(rows) > 2
    assert all(str(next(iter(row.values()))) in text for row in rows)


def test_a_calibration_is_kept_and_used(home: Path, tmp_path: Path) -> None:
    """Measurements half as fast as predicted make the next estimate slower; --dry-run keeps nothing."""
    arguments = ("--model", "Qwen3-8B", "--workload", "500:200", "--stage", "g6.xlarge", "--batch", "8")
    before = estimated(*arguments)["throughput_rps"]
    measured = tmp_path / "mine.csv"
    measured.write_text(
        "model,place,prompt_tokens,output_tokens,batch,requests_per_s\n"
        f"Qwen3-8B,g6.xlarge,500,200,8,{before / 2}\nQwen3-8B,g6.xlarge,500,200,8,{before / 2}\n"
    )

    invoke("calibrate", str(measured), "--dry-run")
    assert not home.exists()
    report = json.loads(invoke("calibrate", str(measured), "--json").stdout)
    catalog_cache_clear()

    assert report["mean_error_after"] < 0.5 * report["mean_error_before"]
    assert estimated(*arguments)["throughput_rps"] < 0.8 * before


def test_measurements_of_what_cannot_be_are_left_out_by_name(home: Path, tmp_path: Path) -> None:
    """Nine GPUs of a machine with one: the row is named and not used; when no row is left, nothing is fitted."""
    header = "model,place,tp,prompt_tokens,output_tokens,batch,requests_per_s\n"
    good, bad = "Qwen3-8B,g6.xlarge,1,500,200,8,0.5\n", "Qwen3-8B,g6.xlarge,9,500,200,8,0.5\n"
    (tmp_path / "some.csv").write_text(header + good + bad)
    (tmp_path / "none.csv").write_text(header + bad)
    (tmp_path / "bytes.csv").write_bytes(b"\xa2\xff")

    report = json.loads(invoke("calibrate", str(tmp_path / "some.csv"), "--dry-run", "--json").stdout)

    assert report["rows"] == 1
    assert report["unused"][0].startswith("line 3: ")
    with pytest.raises(InvalidInput, match=r"none can be used; line 2"):
        invoke("calibrate", str(tmp_path / "none.csv"))
    with pytest.raises(InvalidInput, match="no text"):
        invoke("calibrate", str(tmp_path / "bytes.csv"))
    assert not home.exists()


def catalog_cache_clear() -> None:
    """A new process would read the tables anew."""
    from shuntserve.catalog import load_catalog

    load_catalog.cache_clear()


def test_estimate_starts_without_the_heavy_libraries() -> None:
    """No torch, vLLM, boto3, numpy or pyarrow is imported to answer one question, so that it starts at once."""
    script = (
        "import sys, typer\n"
        "from shuntserve.cli import estimate, catalog, calibrate\n"
        "app = typer.Typer()\n"
        "for module in (estimate, catalog, calibrate): module.register(app)\n"
        "try: app(['estimate', *sys.argv[1:]])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'vllm', 'boto3', 'numpy', 'pyarrow', 'transformers'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *LLAMA, "--stage", "g6.48xlarge:tp=8", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert json.loads(done.stdout)["throughput_rps"] > 0
    assert done.stderr.strip() == "[]"


def test_the_planning_commands_are_commands_of_shuntserve() -> None:
    """All three stand in the help of the one command."""
    text = CliRunner().invoke(build_app(), ["--help"]).stdout

    assert all(name in text for name in ("estimate", "catalog", "calibrate"))


def test_an_unknown_model_is_not_found() -> None:
    """The error's class says that the thing does not exist."""
    with pytest.raises(NotFound):
        invoke("estimate", "--model", "GPT-9", "--workload", "1:1", "--stage", "g6.xlarge")
