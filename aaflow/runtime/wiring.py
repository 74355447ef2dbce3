"""From the edges of a plan to the inlet and the outlets of one rank."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from aaflow.compiler.plan import Edge, Stage, schema_of
from aaflow.dataplane.edge import EdgeSpec, Endpoint, Form
from aaflow.operators.operator import Item
from aaflow.runtime.runfolder import RunFolder
from aaflow.runtime.streams import ByOwner, Collector, Forward, InTurn, Outlet, OutputFile
from aaflow.scheduling.interface import interface_address
from aaflow.scheduling.placement import Placement
from aaflow.schema import NOTICES

#: Seconds within which all ranks of neighbouring stages have to come: imports of hundreds of ranks from one file
#: system take minutes. A group that fails meanwhile ends the run at once.
CONNECT_SECONDS = 300.0


class Wiring:
    """What a rank reads from and writes to. A context manager: leaving it in success waits until all was taken.

    Attributes:
        inlet: items from the stage before; none for a stage that reads no other.
        count_blocked: told how many nanoseconds :meth:`allocate` waited for room.
    """

    def __init__(self, folder: RunFolder, placement: Placement, stage: Stage, rank: int) -> None:
        self._placement = placement
        self._stage = stage
        self._rank = rank
        plan = placement.plan
        self._readers = plan.readers(stage)
        self._endpoint: Endpoint | None = None
        if self._readers or stage.upstream is not None:
            address = interface_address(placement.site.interconnect or placement.site.interface)
            self._endpoint = Endpoint(folder.path, stage.name, rank, address=address, encrypted=plan.encrypted_edges)
        self.inlet: Iterable[Item] = self._inlet()
        self.count_blocked: Callable[[int], None] = lambda _: None
        self._in_place: Forward | None = None
        self._outlets = [self._outlet(reader) for reader in self._readers]
        given = stage.operators[-1].output
        if given and not self._readers:
            self._outlets = [OutputFile(folder.output / f"{stage.name}.{rank}.arrow", schema_of(given))]

    def connect(self) -> None:
        """Wait for the ranks at the other ends.

        Raises:
            EdgeError: some did not come; names them.
        """
        if self._endpoint is not None:
            self._endpoint.connect(CONNECT_SECONDS)

    def channels(self) -> list[dict[str, Any]]:
        """The channels of this rank; see :meth:`aaflow.dataplane.edge.Endpoint.channels`."""
        return self._endpoint.channels() if self._endpoint is not None else []

    def allocate(self, size: int) -> pa.Buffer:
        """Memory for a large column of the next items: that of the edge where they leave by one, else of this rank."""
        if self._in_place is None:
            return pa.allocate_buffer(size)
        before = time.time_ns()
        given = self._in_place.allocate(size)
        self.count_blocked(time.time_ns() - before)
        return given if given is not None else pa.allocate_buffer(size)

    def drain(self, items: Iterable[Item]) -> None:
        """Give items to all outlets, to their end."""
        for item in items:
            for outlet in self._outlets:
                outlet.put(item)
        for outlet in self._outlets:
            outlet.end()

    def cancel(self) -> None:
        """Wake whoever waits at an edge: an operator of this rank failed."""
        if self._endpoint is not None:
            self._endpoint.cancel()

    def __enter__(self) -> Wiring:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._endpoint is not None:
            if kind is not None:
                self._endpoint.cancel()
            self._endpoint.close()

    def _inlet(self) -> Iterable[Item]:
        edge = self._placement.plan.edge_into(self._stage)
        if edge is None or self._endpoint is None:
            return ()
        plan = self._placement.plan
        source = plan.stage_of(edge.source)
        producers = [producer for producer, consumer in plan.pairs_of(edge) if consumer == self._rank]
        forms = {rank: self._form(source.name, rank) for rank in producers}
        receiver = self._endpoint.receive_from(self._spec(edge), forms)
        if edge.routing == "forward":
            return InTurn(receiver, producers)
        owned = np.flatnonzero(np.asarray(self._stage.owners) == self._rank).tolist()
        return Collector(receiver, producers, owned, plan.listing.tranches if plan.listing is not None else 1)

    def _outlet(self, reader: Stage) -> Outlet:
        plan = self._placement.plan
        edge = plan.edge_into(reader)
        assert edge is not None
        assert self._endpoint is not None
        consumers = [consumer for producer, consumer in plan.pairs_of(edge) if producer == self._rank]
        forms = {rank: self._form(reader.name, rank) for rank in consumers}
        senders = self._endpoint.send_to(self._spec(edge), forms)
        if edge.routing == "owner":
            return ByOwner(senders, reader.owners, edge.buffer_bytes)
        outlet = Forward(senders, edge.buffer_bytes)
        if len(senders) == 1 and len(self._readers) == 1:
            self._in_place = outlet
        return outlet

    def _spec(self, edge: Edge) -> EdgeSpec:
        plan = self._placement.plan
        source, target = plan.stage_of(edge.source), plan.stage_of(edge.target)
        schemas = (schema_of(source.operators[-1].output), NOTICES)
        return EdgeSpec(source.name, target.name, schemas, edge.bound, edge.buffer_bytes)

    def _form(self, stage: str, rank: int) -> Form:
        """Ranks of one node, as placed, share memory."""
        slots = self._placement.slots
        near = slots[stage][rank].node == slots[self._stage.name][self._rank].node
        return Form.SHARED_MEMORY if near else Form.SOCKET
