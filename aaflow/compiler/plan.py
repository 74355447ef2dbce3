"""Plan: what compiling makes. Pure data, canonical JSON, with a digest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from aaflow.scheduling.slot import Slot

PLAN_VERSION = 1


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8 as it is."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class PlannedOperator:
    """One operator inside a stage.

    Attributes:
        name: name in the workflow.
        kind: kind of operator.
        function: ``module:name`` of what a rank calls.
        options: what it is called with.
        pattern: communication pattern, by value.
        domain: resource domain, by value.
        input: schema that comes in, as an Arrow IPC message in hexadecimal; empty where nothing does.
        output: schema that goes out, likewise.
        workers: persistent workers of this operator in every rank.
        batch_rows: rows of one batch; 0 where batches come as they are read, and for ``upsert``, which writes units.
        shuffle: whether rows move to the owner of their partition before this operator.
    """

    name: str
    kind: str
    function: str
    options: Mapping[str, Any]
    pattern: str
    domain: str
    input: str
    output: str
    workers: int
    batch_rows: int
    shuffle: bool


@dataclass(frozen=True)
class Stage:
    """A chain of operators that one slot can serve, run by one task group.

    Attributes:
        name: names of its operators, joined by ``+``.
        operators: in the order of the chain.
        domain: the domain that decides the slot.
        ranks: number of MPI ranks.
        cores: cores of one rank.
        accelerated: whether a rank needs an accelerator.
        upstream: the stage whose rows it reads while both run; None where it reads none.
        owners: rank that owns each partition.
        communicator: backend of its collectives: ``serial``, ``mpi`` or ``cylon``.
        environment: name of the site's environment whose interpreter its ranks run; None for the driver's own.
    """

    name: str
    operators: tuple[PlannedOperator, ...]
    domain: str
    ranks: int
    cores: int
    accelerated: bool
    upstream: str | None
    owners: tuple[int, ...]
    communicator: str
    environment: str | None = None


@dataclass(frozen=True)
class Edge:
    """Rows that go from one operator to another.

    Attributes:
        source: operator that gives them.
        target: operator that takes them.
        primitive: ``queue`` (inside a rank), ``mpi-shuffle``, ``cylon-shuffle`` (between the ranks of a stage) or
            ``stream`` (between stages: shared memory or sockets, as the slots of its ranks say).
        routing: the rank that a row goes to: ``same`` (it stays), ``owner`` (of its partition) or ``forward`` (one that
            follows from the ranks' numbers).
        bound: batches that it holds at most, per pair of ranks.
        buffer_bytes: size of one of the ``bound`` buffers of a stream; 0 for the other primitives.
        bytes: estimate of the rows that pass it, whichever rank they go to; 0 for a queue, whose rows stay.
    """

    source: str
    target: str
    primitive: str
    routing: str
    bound: int
    buffer_bytes: int
    bytes: int


@dataclass(frozen=True)
class Listing:
    """The input listing that a plan names.

    Attributes:
        operator: the ``load`` operator that reads it.
        digest: SHA-256 over its rows.
        splits: files, or byte ranges of files, to read.
        bytes: their size.
        unchanged: files that the index already holds as they are; they are not read.
        tranches: number of tranches.
    """

    operator: str
    digest: str
    splits: int
    bytes: int
    unchanged: int
    tranches: int


@dataclass(frozen=True)
class Plan:
    """Stages, edges, partitions, batch sizes and domains of a compiled workflow.

    The tables that belong to it (``tables``: the listing, what listing found unreadable, the sources to prune) travel
    as Arrow files beside the JSON. ``slots`` says where its site would put every rank; it is no part of the JSON, since
    another placement of the same plan is allowed.

    Streams between nodes are encrypted unless the site said when compiling that its interconnect is private
    (``encrypted_edges``).
    """

    site: str
    partitions: int
    stages: tuple[Stage, ...]
    edges: tuple[Edge, ...]
    listing: Listing | None
    index: Mapping[str, Any] | None
    encrypted_edges: bool = True
    version: int = PLAN_VERSION
    tables: Mapping[str, pa.Table] = field(default_factory=dict, compare=False, repr=False)
    slots: Mapping[str, tuple[Slot, ...]] = field(default_factory=dict, compare=False, repr=False)

    def to_json(self) -> str:
        """Canonical JSON: same workflow, same input listing, same site give the same bytes."""
        return canonical_json(self._fields())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of :meth:`to_json`, in hexadecimal."""
        return digest_of(self._fields())

    @cached_property
    def work_key(self) -> str:
        """SHA-256 of what is to be done, ranks and slots left out: a rerun on other ranks goes on from its commits."""
        operators = [
            [operator.name, operator.kind, operator.function, dict(operator.options)]
            for stage in self.stages
            for operator in stage.operators
        ]
        listing = self.listing.digest if self.listing else None
        return digest_of({"operators": operators, "listing": listing, "index": self.index})

    def stage(self, name: str) -> Stage:
        """The stage of this name.

        Raises:
            KeyError: there is none.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def stage_of(self, operator: str) -> Stage:
        """The stage that runs an operator.

        Raises:
            KeyError: there is none.
        """
        for stage in self.stages:
            if any(planned.name == operator for planned in stage.operators):
                return stage
        raise KeyError(operator)

    def edge_into(self, stage: Stage) -> Edge | None:
        """The edge between stages that ends at this one; None where the stage reads no other."""
        if stage.upstream is None:
            return None
        return next(edge for edge in self.edges if edge.target == stage.operators[0].name)

    def pairs_of(self, edge: Edge) -> list[tuple[int, int]]:
        """The pairs (producer rank, consumer rank) that a stream between stages connects, sorted."""
        producers, consumers = self.stage_of(edge.source).ranks, self.stage_of(edge.target).ranks
        if edge.routing == "forward":
            return forward_pairs(producers, consumers)
        return [(producer, consumer) for producer in range(producers) for consumer in range(consumers)]

    def readers(self, stage: Stage) -> list[Stage]:
        """The stages that read what ``stage`` gives."""
        return [other for other in self.stages if other.upstream == stage.name]

    def explain(self) -> str:
        """Stages, patterns, domains, partitions, batch sizes, edges and the slot of every rank, as tables."""
        from rich.console import Console

        from aaflow.compiler.explain import explain

        console = Console(width=180, force_terminal=False, color_system=None)
        with console.capture() as capture:
            console.print(explain(self, self.slots))
        return capture.get()

    def save(self, folder: Path) -> None:
        """Write ``plan.json`` and the plan's tables into a folder."""
        (folder / "plan.json").write_text(self.to_json(), encoding="utf-8", errors="surrogatepass")
        for name, table in self.tables.items():
            with pa.OSFile(str(folder / f"{name}.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """Read what :meth:`save` wrote; tables are memory-mapped."""
        data = json.loads((folder / "plan.json").read_text(encoding="utf-8", errors="surrogatepass"))
        tables = {}
        for path in sorted(folder.glob("*.arrow")):
            tables[path.stem] = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        return cls.from_dict(data, tables)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], tables: Mapping[str, pa.Table] | None = None) -> Plan:
        """The plan that a parsed :meth:`to_json` describes."""
        stages = tuple(
            Stage(
                **{
                    **stage,
                    "operators": tuple(PlannedOperator(**operator) for operator in stage["operators"]),
                    "owners": tuple(stage["owners"]),
                }
            )
            for stage in data["stages"]
        )
        return cls(
            site=data["site"],
            partitions=data["partitions"],
            stages=stages,
            edges=tuple(Edge(**edge) for edge in data["edges"]),
            listing=Listing(**data["listing"]) if data["listing"] else None,
            index=data["index"],
            encrypted_edges=data["encrypted_edges"],
            version=data["version"],
            tables=dict(tables or {}),
        )

    def _fields(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "site": self.site,
            "partitions": self.partitions,
            "stages": [dataclasses.asdict(stage) for stage in self.stages],
            "edges": [dataclasses.asdict(edge) for edge in self.edges],
            "listing": dataclasses.asdict(self.listing) if self.listing else None,
            "index": self.index,
            "encrypted_edges": self.encrypted_edges,
        }


def schema_text(schema: pa.Schema | None) -> str:
    """A schema as its Arrow IPC message in hexadecimal; empty for None."""
    return schema.serialize().to_pybytes().hex() if schema is not None else ""


def schema_of(text: str) -> pa.Schema:
    """The schema that :func:`schema_text` wrote.

    Raises:
        pyarrow.ArrowInvalid: it is none.
    """
    return pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(text)))


def forward_pairs(producers: int, consumers: int) -> list[tuple[int, int]]:
    """Pairs (producer rank, consumer rank) of a ``forward`` edge, sorted: contiguous, as even as can be.

    Either every producer has one consumer or every consumer has one producer, so ranks that wait for each other in a
    fixed order never form a cycle.
    """
    if producers >= consumers:
        return [(rank, rank * consumers // producers) for rank in range(producers)]
    return sorted((rank * producers // consumers, rank) for rank in range(consumers))
