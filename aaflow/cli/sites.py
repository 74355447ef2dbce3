"""``aaflow sites``: the sites that can be named, what one of them has, and what is missing to use it here."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from aaflow.scheduling.site import Environment, Site
from aaflow.scheduling.sitecheck import check_site
from aaflow.scheduling.sitefile import list_sites, load_site, site_path

app = typer.Typer(no_args_is_help=True, help="The machines that aaflow knows, and your own.")

_Name = Annotated[str, typer.Argument(help="A site's name, or the path of a site file.")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@app.command("list")
def list_command(as_json: _Json = False) -> None:
    """List the sites, your own first where two have one name."""
    entries = list_sites()
    if as_json:
        rows = [{**dataclasses.asdict(entry), "path": str(entry.path)} for entry in entries]
        typer.echo(json.dumps({"sites": rows}))
        return
    table = Table("site", "description", "from", box=None, pad_edge=False)
    for entry in entries:
        table.add_row(entry.name, escape(entry.description), entry.origin)
    Console().print(table)


@app.command("show")
def show_command(name: _Name = "local", as_json: _Json = False) -> None:
    """Show what a site has and how jobs start there."""
    path, site = site_path(name), load_site(name)
    if as_json:
        typer.echo(json.dumps({**dataclasses.asdict(site), "path": str(path)}))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in {**_rows(site), "file": str(path)}.items():
        table.add_row(key, escape(value))
    Console().print(table)


@app.command("check")
def check_command(name: _Name = "local", as_json: _Json = False) -> None:
    """Check what can be checked from here; exit code 1 when something keeps the site from working."""
    problems = check_site(load_site(name))
    broken = any(problem.certain for problem in problems)
    if as_json:
        found = [dataclasses.asdict(problem) for problem in problems]
        typer.echo(json.dumps({"site": name, "ok": not broken, "problems": found}))
    else:
        console = Console()
        for problem in problems:
            mark = "[red]wrong[/]" if problem.certain else "[yellow]maybe[/]"
            console.print(
                f"{mark}  [bold]{escape(problem.key)}[/]: {escape(problem.text)}", highlight=False, soft_wrap=True
            )
            console.print(f"       {escape(problem.remedy)}", highlight=False, soft_wrap=True)
        if not problems:
            console.print(f"{escape(name)}: nothing is missing here", highlight=False, soft_wrap=True)
    if broken:
        raise typer.Exit(1)


def _rows(site: Site) -> dict[str, str]:
    seen = site.node.accelerators
    rows: dict[str, Any] = {
        "site": site.name,
        "description": site.description,
        "scheduler": site.scheduler,
        "nodes": site.nodes,
        "cores a node": f"{len(site.node.cores)}: {_ranges(site.node.cores)}",
        "memory a node": f"{site.node.memory / 2**30:.1f} GiB",
        "accelerators a node": f"{len(seen.ids)} {seen.kind}, by {seen.variable}" if seen else "none",
        "oversubscribe": "yes" if site.oversubscribe else "no",
        "launcher": " ".join([site.launcher, *site.launcher_options]),
        "communicator": site.communicator,
        "pilot": site.pilot,
        "run folder": site.run_folder,
        "interface": site.interface,
        "interconnect": site.interconnect or site.interface,
        "encrypted edges": "yes" if site.encrypted_edges else "no",
        **{f"environment {name}": _environment(found) for name, found in site.environments.items()},
        **{key.replace("_", " "): value for key, value in site.provider.items()},
    }
    return {key: str(value).strip() for key, value in rows.items()}


def _environment(environment: Environment) -> str:
    stages = ", ".join(environment.domains) or "all others"
    return f"{environment.python}, collectives {environment.communicator}, for stages of {stages}"


def _ranges(cores: tuple[int, ...]) -> str:
    """Core ids as ranges, in their order."""
    runs: list[list[int]] = []
    for core in cores:
        if runs and core == runs[-1][1] + 1:
            runs[-1][1] = core
        else:
            runs.append([core, core])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)
