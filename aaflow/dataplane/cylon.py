"""The ``cylon`` communicator: shuffles are pycylon's; all else is as in the ``mpi`` communicator.

Cylon sends each row to the rank that a column of int32 names, and that is all that is asked of it. What it is given is
what it carries right: integers, strings, binaries and binaries of fixed size, one chunk a column, with no offset.
Values of any other fixed width go as such without a copy (a vector as a binary of its size); columns of other types
(lists, dictionaries, structs, …) go beside through the ``mpi`` communicator, and their rows meet again by their order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aaflow.dataplane.agreement import agree, wait
from aaflow.dataplane.destinations import destinations
from aaflow.dataplane.mpi import MpiCommunicator, cut_rows, size_of, start_mpi
from aaflow.dataplane.rows import take_rows
from aaflow.dataplane.sections import array_of_values
from aaflow.errors import DependencyError
from aaflow.kernel import width_of

#: What all ranks together send in one round, in bytes: Cylon counts bytes in 32 bits, and one rank may get it all.
ROUND_BYTES = 1 << 30

_LONGEST = 2**31 - 2**20

_INTEGERS = {1: pa.int8(), 2: pa.int16(), 4: pa.int32(), 8: pa.int64()}


class CylonCommunicator(MpiCommunicator):
    """Ranks of one MPI job that shuffle with pycylon.

    Cylon waits spinning, with the interpreter locked, and never reports a peer that died: ranks enter it together,
    once all have agreed that they can, and the keeper of the group ends them when one dies inside it.

    Args:
        round_bytes: what all ranks together send at once, at most, where no single row is larger.

    Raises:
        DependencyError: pycylon can't be imported.
    """

    def __init__(self, round_bytes: int = ROUND_BYTES) -> None:
        start_mpi()
        # Before the ranks wait for each other there: this takes seconds on some of them.
        try:
            from pycylon.data.table import Table
            from pycylon.frame import CylonEnv
            from pycylon.net import MPIConfig
        except ImportError as error:
            raise DependencyError(
                f"communicator 'cylon' needs pycylon, built for this interpreter's pyarrow {pa.__version__}: {error}. "
                "Where another interpreter has it, name that in the site file: [environments.cylon] python = …"
            ) from error
        super().__init__()
        # Of its own, since Cylon sends on tags that it chooses and changes how errors are handled.
        self._duplicate = self._comm.Dup()
        self._env = CylonEnv(config=MPIConfig(self._duplicate), distributed=True)
        self._table = Table
        self._round_bytes = max(1, round_bytes // self.size)

    def shuffle(self, table: pa.Table, by: npt.NDArray[np.int32] | Sequence[str]) -> pa.Table:
        """See :class:`Communicator`."""
        targets, carried, rounds = self._agreed(table, by)
        if self.size == 1:
            return table
        columns: dict[int, pa.ChunkedArray] = {}
        if carried:
            exchanged = self._rounds(table.select(carried), targets, rounds)
            columns.update(zip(carried, exchanged.columns, strict=True))
        beside = [number for number in range(table.num_columns) if number not in columns]
        if beside or not columns:
            columns.update(zip(beside, super().shuffle(table.select(beside), targets).columns, strict=True))
        return pa.Table.from_arrays([columns[number] for number in range(table.num_columns)], schema=table.schema)

    def _agreed(
        self, table: pa.Table, by: npt.NDArray[np.int32] | Sequence[str]
    ) -> tuple[npt.NDArray[np.int32], list[int], list[tuple[int, int]]]:
        """Where rows go, the columns that Cylon carries on all ranks, and the rows of as many rounds as needed."""

        def prepare() -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], list[tuple[int, int]]]:
            targets = destinations(table, by, self.size)
            rounds = list(cut_rows(table, 0, self._round_bytes))
            alone = [size_of(table.slice(start, 1)) for start, count in rounds if count == 1]
            too_long = max(alone, default=0) > _LONGEST // self.size
            refused = [too_long or not all(map(_is_carried, _chunks(column))) for column in table.columns]
            return targets, np.array([len(rounds), *refused], np.int64), rounds

        targets, mine, rounds = agree(self._comm, "shuffle", table.schema, prepare)
        most = np.empty_like(mine)
        wait(self._comm.Iallreduce(mine, most, op=_maximum()))
        rounds += [(table.num_rows, 0)] * int(most[0] - mine[0])
        return targets, np.flatnonzero(most[1:] == 0).tolist(), rounds

    def _rounds(self, table: pa.Table, targets: npt.NDArray[np.int32], rounds: list[tuple[int, int]]) -> pa.Table:
        """Exchange rows round by round; rows by the rank they come from, in that rank's order."""
        received: list[list[pa.Table]] = [[table.schema.empty_table()] for _ in range(self.size)]
        for start, count in rounds:
            # Whatever can fail in one rank alone is agreed upon: the others would wait for it in Cylon for ever.
            prepare = partial(self._prepared, table.slice(start, count), targets[start : start + count])
            sent = agree(self._comm, "shuffle", None, prepare)
            got = sent.shuffle([0])
            parts = agree(self._comm, "shuffle", None, partial(_received, got, table.schema))
            for rank, rows in parts:
                received[rank].append(rows)
        return pa.concat_tables([rows for parts in received for rows in parts])

    def _prepared(self, table: pa.Table, targets: npt.NDArray[np.int32]) -> Any:
        """Cylon's table of what this rank sends in one round: where each row goes, and its number, before its values.

        The number is that of the row in its round, and 2**32 times its rank.
        """
        numbers = np.arange(table.num_rows, dtype=np.int64) + (self.rank << 32)
        sent = [pa.array(targets), pa.array(numbers), *(_plain(_whole(column)) for column in table.columns)]
        whole = pa.Table.from_arrays(sent, names=[str(number) for number in range(len(sent))])
        return self._table.from_arrow(self._env.context, whole)


