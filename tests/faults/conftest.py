"""Ingestions in the middle of their work, as the fault tests take them apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ingestions import ALL, LET_THROUGH, OLD, RANKS, Halted, Ingestion, copy_of, find_parts, wait_for, write_documents

from aaflow.runtime import sharedfiles


@pytest.fixture(scope="session")
def before(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingestion]:
    """An index at generation 1, whose corpus has since grown and changed in part."""
    folder = tmp_path_factory.mktemp("before")
    ingestion = Ingestion(folder, folder / "docs")
    write_documents(ingestion.docs, range(OLD), edition=1)
    ingestion.complete()
    write_documents(ingestion.docs, range(OLD // 2, ALL), edition=2)
    yield ingestion
    ingestion.end()


@pytest.fixture(scope="session")
def undisturbed(before: Ingestion, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the index that an undisturbed run makes of the corpus."""
    ingestion = copy_of(before, tmp_path_factory.mktemp("undisturbed"))
    ingestion.complete()
    generation, digest = ingestion.content()
    assert generation == 2
    ingestion.end()
    return digest


@pytest.fixture
def ingestion(before: Ingestion, tmp_path: Path) -> Iterator[Ingestion]:
    """An ingestion of the grown corpus into a copy of the index at generation 1."""
    made = copy_of(before, tmp_path)
    yield made
    made.end()


@pytest.fixture
def halt(ingestion: Ingestion) -> Callable[[str], Halted]:
    """Starts the ingestion through a pilot and returns when every rank has committed something and is held."""

    def start(pilot: str) -> Halted:
        held = ingestion.folder / "it's $HOME, held"  # ranks find it if no shell on their way took its name apart
        held.mkdir()
        hold = {"FAULTS_HOLD": str(held), "FAULTS_BATCHES": str(LET_THROUGH)}
        command = ingestion.start(ingestion.command(pilot), **hold)
        # Engines take their time where other tests have the cores: six processes of Parsl's, which import it one after
        # the other, 35 s until the first group; an agent of RADICAL-Pilot more.
        seconds = {"parsl": 100, "radical": 150}.get(pilot, 40)
        wait_for(lambda: len(list(held.iterdir())) == RANKS or command.poll() is not None, seconds)
        assert command.poll() is None, command.communicate()
        # A window of embed may hold the last unit back.
        wait_for(lambda: len(ingestion.staged()) >= RANKS * (LET_THROUGH - 1))
        run_folder = ingestion.run_folders()[-1]
        alive = ingestion.alive()
        shared = {file for process in alive for file in sharedfiles.mapped_by(process.pid)}
        parts = find_parts(run_folder, command.pid, alive)
        return Halted(ingestion, command, run_folder, parts, ingestion.staged(), shared)

    return start
