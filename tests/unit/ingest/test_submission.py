"""Submissions: what makes two of them the same job, and which mistakes end one before any GPU is asked for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shuntserve.core.specs import JobSpec
from shuntserve.errors import Conflict, InvalidInput, NotFound, ShuntServeError, Unavailable
from shuntserve.job.submission import load_job, resolve, submit_resolved, submit_spec
from shuntserve.store import keys
from shuntserve.store.open import open_bucket
from tests.support.ingesting import chat_line, ingest_columns, ingest_lines
from tests.support.model_dirs import build_model_dir


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Two prompts in Parquet."""
    path = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"prompt": ["the fox", "the dog"]}), path)
    return path


def test_the_same_submission_is_the_same_job_and_changes_nothing_stored(prompts: Path, model: Path) -> None:
    """A second submission finds the first one's spec.json and leaves it as it is."""
    bucket = open_bucket("memory://same-submission")
    spec = JobSpec(input=prompts, model=model)

    first = submit_spec(bucket, spec)
    stored = bucket.get(keys.spec(first.job_id))
    second = submit_spec(bucket, spec)

    assert second == first == load_job(bucket, first.job_id)
    assert bucket.get(keys.spec(first.job_id)) == stored


def test_a_job_is_its_content_not_its_place(tmp_path: Path, prompts: Path, model: Path) -> None:
    """Input and model copied elsewhere, and written somewhere else, are still the same job."""
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(model, elsewhere / "model")
    shutil.copy(prompts, elsewhere / "prompts.parquet")

    here = resolve(JobSpec(input=prompts, model=model))
    there = resolve(JobSpec(input=elsewhere / "prompts.parquet", model=elsewhere / "model", output="out"))

    assert there.job_id == here.job_id


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 9},
        {"sampling_params": {"temperature": 0.5}},
        {"seed": 1},
        {"engine": {"dtype": "float32"}},
        {"engine": {"max_model_len": 99}},
        {"system": "be brief"},
        {"return_token_ids": True},
        {"carry": []},
        {"rerun": "again"},
    ],
    ids=str,
)
def test_what_changes_answers_makes_another_job(tmp_path: Path, model: Path, change: dict[str, Any]) -> None:
    """Each of these settings is part of a job's identity."""
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["the fox"], "label": [1]}), path)

    plain = resolve(JobSpec(input=path, model=model))
    changed = resolve(JobSpec(input=path, model=model, **change))

    assert changed.job_id != plain.job_id


def test_changed_input_or_model_makes_another_job(tmp_path: Path, prompts: Path) -> None:
    """Contents of input, weights, tokenizer and chat template count."""
    model = build_model_dir(tmp_path / "model")
    ids = {resolve(JobSpec(input=prompts, model=model, chat=True)).job_id}

    pq.write_table(pa.table({"prompt": ["the fox", "the cat"]}), prompts)
    ids.add(resolve(JobSpec(input=prompts, model=model, chat=True)).job_id)
    build_model_dir(model, chat_template="{{ messages[0].content }}")
    ids.add(resolve(JobSpec(input=prompts, model=model, chat=True)).job_id)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rope_theta": 5.0}))
    ids.add(resolve(JobSpec(input=prompts, model=model, chat=True)).job_id)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"0000")
    ids.add(resolve(JobSpec(input=prompts, model=model, chat=True)).job_id)

    assert len(ids) == 5


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_weights_that_are_broken_off_are_refused(tmp_path: Path, prompts: Path, kept: int) -> None:
    """A copy that ended early, wherever, is named at submission, long before an engine would stumble over it."""
    model = build_model_dir(tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])

    with pytest.raises(InvalidInput, match=r"model\.safetensors: .*broken off.* — copy the model again"):
        resolve(JobSpec(input=prompts, model=model))


