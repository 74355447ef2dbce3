"""Readers of whole documents: every format gives its text and title, everything unreadable a reason."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from pypdf import PdfReader, PdfWriter

from aaflow.hashing import partition_of_id
from aaflow.operators.listing import list_inputs
from aaflow.operators.readers import LoadOptions, read, splits
from aaflow.schema import NOTICES, documents


def load(paths: str | Path | list[str], **options: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    given = [str(paths)] if isinstance(paths, (str, Path)) else paths
    opts = LoadOptions(**options)
    listing = list_inputs(given, opts)
    rows, notices = [], listing.notices.to_pylist()
    for split in splits(listing.table):
        for batch, notice in read(split, opts):
            if batch is not None:
                batch.validate(full=True)
                assert batch.schema == documents(opts.metadata)
                rows += batch.to_pylist()
            if notice is not None:
                assert notice.schema == NOTICES
                notices += notice.to_pylist()
    return rows, notices


def one_reason(path: Path, **options: Any) -> str:
    rows, notices = load(path, **options)
    assert rows == []
    assert [n["kind"] for n in notices] == ["skipped"]
    return str(notices[0]["reason"])


def make_pdf(*pages: str, title: str | None = None, more: str = "") -> bytes:
    """A PDF with one line of text a page; ``more`` stands in its document information behind the title."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    bodies = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET" if text else ""
        bodies.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> "
            f"/Contents {5 + 2 * i} 0 R >>"
        )
        bodies.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    if title is not None:
        bodies.append(f"<< /Title ({title}) {more} >>")
    out = b"%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(bodies, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    info = f" /Info {len(bodies)} 0 R" if title is not None else ""
    tail = f"xref\n0 {len(bodies) + 1}\n0000000000 65535 f \n{table}trailer\n"
    tail += f"<< /Size {len(bodies) + 1} /Root 1 0 R{info} >>\nstartxref\n{len(out)}\n%%EOF\n"
    return out + tail.encode()


