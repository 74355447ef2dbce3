"""Readers of records: each record a document, each bad one a reason, whatever the ranges a file is cut into."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordfiles import load, reasons, texts, write

from aaflow.operators.readers import lines as lines_module

ANY_TEMPORARY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# --- JSON lines ------------------------------------------------------------------------------------------------------


def test_a_json_line_is_a_document_keyed_by_its_byte_offset_or_its_id(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text":"é","id":"x"}\n\n{"text":"b","id":"y","title":"T"}\r\n{"text":"c"}')
    rows, _ = load(path)
    assert [(r["doc_id"], r["record"], r["text"], r["metadata"]["title"]) for r in rows] == [
        ("a.jsonl#0", 0, "é", None),
        ("a.jsonl#24", 24, "b", "T"),
        ("a.jsonl#59", 59, "c", None),
    ]
    assert list(texts(path, id_column="id")) == ["a.jsonl#x", "a.jsonl#y", "a.jsonl#59"]


def test_whole_numbers_are_ids_too_also_among_strings(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text":"a","id":7}\n{"text":"b","id":123456789012345678901}\n')
    assert next(iter(texts(path, id_column="id"))) == "a.jsonl#7"
    path = write(tmp_path, "a.jsonl", '{"text":"a","id":7}\n{"text":"b","id":"x"}\n')
    assert list(texts(path, id_column="id")) == ["a.jsonl#7", "a.jsonl#x"]


def test_the_text_is_the_usual_column_else_all_strings(tmp_path: Path) -> None:
    lines = [
        {"body": "b", "content": "c", "x": "no"},
        {"abstract": "a", "text": " "},
        {"q": "question", "n": 5, "a": "answer", "list": ["no"], "key": "k"},
    ]
    path = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)))
    assert list(texts(path, id_column="key").values()) == ["c", "a", "question\n\nanswer"]


def test_named_text_columns_are_joined_by_an_empty_line(tmp_path: Path) -> None:
    path = write(
        tmp_path, "a.jsonl", '{"q":"one","a":"two","text":"no"}\n{"q":"three"}\n{"q":4,"a":""}\n{"text":"no"}\n'
    )
    rows, notices = load(path, text_columns=("a", "q"))
    assert [r["text"] for r in rows] == ["two\n\none", "three", "4"]
    assert [n["reason"] for n in notices] == ["no text in a, q"]


def test_a_bad_line_is_skipped_and_its_neighbours_kept(tmp_path: Path) -> None:
    bad = [
        b"{",
        b"[1]",
        b"7",
        b'"s"',
        b"null",
        b'{"text":"\xff"}',
        b'{"text":"a"} {"text":"b"}',
        b'{"text":"\0"}',
        b"{}",
    ]
    lines = [b'{"text":"good"}']
    for line in bad:
        lines += [line, b'{"text":"good"}']
    path = write(tmp_path, "a.jsonl", b"\n".join(lines) + b"\n")
    rows, notices = load(path)
    assert len(rows) == len(bad) + 1
    found = {n["record"]: n["reason"] for n in notices}
    assert sorted(found) == [16 + sum(len(b) + 17 for b in bad[:i]) for i in range(len(bad))]
    in_order = [found[record] for record in sorted(found)]
    expected = ["malformed JSON at column 2", "an array: [1]", "a number: 7", "a string", "null", "not valid UTF-8"]
    expected += ["malformed JSON at column 14", "binary content", "no text in this record"]
    assert all(want in reason for want, reason in zip(expected, in_order, strict=True)), in_order


def test_values_that_do_not_fit_their_type_become_null_and_a_conflict(tmp_path: Path) -> None:
    types = {"i": "int64", "f": "float64", "b": "bool", "d": "date", "t": "timestamp", "s": "string"}
    good = {"i": 5, "f": 1.5, "b": True, "d": "2024-02-29", "t": "2024-02-29T12:00:00+01:00", "s": "x"}
    as_text = {"i": "5", "f": "1.5", "b": "true", "d": " 2024-02-29 ", "t": "2024-02-29 11:00:00", "s": "x"}
    bad = {"i": 1.5, "f": "much", "b": "maybe", "d": "2023-02-29", "t": 5}
    lines = [{"text": "a", **good}, {"text": "b", **as_text}, {"text": "c", **bad}, {"text": "d", "i": "", "s": 8}]
    path = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)))
    rows, notices = load(path, metadata=types)
    fitted = {
        **{"b": True, "d": date(2024, 2, 29), "f": 1.5, "i": 5, "s": "x", "title": None},
        "t": datetime(2024, 2, 29, 11, tzinfo=timezone.utc),
    }
    assert [r["metadata"] for r in rows[:2]] == [fitted, fitted]
    assert rows[0]["content_hash"] != rows[1]["content_hash"], "their texts differ"
    assert set(rows[2]["metadata"].values()) == {None}
    assert rows[3]["metadata"]["s"] == "8"
    assert {n["kind"] for n in notices} == {"conflict"}
    assert {n["doc_id"] for n in notices} == {rows[2]["doc_id"]}
    assert sorted(n["reason"].split("'")[1] for n in notices) == ["b", "d", "f", "i", "t"]
    assert "metadata field 'i': '1.5' is not a whole number; it became null" in {n["reason"] for n in notices}


def test_missing_numbers_as_pandas_writes_them_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text":"a","n":NaN}\n{"text":"b","n":-Infinity}\n{"text":5,"n":NaN}\n')
    assert list(texts(path).values()) == ["a", "b", "5"]


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=3,
)
RECORDS = st.dictionaries(st.sampled_from(["text", "body", "id", "n", "f", "title", "other"]), JSON_VALUES, max_size=5)
GOOD = st.fixed_dictionaries({"text": st.text(min_size=1), "n": st.integers(-5, 5), "f": st.floats(-1, 1)})
LINES = st.one_of(
    GOOD.map(lambda value: json.dumps(value, ensure_ascii=False)),
    RECORDS.map(lambda value: json.dumps(value, ensure_ascii=False)),
    st.sampled_from(["", " ", "\r", "{", "}", "[]", '{"text":', '"a"}', '{"text":"x"}{"text":"y"}', "x" * 90]),
)


@ANY_TEMPORARY
@given(
    lines=st.lists(LINES, max_size=12),
    split_bytes=st.integers(1, 400),
    block=st.integers(1, 300),
    options=st.sampled_from([{}, {"id_column": "id"}, {"text_columns": ("body", "text")}]),
    last=st.sampled_from(["", "\n"]),
)
def test_json_lines_are_the_same_documents_for_any_split_and_any_block(
    tmp_path: Path, lines: list[str], split_bytes: int, block: int, options: dict[str, Any], last: str
) -> None:
    data = ("\n".join(lines) + last).encode("utf-8", "replace")
    path = write(tmp_path, "a.jsonl", data)
    common = {"metadata": {"n": "int64", "f": "float64"}, "max_record_bytes": 80, **options}
    whole = load(path, **common)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines_module, "BLOCK_BYTES", block)
        cut = load(path, split_bytes=split_bytes, **common)
    assert cut[0] == whole[0]
    # A file without any record is noticed as such where it is read as one piece.
    mine = [
        sorted((n["record"], n["kind"]) for n in notices if n["doc_id"] != "a.jsonl") for notices in (whole[1], cut[1])
    ]
    assert mine[0] == mine[1]


@ANY_TEMPORARY
@given(values=st.lists(GOOD | RECORDS, min_size=1, max_size=8), odd=st.sampled_from([None, "{bad", '{"text": 5}']))
def test_a_good_line_gives_the_same_document_beside_bad_ones(
    tmp_path: Path, values: list[Any], odd: str | None
) -> None:
    lines = [json.dumps(value) for value in values]
    options: dict[str, Any] = {"id_column": "id", "metadata": {"n": "int64", "f": "float64"}}
    alone: list[dict[str, Any]] = []
    offset = 0
    for line in lines:
        # In a file of its own, after a blank line as long as what is before it in the other file.
        rows, _ = load(write(tmp_path, "a.jsonl", " " * (offset - 1) + "\n" * (offset > 0) + line), **options)
        alone += rows
        offset += len(line) + 1
    together, _ = load(write(tmp_path, "a.jsonl", "\n".join([*lines, odd or ""])), **options)
    assert together[: len(alone)] == alone


def test_a_record_over_the_limit_is_skipped_wherever_it_lies(tmp_path: Path) -> None:
    long = json.dumps({"text": "y" * 1000})
    path = write(tmp_path, "a.jsonl", f'{{"text":"a"}}\n{long}\n{{"text":"b"}}\n{long}')
    for split_bytes in (50, 500, 10_000):
        rows, notices = load(path, max_record_bytes=500, split_bytes=split_bytes)
        assert [r["text"] for r in rows] == ["a", "b"]
        assert [n["record"] for n in notices] == [13, 13 + len(long) + 1 + 13]
        assert all("max_record_bytes (500)" in n["reason"] for n in notices)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.jsonl.gz"])
def test_a_line_of_200_mb_does_not_fill_the_memory(tmp_path: Path, name: str) -> None:
    program = """
