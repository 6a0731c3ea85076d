"""The bench measures what it says, on a fleet that answers."""

from __future__ import annotations

import json

import pytest

from autoscaler.main import main


def test_the_bench_reads_every_replica_and_prints_its_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "scrape", "--quick", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows["replicas that answered in the last look"]["value"] == 200
    assert rows["times faster than prometheus_client's parser"]["goal"] == 20
    assert rows["cores for 1 000 replicas every 10 s, measured on 200"]["value"] > 0
    assert rows["memory of the process, at most"]["value"] > 0


def test_the_bench_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 0
    assert "scrape" in capsys.readouterr().out