def test_a_text_file_is_one_document_under_its_name(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("héllo\r\n")
    [row], notices = load(tmp_path, scope="mine", partitions=7)
    assert notices == []
    content_hash = row.pop("content_hash")
    assert len(content_hash) == 32
    assert row == {
        "doc_id": "sub/a.txt",
        "partition": partition_of_id("sub/a.txt", 7),
        "source": "sub/a.txt",
        "record": 0,
        "text": "héllo\r\n",
        "source_type": "txt",
        "scope": "mine",
        "metadata": {"title": None},
    }


def test_the_content_hash_changes_with_text_and_metadata_and_nothing_else(tmp_path: Path) -> None:
    pages = {"a": "<title>t</title>x", "b": "<title>t</title>x", "c": "<title>u</title>x", "d": "<title>t</title>y"}
    for name, page in pages.items():
        (tmp_path / f"{name}.html").write_text(page)
    rows, _ = load(tmp_path)
    hashes = [row["content_hash"] for row in rows]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


@pytest.mark.parametrize(
    ("name", "text", "title"),
    [
        ("a.md", "# First #\n\nx\n# Second\n", "First"),
        ("a.md", "para\n\nTop\n===\n", "Top"),
        ("a.md", "```\n# code\n```\n## Real\n", "Real"),
        ("a.md", "---\ntitle: 'Front'\n---\n# Other\n", "Front"),
        ("a.md", "---\nauthor: x\n---\n# Other\n", "Other"),
        ("a.md", "no heading\n\n---\n", None),
        ("a.md", "# C#\n", "C#"),
        ("a.md", "# a" + " " * 60_000 + "b\n", "a" + " " * 60_000 + "b"),
        ("a.rst", "=====\nTitle\n=====\n\ntext\n", "Title"),
        ("a.rst", ".. note\n\nTitle\n-----\n", "Title"),
        ("a.rst", "just text\n", None),
    ],
)
def test_markup_is_kept_as_it_is_and_its_first_heading_is_the_title(
    tmp_path: Path, name: str, text: str, title: str | None
) -> None:
    (tmp_path / name).write_text(text)
    [row], _ = load(tmp_path)
    assert (row["text"], row["metadata"]["title"]) == (text, title)


def test_html_becomes_what_a_reader_sees(tmp_path: Path) -> None:
    page = """<!doctype html><html><head><title> The
      title </title><style>p {}</style></head><body><script>no()</script><!-- no --><h1>Head</h1>
      <p>one <b>t</b>wo<br>three</p><ul><li>x</li><li>y</li></ul><pre>if a:
    b</pre><table><tr><td>1</td><td>2</td></tr></table>tail</body></html>"""
    (tmp_path / "a.html").write_text(page)
    [row], _ = load(tmp_path)
    assert row["text"] == "Head\n\none two\nthree\n\nx\ny\n\nif a:\n    b\n\n1 | 2\n\ntail"
    assert row["metadata"]["title"] == "The title"


def test_html_that_names_its_charset_is_read_with_it(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes('<meta charset="iso-8859-1"><p>café'.encode("latin-1"))
    (tmp_path / "b.html").write_bytes("<p>café".encode("latin-1"))
    [row], [notice] = load(tmp_path)
    assert row["text"] == "café"
    assert (notice["source"], "byte 6" in notice["reason"]) == ("b.html", True)


def test_html_without_text_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_text("<html><body><script>all()</script></body></html>")
    assert "scripts" in one_reason(path)
    path.write_text("<!-- -->")
    assert "no text" in one_reason(path)


def test_html_that_the_parser_gives_up_on_is_not_indexed_in_part(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_text("<p>first</p>" + "<div>" * 5000 + "last")
    assert "Excessive depth" in one_reason(path)


def test_a_pdf_gives_the_text_of_its_pages_and_its_title(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(make_pdf("first page", "second page", title="About"))
    (tmp_path / "b.pdf.gz").write_bytes(gzip.compress(make_pdf("packed")))
    rows, notices = load(tmp_path)
    assert notices == []
    assert [r["text"] for r in rows] == ["first page\n\nsecond page", "packed"]
    assert [r["metadata"]["title"] for r in rows] == ["About", None]


FIELDS = {"author": "string", "year": "int64", "creation_date": "timestamp"}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.md", b"---\nauthor: 'A. Writer'\nyear: 1999\ncreation_date: 2024-05-06\ntags:\n- x\n---\n# Head\n"),
        (
            "a.html",
            b"<head><meta charset=utf-8><meta name=author content=' A.  Writer'><meta name=year content=1999>"
            b"<meta name=author content=Second><meta name=creation_date content=2024-05-06></head><p>text",
        ),
        ("a.pdf", make_pdf("text", title="t", more="/Author (A. Writer) /CreationDate (D:20240506000000Z)")),
    ],
)
def test_what_a_document_says_of_itself_fills_the_declared_fields(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    [row], notices = load(tmp_path, metadata=FIELDS)
    assert notices == []
    assert row["metadata"]["author"] == "A. Writer"
    assert row["metadata"]["year"] == (None if name == "a.pdf" else 1999)
    assert row["metadata"]["creation_date"].date().isoformat() == "2024-05-06"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("plain words", "plain words"),
        ("'quoted: # text'  # comment", "quoted: # text"),
        ('"double"', "double"),
        ("text  # comment", "text"),
        ("a#b", "a#b"),
        ("it's", "it's"),
        (">-\n  folded", None),
        ("|\n  block", None),
        ("[a, b]", None),
        ("", None),
    ],
)
def test_front_matter_gives_scalars_of_one_line(tmp_path: Path, written: str, read: str | None) -> None:
    (tmp_path / "a.md").write_text(f"---\nauthor: {written}\n---\ntext\n")
    [row], notices = load(tmp_path, metadata=FIELDS)
    assert (row["metadata"]["author"], notices) == (read, [])


def test_a_field_of_a_document_that_does_not_fit_is_a_conflict(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("---\nyear: last\n---\ntext\n")
    (tmp_path / "b.html").write_text("<meta name=year content=2001><p>text")
    rows, [notice] = load(tmp_path, metadata=FIELDS)
    assert [row["metadata"]["year"] for row in rows] == [None, 2001]
    assert (notice["kind"], notice["source"]) == ("conflict", "a.md")
    assert "'year': 'last' is not a whole number" in notice["reason"]


def test_an_unusable_pdf_is_skipped_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    whole = make_pdf("some text " * 20)

    def reason(data: bytes, **options: Any) -> str:
        path.write_bytes(data)
        return one_reason(path, **options)

    assert reason(b"") == "empty"
    assert reason(b"hello") == "not a PDF: it does not begin with %PDF-"
    assert reason(whole[:400]).startswith("truncated PDF")
    assert reason(b"%PDF-1.4\nrubbish\n%%EOF").startswith("damaged PDF")
    assert reason(make_pdf("")).startswith("no text in this PDF")
    assert "max_record_bytes (50)" in reason(whole, max_record_bytes=50)
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(whole)))
    writer.encrypt("secret", algorithm="RC4-128")
    locked = io.BytesIO()
    writer.write(locked)
    assert reason(locked.getvalue()) == "encrypted PDF; save it without its password"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (b" \n\t\n", "no text: only white space"),
        (b"ab\0cd", "binary content (NUL at byte 2)"),
        (b"good\xff", "not valid UTF-8 at byte 4"),
        ("hi".encode("utf-16"), "--encoding utf-16"),
        (b"\xff\xfe\x41\xd8", "--encoding utf-16"),
        (b"x" * 1001, "max_record_bytes (1000)"),
    ],
)
def test_a_file_that_is_no_text_is_skipped_with_a_reason(tmp_path: Path, data: bytes, expected: str) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    assert expected in one_reason(tmp_path / "a.txt", max_record_bytes=1000)


