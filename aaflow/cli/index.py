"""``aaflow index``: look at, check and tidy an index."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from aaflow.cli.answer import IndexArgument
from aaflow.cli.options import JsonOption
from aaflow.cli.output import print_json
from aaflow.cli.progress import watch_bytes
from aaflow.index import build_backend, open_index
from aaflow.index import compact as compact_index

app = typer.Typer(no_args_is_help=True)


@app.command()
def info(index: IndexArgument, as_json: JsonOption = False) -> None:
    """Show what an index holds."""
    with open_index(index) as opened:
        values = asdict(opened.info())
    if as_json:
        print_json(values)
        return
    table = Table(show_header=False, title=str(index), box=None, title_justify="left")
    for name, value in values.items():
        table.add_row(name, str(value))
    Console().print(table)


@app.command()
def verify(index: IndexArgument, as_json: JsonOption = False) -> None:
    """Read every row again and compare it with what the manifest says; exit code 1 when anything differs."""
    with open_index(index) as opened, watch_bytes("verifying", quiet=as_json) as advance:
        problems, digest = opened.verify(advance), opened.info().digest
    if as_json:
        print_json({"index": str(index.absolute()), "problems": problems, "digest": digest})
    else:
        console = Console()
        for problem in problems:
            console.print(problem, markup=False)
        console.print(f"{len(problems)} problem(s)" if problems else f"whole: {digest}")
    if problems:
        raise typer.Exit(1)


@app.command()
def build(
    index: IndexArgument,
    backend: Annotated[str, typer.Argument(help="ivf or hnsw.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Build an approximate search backend beside every partition that is large enough to need one."""
    with watch_bytes(f"building {backend}", quiet=as_json) as advance:
        built = build_backend(index, backend, advance=advance)
    if as_json:
        print_json({"index": str(index.absolute()), "backend": backend, "built": built})
    else:
        Console().print(f"{backend} built for {built} partition(s)")


@app.command()
def compact(index: IndexArgument, as_json: JsonOption = False) -> None:
    """Rewrite partitions of many segments or tombstones into one segment each; the content stays the same."""
    before = _size(index)
    with watch_bytes("compacting", quiet=as_json) as advance:
        compact_index(index, advance=advance)
    after = _size(index)
    if as_json:
        print_json({"index": str(index.absolute()), "bytes_before": before, "bytes_after": after})
    else:
        Console().print(f"{before} -> {after} bytes")


def _size(index: Path) -> int:
    return sum(path.stat().st_size for path in Path(index).rglob("*") if path.is_file())
