"""The ranks of a plan, all in this process, connected as their placement says."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import aaflow
from aaflow.compiler.plan import schema_of
from aaflow.dataplane.communicator import SerialCommunicator
from aaflow.dataplane.edge import Message, Sender, write_edge_keys
from aaflow.operators.embedders.hash import HashEmbedder
from aaflow.operators.operator import Item
from aaflow.runtime.chain import RankContext, chain_of
from aaflow.runtime.engine import run_chain
from aaflow.runtime.runfolder import RunFolder
from aaflow.runtime.trace import OperatorTrace
from aaflow.runtime.wiring import Wiring
from aaflow.scheduling.sitefile import load_site
from aaflow.workflow import Workflow

Wirings = dict[tuple[str, int], Wiring]


def keep(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch


def placed(workflow: Workflow, ranks: Mapping[str, int], *, nodes: int = 1, encrypted: bool = True) -> aaflow.Placement:
    site = replace(load_site("local"), nodes=nodes, encrypted_edges=encrypted)
    return aaflow.place(aaflow.compile(workflow, site=site, ranks=ranks, fuse=False), site)


@contextlib.contextmanager
def wired(placement: aaflow.Placement, parent: Path) -> Iterator[Wirings]:
    """A wiring for every rank, connected; given up in the end."""
    folder = RunFolder.create(parent, placement.plan.digest)
    write_edge_keys(folder.path)
    wirings = {
        (stage.name, rank): Wiring(folder, placement, stage, rank)
        for stage in placement.plan.stages
        for rank in range(stage.ranks)
    }
    with contextlib.ExitStack() as stack:
        for wiring in wirings.values():
            stack.enter_context(wiring)
            stack.callback(wiring.cancel)
        with ThreadPoolExecutor(len(wirings)) as pool:
            list(pool.map(Wiring.connect, wirings.values()))
        yield wirings


def documents(placement: aaflow.Placement, texts: list[str]) -> pa.RecordBatch:
    """Rows of ``load``, which nobody looks at but for their text."""
    schema = schema_of(placement.plan.stage("load").operators[-1].output)
    columns = [
        pa.array(texts, pa.string()) if field.name == "text" else pa.nulls(len(texts), field.type) for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


@pytest.fixture
def loaded(tmp_path: Path) -> aaflow.Stream:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("a text")
    return Workflow().load(tmp_path / "docs")


def greeting(address: str) -> bytes:
    """How whoever listens at a ZeroMQ address wants connections to be protected: it says so first."""
    host, port = address.removeprefix("tcp://").rsplit(":", 1)
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(b"\xff" + bytes(8) + b"\x7f\x03")
        said = b""
        while len(said) < 32:
            said += connection.recv(64)
    return said[12:32].rstrip(b"\0")


@pytest.mark.parametrize("encrypted", [True, False])
def test_the_form_of_a_channel_follows_from_the_placement(
    loaded: aaflow.Stream, tmp_path: Path, encrypted: bool
) -> None:
    loaded.apply(keep, name="keep")
    placement = placed(loaded.workflow, {"load": 1, "keep": 2}, nodes=2, encrypted=encrypted)
    assert [slot.node for slot in placement.slots["load"] + placement.slots["keep"]] == [0, 0, 1]
    with wired(placement, tmp_path) as wirings:
        sides = {name: [(c["rank"], c["form"], c["encrypted"]) for c in w.channels()] for name, w in wirings.items()}
        assert sides == {
            ("load", 0): [(0, "shared-memory", encrypted), (1, "socket", encrypted)],
            ("keep", 0): [(0, "shared-memory", encrypted)],
            ("keep", 1): [(0, "socket", encrypted)],
        }
        assert edge_memory(), "ranks of one node share memory"
        (folder,) = tmp_path.glob("*/edges/load")
        for path in folder.glob("keep.*.json"):
            assert greeting(json.loads(path.read_text())["0"]) == (b"CURVE" if encrypted else b"PLAIN")


def test_ranks_of_different_nodes_share_no_memory(loaded: aaflow.Stream, tmp_path: Path) -> None:
    loaded.apply(keep, name="keep")
    placement = placed(loaded.workflow, {"load": 1, "keep": 1}, nodes=2)
    apart = replace(placement, slots={**placement.slots, "keep": (replace(placement.slots["keep"][0], node=1),)})
    with wired(apart, tmp_path) as wirings:
        assert [channel["form"] for channel in wirings["load", 0].channels()] == ["socket"]
        assert not edge_memory()


@dataclass(frozen=True)
class Mapped:
    """Edge memory as this process has mapped it."""

    start: int
    end: int
    access: str
    offset: int
    inode: int


def edge_memory() -> list[Mapped]:
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "memfd:aaflow-edge" in line:
            addresses, access, offset, _, inode = line.split()[:5]
            start, end = (int(address, 16) for address in addresses.split("-"))
            mapped.append(Mapped(start, end, access, int(offset, 16), int(inode)))
    return mapped


Place = tuple[str, int, int]


def place_of(column: pa.Array) -> Place:
    """How the first vector of a column is mapped, and where it lies: inode and offset of an edge's memory."""
    address = column.values.buffers()[1].address + 4 * column.offset * column.type.list_size
    for part in edge_memory():
        if part.start <= address < part.end:
            return part.access, part.inode, part.offset + address - part.start
    return "outside", 0, 0


