"""`shuntserve run` and its neighbours as processes: interrupted, repeated, limited, cancelled. (Kills: test_kills.)"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from shuntserve.job.run import KILL_AFTER_S
from tests.support.command import CRASH_TEXT, CRASH_TOKEN, Workplace, prompts, wait_for

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    place = Workplace(tmp_path)
    place.write(prompts(40))
    return place


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The texts of an undisturbed run of the same input."""
    place = Workplace(tmp_path_factory.mktemp("undisturbed"))
    place.write(prompts(40))
    assert place.call(*place.run_arguments()).exit_code == 0
    return place.texts()


def test_a_run_answers_every_row_and_a_second_one_has_nothing_to_do(place: Workplace) -> None:
    """Parquet in, Parquet out; the same command again ends at once with the same job and the same summary."""
    first = place.call(*place.run_arguments())
    again = place.call(*place.run_arguments())

    assert (first.exit_code, again.exit_code) == (0, 0)
    assert first.summary["state"] == "COMPLETED"
    assert (first.summary["rows_in"], first.summary["rows_out"], first.summary["rows_rejected"]) == (40, 40, 0)
    assert (first.summary["duplicates"], first.summary["missing"], first.summary["interruptions"]) == (0, 0, 0)
    assert place.texts().keys() == {f"row-{index:03d}" for index in range(40)}
    assert "elapsed_s" in first.summary
    assert {**again.summary, "elapsed_s": 0} == {**first.summary, "elapsed_s": 0}
    assert "worker" not in again.stderr


def test_ctrl_c_drains_and_the_printed_command_continues(place: Workplace, expected: dict[str, str]) -> None:
    """One Ctrl-C: everything generated is kept, nothing stays behind, exit 130; run again, texts are as undisturbed."""
    command = place.start(*place.run_arguments(slow=True))
    place.until_generating()
    command.signal(signal.SIGINT)
    drained = command.wait()
    left = place.processes()
    after = place.snapshot()

    finished = place.call(*place.run_arguments())

    assert drained.exit_code == 130
    assert "Continue with\n  shuntserve run" in drained.stderr
    assert drained.summary["state"] == "PAUSED"
    assert left == []
    assert after is not None
    assert after.tokens_regenerated == 0
    assert all(worker.gone for worker in after.workers)
    assert finished.exit_code == 0
    assert finished.summary["resumed_rows"] > 0
    assert finished.summary["interruptions"] == 0
    assert place.texts() == expected


def test_a_second_ctrl_c_ends_at_once(place: Workplace, expected: dict[str, str]) -> None:
    """Workers that cannot leave (they are stopped) are killed by the second Ctrl-C, long before their grace ends."""
    command = place.start(*place.run_arguments(slow=True))
    place.until_generating()
    for worker in command.running("shuntserve.job.worker_main"):
        worker.suspend()
    command.signal(signal.SIGINT)
    command.signal(signal.SIGTERM)
    ended = command.wait(timeout_s=0.7 * KILL_AFTER_S)

    assert ended.exit_code == 130
    assert wait_for("no process left", lambda: not place.processes())
    assert place.call(*place.run_arguments()).exit_code == 0
    assert place.texts() == expected


def test_kill_9_of_the_command_leaves_nothing_running(place: Workplace, expected: dict[str, str]) -> None:
    """When the command is killed its workers notice, write what they have and leave; run again, it continues."""
    command = place.start(*place.run_arguments(slow=True))
    place.until_generating()
    command.signal(signal.SIGKILL)
    command.wait()

    assert wait_for("no process left", lambda: not place.processes())
    finished = place.call(*place.run_arguments())
    assert finished.summary["resumed_rows"] > 0
    assert place.texts() == expected


def test_two_runs_of_one_job_share_the_work(place: Workplace, expected: dict[str, str]) -> None:
    """The same command twice at the same time: both end well, every row is there once."""
    commands = [place.start(*place.run_arguments(slow=True)) for _ in range(2)]

    ended = [command.wait() for command in commands]

    assert [one.exit_code for one in ended] == [0, 0]
    assert ended[0].summary["job"] == ended[1].summary["job"]
    assert place.texts() == expected


