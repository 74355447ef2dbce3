"""Tables of more than 2 GiB, with a column whose offsets have 32 bits: ``large_program.py OPERATION WINDOW_BYTES``."""

from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa

from aaflow.dataplane.mpi import MpiCommunicator

ROWS, LENGTH = 1150, 1 << 20


def chunk(mark: str) -> pa.Array:
    """More than 1 GiB of binaries, each with two marks; pages of zeros that were never written are no memory."""
    offsets = np.arange(ROWS + 1, dtype=np.int32) * LENGTH
    values = np.zeros(ROWS * LENGTH, np.uint8)
    values[:: LENGTH // 2] = ord(mark)
    return pa.Array.from_buffers(pa.binary(), ROWS, [None, pa.py_buffer(offsets), pa.py_buffer(values)])


def table_of(marks: str) -> pa.Table:
    return pa.table(
        {"text": pa.chunked_array(list(map(chunk, marks)), pa.binary()), "row": np.arange(ROWS * len(marks))}
    )


def check(got: pa.Table, marks: str) -> None:
    """All rows of the chunks with these marks, one after another."""
    assert len(got) == ROWS * len(marks)
    seen = ""
    for part in got["text"].chunks:
        data = np.frombuffer(part.buffers()[2], np.uint8)
        starts = np.frombuffer(part.buffers()[1], np.int32)[part.offset :][: len(part) + 1]
        assert (np.diff(starts) == LENGTH).all()
        rows = data[starts[0] : starts[-1]].reshape(len(part), 2, LENGTH // 2)
        assert (rows[:, 0, 0] == rows[:, 1, 0]).all()
        assert not rows[:, :, 1].any()
        seen += rows[:, 0, 0].tobytes().decode()
    assert seen == "".join(mark * ROWS for mark in marks)


#: What each rank gives.
GIVEN = ["", "ab"]


def shuffle(comm: MpiCommunicator) -> None:
    got = comm.shuffle(table_of("ab"[comm.rank]), np.zeros(ROWS, np.int32))
    if comm.rank == 0:
        check(got, "ab")
        assert got["row"].to_numpy().tolist() == [*range(ROWS)] * comm.size
    else:
        assert got.num_rows == 0


def broadcast(comm: MpiCommunicator) -> None:
    check(comm.broadcast(table_of("ab") if comm.rank == 0 else None), "ab")


def gather(comm: MpiCommunicator) -> None:
    gathered = comm.gather(table_of(GIVEN[comm.rank]))
    for got, marks in zip(gathered or [], GIVEN, strict=comm.rank == 0):
        check(got, marks)


def all_gather(comm: MpiCommunicator) -> None:
    for got, marks in zip(comm.all_gather(table_of(GIVEN[comm.rank])), GIVEN, strict=True):
        check(got, marks)


def reduce_topk(comm: MpiCommunicator) -> None:
    got = comm.reduce_topk(table_of(["ab", "cd"][comm.rank]), 3, [("row", "descending")])
    if got is not None:
        assert got["row"].to_pylist() == [2 * ROWS - 1, 2 * ROWS - 1, 2 * ROWS - 2]
        assert [value.as_buffer()[:1].to_pybytes() for value in got["text"]] == [b"b", b"d", b"b"]


if __name__ == "__main__":
    globals()[sys.argv[1]](MpiCommunicator(window_bytes=int(sys.argv[2])))
