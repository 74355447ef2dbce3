"""``aaflow ingest`` and ``aaflow plan``: a corpus becomes an index, or only the plan of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.filesize import decimal

from aaflow.cli.options import (
    ChunkSizeOption,
    DeduplicateOption,
    DetachOption,
    DimOption,
    EmbedderOption,
    EncodingOption,
    FormatOption,
    FuseOption,
    HiddenOption,
    IdColumnOption,
    IndexOption,
    JoinOption,
    JsonOption,
    MaxRecordOption,
    MetadataOption,
    OnOption,
    OverlapOption,
    PartitionsOption,
    Paths,
    PilotOption,
    PruneOption,
    RanksOption,
    Rows,
    RunFolderOption,
    SiteOption,
    SplitterOption,
    TextColumnOption,
    UntilDoneOption,
    WhereOption,
)
from aaflow.cli.output import notices_json, print_detached, print_json, print_notices
from aaflow.cli.progress import watch_progress
from aaflow.compiler.explain import explain
from aaflow.detach import detach as start_detached
from aaflow.driver import RunResult, compile, place, run
from aaflow.errors import InputError
from aaflow.index import open_index
from aaflow.workflow import Workflow


def ingest(
    paths: Paths,
    index: IndexOption,
    site: SiteOption = None,
    pilot: PilotOption = None,
    ranks: RanksOption = None,
    embedder: EmbedderOption = "hash",
    dim: DimOption = None,
    fuse: FuseOption = True,
    prune: PruneOption = False,
    partitions: PartitionsOption = None,
    splitter: SplitterOption = None,
    chunk_size: ChunkSizeOption = None,
    overlap: OverlapOption = None,
    text_column: TextColumnOption = None,
    id_column: IdColumnOption = None,
    metadata: MetadataOption = None,
    join: JoinOption = None,
    on: OnOption = None,
    where: WhereOption = None,
    deduplicate: DeduplicateOption = None,
    format_: FormatOption = None,
    encoding: EncodingOption = None,
    hidden: HiddenOption = False,
    max_record_bytes: MaxRecordOption = None,
    run_folder: RunFolderOption = None,
    detach: DetachOption = False,
    until_done: UntilDoneOption = False,
    as_json: JsonOption = False,
) -> None:
    """Build or update an index from documents."""
    workflow = ingestion(
        paths, index, embedder=embedder, dimension=dim, prune=prune, partitions=partitions,
        metadata=parse_metadata(metadata or []), join=_joining(join, on), where=where, deduplicate=deduplicate,
        transform=_given(splitter=splitter, size=chunk_size, overlap=overlap),
        load=_given(text_columns=text_column or None, id_column=id_column, format=format_, encoding=encoding,
                    hidden=hidden or None, max_record_bytes=max_record_bytes),
    )  # fmt: skip
    console = Console(stderr=True)
    placement = place(compile(workflow, site=site, ranks=ranks, fuse=fuse), site)
    if detach:
        print_detached(console, start_detached(placement, pilot, run_folder=run_folder, until_done=until_done), as_json)
        return
    with watch_progress(console, placement.plan, quiet=as_json) as progress:
        result = run(placement, pilot, run_folder=run_folder, progress=progress, until_done=until_done)
    summary = ingest_summary(result, index)
    if as_json:
        print_json(summary)
        return
    listing = placement.plan.listing
    twice = f", duplicates in {len(summary['duplicates'])} document(s)" if summary["duplicates"] else ""
    same = f", {listing.unchanged} file(s) unchanged" if listing is not None and listing.unchanged else ""
    console.print(
        f"{summary['documents']} documents, {summary['chunks']} chunks in {index} "
        f"(generation {summary['generation']}{same}{twice}), {result.seconds:.1f} s{_written(summary)}",
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
    partitions: int | None = None,
    metadata: dict[str, str] | None = None,
    join: dict[str, Any] | None = None,
    where: str | None = None,
    deduplicate: Rows | None = None,
    transform: dict[str, Any] | None = None,
    load: dict[str, Any] | None = None,
) -> Workflow:
    """The workflow ``load → transform → embed → upsert``, with ``join``, ``filter``, ``deduplicate`` after ``load``.

    Chunks are deduplicated after ``transform``.
    """
    workflow = Workflow(metadata=metadata or {})
    chunking = dict(transform or {})
    if chunking.get("splitter") == "tokens" and embedder != "hash":
        chunking.setdefault("model", embedder)
    documents = workflow.load(paths, **(load or {}))
    if join is not None:
        documents = documents.join(**join)
    if where is not None:
        documents = documents.filter(where)
    if deduplicate is Rows.DOCUMENTS:
        documents = documents.deduplicate()
    chunks = documents.transform(**chunking)
    if deduplicate is Rows.CHUNKS:
        chunks = chunks.deduplicate()
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


def _joining(table: Path | None, on: str | None) -> dict[str, Any] | None:
    """The arguments of :meth:`aaflow.workflow.Stream.join`.

    Raises:
        InputError: one of the two options is missing.
    """
    if table is None and on is None:
        return None
    if table is None or on is None:
        raise InputError(
            "--join TABLE and --on COLUMN go together: the column of documents that meets one of the table"
        )
    column, _, key = on.partition("=")
    return {"table": table, "on": column.strip(), "key": key.strip() or None}


def ingest_summary(result: RunResult, index: Path) -> dict[str, Any]:
    """What ``aaflow ingest --json`` prints."""
    with open_index(index) as opened:
        info = opened.info()
    published = result.published
    assert published is not None
    return {
        "documents": info.documents,
        "chunks": info.chunks,
        "skipped": notices_json(result, "skipped"),
        "conflicts": notices_json(result, "conflict"),
        "duplicates": notices_json(result, "duplicate"),
        "seconds": round(result.seconds, 3),
        "index": str(Path(index).absolute()),
        "generation": info.generation,
        "digest": info.digest,
        "data_bytes": published.data,
        "written_bytes": published.written,
        "run_folder": str(result.folder),
    }


def _written(summary: dict[str, Any]) -> str:
    data, written = summary["data_bytes"], summary["written_bytes"]
    return f", {decimal(written)} written, {written / data:.2f} per byte of data" if data else ""


def plan(
    paths: Paths,
    index: IndexOption,
    site: SiteOption = None,
    ranks: RanksOption = None,
    embedder: EmbedderOption = "hash",
    dim: DimOption = None,
    fuse: FuseOption = True,
    prune: PruneOption = False,
    partitions: PartitionsOption = None,
    splitter: SplitterOption = None,
    chunk_size: ChunkSizeOption = None,
    overlap: OverlapOption = None,
    text_column: TextColumnOption = None,
    id_column: IdColumnOption = None,
    metadata: MetadataOption = None,
    join: JoinOption = None,
    on: OnOption = None,
    where: WhereOption = None,
    deduplicate: DeduplicateOption = None,
    format_: FormatOption = None,
    encoding: EncodingOption = None,
    hidden: HiddenOption = False,
    max_record_bytes: MaxRecordOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what an ingestion with these options would do, and on which slots; start nothing."""
    workflow = ingestion(
        paths, index, embedder=embedder, dimension=dim, prune=prune, partitions=partitions,
        metadata=parse_metadata(metadata or []), join=_joining(join, on), where=where, deduplicate=deduplicate,
        transform=_given(splitter=splitter, size=chunk_size, overlap=overlap),
        load=_given(text_columns=text_column or None, id_column=id_column, format=format_, encoding=encoding,
                    hidden=hidden or None, max_record_bytes=max_record_bytes),
    )  # fmt: skip
    placement = place(compile(workflow, site=site, ranks=ranks, fuse=fuse), site)
    if as_json:
        typer.echo(placement.plan.to_json())
        return
    Console().print(explain(placement.plan, placement.slots))


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
