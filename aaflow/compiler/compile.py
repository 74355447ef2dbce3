"""Workflow -> Plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow.compute as pc

from aaflow.compiler.check import check_workflow
from aaflow.compiler.edges import edges_of, shuffle_before
from aaflow.compiler.ingest import DEFAULT_PARTITIONS, Inputs, ancestors, index_target, list_load
from aaflow.compiler.partitioning import partition_owners
from aaflow.compiler.plan import Listing, Plan, PlannedOperator, Stage, schema_text
from aaflow.compiler.resources import accelerated, chain_name, cores_of, ranks_of
from aaflow.errors import PlacementError
from aaflow.index import open_index
from aaflow.operators.embedders import describe_embedder
from aaflow.operators.listing import split_sizes
from aaflow.operators.operator import Domain, Operator
from aaflow.scheduling.site import Site
from aaflow.workflow import Workflow

#: Units that ``upsert`` commits at the same time: one computes while others wait for the disk.
COMMITS_AT_ONCE = 2
#: The domain that decides the slot of a fused stage is the most demanding one: where shards are searched, their memory.
_DEMAND = (Domain.CPU_PARTITION, Domain.AGGREGATION, Domain.BATCH_WRITE, Domain.BATCH_WORKER, Domain.VECTOR_SHARD)


def compile_workflow(
    workflow: Workflow, *, site: Site, ranks: int | Mapping[str, int] | None = None, fuse: bool = True
) -> Plan:
    """Compile a workflow into a plan: same workflow, same input listing, same site give the same bytes.

    Args:
        workflow: what to do.
        site: where; its cores bound the number of ranks.
        ranks: MPI ranks of every stage, or of single operators by name; by default an equal share of the cores.
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
    counts = ranks_of(chains, ranks, site)
    stages = [
        _stage(chain, chains, site, count, cores, inputs, partitions)
        for chain, count, cores in zip(chains, counts, cores_of(chains, counts, site), strict=True)
    ]
    return Plan(
        site=site.name,
        partitions=partitions,
        stages=tuple(stages),
        edges=tuple(edges_of(chains, stages, inputs)),
        listing=_listing(inputs),
        index=target.to_dict() if target else None,
        encrypted_edges=site.encrypted_edges,
        tables=inputs.tables if inputs else {},
    )


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


def _stage(
    chain: Sequence[Operator],
    chains: Sequence[Sequence[Operator]],
    site: Site,
    ranks: int,
    cores: int,
    inputs: Inputs | None,
    partitions: int,
) -> Stage:
    domain = max((operator.domain for operator in chain), key=_DEMAND.index)
    upstream = chain[0].upstream
    before = [chain_name(other) for other in chains if any(operator.name == upstream for operator in other)]
    shuffled = shuffle_before(chain, inputs)
    communicator = "serial" if ranks == 1 else site.communicator_of(domain.value)
    if communicator == "serial" and ranks > 1:
        raise PlacementError(f"stage {chain_name(chain)!r} has {ranks} ranks, but the site's communicator is 'serial'")
    return Stage(
        name=chain_name(chain),
        operators=tuple(_planned(operator, site, cores, operator.name == shuffled) for operator in chain),
        domain=domain.value,
        ranks=ranks,
        cores=cores,
        accelerated=any(accelerated(operator, site) for operator in chain),
        upstream=before[0] if before else None,
        owners=partition_owners(inputs.listing if inputs else None, partitions, ranks),
        communicator=communicator,
        environment=site.environment_of(domain.value),
    )


def _planned(operator: Operator, site: Site, cores: int, shuffle: bool) -> PlannedOperator:
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
