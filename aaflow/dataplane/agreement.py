"""Agreement: the ranks of a group find out together whether all of them can do what comes next."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from aaflow.errors import CollectiveError

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")


def agree(comm: MPI.Intracomm, operation: str, schema: pa.Schema | None, prepare: Callable[[], T]) -> T:
    """What ``prepare`` gives here, once it has worked on every rank and all have one schema. Collective.

    Args:
        comm: the ranks.
        operation: what they are about to do together.
        schema: of this rank's table; None where ranks need not have the same.
        prepare: this rank's own work before anything is sent.

    Raises:
        CollectiveError: on every rank, where ``prepare`` raised on one, or schemas or operations differ.
    """
    result: T | None = None
    failure: Exception | None = None
    try:
        result = prepare()
    except Exception as error:
        failure = error
    said = f"{operation}\n{describe(schema)}" if schema is not None else operation
    record = np.zeros(40, np.uint8)
    record[:32] = np.frombuffer(hashlib.sha256(said.encode()).digest(), np.uint8)
    record[32] = failure is not None
    records = np.empty((comm.size, 40), np.uint8)
    wait(comm.Iallgather(record, records))
    if not records[:, 32].any() and (records == record).all():
        return result  # type: ignore[return-value]
    texts = _all_gather_text(comm, str(failure) or repr(failure) if failure is not None else said)
    for rank in np.flatnonzero(records[:, 32]).tolist():
        raise CollectiveError.of(operation, rank, texts[rank]) from failure
    rank = int(np.flatnonzero((records[:, :32] != records[0, :32]).any(axis=1))[0])
    raise CollectiveError(_difference(texts[0], texts[rank], rank), rank=rank)


def wait(request: Any, longest: float = 10e-3) -> None:
    """Wait for an MPI request without spinning: the naps grow with the wait, to ``longest`` seconds."""
    # Ranks that come together need no nap: this is some 10 µs.
    if any(request.Test() for _ in range(40)):
        return
    began = time.monotonic()
    while not request.Test():
        time.sleep(min(max((time.monotonic() - began) / 16, 20e-6), longest))


def describe(schema: pa.Schema) -> str:
    """A schema as text, a line for each field, without metadata: what ranks compare."""
    text: str = schema.to_string(show_field_metadata=False, show_schema_metadata=False)
    return text


def _difference(first: str, other: str, rank: int) -> str:
    """What rank 0 and ``rank`` are about to do differently."""
    ours, theirs = first.split("\n"), other.split("\n")
    if ours[0] != theirs[0]:
        return (
            f"rank 0 is in {ours[0]} and rank {rank} in {theirs[0]}: every rank calls the same operations in one order"
        )
    lines = itertools.zip_longest(ours, theirs, fillvalue="nothing more")
    has = next(pair for pair in lines if pair[0] != pair[1])
    return (
        f"{ours[0]}: rank {rank} can't take part: its table has another schema than rank 0's: "
        f"{has[1]!r} where rank 0 has {has[0]!r}"
    )


def _all_gather_text(comm: MPI.Intracomm, text: str) -> list[str]:
    mine = np.frombuffer(text.encode(), np.uint8)
    sizes = np.empty(comm.size, np.int64)
    wait(comm.Iallgather(np.array([len(mine)], np.int64), sizes))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(mine)] = mine
    every = np.empty((comm.size, len(padded)), np.uint8)
    wait(comm.Iallgather(padded, every))
    return [every[rank, : int(size)].tobytes().decode(errors="replace") for rank, size in enumerate(sizes)]
