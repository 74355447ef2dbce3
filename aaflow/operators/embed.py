"""The ``embed`` operator: a ``vector`` for every row that has a ``text``."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa

from aaflow import schema
from aaflow.operators.embedders import Embedder
from aaflow.operators.operator import Item

#: Bytes of text after which a window is full whatever its rows: Arrow strings have 31-bit offsets.
_WINDOW_BYTES = 1 << 28
#: How long the end of a failed chain may wait for who reads its input; that thread is woken with the chain.
_READER_SECONDS = 3.0


class Embed:
    """Gathers rows into windows across units, embeds each window at once and gives every item back with its vectors.

    The vectors of a window lie in one buffer, which the batches that go out share. Items keep their order.

    Args:
        make: makes the embedder; called once, in the thread that runs the operator.
        window: rows that are embedded together.
        workers: windows that are embedded at the same time.
        allocate: gives a buffer of so many bytes for the vectors of a window; called window after window.
    """

    def __init__(
        self,
        make: Callable[[], Embedder],
        window: int = 2048,
        workers: int = 1,
        allocate: Callable[[int], pa.Buffer] = pa.allocate_buffer,
    ) -> None:
        self._make = make
        self._window = window
        self._workers = workers
        self._allocate = allocate

    def __call__(self, items: Iterator[Item]) -> Iterator[Item]:
        """See :class:`aaflow.operators.operator.StreamFunction`."""
        embedder = self._make()
        windows = _windows(items, self._window)
        if self._workers == 1:
            for window in windows:
                yield from _embedded(window, embedder, self._buffer(window, embedder))
            return
        yield from self._side_by_side(windows, embedder)

    def _side_by_side(self, windows: Iterator[list[Item]], embedder: Embedder) -> Iterator[Item]:
        """Several windows at a time, in order; those that are done are given on while the next is waited for."""
        running: queue.Queue[Future[list[Item]] | None] = queue.Queue(self._workers)
        closed = threading.Event()

        def read() -> None:
            try:
                for window in windows:
                    held = [item.owned() for item in window]
                    running.put(pool.submit(_embedded, held, embedder, self._buffer(held, embedder)))
                    if closed.is_set():
                        return
                running.put(None)
            except BaseException as error:
                failed: Future[list[Item]] = Future()
                failed.set_exception(error)
                running.put(failed)

        reader = threading.Thread(target=read, name="embed-reader", daemon=True)
        with ThreadPoolExecutor(self._workers, thread_name_prefix="embed") as pool:
            reader.start()
            try:
                while (window := running.get()) is not None:
                    yield from window.result()
            finally:
                closed.set()
                with contextlib.suppress(queue.Empty):
                    while True:
                        running.get_nowait()
                reader.join(_READER_SECONDS)

    def _buffer(self, window: list[Item], embedder: Embedder) -> pa.Buffer:
        rows = sum(item.rows.num_rows for item in window if item.rows is not None)
        return self._allocate(rows * embedder.dimension * 4) if rows else pa.allocate_buffer(0)


def _windows(items: Iterator[Item], rows: int) -> Iterator[list[Item]]:
    """Items in order, together as many rows as a window has; an item with more rows than that is cut.

    A window ends with its tranche at the latest: whoever gathers a tranche of several ranks lets none of them get far
    ahead, so the rows that a window waits for might never come.
    """
    window: list[Item] = []
    free, free_bytes = rows, _WINDOW_BYTES
    for item in items:
        if item.rows is None or item.rows.num_rows == 0:
            window.append(item.owned())
            # Where nothing waits for its vectors, nothing is won by holding this back.
            if free == rows or (item.last and item.partition < 0):
                yield window
                window = []
                free, free_bytes = rows, _WINDOW_BYTES
            continue
        for part in _parts(item, free, rows):
            assert part.rows is not None
            free -= part.rows.num_rows
            free_bytes -= part.rows["text"].nbytes
            if free > 0 and free_bytes > 0:
                window.append(part.owned())
                continue
            yield [*window, part]
            window = []
            free, free_bytes = rows, _WINDOW_BYTES
    if window:
        yield window


def _parts(item: Item, first: int, rows: int) -> Iterator[Item]:
    """The item cut after its ``first`` rows and then every ``rows``; notices and ``last`` go with the last part."""
    assert item.rows is not None
    total, start, size = item.rows.num_rows, 0, first
    while total - start > size:
        yield replace(item, rows=item.rows.slice(start, size), notices=None, last=False)
        start, size = start + size, rows
    yield replace(item, rows=item.rows.slice(start))


def _embedded(window: list[Item], embedder: Embedder, buffer: pa.Buffer) -> list[Item]:
    texts = [item.rows["text"] for item in window if item.rows is not None]
    total = sum(len(text) for text in texts)
    dimension = embedder.dimension
    if total:
        out = np.frombuffer(buffer, dtype=np.float32).reshape(total, dimension)
        embedder.embed(pa.concat_arrays(texts) if len(texts) > 1 else texts[0], out)
    values = pa.Array.from_buffers(pa.float32(), total * dimension, [None, buffer])
    field = schema.vector_field(dimension)
    vectors = pa.Array.from_buffers(field.type, total, [None], children=[values])
    done, start = [], 0
    for item in window:
        if item.rows is None:
            done.append(item)
            continue
        part = vectors.slice(start, item.rows.num_rows)
        start += item.rows.num_rows
        columns = pa.RecordBatch.from_arrays([*item.rows.columns, part], schema=item.rows.schema.append(field))
        done.append(replace(item, rows=columns))
    return done