def test_a_row_that_crashes_the_engine_is_the_only_reject(place: Workplace) -> None:
    """One prompt that takes the engine down every time is rejected by itself; its neighbours' texts are as
    undisturbed."""
    rows = prompts(24)
    rows[9]["prompt"] = f"this one {CRASH_TEXT} is poison"
    place.write(rows)
    place.call(*place.run_arguments("--seed=7", "--output=undisturbed"))

    done = place.call(
        *place.run_arguments("--seed=7", "--rerun=crash", "--max-reject-fraction=0.1", crash_token=CRASH_TOKEN)
    )

    assert done.exit_code == 0
    assert place.rejects() == {9: "engine_crash"}
    undisturbed = place.texts("undisturbed")
    assert undisturbed.pop("row-009")
    assert place.texts() == undisturbed
    assert done.summary["interruptions"] >= 2


def test_too_many_bad_rows_pause_the_job_before_any_engine_starts(place: Workplace) -> None:
    """Beyond the reject limit: exit 3, nothing generated, and raising the limit continues the same job."""
    place.write([*prompts(30), {"request_id": "bad", "prompt": ""}, {"request_id": "bad", "prompt": "twice"}])

    paused = place.call(*place.run_arguments())
    workers_started = (place.directory / "data/shuntserve/logs").exists()
    status = place.call("status", paused.summary["job"], "--json")
    listed = place.call("rows", "rejected", paused.summary["job"], "--json")
    accepted = place.call(*place.run_arguments("--max-reject-fraction=0.1"))
    judged = place.call(*place.run_arguments())

    assert paused.exit_code == 3
    assert (paused.summary["state"], paused.summary["paused_by"]) == ("PAUSED", "rejects")
    assert "--max-reject-fraction" in paused.stderr
    assert not workers_started
    assert json.loads(status.stdout)["state"] == "PAUSED"
    assert [json.loads(line)["code"] for line in listed.stdout.splitlines()] == ["empty_prompt", "duplicate_id"]
    assert accepted.exit_code == 0
    assert accepted.summary["state"] == "COMPLETED_WITH_REJECTS"
    assert accepted.summary["job"] == paused.summary["job"]
    assert judged.exit_code == 3


def test_too_many_cut_off_outputs_pause_the_job(place: Workplace) -> None:
    """When max_tokens cuts off more outputs than allowed the run drains early; allowing it continues the job."""
    place.write(prompts(300, max_tokens=30))

    paused = place.call(*place.run_arguments("--max-length-finish-fraction=0.2", slow=True))
    finished = place.call(*place.run_arguments())

    assert paused.exit_code == 3
    assert paused.summary["paused_by"] == "length"
    assert paused.summary["rows_ended"] < 300
    assert finished.exit_code == 0
    assert finished.summary["rows_out"] == 300


def test_a_deadline_ends_the_job_with_what_it_has(place: Workplace) -> None:
    """At the deadline unfinished rows become rejects with their partial output; exit 5, state PARTIAL."""
    place.write(prompts(40, max_tokens=1000))

    done = place.call(*place.run_arguments("--deadline=8s", slow=True))

    assert done.exit_code == 5
    assert done.summary["state"] == "PARTIAL"
    assert set(place.rejects().values()) == {"deadline"}
    assert done.summary["rows_out"] + done.summary["rows_rejected"] == 40


