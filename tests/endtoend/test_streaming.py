"""Stages as concurrent task groups: which form an edge takes, how memory stays bounded, who is blamed for a failure."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

import aaflow
from aaflow.errors import StageError
from aaflow.pilot import LocalPilot
from aaflow.scheduling.sitefile import load_site

pytestmark = [pytest.mark.serial, pytest.mark.timeout(180)]


class TwoNames(LocalPilot):
    """Starts groups on two host names that are both this machine, as if they were nodes."""

    def start(self, placement: aaflow.Placement, lease: Any) -> None:
        super().start(replace(placement, site=replace(placement.site, nodes=1)), lease)


@pytest.fixture
def two_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> aaflow.Site:
    """A site of two nodes, whose second is this machine under another name."""
    names = tmp_path / "nodes"
    names.write_text("localhost\n127.0.0.1\n")
    monkeypatch.setenv("PBS_NODEFILE", str(names))
    monkeypatch.setenv("HYDRA_LAUNCHER", "fork")  # no ssh to the second name
    return replace(load_site("local"), nodes=2)


def result_of(result: aaflow.RunResult, stage: str, rank: int) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((result.folder / "results" / f"{stage}.{rank}.json").read_text())
    return told


@pytest.mark.parametrize("encrypted", [True, False])
def test_ranks_of_different_nodes_stream_over_sockets(workspace: Any, two_nodes: aaflow.Site, encrypted: bool) -> None:
    reference = workspace.ingest(index="reference", ranks=1)
    site = replace(two_nodes, encrypted_edges=encrypted)
    plan = workspace.compile(index="index", ranks=2, fuse=False, site=site)
    placement = aaflow.place(plan, site)
    apart = {stage: [slot.node for slot in slots] for stage, slots in placement.slots.items()}
    assert set(map(tuple, apart.values())) == {(0, 1)}
    result = aaflow.run(placement, TwoNames(), run_folder=workspace.folder / "runs")
    assert workspace.info("index").digest == workspace.info("reference").digest
    assert result.notices.num_rows == reference.notices.num_rows
    seen = set()
    for stage, slots in placement.slots.items():
        for rank, slot in enumerate(slots):
            for channel in result_of(result, stage, rank)["channels"]:
                peer = placement.slots[channel.get("to") or channel["from"]][channel["rank"]]
                assert channel["form"] == ("shared-memory" if peer.node == slot.node else "socket")
                assert channel["encrypted"] == encrypted
                seen.add(channel["form"])
    assert seen == {"shared-memory", "socket"}
    told = replace(plan, slots=placement.slots).explain()
    assert "shared memory, socket" in told
    assert ("without encryption" in told) == (not encrypted)


@pytest.mark.parametrize("ranks", [{"load": 1, "transform": 3, "embed": 2, "upsert": 1}, {"load": 3, "upsert": 2}])
def test_stages_may_have_different_ranks(ranks: dict[str, int], workspace: Any) -> None:
    workspace.ingest(index="reference", ranks=1)
    results = [workspace.ingest(index=f"index{n}", ranks=ranks, fuse=False) for n in range(2)]
    assert workspace.info("index0").digest == workspace.info("reference").digest
    assert results[0].logical_digest == results[1].logical_digest


SLOW = """
import time

def slowly(rows):
    time.sleep(0.2)
    return rows

def quickly(rows):
    return rows
