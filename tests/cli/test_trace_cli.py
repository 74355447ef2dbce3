from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Cli = Callable[..., Any]


def test_a_trace_says_where_the_time_went(cli: Cli, made: dict[str, Any]) -> None:
    shown = cli("trace", made["run_folder"])
    assert shown.code == 0
    for operator in ("load", "transform", "embed", "upsert"):
        assert operator in shown.out
    values = cli("trace", made["run_folder"], "--json").json()
    assert set(values["busy_seconds"]) >= {"load", "transform", "embed", "upsert"}
    report = json.loads(Path(made["run_folder"], "report.json").read_text())
    assert values["logical_digest"] == report["logical_digest"]


def test_a_trace_exports_to_chrome(cli: Cli, made: dict[str, Any], tmp_path: Path) -> None:
    assert cli("trace", made["run_folder"], "--chrome", tmp_path / "trace.json").code == 0
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    batches = [event for event in events if event["ph"] == "X"]
    assert {event["name"] for event in batches} >= {"load", "transform", "embed", "upsert"}
    assert all(event["dur"] >= 0 and event["ts"] > 0 for event in batches)


def test_what_is_no_run_folder_is_refused(cli: Cli, tmp_path: Path) -> None:
    ended = cli("trace", tmp_path)
    assert ended.code == 2
    assert str(tmp_path) in ended.err
