"""``aaflow trace``: where the time of a run went."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pyarrow as pa
import typer
from rich.console import Console
from rich.table import Table

from aaflow.cli.options import JsonOption
from aaflow.cli.output import print_json
from aaflow.errors import InputError
from aaflow.runtime.trace import busy_seconds, logical_digest, read_trace, to_chrome


def trace(
    run_folder: Annotated[Path, typer.Argument(help="Folder of the run.", show_default=False)],
    chrome: Annotated[Path | None, typer.Option("--chrome", help="Write it for Perfetto or chrome://tracing.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what every operator of a run did, and export it."""
    folder = run_folder / "trace"
    if not folder.is_dir():
        raise InputError(f"{run_folder} is no run folder: it has no trace")
    table = read_trace(folder)
    if chrome is not None:
        chrome.write_text(to_chrome(table), encoding="utf-8")
    if as_json:
        print_json({"logical_digest": logical_digest(table), "busy_seconds": busy_seconds(table)})
    else:
        Console().print(time_table(table))


def time_table(trace: pa.Table) -> Table:
    """Per operator: batches, rows, bytes, seconds computed, waited for input, waited for room."""
    shown = Table("operator", "batches", "rows", "MB", "busy s", "waiting s", "blocked s", title="Where the time went")
    busy = busy_seconds(trace)
    grouped = trace.group_by("operator", use_threads=False).aggregate(
        [("rows", "count"), ("rows", "sum"), ("bytes", "sum"), ("wait", "sum"), ("blocked", "sum")]
    )
    for row in grouped.to_pylist():
        name = row["operator"]
        numbers = (row["bytes_sum"] / 1e6, busy[name], row["wait_sum"] / 1e9, row["blocked_sum"] / 1e9)
        shown.add_row(name, str(row["rows_count"]), str(row["rows_sum"]), *(f"{number:.2f}" for number in numbers))
    return shown