import gzip, resource, sys
from aaflow.operators.listing import list_inputs
from aaflow.operators.readers import LoadOptions, read, splits
import aaflow.operators.readers.jsonl, aaflow.operators.readers.delimited

path = sys.argv[1]
with (gzip.open(path, "wb", 1) if path.endswith("gz") else open(path, "wb")) as file:
    if "jsonl" in path:
        file.write(b'{"text":"first"}\\n{"text":"')
    elif "csv" in path:
        file.write(b'id,text\\n1,first\\n2,"')
    for _ in range(200):
        file.write(b"x" * 1_000_000)
    if "jsonl" in path:
        file.write(b'"}\\n{"text":"last"}\\n')
    elif "csv" in path:
        file.write(b'"\\n3,last\\n')

def run(given, options):
    texts, reasons = [], []
    for split in splits(list_inputs([given], options).table):
        for batch, notices in read(split, options):
            texts += batch["text"].to_pylist() if batch else []
            reasons += notices["reason"].to_pylist() if notices else []
    return texts, reasons

small = path + ".small." + "jsonl"
open(small, "w").write('{"text":"a"}\\n')
run(small, LoadOptions())  # what is loaded on first use is not what the line costs
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
texts, reasons = run(path, LoadOptions(max_record_bytes=4 << 20))
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(texts, len(reasons), "max_record_bytes" in reasons[0], grown)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / name)], capture_output=True, text=True, check=True, timeout=110
    )
    (tmp_path / name).unlink()
    said, _, grown = done.stdout.strip().rpartition(" ")
    assert said == ("[] 1 True" if name == "a.txt" else "['first', 'last'] 1 True")
    assert int(grown) < 60 * 1024, "KiB beyond what was there before"


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_a_json_array_is_records_and_an_object_one_document(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", '[{"text":"a","id":"x"},\n{"text":"b"}, 5]')
    rows, [notice] = load(path)
    assert [r["doc_id"] for r in rows] == ["a.json#0", "a.json#1"]
    assert (notice["record"], "a number: 5" in notice["reason"]) == (2, True)
    assert [r["doc_id"] for r in load(path, id_column="id")[0]] == ["a.json#x", "a.json#1"]
    path = write(tmp_path, "b.json", '{"text":"whole","title":"T"}')
    [row], _ = load(path, id_column="title")
    assert (row["doc_id"], row["text"], row["metadata"]["title"]) == ("b.json", "whole", "T")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("", "empty"),
        ("[]", "empty: it has no records"),
        ("{", "malformed JSON at column 2"),
        ('{"text":"a"}\n{"text":"b"}\n', "--format jsonl"),
        ("7", "its top is a number"),
        ('{"n":1}', "no text in this record"),
        ('["' + "x" * 3500 + '"]', "longer than 8 times max_record_bytes (400); as JSON lines"),
        ('{"text":"' + "x" * 500 + '"}', "its text is longer than max_record_bytes (400)"),
        (b'{"text":"\xff"}', "not valid UTF-8 at byte 9"),
    ],
)
def test_a_json_file_that_holds_no_document_is_skipped(tmp_path: Path, data: str | bytes, expected: str) -> None:
    path = write(tmp_path, "a.json", data)
    assert expected in reasons(path, max_record_bytes=400)["a.json"]


