"""How far a run is: units that are committed, rows that the ranks of a stage have given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
        total: that this one will have given; None while that is unknown.
    """

    begun: bool
    rows: int
    total: int | None


def stage_progress(folder: RunFolder, stage: Stage) -> StageProgress:
    """How far the ranks of a stage say that they are."""
    noted = [folder.read_json(f"progress/{stage.name}.{rank}.json") for rank in range(stage.ranks)]
    ranks = [note for note in noted if note is not None]
    names = [operator.name for operator in stage.operators]
    watched = next((op.name for op in stage.operators if op.kind == "embed"), names[-1])
    before = names[max(0, names.index(watched) - 1)]
    done = sum(note["rows"].get(watched, 0) for note in ranks)
    known = len(ranks) == stage.ranks and all(before in note["ended"] for note in ranks)
    total = sum(note["rows"].get(before, 0) for note in ranks) if known else None
    return StageProgress(bool(ranks), done, total)


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