def test_how_a_job_is_run_is_not_what_it_is(prompts: Path, model: Path) -> None:
    """Limits, output and engine memory follow the latest submission of the same job; what is stored stays."""
    bucket = open_bucket("memory://operations")
    first = submit_spec(bucket, JobSpec(input=prompts, model=model, engine={"max_num_seqs": 64}))

    again = submit_spec(
        bucket,
        JobSpec(
            input=prompts,
            model=model,
            output="elsewhere",
            max_reject_fraction=0.5,
            engine={"gpu_memory_utilization": 0.5},
            deadline="1h",
        ),
        now_unix_s=1000.0,
    )

    assert again.job_id == first.job_id
    assert again.operations.output == "elsewhere"
    assert again.operations.max_reject_fraction == 0.5
    assert again.operations.deadline_unix_s == 4600.0
    assert again.engine == {"max_model_len": 256, "gpu_memory_utilization": 0.5}
    assert load_job(bucket, first.job_id) == first


def test_a_job_that_was_moved_is_run_from_where_it_is_now(tmp_path: Path, prompts: Path, model: Path) -> None:
    """Input and model are read where the latest submission found them; the lease, which workers share, stays."""
    bucket = open_bucket("memory://moved")
    moved = shutil.copytree(model, tmp_path / "moved")
    first = submit_spec(bucket, JobSpec(input=prompts, model=model, lease_s=20))

    again = submit_spec(bucket, JobSpec(input=prompts, model=moved, lease_s=30))

    assert again.job_id == first.job_id
    assert again.model == str(moved)
    assert again.operations.lease_s == 20


def test_rerun_makes_a_new_job_each_time(prompts: Path, model: Path) -> None:
    """True salts with a new UUID; the same text salts the same way."""
    plain = resolve(JobSpec(input=prompts, model=model))
    new = {resolve(JobSpec(input=prompts, model=model, rerun=True)).job_id for _ in range(2)}
    named = {resolve(JobSpec(input=prompts, model=model, rerun="b")).job_id for _ in range(2)}

    assert len(new | named | {plain.job_id}) == 4


def test_a_job_id_begins_with_a_readable_name(prompts: Path, model: Path) -> None:
    """The input's name, or the one given, made fit for keys and URLs."""
    assert resolve(JobSpec(input=prompts, model=model)).job_id.startswith("prompts-")
    assert resolve(JobSpec(input=prompts, model=model, name="Näme / 2!")).job_id.startswith("n-me-2-")


def test_another_jobs_content_under_the_same_id_is_a_conflict(prompts: Path, model: Path) -> None:
    """The whole identity is compared, not only the digits in the id."""
    bucket = open_bucket("memory://collision")
    job = submit_spec(bucket, JobSpec(input=prompts, model=model))
    other = type(job).from_json({**job.to_json(), "identity": "f" * 64})

    with pytest.raises(Conflict, match="already exists"):
        submit_resolved(bucket, other)


def test_an_unknown_job_is_not_found(model: Path) -> None:
    """The error names the bucket and the command that lists jobs."""
    with pytest.raises(NotFound, match=r"memory://.*shuntserve list"):
        load_job(open_bucket("memory://no-jobs"), "nobody-123")


def test_a_newer_spec_is_refused_by_name(prompts: Path, model: Path) -> None:
    """A spec of a later schema version asks for a newer ShuntServe."""
    bucket = open_bucket("memory://newer")
    job = submit_spec(bucket, JobSpec(input=prompts, model=model))
    value = json.loads(bucket.get(keys.spec(job.job_id)))
    bucket.put(keys.spec(job.job_id), json.dumps({**value, "schema_version": 99}).encode())

    with pytest.raises(InvalidInput, match="newer"):
        load_job(bucket, job.job_id)


def test_everything_a_worker_needs_is_resolved(prompts: Path, model: Path) -> None:
    """Lengths, end-of-sequence ids, engine options, versions and hashes are there without reading the model again."""
    job = resolve(JobSpec(input=prompts, model=model, engine={"max_num_seqs": 8}))

    assert job.max_model_len == 256
    assert job.engine == {"max_num_seqs": 8, "max_model_len": 256}
    assert job.eos_token_ids == (1,)
    assert job.vocab_size == 512
    assert job.package_version
    assert len(job.model_sha256) == len(job.tokenizer_sha256) == 64
    assert (job.inputs[0].name, job.inputs[0].rows) == ("prompts.parquet", 2)


