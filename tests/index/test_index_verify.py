from __future__ import annotations

import json
import shutil

import pyarrow as pa
import pytest

from aaflow.errors import IndexCorrupt
from aaflow.index import Writer, compact, open_index
from aaflow.index.manifest import Manifest, manifest_path, publish_manifest, read_manifest, segment_file
from aaflow.index.segment import write_segment
from aaflow.index.spec import CREATED


@pytest.fixture
def filled(run, corpus, kit):
    run(corpus)
    run([kit.Doc("f3.txt", ("edited", "tail"))])
    return run.path


def a_segment(path):
    manifest = read_manifest(path)
    partition, segment = max(manifest.segments(), key=lambda item: item[1].rows)
    return path / segment_file(partition, segment.id)


def problems(path):
    with open_index(path) as index:
        return index.verify()


def test_a_flipped_byte_is_found_wherever_it_is(filled, tmp_path):
    size = a_segment(filled).stat().st_size
    for place in (9, size // 3, size // 2, size - 12):
        copy = tmp_path / f"copy{place}"
        shutil.copytree(filled, copy)
        file = a_segment(copy)
        data = bytearray(file.read_bytes())
        data[place] ^= 1
        file.write_bytes(data)
        assert any(file.name in p and "bytes have changed" in p for p in problems(copy)), place


def test_missing_short_and_unknown_files_are_found(filled):
    file = a_segment(filled)
    data = file.read_bytes()
    file.write_bytes(data[:-8])
    assert any("bytes, the manifest says" in p for p in problems(filled))
    file.unlink()
    assert any("missing" in p for p in problems(filled))
    with pytest.raises(IndexCorrupt, match=file.name), open_index(filled) as index:
        index.search([[0.0] * 8], 3)
    file.write_bytes(data)
    (filled / "partitions" / "00000" / "stray.arrow").write_bytes(b"x")
    assert problems(filled) == ["partitions/00000/stray.arrow: nothing refers to it; the next writer removes it"]


def test_files_that_a_living_writer_is_about_to_name_are_no_problem(filled, run, kit, corpus):
    with Writer.acquire(filled, run.spec, owner="a test"):
        (filled / "partitions" / "00000" / "soon.arrow").write_bytes(b"x")
        assert problems(filled) == []


def forge(path, rows, spec, partition=0):
    """Publish a generation whose only segment has ``rows`` and whose manifest agrees with it."""
    rows = rows.drop(["partition"]).append_column(CREATED, pa.array([0] * rows.num_rows, CREATED.type))
    segment = write_segment(path, partition, "forged", rows, spec)
    parts = [()] * spec.partitions
    parts[partition] = (segment,)
    before = read_manifest(path)
    publish_manifest(path, Manifest(before.generation + 1, spec, tuple(parts), None, None, "now"))


def test_rows_out_of_order_twice_or_of_another_partition_are_found(run, corpus, kit):
    run([])
    rows = kit.rows_of(corpus, run.spec)
    mine = rows.filter(pa.array([p == 1 for p in rows["partition"].to_pylist()]))
    forge(run.path, mine.take(list(range(mine.num_rows))[::-1]), run.spec, 1)
    assert [p.split(": ")[1] for p in problems(run.path)][:1] == ["its rows are not in order"]
    forge(run.path, mine.slice(0, 1), run.spec, 2)
    assert any("1 rows belong to other partitions" in p for p in problems(run.path))
    forge(run.path, pa.concat_tables([mine.slice(0, 1)] * 2), run.spec, 1)
    assert any("partition 1: 1 chunks are there twice" in p for p in problems(run.path))


def test_a_manifest_that_was_edited_is_refused(filled):
    file = manifest_path(filled, 2)
    values = json.loads(file.read_bytes())
    file.write_text(json.dumps({**values, "digest": "0" * 64}))
    with pytest.raises(IndexCorrupt, match="not the sum of its segments"):
        open_index(filled)
    file.write_text(json.dumps({**values, "format": 99}))
    with pytest.raises(IndexCorrupt, match="format 99, this aaflow reads format 1"):
        open_index(filled)
    file.write_text("{")
    with pytest.raises(IndexCorrupt, match="is not a manifest"):
        open_index(filled)


def test_tombstones_and_sources_that_were_swapped_are_found(filled):
    tombstones = next((filled / "tombstones").glob("*.arrow"))
    table = pa.ipc.open_file(tombstones).read_all()
    kept = tombstones.read_bytes()
    with pa.ipc.new_file(tombstones, table.schema) as writer:
        for batch in table.to_batches():
            writer.write_batch(pa.record_batch([pa.array([2**20] * len(batch), pa.int64())], schema=table.schema))
    assert any("name rows that there are not" in p for p in problems(filled))
    tombstones.write_bytes(kept)
    manifest = read_manifest(filled)
    (filled / "sources" / manifest.sources).write_bytes(kept)
    assert any("columns are not those of sources" in p for p in problems(filled))
    (filled / "sources" / manifest.sources).write_bytes(b"short")
    assert any("can't be read" in p for p in problems(filled))


def test_compaction_does_not_launder_damaged_rows(filled):
    manifest = read_manifest(filled)
    partition, segment = next(item for item in manifest.segments() if item[1].dead)
    file = filled / segment_file(partition, segment.id)
    data = bytearray(file.read_bytes())
    data[data.rfind(b"passage")] ^= 1
    file.write_bytes(data)
    with pytest.raises(IndexCorrupt, match="hold other rows than the manifest says"):
        compact(filled)
    assert read_manifest(filled) == manifest


def test_verifying_and_compacting_tell_how_far_they_are(filled):
    with open_index(filled) as index:
        whole, told = index.info().bytes, []
        index.verify(lambda done, of: told.append((done, of)))
    assert len(told) > 1
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (whole, whole)
    merged = []
    compact(filled, advance=lambda done, of: merged.append((done, of)))
    assert merged[-1] == (whole, whole)