def test_an_array_may_be_longer_than_one_of_its_records(tmp_path: Path) -> None:
    array = [{"text": f"record {number}"} for number in range(40)] + [{"text": "y" * 401}]
    path = write(tmp_path, "a.json", json.dumps(array))
    assert path.stat().st_size > 2 * 400
    rows, [notice] = load(path, max_record_bytes=400)
    assert [row["text"] for row in rows] == [f"record {number}" for number in range(40)]
    assert (notice["record"], "its text is longer" in notice["reason"]) == (40, True)


# --- CSV -------------------------------------------------------------------------------------------------------------


def test_csv_rows_are_documents_with_quotes_newlines_and_metadata(tmp_path: Path) -> None:
    data = 'id,text,n,title\r\nx,"a, ""b""\nc",5,T\r\n\r\ny,d "e" f,,\r\n'
    path = write(tmp_path, "a.csv", data)
    rows, notices = load(path, metadata={"n": "int64"})
    assert notices == []
    assert [(r["doc_id"], r["record"], r["text"], r["metadata"]) for r in rows] == [
        ("a.csv#0", 0, 'a, "b"\nc', {"n": 5, "title": "T"}),
        ("a.csv#1", 1, 'd "e" f', {"n": None, "title": None}),
    ]
    assert list(texts(path, id_column="id")) == ["a.csv#x", "a.csv#y"]


