"""Sections from every rank to every rank: through the window of a node, in messages between nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aaflow.dataplane.agreement import agree, wait
from aaflow.dataplane.memory import move
from aaflow.dataplane.sections import ALIGNMENT, Int64s, Rows, Section
from aaflow.dataplane.window import Region, Window

if TYPE_CHECKING:
    from mpi4py import MPI

#: Bytes of a rank's part of its node's window at most; memory is taken when it is used.
WINDOW_BYTES = 2 << 30
#: Bytes of rows that a rank sends in one round, at most; the offsets of strings may count to 2 GiB.
ROUND_BYTES = 1 << 30
#: Bytes of one message, at most.
MESSAGE_BYTES = 256 << 20
#: Between tests of a request of a peer that is known to be there, at most; seconds.
_SHORT_NAP = 200e-6
#: Tags of messages: from rank to rank, and from node to node.
_DIRECT, _AGGREGATED = 1, 2


class Outgoing(Protocol):
    """Sections that this rank is about to send; ``sizes`` in bytes for every rank, multiples of the alignment."""

    sizes: Int64s

    def write(self, addresses: Int64s) -> None:
        """Write each section that isn't empty at its address."""
        ...


#: A place in memory: address and bytes.
_Block = tuple[int, int]


class _Ways(NamedTuple):
    """The sections between this rank and every other one, and which of them go which way, bool [ranks].

    Attributes:
        sizes: bytes.
        places: offset in the receiver's part of its window; -1 where it had no room.
        written: by the sender into the window that both see.
        aggregated: in the message from node to node.
        direct: in a message of their own.
    """

    sizes: Int64s
    places: Int64s
    written: npt.NDArray[np.bool_]
    aggregated: npt.NDArray[np.bool_]
    direct: npt.NDArray[np.bool_]


