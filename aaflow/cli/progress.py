"""Progress of a run: a bar with rate and estimate on a terminal, silence elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from aaflow.cli.output import print_plain
from aaflow.compiler.plan import Plan
from aaflow.driver import Progress as ProgressCallback
from aaflow.index import Advance, untold
from aaflow.runtime import records, runs
from aaflow.runtime.progress import stage_progress
from aaflow.runtime.runfolder import RunFolder

#: Anything shorter than this shows no bar, in seconds.
PATIENCE = 2.0


@contextlib.contextmanager
def watch_progress(
    console: Console, plan: Plan, *, quiet: bool, patience: float | None = None
) -> Iterator[ProgressCallback | None]:
    """A callback for :func:`aaflow.run` that draws one bar per stage, or says where a batch job is; None when quiet.

    Args:
        console: where to draw.
        plan: of the run.
        quiet: whether to draw nothing.
        patience: seconds before anything is drawn; :data:`PATIENCE` by default.
    """
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
        TextColumn("{task.fields[count]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    began = time.monotonic()
    with Progress(*columns, console=console, transient=True) as bars:
        tasks = {
            stage.name: bars.add_task(f"{stage.name} waiting", total=None, count="", rate="", visible=False)
            for stage in plan.stages
        }

        def look(folder: RunFolder) -> None:
            if time.monotonic() - began <= (PATIENCE if patience is None else patience):
                return
            pilot = _pilot(folder)
            driver = records.read(records.driver_path(str(folder.path)))
            seconds = time.time() - driver["began"] if driver is not None else time.monotonic() - began
            for stage in plan.stages:
                now = stage_progress(folder, plan, stage)
                shown = "running" if now.begun else pilot or "waiting for its task group"
                bars.update(
                    tasks[stage.name], completed=now.rows, total=now.total, rate=rows_per_second(now.rows, seconds),
                    count=rows_of(now.rows, now.total, estimated=now.estimated), visible=True,
                    description=f"{stage.name} {shown}",
                )  # fmt: skip

        yield look


@contextlib.contextmanager
def watch_bytes(what: str, *, quiet: bool, console: Console | None = None) -> Iterator[Advance]:
    """What an operation on a whole index tells how far it is: a bar with rate and estimate on a terminal.

    Args:
        what: is done, for the bar.
        quiet: whether to draw nothing.
        console: where to draw; stderr by default.
    """
    shown = console or Console(stderr=True)
    if quiet or not shown.is_terminal:
        yield untold
        return
    began = time.monotonic()
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=shown, transient=True) as bar:
        task = bar.add_task(what, visible=False)

        def advance(done: int, whole: int) -> None:
            bar.update(task, completed=done, total=whole, visible=time.monotonic() - began > PATIENCE)

        yield advance


class _Said:
    """Writes one line whenever a batch job went on: to its queue, to its nodes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = ""

    def __call__(self, folder: RunFolder) -> None:
        now = _pilot(folder)
        # A queue's reasons and guesses change all the time; its first word is enough here.
        if now.split("(")[0].split(",")[0] != self._last.split("(")[0].split(",")[0]:
            print_plain(self._console, now)
            self._last = now


def _pilot(folder: RunFolder) -> str:
    """What a run's groups wait for or run on: its driver says so; where the driver is in a job, the batch system."""
    said = str((folder.read_json("status.json") or {}).get("pilot", ""))
    return said or (runs.look(folder.path).words if (folder.path / "order.json").exists() else "")


def rows_of(rows: int, total: int | None, *, estimated: bool) -> str:
    """A count for a person: of how many, ``~`` before what is estimated."""
    if total is None:
        return f"{rows}/?"
    return f"{rows}/{'~' if estimated else ''}{max(rows, total)}"


def rows_per_second(rows: int, seconds: float | None) -> str:
    """A rate for a person; nothing where there is no time to go by."""
    return f"{rows / seconds:.0f} rows/s" if seconds else ""
