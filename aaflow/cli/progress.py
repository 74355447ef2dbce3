"""Progress of a run: a bar with rate and estimate on a terminal, silence elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from aaflow.compiler.plan import Plan, Stage
from aaflow.driver import Progress as ProgressCallback
from aaflow.runtime.runfolder import RunFolder

#: Anything shorter than this shows no bar, in seconds.
PATIENCE = 2.0


@contextlib.contextmanager
def watch_progress(console: Console, plan: Plan, *, quiet: bool) -> Iterator[ProgressCallback | None]:
    """A callback for :func:`aaflow.run` that draws one bar per stage, or says where a batch job is; None when quiet."""
    if quiet:
        yield None
        return
    if not console.is_terminal:
        yield _Said(console)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    began = time.monotonic()
    with Progress(*columns, console=console, transient=True) as bars:
        tasks = {
            stage.name: bars.add_task(f"{stage.name} waiting", total=None, rate="", visible=False)
            for stage in plan.stages
        }

        def look(folder: RunFolder) -> None:
            pilot = _pilot(folder)
            for stage in plan.stages:
                if time.monotonic() - began > PATIENCE:
                    done, total, rate, state = _state(folder, stage, time.monotonic() - began)
                    shown = "running" if state else pilot or "waiting for its task group"
                    bars.update(
                        tasks[stage.name], completed=done, total=total, rate=rate, visible=True,
                        description=f"{stage.name} {shown}",
                    )  # fmt: skip

        yield look


class _Said:
    """Writes one line whenever a batch job went on: to its queue, to its nodes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = ""

    def __call__(self, folder: RunFolder) -> None:
        now = _pilot(folder)
        # A queue's reasons and guesses change all the time; its first word is enough here.
        if now.split("(")[0].split(",")[0] != self._last.split("(")[0].split(",")[0]:
            self._console.print(now, highlight=False, markup=False, soft_wrap=True)
            self._last = now


def _pilot(folder: RunFolder) -> str:
    return str((folder.read_json("status.json") or {}).get("pilot", ""))


def _state(folder: RunFolder, stage: Stage, seconds: float) -> tuple[int, int | None, str, bool]:
    """Rows that the slowest operator gave, rows it will have given (None while that is unknown), the rate, any life."""
    noted = [folder.read_json(f"progress/{stage.name}.{rank}.json") for rank in range(stage.ranks)]
    ranks = [note for note in noted if note is not None]
    names = [operator.name for operator in stage.operators]
    watched = next((op.name for op in stage.operators if op.kind == "embed"), names[-1])
    before = names[max(0, names.index(watched) - 1)]
    done = sum(note["rows"].get(watched, 0) for note in ranks)
    known = len(ranks) == stage.ranks and all(before in note["ended"] for note in ranks)
    total = sum(note["rows"].get(before, 0) for note in ranks) if known else None
    return done, total, f"{done / seconds:.0f} rows/s", bool(ranks)
