"""Child jobs of rejects: which rows they hold, under which settings, and when they are the same job."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shuntserve.core.resolved import ResolvedJob
from shuntserve.core.specs import JobSpec
from shuntserve.errors import Conflict, InvalidInput, Unavailable
from shuntserve.job import results
from shuntserve.job.carried import carried_type
from shuntserve.job.finalize import finalize
from shuntserve.job.ingest import ingest, load_chunk, load_page
from shuntserve.job.output_place import OutputPlace
from shuntserve.job.retry import retry_spec
from shuntserve.job.submission import load_job, submit_spec
from shuntserve.job.tenure import Progress
from shuntserve.store import keys
from shuntserve.store.faults import Fault, FaultyBucket, Lost
from shuntserve.store.open import open_bucket
from shuntserve.store.port import Bucket
from tests.support.ingesting import Ingested, chat_line, completion_line, read_back
from tests.support.model_dirs import build_model_dir

ROWS = {
    "request_id": ["a", "b", "c", "d", "e"],
    "prompt": ["the quick fox", "", "the lazy dog", "the forest", "a brown fox"],
    "max_tokens": [5, 6, 7, 8, None],
    "sampling_params": ['{"temperature": 0.5}', "{}", '{"top_p": 0.9}', None, '{"stop": ["x"]}'],
    "label": ["A", "B", "C", "D", "E"],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model_dir(tmp_path_factory.mktemp("model"))


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return open_bucket(tmp_path / "a store, 100 %")


def ended(bucket: Bucket, folder: Path, model: Path, crashed: Sequence[str], **settings: Any) -> Ingested:
    """Submit and ingest what is in `folder`; every row has an answer but these, which crashed the engine."""
    job = submit_spec(bucket, JobSpec(input=folder, model=model, max_reject_fraction=1, **settings))
    manifest = ingest(bucket, job)
    for page in manifest.pages:
        for ref in load_page(bucket, page):
            table = load_chunk(bucket, ref)
            sequences = {
                (row, sample): Progress(row, sample, code="engine_crash", message="it did")
                if one["request_id"] in crashed
                else Progress(row, sample, tokens=[1], texts=["x"], finish_reason="stop")
                for row, one in enumerate(table.to_pylist())
                for sample in range(one["n"])
            }
            assert bucket.create(keys.result(job.job_id, ref.chunk), results.encode(table, sequences, "w"))
    place = OutputPlace(open_bucket(folder.parent / f"out-{job.job_id}"))
    place.reserve(job.job_id, bucket.url, overwrite=False)
    finalize(bucket, job, manifest, carried_type(job), place, "w")
    return read_back(bucket, job, manifest)


def retried(bucket: Bucket, parent: Ingested, *codes: str, **changes: Any) -> Ingested:
    """The child, ingested."""
    job = submit_spec(bucket, retry_spec(bucket, parent.job.job_id, codes, **changes))
    return read_back(bucket, job, ingest(bucket, job))


def parquet(folder: Path, columns: Mapping[str, Any], name: str = "rows.parquet") -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(dict(columns)), folder / name)
    return folder


def jsonl(folder: Path, lines: Sequence[Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "batch.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def asked(found: Ingested) -> list[tuple[Any, ...]]:
    """What each row asks of the engine, and what it carries."""
    return [
        (row["request_id"], row["prompt_token_ids"], json.loads(row["params"]), row["n"], row.get("carried"))
        for row in sorted(found.rows, key=lambda row: row["request_id"])
    ]


def test_all_rejects_are_run_again_as_they_were(bucket: Bucket, tmp_path: Path, model: Path) -> None:
    """Of two files: rows refused at ingest and rows that crashed, with ids, parameters and carried columns."""
    parquet(tmp_path / "in", ROWS, "one.parquet")
    folder = parquet(tmp_path / "in", {**ROWS, "request_id": ["f", "g", "h", "i", "j"]}, "two.parquet")
    parent = ended(bucket, folder, model, crashed=["c", "f"])

    child = retried(bucket, parent)

    assert [row["request_id"] for row in child.rejects] == ["b", "g"]
    assert asked(child) == [one for one in asked(parent) if one[0] in ("c", "f")]
    assert asked(child)[0][4] == {"label": "C"}


def test_codes_choose_rows(bucket: Bucket, tmp_path: Path, model: Path) -> None:
    """Only what was rejected with that code; the child says whose rejects it runs, and which."""
    parent = ended(bucket, parquet(tmp_path / "in", ROWS), model, crashed=["a", "e"])

    child = retried(bucket, parent, "engine_crash")

    assert [one[0] for one in asked(child)] == ["a", "e"]
    assert child.rejects == []
    stored = load_job(bucket, child.job.job_id)
    assert (stored.parent, stored.retry_codes) == (parent.job.job_id, ("engine_crash",))


def test_ids_that_were_made_from_places_are_kept(bucket: Bucket, tmp_path: Path, model: Path) -> None:
    """Without an id column a row is called by its file and number; in the retry, and in its retry, it still is."""
    folder = parquet(tmp_path / "in", {"prompt": ROWS["prompt"], "label": ROWS["label"]}, "p q.parquet")
    parent = ended(bucket, folder, model, crashed=["p q.parquet:2", "p q.parquet:3"])
    spec = retry_spec(bucket, parent.job.job_id, ["engine_crash"])

    child = ended(bucket, Path(spec.input[0]).parent, model, ["p q.parquet:3"], columns=spec.columns, carry=spec.carry)
    grandchild = retried(bucket, child)

    assert [one[0] for one in asked(child)] == ["p q.parquet:2", "p q.parquet:3"]
    assert [(one[0], one[4]) for one in asked(grandchild)] == [("p q.parquet:3", {"label": "D"})]


MESSAGES = [[{"role": "user", "content": text}] for text in ("the quick fox", "the dog", "hi")]
FORMS: dict[str, tuple[Mapping[str, Any] | Sequence[Any], Mapping[str, Any]]] = {
    "prompts as they are": ({"request_id": ["a", "b"], "prompt": ["the fox", "a dog"]}, {}),
    "prompts as a chat": (
        {"request_id": ["a", "b"], "prompt": ["the fox", "a dog"]},
        {"system": "be brief", "chat_template_kwargs": {"enable_thinking": False}},
    ),
    "messages": ({"request_id": ["a", "b", "c"], "messages": MESSAGES}, {}),
    "messages under another template": (
        {"request_id": ["a", "b", "c"], "messages": MESSAGES},
        {"chat_template": "{% for m in messages %}{{ m['content'] }}!{% endfor %}"},
    ),
    "a template of columns": (
        {"request_id": ["a", "b"], "text": ["the fox", "a dog"], "prompt": [1, 2]},
        {"prompt_template": "classify: {text}"},
    ),
    "columns of other names": (
        {"uuid": ["a", "b"], "question": ["the fox", "a dog"], "prompt": ["no", "no"], "request_id": [1, 2]},
        {"columns": {"request_id": "uuid", "prompt": "question"}, "carry": ("prompt", "request_id")},
    ),
    "token ids": ({"request_id": ["a", "b"], "prompt_token_ids": [[5, 6, 7], [8, 9]]}, {"carry": ()}),
    "samples, parameters and a seed": (
        {"request_id": ["a", "b"], "prompt": ["the fox", "a dog"]},
        {"sampling_params": {"n": 3, "temperature": 0.7, "logprobs": 2}, "max_tokens": 9, "seed": 5},
    ),
    "a grammar": (
        {"request_id": ["a", "b"], "prompt": ["the fox", "a dog"]},
        {"structured_outputs": {"choice": ["yes", "no"]}, "engine": {"max_model_len": 100}},
    ),
    "OpenAI chats": (
        [chat_line("a", temperature=0.3), chat_line("b", "a dog"), completion_line("c")],
        {"system": "be brief"},
    ),
    "OpenAI completions": ([completion_line("a", max_tokens=3), completion_line("b", [5, 6])], {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_retry_asks_what_its_parent_asked(form: str, bucket: Bucket, tmp_path: Path, model: Path) -> None:
    """Whatever prompts are made from: the same tokens, parameters and carried columns, from the same model."""
    content, settings = FORMS[form]
    folder = jsonl(tmp_path / "in", content) if isinstance(content, list) else parquet(tmp_path / "in", content)  # type: ignore[arg-type]
    parent = ended(bucket, folder, model, crashed=["a", "b", "c"], **settings)
    assert parent.rejects == []

    child = retried(bucket, parent)

    assert child.rejects == []
    assert asked(child) == asked(parent)
    assert _kept_settings(child.job) == _kept_settings(parent.job)


def _kept_settings(job: ResolvedJob) -> tuple[Any, ...]:
    return (
        job.model_sha256,
        job.tokenizer_sha256,
        job.chat,
        job.system,
        job.chat_template_sha256,
        dict(job.sampling_defaults),
        dict(job.engine),
        job.return_token_ids,
        job.return_logprobs,
        job.eos_token_ids,
        job.operations.max_reject_fraction,
    )


def test_settings_may_differ(bucket: Bucket, tmp_path: Path, model: Path) -> None:
    """What is set is another value in the child, parameter by parameter; rows' own parameters stand over it."""
    parent = ended(bucket, parquet(tmp_path / "in", ROWS), model, crashed=["d", "e"], sampling_params={"top_k": 7})

    child = retried(bucket, parent, "engine_crash", max_tokens=50, sampling_params={"temperature": 0.1}, lease_s=30)

    params = {one[0]: one[2] for one in asked(child)}
    assert {name: params["e"][name] for name in ("top_k", "temperature", "max_tokens")} == {
        "top_k": 7,
        "temperature": 0.1,
        "max_tokens": 50,
    }
    assert params["d"]["max_tokens"] == 8
    assert child.job.operations.lease_s == 30


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"max_tokenz": 5}, "max_tokens"), ({"input": "x"}, "parent's"), ({"temperature": 2}, "unknown"),
     ({"max_tokens": -1}, "max_tokens")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(
    bucket: Bucket, tmp_path: Path, model: Path, changes: dict[str, Any], said: str
) -> None:
    """Unknown names with their near miss, rows of another input, values out of range."""
    parent = ended(bucket, parquet(tmp_path / "in", ROWS), model, crashed=["a"])

    with pytest.raises(InvalidInput, match=said):
        retry_spec(bucket, parent.job.job_id, **changes)


