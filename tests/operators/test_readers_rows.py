"""CSV and TSV by ranges of bytes: the same documents and notices as in one piece, and no file gone through twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from aaflow.compiler.partitioning import split_readers
from aaflow.operators.listing import cut_tranches, list_inputs
from aaflow.operators.load import Load
from aaflow.operators.readers import Bookmark, LoadOptions, Split, delimited, read, splits
from aaflow.operators.readers import rows as rows_module
from aaflow.operators.readers.sources import open_utf8

ANY_TEMPORARY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

Found = tuple[list[dict[str, Any]], list[str]]


def load(path: Path, options: LoadOptions, readers: list[int] | None = None) -> Found:
    """Documents by record and notices; split after split is read by one of ``readers`` in turn, None: by itself."""
    bookmarks = {reader: Bookmark() for reader in readers or ()}
    rows: list[dict[str, Any]] = []
    notices: list[str] = []
    for number, split in enumerate(splits(list_inputs([str(path)], options).table)):
        bookmark = bookmarks[readers[number % len(readers)]] if readers else None
        for batch, notice in read(split, options, bookmark):
            rows += batch.to_pylist() if batch is not None else []
            notices += map(repr, notice.to_pylist()) if notice is not None else []
    return rows, sorted(notices)


def write(tmp_path: Path, data: bytes, name: str = "a.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


HEADERS = [
    *(b"text,n\n", b"\xef\xbb\xbftext,n\r\n", b"text;n\n", b"text,n\r", b'"text",n\n', b'"over\nlines",text\n'),
    *(b"\n \n\r text,n\n", b"", b"\xff,n\n", b"a\0,n\n", b'"never,n\n', b"n\n", b"text\tn\n"),
]
PIECES = [
    *(b"a", b",", b'"', b'"', b"\n", b"\r", b"\r\n", b'""', b',"', b'",', b'"\n', b'","', b";", b"\t", b" ", b"1,2\n"),
    *(b"\xc3\xa9", b"\xff", b"\0", b"\xef\xbb\xbf", b"x" * 17, b"y" * 40, b'q,"r ""s""\nt"\r\n', b"3,4\r", b"\n\n"),
]


@ANY_TEMPORARY
@given(
    header=st.sampled_from(HEADERS),
    pieces=st.lists(st.sampled_from(PIECES), max_size=40),
    name=st.sampled_from(["a.csv", "a.tsv"]),
    split_bytes=st.integers(1, 60),
    readers=st.none() | st.lists(st.integers(0, 2), min_size=1, max_size=5),
    block=st.integers(1, 60),
    limit=st.sampled_from([5, 16, 30, 1000]),
)
@example(HEADERS[0], [b"1,2\n", b'"', *[b"3,4\n"] * 9], "a.csv", 7, [0, 1], 9, 16)  # over the limit and never closed
@example(HEADERS[0], [b"1,2\n", b'"', *[b"3,4\n"] * 9], "a.csv", 7, [0, 1], 9, 1000)
@example(HEADERS[0], [b"\r\n"] * 9, "a.csv", 1, [0], 1, 1000)  # no records
def test_rows_are_the_same_documents_for_any_split_any_block_and_any_rank(
    tmp_path: Path,
    header: bytes,
    pieces: list[bytes],
    name: str,
    split_bytes: int,
    readers: list[int] | None,
    block: int,
    limit: int,
) -> None:
    path = write(tmp_path, header + b"".join(pieces), name)
    common: dict[str, Any] = {"max_record_bytes": limit, "metadata": {"n": "int64"}}
    whole = load(path, LoadOptions(**common))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "BLOCK_BYTES", block)
        cut = load(path, LoadOptions(split_bytes=split_bytes, **common), readers)
    assert cut == whole


@pytest.mark.parametrize("split_bytes", [1, 10, 1000])
def test_a_row_belongs_to_the_split_that_it_begins_in_and_keeps_its_number(tmp_path: Path, split_bytes: int) -> None:
    path = write(tmp_path, b'a,text\n\n1,one\n2,"t\nw\no"\n\r\nwrong\n3,three\n4,"open\n5,x\n')
    rows, notices = load(path, LoadOptions(split_bytes=split_bytes))
    assert [(r["doc_id"], r["text"]) for r in rows] == [
        ("a.csv#0", "one"),
        ("a.csv#1", "t\nw\no"),
        ("a.csv#3", "three"),
    ]
    assert ["1 fields" in notices[0], "a quoted field is never closed" in notices[1], len(notices)] == [True, True, 2]


def test_a_quote_that_is_never_closed_takes_all_splits_behind_it(tmp_path: Path) -> None:
    path = write(tmp_path, b'text\none\n"' + b"x\n" * 500)
    for limit, reason in ((400, "longer than max_record_bytes"), (4000, "a quoted field is never closed")):
        rows, [notice] = load(path, LoadOptions(max_record_bytes=limit, split_bytes=50), [0, 1])
        assert [row["text"] for row in rows] == ["one"]
        assert reason in notice


def test_a_file_read_again_or_out_of_order_is_gone_through_from_its_beginning(tmp_path: Path) -> None:
    options = LoadOptions(split_bytes=20)
    path = write(tmp_path, b"text\n" + b"".join(b"row %d\n" % n for n in range(30)))
    pieces = list(splits(list_inputs([str(path)], options).table))
    bookmark = Bookmark()

    def texts(split: Split) -> list[str]:
        return [text for batch, _ in read(split, options, bookmark) if batch for text in batch["text"].to_pylist()]

    forwards = [texts(split) for split in pieces]
    assert [text for found in forwards for text in found] == [f"row {n}" for n in range(30)]
    assert [texts(split) for split in pieces] == forwards
    assert [texts(split) for split in reversed(pieces)] == forwards[::-1]
    next(read(pieces[3], options, bookmark))  # whose reader ends early
    assert texts(pieces[4]) == forwards[4]


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_rank_reads_a_file_once_however_many_splits_are_its_own(
    tmp_path: Path, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = LoadOptions(split_bytes=200_000)
    line = b'%d,"some text, and ""more"" of\nit: ' + b"x" * 200 + b'"\n'
    path = write(tmp_path, b"n,text\n" + b"".join(line % n for n in range(20_000)))
    table = cut_tranches(list_inputs([str(path)], options).table, 1_000_000)
    assert table.num_rows > 20
    read_bytes = 0

    @contextmanager
    def counted(split: Split, options: LoadOptions) -> Iterator[Any]:
        with open_utf8(split, options) as stream:
            yield _Counting(stream)

    class _Counting:
        def __init__(self, stream: Any) -> None:
            self._stream, self.seek = stream, stream.seek

        def read(self, size: int) -> Any:
            nonlocal read_bytes
            data = self._stream.read(size)
            read_bytes += len(data)
            return data

    monkeypatch.setattr(delimited, "open_utf8", counted)
    reader = split_readers(table, (0,) * options.partitions, ranks)
    documents: list[str] = []
    for rank in range(ranks):
        read_bytes = 0
        for item in Load(options, table.filter(reader == rank))(iter(())):
            documents += item.rows["doc_id"].to_pylist() if item.rows is not None else []
        assert read_bytes < 1.5 * path.stat().st_size
    assert sorted(documents) == sorted(f"a.csv#{n}" for n in range(20_000))