def test_vectors_are_written_where_the_next_stage_reads_them(
    loaded: aaflow.Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the embedder to the reader there is one place in memory: no copy of the largest column."""
    loaded.embed("hash", dimension=64).apply(keep, name="keep")
    placement = placed(loaded.workflow, {"load": 1, "embed": 1, "keep": 1})
    sent: list[Place] = []
    send = Sender.send

    def noting(sender: Sender, message: Message) -> None:
        if message.batches[0] is not None and "vector" in message.batches[0].schema.names:
            sent.append(place_of(message.batches[0].column("vector")))
        send(sender, message)

    monkeypatch.setattr(Sender, "send", noting)
    texts = [f"text {number}" for number in range(5000)]  # several windows of the operator
    received: list[Place] = []
    vectors = []
    with wired(placement, tmp_path) as wirings, ThreadPoolExecutor(2) as pool:
        batches = documents(placement, texts)
        items = [Item(0, -1, batches.slice(start, 500)) for start in range(0, 5000, 500)]
        loading = pool.submit(wirings["load", 0].drain, [*items, Item(0, -1, last=True)])
        embedding = pool.submit(embed, placement, wirings["embed", 0], tmp_path)
        for item in wirings["keep", 0].inlet:
            if item.rows is not None:
                column = item.rows.column("vector")
                received.append(place_of(column))
                vectors.append(np.array(column.flatten()))
            del item
        loading.result(30)
        embedding.result(30)
    assert len(received) >= 10
    assert {access for access, *_ in sent} == {"rw-s"}
    assert {access for access, *_ in received} == {"r--s"}
    assert [place[1:] for place in received] == [place[1:] for place in sent]
    expected = np.empty((5000, 64), np.float32)
    HashEmbedder(64).embed(pa.array(texts), expected)
    assert (np.concatenate(vectors).reshape(5000, 64) == expected).all()


def embed(placement: aaflow.Placement, wiring: Wiring, spool: Path) -> None:
    """What a rank of the stage does."""
    plan = placement.plan
    context = RankContext(plan, plan.stage("embed"), SerialCommunicator(), None, "cpu", wiring.allocate, spool)
    traced = [(OperatorTrace(name), function) for name, function in chain_of(context)]
    with contextlib.closing(run_chain(traced, wiring.inlet, 3, wiring.cancel)) as items:
        wiring.drain(items)
