"""The embed operator: windows, order and memory; feature hashing."""

from __future__ import annotations

import argparse
import inspect
import pydoc
import shutil
import socket
import statistics
import subprocess
import threading
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aaflow import schema
from aaflow.errors import InputError
from aaflow.operators.embed import Embed
from aaflow.operators.embedders import Embedder, describe_embedder, make_embedder
from aaflow.operators.operator import Item

#: Of the test of this name; they change only with the version in the fingerprint.
PINNED_BITS = [
    0x0,
    0x0,
    0xBF07F530,
    0x0,
    0xBEF5F4F4,
    0x0,
    0x3E8E00D5,
    0x0,
    0xBEB7534E,
    0x0,
    0x3EA3F8A3,
    0xBE67E3ED,
    0x3EB7534E,
    0x0,
    0x0,
    0x0,
]
UNHURRIED = settings(deadline=None, max_examples=80)


def hashed(texts: list[str | None], dimension: int = 384) -> npt.NDArray[np.float32]:
    """Vectors by feature hashing."""
    out = np.full((len(texts), dimension), np.nan, np.float32)
    make_embedder("hash", dimension=dimension).embed(pa.array(texts, pa.string()), out)
    return out


def queries(texts: list[str]) -> pa.RecordBatch:
    """Questions with these texts."""
    return pa.RecordBatch.from_arrays([pa.array(range(len(texts)), pa.int32()), pa.array(texts)], schema=schema.QUERIES)


class Counting:
    """The hash embedder, and how many rows each call had."""

    def __init__(self) -> None:
        self._hash = make_embedder("hash", dimension=16)
        self.dimension = 16
        self.fingerprint = self._hash.fingerprint
        self.calls: list[int] = []

    def embed(self, texts: pa.Array, out: npt.NDArray[np.float32]) -> None:
        """Count and embed."""
        self.calls.append(len(texts))
        self._hash.embed(texts, out)


