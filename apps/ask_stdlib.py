"""The main job: the documentation of Python's standard library becomes an index through Parsl, and answers questions.

    python apps/ask_stdlib.py [FOLDER] [--ranks N] [--embedder MODEL] [--pilot NAME]

Shows the plan and its slots, the progress, what the index holds, answers with their sources, and where the time went.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

import aaflow
from aaflow.cli.progress import watch_progress
from aaflow.cli.trace import time_table
from aaflow.driver import RunResult
from stdlib_docs import render

QUESTIONS = (
    "How do I parse an ISO 8601 date?",
    "How can I run a shell command and capture its output?",
    "Which function finds the longest common prefix of several paths?",
    "How do I compress a file with gzip?",
    "How do I make a temporary directory that is removed afterwards?",
)


def main() -> None:
    """Run the whole job in a folder."""
    parser = argparse.ArgumentParser(description="Index the standard library's documentation and ask it questions.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo"))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--embedder", default="minilm")
    parser.add_argument("--pilot", default="parsl")
    arguments = parser.parse_args()
    console = Console()
    began = time.monotonic()

    corpus, index = arguments.folder / "corpus", arguments.folder / "index"
    console.rule("1. Corpus")
    passages = render(corpus)
    console.print(f"{passages} passages of the standard library in {corpus}, {time.monotonic() - began:.1f} s")

    console.rule("2. Ingestion: load → transform → embed → upsert")
    workflow = aaflow.Workflow()
    documents = workflow.load(corpus, id_column="id")
    documents.transform().embed(arguments.embedder).upsert(index, prune=True)
    ingestion = run(workflow, arguments, console)
    with aaflow.open_index(index) as opened:
        info = opened.info()
    console.print(
        f"{info.documents} documents, {info.chunks} chunks, generation {info.generation}, digest {info.digest}"
    )

    console.rule("3. Retrieval: queries → embed → retrieve")
    retrieval = run(aaflow.Workflow.retrieval(index, QUESTIONS, k=3), arguments, console)
    show_answers(console, retrieval)

    console.rule("4. Where the time went")
    for name, result in (("ingestion", ingestion), ("retrieval", retrieval)):
        for stage, timing in result.timings.items():
            console.print(f"{name}, stage {stage}: {timing['work']:.1f} s of work, {result.seconds:.1f} s in all")
        if result.trace().num_rows:
            console.print(time_table(result.trace()))
    console.print(f"Everything took {time.monotonic() - began:.1f} s. Ask on: aaflow ask {index} 'your question'")


def run(workflow: aaflow.Workflow, arguments: argparse.Namespace, console: Console) -> RunResult:
    """Compile, place, show and run a workflow."""
    plan = aaflow.compile(workflow, ranks=arguments.ranks)
    console.print(plan.explain(), markup=False, highlight=False)
    with watch_progress(console, plan, quiet=False) as progress:
        folder = arguments.folder / "runs"
        return aaflow.run(aaflow.place(plan), pilot=arguments.pilot, run_folder=folder, progress=progress)


def show_answers(console: Console, retrieval: RunResult) -> None:
    """The best passages of each question, with their sources."""
    for number, question in enumerate(QUESTIONS):
        document = Column("document", overflow="fold")  # a source is shown whole
        table = Table("score", document, "passage", title=question, title_justify="left", title_style="bold")
        for hit in retrieval.output().to_pylist():
            if hit["query_id"] == number:
                table.add_row(f"{hit['score']:.3f}", hit["doc_id"], escape(" ".join(hit["text"].split())[:160]))
        console.print(table)


if __name__ == "__main__":
    main()
