"""``aaflow ingest`` and ``aaflow plan``: a corpus becomes an index, or only the plan of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from aaflow.cli.output import notices_json, print_json, print_notices
from aaflow.cli.progress import watch_progress
from aaflow.compiler.explain import explain
from aaflow.driver import RunResult, compile, place, run
from aaflow.errors import InputError
from aaflow.index import open_index
from aaflow.pilot import find_pilot
from aaflow.workflow import Workflow

Paths = Annotated[
    list[str], typer.Argument(help="Folders, files, globs or fsspec URLs; name=path names a root.", show_default=False)
]
IndexOption = Annotated[Path, typer.Option("--index", help="Folder of the index.", show_default=False)]
SiteOption = Annotated[str | None, typer.Option("--site", help="Name or file of a site; by default 'local'.")]


def _known_pilot(name: str | None) -> str | None:
    """Refuse an unknown pilot before anything is listed."""
    if name is not None:
        find_pilot(name)
    return name


PilotOption = Annotated[
    str | None, typer.Option("--pilot", callback=_known_pilot, help="local, parsl, …; by default the site's.")
]
RanksOption = Annotated[int | None, typer.Option("--ranks", help="MPI ranks of a stage; by default one per core.")]
EmbedderOption = Annotated[
    str, typer.Option("--embedder", help="hash, or name or folder of a sentence-transformers model.")
]
DimOption = Annotated[int | None, typer.Option("--dim", help="Dimension of the vectors (hash only; 384 by default).")]
JsonOption = Annotated[bool, typer.Option("--json", help="End with one JSON object on stdout.")]
RunFolderOption = Annotated[Path | None, typer.Option("--run-folder", help="Parent of the run folder.")]


def ingest(
    paths: Paths,
    index: IndexOption,
    site: SiteOption = None,
    pilot: PilotOption = None,
    ranks: RanksOption = None,
    embedder: EmbedderOption = "hash",
    dim: DimOption = None,
    fuse: Annotated[bool, typer.Option("--fuse/--no-fuse", help="One task group for all, or one per operator.")] = True,
    prune: Annotated[bool, typer.Option("--prune", help="Drop documents of these paths that are gone.")] = False,
    partitions: Annotated[int, typer.Option(help="Partitions of a new index.")] = 64,
    splitter: Annotated[str | None, typer.Option(help="characters, tokens, markdown, delimiter or whole.")] = None,
    chunk_size: Annotated[int | None, typer.Option(help="Size of a chunk, in the splitter's unit.")] = None,
    overlap: Annotated[int | None, typer.Option(help="Overlap of two chunks, in the splitter's unit.")] = None,
    text_column: Annotated[
        list[str] | None, typer.Option(help="Columns of records that are text; may be repeated.")
    ] = None,
    id_column: Annotated[str | None, typer.Option(help="Column of records that names a document.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(help="name:type of a metadata field; may be repeated.")] = None,
    format_: Annotated[str | None, typer.Option("--format", help="Read every file as this format.")] = None,
    encoding: Annotated[str | None, typer.Option(help="Encoding of text and records; UTF-8 by default.")] = None,
    hidden: Annotated[bool, typer.Option("--hidden", help="Read files whose names begin with a dot, too.")] = False,
    max_record_bytes: Annotated[int | None, typer.Option(help="A larger document or record is skipped.")] = None,
    run_folder: RunFolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build or update an index from documents."""
    workflow = ingestion(
        paths, index, embedder=embedder, dimension=dim, prune=prune, partitions=partitions,
        metadata=parse_metadata(metadata or []),
        transform=_given(splitter=splitter, size=chunk_size, overlap=overlap),
        load=_given(text_columns=text_column or None, id_column=id_column, format=format_, encoding=encoding,
                    hidden=hidden or None, max_record_bytes=max_record_bytes),
    )  # fmt: skip
    console = Console(stderr=True)
    placement = place(compile(workflow, site=site, ranks=ranks, fuse=fuse), site)
    with watch_progress(console, placement.plan, quiet=as_json) as progress:
        result = run(placement, pilot, run_folder=run_folder, progress=progress)
    summary = ingest_summary(result, index)
    if as_json:
        print_json(summary)
        return
    listing = placement.plan.listing
    same = f", {listing.unchanged} file(s) unchanged" if listing is not None and listing.unchanged else ""
    console.print(
        f"{summary['documents']} documents, {summary['chunks']} chunks in {index} "
        f"(generation {summary['generation']}{same}), {result.seconds:.1f} s",
        soft_wrap=True,
    )
    print_notices(console, summary["skipped"], result.folder)


def ingestion(
    paths: list[str],
    index: Path,
    *,
    embedder: str = "hash",
    dimension: int | None = None,
    prune: bool = False,
    partitions: int = 64,
    metadata: dict[str, str] | None = None,
    transform: dict[str, Any] | None = None,
    load: dict[str, Any] | None = None,
) -> Workflow:
    """The workflow ``load → transform → embed → upsert``."""
    workflow = Workflow(metadata=metadata or {})
    chunks = workflow.load(paths, **(load or {})).transform(**(transform or {}))
    chunks.embed(embedder, dimension=dimension).upsert(index, prune=prune, partitions=partitions)
    return workflow


def parse_metadata(fields: list[str]) -> dict[str, str]:
    """``name:type`` texts as a mapping; the type is string where none is given.

    Raises:
        InputError: a type is unknown.
    """
    from aaflow.schema import metadata_type

    parsed = {name: kind or "string" for name, _, kind in (field.partition(":") for field in fields)}
    try:
        metadata_type(parsed)
    except ValueError as error:
        raise InputError(f"--metadata: {error}") from error
    return parsed


def ingest_summary(result: RunResult, index: Path) -> dict[str, Any]:
    """What ``aaflow ingest --json`` prints."""
    with open_index(index) as opened:
        info = opened.info()
    return {
        "documents": info.documents,
        "chunks": info.chunks,
        "skipped": notices_json(result, "skipped"),
        "conflicts": notices_json(result, "conflict"),
        "seconds": round(result.seconds, 3),
        "index": str(Path(index).absolute()),
        "generation": info.generation,
        "digest": info.digest,
        "run_folder": str(result.folder),
    }


def plan(
    paths: Paths,
    index: IndexOption,
    site: SiteOption = None,
    ranks: RanksOption = None,
    embedder: EmbedderOption = "hash",
    dim: DimOption = None,
    fuse: Annotated[bool, typer.Option("--fuse/--no-fuse", help="One task group for all, or one per operator.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Show what an ingestion would do, and on which slots; start nothing."""
    workflow = ingestion(paths, index, embedder=embedder, dimension=dim)
    placement = place(compile(workflow, site=site, ranks=ranks, fuse=fuse), site)
    if as_json:
        typer.echo(placement.plan.to_json())
        return
    Console().print(explain(placement.plan, placement.slots))


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
