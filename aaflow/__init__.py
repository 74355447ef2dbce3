"""aaflow: agentic RAG workflows as MPI task groups of the pilots you already run.

    workflow = aaflow.Workflow()
    workflow.load("docs/").transform().embed("hash").upsert("my-index")
    plan = aaflow.compile(workflow, site="local", ranks=2)
    aaflow.run(aaflow.place(plan, "local"), pilot="parsl")

The names load what they need when they are first used, so that small processes which import ``aaflow.runtime`` stay
small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from aaflow.compiler.plan import Plan
    from aaflow.driver import RunResult, compile, place, run
    from aaflow.index import open_index
    from aaflow.operators.operator import Domain, Pattern
    from aaflow.pilot import Pilot
    from aaflow.scheduling.placement import Placement
    from aaflow.scheduling.site import Site
    from aaflow.scheduling.sitefile import load_site
    from aaflow.workflow import Workflow

_HOMES = {
    "Domain": "aaflow.operators.operator",
    "Pattern": "aaflow.operators.operator",
    "Pilot": "aaflow.pilot",
    "Placement": "aaflow.scheduling.placement",
    "Plan": "aaflow.compiler.plan",
    "RunResult": "aaflow.driver",
    "Site": "aaflow.scheduling.site",
    "Workflow": "aaflow.workflow",
    "compile": "aaflow.driver",
    "load_site": "aaflow.scheduling.sitefile",
    "open_index": "aaflow.index",
    "place": "aaflow.driver",
    "run": "aaflow.driver",
}

__all__ = [
    "Domain",
    "Pattern",
    "Pilot",
    "Placement",
    "Plan",
    "RunResult",
    "Site",
    "Workflow",
    "compile",
    "load_site",
    "open_index",
    "place",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'aaflow' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
