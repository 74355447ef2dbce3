"""Corpora, sites and workflows that the tests of the compiler share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from aaflow.scheduling.site import AcceleratorKind, Environment, Node, Site
from aaflow.workflow import Workflow


@pytest.fixture
def site() -> Callable[..., Site]:
    """Makes a site."""

    def make(
        cores: int = 4,
        nodes: int = 1,
        accelerators: int = 0,
        communicator: str = "mpi",
        environments: Mapping[str, Environment] | None = None,
    ) -> Site:
        kind = AcceleratorKind("cuda", tuple(map(str, range(accelerators))), "CUDA_VISIBLE_DEVICES")
        return Site(
            name="test", description="", nodes=nodes,
            node=Node(tuple(range(cores)), 8 << 30, kind if accelerators else None),
            oversubscribe=False, scheduler="local", launcher="mpiexec", launcher_options=(),
            communicator=communicator, pilot="local", environments=environments or {},
        )  # fmt: skip

    return make


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """Whole documents of different sizes."""
    folder = tmp_path / "docs"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02d}.txt").write_text(f"document {number} " * (number + 1))
    return folder


@pytest.fixture
def records(docs: Path) -> Path:
    """A file of records beside the documents."""
    lines = [f'{{"text": "record {number}"}}\n' for number in range(200)]
    (docs / "records.jsonl").write_text("".join(lines))
    return docs


@pytest.fixture
def ingestion(tmp_path: Path) -> Callable[..., Workflow]:
    """Makes the workflow load, transform, embed, upsert."""

    def make(paths: Path, dimension: int = 16, index: str = "index", **load: object) -> Workflow:
        workflow = Workflow()
        chunks = workflow.load(paths, **load).transform(size=50, overlap=5)
        chunks.embed("hash", dimension=dimension).upsert(tmp_path / index, partitions=8)
        return workflow

    return make
