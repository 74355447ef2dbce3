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

    Stages of a plan run one after another, so each may use the whole site. Ranks fill the nodes in equal, contiguous
    blocks, so that the ranks that own a partition sit on the same node in stages of equal size.

    Raises:
        PlacementError: a stage needs more cores or accelerators than the site has; says what is missing.
    """
    slots = {stage.name: _slots(stage, site) for stage in plan.stages}
    shared = any(shares_cores(group) for group in slots.values())
    return Placement(plan, site, slots, shared)


def _slots(stage: Stage, site: Site) -> tuple[Slot, ...]:
    cores, available = site.node.cores, site.node.accelerators
    per_node = -(-stage.ranks // site.nodes)
    if per_node > len(cores) and not site.oversubscribe:
        raise PlacementError(
            f"stage {stage.name!r} does not fit on site {site.name!r}: {stage.ranks} ranks on {site.nodes} node(s) are "
            f"{per_node} a node, which has {len(cores)} cores; ask for at most {site.nodes * len(cores)} ranks"
        )
    if stage.accelerated and available is not None and per_node > len(available.ids) and not site.oversubscribe:
        raise PlacementError(
            f"stage {stage.name!r} does not fit on site {site.name!r}: {per_node} ranks a node need an accelerator "
            f"each, and a node has {len(available.ids)} ({available.kind}); ask for at most "
            f"{site.nodes * len(available.ids)} ranks"
        )
    share = max(1, len(cores) // per_node)
    slots = []
    for rank in range(stage.ranks):
        node, local = divmod(rank, per_node)
        mine = tuple(cores[(local * share + i) % len(cores)] for i in range(share))
        seen = _accelerators(available, local, per_node) if stage.accelerated and available else None
        slots.append(Slot(node, mine, seen, site.node.memory // per_node))
    return tuple(slots)


def _accelerators(kind: AcceleratorKind, local: int, per_node: int) -> Accelerators:
    share = max(1, len(kind.ids) // per_node)
    ids = tuple(kind.ids[(local * share + i) % len(kind.ids)] for i in range(share))
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
