"""RADICAL-Pilot as a pilot of aaflow: every task group is one task of RADICAL-Pilot, with a slot for each rank.

:class:`RadicalPilot` starts a session of its own from the site, or uses one that is there. :func:`configure` tells
RADICAL-Pilot of a site, for a program that starts a session of its own on one that aaflow knows.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aaflow_radical.pilot import RadicalPilot
    from aaflow_radical.resource import configure

_HOMES = {"RadicalPilot": "aaflow_radical.pilot", "configure": "aaflow_radical.resource"}

__all__ = ["RadicalPilot", "configure"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'aaflow_radical' has no attribute {name!r}")
    if find_spec("radical") is None or find_spec("radical.pilot") is None:
        from aaflow.errors import DependencyError

        raise DependencyError("pilot 'radical' needs radical.pilot: pip install 'aaflow[radical]'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
