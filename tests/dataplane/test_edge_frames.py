"""Batches of any type come back equal, over memory and over frames, whatever slice of whatever they are."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from edgeparts import connected, edge, take
from hypothesis import HealthCheck, given, settings

from aaflow.dataplane.edge import Form, Message, frames
from aaflow.dataplane.edge.frames import decode, encode, from_plain, plain_buffers

TYPES: list[tuple[pa.DataType, st.SearchStrategy[object]]] = [
    (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    (pa.float64(), st.floats(allow_nan=False)),
    (pa.bool_(), st.booleans()),
    (pa.null(), st.none()),
    (pa.timestamp("us"), st.integers(0, 2**40)),
    (pa.string(), st.text(max_size=9)),
    (pa.large_string(), st.text(max_size=9)),
    (pa.binary(), st.binary(max_size=9)),
    (pa.binary(4), st.binary(min_size=4, max_size=4)),
    (pa.list_(pa.string()), st.lists(st.text(max_size=3), max_size=3)),
    (pa.list_(pa.float32(), 3), st.lists(st.integers(0, 9), min_size=3, max_size=3)),
    (pa.list_(pa.binary(2), 2), st.lists(st.binary(min_size=2, max_size=2), min_size=2, max_size=2)),
    (pa.list_(pa.list_(pa.int16(), 2), 1), st.sampled_from([[[1, 2]], [[-3, 4]]])),
    (pa.struct([("a", pa.int8()), ("b", pa.string())]), st.sampled_from([{"a": 1, "b": "x"}, {"a": None, "b": ""}])),
    (pa.dictionary(pa.int32(), pa.string()), st.sampled_from(["red", "green", "blue"])),
]


@st.composite
def _batches(draw: st.DrawFn) -> pa.RecordBatch:
    """A slice of a batch of some columns, with and without nulls."""
    chosen = draw(st.lists(st.sampled_from(TYPES), max_size=4))
    count = draw(st.integers(0, 20))
    arrays, fields = [], []
    for number, (kind, values) in enumerate(chosen):
        cells = st.none() | values if draw(st.booleans()) else values
        rows = draw(st.lists(cells, min_size=count, max_size=count))
        array = (
            pa.array(rows, pa.string()).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(rows, kind)
        )
        arrays.append(array)
        fields.append(pa.field(f"column {number}", kind))
    start = draw(st.integers(0, count))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)).slice(
        start, draw(st.integers(0, count - start))
    )


def _by_memory(batch: pa.RecordBatch, how: str) -> pa.RecordBatch:
    """Through a layout whose plain columns are in the stream, stay in memories of their own, or count as large."""
    memories: dict[int, pa.Buffer] = {}

    def locate(buffers: list[pa.Buffer]) -> list[tuple[int, int, int]]:
        places = []
        for buffer in buffers:
            memories[len(memories)] = pa.py_buffer(bytes(3) + buffer.to_pybytes())
            places.append((len(memories) - 1, 3, buffer.size))
        return places

    with mock.patch.object(frames, "_STREAMED_BYTES", 0 if how == "large" else 1 << 40):
        part = encode(batch, locate if how == "in place" else None, apart=True)
    memory = pa.allocate_buffer(64 + part.size)
    part.write(len(memories), np.frombuffer(memory, np.uint8), 64)
    memories[len(memories)] = memory
    return decode(json.loads(json.dumps(part.to_json())), batch.schema, memories.__getitem__)


@given(batch=_batches(), how=st.sampled_from(["stream", "in place", "large"]))
@settings(deadline=None, max_examples=300)
def test_a_batch_is_itself_after_its_layout(batch: pa.RecordBatch, how: str) -> None:
    back = _by_memory(batch, how)
    back.validate(full=True)
    assert back.schema.equals(batch.schema)
    assert back.to_pydict() == batch.to_pydict()
    assert back.num_rows == batch.num_rows


@given(batch=_batches())
@settings(deadline=None, max_examples=200)
def test_plain_buffers_are_cut_to_the_rows(batch: pa.RecordBatch) -> None:
    for column in batch.columns:
        buffers = plain_buffers(column)
        if buffers is not None:
            assert from_plain(column.type, len(column), buffers).to_pylist() == column.to_pylist()


ALL = pa.schema([(str(number), kind) for number, (kind, _) in enumerate(TYPES)])


@st.composite
def _batches_of_all(draw: st.DrawFn) -> pa.RecordBatch:
    """A slice of a batch with a column of every type; its cells repeat, so that it may be long."""
    seeds = [draw(st.lists(values, min_size=1, max_size=3)) for _, values in TYPES]
    count = draw(st.sampled_from([0, 1, 50, 20_000]))
    hole = draw(st.sampled_from([[], [None]]))
    arrays = []
    for (kind, _), cells in zip(TYPES, seeds, strict=True):
        dictionary = pa.types.is_dictionary(kind)
        column = pa.array([*cells, *hole], pa.string() if dictionary else kind)
        column = column.take(pa.array(np.arange(count) % len(column)))
        arrays.append(column.dictionary_encode() if dictionary else column)
    start = draw(st.integers(0, count))
    return pa.RecordBatch.from_arrays(arrays, schema=ALL).slice(start)


@pytest.mark.parametrize(
    ("form", "large"),
    [(Form.SHARED_MEMORY, 8 << 20), (Form.SHARED_MEMORY, 0), (Form.SOCKET, 8 << 20), (Form.SOCKET, 0)],
    ids=["shared memory", "shared memory, all columns large", "socket", "socket, all columns large"],
)
def test_batches_of_every_type_pass_an_edge(
    tmp_path: Path, form: Form, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "_STREAMED_BYTES", large)
    with connected(tmp_path, edge(ALL, size=256 << 10), form) as (sender, receiver, *_):

        @given(batch=_batches_of_all())
        @settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
        def passes(batch: pa.RecordBatch) -> None:
            sender.send(Message(b"", (batch,)))
            back = take(receiver).batches[0]
            assert back.schema.equals(ALL)
            back.validate(full=True)
            assert back.equals(batch)

        passes()
