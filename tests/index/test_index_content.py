"""The content of an index depends on its documents, not on how they came into it."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aaflow.hashing import digest_hex, row_digest_sum
from aaflow.index import IndexSpec, compact, open_index

quick = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SPEC = IndexSpec(4, {"model": "test"}, {}, {}, partitions=3)


def index_of(kit, steps):
    """The info and problems of an index after ``steps``, and again after compaction."""
    with tempfile.TemporaryDirectory() as folder:
        run = kit.Run(Path(folder) / "index", SPEC)
        for step in steps:
            run(**step)
        with open_index(run.path) as index:
            before, problems = index.info(), index.verify()
        compact(run.path)
        with open_index(run.path) as index:
            after, more = index.info(), index.verify()
            assert after.tombstones == 0
            assert all(len(segments) <= 1 for segments in index.manifest.partitions)
        assert problems == more == []
        assert (after.digest, after.documents, after.chunks) == (before.digest, before.documents, before.chunks)
        return before


@quick
@given(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=8), tranches=st.integers(1, 3), seed=st.integers(0, 99))
def test_the_digest_is_that_of_the_rows_in_any_segmentation_and_order(kit, sizes, tranches, seed):
    shuffled = random.Random(seed)
    docs = [kit.Doc(f"{n}.txt", tuple(f"{n} {c}" for c in range(size))) for n, size in enumerate(sizes)]
    deal = {doc.source: shuffled.randrange(tranches) for doc in docs}
    mixed = shuffled.sample(docs, len(docs))
    info = index_of(
        kit,
        [
            {
                "docs": mixed,
                "tranches": lambda doc: deal[doc.source],
                "order": lambda units: shuffled.sample(units, len(units)),
            }
        ],
    )
    rows = kit.rows_of(docs, SPEC).drop(["partition"])
    assert info.digest == digest_hex(row_digest_sum(rows))
    assert (info.documents, info.chunks) == (len(docs), rows.num_rows)


# A state of a corpus: per file, per record, the version of its text; None for a record that is not there.
files = st.lists(st.lists(st.none() | st.integers(0, 2), min_size=1, max_size=3), min_size=4, max_size=4)


@quick
@given(states=st.lists(files, min_size=2, max_size=4))
def test_an_index_that_was_updated_equals_one_that_was_built_anew(kit, states):
    def docs_of(state):
        return [
            kit.Doc(f"{f}.csv", (f"{f} {r} v{version}", "tail"), record=r, key=str(r))
            for f, versions in enumerate(state)
            for r, version in enumerate(versions)
            if version is not None
        ]

    every = [kit.Doc(f"{f}.csv", ("",)) for f in range(4)]
    steps, known = [], {}
    for stamp, state in enumerate(states):
        docs = docs_of(state)
        kept = [doc for doc in docs if known.get(doc.doc_id) == doc]
        changed = [doc for doc in docs if doc not in kept]
        steps.append({"docs": changed, "kept": kept, "sources": kit.sources_of(every, stamp=stamp)})
        known = {doc.doc_id: doc for doc in docs}
    updated = index_of(kit, steps)
    rebuilt = index_of(kit, [{"docs": docs_of(states[-1]), "sources": kit.sources_of(every)}])
    assert (updated.digest, updated.documents, updated.chunks) == (rebuilt.digest, rebuilt.documents, rebuilt.chunks)


def test_the_digest_knows_nothing_of_time_or_place(run, corpus):
    first = run(corpus)
    shutil.move(run.path, run.path.with_name("moved"))
    with open_index(run.path.with_name("moved")) as moved:
        assert moved.info().digest == first.manifest.digest
        assert moved.verify() == []
    assert run(corpus).manifest.digest == first.manifest.digest
