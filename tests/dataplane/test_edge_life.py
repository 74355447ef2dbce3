"""Life and death of edges: who notices what, and what is left behind."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zmq
from edgeparts import connected, edge, rows, take

from aaflow.dataplane.edge import (
    EdgeError,
    Endpoint,
    Form,
    Message,
    PeerLost,
    Receiver,
    Sender,
    protocol,
    write_edge_keys,
)
from aaflow.dataplane.edge.keys import read_edge_keys
from aaflow.dataplane.edge.memory import SharedMemory
from aaflow.dataplane.edge.reactor import SILENCE_MILLISECONDS, Reactor
from aaflow.dataplane.edge.receiver import Inbox

HERE = Path(__file__).parent
SILENCE = SILENCE_MILLISECONDS / 1000  # seconds after which heartbeats tell; a broken connection tells earlier
FORMS = pytest.mark.parametrize("form", list(Form), ids=lambda form: form.value)


@contextlib.contextmanager
def _other_end(folder: Path, role: str, form: Form) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)])}
    command = [sys.executable, str(HERE / "edge_program.py"), str(folder), role, form.value]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def _said_connected(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "connected\n"


@contextlib.contextmanager
def _sending_to(folder: Path, form: Form) -> Iterator[tuple[Sender, Endpoint, subprocess.Popen[str]]]:
    write_edge_keys(folder)
    with _other_end(folder, "consume", form) as process:
        end = Endpoint(folder, "embed", 0, address="127.0.0.1")
        sender = end.send_to(edge(), {0: form})[0]
        end.connect(30)
        _said_connected(process)
        try:
            yield sender, end, process
        finally:
            end.cancel()
            end.close()


@contextlib.contextmanager
def _receiving_from(folder: Path, form: Form) -> Iterator[tuple[Receiver, Endpoint, subprocess.Popen[str]]]:
    write_edge_keys(folder)
    with _other_end(folder, "produce", form) as process:
        end = Endpoint(folder, "upsert", 0, address="127.0.0.1")
        receiver = end.receive_from(edge(), {0: form})
        end.connect(30)
        _said_connected(process)
        try:
            yield receiver, end, process
        finally:
            end.cancel()
            end.close()


def _seconds_to_lose(action: Callable[[], object], strike: Callable[[], None], stage: str) -> float:
    """How long after ``strike``, while ``action`` blocks, it takes to learn that rank 0 of ``stage`` is lost."""
    struck: list[float] = []

    def later() -> None:
        time.sleep(0.3)
        struck.append(time.monotonic())
        strike()

    thread = threading.Thread(target=later)
    thread.start()
    with pytest.raises(PeerLost, match=f"rank 0 of stage '{stage}' is gone") as caught:
        action()
    thread.join()
    assert struck, "it did not block"
    assert (caught.value.stage, caught.value.rank) == (stage, 0)
    return time.monotonic() - struck[0]


@FORMS
def test_a_killed_receiver_is_noticed_by_a_sender_that_waits_for_a_buffer(tmp_path: Path, form: Form) -> None:
    with _sending_to(tmp_path, form) as (sender, _, process):

        def fill() -> None:
            while True:
                sender.send(Message(b"", (rows(300),)))

        assert _seconds_to_lose(fill, process.kill, "upsert") < SILENCE


@FORMS
def test_a_killed_receiver_is_noticed_by_a_sender_that_has_ended(tmp_path: Path, form: Form) -> None:
    with _sending_to(tmp_path, form) as (sender, end, process):
        sender.send(Message(b"", (rows(300),)))
        sender.end()
        assert _seconds_to_lose(end.close, process.kill, "upsert") < SILENCE


@FORMS
def test_a_killed_sender_is_noticed_by_a_receiver_that_waits(tmp_path: Path, form: Form) -> None:
    with _receiving_from(tmp_path, form) as (receiver, _, process):
        kept = take(receiver)
        assert _seconds_to_lose(receiver.take, process.kill, "embed") < SILENCE
        assert kept.batches[0].equals(rows(300)), "what was taken stays valid"


@pytest.mark.serial
@FORMS
def test_a_stopped_sender_is_noticed_within_5_seconds(tmp_path: Path, form: Form) -> None:
    # As a node that loses power: its kernel would not tell either.
    with _receiving_from(tmp_path, form) as (receiver, _, process):
        take(receiver)
        assert _seconds_to_lose(receiver.take, lambda: process.send_signal(signal.SIGSTOP), "embed") < 5


@pytest.mark.serial
@FORMS
def test_a_stopped_receiver_is_noticed_within_5_seconds(tmp_path: Path, form: Form) -> None:
    with _sending_to(tmp_path, form) as (sender, _, process):

        def fill() -> None:
            while True:
                sender.send(Message(b"", (rows(300),)))

        assert _seconds_to_lose(fill, lambda: process.send_signal(signal.SIGSTOP), "upsert") < 5


@FORMS
def test_a_rank_that_fails_is_noticed_at_once(tmp_path: Path, form: Form) -> None:
    with connected(tmp_path, edge(), form) as (_, receiver, producer, _):
        threading.Timer(0.2, lambda: (producer.cancel(), producer.close())).start()
        with pytest.raises(PeerLost):
            receiver.take()


@FORMS
def test_closing_with_an_open_stream_is_a_loss_for_the_receiver(tmp_path: Path, form: Form) -> None:
    with connected(tmp_path, edge(), form) as (sender, receiver, producer, _):
        sender.send(Message(b"", (rows(10),)))
        producer.close()
        time.sleep(0.5)
        with pytest.raises(PeerLost, match="before the end of its stream"):
            receiver.take()


# Release


@FORMS
def test_batches_are_released_in_any_order_from_any_thread(tmp_path: Path, form: Form) -> None:
    shuffled = random.Random(0)
    with connected(tmp_path, edge(buffers=5), form) as (sender, receiver, *_):
        batches = [rows(200, seed=number) for number in range(5)]

        def produce() -> None:
            for number in range(40):
                sender.send(Message(b"%d" % number, (batches[number % 5],)))
            sender.end()

        def drop(held: list[Message]) -> None:
            held.clear()

        thread = threading.Thread(target=produce)
        thread.start()
        held: list[Message] = []
        for number in range(40):
            held.append(take(receiver))
            assert held[-1].tag == b"%d" % number
            assert held[-1].batches[0].equals(batches[number % 5])
            shuffled.shuffle(held)
            if len(held) == 4:
                gone, held = held[:3], held[3:]
                dropper = threading.Thread(target=drop, args=(gone,))
                dropper.start()
                dropper.join()
        thread.join(10)
        assert not thread.is_alive()


@FORMS
def test_batches_outlive_both_endpoints(tmp_path: Path, form: Form) -> None:
    with connected(tmp_path, edge(), form) as (sender, receiver, *_):
        sender.send(Message(b"", (rows(300),)))
        kept = take(receiver)
    assert kept.batches[0].equals(rows(300))
    del kept


@FORMS
def test_batches_are_released_after_their_sender_has_left(tmp_path: Path, form: Form) -> None:
    write_edge_keys(tmp_path)
    with contextlib.ExitStack() as stack:
        consumer = stack.enter_context(Endpoint(tmp_path, "upsert", 0, address="127.0.0.1"))
        receiver = consumer.receive_from(edge(), {0: form, 1: form})
        producers = [Endpoint(tmp_path, "embed", rank, address="127.0.0.1") for rank in (0, 1)]
        senders = [end.send_to(edge(), {0: form})[0] for end in producers]
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda end: end.connect(20), (consumer, *producers)))
            senders[0].send(Message(b"", (rows(300),)))
            senders[0].end()
            left = pool.submit(producers[0].close)
            kept = receiver.take({0})
            assert receiver.take({0}) == (0, None)
            left.result(10)
            time.sleep(0.2)  # for its connection to be gone here as well
            assert kept[1] is not None
            assert kept[1].batches[0].equals(rows(300))
            del kept
            time.sleep(0.2)
            senders[1].send(Message(b"", (rows(7),)))
            senders[1].end()
            left = pool.submit(producers[1].close)
            _, message = receiver.take()
            assert message is not None
            assert message.batches[0].equals(rows(7))
            assert receiver.take() == (1, None)
            left.result(10)


@FORMS
def test_a_receiver_that_keeps_batches_blocks_only_their_sender(tmp_path: Path, form: Form) -> None:
    write_edge_keys(tmp_path)
    with contextlib.ExitStack() as stack:
        consumer = stack.enter_context(Endpoint(tmp_path, "upsert", 0, address="127.0.0.1"))
        receiver = consumer.receive_from(edge(), {0: form, 1: form})
        producers = [Endpoint(tmp_path, "embed", rank, address="127.0.0.1") for rank in (0, 1)]
        senders = [end.send_to(edge(), {0: form})[0] for end in producers]
        threads = [threading.Thread(target=end.connect, args=(20,)) for end in (consumer, *producers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        kept = []
        for _ in range(2):
            senders[0].send(Message(b"", (rows(300),)))
            kept.append(receiver.take({0}))
        for number in range(10):
            senders[1].send(Message(b"%d" % number, (rows(300),)))
            rank, message = receiver.take()
            assert message is not None
            assert (rank, message.tag) == (1, b"%d" % number)
            del message
        for end in producers:
            end.cancel()
            end.close()
        consumer.cancel()


# Who may connect


def test_another_key_is_refused(tmp_path: Path) -> None:
    write_edge_keys(tmp_path / "run")
    write_edge_keys(tmp_path / "other")
    with Endpoint(tmp_path / "run", "upsert", 0, address="127.0.0.1") as consumer:
        consumer.receive_from(edge(), {0: Form.SOCKET})
        (tmp_path / "other" / "edges").symlink_to(tmp_path / "run" / "edges")
        with Endpoint(tmp_path / "other", "embed", 0, address="127.0.0.1") as producer:
            producer.send_to(edge(), {0: Form.SOCKET})
            with pytest.raises(EdgeError, match="rank 0 of 'upsert' "):
                producer.connect(1)
        with pytest.raises(EdgeError, match="rank 0 of 'embed' has not connected"):
            consumer.connect(0.1)


@pytest.mark.parametrize("encrypted", [True, False])
def test_strangers_come_and_go_without_notice(tmp_path: Path, encrypted: bool) -> None:
    write_edge_keys(tmp_path)
    with contextlib.ExitStack() as stack:
        consumer = stack.enter_context(Endpoint(tmp_path, "upsert", 0, address="127.0.0.1", encrypted=encrypted))
        receiver = consumer.receive_from(edge(), {0: Form.SOCKET})
        address = receiver.inboxes[0].address
        producer = stack.enter_context(Endpoint(tmp_path, "embed", 0, address="127.0.0.1", encrypted=encrypted))
        sender = producer.send_to(edge(), {0: Form.SOCKET})[0]
        with _stranger(address), _stranger(address):
            thread = threading.Thread(target=consumer.connect, args=(20,))
            thread.start()
            producer.connect(20)
            thread.join()
            sender.send(Message(b"first", (rows(300),)))
        with _stranger(address):
            sender.send(Message(b"second", (rows(300),)))
            sender.end()
        time.sleep(0.3)
        assert [take(receiver).tag, take(receiver).tag] == [b"first", b"second"]
        assert receiver.take() == (0, None)


@contextlib.contextmanager
def _stranger(address: str) -> Iterator[None]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(address)
        socket.send(b"\x06" + bytes(8))
        assert not socket.poll(300)
        yield


def test_the_two_ends_must_agree_on_the_edge(tmp_path: Path) -> None:
    write_edge_keys(tmp_path)
    said: list[str] = []
    with Endpoint(tmp_path, "upsert", 0, address="127.0.0.1") as consumer:
        consumer.receive_from(edge(), {0: Form.SOCKET})
        with Endpoint(tmp_path, "embed", 0, address="127.0.0.1") as producer:
            producer.send_to(edge(buffers=3), {0: Form.SOCKET})

            def connect() -> None:
                try:
                    producer.connect(20)
                except EdgeError as error:
                    said.append(str(error))

            thread = threading.Thread(target=connect)
            thread.start()
            with pytest.raises(EdgeError, match="has another idea of the edge"):
                consumer.connect(20)
            thread.join()
    assert "refuses rank 0 of 'embed'" in said[0]


# What it costs, and what is left


def test_memory_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match=r"MiB of shared memory can't be reserved: .* fewer or smaller buffers"):
        SharedMemory.reserve(1 << 45)


def test_memory_of_a_process_of_another_namespace_is_told_apart() -> None:
    memory = SharedMemory.reserve(4096)
    with pytest.raises(OSError, match="is not the memory of the peer"):
        SharedMemory.open(os.getpid(), memory.descriptor, memory.inode + 1, memory.size)
    memory.close_descriptor()


def test_memory_is_reserved_when_the_edge_is_up(tmp_path: Path) -> None:
    with connected(tmp_path, edge(buffers=4, size=3 << 20), Form.SHARED_MEMORY):
        assert _shared_bytes() >= 2 * (12 << 20), "both ends have every page mapped"


def _shared_bytes() -> int:
    """Resident bytes of this process in edges' memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = "memfd:aaflow-edge" in line
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total


