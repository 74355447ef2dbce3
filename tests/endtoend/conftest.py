"""A small corpus of every kind of input, and ingestions of it on any ranks and pilot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import aaflow
from aaflow.driver import RunResult
from aaflow.index import IndexInfo, open_index

#: Records of a file are cut into pieces, and the listing into tranches, although the corpus is small.
SPLIT_BYTES, TRANCHE_BYTES = 900, 2500


@dataclass(frozen=True)
class Workspace:
    """A corpus, and the indexes and runs made of it."""

    folder: Path

    @property
    def docs(self) -> Path:
        return self.folder / "docs"

    def compile(
        self,
        *paths: Path,
        index: str = "index",
        ranks: int = 2,
        fuse: bool = True,
        prune: bool = False,
        dimension: int = 32,
        id_column: str | None = None,
        site: aaflow.Site | str = "local",
    ) -> aaflow.Plan:
        workflow = aaflow.Workflow(metadata={"year": "int64"})
        documents = workflow.load(paths or [self.docs], split_bytes=SPLIT_BYTES, id_column=id_column)
        chunks = documents.transform(size=60, overlap=10)
        chunks.embed("hash", dimension=dimension).upsert(self.folder / index, partitions=16, prune=prune)
        return aaflow.compile(workflow, site=site, ranks=ranks, fuse=fuse)

    def ingest(self, *paths: Path, pilot: str = "local", **options: Any) -> RunResult:
        placement = aaflow.place(self.compile(*paths, **options), "local")
        return aaflow.run(placement, pilot, run_folder=self.folder / "runs")

    def info(self, index: str = "index") -> IndexInfo:
        with open_index(self.folder / index) as opened:
            return opened.info()

    def documents(self, index: str = "index") -> set[str]:
        with open_index(self.folder / index) as opened:
            tables = [opened.documents(partition) for partition in range(opened.spec.partitions)]
            return {doc_id for table in tables for doc_id in table["doc_id"].to_pylist()}


def write_corpus(folder: Path) -> None:
    """Whole documents and files of records, some of them bad."""
    (folder / "deep" / "er").mkdir(parents=True)
    for number in range(8):
        text = f"Plain document number {number}. " + f"It tells of subject {number * 7}. " * (number * 3)
        (folder / f"plain{number}.txt").write_text(text)
    for number in range(3):
        (folder / "deep" / f"page{number}.md").write_text(
            f"# Page {number}\n\nAbout écoles {number}.\n\n## More\n\nEnd."
        )
    (folder / "deep" / "er" / "leaf.txt").write_text("a leaf of the tree")
    lines = [
        f'{{"id": "r{n}", "text": "Record {n} speaks of topic {n * n}.", "year": {1990 + n}}}\n' for n in range(60)
    ]
    lines[7] = "{broken\n"
    (folder / "records.jsonl").write_text("".join(lines))
    rows = [f"c{n},cell {n} of the table,{2000 + n}\n" for n in range(30)]
    (folder / "table.csv").write_text("id,text,year\n" + "".join(rows))
    (folder / "binary.txt").write_bytes(b"\x00\x01\x02\xff")
    (folder / "empty.txt").write_bytes(b"")


@pytest.fixture(scope="module")
def small_pieces() -> Iterator[None]:
    """Tranches of a small corpus."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aaflow.compiler.ingest.TRANCHE_BYTES", TRANCHE_BYTES)
        yield


@pytest.fixture
def workspace(tmp_path: Path, small_pieces: None) -> Workspace:
    """A workspace of this test alone."""
    made = Workspace(tmp_path)
    made.docs.mkdir()
    write_corpus(made.docs)
    return made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, small_pieces: None) -> Workspace:
    """A workspace that the tests of a module share; they leave its corpus as it is."""
    made = Workspace(tmp_path_factory.mktemp("shared"))
    made.docs.mkdir()
    write_corpus(made.docs)
    return made


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module of a user's program into a folder that the program imports from."""

    def write(text: str) -> str:
        name = f"operators_of_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        return name

    return write
