"""``aaflow run``: a workflow from a TOML file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from aaflow.cli.options import (
    DetachOption,
    JsonOption,
    PilotOption,
    RanksOption,
    RunFolderOption,
    SiteOption,
    UntilDoneOption,
)
from aaflow.cli.output import notices_json, print_detached, print_json
from aaflow.cli.progress import watch_progress
from aaflow.detach import detach as start_detached
from aaflow.driver import compile, place, run
from aaflow.errors import WorkflowError
from aaflow.operators.operator import Domain, Pattern
from aaflow.workflow import Stream, Workflow

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


#: Methods of a stream that add an operator, by the kind that a file names.
_FOLLOWING = ("transform", "embed", "upsert", "retrieve", "apply", "filter", "join", "deduplicate", "aggregate")


def run_file(
    workflow: Annotated[Path, typer.Argument(help="TOML file with a table for each operator.", show_default=False)],
    site: SiteOption = None,
    pilot: PilotOption = None,
    ranks: RanksOption = None,
    fuse: Annotated[bool, typer.Option("--fuse/--no-fuse", help="One task group for all, or one per operator.")] = True,
    run_folder: RunFolderOption = None,
    detach: DetachOption = False,
    until_done: UntilDoneOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run the workflow that a file describes."""
    placement = place(compile(read_workflow(workflow), site=site, ranks=ranks, fuse=fuse), site)
    console = Console(stderr=True)
    if detach:
        print_detached(console, start_detached(placement, pilot, run_folder=run_folder, until_done=until_done), as_json)
        return
    with watch_progress(console, placement.plan, quiet=as_json) as progress:
        result = run(placement, pilot, run_folder=run_folder, progress=progress, until_done=until_done)
    if as_json:
        print_json(
            {
                "run_folder": str(result.folder),
                "generation": result.generation,
                "seconds": round(result.seconds, 3),
                "skipped": notices_json(result, "skipped"),
            }
        )
    else:
        console.print(f"done in {result.seconds:.1f} s: {result.folder}")


def read_workflow(path: Path) -> Workflow:
    """Read a workflow file: ``[[operator]]`` tables, each with ``kind``, ``name``, ``from`` and the operator's options.

    ``from`` names the operator whose rows come in; by default the one before it in the file.

    Raises:
        WorkflowError: the file is missing or no TOML, or an operator is unknown or lacks an option.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise WorkflowError(f"workflow file {path}: {error}") from error
    tables, metadata = data.get("operator", []), data.get("metadata", {})
    if not tables or not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise WorkflowError(f"workflow file {path} has no [[operator]] table")
    if not isinstance(metadata, dict):
        raise WorkflowError(f"workflow file {path}: metadata is no table of field names and types")
    workflow = Workflow(metadata=metadata)
    streams: dict[str, Stream] = {}
    latest: Stream | None = None
    for number, table in enumerate(tables, 1):
        where = f"workflow file {path}, operator {number}"
        options = dict(table)
        source = options.pop("from", None)
        if source is not None and source not in streams:
            raise WorkflowError(f"{where}: it reads from {source!r}, and no operator before it has this name")
        latest = _add(workflow, streams[source] if source else latest, options, where)
        streams[latest.operator.name] = latest
    return workflow


def _add(workflow: Workflow, stream: Stream | None, options: dict[str, Any], where: str) -> Stream:
    kind = options.pop("kind", None)
    starts: dict[Any, Callable[..., Stream]] = {"load": workflow.load, "queries": workflow.queries}
    try:
        if kind in starts:
            return starts[kind](**options)
        if kind not in _FOLLOWING:
            raise WorkflowError(f"{where}: unknown kind {kind!r}")
        if stream is None:
            raise WorkflowError(f"{where}: {kind!r} needs rows to read; start with load or queries")
        if kind == "apply":
            options |= _enums(options)
        added: Stream = getattr(stream, kind)(**options)
    except (TypeError, ValueError) as error:
        raise WorkflowError(f"{where} ({kind}): {error}") from error
    return added


def _enums(options: dict[str, Any]) -> dict[str, Any]:
    """The pattern and domain of a user's operator, by the words that plans use, such as ``shuffle-compute``."""
    kinds: dict[str, type[Pattern] | type[Domain]] = {"pattern": Pattern, "domain": Domain}
    try:
        return {key: kind(options[key]) for key, kind in kinds.items() if key in options}
    except ValueError as error:
        words = ", ".join(member.value for kind in kinds.values() for member in kind)
        raise ValueError(f"{error}; use {words}") from error