def test_the_limit_of_open_files_is_raised_or_named(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
        with connected(tmp_path, edge(), Form.SOCKET) as (sender, receiver, producer, _):
            sender.send(Message(b"", (rows(1),)))
            assert take(receiver).batches[0].num_rows == 1
            if hard != resource.RLIM_INFINITY:
                with pytest.raises(EdgeError, match=r"open files .* raise the hard limit"):
                    producer.send_to(edge(), dict.fromkeys(range(hard // 5), Form.SOCKET))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@FORMS
def test_nothing_is_left_behind(tmp_path: Path, form: Form) -> None:
    def use(name: str, *, fail: bool) -> None:
        with connected(tmp_path / name, edge(size=64 << 10), form) as (sender, receiver, producer, consumer):
            sender.send(Message(b"", (rows(20),)))
            sender.send(Message(b"larger than a buffer", (rows(400),)))
            if fail:
                return
            take(receiver), take(receiver)
            sender.end()
            assert receiver.take() == (0, None)
            producer.close()
            consumer.close()

    use("first", fail=False)  # ZeroMQ keeps one thread of the process for its zero-copy messages
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    use("second", fail=False)
    use("third", fail=True)
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert "memfd:aaflow-edge" not in Path("/proc/self/maps").read_text()
    assert not list(tmp_path.glob("*/edges/*/*"))


@pytest.mark.serial
def test_an_idle_endpoint_sleeps(tmp_path: Path) -> None:
    with connected(tmp_path, edge(), Form.SHARED_MEMORY) as (sender, receiver, *_):
        for _ in range(2):
            sender.send(Message(b"", (rows(300),)))
        kept = [take(receiver), take(receiver)]
        third = Message(b"", (rows(300),))
        waiting = [
            threading.Thread(target=_until_it_fails, args=(do,)) for do in (lambda: sender.send(third), receiver.take)
        ]
        for thread in waiting:
            thread.start()
        time.sleep(0.2)
        before = time.process_time()
        time.sleep(2)
        assert time.process_time() - before < 0.02 * 2, "of a core, by two endpoints that wait"
        assert all(thread.is_alive() for thread in waiting)
        del kept
    for thread in waiting:
        thread.join()


def _until_it_fails(action: Callable[[], object]) -> None:
    with contextlib.suppress(EdgeError):
        action()


def test_the_memory_of_a_dead_producer_is_no_failure_of_the_receiver(tmp_path: Path) -> None:
    write_edge_keys(tmp_path)
    reactor = Reactor("edges", read_edge_keys(tmp_path), encrypted=True)
    inbox = Inbox(reactor, edge(), 0, Form.SHARED_MEMORY, 0, itertools.count())
    dead = subprocess.Popen(["true"])
    dead.wait(10)
    inbox.process = dead.pid
    inbox.on_frames([zmq.Frame(protocol.pack_data(b"", [[edge().buffers], [3, 1, 4096], [], [None]], b""))])
    with pytest.raises(PeerLost, match="is gone before the end of its stream"), reactor.changed:
        reactor.check()
    reactor.stop(0)
