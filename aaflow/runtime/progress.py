"""How far a run is: units that are committed, rows that the ranks of a stage have given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aaflow.compiler.plan import Plan, Stage
from aaflow.errors import InputError, RunError
from aaflow.index.stage import staging_folder
from aaflow.runtime.runfolder import RunFolder


@dataclass(frozen=True)
class StageProgress:
    """How far a stage is.

    Attributes:
        begun: whether a rank has told anything.
        rows: that its slowest operator gave.
        total: that this one will have given; None while nobody can say.
        estimated: whether ``total`` is what the bytes that ``load`` has read so far let expect.
    """

    begun: bool
    rows: int
    total: int | None
    estimated: bool = False


def stage_progress(folder: RunFolder, plan: Plan, stage: Stage) -> StageProgress:
    """How far the ranks of a stage say that they are."""
    own = _notes(folder, stage)
    watched = next((op.name for op in stage.operators if op.kind == "embed"), stage.operators[-1].name)
    done = sum(note["rows"].get(watched, 0) for note in own)
    before = next((edge.source for edge in plan.edges if edge.target == watched), watched)
    giver = plan.stage_of(before)
    given = _notes(folder, giver)
    rows = sum(note["rows"].get(before, 0) for note in given)
    if len(given) == giver.ranks and all(before in note["ended"] for note in given):
        return StageProgress(bool(own), done, rows)
    share = _share_read(folder, plan)
    if not (rows and share):
        return StageProgress(bool(own), done, None)
    return StageProgress(bool(own), done, round(rows / share), estimated=True)


def _notes(folder: RunFolder, stage: Stage) -> list[Any]:
    """What the ranks of a stage have noted, of those that have."""
    noted = (folder.read_json(f"progress/{stage.name}.{rank}.json") for rank in range(stage.ranks))
    return [note for note in noted if note is not None]


def _share_read(folder: RunFolder, plan: Plan) -> float:
    """Which part of the bytes of the input has been read; 0 while a rank that reads has told nothing."""
    if plan.listing is None:
        return 0.0
    stage = plan.stage_of(plan.listing.operator)
    notes = _notes(folder, stage)
    whole = sum(note["read"][1] for note in notes)
    return sum(note["read"][0] for note in notes) / whole if whole and len(notes) == stage.ranks else 0.0


def expected_units(plan: Plan) -> set[tuple[int, int]]:
    """The (tranche, partition) that the ranks of a plan commit at least."""
    listing = plan.tables["listing"]
    pairs = listing.select(["tranche", "partition"]).group_by(["tranche", "partition"]).aggregate([]).to_pydict()
    units: set[tuple[int, int]] = set()
    for tranche, partition in zip(pairs["tranche"], pairs["partition"], strict=True):
        owned = range(plan.partitions) if partition < 0 else [partition]
        units.update((tranche, number) for number in owned)
    return units


def committed_units(plan: Plan) -> int:
    """How many units of a plan are committed and wait to be published; 0 where it writes no index."""
    if plan.index is None:
        return 0
    return sum(1 for _ in staging_folder(Path(plan.index["path"]), plan.work_key).glob("*.json"))


def require_units(plan: Plan) -> None:
    """Refuse a plan whose progress can't be told.

    Raises:
        InputError: it writes no index.
    """
    if plan.index is None:
        raise InputError("--until-done goes by what a run commits to an index, and this workflow writes none")


def require_progress(plan: Plan, before: int, ended: str) -> None:
    """Refuse to go on after a job that committed nothing new.

    Args:
        plan: of the run.
        before: :func:`committed_units` when the job began.
        ended: what ended the job, a sentence without its full stop.

    Raises:
        RunError: nothing was committed since.
    """
    now = committed_units(plan)
    if now <= before:
        raise RunError(
            f"{ended}. No further job is submitted, since this one made no progress: {now} of "
            f"{len(expected_units(plan))} units (tranche, partition) are committed, as before it; give the job more "
            "time (walltime of the site) or more ranks"
        )
