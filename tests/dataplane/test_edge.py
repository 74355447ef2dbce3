"""Edges: what goes in comes out, within their bounds, in both forms."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from edgeparts import NOTICES, ROWS, connected, edge, rows, take

from aaflow.dataplane.edge import EdgeCancelled, EdgeError, Endpoint, Form, Message, frames, split_rows, write_edge_keys
from aaflow.dataplane.edge.frames import stream_size

FORMS = pytest.mark.parametrize("form", list(Form), ids=lambda form: form.value)


def _started(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


@FORMS
@pytest.mark.parametrize("encrypted", [True, False])
def test_messages_come_in_order_and_then_the_end(tmp_path: Path, form: Form, encrypted: bool) -> None:
    batches = [rows(count, seed=count) for count in (0, 1, 300, 7)]
    with connected(tmp_path, edge(), form, encrypted=encrypted) as (sender, receiver, producer, consumer):

        def produce() -> None:
            for number, batch in enumerate(batches):
                sender.send(Message(b"%d" % number, (batch,)))
            sender.end()
            producer.close()

        thread = _started(produce)
        for number, batch in enumerate(batches):
            rank, message = receiver.take()
            assert message is not None
            assert (rank, message.tag) == (0, b"%d" % number)
            assert message.batches[0] is not None
            assert message.batches[0].equals(batch)
            del message
        assert receiver.take() == (0, None)
        with pytest.raises(LookupError, match="all producers have ended"):
            receiver.take()
        thread.join()
        consumer.close()


@FORMS
def test_a_batch_larger_than_a_buffer_arrives(tmp_path: Path, form: Form) -> None:
    batch = rows(4000)
    with connected(tmp_path, edge(size=64 << 10), form) as (sender, receiver, *_):
        for _ in range(2):
            sender.send(Message(b"", (batch,)))
        for _ in range(2):
            assert take(receiver).batches[0].equals(batch)


@FORMS
def test_a_message_has_up_to_one_batch_of_each_schema(tmp_path: Path, form: Form) -> None:
    notices = pa.RecordBatch.from_arrays([pa.array([3], pa.int32()), pa.array(["unreadable"])], schema=NOTICES)
    with connected(tmp_path, edge(ROWS, NOTICES), form) as (sender, receiver, *_):
        for batches in ((None, None), (None, notices), (rows(500), None), (rows(500), notices)):
            sender.send(Message(b"tag", batches))
            assert take(receiver).batches == batches


@FORMS
def test_a_full_edge_blocks_its_sender_until_a_batch_is_released(tmp_path: Path, form: Form) -> None:
    batch = rows(300)
    with connected(tmp_path, edge(buffers=3), form) as (sender, receiver, *_):
        for _ in range(3):
            sender.send(Message(b"", (batch,)))
        fourth = _started(lambda: sender.send(Message(b"fourth", (batch,))))
        kept = [take(receiver) for _ in range(3)]
        fourth.join(0.3)
        assert fourth.is_alive()
        view = kept[1].batches[0].column(2).slice(5, 1)
        del kept[1]
        fourth.join(0.3)
        assert fourth.is_alive(), "a view of one row keeps the buffer"
        del view
        fourth.join(10)
        assert not fourth.is_alive()
        assert take(receiver).tag == b"fourth"


def test_a_column_written_in_place_is_not_copied(tmp_path: Path) -> None:
    with connected(tmp_path, edge(buffers=2), Form.SHARED_MEMORY) as (sender, receiver, *_):
        memory = sender.allocate(500 * 384 * 4)
        assert memory is not None
        batch = rows(500, memory)
        sender.send(Message(b"", (batch.slice(0, 200),)))
        sender.send(Message(b"", (batch.slice(200),)))
        first, second = take(receiver).batches[0], take(receiver).batches[0]
        assert first.equals(batch.slice(0, 200))
        assert second.equals(batch.slice(200))
        # One process, two mappings: what is written through one is seen through the other.
        np.frombuffer(memory, np.float32)[:] = 7
        assert set(second.column(2).flatten().to_pylist()) == {7.0}


@pytest.mark.parametrize("large", [8 << 20, 0], ids=["in a stream", "past the caches"])
def test_the_rest_of_a_message_goes_behind_its_columns_in_place(
    tmp_path: Path, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "_STREAMED_BYTES", large)
    with connected(tmp_path, edge(buffers=2), Form.SHARED_MEMORY) as (sender, receiver, *_):
        memory = sender.allocate(400 * 384 * 4)
        batch = rows(400, memory)
        texts = pa.array(["x" * 500] * 400)
        batch = pa.RecordBatch.from_arrays([batch.column(0), texts, batch.column(2)], schema=ROWS)
        sender.send(Message(b"", (batch,)))
        assert sender.allocate(1 << 20) is not None, "the other buffer is free"
        assert take(receiver).batches[0].equals(batch)


def test_several_threads_may_send(tmp_path: Path) -> None:
    batch = rows(300)

    def produce(name: str) -> None:
        for number in range(15):
            sender.send(Message(f"{name}{number}".encode(), (batch if number % 3 else None,)))

    with connected(tmp_path, edge(buffers=3), Form.SHARED_MEMORY) as (sender, receiver, *_):
        threads = [_started(functools.partial(produce, name)) for name in "abc"]
        came: dict[str, list[int]] = {"a": [], "b": [], "c": []}
        for _ in range(45):
            message = take(receiver)
            tag = message.tag.decode()
            came[tag[0]].append(int(tag[1:]))
            assert message.batches[0] is None or message.batches[0].equals(batch)
            del message
        assert all(numbers == list(range(15)) for numbers in came.values())
        for thread in threads:
            thread.join()


def test_messages_that_do_not_fit_the_edge_are_refused(tmp_path: Path) -> None:
    with connected(tmp_path, edge(), Form.SHARED_MEMORY) as (sender, *_):
        for message, why in (
            (Message(bytes(1025), (None,)), "a tag of 1025 bytes"),
            (Message(b"", (None, None)), "2 batches for 1 schemas"),
            (Message(b"", (pa.RecordBatch.from_arrays([pa.array([1])], ["id"]),)), "where this was agreed"),
        ):
            with pytest.raises(ValueError, match=why):
                sender.send(message)
        sender.end()
        with pytest.raises(ValueError, match="after the end of the stream"):
            sender.send(Message(b"", (None,)))


def test_a_socket_refuses_what_is_over_2_gib(tmp_path: Path) -> None:
    schema = pa.schema([("bytes", pa.uint8())])
    column = pa.array(np.zeros((2 << 30) + 1, np.uint8))  # never touched, so it takes no memory
    with connected(tmp_path, edge(schema), Form.SOCKET) as (sender, *_):
        with pytest.raises(EdgeError, match=r"a message of 2048 MiB; .* use smaller batches"):
            sender.send(Message(b"", (pa.RecordBatch.from_arrays([column], schema=schema),)))
        sender.send(Message(b"", (None,)))


def test_waiting_for_memory_never_waits_for_oneself(tmp_path: Path) -> None:
    with connected(tmp_path, edge(buffers=2), Form.SHARED_MEMORY) as (sender, receiver, *_):
        held = [sender.allocate(1000), sender.allocate(1 << 20)]
        assert all(buffer is not None for buffer in held)
        assert sender.allocate(1) is None
        sender.send(Message(b"needs memory of its own", (rows(400),)))
        assert take(receiver).batches[0].num_rows == 400
        del held
        assert sender.allocate(1 << 20) is not None


@FORMS
def test_cancelling_wakes_who_waits(tmp_path: Path, form: Form) -> None:
    seen: list[type] = []
    with connected(tmp_path, edge(), form) as (sender, receiver, producer, consumer):

        def wait(action: Callable[[], object]) -> None:
            try:
                while True:
                    action()
            except EdgeError as error:
                seen.append(type(error))

        sending = _started(lambda: wait(lambda: sender.send(Message(b"", (rows(300),)))))
        sending.join(0.2)
        assert sending.is_alive()
        producer.cancel()
        sending.join(5)
        consumer.cancel()
        with pytest.raises(EdgeCancelled, match="'upsert' gave its edges up"):
            receiver.take()
    assert seen == [EdgeCancelled]


def test_the_time_limit_names_who_is_missing(tmp_path: Path) -> None:
    write_edge_keys(tmp_path)
    with Endpoint(tmp_path, "upsert", 1, address="127.0.0.1") as end:
        end.receive_from(edge(), {0: Form.SOCKET, 3: Form.SHARED_MEMORY})
        with pytest.raises(EdgeError, match=r"after 0.2 s: rank 0 of 'embed' has not connected .*; rank 3 of 'embed'"):
            end.connect(0.2)
    with Endpoint(tmp_path, "embed", 0, address="127.0.0.1") as end:
        end.send_to(edge(), {2: Form.SOCKET})
        with pytest.raises(EdgeError, match="rank 2 of 'upsert' has not said where it listens"):
            end.connect(0.2)


@pytest.mark.parametrize("limit", [10_000, 100_000, 10_000_000])
def test_splitting_keeps_rows_and_their_order(limit: int) -> None:
    batch = rows(300)
    parts = list(split_rows(batch, limit))
    assert pa.Table.from_batches(parts).combine_chunks().equals(pa.Table.from_batches([batch]))
    assert all(stream_size(part) <= limit for part in parts)
