"""Pilots: what starts task groups on an engine. The protocol, how pilots are found, and the local one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from aaflow.errors import InputError, PilotError
from aaflow.launchorder import start_stage

if TYPE_CHECKING:
    from aaflow.runtime.lease import RunLease
    from aaflow.scheduling.placement import Placement

#: Entry-point group in which pilots of other distributions are found by name.
ENTRY_POINTS = "aaflow.pilots"


class Pilot(Protocol):
    """Starts task groups as tasks of an engine; used for one run: ``start``, ``submit`` a stage each, ``close``."""

    name: str

    def start(self, placement: Placement, lease: RunLease) -> None:
        """Make the engine ready for the groups of a placement.

        Raises:
            PilotError: the engine can't be used, or can't start all concurrent groups at once.
        """
        ...

    def submit(self, stage: str, run_folder: str) -> Future[str]:
        """Start the task group of a stage; all groups of a run are submitted at once and run at the same time.

        Returns:
            A future of the group's result, as JSON; it fails with :class:`aaflow.errors.StageError`.
        """
        ...

    def check(self, *, anew: bool = False) -> None:
        """Notice an engine that died or lost its nodes: called about twice a second while a run waits.

        Args:
            anew: ask a batch system now, not only every few seconds: something has failed.

        Raises:
            PilotError: it died; its futures will never be done.
            JobEnded: its batch job ended; says why.
        """
        ...

    def status(self) -> str:
        """What the groups wait for or run on, as far as the last :meth:`check` knows; empty where it is plain."""
        ...

    def close(self) -> None:
        """End what ``start`` started; also after a failure."""
        ...


class LocalPilot:
    """Starts task groups on this machine, with no engine in between."""

    name = "local"

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None

    def start(self, placement: Placement, lease: RunLease) -> None:
        """See :class:`Pilot`."""
        if placement.site.nodes != 1:
            raise PilotError(
                f"pilot 'local' starts groups on this machine only; site {placement.site.name!r} has more nodes"
            )
        self._threads = ThreadPoolExecutor(len(placement.plan.stages) or 1, thread_name_prefix="group")

    def submit(self, stage: str, run_folder: str) -> Future[str]:
        """See :class:`Pilot`."""
        if self._threads is None:
            raise PilotError("pilot 'local' was not started")
        return self._threads.submit(start_stage, run_folder, stage)

    def check(self, *, anew: bool = False) -> None:
        """See :class:`Pilot`: there is no engine that could die."""

    def status(self) -> str:
        """See :class:`Pilot`: groups run at once, on this machine."""
        return ""

    def close(self) -> None:
        """See :class:`Pilot`."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)


def find_pilot(name: str) -> Callable[[], Pilot]:
    """The pilot of this name, from the entry points of all installed distributions.

    Raises:
        InputError: there is none; the text says which there are.
        DependencyError: its engine is not installed.
    """
    if name == "local":
        return LocalPilot
    from importlib.metadata import entry_points

    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in found:
        raise InputError(f"there is no pilot {name!r}; installed: {', '.join(sorted({'local', *found}))}")
    pilot: Callable[[], Pilot] = found[name].load()
    return pilot