@UNHURRIED
@given(st.lists(st.integers(0, 12), max_size=12), st.integers(1, 10), st.integers(1, 3))
def test_items_keep_order_rows_and_ends_for_any_window(sizes: list[int], window: int, workers: int) -> None:
    items = []
    for number, size in enumerate(sizes):
        rows = queries([f"{number} word{row}" for row in range(size)]) if size else None
        items.append(Item(number // 3, number, rows, last=number % 2 == 0))
    out = list(Embed(lambda: make_embedder("hash", dimension=16), window, workers)(iter(items)))
    assert [(i.tranche, i.partition) for i in out if i.last] == [(i.tranche, i.partition) for i in items if i.last]
    order = [item.partition for item in out]
    assert order == sorted(order)
    assert sorted(set(order)) == list(range(len(sizes)))
    expected = [text for item in items if item.rows for text in item.rows["text"].to_pylist()]
    given_back = [text for item in out if item.rows for text in item.rows["text"].to_pylist()]
    assert given_back == expected
    vectors = [np.stack(item.rows["vector"].to_numpy(zero_copy_only=False)) for item in out if item.rows]
    if expected:
        assert np.array_equal(np.concatenate(vectors), hashed(list(expected), 16))


def test_windows_are_filled_across_items_and_big_items_are_cut() -> None:
    embedder = Counting()
    items = [Item(0, n, queries(["a b"] * size)) for n, size in enumerate([3, 3, 3, 25, 2])]
    out = list(Embed(lambda: embedder, 8)(iter(items)))
    assert embedder.calls == [8, 8, 8, 8, 4]
    assert sum(item.rows.num_rows for item in out if item.rows) == 36


def test_no_window_waits_beyond_its_tranche() -> None:
    fed = []

    def source() -> Iterator[Item]:
        for tranche in range(5):
            for item in (Item(tranche, 0, queries(["a", "b"])), Item(tranche, -1, last=True)):
                fed.append(item)
                yield item

    ends = (item for item in Embed(lambda: make_embedder("hash", dimension=16), 100)(source()) if item.last)
    assert next(ends).tranche == 0
    assert {item.tranche for item in fed} == {0}


def test_the_vectors_of_a_window_share_one_buffer() -> None:
    out = list(Embed(lambda: make_embedder("hash", dimension=16), 8)(iter([Item(0, 0, queries(["a", "b"]))] * 4)))
    addresses = {item.rows["vector"].values.buffers()[1].address for item in out if item.rows}
    assert len(addresses) == 1
    assert out[0].rows is not None
    assert out[0].rows.schema == schema.queries(16)
    out[0].rows.validate(full=True)


def test_what_has_no_rows_waits_for_nothing_unless_rows_wait_before_it() -> None:
    fed = []

    def source() -> Iterator[Item]:
        for item in (Item(0, 0, None, last=True), Item(0, 1, queries(["a"])), Item(0, 1, None, last=True)):
            fed.append(item)
            yield item

    stream = Embed(lambda: make_embedder("hash", dimension=16))(source())
    assert next(stream) == Item(0, 0, None, last=True)
    assert len(fed) == 1
    assert [item.last for item in stream] == [False, True]


def test_the_embedder_is_made_in_the_thread_that_runs_the_operator() -> None:
    made: list[str] = []

    def make() -> Embedder:
        made.append(threading.current_thread().name)
        return make_embedder("hash", dimension=16)

    operator = Embed(make)
    assert made == []
    thread = threading.Thread(target=lambda: list(operator(iter([Item(0, 0, queries(["a"]))]))), name="operator")
    thread.start()
    thread.join()
    assert made == ["operator"]


def test_windows_that_are_done_are_given_while_the_next_is_waited_for() -> None:
    more = threading.Event()

    def items() -> Iterator[Item]:
        yield Item(0, 0, queries(["a", "b"]))
        assert more.wait(30), "the first window was held back"
        yield Item(0, 0, queries(["c", "d"]))

    given = iter(Embed(Counting, window=2, workers=3)(items()))
    assert next(given).rows["text"].to_pylist() == ["a", "b"]
    more.set()
    assert [item.rows["text"].to_pylist() for item in given] == [["c", "d"]]


def test_an_error_of_a_worker_reaches_the_caller() -> None:
    class Broken(Counting):
        def embed(self, texts: pa.Array, out: npt.NDArray[np.float32]) -> None:
            raise InputError("no")

    with pytest.raises(InputError, match="no"):
        list(Embed(Broken, 1, 2)(iter([Item(0, 0, queries(["a", "b", "c", "d"]))])))


@UNHURRIED
@given(st.lists(st.one_of(st.none(), st.text(max_size=100)), min_size=1, max_size=8), st.data())
def test_a_hashed_vector_depends_on_its_text_alone(texts: list[str | None], data: st.DataObject) -> None:
    vectors = hashed(texts)
    order = data.draw(st.permutations(range(len(texts))))
    assert np.array_equal(hashed([texts[row] for row in order]), vectors[list(order)])
    sliced = pa.array(["before", *texts], pa.large_string()).slice(1)
    out = np.empty_like(vectors)
    make_embedder("hash").embed(sliced, out)
    assert np.array_equal(out, vectors)
    for row, text in enumerate(texts):
        assert np.array_equal(hashed([text])[0], vectors[row])


@UNHURRIED
@given(st.lists(st.text("abcXYZ019é ._-", min_size=1, max_size=14), min_size=1, max_size=40))
def test_words_count_wherever_they_stand_and_in_any_case(words: list[str]) -> None:
    joined = hashed([" ".join(words), "\n\n".join(words), " " * 70 + ", ".join(words), "; ".join(reversed(words))])
    assert np.all(joined == joined[0])
    upper = hashed([" ".join(words), " ".join(word.replace("é", "\0").upper().replace("\0", "é") for word in words)])
    assert np.array_equal(upper[0], upper[1])
    length = float(np.linalg.norm(joined[0].astype(np.float64)))
    assert length == pytest.approx(1, abs=1e-6) or not any(c.isalnum() for word in words for c in word)


def test_hashed_vectors_have_these_bits_on_every_machine() -> None:
    vector = hashed(["The quick brown fox jumps over the internationalised dog, Füße!"], 16)[0]
    assert vector.view(np.uint32).tolist() == PINNED_BITS


def test_a_text_without_words_has_the_zero_vector() -> None:
    assert not hashed(["", None, " .,-\n"]).any()


def test_a_summary_finds_its_own_function_among_many() -> None:
    functions = [f for m in (argparse, shutil, socket, statistics, subprocess) for f in vars(m).values()]
    texts = {pydoc.plain(pydoc.render_doc(f)): inspect.getdoc(f) for f in functions if inspect.isroutine(f)}
    passages = [text for text, summary in texts.items() if summary]
    lines = [summary.splitlines()[0] for summary in texts.values() if summary]
    scores = hashed([*lines]) @ hashed([*passages]).T
    ranks = (scores > scores.diagonal()[:, np.newaxis]).sum(axis=1)
    assert len(passages) > 100
    assert np.mean(ranks < 10) >= 0.9


def test_related_words_meet() -> None:
    question, answer, other = hashed(["parsing dates", "the parser parsed a date", "network sockets listening"])
    assert question @ answer > 0.2 > abs(question @ other)


@pytest.mark.parametrize("dimension", [0, -1, 65537])
def test_a_dimension_out_of_range_is_refused(dimension: int) -> None:
    with pytest.raises(InputError, match=str(dimension)):
        describe_embedder("hash", dimension)


def test_the_fingerprint_says_what_changes_a_vector() -> None:
    assert describe_embedder("hash") == (384, make_embedder("hash").fingerprint)
    assert describe_embedder("hash", 64)[1] != describe_embedder("hash")[1]
