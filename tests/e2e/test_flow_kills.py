"""SIGKILL of what stands around a job: the flow run, Prefect's server, the job's controller, and everything at once.
Rows are an undisturbed run's afterwards, and nothing is left running. (Machines, agents, workers: test_fleet_kills.)"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.support.flow_site import FlowSite, flow_site, rows, until

pytestmark = pytest.mark.timeout(900)

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
ROWS = 120


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlowSite]:
    with flow_site(tmp_path_factory.mktemp("flow-kills")) as site:
        yield site


@pytest.fixture(scope="module")
def expected(site: FlowSite) -> dict[str, str]:
    """The texts of an undisturbed run of the same input, its store named by a block."""
    run = start(site, "calm", store=site.save_block("site"))
    assert site.prefect.until(run, ENDED)["state_name"] == "Completed"
    return site.texts(site.job("calm"))


def start(site: FlowSite, name: str, **more: str) -> str:
    """A batch over the same file as all others, as a job of its own; its flow run."""
    settings = site.settings()
    return site.prefect.run(
        "shuntserve-batch/batch",
        input=site.write("rows", rows(ROWS, 100)),
        model=settings.pop("model"),
        name=name,
        settings=settings,
        rerun=name,
        **more,
    )


def under_way(site: FlowSite, name: str) -> str:
    """Wait until some of the job's output is durable and more is coming; its id."""
    job = site.job(name)
    until("output under way", lambda: site.generating(job))
    return job


def kill(processes: list[psutil.Process]) -> None:
    assert processes, "there is nothing to kill"
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def test_a_killed_flow_run_takes_its_job_up_again(site: FlowSite, expected: dict[str, str]) -> None:
    """The run's process is killed, its controller too: Prefect calls the run crashed, the automation schedules it
    again, and the same run, on the same job, starts another controller and ends well."""
    run = start(site, "flow")
    job = under_way(site, "flow")

    kill([*site.prefect.flow_processes(run), *site.processes(f"controller {job}")])
    ended = site.prefect.until(run, ("COMPLETED", "FAILED"))

    assert ended["state_name"] == "Completed"
    assert ended["run_count"] >= 2
    assert site.jobs("flow") == [job]
    assert site.texts(job) == expected
    assert until("no process left", lambda: not site.processes())


def test_prefect_s_server_may_be_away_while_a_job_runs(site: FlowSite, expected: dict[str, str]) -> None:
    """The server is killed in the middle of a job and comes back after the job has generated everything: production
    went on, and the flow run that watched ends well."""
    run = start(site, "server")
    job = under_way(site, "server")
    watching = site.prefect.flow_processes(run)

    site.prefect.kill_server()
    until("all output without a server", lambda: site.status(job)["state"] == "COMPLETED")
    time.sleep(5)
    site.prefect.start_server()
    ended = site.prefect.until(run, ("COMPLETED", "FAILED"))

    assert watching
    assert ended["state_name"] == "Completed"
    assert site.texts(job) == expected
    assert until("no process left", lambda: not site.processes())


def test_everything_at_once_and_a_rerun(site: FlowSite, expected: dict[str, str]) -> None:
    """Server, worker, flow runs, controllers, machines, agents, job workers and engines of two jobs are killed in one
    moment. Server and worker are started again: running the first batch again finds its job and ends it; the other
    job, which nobody runs again, is taken up without being asked for. Each row is there once, as undisturbed."""
    start(site, "everything")
    start(site, "orphan")
    jobs = [under_way(site, name) for name in ("everything", "orphan")]

    kill([*site.processes(), *site.prefect.processes()])
    survivors = site.processes()
    site.prefect.start_server()
    site.start_worker()
    rerun = start(site, "everything")
    ended = site.prefect.until(rerun, ENDED)
    until("the orphan's end", lambda: site.status(jobs[1])["state"] == "COMPLETED", timeout_s=420)

    assert survivors == []
    assert ended["state_name"] == "Completed"
    assert site.jobs("everything") == jobs[:1]
    assert [site.texts(job) for job in jobs] == [expected, expected]
    assert until("no process left", lambda: not site.processes())
