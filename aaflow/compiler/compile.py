"""Workflow -> Plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow.compute as pc

from aaflow.compiler.check import SHUFFLES, check_workflow
from aaflow.compiler.ingest import DEFAULT_PARTITIONS, Inputs, ancestors, index_target, list_load
from aaflow.compiler.partitioning import partition_owners
from aaflow.compiler.plan import Edge, Listing, Plan, PlannedOperator, Stage, schema_text
from aaflow.errors import PlacementError, WorkflowError
from aaflow.index import open_index
from aaflow.operators.embedders import describe_embedder
from aaflow.operators.listing import split_sizes
from aaflow.operators.operator import Domain, Operator
from aaflow.scheduling.site import Site
from aaflow.workflow import Workflow

#: Batches that a queue between two operators of a rank holds: one being filled while one is being read, and one spare.
QUEUE_BOUND = 3
#: Units that ``upsert`` commits at the same time: one computes while others wait for the disk.
COMMITS_AT_ONCE = 2
#: The domain that decides the slot of a fused stage is the most demanding one.
_DEMAND = (Domain.CPU_PARTITION, Domain.AGGREGATION, Domain.BATCH_WRITE, Domain.VECTOR_SHARD, Domain.BATCH_WORKER)


def compile_workflow(
    workflow: Workflow, *, site: Site, ranks: int | Mapping[str, int] | None = None, fuse: bool = True
) -> Plan:
    """Compile a workflow into a plan: same workflow, same input listing, same site give the same bytes.

    Args:
        workflow: what to do.
        site: where; its cores bound the number of ranks.
        ranks: MPI ranks of every stage, or of single operators by name; by default one per core.
        fuse: whether operators that one slot can serve share a stage.

    Raises:
        WorkflowError: the workflow can't be compiled; names the operator.
        InputError: a path to load is missing or can't be used.
        EmbedderMismatch: the index was built with another embedder or dimension.
        PlacementError: ``ranks`` is not a positive number, or names no operator.
    """
    ordered = check_workflow(workflow.operators)
    strangers = set(ranks) - set(workflow.operators) if isinstance(ranks, Mapping) else None
    if strangers:
        raise PlacementError(f"ranks are asked for {', '.join(sorted(strangers))}, which the workflow doesn't have")
    target = index_target(ordered, workflow.metadata)
    inputs = list_load(ordered, target)
    partitions = target.spec.partitions if target else _searched_partitions(ordered)
    chains = _chains(ordered, site, fuse)
    stages: list[Stage] = []
    for chain in chains:
        stages.append(_stage(chain, chains, site, _ranks_of(chain, ranks, site), inputs, partitions))
    return Plan(
        site=site.name,
        partitions=partitions,
        stages=tuple(stages),
        edges=tuple(_edges(ordered, stages, inputs)),
        listing=_listing(inputs),
        index=target.to_dict() if target else None,
        tables=inputs.tables if inputs else {},
    )


def accelerated(operator: Operator, site: Site) -> bool:
    """Whether an operator runs on an accelerator of this site.

    Raises:
        WorkflowError: it asks for one that the site doesn't have.
    """
    if operator.kind != "embed" or operator.options.get("model") == "hash":
        return False
    device = operator.options.get("device", "auto")
    if device == "accelerator" and site.node.accelerators is None:
        raise WorkflowError(f"operator {operator.name!r} asks for an accelerator, and site {site.name!r} has none")
    return device != "cpu" and site.node.accelerators is not None


def _chains(ordered: Sequence[Operator], site: Site, fuse: bool) -> list[list[Operator]]:
    """Group operators: one follows its upstream into a stage if it alone reads it and the same slot serves both."""
    consumers: dict[str, int] = {}
    for operator in ordered:
        if operator.upstream:
            consumers[operator.upstream] = consumers.get(operator.upstream, 0) + 1
    chain_of: dict[str, list[Operator]] = {}
    chains: list[list[Operator]] = []
    for operator in ordered:
        chain = chain_of.get(operator.upstream or "")
        fits = (
            fuse
            and chain is not None
            and chain[-1].name == operator.upstream
            and consumers[operator.upstream or ""] == 1
            and accelerated(chain[-1], site) == accelerated(operator, site)
            and site.environment_of(chain[-1].domain.value) == site.environment_of(operator.domain.value)
        )
        if chain is None or not fits:
            chain = []
            chains.append(chain)
        chain.append(operator)
        chain_of[operator.name] = chain
    return chains


def _ranks_of(chain: Sequence[Operator], ranks: int | Mapping[str, int] | None, site: Site) -> int:
    default = site.nodes * len(site.node.cores)
    if ranks is None:
        wanted = default
    elif isinstance(ranks, int):
        wanted = ranks
    else:
        named = [ranks[operator.name] for operator in chain if operator.name in ranks]
        if len(set(named)) > 1:
            names = ", ".join(operator.name for operator in chain)
            raise PlacementError(f"operators {names} share a stage, but different ranks are asked for: {named}")
        wanted = named[0] if named else default
    if wanted < 1:
        raise PlacementError(f"stage {_name(chain)!r}: {wanted} ranks were asked for; a stage needs at least 1")
    return wanted


def _name(chain: Sequence[Operator]) -> str:
    return "+".join(operator.name for operator in chain)


def _stage(
    chain: Sequence[Operator],
    chains: Sequence[Sequence[Operator]],
    site: Site,
    ranks: int,
    inputs: Inputs | None,
    partitions: int,
) -> Stage:
    domain = max((operator.domain for operator in chain), key=_DEMAND.index)
    upstream = chain[0].upstream
    after = tuple(_name(other) for other in chains if any(op.name == upstream for op in other))
    shuffled = _shuffle_before(chain, inputs)
    communicator = "serial" if ranks == 1 else site.communicator_of(domain.value)
    if communicator == "serial" and ranks > 1:
        raise PlacementError(f"stage {_name(chain)!r} has {ranks} ranks, but the site's communicator is 'serial'")
    return Stage(
        name=_name(chain),
        operators=tuple(_planned(operator, site, ranks, operator.name == shuffled) for operator in chain),
        domain=domain.value,
        ranks=ranks,
        accelerated=any(accelerated(operator, site) for operator in chain),
        after=after,
        owners=partition_owners(inputs.listing if inputs else None, partitions, ranks),
        communicator=communicator,
        environment=site.environment_of(domain.value),
    )


def _shuffle_before(chain: Sequence[Operator], inputs: Inputs | None) -> str | None:
    """The operator of a fused chain before which rows move to the owner of their partition; None where they sit there.

    Whole documents are read by their owner. Records of a file belong to many partitions, so they move; they do so as
    early as possible after ``transform``, since vectors are what weighs most.
    """
    names = [operator.name for operator in chain]
    wanted = [operator.name for operator in chain if operator.pattern in SHUFFLES]
    if not wanted or chain[0].kind != "load" or inputs is None or not inputs.has_records:
        return None
    first = names.index(wanted[0])
    while first > 1 and chain[first - 1].kind == "embed":
        first -= 1
    return names[first]


def _planned(operator: Operator, site: Site, ranks: int, shuffle: bool) -> PlannedOperator:
    per_node = -(-ranks // site.nodes)
    cores = max(1, len(site.node.cores) // per_node)
    return PlannedOperator(
        name=operator.name,
        kind=operator.kind,
        function=operator.function,
        options=dict(operator.options),
        pattern=operator.pattern.value,
        domain=operator.domain.value,
        input=schema_text(operator.input),
        output=schema_text(operator.output),
        workers=_workers(operator, site, cores),
        batch_rows=operator.options.get("window", 0),
        shuffle=shuffle,
    )


def _workers(operator: Operator, site: Site, cores: int) -> int:
    if operator.kind == "upsert":
        return COMMITS_AT_ONCE
    return cores if operator.kind == "embed" and not accelerated(operator, site) else 1


def _edges(ordered: Sequence[Operator], stages: Sequence[Stage], inputs: Inputs | None) -> list[Edge]:
    home = {planned.name: stage for stage in stages for planned in stage.operators}
    shuffled = {planned.name for stage in stages for planned in stage.operators if planned.shuffle}
    records = inputs.record_bytes if inputs else 0
    edges = []
    for operator in ordered:
        if operator.upstream is None:
            continue
        source, target = home[operator.upstream], home[operator.name]
        moved = records * (target.ranks - 1) // target.ranks
        if source is not target:
            primitive, bound = "file", 0
            moved = moved if operator.kind == "embed" else 0
        elif operator.name in shuffled and target.ranks > 1:
            primitive, bound = "mpi-alltoall", 1
        else:
            primitive, bound, moved = "queue", QUEUE_BOUND, 0
        edges.append(Edge(operator.upstream, operator.name, primitive, bound, moved))
    return edges


def _listing(inputs: Inputs | None) -> Listing | None:
    if inputs is None:
        return None
    sizes = int(split_sizes(inputs.listing).sum())
    tranches = (pc.max(inputs.listing["tranche"]).as_py() + 1) if inputs.listing.num_rows else 0
    return Listing(inputs.operator, inputs.digest, inputs.listing.num_rows, sizes, inputs.unchanged, tranches)


def _searched_partitions(ordered: Sequence[Operator]) -> int:
    """Partitions of the index that is searched, whose vectors must be of the model that embeds the questions."""
    for operator in ordered:
        if operator.kind == "retrieve":
            with open_index(operator.options["index"]) as opened:
                for embed in (other for other in ancestors(operator, ordered) if other.kind == "embed"):
                    dimension, fingerprint = describe_embedder(embed.options["model"], embed.options["dimension"])
                    opened.spec.require_embedder(fingerprint, dimension, opened.path)
                return opened.spec.partitions
    return DEFAULT_PARTITIONS
