"""Where chunks begin and end: properties of every splitter on any text."""

from __future__ import annotations

import itertools

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aaflow.operators.splitters import (
    NO_BLOCKS,
    Spans,
    Texts,
    by_delimiter,
    by_heading,
    characters,
    pack,
    texts_of,
    whole,
)

UNHURRIED = settings(deadline=None, max_examples=150)
ALPHABET = st.sampled_from("ab .\n\n\t?é漢🎈#`~ \u00a0")
DOCUMENTS = st.lists(st.text(ALPHABET, max_size=120), min_size=1, max_size=6)


def split(documents: list[str], size: int, overlap: int, markdown: bool = False) -> tuple[list[bytes], Spans]:
    """The UTF-8 of the documents and the chunks."""
    texts = Texts.of(pa.array(documents, pa.string()))
    sections, blocks = by_heading(texts) if markdown else (whole(texts), NO_BLOCKS)
    return [document.encode() for document in documents], pack(
        texts, sections, characters(texts), size, overlap, blocks
    )


def pieces(documents: list[str], size: int, overlap: int = 0, markdown: bool = False) -> list[str]:
    """The texts of the chunks."""
    raw, spans = split(documents, size, overlap, markdown)
    return [raw[r][s:e].decode() for r, s, e in zip(spans.row, spans.start, spans.end, strict=True)]


@UNHURRIED
@given(DOCUMENTS, st.integers(1, 40), st.data(), st.booleans())
def test_chunks_are_whole_characters_within_size_and_cover_the_text(
    documents: list[str], size: int, data: st.DataObject, markdown: bool
) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    raw, spans = split(documents, size, overlap, markdown)
    covered = [bytearray(len(document)) for document in raw]
    for row, start, end in zip(spans.row, spans.start, spans.end, strict=True):
        text = raw[row][start:end].decode()  # fails inside a character
        assert 1 <= len(text) <= size
        assert text.strip("\n\t ") == text
        assert text.strip()
        covered[row][start:end] = b"\1" * (end - start)
    for document, marks in zip(raw, covered, strict=True):
        left_out = bytes(byte for byte, mark in zip(document, marks, strict=True) if not mark)
        assert not left_out.decode(errors="strict").strip()


@UNHURRIED
@given(DOCUMENTS, st.integers(1, 40), st.data(), st.booleans())
def test_chunks_advance_and_repeat_no_more_than_the_overlap(
    documents: list[str], size: int, data: st.DataObject, markdown: bool
) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    raw, spans = split(documents, size, overlap, markdown)
    places = list(zip(spans.row.tolist(), spans.start.tolist(), spans.end.tolist(), strict=True))
    for (row, start, end), (next_row, next_start, next_end) in itertools.pairwise(places):
        if row == next_row:
            assert start < next_start
            assert end < next_end
            assert len(raw[row][next_start:end].decode()) <= overlap


@UNHURRIED
@given(DOCUMENTS, st.integers(2, 30), st.booleans())
def test_a_document_is_split_alike_alone_and_among_others(documents: list[str], size: int, markdown: bool) -> None:
    together = pieces(documents, size, size // 2, markdown)
    assert together == [text for document in documents for text in pieces([document], size, size // 2, markdown)]
    column = pa.array(["before", *documents, "after"]).slice(1, len(documents))
    texts = Texts.of(column)
    sections, blocks = by_heading(texts) if markdown else (whole(texts), NO_BLOCKS)
    spans = pack(texts, sections, characters(texts), size, size // 2, blocks)
    assert texts_of(texts, spans).to_pylist() == together


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("aaaa bbbb.\n\ncccc dddd", ["aaaa bbbb.", "cccc dddd"]),
        ("aaaa. bbbb\ncccc dddd", ["aaaa. bbbb", "cccc dddd"]),
        ("aaaa bbbb. cc dddd eeee", ["aaaa bbbb.", "cc dddd eeee"]),
        ("aaaa bbbb cc dddd eeee", ["aaaa bbbb cc", "dddd eeee"]),
        ("abcdefghijklmnopqrst", ["abcdefghijklmno", "pqrst"]),
    ],
    ids=["paragraph", "line", "sentence", "word", "character"],
)
def test_the_best_boundary_in_reach_ends_a_chunk(text: str, expected: list[str]) -> None:
    assert pieces([text], 15) == expected


def test_the_overlap_begins_at_a_word() -> None:
    assert pieces(["one two three four five six"], 14, 6) == ["one two three", "three four", "four five six"]


@UNHURRIED
@given(DOCUMENTS, st.sampled_from(["\n\n", ".", "ab", "é"]))
def test_sections_by_delimiter_are_those_of_str_split(documents: list[str], delimiter: str) -> None:
    texts = Texts.of(pa.array(documents, pa.string()))
    sections = by_delimiter(texts, delimiter)
    assert texts_of(texts, sections).to_pylist() == [part for text in documents for part in text.split(delimiter)]


def test_headings_begin_chunks_but_not_inside_code() -> None:
    document = "intro\n# One\ntext\n```\n# comment\n~~~\n```\n#nothing\n####### nor this\n   ## Two\nmore\n#"
    assert pieces([document], 1000, markdown=True) == [
        "intro",
        "# One\ntext\n```\n# comment\n~~~\n```\n#nothing\n####### nor this",
        "## Two\nmore",
        "#",
    ]


def test_a_fence_stays_whole_where_it_fits() -> None:
    code = "```\none = 1\n\ntwo = 2\n\nthree = 3\n```"
    document = f"Some words before it.\n\n{code}\n\nAnd after."
    assert pieces([document], 41, 4, markdown=True) == ["Some words before it.", code, "And after."]
    assert pieces([document], 45, 5, markdown=True) == ["Some words before it.", f"it.\n\n{code}", "And after."]
    assert code not in pieces([document], 20, 5, markdown=True)


def test_an_open_fence_reaches_to_the_end() -> None:
    assert pieces(["a\n~~~\n# no heading"], 100, markdown=True) == ["a\n~~~\n# no heading"]
    assert pieces(["``` inline ``` code\n# heading"], 100, markdown=True) == ["``` inline ``` code", "# heading"]


def test_what_is_blank_by_unicode_is_no_chunk() -> None:
    blanks = "\u00a0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000\ufeff\u0085"
    assert pieces([blanks, " \n", "", f"{blanks}x"], 100) == [f"{blanks}x"]


def test_ordinals_count_within_a_row() -> None:
    _, spans = split(["a b c", "", "d e"], 1, 0)
    assert spans.row.tolist() == [0, 0, 0, 2, 2]
    assert spans.ordinals().tolist() == [0, 1, 2, 0, 1]
    assert split([""], 1, 0)[1].ordinals().tolist() == []