def test_tsv_and_semicolons_and_single_carriage_returns_are_understood(tmp_path: Path) -> None:
    assert texts(write(tmp_path, "a.tsv", 'text\tb\n"x\ty"\t1\n')) == {"a.tsv#0": "x\ty"}
    assert texts(write(tmp_path, "b.csv", "a;text\n1;x, y\n")) == {"b.csv#0": "x, y"}
    assert texts(write(tmp_path, "c.csv", "a,text\r1,x\r2,y")) == {"c.csv#0": "x", "c.csv#1": "y"}
    assert texts(write(tmp_path, "d.csv", "\ufeffq,a\nx,y\n")) == {"d.csv#0": "x\n\ny"}


def test_a_bad_csv_row_is_skipped_and_its_neighbours_kept(tmp_path: Path) -> None:
    data = b'a,text\n1,x\n1,2,3\nlonely\n4,\xff\n5,\0\n6,\n7,y\n8,"open'
    rows, notices = load(write(tmp_path, "a.csv", data))
    assert [(r["record"], r["text"]) for r in rows] == [(0, "x"), (6, "y")]
    found = {n["record"]: n["reason"] for n in notices}
    assert found[1].startswith("3 fields where the header has 2")
    assert found[2].startswith("1 fields where the header has 2")
    assert "not valid UTF-8 at byte 2" in found[3]
    assert "binary" in found[4]
    assert "no text" in found[5]
    assert found[7] == "a quoted field is never closed"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (b"\n\n", "empty: it has neither header nor rows"),
        (b"a,b\n", "empty: it has no records"),
        (b'"a,b\n', "a quoted field is never closed"),
        (b"\x00\x01,b\n1,2\n", "binary content"),
        (b"\xff,b\n1,2\n", "not valid UTF-8"),
    ],
)
def test_a_csv_file_without_rows_is_skipped(tmp_path: Path, data: bytes, expected: str) -> None:
    assert expected in reasons(write(tmp_path, "a.csv", data))["a.csv"]


def test_a_missing_text_column_is_said_with_the_columns_that_are_there(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "x,y\n1,2\n")
    assert reasons(path, text_columns=("z",)) == {"a.csv": "no column z; it has x, y: name its text columns"}
    pq.write_table(pa.table({"n": [1, 2]}), tmp_path / "a.parquet")
    assert "no column with text; it has n" in reasons(tmp_path / "a.parquet")["a.parquet"]


