"""Refreshing the catalogue from EC2, against moto's server."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from shuntserve.catalog import load_catalog
from shuntserve.errors import InvalidInput
from shuntserve.fleet.catalog_refresh import Refreshed, read_ec2, write_refreshed

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """EC2 on the loopback."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def refreshed(endpoint: str) -> Refreshed:
    """One refresh of one Region."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_MAX_ATTEMPTS", "1"),
        ):
            patch.setenv(name, value)
        return read_ec2(["us-east-1"], load_catalog(), now=NOW, endpoint_url=endpoint)


def test_types_that_ec2_describes_agree_with_the_shipped_table(refreshed: Refreshed, tmp_path: Path) -> None:
    """GPUs, their number, link, vCPUs, memory and network come out of EC2 as they are shipped, and prices stay."""
    write_refreshed(tmp_path, refreshed)
    mine, shipped = load_catalog(tmp_path), load_catalog()
    described = {row["instance_type"] for row in refreshed.instances}

    assert {"g4dn.xlarge", "g5.12xlarge", "g6.12xlarge", "g6e.xlarge", "p4d.24xlarge", "p5.48xlarge"} <= described
    for name in sorted(described & set(shipped.instances)):
        before, after = shipped.instances[name], mine.instances[name]
        assert (after.gpu, after.link, after.vcpus) == (before.gpu, before.link, before.vcpus), name
        assert after.memory_bytes == pytest.approx(before.memory_bytes), name
        assert after.network_bytes_per_s == pytest.approx(before.network_bytes_per_s, rel=0.01), name
        assert after.ondemand_usd_per_h == before.ondemand_usd_per_h, name


def test_a_gpu_that_is_not_known_is_left_out_by_name(refreshed: Refreshed) -> None:
    """The ARM machines' T4g is no T4: the type is noted, not guessed."""
    assert any("g5g.xlarge" in note and "T4g" in note for note in refreshed.notes)
    assert not any(row["instance_type"].startswith("g5g") for row in refreshed.instances)


def test_the_newest_price_of_each_zone_is_kept(refreshed: Refreshed, tmp_path: Path) -> None:
    """One row per type and zone, with its source; the catalogue answers with it."""
    keys = [(row["instance_type"], row["zone"]) for row in refreshed.zone_prices]
    write_refreshed(tmp_path, refreshed)

    assert keys
    assert len(set(keys)) == len(keys)
    assert all("DescribeSpotPriceHistory" in row["source"] for row in refreshed.zone_prices)
    name, zone = keys[0]
    assert load_catalog(tmp_path).spot_usd_per_h(name, zone) == float(refreshed.zone_prices[0]["usd_per_h"])


def test_placement_scores_that_are_refused_are_only_a_note(refreshed: Refreshed) -> None:
    """An account (or moto) that may not ask for scores still gets types and prices."""
    assert any(note.startswith("no placement scores") for note in refreshed.notes)


def test_tables_are_replaced_whole(refreshed: Refreshed, tmp_path: Path) -> None:
    """No partial file stays, and what was written can be read by anyone."""
    (tmp_path / "instances.csv").write_text("old")

    paths = write_refreshed(tmp_path, refreshed)

    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    with (tmp_path / "instances.csv").open(newline="") as handle:
        assert len(list(csv.DictReader(handle))) == len(refreshed.instances)


def test_no_region_is_an_error_that_says_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a Region nothing is asked of EC2."""
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))

    with pytest.raises(InvalidInput, match="AWS_REGION"):
        read_ec2([None], load_catalog(), now=NOW)
