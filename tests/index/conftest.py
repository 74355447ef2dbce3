"""Small corpora with vectors that depend on the text alone, and a run in one process: commit every unit, publish."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from aaflow.hashing import partition_of_id
from aaflow.index import IndexSpec, Publication, Stage, Writer
from aaflow.schema import NOTICES


@dataclass(frozen=True)
class Doc:
    """A document of a corpus: its chunks' texts, and where it comes from."""

    source: str
    texts: tuple[str, ...]
    record: int = 0
    key: str | None = None
    title: str | None = None

    @property
    def doc_id(self) -> str:
        return self.source if self.key is None else f"{self.source}#{self.key}"


def vector(text: str, dimension: int) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    values = np.random.default_rng(seed).standard_normal(dimension)
    return (values / np.linalg.norm(values)).astype(np.float32)


def rows_of(docs: Iterable[Doc], spec: IndexSpec) -> pa.Table:
    columns: dict[str, list[object]] = {f.name: [] for f in spec.rows()}
    for doc in docs:
        start = 0
        whole = hashlib.sha256(repr((doc.texts, doc.title)).encode()).digest()
        for ordinal, text in enumerate(doc.texts):
            place = f"{doc.doc_id}\0{start}\0{text}".encode()
            values = {
                "chunk_id": hashlib.sha256(place).digest()[:16],
                "doc_id": doc.doc_id,
                "partition": partition_of_id(doc.doc_id, spec.partitions),
                "source": doc.source,
                "record": doc.record,
                "ordinal": ordinal,
                "start": start,
                "end": start + len(text.encode()),
                "text": text,
                "content_hash": hashlib.sha256(text.encode()).digest(),
                "doc_hash": whole,
                "source_type": "txt",
                "scope": "default",
                "metadata": {"title": doc.title},
                "vector": vector(text, spec.dimension),
            }
            start += len(text.encode())
            for name, value in values.items():
                columns[name].append(value)
    return pa.table(
        {name: pa.array(v, spec.rows().field(name).type) for name, v in columns.items()}, schema=spec.rows()
    )


def notices_of(docs: Iterable[Doc], spec: IndexSpec, kind: str, reason: str = "") -> pa.Table:
    rows = [
        {
            "kind": kind,
            "doc_id": doc.doc_id,
            "partition": partition_of_id(doc.doc_id, spec.partitions),
            "source": doc.source,
            "record": doc.record,
            "reason": reason,
        }
        for doc in docs
    ]
    return pa.Table.from_pylist(rows, NOTICES)


def sources_of(docs: Iterable[Doc], stamp: int = 0, root: str = "file:///corpus") -> pa.Table:
    names = sorted({doc.source for doc in docs})
    return pa.table(
        {
            "root": pa.array([root] * len(names), pa.string()),
            "source": pa.array(names, pa.string()),
            "size": pa.array([1] * len(names), pa.int64()),
            "mtime_ns": pa.array([stamp] * len(names), pa.int64()),
        }
    )


@dataclass
class Run:
    """What a whole run does to an index, in this process."""

    path: Path
    spec: IndexSpec
    keys: int = field(default=0)

    def __call__(
        self,
        docs: Sequence[Doc],
        *,
        tranches: Callable[[Doc], int] = lambda doc: 0,
        kept: Sequence[Doc] = (),
        notices: pa.Table | None = None,
        sources: pa.Table | None = None,
        pruned: pa.Table | None = None,
        order: Callable[[list[tuple[int, int]]], list[tuple[int, int]]] = sorted,
        key: str | None = None,
    ) -> Publication:
        self.keys += 1
        key = key or f"{self.keys:064x}"
        with Writer.acquire(self.path, self.spec, owner="a test") as writer:
            units = commit(self.path, writer.epoch, key, docs, self.spec, tranches, kept, notices, order)
            read = sources if sources is not None else sources_of([*docs, *kept])
            return writer.publish(key, sources=read, pruned=pruned, units=units)


def commit(
    path: Path,
    epoch: int,
    key: str,
    docs: Sequence[Doc],
    spec: IndexSpec,
    tranches: Callable[[Doc], int] = lambda doc: 0,
    kept: Sequence[Doc] = (),
    notices: pa.Table | None = None,
    order: Callable[[list[tuple[int, int]]], list[tuple[int, int]]] = sorted,
) -> list[tuple[int, int]]:
    stage = Stage(path, epoch, key)
    said = notices_of(kept, spec, "kept")
    if notices is not None:
        said = pa.concat_tables([said, notices])
    parts: dict[tuple[int, int], list[Doc]] = {
        (tranche, partition): []
        for tranche in {0, *(tranches(doc) for doc in docs)}
        for partition in range(spec.partitions)
    }
    for doc in docs:
        parts[tranches(doc), partition_of_id(doc.doc_id, spec.partitions)].append(doc)
    units = order(list(parts))
    for tranche, partition in units:
        mine = said.filter(
            pa.array([p == partition and tranche == 0 for p in said["partition"].to_pylist()], pa.bool_())
        )
        stage.commit(tranche, partition, rows_of(parts[tranche, partition], spec), mine)
    return units


@dataclass(frozen=True)
class Kit:
    """The helpers, as tests see them."""

    Doc = Doc
    rows_of = staticmethod(rows_of)
    notices_of = staticmethod(notices_of)
    sources_of = staticmethod(sources_of)
    commit = staticmethod(commit)
    vector = staticmethod(vector)
    Run = Run


@pytest.fixture(scope="session")
def kit() -> Kit:
    return Kit()


@pytest.fixture
def spec() -> IndexSpec:
    return IndexSpec(8, {"model": "test", "dtype": "float32"}, {"chunk": 100}, {}, partitions=4)


@pytest.fixture
def run(tmp_path: Path, spec: IndexSpec) -> Run:
    return Run(tmp_path / "index", spec)


@pytest.fixture
def corpus() -> list[Doc]:
    return [Doc(f"f{n}.txt", tuple(f"passage {n} {c}" for c in range(1 + n % 3)), title=f"T{n % 2}") for n in range(12)]
