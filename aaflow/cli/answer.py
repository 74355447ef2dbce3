"""``aaflow query`` and ``aaflow ask``: what an index holds about a question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer
from rich.console import Console
from rich.markup import escape

from aaflow.cli.options import JsonOption, PilotOption, RanksOption, RunFolderOption, SiteOption
from aaflow.cli.output import print_json
from aaflow.cli.progress import watch_progress
from aaflow.driver import compile, place, run
from aaflow.retrieval import ask_index
from aaflow.workflow import Workflow

IndexArgument = Annotated[Path, typer.Argument(help="Folder of the index.", show_default=False)]
TextArgument = Annotated[str, typer.Argument(help="The question.", show_default=False)]
KOption = Annotated[int, typer.Option("-k", min=1, help="Passages at most.")]
ModelOption = Annotated[str | None, typer.Option("--embedder", help="Where the index's model lies now.")]
BackendOption = Annotated[str, typer.Option("--backend", help="exact, ivf or hnsw.")]


def query(
    index: IndexArgument,
    text: TextArgument,
    k: KOption = 10,
    ranks: RanksOption = None,
    pilot: PilotOption = None,
    site: SiteOption = None,
    backend: BackendOption = "exact",
    embedder: ModelOption = None,
    run_folder: RunFolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the passages nearest to a text: in this process, or with --ranks or --pilot as a task group."""
    hits = hits_json(_hits(index, text, k, ranks, pilot, site, backend, embedder, run_folder, as_json))
    if as_json:
        print_json({"query": text, "index": str(index.absolute()), "hits": hits})
        return
    console = Console()
    for hit in hits:
        console.print(f"[bold]{hit['score']:.4f}[/]  {escape(hit['source'])}  [dim]{hit['start']}-{hit['end']}[/]")
        console.print(f"        {escape(_short(hit['text'], 300))}\n", highlight=False)


def ask(
    index: IndexArgument,
    text: TextArgument,
    k: KOption = 3,
    ranks: RanksOption = None,
    pilot: PilotOption = None,
    site: SiteOption = None,
    backend: BackendOption = "exact",
    embedder: ModelOption = None,
    run_folder: RunFolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question by quoting the best passages, each with its source."""
    hits = hits_json(_hits(index, text, k, ranks, pilot, site, backend, embedder, run_folder, as_json))
    answer = "\n\n".join(f"[{number}] {_short(hit['text'], 700)}" for number, hit in enumerate(hits, 1))
    sources = [{"number": number, "source": hit["source"], "score": hit["score"]} for number, hit in enumerate(hits, 1)]
    if as_json:
        print_json({"question": text, "answer": answer, "sources": sources, "hits": hits})
        return
    console = Console()
    console.print(answer or "The index holds nothing about this.", markup=False, highlight=False)
    for row in sources:
        console.print(f"[dim][{row['number']}][/] {escape(str(row['source']))}  {row['score']:.4f}", highlight=False)


def _hits(
    index: Path,
    text: str,
    k: int,
    ranks: int | None,
    pilot: str | None,
    site: str | None,
    backend: str,
    model: str | None,
    folder: Path | None,
    quiet: bool,
) -> pa.Table:
    if ranks is None and pilot is None and site is None:
        return ask_index(index, [text], k, backend=backend, model=model)
    workflow = Workflow.retrieval(index, [text], k=k, backend=backend, model=model)
    placement = place(compile(workflow, site=site, ranks=ranks), site)
    with watch_progress(Console(stderr=True), placement.plan, quiet=quiet) as progress:
        return run(placement, pilot, run_folder=folder, progress=progress).output()


def hits_json(hits: pa.Table) -> list[dict[str, Any]]:
    """Hits as JSON values; identifiers in hexadecimal."""
    rows = []
    for row in hits.drop(["query_id"]).to_pylist():
        row["chunk_id"] = row["chunk_id"].hex()
        row["content_hash"] = row["content_hash"].hex()
        rows.append(row)
    return rows


def _short(text: str, length: int) -> str:
    folded = text if len(text) <= length else text[:length].rsplit(" ", 1)[0] + " …"
    return folded.strip()