class Transport:
    """What moves sections between the ranks of a communicator.

    Ranks of one node write straight into the memory of the receiver, which lies in the node's window. What goes to
    another node is written into the own part of the window, and one rank of the node sends it all in one message; a
    rank of the other node receives it into the parts of those it is for. Where a window has no room, ranks send to each
    other and the receiver has memory of its own.

    Args:
        mpi: the module ``mpi4py.MPI``.
        comm: of all ranks; for this object alone.
        color: ranks of one machine that give different numbers here count as ranks of different nodes.
        window_bytes: of each rank's part of the window, at most.

    Attributes:
        nodes: the ranks of each node.
        round_bytes: what a rank should send in one round, at most.
    """

    def __init__(self, mpi: Any, comm: MPI.Intracomm, color: int, window_bytes: int) -> None:
        self._mpi = mpi
        self._comm = comm
        machine: Any = comm.Split_type(mpi.COMM_TYPE_SHARED)
        self._node: MPI.Intracomm = machine.Split(color)
        machine.Free()
        first = np.array([comm.rank], np.int64)
        self._node.Bcast(first)
        firsts = np.empty(comm.size, np.int64)
        comm.Allgather(first, firsts)
        self.nodes: list[list[int]] = [np.flatnonzero(firsts == rank).tolist() for rank in np.unique(firsts).tolist()]
        self._here = next(number for number, ranks in enumerate(self.nodes) if comm.rank in ranks)
        self._near = np.isin(np.arange(comm.size), self.nodes[self._here])
        self._window = Window(mpi, self._node, window_bytes, 4 * comm.size)
        self._unit = mpi.BYTE.Create_contiguous(ALIGNMENT).Commit()
        self.round_bytes = min(ROUND_BYTES, self._window.capacity // 2 or MESSAGE_BYTES)

    def exchange(
        self, operation: str, schema: pa.Schema | None, prepare: Callable[[], Sequence[Callable[[], Outgoing]]]
    ) -> list[list[Section]]:
        """Send and receive in as many rounds as the rank with the most has. Collective.

        Args:
            operation: for errors.
            schema: of what is sent; the same on every rank.
            prepare: gives what makes this rank's part of each round; at least one.

        Returns:
            The sections that came from each rank, in the order of the rounds.

        Raises:
            CollectiveError: a rank can't prepare or make its part.
        """
        rounds: list[Callable[[], Outgoing]] = []

        def begin() -> Outgoing:
            rounds.extend(prepare())
            return rounds.pop(0)()

        received: list[list[Section]] = [[] for _ in range(self._comm.size)]
        outgoing = agree(self._comm, operation, schema, begin)
        while self._round(outgoing, bool(rounds), received):
            outgoing = agree(self._comm, operation, None, rounds.pop(0) if rounds else self._nothing)
        return received

    def _nothing(self) -> Outgoing:
        return Copies(None, [], self._comm.size)

    def _round(self, outgoing: Outgoing, more: bool, received: list[list[Section]]) -> bool:
        """Exchange one section for each pair of ranks; whether any rank has more."""
        staged = self._stage(outgoing.sizes)
        offsets = np.array([-1 if region is None else region.offset for region in staged], np.int64)
        told = self._all_to_all(np.stack([outgoing.sizes, offsets >= 0, np.full(len(staged), more)], axis=1))
        incoming = [self._place(size, received) if size else None for size in told[:, 0].tolist()]
        places = np.array([-1 if s is None or not isinstance(s.owner, Region) else s.owner.offset for s in incoming])
        leaving = self._ways(outgoing.sizes, offsets, self._all_to_all(places))
        coming = self._ways(told[:, 0], np.where(told[:, 1], 0, -1), places)

        requests = []
        for rank in np.flatnonzero(coming.direct).tolist():
            requests += self._post(self._comm.Irecv, rank, _DIRECT, [(incoming[rank].address, incoming[rank].size)])
        addresses, kept = self._addresses(leaving, staged)
        outgoing.write(addresses)
        for rank in np.flatnonzero(leaving.direct).tolist():
            block = (int(addresses[rank]), int(outgoing.sizes[rank]))
            requests += self._post(self._comm.Isend, rank, _DIRECT, [block])
        if len(self.nodes) > 1:
            requests += self._between_nodes(leaving, offsets, coming, places)
        for request in requests:
            wait(request, _SHORT_NAP)
        self._meet()
        del kept
        for sections, section in zip(received, incoming, strict=True):
            if section is not None:
                sections.append(section)
        return bool(told[:, 2].any())

    def _stage(self, sizes: Int64s) -> list[Region | None]:
        """Room in the own part of the window for what goes to each rank of another node."""
        return [
            self._window.allocate(size) if size and not near else None
            for size, near in zip(sizes.tolist(), self._near, strict=True)
        ]

    def _place(self, size: int, received: list[list[Section]]) -> Section:
        """Room for a section that comes here: in the window if need be by moving out what came before."""
        region = self._window.allocate(size)
        if region is None and any(isinstance(section.owner, Region) for sections in received for section in sections):
            for sections in received:
                sections[:] = [_moved_out(section) for section in sections]
            region = self._window.allocate(size)
        if region is not None:
            return Section(region.address, size, region)
        buffer = pa.allocate_buffer(size)
        return Section(buffer.address, size, buffer)

    def _ways(self, sizes: Int64s, staged: Int64s, places: Int64s) -> _Ways:
        """How the section between this rank and each other one goes; both of a pair find the same."""
        written = (sizes > 0) & self._near & (places >= 0)
        aggregated = (sizes > 0) & ~self._near & (places >= 0) & (staged >= 0)
        return _Ways(sizes, places, written, aggregated, (sizes > 0) & ~written & ~aggregated)

    def _addresses(self, leaving: _Ways, staged: list[Region | None]) -> tuple[Int64s, list[object]]:
        """Where this rank writes the section for each, and what keeps memory of its own."""
        addresses = np.zeros(len(staged), np.int64)
        kept: list[object] = []
        for rank in np.flatnonzero(leaving.sizes).tolist():
            region = staged[rank]
            if leaving.written[rank]:
                addresses[rank] = self._window.bases[self.nodes[self._here].index(rank)] + leaving.places[rank]
            elif region is not None:
                addresses[rank] = region.address
            else:
                buffer = pa.allocate_buffer(int(leaving.sizes[rank]))
                kept.append(buffer)
                addresses[rank] = buffer.address
        return addresses, kept

    def _between_nodes(self, leaving: _Ways, staged: Int64s, coming: _Ways, places: Int64s) -> list[MPI.Request]:
        """Send and receive for the ranks of this node what this rank does: one message for each pair of nodes."""
        tables = self._window.tables
        if tables is not None:
            given, taken = (np.where(ways.aggregated, ways.sizes, 0) for ways in (leaving, coming))
            tables[self._node.rank][:] = np.concatenate([staged, given, places, taken])
        self._meet()
        requests: list[MPI.Request] = []
        if tables is None:
            return requests
        ours, bases = self.nodes[self._here], self._window.bases
        facts = [table.reshape(4, -1).tolist() for table in tables]
        for number, theirs in enumerate(self.nodes):
            if number == self._here or ours[number % len(ours)] != self._comm.rank:
                continue
            peer = theirs[self._here % len(theirs)]
            # Both sides: by receiver, then by sender.
            pairs = [(rank, at) for at in range(len(ours)) for rank in theirs]
            coming_in = [(bases[at] + facts[at][2][rank], facts[at][3][rank]) for rank, at in pairs]
            pairs = [(rank, at) for rank in theirs for at in range(len(ours))]
            going_out = [(bases[at] + facts[at][0][rank], facts[at][1][rank]) for rank, at in pairs]
            requests += self._post(self._comm.Irecv, peer, _AGGREGATED, coming_in)
            requests += self._post(self._comm.Isend, peer, _AGGREGATED, going_out)
        return requests

    def _post(self, method: Callable[..., Any], peer: int, tag: int, blocks: Sequence[_Block]) -> list[MPI.Request]:
        """Start to send or receive blocks of memory, in messages of a bounded size."""
        requests = []
        for message in _messages(blocks):
            sizes = [size // ALIGNMENT for _, size in message]
            kind = self._unit.Create_hindexed(sizes, [address for address, _ in message]).Commit()
            requests.append(method([self._mpi.BOTTOM, 1, kind], peer, tag))
            kind.Free()
        return requests

    def _all_to_all(self, given: Int64s) -> Int64s:
        taken = np.empty_like(given)
        wait(self._comm.Ialltoall(np.ascontiguousarray(given), taken), _SHORT_NAP)
        return taken

    def _meet(self) -> None:
        """Return when all ranks of this node are here and see what the others wrote."""
        self._window.sync()
        wait(self._node.Ibarrier(), _SHORT_NAP)
        self._window.sync()


class Copies:
    """All rows of a table for each of some ranks; what :class:`Rows` does for rows of one destination each."""

    def __init__(self, rows: Rows | None, to: Sequence[int], ranks: int) -> None:
        self._rows = rows
        self._to = list(to)
        self.sizes = np.zeros(ranks, np.int64)
        if rows is not None:
            self.sizes[self._to] = rows.sizes[0]

    def write(self, addresses: Int64s) -> None:
        """See :class:`Outgoing`."""
        if self._rows is None or not self.sizes.any():
            return
        first, *others = addresses[self._to].tolist()
        self._rows.write(np.array([first]))
        for address in others:
            move(address, first, int(self._rows.sizes[0]))


def _moved_out(section: Section) -> Section:
    """A section in memory of this process alone."""
    if not isinstance(section.owner, Region):
        return section
    buffer = pa.allocate_buffer(section.size)
    move(buffer.address, section.address, section.size)
    return Section(buffer.address, section.size, buffer)


def _messages(blocks: Sequence[_Block]) -> Iterator[list[_Block]]:
    """Blocks in groups of :data:`MESSAGE_BYTES` at most, cut where need be."""
    message: list[_Block] = []
    room = MESSAGE_BYTES
    for address, size in blocks:
        while size:
            part = min(size, room)
            message.append((address, part))
            address, size, room = address + part, size - part, room - part
            if not room:
                yield message
                message, room = [], MESSAGE_BYTES
    if message:
        yield message
