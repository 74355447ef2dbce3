"""``filter`` and ``join`` against plain Python."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aaflow import schema
from aaflow.dataplane.communicator import Communicator, SerialCommunicator
from aaflow.errors import InputError, WorkflowError
from aaflow.operators.operator import Item, Operator
from aaflow.operators.relational import Filter, Join, Keys
from aaflow.workflow import Workflow

METADATA = {"year": "int64", "isbn": "string"}
DOCUMENTS = schema.documents(METADATA)
NOTICE = pa.RecordBatch.from_pylist(
    [{"kind": "kept", "doc_id": "x", "partition": 0, "source": "x", "record": 0, "reason": ""}], schema.NOTICES
)


def documents(*rows: dict[str, Any]) -> pa.RecordBatch:
    """Documents of these ids and metadata."""
    plain = {"partition": 0, "record": 0, "text": "t", "content_hash": b"h" * 32, "source_type": "txt", "scope": ""}
    full = [{**plain, "doc_id": row["source"], **row} for row in rows]
    return pa.RecordBatch.from_pylist(full, DOCUMENTS)


def loaded(paths: Path) -> Any:
    return Workflow(metadata=METADATA).load(paths)


def rows_of(function: Any, *batches: pa.RecordBatch) -> list[dict[str, Any]]:
    items = function(iter([Item(0, 0, batch) for batch in batches]))
    return [row for item in items for row in item.rows.to_pylist()]


def metadata_of(operator: Operator, *batches: pa.RecordBatch) -> list[dict[str, Any]]:
    assert operator.input is not None
    given = rows_of(Join(operator.options, operator.input, SerialCommunicator()), *batches)
    return [row["metadata"] for row in given]


def test_a_filter_keeps_true_rows_and_all_that_is_no_row(tmp_path: Path) -> None:
    operator = loaded(tmp_path).filter("metadata.year > 2000").operator
    batch = documents(*({"source": f"{n}", "metadata": {"year": n}} for n in (1999, 2001, None)))
    items = list(Filter(operator.options)(iter([Item(3, 4, batch, NOTICE), Item(3, 4, last=True)])))
    assert [row["source"] for row in items[0].rows.to_pylist()] == ["2001"]
    assert items[0].notices is NOTICE
    assert (items[0].tranche, items[0].partition) == (3, 4)
    assert items[1] == Item(3, 4, last=True)


def test_an_expression_of_pyarrow_filters_too(tmp_path: Path) -> None:
    where = (pc.field("metadata", "year") > 2000) & pc.field("source").isin(["a", "b"])
    operator = loaded(tmp_path).filter(where).operator
    batch = documents({"source": "a", "metadata": {"year": 2001}}, {"source": "c", "metadata": {"year": 2001}})
    assert [row["source"] for row in rows_of(Filter(operator.options), batch)] == ["a"]
    assert set(operator.options) == {"substrait", "text"}


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("yeer > 1", "operator 'filter': there is no column yeer; the columns are doc_id"),
        ("metadata.year > 'a'", "int64, string"),
        ("metadata.year", "metadata.year is int64, and rows are kept where something is true"),
        ("year >", "is no expression"),
        (pc.field("yeer") == 1, "there is no column yeer"),
        (3, "not int"),
    ],
)
def test_a_filter_that_does_not_fit_is_refused_when_it_is_added(where: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(WorkflowError, match=why):
        loaded(tmp_path).filter(where)


TABLE = pa.table(
    {
        "source": ["a.txt", "b.txt", "c.txt"],
        "title": ["A", "B", None],
        "year": [1, 2, 3],
        "price": [1.5, None, 2.5],
        "seen": pa.array([datetime.date(2024, 1, 2), None, None]),
    }
)


def write_csv(path: Path) -> None:
    pa.csv.write_csv(TABLE, str(path))


def write_tsv(path: Path) -> None:
    path.write_text(
        "\n".join(
            "\t".join("" if v is None else str(v) for v in row)
            for row in [TABLE.column_names, *zip(*TABLE.to_pydict().values(), strict=True)]
        )
    )


def write_stream(path: Path) -> None:
    with pa.ipc.new_stream(str(path), TABLE.schema) as writer:
        writer.write_table(TABLE)


def write_lines(path: Path) -> None:
    import json

    path.write_text("".join(json.dumps(row, default=str) + "\n" for row in TABLE.to_pylist()))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("t.csv", write_csv),
        ("t.tsv", write_tsv),
        ("t.parquet", lambda path: pa.parquet.write_table(TABLE, path)),
        ("t.arrow", lambda path: pa.feather.write_feather(TABLE, str(path), compression="uncompressed")),
        ("t.arrow", write_stream),
    ],
)
def test_a_table_of_any_format_becomes_typed_metadata(name: str, write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / name)
    joined = loaded(tmp_path).join(tmp_path / name, on="source")
    assert joined.metadata == {**METADATA, "title": "string", "price": "float64", "seen": "date"}
    given = metadata_of(
        joined.operator,
        documents(
            {"source": "a.txt", "metadata": {"title": "own", "year": 99, "isbn": "i"}},
            {"source": "c.txt", "metadata": {"title": "own", "year": 99}},
            {"source": "elsewhere", "metadata": {"title": "own", "year": 99}},
        ),
    )
    assert given[0] == {"isbn": "i", "price": 1.5, "seen": datetime.date(2024, 1, 2), "title": "A", "year": 1}
    assert (given[1]["year"], given[1]["title"]) == (3, "own")
    assert given[2] == {"isbn": None, "price": None, "seen": None, "title": "own", "year": 99}


def test_json_lines_and_declared_types(tmp_path: Path) -> None:
    write_lines(tmp_path / "t.jsonl")
    joined = loaded(tmp_path).join(tmp_path / "t.jsonl", on="source", columns=["price", "title"])
    assert metadata_of(joined.operator, documents({"source": "a.txt", "metadata": {}}))[0] == {
        "isbn": None, "price": 1.5, "title": "A", "year": None,
    }  # fmt: skip


def test_a_table_is_read_with_the_types_that_it_meets(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("isbn,year\n007,2001\n008,2002\n")
    joined = loaded(tmp_path).join(tmp_path / "t.csv", on="metadata.isbn")
    assert metadata_of(joined.operator, documents({"source": "a", "metadata": {"isbn": "007"}}))[0]["year"] == 2001
    (tmp_path / "k.csv").write_text('path,key,note\na,k,""\n')
    joined = loaded(tmp_path).join(tmp_path / "k.csv", on="source", key="path")
    (given,) = metadata_of(joined.operator, documents({"source": "a", "metadata": {}}))
    assert (given["key"], given["note"]) == ("k", "")
    (tmp_path / "n.csv").write_text("number,isbn\n2001,0042\n")
    joined = loaded(tmp_path).join(tmp_path / "n.csv", on="metadata.year", key="number")
    assert metadata_of(joined.operator, documents({"source": "a", "metadata": {"year": 2001}}))[0]["isbn"] == "0042"


@pytest.mark.parametrize(
    ("text", "options", "why"),
    [
        ("source,x\na,1\nb,2\na,3\nb,4\n", {}, "key 'a' of column 'source' occurs more than once, and 1 other keys do"),
        ("path,x\na,1\n", {}, "no column 'source'; there are path, x"),
        ("source,x,x\na,1,2\n", {}, "has 2 columns 'x'"),
        ("source,x\na,1\n", {"columns": ["y"]}, "no column 'y'"),
        ("source,x\na,12:30:00\n", {}, "column 'x' is time32.s., which metadata can't hold"),
        ("source,year\na,soon\n", {}, "can't be read.*soon"),
        ("source,x\na\n", {}, "can't be read"),
        ("source,x\na,1\n", {"on": "metadata.nothing"}, "there is no column metadata.nothing"),
        ("source,x\na,1\n", {"on": "content_hash"}, "rows can't be found by content_hash"),
    ],
)
def test_a_table_that_cannot_be_joined_is_refused_when_it_is_added(
    text: str, options: dict[str, Any], why: str, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(WorkflowError, match=f"operator 'join': .*{why}"):
        loaded(tmp_path).join(tmp_path / "t.csv", **{"on": "source", **options})


def test_missing_and_unknown_files_and_rows_without_metadata_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkflowError, match=r"absent.csv can't be read: No such file"):
        loaded(tmp_path).join(tmp_path / "absent.csv", on="source")
    (tmp_path / "t.xlsx").write_text("")
    with pytest.raises(WorkflowError, match=r"its name ends in none of \.csv"):
        loaded(tmp_path).join(tmp_path / "t.xlsx", on="source")
    with pytest.raises(WorkflowError, match="column 'metadata'"):
        Workflow().queries(["q"]).join(tmp_path / "t.xlsx", on="text")


def test_a_table_that_changed_after_compiling_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("source,x\na,1\n")
    operator = loaded(tmp_path).join(table, on="source").operator
    table.write_text("source,x\na,2\n")
    with pytest.raises(InputError, match="has changed since the plan was made"):
        Join(operator.options, DOCUMENTS, SerialCommunicator())


def test_rank_0_alone_reads_the_table(tmp_path: Path, on_ranks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.csv").write_text("source,x\na,1\n")
    operator = loaded(tmp_path).join(tmp_path / "t.csv", on="source").operator
    readers: list[int] = []

    def join(communicator: Communicator) -> list[dict[str, Any]]:
        from aaflow.operators import tablefile

        if communicator.rank == 0:
            monkeypatch.setattr(
                "aaflow.operators.relational.read_join_table",
                lambda options: readers.append(0) or tablefile.read_join_table(options),
            )
        return rows_of(Join(operator.options, DOCUMENTS, communicator), documents({"source": "a", "metadata": {}}))

    given = on_ranks(3, join)
    assert [[row["metadata"]["x"] for row in rows] for rows in given] == [[1]] * 3
    assert readers == [0]


keys = st.one_of(st.none(), st.text(max_size=3))


@given(st.lists(keys, unique=True, max_size=20), st.lists(keys, max_size=20))
def test_keys_are_found_where_they_lie(table: list[str | None], asked: list[str | None]) -> None:
    where = Keys(pa.array(table, pa.large_string())).find(pa.array(asked, pa.string()))
    assert where.to_pylist() == [table.index(key) if key is not None and key in table else None for key in asked]


@given(st.lists(st.integers(-5, 5), unique=True), st.lists(st.integers(-6, 6) | st.none()))
def test_numbers_are_keys(table: list[int], asked: list[int | None]) -> None:
    where = Keys(pa.array(table, pa.int64())).find(pa.array(asked, pa.int64()))
    assert where.to_pylist() == [table.index(key) if key in table else None for key in asked]


def test_keys_whose_hashes_share_a_word_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    digests = {"a": [7, 7, 1, 0], "b": [7, 7, 2, 0], "c": [7, 8, 2, 0]}
    monkeypatch.setattr(
        "aaflow.operators.relational._digests",
        lambda keys: np.array([digests[key] for key in keys.to_pylist()], np.uint64).reshape(-1, 4),
    )
    assert Keys(pa.array(["a", "b"])).find(pa.array(["b", "a", "c"])).to_pylist() == [1, 0, None]
