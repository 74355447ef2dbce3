"""Parsl as a pilot of aaflow: every task group is one Parsl task with its AppFuture.

:class:`ParslPilot` starts an engine of its own from the site, or uses a DataFlowKernel that is there.
:func:`submit` is aaflow inside a Parsl program: futures in, an AppFuture out. :func:`configure` makes such a program's
configuration from a site, where it has none of its own.

They load when they are first used: a Parsl worker imports :mod:`aaflow_parsl.tasks` alone and starts at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aaflow_parsl.config import configure
    from aaflow_parsl.pilot import ParslPilot
    from aaflow_parsl.program import submit

_HOMES = {
    "ParslPilot": "aaflow_parsl.pilot",
    "configure": "aaflow_parsl.config",
    "submit": "aaflow_parsl.program",
}

__all__ = ["ParslPilot", "configure", "submit"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'aaflow_parsl' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