def test_other_encodings_and_byte_order_marks_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("grün".encode("latin-1"))
    assert load(tmp_path, encoding="latin-1")[0][0]["text"] == "grün"
    (tmp_path / "a.txt").write_bytes("grün".encode("utf-16"))
    assert load(tmp_path, encoding="utf-16")[0][0]["text"] == "grün"
    (tmp_path / "a.txt").write_bytes("grün".encode("utf-8-sig"))
    assert load(tmp_path)[0][0]["text"] == "grün"


def test_compressed_files_are_read_and_damaged_ones_skipped(tmp_path: Path) -> None:
    text = b"some text " * 1000
    packed = {
        "gz": gzip.compress(text[:500]) + gzip.compress(text[500:]),
        "bz2": bz2.compress(text),
        "xz": lzma.compress(text),
        "zst": pa.Codec("zstd").compress(text).to_pybytes(),
    }
    for name, data in packed.items():
        (tmp_path / f"good.txt.{name}").write_bytes(data)
        (tmp_path / f"short.txt.{name}").write_bytes(data[:-12])
        (tmp_path / f"wrong.txt.{name}").write_bytes(b"not compressed at all")
    rows, notices = load(tmp_path)
    assert [r["source"] for r in rows] == [f"good.txt.{n}" for n in ("bz2", "gz", "xz", "zst")]
    assert {r["text"].encode() for r in rows} == {text}
    assert len(notices) == 8
    assert all("damaged" in n["reason"] for n in notices)


def test_a_packed_file_is_unpacked_only_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "bomb.txt.gz"
    path.write_bytes(gzip.compress(b"x" * 50_000_000))
    assert "max_record_bytes (100000)" in one_reason(path, max_record_bytes=100_000)


