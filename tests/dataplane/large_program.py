"""More than 2 GiB to one rank, of a column whose offsets have 32 bits: ``large_program.py WINDOW_BYTES``."""

from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa

from aaflow.dataplane.mpi import MpiCommunicator

ROWS, LENGTH = 1150, 1 << 20

comm = MpiCommunicator(window_bytes=int(sys.argv[1]))
offsets = np.arange(ROWS + 1, dtype=np.int32) * LENGTH
# Pages of zeros that were never written are no memory of their own.
values = np.zeros(ROWS * LENGTH, np.uint8)
values[:: LENGTH // 2] = ord("a") + comm.rank
text = pa.Array.from_buffers(pa.binary(), ROWS, [None, pa.py_buffer(offsets), pa.py_buffer(values)])
table = pa.table({"text": text, "row": np.arange(ROWS)})
got = comm.shuffle(table, np.zeros(ROWS, np.int32))
if comm.rank == 0:
    assert got["row"].to_numpy().tolist() == [*range(ROWS)] * comm.size
    for chunk in got["text"].chunks:
        data = np.frombuffer(chunk.buffers()[2], np.uint8)
        starts = np.frombuffer(chunk.buffers()[1], np.int32)
        assert starts.tolist() == [LENGTH * row for row in range(len(chunk) + 1)]
        marks = data[:: LENGTH // 2]
        assert (marks[0] == marks).all()
        assert not data[1 :: LENGTH // 2].any()
    assert got["text"].nbytes > 2**31
    firsts = [chunk[0].as_py()[0] for chunk in got["text"].chunks]
    assert firsts == sorted(firsts)
    assert set(firsts) == {ord("a"), ord("b")}
else:
    assert got.num_rows == 0
