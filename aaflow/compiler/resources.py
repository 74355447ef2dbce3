"""How many ranks a stage gets, and how many cores each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aaflow.errors import PlacementError, WorkflowError
from aaflow.operators.operator import Domain, Operator
from aaflow.scheduling.site import Site

Chain = Sequence[Operator]


def chain_name(chain: Chain) -> str:
    """The name of the stage that a chain of operators becomes."""
    return "+".join(operator.name for operator in chain)


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


def ranks_of(chains: Sequence[Chain], asked: int | Mapping[str, int] | None, site: Site) -> list[int]:
    """Ranks of every stage: those asked for, else one per accelerator, else an equal share of the site's cores.

    Raises:
        PlacementError: a stage would have no rank, or its operators are asked to have different ones.
    """
    ranks = []
    for chain in chains:
        wanted = asked if isinstance(asked, int) else _asked_by_name(chain, asked or {})
        ranks.append(_default(chain, chains, site) if wanted is None else wanted)
        if ranks[-1] < 1:
            raise PlacementError(
                f"stage {chain_name(chain)!r}: {ranks[-1]} ranks were asked for; a stage needs at least 1"
            )
    return ranks


def _asked_by_name(chain: Chain, asked: Mapping[str, int]) -> int | None:
    named = [asked[operator.name] for operator in chain if operator.name in asked]
    if len(set(named)) > 1:
        names = ", ".join(operator.name for operator in chain)
        raise PlacementError(f"operators {names} share a stage, but different ranks are asked for: {named}")
    return named[0] if named else None


def _default(chain: Chain, chains: Sequence[Chain], site: Site) -> int:
    available = site.node.accelerators
    devices = len(available.ids) if available is not None else 0
    on_devices = [_is_accelerated(other, site) for other in chains]
    if _is_accelerated(chain, site):
        return site.nodes * max(1, devices // sum(on_devices))
    taken = devices if any(on_devices) else 0  # a rank with a device has a core of its own
    others = len(chains) - sum(on_devices)
    return site.nodes * max(1, (len(site.node.cores) - taken) // others)


def _is_accelerated(chain: Chain, site: Site) -> bool:
    return any(accelerated(operator, site) for operator in chain)


def cores_of(chains: Sequence[Chain], ranks: Sequence[int], site: Site) -> list[int]:
    """Cores of one rank of every stage: one, and what is left of a node goes to those who embed on CPUs.

    Stages run at the same time, so their cores are disjoint. A stage that is alone takes all of them.
    """
    per_node = [-(-count // site.nodes) for count in ranks]
    free = len(site.node.cores) - sum(per_node)
    hungry = [_embeds_on_cpu(chain, site) or len(chains) == 1 for chain in chains]
    eaters = sum(count for count, eats in zip(per_node, hungry, strict=True) if eats)
    more = free // eaters if free > 0 and eaters else 0
    return [1 + more if eats else 1 for eats in hungry]


def _embeds_on_cpu(chain: Chain, site: Site) -> bool:
    return any(operator.domain is Domain.BATCH_WORKER and not accelerated(operator, site) for operator in chain)
