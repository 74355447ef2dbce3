"""The edges of a plan: which primitive carries rows from one operator to the next, and to which rank."""

from __future__ import annotations

from collections.abc import Sequence

from aaflow.compiler.check import SHUFFLES
from aaflow.compiler.ingest import Inputs
from aaflow.compiler.plan import Edge, Stage
from aaflow.compiler.resources import Chain
from aaflow.compiler.volumes import volume_of
from aaflow.operators.operator import Operator

#: Batches that a queue between two operators of a rank holds: one being filled while one is being read, and one spare.
QUEUE_BOUND = 3
#: Buffers of a stream between two ranks: likewise, and one whose rows wait in a window of ``embed``.
STREAM_BUFFERS = 4
#: Bytes of one buffer of a stream: at least, and where neither vectors nor many consumers ask for another size.
BUFFER_BYTES = (1 << 20, 8 << 20)
#: Bytes of all buffers of a stream that one rank fills.
RANK_BYTES = 256 << 20


def shuffle_before(chain: Chain, inputs: Inputs | None) -> str | None:
    """The operator of a fused chain before which rows move to the owner of their partition; None where they sit there.

    Whole documents are read by their owner. Records of a file belong to many partitions, so they move; they do so as
    early as possible after ``transform``, since vectors are what weighs most.
    """
    wanted = [position for position, operator in enumerate(chain) if operator.pattern in SHUFFLES]
    if not wanted or chain[0].kind != "load" or inputs is None or not inputs.has_records:
        return None
    first = wanted[0]
    while first > 1 and chain[first - 1].kind == "embed":
        first -= 1
    return chain[first].name


def edges_of(chains: Sequence[Chain], stages: Sequence[Stage], inputs: Inputs | None) -> list[Edge]:
    """Every edge, in the order of the operators that it leads to."""
    edges: list[Edge] = []
    routes = _routes(chains, stages, inputs)
    by_name = {operator.name: operator for chain in chains for operator in chain}
    stage_named = {stage.name: stage for stage in stages}
    for chain, stage in zip(chains, stages, strict=True):
        for operator, planned in zip(chain, stage.operators, strict=True):
            if operator.upstream is None:
                continue
            passing = volume_of(operator.upstream, by_name, inputs) if inputs else 0
            if stage.upstream is not None and operator is chain[0]:
                routing = routes[stage.name]
                readers = sum(other.upstream == stage.upstream for other in stages)
                size = _buffer_bytes(by_name[operator.upstream], routing, stage_named[stage.upstream], stage, readers)
                edge = Edge(operator.upstream, operator.name, "stream", routing, STREAM_BUFFERS, size, passing)
            elif planned.shuffle and stage.ranks > 1:
                primitive = f"{stage.communicator}-shuffle"
                edge = Edge(operator.upstream, operator.name, primitive, "owner", 1, 0, passing)
            else:
                edge = Edge(operator.upstream, operator.name, "queue", "same", QUEUE_BOUND, 0, 0)
            edges.append(edge)
    return edges


def _routes(chains: Sequence[Chain], stages: Sequence[Stage], inputs: Inputs | None) -> dict[str, str]:
    """By stage that reads another, how rows find the rank: to the owner of their partition where that is needed.

    Owners are needed by operators that see whole partitions. An ``embed`` before one, of as many ranks, gets its rows
    by owner already, so that vectors, which weigh most, stay on their node and need no second copy.
    """
    routes: dict[str, str] = {}
    aligned: dict[str, bool] = {}
    for chain, stage in zip(chains, stages, strict=True):
        upstream = next((other for other in stages if other.name == stage.upstream), None)
        if upstream is None:
            aligned[stage.name] = inputs is not None and (not inputs.has_records or _shuffles_itself(stage))
            continue
        in_place = aligned[upstream.name] and upstream.owners == stage.owners
        wanted = _needs_owners(chain, stage, chains, stages)
        routes[stage.name] = "owner" if wanted and not in_place else "forward"
        aligned[stage.name] = wanted or in_place
    return routes


def _shuffles_itself(stage: Stage) -> bool:
    return any(operator.shuffle for operator in stage.operators)


def _needs_owners(chain: Chain, stage: Stage, chains: Sequence[Chain], stages: Sequence[Stage]) -> bool:
    if chain[0].input is None or "partition" not in chain[0].input.names:
        return False
    if any(operator.pattern in SHUFFLES for operator in chain):
        return True
    if any(operator.kind != "embed" for operator in chain):
        return False
    readers = [
        (other, reader)
        for other, reader in zip(chains, stages, strict=True)
        if other[0].upstream == chain[-1].name and reader.ranks == stage.ranks
    ]
    return any(_needs_owners(other, reader, chains, stages) for other, reader in readers)


def _buffer_bytes(source: Operator, routing: str, producer: Stage, consumer: Stage, readers: int) -> int:
    """Twice the vectors of a window, so that what else its rows have fits behind them; less where a rank has many."""
    least, usual = BUFFER_BYTES
    given, window = source.output, source.options.get("window", 0)
    size = usual
    if given is not None and "vector" in given.names:
        size = max(usual, 2 * window * given.field("vector").type.list_size * 4)
    consumers = consumer.ranks if routing == "owner" else -(-consumer.ranks // producer.ranks)
    size = min(size, RANK_BYTES // (STREAM_BUFFERS * consumers * readers))
    return max(least, 1 << (size.bit_length() - 1))
