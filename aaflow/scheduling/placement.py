"""Plan x Site -> Placement: every rank of every stage on its slot, fixed before anything starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from aaflow.compiler.plan import Plan, Stage, canonical_json, digest_of
from aaflow.errors import PlacementError
from aaflow.scheduling.site import AcceleratorKind, Environment, Node, Site
from aaflow.scheduling.slot import Accelerators, Slot, shares_cores


@dataclass(frozen=True)
class Placement:
    """Every rank of every stage on its slot.

    Attributes:
        plan: what runs.
        site: where.
        slots: by stage name, the slot of each rank.
        oversubscribed: whether ranks share cores.
    """

    plan: Plan
    site: Site
    slots: Mapping[str, tuple[Slot, ...]]
    oversubscribed: bool

    def to_json(self) -> str:
        """Canonical JSON; names the plan by its digest."""
        return canonical_json(self._fields())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of :meth:`to_json`, in hexadecimal."""
        return digest_of(self._fields())

    def save(self, folder: Path) -> None:
        """Write ``placement.json`` and the plan into a folder."""
        self.plan.save(folder)
        (folder / "placement.json").write_text(self.to_json(), encoding="utf-8", errors="surrogatepass")

    @classmethod
    def load(cls, folder: Path) -> Placement:
        """Read what :meth:`save` wrote."""
        import json

        data = json.loads((folder / "placement.json").read_text(encoding="utf-8", errors="surrogatepass"))
        slots = {name: tuple(_slot(slot) for slot in group) for name, group in data["slots"].items()}
        return cls(Plan.load(folder), _site(data["site"]), slots, data["oversubscribed"])

    def _fields(self) -> dict[str, Any]:
        return {
            "plan": self.plan.digest,
            "site": dataclasses.asdict(self.site),
            "slots": {name: [dataclasses.asdict(slot) for slot in group] for name, group in self.slots.items()},
            "oversubscribed": self.oversubscribed,
        }


def place(plan: Plan, site: Site) -> Placement:
    """Give every rank of every stage its slot.

    The stages of a plan run at the same time and stream to each other, so their slots are disjoint. Ranks fill the
    nodes in equal, contiguous blocks, so that the ranks that own a partition sit on the same node in stages of equal
    size.

    Raises:
        PlacementError: the stages need more cores or accelerators than the site has; says what is missing.
    """
    _check_cores(plan, site)
    _check_accelerators(plan, site)
    slots: dict[str, tuple[Slot, ...]] = {}
    first_core = first_device = 0
    for stage in plan.stages:
        per_node = _per_node(stage, site)
        slots[stage.name] = _slots(stage, plan, site, first_core, first_device)
        first_core += per_node * stage.cores
        first_device += per_node * _devices_of_rank(plan, site) if stage.accelerated else 0
    return Placement(plan, site, slots, shares_cores([slot for group in slots.values() for slot in group]))


def _per_node(stage: Stage, site: Site) -> int:
    return -(-stage.ranks // site.nodes)


def _check_cores(plan: Plan, site: Site) -> None:
    available = len(site.node.cores)
    wanted = {stage.name: _per_node(stage, site) for stage in plan.stages}
    if sum(wanted.values()) <= available or site.oversubscribe:
        return
    if len(wanted) == 1:
        (stage,) = plan.stages
        raise PlacementError(
            f"stage {stage.name!r} does not fit on site {site.name!r}: {stage.ranks} ranks on {site.nodes} node(s) are "
            f"{wanted[stage.name]} a node, which has {available} cores; ask for at most {site.nodes * available} ranks"
        )
    each = ", ".join(f"{stage.name!r} {stage.ranks}" for stage in plan.stages)
    raise PlacementError(
        f"the stages of this plan run at the same time and do not fit on site {site.name!r}: ranks of {each} on "
        f"{site.nodes} node(s) are {sum(wanted.values())} a node, which has {available} cores; ask for at most "
        f"{site.nodes * (available // len(wanted))} ranks of each, or let stages share their ranks (fuse)"
    )


def _check_accelerators(plan: Plan, site: Site) -> None:
    available = site.node.accelerators
    wanted = sum(_per_node(stage, site) for stage in plan.stages if stage.accelerated)
    if available is not None and wanted > len(available.ids) and not site.oversubscribe:
        names = ", ".join(repr(stage.name) for stage in plan.stages if stage.accelerated)
        raise PlacementError(
            f"stage {names} does not fit on site {site.name!r}: {wanted} ranks a node need an accelerator each, and a "
            f"node has {len(available.ids)} ({available.kind}); ask for at most {site.nodes * len(available.ids)} ranks"
        )


def _devices_of_rank(plan: Plan, site: Site) -> int:
    """Accelerators of one rank: an equal share of a node's."""
    available = site.node.accelerators
    ranks = sum(_per_node(stage, site) for stage in plan.stages if stage.accelerated)
    return max(1, len(available.ids) // ranks) if available is not None and ranks else 0


def _slots(stage: Stage, plan: Plan, site: Site, first_core: int, first_device: int) -> tuple[Slot, ...]:
    cores, available = site.node.cores, site.node.accelerators
    per_node = _per_node(stage, site)
    everyone = sum(_per_node(other, site) for other in plan.stages)
    devices = _devices_of_rank(plan, site)
    slots = []
    for rank in range(stage.ranks):
        node, local = divmod(rank, per_node)
        start = first_core + local * stage.cores
        mine = tuple(cores[core % len(cores)] for core in range(start, start + stage.cores))
        seen = None
        if stage.accelerated and available is not None:
            seen = _accelerators(available, first_device + local * devices, devices)
        slots.append(Slot(node, mine, seen, site.node.memory // everyone))
    return tuple(slots)


def _accelerators(kind: AcceleratorKind, first: int, count: int) -> Accelerators:
    ids = tuple(kind.ids[number % len(kind.ids)] for number in range(first, first + count))
    return Accelerators(kind.kind, ids, kind.variable)


def _slot(data: Mapping[str, Any]) -> Slot:
    seen = data["accelerators"]
    accelerators = Accelerators(seen["kind"], tuple(seen["ids"]), seen["variable"]) if seen else None
    return Slot(data["node"], tuple(data["cores"]), accelerators, data["memory"])


def _site(data: Mapping[str, Any]) -> Site:
    node = data["node"]
    kind = node["accelerators"]
    accelerators = AcceleratorKind(kind["kind"], tuple(kind["ids"]), kind["variable"]) if kind else None
    known = {field.name for field in dataclasses.fields(Site)}
    rest = {key: value for key, value in data.items() if key in known and key != "node"}
    rest["launcher_options"] = tuple(rest["launcher_options"])
    rest["environments"] = {
        name: Environment(given["python"], given["communicator"], tuple(given["domains"]))
        for name, given in rest["environments"].items()
    }
    return Site(node=Node(tuple(node["cores"]), node["memory"], accelerators), **rest)