def test_end_of_sequence_ids_come_from_the_generation_config_too(tmp_path: Path, prompts: Path) -> None:
    """Chat models often end with ids their tokenizer does not call EOS."""
    model = build_model_dir(tmp_path / "model", generation_config={"eos_token_id": [7, 9]})

    assert resolve(JobSpec(input=prompts, model=model)).eos_token_ids == (1, 7, 9)


def _no_config(folder: Path) -> dict[str, Any]:
    (folder / "empty").mkdir()
    return {"model": folder / "empty"}


def _no_tokenizer(folder: Path) -> dict[str, Any]:
    model = build_model_dir(folder / "m")
    for file in model.glob("tokenizer*"):
        file.unlink()
    return {"model": model}


def _no_weights(folder: Path) -> dict[str, Any]:
    return {"model": build_model_dir(folder / "m", weights=False)}


def _no_template(folder: Path) -> dict[str, Any]:
    return {"model": build_model_dir(folder / "m", chat_template=None), "system": "be brief"}


def _bad_generation_config(folder: Path) -> dict[str, Any]:
    return {"model": build_model_dir(folder / "m", generation_config={"temperature": 9})}


def _file(name: str, content: bytes) -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        (folder / name).write_bytes(content)
        return {"input": folder / name}

    return write


def _table(columns: dict[str, Any]) -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        pq.write_table(pa.table(columns), folder / "table.parquet")
        return {"input": folder / "table.parquet"}

    return write


def _folder(folder: Path) -> dict[str, Any]:
    (folder / "dir").mkdir()
    (folder / "dir" / "_SUCCESS").write_bytes(b"")
    return {"input": folder / "dir"}


def _mixed(folder: Path) -> dict[str, Any]:
    (folder / "a.jsonl").write_text(json.dumps(chat_line("a")))
    pq.write_table(pa.table({"prompt": ["x"]}), folder / "b.parquet")
    return {"input": [folder / "a.jsonl", folder / "b.parquet"]}


def _misfit(folder: Path) -> dict[str, Any]:
    pq.write_table(pa.table({"prompt": ["x"], "a": [1]}), folder / "a.parquet")
    pq.write_table(pa.table({"prompt": ["x"], "a": [["y"]]}), folder / "b.parquet")
    return {"input": str(folder / "*.parquet")}


def _given(**changes: Any) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: changes


