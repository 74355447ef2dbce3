"""Parsl as a pilot of aaflow: every task group is one Parsl task with its AppFuture.

:class:`ParslPilot` starts an engine of its own from the site, or uses a DataFlowKernel that is there.
:func:`submit` is aaflow inside a Parsl program: futures in, an AppFuture out.
"""

from aaflow_parsl.pilot import ParslPilot
from aaflow_parsl.program import submit

__all__ = ["ParslPilot", "submit"]