def test_the_same_retry_is_the_same_job(bucket: Bucket, tmp_path: Path, model: Path) -> None:
    """Twice the same: one child. Other codes, other settings, or a rerun of the parent: another."""
    folder = parquet(tmp_path / "in", ROWS)
    parent = ended(bucket, folder, model, crashed=["a", "c"])
    rerun = ended(bucket, folder, model, crashed=["a", "c"], rerun="again")

    def child(of: Ingested, *codes: str, **changes: Any) -> str:
        return submit_spec(bucket, retry_spec(bucket, of.job.job_id, codes, **changes)).job_id

    first = child(parent, "engine_crash")
    others = [child(parent), child(parent, "empty_prompt"), child(parent, "engine_crash", max_tokens=3)]

    assert child(parent, "engine_crash", "engine_crash") == first
    assert len({first, *others, child(rerun, "engine_crash")}) == 5


def test_a_retry_that_was_cut_off_is_done_again(bucket: Bucket, tmp_path: Path, model: Path) -> None:
    """The process ends after the rows were copied, before that was noted: the next attempt makes the same job."""
    parent = ended(bucket, parquet(tmp_path / "in", ROWS), model, crashed=["a", "c"])
    note = f"{keys.job(parent.job.job_id)}/retries"

    def plan(call: Any) -> Fault:
        return Fault(Lost.REQUEST) if call.verb.writes and call.key.endswith(".json") else Fault()

    with pytest.raises(Unavailable):
        retry_spec(FaultyBucket(bucket, plan), parent.job.job_id)
    left = [info.key for info in bucket.list(note)]
    spec = retry_spec(bucket, parent.job.job_id)

    assert len(left) == 1
    assert [info.key for info in bucket.list(note) if info.key.endswith(".parquet")] == left
    assert submit_spec(bucket, spec).job_id == submit_spec(bucket, retry_spec(bucket, parent.job.job_id)).job_id