JSONL = json.dumps(chat_line("a")).encode()
BAD_JOBS: dict[str, tuple[Callable[[Path], dict[str, Any]], type[ShuntServeError], str]] = {
    "missing file": (_given(input="/nowhere/p.parquet"), NotFound, r"does not exist.*no directory /nowhere"),
    "empty file": (_file("e.parquet", b""), InvalidInput, "is empty"),
    "no rows": (_table({"prompt": pa.array([], pa.string())}), InvalidInput, "has no rows"),
    "text called Parquet": (_file("t.parquet", b"hello world" * 10), InvalidInput, "is not a Parquet file"),
    "torn Parquet": (_file("t.parquet", b"PAR1" + b"\0" * 50), InvalidInput, "not a readable Parquet file"),
    "CSV": (_file("t.csv", b"prompt\nhello\n"), InvalidInput, r"neither Parquet nor OpenAI.*to_parquet"),
    "other JSON lines": (_file("t.jsonl", b'{"prompt": "x"}\n'), InvalidInput, r"custom_id"),
    "empty folder": (_folder, NotFound, "holds no files"),
    "pattern without match": (_given(input="/nowhere/*.parquet"), NotFound, "matches no file"),
    "both kinds of input": (_mixed, InvalidInput, "two jobs"),
    "files that do not fit": (_misfit, InvalidInput, "do not fit"),
    "no prompt column": (_table({"text": ["x"]}), InvalidInput, r"no prompt column.*text.*columns"),
    "mapped column missing": (
        lambda folder: _table({"question": ["x"]})(folder) | {"columns": {"prompt": "questoin"}},
        InvalidInput,
        "did you mean 'question'",
    ),
    "template column missing": (
        lambda folder: _table({"text": ["x"]})(folder) | {"prompt_template": "{txt}"},
        InvalidInput,
        "did you mean 'text'",
    ),
    "template column nested": (
        lambda folder: _table({"text": [[1]]})(folder) | {"prompt_template": "{text}"},
        InvalidInput,
        "text or number columns",
    ),
    "carried column missing": (_given(carry=["labl"]), InvalidInput, "is not in the input"),
    "prompt of numbers": (_table({"prompt": [1, 2]}), InvalidInput, "is int64, not text"),
    "token ids of text": (_table({"prompt_token_ids": ["1"]}), InvalidInput, "not a list of integers"),
    "max_tokens of text": (_table({"prompt": ["x"], "max_tokens": ["5"]}), InvalidInput, "not integers"),
    "messages of numbers": (_table({"messages": [5]}), InvalidInput, "role, content"),
    "columns for JSONL": (
        lambda folder: _file("a.jsonl", JSONL)(folder) | {"columns": {"prompt": "x"}},
        InvalidInput,
        "no meaning for OpenAI batch JSONL",
    ),
    "model without config": (_no_config, InvalidInput, "no config.json"),
    "model without tokenizer": (_no_tokenizer, InvalidInput, r"tokenizer.*cannot be loaded"),
    "model without weights": (_no_weights, InvalidInput, "no weights"),
    "model without chat template": (_no_template, InvalidInput, r"no chat template.*chat_template"),
    "model directory missing": (_given(model="./no/such/dir"), NotFound, "no such directory"),
    "model that cannot be fetched": (_given(model="nobody/nothing"), Unavailable, "hub cannot be reached"),
    "model that is a file": (
        lambda folder: _file("m", b"x")(folder) | {"model": folder / "m"},
        InvalidInput,
        "is a file",
    ),
    "model in S3": (_given(model="s3://bucket/model"), InvalidInput, "copy it to a directory"),
    "revision of a directory": (_given(revision="main"), InvalidInput, "no revisions"),
    "bad generation config": (_bad_generation_config, InvalidInput, r"generation_config.json.*temperature"),
    "context longer than the model's": (_given(engine={"max_model_len": 257}), InvalidInput, "context is 256"),
    "chat template missing": (_given(chat_template="no-file.jinja"), NotFound, "neither a file nor"),
    "chat template broken": (_given(chat_template="{% for"), InvalidInput, "cannot be rendered"),
    "unused template variable": (
        _given(chat_template_kwargs={"enable_thiking": False}),
        InvalidInput,
        "did you mean 'enable_thinking'",
    ),
    "token id outside the vocabulary": (
        _given(sampling_params={"stop_token_ids": [512]}),
        InvalidInput,
        "from 0 to 511",
    ),
}


@pytest.mark.parametrize("case", BAD_JOBS)
def test_a_hopeless_job_ends_with_thing_cause_and_next_step(
    tmp_path: Path, prompts: Path, model: Path, case: str
) -> None:
    """Each mistake in a whole job is one clear error at submission, and nothing is stored."""
    prepare, kind, message = BAD_JOBS[case]
    bucket = open_bucket(f"memory://{tmp_path.name}")
    settings = {"input": prompts, "model": model, **prepare(tmp_path)}

    with pytest.raises(kind, match=message) as caught:
        submit_spec(bucket, JobSpec(**settings))

    assert caught.value.thing
    assert caught.value.cause
    assert caught.value.next_step
    assert list(bucket.list("jobs")) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_a_clear_error(prompts: Path, model: Path) -> None:
    """Permissions are named as the cause."""
    prompts.chmod(0)

    with pytest.raises(InvalidInput, match="may not be read"):
        resolve(JobSpec(input=prompts, model=model))