def test_a_file_that_vanished_is_skipped(tmp_path: Path) -> None:
    for name in ("a.txt", "b.jsonl"):
        (tmp_path / name).write_text("x")
    listing = list_inputs([str(tmp_path)], LoadOptions())
    for name in ("a.txt", "b.jsonl"):
        (tmp_path / name).unlink()
    found = [pair for split in splits(listing.table) for pair in read(split, LoadOptions())]
    assert [n["reason"] for _, batch in found if batch for n in batch.to_pylist()] == [
        "unreadable: it vanished after it was listed"
    ] * 2


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter; pytest's own they may not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_what_another_user_may_not_read_is_skipped(open_folder: Path) -> None:
    warm, closed = open_folder / "warm", open_folder / "closed"
    warm.mkdir()
    closed.mkdir()
    for name, data in (("a.pdf", make_pdf("x")), ("b.txt", b"x"), ("c.jsonl", b"{}"), ("d.parquet", b"x")):
        (warm / name).write_bytes(data)
        (closed / name).write_bytes(data)
        (closed / name).chmod(0)
    (closed / "good.txt").write_text("open")
    (closed / "sub").mkdir(mode=0)
    closed.chmod(0o755)
    # Python itself may lie where the other user can't read: everything is imported and compiled before.
    program = """
import os, sys
from aaflow.operators.listing import list_inputs
from aaflow.operators.readers import LoadOptions, read, splits

def say(folder):
    listing = list_inputs([folder], LoadOptions())
    for notice in listing.notices.to_pylist():
        yield notice["source"], notice["reason"]
    for split in splits(listing.table):
        for batch, notices in read(split, LoadOptions()):
            for row in batch.to_pylist() if batch else []:
                yield row["source"], row["text"]
            for notice in notices.to_pylist() if notices else []:
                yield notice["source"], notice["reason"]

list(say(sys.argv[1]))
if os.getuid() == 0:
    os.setuid(65534)
for line in say(sys.argv[2]):
    print(*line)
"""
    command = [sys.executable, "-c", program, str(warm), str(closed)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    finally:
        (closed / "sub").chmod(0o700)
    assert done.returncode == 0, done.stderr
    denied = "permission denied; make it readable for the user who runs this"
    assert done.stdout.splitlines() == [
        f"sub folder: {denied}",
        *(f"{name} unreadable: {denied}" for name in ("a.pdf", "b.txt", "c.jsonl", "d.parquet")),
        "good.txt open",
    ]


def test_urls_are_read_through_fsspec(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    name = f"/{tmp_path.name}"
    store.pipe({f"{name}/a.txt": b"one", f"{name}/sub/b.jsonl": b'{"text":"two"}\n', f"{name}/.c.txt": b"hidden"})
    store.pipe({f"{name}/d.pdf": make_pdf("three"), f"{name}/e.xyz": b"?"})
    try:
        rows, notices = load(f"memory:/{name}")
        assert [(r["doc_id"], r["text"]) for r in rows] == [
            ("a.txt", "one"),
            ("d.pdf", "three"),
            ("sub/b.jsonl#0", "two"),
        ]
        assert [n["source"] for n in notices] == ["e.xyz"]
        assert [r["doc_id"] for r in load(f"memory:/{name}/**/*.jsonl")[0]] == ["sub/b.jsonl#0"]
        assert [r["doc_id"] for r in load(f"memory:/{name}/e.xyz")[0]] == ["e.xyz"]
        options = LoadOptions()
        listing = list_inputs([f"memory:/{name}"], options)
        store.rm(f"{name}/a.txt")
        first = next(iter(splits(listing.table)))
        assert [n.column("reason").to_pylist() for _, n in read(first, options) if n] == [
            ["unreadable: it vanished after it was listed"]
        ]
    finally:
        store.rm(name, recursive=True)
    assert [r["text"] for r in load(f"file://{_plain_file(tmp_path)}")[0]] == ["here"]


def _plain_file(folder: Path) -> Path:
    path = folder / "with space.txt"
    path.write_text("here")
    return path


def test_names_with_newlines_quotes_and_percent_signs_are_read(tmp_path: Path) -> None:
    names = ["a\nb.txt", "c%41 #?*[x].txt", "ü\t\x01.txt"]
    for name in names:
        (tmp_path / name).write_text(name)
    rows, notices = load(tmp_path)
    assert notices == []
    assert {r["source"]: r["text"] for r in rows} == {name: name for name in names}


def test_a_pipe_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.txt")
    assert "pipe" in one_reason(tmp_path / "p.txt")