def test_a_long_csv_row_is_skipped_and_the_next_ones_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = '2,"' + 'y\n""' * 500 + '"\n'
    path = write(tmp_path, "a.csv", f"a,text\n1,x\n{long}3,z\n{long}")
    for block in (64, 700, 1 << 20):
        monkeypatch.setattr("aaflow.operators.readers.rows.BLOCK_BYTES", block)
        rows, notices = load(path, max_record_bytes=300)
        assert [(r["record"], r["text"]) for r in rows] == [(0, "x"), (2, "z")]
        assert [n["record"] for n in notices] == [1, 3]
        assert all("max_record_bytes (300)" in n["reason"] for n in notices)


CELLS = st.text(st.sampled_from('ab,;"\n\r é'), max_size=8)


@ANY_TEMPORARY
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=15), block=st.integers(1, 80))
def test_csv_gives_back_what_a_writer_wrote_for_any_block(
    tmp_path: Path, rows: list[tuple[str, str]], block: int
) -> None:
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL)
    writer.writerows([("a", "text"), *rows])
    path = write(tmp_path, "a.csv", out.getvalue())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aaflow.operators.readers.rows.BLOCK_BYTES", block)
        found, _ = load(path, metadata={"a": "string"})
    wanted = [(i, text, a or None) for i, (a, text) in enumerate(rows) if text.strip()]
    assert [(r["record"], r["text"], r["metadata"]["a"]) for r in found] == wanted


@ANY_TEMPORARY
@given(data=st.text(st.sampled_from('ab,"\n\r'), max_size=60), block=st.integers(1, 40))
def test_csv_rows_are_those_that_python_reads(tmp_path: Path, data: str, block: int) -> None:
    path = write(tmp_path, "a.csv", "q,a\n" + data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aaflow.operators.readers.rows.BLOCK_BYTES", block)
        found, notices = load(path, metadata={"q": "string", "a": "string"}, text_columns=("q", "a"))
    closed = not any("never closed" in n["reason"] for n in notices)
    wanted = [row for row in csv.reader(io.StringIO(data, newline="")) if row]
    wanted = wanted if closed else wanted[:-1]
    texts = [[c for c in row if c.strip(" \n\r")] for row in wanted if len(row) == 2]
    assert [r["text"] for r in found] == ["\n\n".join(cells) for cells in texts if cells]


# --- all -------------------------------------------------------------------------------------------------------------


def test_compressed_and_recoded_records_are_read_as_a_stream(tmp_path: Path) -> None:
    lines = "".join(f'{{"text":"zeile ü {i}"}}\n' for i in range(1000))
    whole = list(texts(write(tmp_path, "a.jsonl", lines), split_bytes=1000).values())
    assert len(whole) == 1000
    assert list(texts(write(tmp_path, "b.jsonl.gz", gzip.compress(lines.encode())), split_bytes=10).values()) == whole
    path = write(tmp_path, "c.jsonl", lines.encode("utf-16"))
    assert list(texts(path, encoding="utf-16", split_bytes=10).values()) == whole


def test_what_came_before_the_damage_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "BLOCK_BYTES", 5000)
    packed = gzip.compress("".join(f'{{"text":"line {i * i}"}}\n' for i in range(5000)).encode())
    rows, [notice] = load(write(tmp_path, "a.jsonl.gz", packed[: len(packed) // 2]))
    assert 100 < len(rows) < 5000
    assert notice["reason"].startswith("damaged gz data")
    assert f"the {len(rows)} records before it are kept" in notice["reason"]


def test_a_file_of_rubbish_does_not_flood_the_report(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", "x\n" * 25_000 + '{"text":"good"}\n')
    rows, notices = load(path)
    assert [r["text"] for r in rows] == ["good"]
    assert len(notices) == 10_001
    assert notices[-1]["reason"].startswith("15000 more notices")