def test_the_input_must_be_what_it_was(bucket: Bucket, tmp_path: Path, model: Path) -> None:
    """Rows are read again from the input: when it was written anew with other content, that is said."""
    parent = ended(bucket, parquet(tmp_path / "in", ROWS), model, crashed=["a"])
    parquet(tmp_path / "in", {**ROWS, "prompt": ["other"] * 5})

    with pytest.raises(InvalidInput, match="changed after the job was submitted"):
        retry_spec(bucket, parent.job.job_id)


def test_there_must_be_something_to_retry(bucket: Bucket, tmp_path: Path, model: Path) -> None:
    """A job under way, one without rejects, and a code that no row was rejected with."""
    folder = parquet(tmp_path / "in", {"prompt": ["the fox"]})
    going = submit_spec(bucket, JobSpec(input=folder, model=model, rerun="going"))
    whole = ended(bucket, folder, model, crashed=[])
    partly = ended(bucket, parquet(tmp_path / "in2", ROWS), model, crashed=["a"])

    with pytest.raises(Conflict, match="has not ended"):
        retry_spec(bucket, going.job_id)
    with pytest.raises(InvalidInput, match="has no rejects"):
        retry_spec(bucket, whole.job.job_id)
    with pytest.raises(InvalidInput, match="did you mean 'engine_crash'"):
        retry_spec(bucket, partly.job.job_id, ["engine_crsh"])
