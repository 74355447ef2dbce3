"""The batched engine of a rank: the operators of a fused chain overlap, each in a thread, bounded queues between."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

from aaflow.operators.operator import Item, StreamFunction
from aaflow.runtime.trace import OperatorTrace

#: Seconds that the operators of a chain that failed have to end. One may wait in a collective for a rank that waits for
#: this one: only the end of this process frees both.
LEAVING_SECONDS = 3.0


class Cancelled(Exception):
    """Another operator of the chain failed; this one stops."""


class Channel:
    """A bounded queue between two operators of one rank; a cancelled chain wakes both ends."""

    _END = object()

    def __init__(self, bound: int, cancelled: threading.Event) -> None:
        self._queue: queue.Queue[object] = queue.Queue(bound)
        self._cancelled = cancelled

    def put(self, item: Item) -> None:
        """Wait for room, then add an item.

        Raises:
            Cancelled: the chain was cancelled.
        """
        self._offer(item)

    def close(self) -> None:
        """Say that nothing more comes."""
        self._offer(self._END)

    def wake(self) -> None:
        """After the chain was cancelled: make room for whoever waits to put, and an end for whoever waits to get."""
        while True:
            try:
                self._queue.get_nowait()
            except queue.Empty:
                break
        with contextlib.suppress(queue.Full):  # whoever filled it meanwhile sees the cancellation, and so do we
            self._queue.put_nowait(self._END)

    def __iter__(self) -> Iterator[Item]:
        while True:
            item = self._queue.get()
            if self._cancelled.is_set():
                raise Cancelled
            if item is self._END:
                return
            assert isinstance(item, Item)
            yield item

    def _offer(self, item: object) -> None:
        if self._cancelled.is_set():
            raise Cancelled
        self._queue.put(item)
        if self._cancelled.is_set():
            raise Cancelled


def run_chain(
    functions: Sequence[tuple[OperatorTrace, StreamFunction]],
    source: Iterable[Item],
    bound: int,
    wake: Callable[[], None] = lambda: None,
) -> Generator[Item, None, None]:
    """Run a chain of operators over a source; give the items that the last one gives.

    Each operator runs in a thread of its own; the last one's items are drawn by the caller. A caller that fails because
    it was woken closes this generator to learn why.

    Args:
        functions: trace and function of every operator, in order.
        source: items that go into the first one.
        bound: items that a queue holds.
        wake: called when an operator fails, so that nobody waits for the source or for whoever takes the items.

    Raises:
        Exception: what an operator raised first, with a note that names it; the others have ended then, or are about
            to.
    """
    cancelled = threading.Event()
    failures: list[BaseException] = []
    channels = [Channel(bound, cancelled) for _ in functions]
    lock = threading.Lock()

    def fail(error: BaseException) -> None:
        with lock:
            if not isinstance(error, Cancelled):
                failures.append(error)
            cancelled.set()
            for channel in channels:
                channel.wake()
        wake()

    def work(position: int) -> None:
        trace, function = functions[position]
        items: Iterable[Item] = source if position == 0 else channels[position - 1]
        out = channels[position]
        try:
            for item in trace.record(function, items):
                out.put(item)
            out.close()
        except BaseException as error:
            # What add_note() does from Python 3.11 on: tracebacks show it, and whoever reports the error reads it.
            error.__dict__.setdefault("__notes__", []).append(f"in operator {trace.operator!r}")
            fail(error)

    threads = [
        threading.Thread(target=work, args=(position,), name=trace.operator, daemon=True)
        for position, (trace, _) in enumerate(functions)
    ]
    for thread in threads:
        thread.start()
    try:
        yield from channels[-1]
    except Cancelled:
        pass
    except BaseException as error:
        fail(error)
    deadline = time.monotonic() + LEAVING_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()) if failures else None)
    if failures:
        raise failures[0]
