"""From a placement to tasks of RADICAL-Pilot: one for each task group, one slot for each rank. Pure functions."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import radical.pilot as rp

from aaflow.errors import PilotError
from aaflow.runtime import processes
from aaflow.scheduling.placement import Placement


def slots_of(placement: Placement, stage: str, nodes: Sequence[rp.Node]) -> list[rp.Slot]:
    """The slots of a stage's ranks, by rank.

    Ranks that share a core (the site oversubscribes) occupy equal parts of it, which add up without rounding: what
    they leave has to be free for RADICAL-Pilot.

    Args:
        placement: of the run.
        stage: which.
        nodes: those of RADICAL-Pilot's pilot, in its order.

    Raises:
        PilotError: the pilot has not these nodes, cores or accelerators, or others have them; its agent would not say
            so, but stand still.
    """
    everyone = [slot for group in placement.slots.values() for slot in group]
    pinned = Counter((slot.node, core) for slot in everyone for core in slot.cores)
    seeing = Counter((slot.node, name) for slot in everyone if slot.accelerators for name in slot.accelerators.ids)
    known = placement.site.node.accelerators
    made = []
    for slot in placement.slots[stage]:
        if slot.node >= len(nodes):
            raise PilotError(f"stage {stage!r} has a rank on node {slot.node}; the pilot has {len(nodes)} node(s)")
        node = nodes[slot.node]
        ids = slot.accelerators.ids if slot.accelerators and known else ()
        cores = [rp.RO(index=core, occupation=_part(pinned[slot.node, core])) for core in slot.cores]
        gpus = [rp.RO(index=known.ids.index(name), occupation=_part(seeing[slot.node, name])) for name in ids if known]
        _check_free(stage, node, "core", cores, node.cores)
        _check_free(stage, node, "accelerator", gpus, node.gpus)
        made.append(rp.Slot(node_index=node.index, node_name=node.name, cores=cores, gpus=gpus))
    return made


def _part(sharers: int) -> float:
    """What each of so many occupies: the largest power of two that is enough for all."""
    return 1.0 / (1 << (sharers - 1).bit_length())


def _check_free(stage: str, node: rp.Node, what: str, wanted: Sequence[rp.RO], there: Sequence[rp.RO]) -> None:
    for ask in wanted:
        if ask.index >= len(there) or there[ask.index].occupation is None:
            raise PilotError(
                f"stage {stage!r} is placed on {what} {ask.index} of node {node.name}, which this pilot has not; "
                "the site that the plan was placed on has to be that of the pilot"
            )
        if there[ask.index].occupation + ask.occupation > 1:
            raise PilotError(
                f"stage {stage!r} is placed on {what} {ask.index} of node {node.name}, which another task of this "
                "pilot has; give your own tasks slots elsewhere, or aaflow a site with other cores"
            )


def task_description(
    stage: str,
    slots: Sequence[rp.Slot],
    *,
    uid: str,
    pilot: str,
    run_folder: str,
    run: str,
    python: str,
    rank_python: str,
    environment: Mapping[str, str],
) -> rp.TaskDescription:
    """The task that is a stage's group.

    It has the ranks and slots of the placement, and RADICAL-Pilot counts them. The launch line is aaflow's: the
    keeper has to be the launcher's parent to end what a launcher leaves, several groups share a node by core, and
    these commands are tested with each launcher. ``pre_launch`` runs where and when RADICAL-Pilot would launch, inside
    no rank, with any launch method; there :mod:`aaflow_radical.task` takes its place and starts the ranks.

    Args:
        stage: of the group; the task's name.
        slots: see :func:`slots_of`.
        uid: of the task, new in its session.
        pilot: uid of the pilot that has the slots.
        run_folder: of the run.
        run: its id.
        python: interpreter of this program, the same on every node.
        rank_python: interpreter of the ranks.
        environment: variables on top of the pilot's.
    """
    marks = f"-u {processes.ENGINE} -u {processes.GROUP}"  # a keeper lives on without its engine
    values = {**environment, processes.RUN: run}
    variables = " ".join(shlex.quote(f"{name}={value}") for name, value in sorted(values.items()))
    task = shlex.join([python, "-m", "aaflow_radical.task", run_folder, stage])
    return rp.TaskDescription(
        {
            "uid": uid,
            "name": stage,
            "pilot": pilot,
            "executable": rank_python,
            "arguments": ["-m", "aaflow.runtime.stage", str(Path(run_folder, "placement.json")), stage],
            "ranks": len(slots),
            "cores_per_rank": len(slots[0].cores),
            "gpus_per_rank": float(len(slots[0].gpus)),
            "slots": list(slots),
            "environment": dict(environment),
            "pre_launch": [f"exec env {marks} {variables} {task}"],
        }
    )
