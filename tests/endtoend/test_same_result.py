"""The same index, bit for bit, and the same answers, whatever ranks, stages and pilot did the work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest

import aaflow
from aaflow.driver import RunResult
from aaflow.retrieval import ask_index

pytestmark = [pytest.mark.serial, pytest.mark.timeout(180)]
QUESTIONS = ["Record 12 speaks of topic", "cell 3 of the table", "a leaf of the tree", "subject 14", "écoles"]


@dataclass(frozen=True)
class Reference:
    """What one rank alone made of the corpus."""

    result: RunResult
    info: Any
    hits: pa.Table
    said: list[dict[str, Any]]


def said(result: RunResult) -> list[dict[str, Any]]:
    rows = result.notices.to_pylist()
    return sorted(rows, key=lambda row: (row["source"], row["record"], row["reason"]))


@pytest.fixture(scope="module")
def reference(shared: Any) -> Reference:
    result = shared.ingest(index="reference", ranks=1)
    hits = ask_index(shared.folder / "reference", QUESTIONS, 5)
    return Reference(result, shared.info("reference"), hits, said(result))


def test_the_corpus_is_cut_into_tranches_and_pieces_and_all_of_it_is_there(shared: Any, reference: Reference) -> None:
    listing = reference.result.placement.plan.listing
    assert listing.tranches >= 3
    assert listing.splits > 16
    assert reference.info.documents == 8 + 3 + 1 + 59 + 30
    assert {(row["source"], row["kind"]) for row in reference.said} >= {
        ("binary.txt", "skipped"),
        ("records.jsonl", "skipped"),
    }


@pytest.mark.parametrize(
    ("ranks", "fuse", "pilot"),
    [
        (2, True, "local"),
        (3, True, "local"),
        (8, True, "local"),
        (2, False, "local"),
        (8, True, "parsl"),
        (3, False, "parsl"),
    ],
)
def test_any_ranks_stages_and_pilot_make_the_same_index(
    ranks: int, fuse: bool, pilot: str, shared: Any, reference: Reference
) -> None:
    index = f"{pilot}-{ranks}-{fuse}"
    result = shared.ingest(index=index, ranks=ranks, fuse=fuse, pilot=pilot)
    assert len(result.placement.plan.stages) == (1 if fuse else 4)
    info = shared.info(index)
    assert info.digest == reference.info.digest
    assert (info.documents, info.chunks) == (reference.info.documents, reference.info.chunks)
    assert said(result) == reference.said
    assert ask_index(shared.folder / index, QUESTIONS, 5).equals(reference.hits)


def test_two_runs_of_one_plan_do_the_same_work(shared: Any) -> None:
    plans = [shared.compile(index="twice", ranks=2) for _ in range(2)]
    assert plans[0].to_json() == plans[1].to_json()
    results = []
    for plan in plans:
        results.append(aaflow.run(aaflow.place(plan, "local"), "local", run_folder=shared.folder / "runs"))
        (shared.folder / "twice").rename(shared.folder / f"twice{len(results)}")
    assert results[0].logical_digest == results[1].logical_digest
    assert results[0].trace().num_rows > 0


@pytest.mark.parametrize(("ranks", "pilot"), [(1, "local"), (2, "local"), (3, "parsl")])
def test_questions_have_the_same_answers_on_ranks_as_in_the_callers_process(
    ranks: int, pilot: str, shared: Any, reference: Reference
) -> None:
    workflow = aaflow.Workflow.retrieval(shared.folder / "reference", QUESTIONS, k=5)
    placement = aaflow.place(aaflow.compile(workflow, site="local", ranks=ranks), "local")
    result = aaflow.run(placement, pilot, run_folder=shared.folder / "runs")
    assert result.generation is None
    assert result.output().combine_chunks().equals(reference.hits.combine_chunks())
