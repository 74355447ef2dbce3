"""Files that can't be read for the moment: what the index holds of them stays, and the next run tries them again."""

from __future__ import annotations

from typing import Any

import pytest

import aaflow

pytestmark = [pytest.mark.serial, pytest.mark.timeout(180)]


def test_a_file_that_vanishes_before_it_is_read_keeps_its_documents_until_it_is_read_again(workspace: Any) -> None:
    workspace.docs.mkdir(parents=True, exist_ok=True)
    note = workspace.docs / "note.txt"
    note.write_text("The first version of the note.")
    workspace.ingest()
    before = workspace.info().digest

    note.write_text("The second, longer version of the note.")
    placement = aaflow.place(workspace.compile(), "local")
    note.unlink()
    result = aaflow.run(placement, "local", run_folder=workspace.folder / "runs")
    told = {row["source"]: row["reason"] for row in result.notices.to_pylist() if row["kind"] == "skipped"}
    assert told["note.txt"].startswith("unreadable:")
    assert workspace.info().digest == before

    note.write_text("The second, longer version of the note.")
    workspace.ingest()
    workspace.ingest(index="rebuilt")
    assert workspace.info().digest == workspace.info("rebuilt").digest != before


def test_pruning_spares_what_listing_met_and_could_not_see(workspace: Any) -> None:
    note = workspace.docs / "note.txt"
    workspace.docs.mkdir(parents=True, exist_ok=True)
    note.write_text("A note that stays.")
    workspace.ingest()
    before = workspace.info().digest
    note.unlink()
    note.symlink_to("/mount/that/is/not/there")
    workspace.ingest(prune=True)
    assert workspace.info().digest == before
    note.unlink()
    workspace.ingest(prune=True)
    assert "note.txt" not in workspace.documents()
