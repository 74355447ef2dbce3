"""What the commands print: JSON for programs, a few lines for people."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow.compute as pc
import typer
from rich.console import Console
from rich.markup import escape

from aaflow.driver import RunResult
from aaflow.errors import InputError, PlacementError, RunCancelled, SiteError, VectorIndexError, WorkflowError
from aaflow.runtime.runfolder import RunFolder
from aaflow.scheduling.batch import NAMES
from aaflow.scheduling.sitefile import load_site

#: Skipped documents that are shown to a person one by one.
SHOWN = 10


def exit_code(error: type[BaseException]) -> int:
    """The exit code that an error of this class ends a command with."""
    if issubclass(error, (KeyboardInterrupt, RunCancelled)):
        return 130
    if issubclass(error, VectorIndexError):
        return 3
    if issubclass(error, (InputError, WorkflowError, PlacementError, SiteError)):
        return 2
    return 1


def print_json(value: Any) -> None:
    """One JSON object on one line of stdout; file names that are not UTF-8 keep their bytes as surrogates."""
    typer.echo(json.dumps(value, ensure_ascii=True, default=str))


def print_plain(console: Console, text: str, style: str = "") -> None:
    """A line as it is: paths stay whole, and nothing in it is taken for markup."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def print_detached(console: Console, folder: RunFolder, as_json: bool) -> None:
    """The name of a run that this command has left to itself, and how to look at it."""
    job = folder.read_json("job.json") or {}
    if as_json:
        shown = {"run": folder.path.name, "run_folder": str(folder.path), "job": job.get("id"), "pid": job.get("pid")}
        print_json(shown)
        return
    default = folder.path.parent == Path(load_site().run_folder).absolute()
    run = folder.path.name if default else shlex.quote(str(folder.path))
    where = f"Submitted {NAMES[job['scheduler']]} job {job['id']}" if "id" in job else f"Started process {job['pid']}"
    print_plain(console, f"{where}: run {folder.path.name}")
    for command, does in (
        ("status", "where it is"),
        ("attach", "its progress until it ends"),
        ("logs", "what its ranks say"),
        ("cancel", "end it"),
    ):
        print_plain(console, f"  aaflow {command} {run}  # {does}")


def notices_json(result: RunResult, kind: str) -> list[dict[str, Any]]:
    """The notices of a kind as ``path``, ``record``, ``reason``, ordered by path and record."""
    rows = result.notices.filter(pc.equal(result.notices["kind"], kind))
    rows = rows.group_by(["source", "record", "reason"]).aggregate([])
    rows = rows.sort_by([("source", "ascending"), ("record", "ascending")])
    roots = _roots(result)
    return [
        {"path": _path(row["source"], roots), "record": row["record"], "reason": row["reason"]}
        for row in rows.to_pylist()
    ]


def _roots(result: RunResult) -> list[str]:
    table = result.placement.plan.tables.get("roots")
    roots = table["root"].to_pylist() if table is not None else []
    return [unquote(urlsplit(root).path) if root.startswith("file:") else root for root in roots]


def _path(source: str, roots: Sequence[str]) -> str:
    """Where a source lies: below the root that holds it, else as it is."""
    for root in roots:
        path = Path(root, source)
        if path.exists() or path.is_symlink():
            return str(path)
    return source


def print_notices(console: Console, skipped: Sequence[dict[str, Any]], folder: Path) -> None:
    """The first skipped documents, and where the rest is."""
    for row in skipped[:SHOWN]:
        where = f" record {row['record']}" if row["record"] else ""
        text = f"  skipped {escape(repr(row['path'])[1:-1])}{where}: {escape(row['reason'])}"
        console.print(text, highlight=False, soft_wrap=True)
    if len(skipped) > SHOWN:
        console.print(
            f"  … and {len(skipped) - SHOWN} more; --json lists them all ({folder})", highlight=False, soft_wrap=True
        )