def test_a_jsonl_job_of_completions_needs_no_chat_template(tmp_path: Path) -> None:
    """A model without a template serves completion lines; a chat line among them costs itself."""
    model = build_model_dir(tmp_path / "model", chat_template=None)
    completions = [
        {"custom_id": f"c{index}", "url": "/v1/completions", "body": {"prompt": "the fox"}} for index in range(30)
    ]

    done = ingest_lines(tmp_path, model, [*completions, chat_line("chat")])

    assert len(done.rows) == 30
    assert done.codes == {30: "template_error"}


def test_a_directory_and_its_partition_columns_are_read(tmp_path: Path, model: Path) -> None:
    """`day=…` in a path is a column, hidden files and job.yaml are none of the input, and names are relative."""
    top = tmp_path / "data"
    for day in ("2030-01-01", "2030-01-02"):
        (top / f"day={day}").mkdir(parents=True)
        pq.write_table(pa.table({"prompt": [f"fox {day}"]}), top / f"day={day}" / "part-0.parquet")
    (top / "_SUCCESS").write_bytes(b"")
    (top / "job.yaml").write_text("model: x")
    from tests.support.ingesting import ingest_files

    done = ingest_files(top, model)

    assert sorted((row["source_file"], row["carried"]["day"]) for row in done.rows) == [
        ("day=2030-01-01/part-0.parquet", "2030-01-01"),
        ("day=2030-01-02/part-0.parquet", "2030-01-02"),
    ]


def test_a_column_missing_in_some_files_is_null_there(tmp_path: Path, model: Path) -> None:
    """Files of one job are united by column name; numbers are widened."""
    pq.write_table(pa.table({"prompt": ["fox"], "score": pa.array([1], pa.int32())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"prompt": ["dog"], "score": [2.5], "extra": ["x"]}), tmp_path / "b.parquet")
    from tests.support.ingesting import ingest_files

    done = ingest_files(str(tmp_path / "*.parquet"), model)

    assert [row["carried"] for row in done.rows] == [{"score": 1.0, "extra": None}, {"score": 2.5, "extra": "x"}]


def test_submitting_needs_neither_torch_nor_vllm(tmp_path: Path, model: Path) -> None:
    """On a laptop without torch and vLLM a job is submitted and ingested all the same."""
    pq.write_table(pa.table({"messages": ['[{"role": "user", "content": "the fox"}]']}), tmp_path / "rows.parquet")
    program = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['vllm'] = None\n"
        "from shuntserve.core.specs import JobSpec\n"
        "from shuntserve.job.ingest import ingest\n"
        "from shuntserve.job.submission import submit_spec\n"
        "from shuntserve.store.open import open_bucket\n"
        "bucket = open_bucket('memory://laptop')\n"
        "job = submit_spec(bucket, JobSpec(input=sys.argv[1], model=sys.argv[2]))\n"
        "print(ingest(bucket, job).rows_valid)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "rows.parquet"), str(model)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )

    assert done.stdout.strip() == "1"
    assert "PyTorch" not in done.stderr


def test_logprobs_are_returned_when_somebody_can_ask_for_them(tmp_path: Path, model: Path) -> None:
    """The column exists when the job asks, when rows bring parameters of their own, or when it is demanded."""
    plain = {"prompt": ["fox"]}
    own = {"prompt": ["fox"], "sampling_params": [None]}

    assert not ingest_columns(tmp_path, model, plain).job.return_logprobs
    assert ingest_columns(tmp_path, model, plain, sampling_params={"logprobs": 2}).job.return_logprobs
    assert ingest_columns(tmp_path, model, own).job.return_logprobs
    assert not ingest_columns(tmp_path, model, own, return_logprobs=False).job.return_logprobs
