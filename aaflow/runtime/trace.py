"""Trace: what every operator of a rank did with every batch, as Arrow; its logical part has a digest."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from aaflow.operators.operator import Item, StreamFunction

#: One row per batch that an operator gave out. ``start``, ``end``: nanoseconds of the machine's clock; ``wait``: how
#: long the operator waited for its input meanwhile, ``blocked`` how long for room in the next queue.
TRACE = pa.schema(
    [
        ("stage", pa.string()),
        ("rank", pa.int32()),
        ("operator", pa.string()),
        ("tranche", pa.int32()),
        ("partition", pa.int32()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("wait", pa.int64()),
        ("blocked", pa.int64()),
        ("rows", pa.int64()),
        ("bytes", pa.int64()),
    ]
)


class OperatorTrace:
    """Records the batches of one operator; one thread writes it.

    Attributes:
        operator: its name.
        rows: rows that it gave so far.
        ended: whether it gave its last.
        setup: seconds from its start until it asked for its first input: loading a model, say. They belong to no
            batch; 0 for an operator that asks for none.
    """

    def __init__(self, operator: str) -> None:
        self.operator = operator
        self.setup = 0.0
        self._start = 0
        self._asked = False
        self._rows: list[tuple[int, int, int, int, int, int, int, int]] = []
        self._waited = 0
        self._blocked = 0
        self.rows = 0
        self.ended = False

    def incoming(self, items: Iterable[Item]) -> Iterator[Item]:
        """Pass items on and count the time spent waiting for them."""
        source = iter(items)
        while True:
            before = time.time_ns()
            if not self._asked:
                self._asked = True
                self.setup = (before - self._start) / 1e9
                self._start = before
            item = next(source, None)
            self._waited += time.time_ns() - before
            if item is None:
                return
            yield item

    def record(self, function: StreamFunction, items: Iterable[Item]) -> Iterator[Item]:
        """Run an operator over items and note each batch it gives."""
        self._start = time.time_ns()
        for item in function(self.incoming(items)):
            end = time.time_ns()
            if item.rows is not None:
                rows, size = item.rows.num_rows, item.rows.nbytes
                self.rows += rows
                waited = min(self._waited, end - self._start)  # an operator may read ahead while it works
                self._rows.append((item.tranche, item.partition, self._start, end, waited, self._blocked, rows, size))
                self._waited = self._blocked = 0
                self._start = end
            yield item
            self._blocked += time.time_ns() - end
            if item.rows is not None:
                self._start = time.time_ns()
        self.ended = True

    def count_blocked(self, nanoseconds: int) -> None:
        """The operator waited for room while it worked on a batch: for memory of the edge that its rows go to."""
        self._blocked += nanoseconds
        self._start += nanoseconds  # what a batch is blocked for lies before its start

    def table(self, stage: str, rank: int) -> pa.Table:
        """The rows of :data:`TRACE`."""
        count = len(self._rows)
        columns = list(zip(*self._rows)) if count else [()] * 8  # noqa: B905 - rows are tuples of one length
        tranche, partition, start, end, wait, blocked, rows, size = columns
        named = [
            [stage] * count,
            [rank] * count,
            [self.operator] * count,
            tranche,
            partition,
            start,
            end,
            wait,
            blocked,
        ]
        return pa.table([pa.array(column) for column in (*named, rows, size)], names=TRACE.names).cast(TRACE)


def write_trace(path: Path, traces: Iterable[OperatorTrace], stage: str, rank: int) -> None:
    """Write the trace of one rank as an Arrow file."""
    table = pa.concat_tables([trace.table(stage, rank) for trace in traces])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, TRACE) as writer:
        writer.write_table(table)


def read_trace(folder: Path) -> pa.Table:
    """The trace of a run, all ranks, by start."""
    tables = [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in sorted(folder.glob("*.arrow"))]
    table = pa.concat_tables(tables) if tables else TRACE.empty_table()
    return table.sort_by([("start", "ascending"), ("operator", "ascending"), ("rank", "ascending")])


def logical_digest(trace: pa.Table) -> str:
    """SHA-256 of what was done, times left out: batches and rows of every operator, tranche and partition.

    Equal for runs of one plan that did the same work.
    """
    grouped = trace.group_by(["operator", "tranche", "partition"]).aggregate([("rows", "sum"), ("rows", "count")])
    ordered = grouped.sort_by([(name, "ascending") for name in ("operator", "tranche", "partition")])
    return hashlib.sha256(json.dumps(ordered.to_pydict(), sort_keys=True).encode()).hexdigest()


def to_chrome(trace: pa.Table) -> str:
    """The trace as JSON that Perfetto and chrome://tracing read: a process per rank, a thread per operator."""
    events: list[dict[str, object]] = []
    threads: dict[tuple[str, int, str], int] = {}
    for row in trace.to_pylist():
        key = (row["stage"], row["rank"], row["operator"])
        thread = threads.setdefault(key, len(threads) + 1)
        events.append(
            {
                "name": row["operator"],
                "cat": row["stage"],
                "ph": "X",
                "ts": row["start"] / 1000,
                "dur": (row["end"] - row["start"]) / 1000,
                "pid": f"{row['stage']} rank {row['rank']}",
                "tid": thread,
                "args": {name: row[name] for name in ("tranche", "partition", "rows", "bytes")}
                | {"wait_us": row["wait"] / 1000, "blocked_us": row["blocked"] / 1000},
            }
        )
    for (stage, rank, operator), thread in threads.items():
        named = {
            "name": "thread_name",
            "ph": "M",
            "pid": f"{stage} rank {rank}",
            "tid": thread,
            "args": {"name": operator},
        }
        events.append(named)
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})


def busy_seconds(trace: pa.Table) -> dict[str, float]:
    """Seconds that every operator computed, summed over ranks: duration of its batches minus what it waited."""
    busy = pc.subtract(pc.subtract(trace["end"], trace["start"]), trace["wait"])
    grouped = pa.table({"operator": trace["operator"], "busy": busy}).group_by("operator").aggregate([("busy", "sum")])
    return {row["operator"]: row["busy_sum"] / 1e9 for row in grouped.to_pylist()}
