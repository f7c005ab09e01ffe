"""Names of every object in the bucket (design section 4); nothing else spells a key.

Numbers are zero-padded so that lexicographic order is numeric order.
"""

from __future__ import annotations

CHUNKS_PER_PAGE = 10_000


def chunk_id(index: int) -> str:
    """Name of the chunk with this index in its job's manifest."""
    return f"{index:08d}"


def page_id(index: int) -> str:
    """Name of a manifest page; a page holds `CHUNKS_PER_PAGE` chunks."""
    return f"{index:05d}"


def page_of(chunk: str) -> str:
    """The page a chunk belongs to."""
    return page_id(int(chunk) // CHUNKS_PER_PAGE)


def job(job_id: str) -> str:
    return f"jobs/{job_id}"


def spec(job_id: str) -> str:
    return f"jobs/{job_id}/spec.json"


def chunk(job_id: str, attempt: str, chunk: str) -> str:
    return f"jobs/{job_id}/chunks/{attempt}/{chunk}.parquet"


def ingest_rejects(job_id: str, attempt: str, n: int) -> str:
    return f"jobs/{job_id}/rejects/{attempt}/{n:06d}.parquet"


def manifest_page(job_id: str, attempt: str, page: str) -> str:
    return f"jobs/{job_id}/manifest/{attempt}/{page}.json"


def manifest(job_id: str) -> str:
    return f"jobs/{job_id}/manifest.json"


def workers(job_id: str) -> str:
    return f"jobs/{job_id}/workers"


def worker(job_id: str, incarnation: str) -> str:
    return f"jobs/{job_id}/workers/{incarnation}.json"


def claims_page(job_id: str, page: str) -> str:
    return f"jobs/{job_id}/claims/{page}"


def claims_chunk(job_id: str, chunk: str) -> str:
    return f"jobs/{job_id}/claims/{page_of(chunk)}/{chunk}"


def claim(job_id: str, chunk: str, epoch: int) -> str:
    return f"{claims_chunk(job_id, chunk)}/{epoch:06d}"


def released(job_id: str, chunk: str, epoch: int) -> str:
    return f"{claim(job_id, chunk, epoch)}.released"


def checkpoints_chunk(job_id: str, chunk: str) -> str:
    return f"jobs/{job_id}/checkpoints/{page_of(chunk)}/{chunk}"


def checkpoint(job_id: str, chunk: str, epoch: int, n: int) -> str:
    return f"{checkpoints_chunk(job_id, chunk)}/{epoch:06d}/{n:06d}"


def results_page(job_id: str, page: str) -> str:
    return f"jobs/{job_id}/results/{page}"


def result(job_id: str, chunk: str) -> str:
    return f"{results_page(job_id, page_of(chunk))}/{chunk}.parquet"


def controllers(job_id: str) -> str:
    return f"jobs/{job_id}/controllers"


def controller(job_id: str, epoch: int) -> str:
    """Which incarnation of a controller acts in this epoch."""
    return f"jobs/{job_id}/controllers/{epoch:06d}"


def controller_pulse(job_id: str, epoch: int) -> str:
    """Its progress counter."""
    return f"{controller(job_id, epoch)}.json"


def proposal(job_id: str) -> str:
    return f"jobs/{job_id}/proposal.json"


def approval(job_id: str, proposal: str) -> str:
    """Somebody's agreement to the proposal with this digest, and to no other."""
    return f"jobs/{job_id}/approvals/{proposal}.json"


def plans(job_id: str) -> str:
    return f"jobs/{job_id}/plans"


def plan(job_id: str, n: int) -> str:
    return f"jobs/{job_id}/plans/{n:06d}.json"


def launches(job_id: str) -> str:
    return f"jobs/{job_id}/launches"


def launch(job_id: str, launch_id: str) -> str:
    return f"jobs/{job_id}/launches/{launch_id}.json"


def launch_ended(job_id: str, launch_id: str) -> str:
    return f"jobs/{job_id}/launches/{launch_id}.ended"


def node(job_id: str, node: str) -> str:
    return f"jobs/{job_id}/nodes/{node}.json"


def rendezvous(job_id: str, pipeline: str, generation: int) -> str:
    """Where the nodes of one formation of a pipeline meet; its leader's agent writes it."""
    return f"jobs/{job_id}/pipelines/{pipeline}/{generation:06d}.json"


def spending(job_id: str) -> str:
    return f"jobs/{job_id}/spending.json"


def control(job_id: str) -> str:
    return f"jobs/{job_id}/control"


def control_entry(job_id: str, n: int) -> str:
    return f"jobs/{job_id}/control/{n:06d}.json"


def final(job_id: str) -> str:
    return f"jobs/{job_id}/final.json"


def timeline(job_id: str) -> str:
    return f"jobs/{job_id}/timeline"


def timeline_part(job_id: str, writer: str, n: int) -> str:
    return f"jobs/{job_id}/timeline/{writer}/{n:06d}.json"


def report(job_id: str, form: str) -> str:
    """`form`: json or html."""
    return f"jobs/{job_id}/report.{form}"


INBOX = "inbox"
SUBMISSIONS = "submissions"
SUBMISSIONS_CLOCK = "submissions/.clock"


def submission_record(name: str, number: int) -> str:
    return f"submissions/{name}/{number:04d}/record.json"


def submission_job(name: str, number: int) -> str:
    return f"submissions/{name}/{number:04d}/job.json"


def submission_refused(name: str, number: int) -> str:
    return f"submissions/{name}/{number:04d}/refused.json"


def upload_refused(name: str, fingerprint: str) -> str:
    return f"submissions/{name}/refused/{fingerprint}.json"


def upload_seen(name: str, fingerprint: str) -> str:
    return f"submissions/{name}/seen/{fingerprint}.json"


def submitted_identity(identity: str) -> str:
    return f"identities/{identity}.json"


def retry_folder(job_id: str, retry: str) -> str:
    """Rows of the job that another one runs again; `retry` names the choice of rows."""
    return f"jobs/{job_id}/retries/{retry}"


def retry(job_id: str, retry: str) -> str:
    return f"jobs/{job_id}/retries/{retry}.json"