def test_cancel_from_another_terminal_ends_the_run(place: Workplace) -> None:
    """`cancel` while a run works: both end, finished rows are in data, the others in rejects with what they had."""
    place.write(prompts(40, max_tokens=400))
    command = place.start(*place.run_arguments(slow=True))
    place.until_generating()
    (job_id,) = (path.name for path in (place.directory / "store/jobs").iterdir())

    cancelled = place.call("cancel", job_id, "--json")
    run = command.wait()

    assert run.exit_code == 1
    assert cancelled.summary["state"] == run.summary["state"] == "PARTIAL"
    partial = pq.read_table(place.directory / "out/rejects").to_pylist()
    assert {row["code"] for row in partial} == {"cancelled"}
    assert any(row["output_text"] for row in partial)
    assert cancelled.summary["rows_out"] + cancelled.summary["rows_rejected"] == 40
    assert wait_for("no process left", lambda: not place.processes())


def test_cancel_of_a_job_nobody_runs_writes_its_output(place: Workplace) -> None:
    """A drained job can be cancelled without an engine; what was finished before is readable."""
    command = place.start(*place.run_arguments(slow=True))
    place.until_generating()
    command.signal(signal.SIGINT)
    paused = command.wait()

    cancelled = place.call("cancel", paused.summary["job"], "--json")

    assert cancelled.exit_code == 0
    assert cancelled.summary["state"] == "PARTIAL"
    assert cancelled.summary["rows_out"] + cancelled.summary["rows_rejected"] == 40


def test_rows_show_tells_what_became_of_a_row(place: Workplace) -> None:
    """Source, the prompt as the model saw it, parameters, attempts and outcome; for a reject the reason."""
    place.write([*prompts(10), {"request_id": "bad", "prompt": ""}])
    job_id = place.call(*place.run_arguments("--max-reject-fraction=1")).summary["job"]

    answered = json.loads(place.call("rows", "show", job_id, "row-003", "--json").stdout)
    by_place = json.loads(place.call("rows", "show", job_id, "prompts.parquet:3", "--json").stdout)
    refused = place.call("rows", "show", job_id, "bad")
    unknown = place.call("rows", "show", job_id, "nobody")

    assert by_place == answered
    assert answered["prompt"] == "tell me about river 3"
    assert answered["params"]["max_tokens"] == 60
    assert answered["samples"][0]["text"] == place.texts()["row-003"]
    assert len(answered["attempts"]) == 1
    assert "empty_prompt" in refused.stdout
    assert unknown.exit_code == 2
    assert "row nobody" in unknown.stderr


def test_an_openai_batch_is_answered_in_kind(place: Workplace) -> None:
    """JSONL in, JSONL out: custom ids kept, bad lines in the error file, nothing missing."""
    lines = [
        {
            "custom_id": f"q{index}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "m", "messages": [{"role": "user", "content": f"hello {index}"}], "max_tokens": 20},
        }
        for index in range(10)
    ]
    lines[4]["body"]["messages"] = []  # type: ignore[index]
    (place.directory / "batch.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    done = place.call(*place.run_arguments("batch.jsonl", "--max-reject-fraction=1"))

    out = [json.loads(line) for line in (place.directory / "out/output.jsonl").read_text().splitlines()]
    errors = [json.loads(line) for line in (place.directory / "out/errors.jsonl").read_text().splitlines()]
    assert done.exit_code == 0
    assert {line["custom_id"] for line in out} == {f"q{index}" for index in range(10)} - {"q4"}
    assert [line["custom_id"] for line in errors] == ["q4"]
    assert all(line["response"]["body"]["model"] == "m" for line in out)
    assert all(line["response"]["body"]["choices"][0]["message"]["content"] for line in out)


def test_the_output_of_another_job_is_not_touched(place: Workplace) -> None:
    """A second job into the same output is refused; --overwrite replaces it whole."""
    place.call(*place.run_arguments())
    before = place.texts()
    place.write(prompts(5), "other.parquet")

    refused = place.call(*place.run_arguments("other.parquet"))
    kept = place.texts()
    replaced = place.call(*place.run_arguments("other.parquet", "--overwrite"))

    assert refused.exit_code == 2
    assert "--overwrite" in refused.stderr
    assert kept == before
    assert replaced.exit_code == 0
    assert len(place.texts()) == 5