def _received(got: Any, schema: pa.Schema) -> list[tuple[int, pa.Table]]:
    """The rows that came here in one round, in Cylon's table, by the rank that they come from."""
    _, order, *columns = (_whole(column) for column in got.to_arrow().columns)
    arrays = [_original(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
    return list(_by_source((pa.Table.from_arrays(arrays, schema=schema), order.to_numpy())))


def _by_source(part: tuple[pa.Table, npt.NDArray[np.int64]]) -> Iterator[tuple[int, pa.Table]]:
    """The rows of each rank in that rank's order, in place where they lie so: by rank, each rank's rows in a run."""
    table, order = part
    sources = order >> 32
    starts = np.flatnonzero(np.diff(sources, prepend=-1))
    in_order = np.diff(order) > 0
    in_order[starts[1:] - 1] = True
    if len(np.unique(sources[starts])) < len(starts) or not in_order.all():
        sorting = np.argsort(order)
        yield from _by_source((take_rows(table, sorting), order[sorting]))
        return
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(order)], strict=bool(len(starts))):
        yield int(sources[start]), table.slice(start, end - start)


def _maximum() -> Any:
    from mpi4py import MPI

    return MPI.MAX


def _chunks(column: pa.ChunkedArray) -> list[pa.Array]:
    return column.chunks or [pa.array([], column.type)]


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array whose buffers begin with its first row; a copy only where it is none yet."""
    chunks = _chunks(column)
    return chunks[0] if len(chunks) == 1 and chunks[0].offset == 0 else pa.concat_arrays(chunks)


def _is_carried(array: pa.Array) -> bool:
    """Whether Cylon can carry a column: a null inside of a vector would be lost."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray) or pa.types.is_null(kind):
        return False
    while pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        array = array.values.slice(array.offset * size, len(array) * size)
        if array.null_count:
            return False
    try:
        return width_of(kind) > 0
    except TypeError:
        return bool(pa.types.is_boolean(kind) or pa.types.is_string(kind) or pa.types.is_binary(kind))


def _plain(array: pa.Array) -> pa.Array:
    """An array of a type that Cylon knows, over the same buffers but for booleans."""
    kind, rows = array.type, len(array)
    if pa.types.is_boolean(kind):
        return array.cast(pa.int8())
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return array
    width, valid = width_of(kind), array.buffers()[0] if array.null_count else None
    while pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        array = array.values.slice(array.offset * size, len(array) * size)
    values = array.buffers()[1]
    if values is not None:
        values = values.slice(array.offset * width_of(array.type))
    return pa.Array.from_buffers(_INTEGERS.get(width, pa.binary(width)), rows, [valid, values])


def _original(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """The inverse of :func:`_plain`."""
    if pa.types.is_boolean(kind):
        return array.cast(kind)
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return array
    valid, values = array.buffers()[:2]
    return array_of_values(kind, len(array), valid, -1, values)
