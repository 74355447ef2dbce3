"""``aaflow status``, ``attach``, ``logs``, ``cancel``: runs that this command did not start or no longer waits for."""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from aaflow import detach as detached
from aaflow import errors
from aaflow.cli.options import JsonOption, RunFolderOption, SiteOption
from aaflow.cli.output import exit_code, print_json, print_plain
from aaflow.cli.progress import rows_of, rows_per_second, watch_progress
from aaflow.compiler.plan import Plan
from aaflow.driver import Progress
from aaflow.runtime import records, runs
from aaflow.runtime.progress import committed_units, expected_units, stage_progress
from aaflow.runtime.runfolder import RunFolder
from aaflow.runtime.runs import RunState
from aaflow.scheduling.sitefile import load_site

RunArgument = Annotated[
    str | None, typer.Argument(help="Name or path of a run folder; by default the last run.", show_default=False)
]
#: Seconds between two looks at a run.
LOOK_SECONDS = 0.5


def status(
    run: Annotated[
        str | None, typer.Argument(help="Name or path of a run folder; by default all runs.", show_default=False)
    ] = None,
    site: SiteOption = None,
    run_folder: RunFolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what becomes of runs: waiting in a queue, running and how far, done, failed and why, cancelled, cut short."""
    parent = _runs_folder(site, run_folder)
    if run is not None:
        shown = [_described(runs.look(path)) for path in runs.chain(runs.find_run(run, parent))]
    else:
        shown = [_described(runs.look(path)) for path in runs.find_runs(parent)]
    if as_json:
        print_json({"runs": shown})
        return
    console = Console()
    if not shown:
        print_plain(console, f"there is no run in {parent}")
    for entry in shown:
        words = "; ".join(part for part in (_progress_words(entry), " ".join(entry["words"].split())) if part)
        print_plain(console, f"{entry['run']}  {entry['state']:9}  {words}".rstrip(), _STYLES[entry["state"]])


_STYLES = {"done": "green", "failed": "red", "cut short": "yellow", "cancelled": "dim", "running": "", "waiting": ""}


def attach(
    run: RunArgument = None,
    site: SiteOption = None,
    run_folder: RunFolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the progress of a run until it ends, and end with its exit code; Ctrl-C leaves the run as it is."""
    first = runs.find_run(run, _runs_folder(site, run_folder))
    console = Console(stderr=True)
    try:
        state = runs.current(first)
        while not state.over:
            with watch_progress(console, Plan.load(state.folder), quiet=as_json, patience=0.0) as progress:
                ended = _wait(state.folder, progress)
            state = runs.current(first)
            if not state.over:
                print_plain(console, f"{ended.words}; run {state.folder.name} goes on")
        state = runs.explained(state.folder)
    except KeyboardInterrupt:
        print_plain(console, f"detached; run {first.name} goes on")
        raise typer.Exit(exit_code(KeyboardInterrupt)) from None
    entry = _described(state)
    if as_json:
        print_json(entry)
    elif state.state == "done":
        report = RunFolder(state.folder).read_json("report.json") or {}
        generation = f", generation {report['generation']}" if report.get("generation") is not None else ""
        print_plain(console, f"done in {report.get('seconds', 0.0):.1f} s{generation}: {state.folder}")
    else:
        print_plain(console, f"aaflow: run {state.folder.name} is {state.state}: {state.words}")
    raise typer.Exit(entry["exit_code"])


def cancel(
    run: RunArgument = None,
    site: SiteOption = None,
    run_folder: RunFolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a run: its job leaves the queue, its task groups end, and what was committed stays for a rerun."""
    first = runs.find_run(run, _runs_folder(site, run_folder))
    ended = runs.cancel(first)
    if as_json:
        print_json({"runs": [_described(state) for state in ended]})
        return
    for state in ended or [runs.current(first)]:
        print_plain(Console(), f"run {state.folder.name} is {state.state}")


def logs(
    run: RunArgument = None,
    stage: Annotated[str | None, typer.Argument(help="Only of this stage.", show_default=False)] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only what failed, with tracebacks.")] = False,
    lines: Annotated[int, typer.Option(help="Lines of each log's end.")] = 20,
    site: SiteOption = None,
    run_folder: RunFolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say where the logs of a run are, and show their ends."""
    folder = runs.find_run(run, _runs_folder(site, run_folder))
    if run is None:
        folder = runs.current(folder).folder
    found = _logs(folder, stage, lines)
    if failed:
        found = [log for log in found if log["failed"]]
    if as_json:
        print_json({"run": folder.name, "logs": found})
        return
    console = Console()
    for log in found:
        _print_log(console, log, failed)
    if not found:
        what = "nothing failed" if failed else "there are no logs yet"
        print_plain(console, f"run {folder.name}: {what}")


def drive(folder: Annotated[Path, typer.Argument(help="The run folder.")]) -> None:
    """Be the driver of a detached run: what its job calls."""
    result = detached.drive(folder)
    print(f"done in {result.seconds:.1f} s", flush=True)


def _runs_folder(site: str | None, run_folder: Path | None) -> Path:
    return Path(run_folder or load_site(site).run_folder).expanduser().absolute()


def _wait(folder: Path, progress: Progress | None) -> RunState:
    """Wait for the end of a run."""
    while not (state := runs.look(folder)).over:
        if progress is not None:
            progress(RunFolder(folder))
        time.sleep(LOOK_SECONDS)
    return state


def _described(state: RunState) -> dict[str, Any]:
    """A run as JSON values: its state, its exit code once it is over, and how far it is until then."""
    entry = {**state.to_json(), "exit_code": _exit_code(state), "stages": [], "units": None}
    if state.over:
        return entry
    plan, folder = Plan.load(state.folder), RunFolder(state.folder)
    for stage in plan.stages:
        now = stage_progress(folder, plan, stage)
        rate = round(now.rows / state.seconds, 1) if state.seconds else None
        told = {"rows": now.rows, "total": now.total, "estimated": now.estimated, "rows_per_second": rate}
        entry["stages"].append({"stage": stage.name, **told})
    if plan.index is not None:
        entry["units"] = {"committed": committed_units(plan), "expected": len(expected_units(plan))}
    return entry


def _exit_code(state: RunState) -> int | None:
    if not state.over:
        return None
    if state.error is None:
        return 0
    known = {**vars(errors), "KeyboardInterrupt": KeyboardInterrupt}
    return exit_code(known.get(state.error, Exception))


def _progress_words(entry: dict[str, Any]) -> str:
    words = [f"{units['committed']}/{units['expected']} units"] if (units := entry["units"]) else []
    for stage in entry["stages"]:
        if stage["rows"]:
            count = rows_of(stage["rows"], stage["total"], estimated=stage["estimated"])
            name = f"{stage['stage']}: " if len(entry["stages"]) > 1 else ""
            words.append(f"{name}{count} rows, {rows_per_second(stage['rows'], entry['seconds'])}")
    return "; ".join(words)


def _logs(folder: Path, stage: str | None, lines: int) -> list[dict[str, Any]]:
    """The logs of a run: of its stages in their order, then those of its driver and its engine."""
    names = [planned.name for planned in Plan.load(folder).stages]
    if stage is not None and stage not in names:
        raise errors.InputError(f"run {folder.name} has no stage {stage!r}; it has {', '.join(names)}")
    found = [_stage_log(str(folder), name, lines) for name in ([stage] if stage else names)]
    for name in ("driver", "engine") if stage is None else ():
        path = folder / "logs" / f"{name}.out"
        if path.exists():
            failed = name == "driver" and runs.look(folder).state in ("failed", "cut short")
            found.append({"stage": name, "log": str(path), "failed": failed, "ranks": [], "end": _end(path, lines)})
    return found


def _stage_log(run_folder: str, stage: str, lines: int) -> dict[str, Any]:
    """Where the log of a stage is, its end, and of each rank its place and what it failed with."""
    wrong = records.per_rank(run_folder, "errors", stage)
    ranks = []
    places = records.per_rank(run_folder, "ranks", stage)
    for rank in sorted({*wrong, *places}):
        error, place = wrong.get(rank), places.get(rank, {})
        said = f"{error['type']}: {error['error']}" if error else None
        trace = error.get("traceback") if error else None
        where = {"rank": rank, "host": place.get("host"), "pid": place.get("pid")}
        ranks.append({**where, "error": said, "traceback": trace})
    group = records.read(records.group_path(run_folder, stage))
    failed = bool(wrong) or (group is not None and (group["exit_code"] != 0 or group["reason"] is not None))
    path = Path(records.log_path(run_folder, stage))
    return {"stage": stage, "log": str(path), "failed": failed, "ranks": ranks, "end": _end(path, lines)}


def _end(path: Path, lines: int) -> list[str]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n") for line in deque(file, lines)]


def _print_log(console: Console, log: dict[str, Any], failed: bool) -> None:
    say = partial(print_plain, console)
    say(f"{log['stage']}{' failed' if log['failed'] else ''}: {log['log']}", "bold red" if log["failed"] else "bold")
    for rank in log["ranks"]:
        if rank["error"] or not failed:
            where = f" on {rank['host']} (pid {rank['pid']})" if rank["host"] else ""
            say(f"  rank {rank['rank']}{where}{': ' + rank['error'] if rank['error'] else ''}")
        if rank["traceback"] and failed:
            say("".join(f"    {line}\n" for line in rank["traceback"].splitlines()).rstrip("\n"))
    if not (failed and any(rank["traceback"] for rank in log["ranks"])):
        for line in log["end"]:
            say(f"    {line}")