"""


def test_a_slow_stage_holds_the_ones_before_it_back(tmp_path: Path, user_module: Callable[[str], str]) -> None:
    """It is busy all the time while its neighbours wait, and four times the corpus takes no more memory anywhere."""
    module = user_module(SLOW)
    peaks = {}
    for rows in (20_000, 80_000):  # 40 MB and 160 MB
        path = tmp_path / f"{rows}.jsonl"
        path.write_text("".join(json.dumps({"text": f"{n} " + "word " * 400}) + "\n" for n in range(rows)))
        workflow = aaflow.Workflow()
        slow = workflow.load(path).apply(f"{module}:slowly", name="slow")
        slow.apply(f"{module}:quickly", name="after")
        placement = aaflow.place(aaflow.compile(workflow, site="local", ranks=1, fuse=False), "local")
        result = aaflow.run(placement, "local", run_folder=tmp_path / "runs")
        assert result.output().num_rows == rows
        peaks[rows] = {name: result_of(result, name, 0)["peak_mebibytes"] for name in ("load", "slow", "after")}
    # Less than half of what more came; what libc keeps grows for a while.
    grown = {name: peak - peaks[20_000][name] for name, peak in peaks[80_000].items()}
    assert all(growth < 50 for growth in grown.values()), peaks
    seconds = {name: times_of(result.trace(), name) for name in ("load", "slow", "after")}
    span = seconds["slow"]["span"]
    assert span > 10
    assert seconds["slow"]["span"] - seconds["slow"]["wait"] - seconds["slow"]["blocked"] > 0.7 * span, seconds
    assert seconds["load"]["blocked"] > 0.5 * span, seconds
    assert seconds["after"]["wait"] > 0.7 * span, seconds


def times_of(trace: pa.Table, operator: str) -> dict[str, float]:
    """Seconds from an operator's first batch to its last, and of them what it waited and was blocked."""
    rows = trace.filter(pc.equal(trace["operator"], operator))
    span = pc.max(rows["end"]).as_py() - pc.min(rows["start"]).as_py()
    return {"span": span / 1e9, **{name: pc.sum(rows[name]).as_py() / 1e9 for name in ("wait", "blocked")}}


def test_operators_that_wait_for_more_rows_leave_the_edges_their_buffers(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for number in range(60):  # a message each, far more than an edge has buffers, in one window of embed
        (tmp_path / "docs" / f"{number}.txt").write_text(f"{number} speaks of things. " * 1500)
    workflow = aaflow.Workflow()
    chunks = workflow.load(tmp_path / "docs").transform(size=1500)
    chunks.embed("hash", dimension=64).upsert(tmp_path / "index", partitions=2)
    placement = aaflow.place(aaflow.compile(workflow, site="local", ranks=1, fuse=False), "local")
    aaflow.run(placement, "local", run_folder=tmp_path / "runs")
    with aaflow.open_index(tmp_path / "index") as index:
        assert index.info().documents == 60


STALL = """
import time

def stall(rows):
    time.sleep(8)
    return rows
"""


def test_a_stage_that_waits_sleeps(tmp_path: Path, user_module: Callable[[str], str]) -> None:
    (tmp_path / "one.txt").write_text("one document")
    workflow = aaflow.Workflow()
    stalled = workflow.load(tmp_path / "one.txt").apply(f"{user_module(STALL)}:stall", name="stall")
    stalled.transform(name="idle")
    placement = aaflow.place(aaflow.compile(workflow, site="local", ranks=2, fuse=False), "local")
    result = aaflow.run(placement, "local", run_folder=tmp_path / "runs")
    told = [result_of(result, "idle", rank) for rank in range(2)]
    seconds, used = max((each["ended"] - each["ready"], each["cpu"]) for each in told)
    assert seconds > 7
    assert used < 0.02 * seconds


BROKEN = """
def broken(rows):
    raise ValueError("not to my taste")
"""


def test_the_stage_that_failed_is_blamed_and_not_its_neighbours(
    workspace: Any, user_module: Callable[[str], str]
) -> None:
    workflow = aaflow.Workflow()
    chunks = workflow.load(workspace.docs).transform().apply(f"{user_module(BROKEN)}:broken", name="picky")
    chunks.embed("hash", dimension=8).upsert(workspace.folder / "index")
    placement = aaflow.place(aaflow.compile(workflow, site="local", ranks=2, fuse=False), "local")
    with pytest.raises(StageError, match=r"stage 'picky' failed on rank .*not to my taste"):
        aaflow.run(placement, "local", run_folder=workspace.folder / "runs")
