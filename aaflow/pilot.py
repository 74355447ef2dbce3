"""Pilots: what starts task groups on an engine. The protocol, how pilots are found, and the local one."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from aaflow.errors import InputError, PilotError
from aaflow.runtime.group import run_group
from aaflow.scheduling.launch import TaskGroup, by_batch_system, compose, find_launcher
from aaflow.scheduling.slot import Accelerators, Slot

if TYPE_CHECKING:  # an engine's worker imports this module and has to start fast
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
        """Notice an engine that died or lost its nodes: called about every second while a run waits.

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


def start_stage(run_folder: str, stage: str) -> str:
    """Run the task group of a stage on the nodes of this allocation; what every pilot's task does.

    Args:
        run_folder: folder of the run.
        stage: name of the stage.

    Returns:
        The group's result, as JSON.

    Raises:
        StageError: the group did not do its work.
        SiteError: the launcher is unknown or missing.
    """
    order = json.loads(Path(run_folder, "launch", f"{stage}.json").read_text(encoding="utf-8"))
    slots = tuple(_slot(slot) for slot in order["slots"])
    python = order["python"] or sys.executable
    argv = (python, "-m", "aaflow.runtime.stage", str(Path(run_folder, "placement.json")), stage)
    group = TaskGroup(stage, len(slots), slots, argv, order["environment"])
    named = order["nodes"] > 1 or by_batch_system(order["launcher"])
    nodes = allocated_nodes() if named else ["localhost"]
    launch = compose(
        order["launcher"], group, nodes, order["options"], program=find_launcher(order["launcher"], python)
    )
    return json.dumps(run_group(run_folder, stage, launch.argv, launch.environment).to_json())


def _slot(data: Mapping[str, Any]) -> Slot:
    seen = data["accelerators"]
    accelerators = Accelerators(seen["kind"], tuple(seen["ids"]), seen["variable"]) if seen else None
    return Slot(data["node"], tuple(data["cores"]), accelerators, data["memory"])


def allocated_nodes() -> list[str]:
    """Names of the nodes of the batch job that this process is part of; this machine outside of one."""
    listed = os.environ.get("PBS_NODEFILE")
    if listed:
        return list(dict.fromkeys(Path(listed).read_text(encoding="ascii").split()))
    compact = os.environ.get("SLURM_JOB_NODELIST")
    if compact:
        import subprocess

        shown = subprocess.run(["scontrol", "show", "hostnames", compact], check=True, capture_output=True, text=True)
        return shown.stdout.split()
    return ["localhost"]


def write_launch_orders(placement: Placement, folder: Path) -> None:
    """Write, for each stage, what :func:`start_stage` needs: small JSON, so that an engine's worker starts fast."""
    import dataclasses

    from aaflow.scheduling.environment import link_aaflow

    orders = folder / "launch"
    orders.mkdir(mode=0o700, exist_ok=True)
    own = import_folders()
    if any(stage.environment for stage in placement.plan.stages):
        linked = [str(link_aaflow(orders / "imports")), *(path for path in own if not _holds_packages(path))]
    for stage in placement.plan.stages:
        environment = placement.site.environments[stage.environment] if stage.environment else None
        order = {
            "python": environment.python if environment else None,
            "launcher": placement.site.launcher,
            "options": list(placement.site.launcher_options),
            "nodes": placement.site.nodes,
            "slots": [dataclasses.asdict(slot) for slot in placement.slots[stage.name]],
            "environment": {"PYTHONPATH": os.pathsep.join(linked if environment else own)},
        }
        (orders / f"{stage.name}.json").write_text(json.dumps(order), encoding="utf-8")


def import_folders() -> list[str]:
    """Folders from which this program imports besides those of its environment, so that ranks find its operators."""
    given = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    own = [os.path.abspath(folder) for folder in sys.path if os.path.isdir(folder or ".")]
    prefixes = (sys.prefix, sys.base_prefix, sys.exec_prefix)
    return list(dict.fromkeys([*given, *(folder for folder in own if not folder.startswith(prefixes))]))


def _holds_packages(folder: str) -> bool:
    """Whether a folder holds installed packages, which fit one interpreter only."""
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(folder).parts)


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
