from __future__ import annotations

import json
import time

import pyarrow as pa

from aaflow.operators.operator import Item
from aaflow.runtime.trace import TRACE, OperatorTrace, busy_seconds, logical_digest, read_trace, to_chrome


def trace(*rows):
    columns = list(zip(*rows, strict=True))
    return pa.table([list(column) for column in columns], schema=TRACE)


ROWS = [
    ("s", 0, "load", 0, 3, 1_000, 5_000, 1_000, 0, 10, 100),
    ("s", 1, "load", 0, 4, 2_000, 5_000, 0, 0, 20, 200),
    ("s", 0, "embed", 0, 3, 6_000, 9_000, 0, 0, 10, 900),
]


def test_the_logical_digest_leaves_out_time_rank_and_order():
    later = [(s, 1 - r, o, t, p, a + 77, b + 99, w, 5, n, z) for s, r, o, t, p, a, b, w, _, n, z in reversed(ROWS)]
    assert logical_digest(trace(*ROWS)) == logical_digest(trace(*later))


def test_the_logical_digest_sees_another_number_of_rows():
    other = [(*ROWS[0][:9], 11, 100), *ROWS[1:]]
    assert logical_digest(trace(*ROWS)) != logical_digest(trace(*other))


def test_busy_is_duration_without_waiting():
    assert busy_seconds(trace(*ROWS)) == {"load": 6e-6, "embed": 3e-6}


def test_chrome_events_have_microseconds_and_one_thread_per_rank_and_operator():
    events = json.loads(to_chrome(trace(*ROWS)))["traceEvents"]
    complete = [event for event in events if event["ph"] == "X"]
    assert [event["ts"] for event in complete] == [1.0, 2.0, 6.0]
    assert len({event["tid"] for event in complete}) == 3
    assert {event["args"]["name"] for event in events if event["ph"] == "M"} == {"load", "embed"}


def test_a_run_without_a_trace_reads_as_an_empty_one(tmp_path):
    assert read_trace(tmp_path).num_rows == 0


def test_waiting_for_memory_of_an_edge_counts_as_blocked_and_not_as_work():
    operator = OperatorTrace("embed")

    def work(items):
        for item in items:
            before = time.time_ns()
            time.sleep(0.2)
            operator.count_blocked(time.time_ns() - before)
            yield item

    list(operator.record(work, iter([Item(0, 0, pa.record_batch([[1]], ["n"]))])))
    recorded = operator.table("s", 0)
    assert recorded["blocked"][0].as_py() >= 0.2e9
    assert busy_seconds(recorded)["embed"] < 0.1
