"""Launch orders: what a run folder holds for each stage, and what every pilot's task does with it.

An engine's worker imports this module and has to start fast: what composes the launch command is imported while the
group's keeper starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aaflow.runtime import processes
from aaflow.runtime.group import run_group

if TYPE_CHECKING:
    from pathlib import Path

    from aaflow.runtime.group import Command
    from aaflow.scheduling.placement import Placement
    from aaflow.scheduling.slot import Slot


def write_launch_orders(placement: Placement, folder: Path) -> None:
    """Write, for each stage, what :func:`start_stage` needs: small JSON, so that an engine's worker starts fast."""
    from dataclasses import asdict

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
            "slots": [asdict(slot) for slot in placement.slots[stage.name]],
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
    return not {"site-packages", "dist-packages"}.isdisjoint(folder.split(os.sep))


def start_stage(run_folder: str, stage: str, *, fork: bool = False) -> str:
    """Run the task group of a stage on the nodes of this allocation; what every pilot's task does.

    Args:
        run_folder: folder of the run.
        stage: name of the stage.
        fork: see :func:`aaflow.runtime.group.run_group`.

    Returns:
        The group's result, as JSON.

    Raises:
        StageError: the group did not do its work.
        SiteError: the launcher is unknown or missing.
        ValueError: this process can't fork a keeper.
    """
    return json.dumps(run_group(run_folder, stage, lambda: _composed(run_folder, stage), fork=fork).to_json())


def _composed(run_folder: str, stage: str) -> Command:
    """The launch command of a stage's group in this allocation, and its variables."""
    from aaflow.scheduling.launch import TaskGroup, by_batch_system, compose, find_launcher

    with open(os.path.join(run_folder, "launch", f"{stage}.json"), encoding="utf-8") as file:
        order = json.load(file)
    slots = tuple(_slot(slot) for slot in order["slots"])
    python = order["python"] or sys.executable
    argv = (python, "-m", "aaflow.runtime.stage", os.path.join(run_folder, "placement.json"), stage)
    group = TaskGroup(stage, len(slots), slots, argv, order["environment"], processes.GROUP_MARKS)
    named = order["nodes"] > 1 or by_batch_system(order["launcher"])
    nodes = allocated_nodes() if named else ["localhost"]
    launch = compose(
        order["launcher"], group, nodes, order["options"], program=find_launcher(order["launcher"], python)
    )
    return launch.argv, launch.environment


def _slot(data: Mapping[str, Any]) -> Slot:
    from aaflow.scheduling.slot import Accelerators, Slot

    seen = data["accelerators"]
    accelerators = Accelerators(seen["kind"], tuple(seen["ids"]), seen["variable"]) if seen else None
    return Slot(data["node"], tuple(data["cores"]), accelerators, data["memory"])


def allocated_nodes() -> list[str]:
    """Names of the nodes of the batch job that this process is part of; this machine outside of one."""
    listed = os.environ.get("PBS_NODEFILE")
    if listed:
        with open(listed, encoding="ascii") as file:
            return list(dict.fromkeys(file.read().split()))
    compact = os.environ.get("SLURM_JOB_NODELIST")
    if compact:
        shown = subprocess.run(["scontrol", "show", "hostnames", compact], check=True, capture_output=True, text=True)
        return shown.stdout.split()
    return ["localhost"]
