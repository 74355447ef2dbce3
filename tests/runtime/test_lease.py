"""A lease tells its driver what became of the groups, and lets nobody else in."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import zmq

import aaflow
from aaflow.errors import RunError, StageError
from aaflow.runtime import lease as lease_module
from aaflow.runtime import processes, records
from aaflow.runtime.ending import GroupResult
from aaflow.runtime.group import run_group
from aaflow.runtime.keeping import route_to
from aaflow.runtime.lease import RunLease

pytestmark = pytest.mark.serial


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keepers find the package that is tested."""
    monkeypatch.setenv("PYTHONPATH", str(Path(aaflow.__file__).parent.parent))


class Group(threading.Thread):
    """A group in a thread of the driver, as the local pilot has it."""

    def __init__(self, folder: str, stage: str, argv: list[str]) -> None:
        super().__init__()
        self.call = (folder, stage, argv)
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        folder, stage, argv = self.call
        try:
            run_group(folder, stage, lambda: (argv, {}))
        except StageError as error:
            self.error = error


def wait_until_alive(lease: RunLease, stage: str) -> None:
    deadline = time.monotonic() + 10
    while not lease.alive(stage):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_end_of_a_run_ends_all_its_groups_at_once(tmp_path: Path) -> None:
    with RunLease(str(tmp_path)) as lease:
        groups = [Group(str(tmp_path), stage, ["sleep", "3600"]) for stage in ("embed", "retrieve")]
        for stage in ("embed", "retrieve"):
            wait_until_alive(lease, stage)
        began = time.monotonic()
        lease.end("enough")
    for group in groups:
        group.join(timeout=5)
    assert time.monotonic() - began < 2
    for group in groups:
        assert "was ended: the driver ended the run: enough" in str(group.error)


def test_one_group_is_ended_and_the_others_go_on(tmp_path: Path) -> None:
    with RunLease(str(tmp_path)) as lease:
        ended = lease.watch("embed")
        first = Group(str(tmp_path), "embed", ["sleep", "3600"])
        second = Group(str(tmp_path), "retrieve", ["sleep", "1"])
        wait_until_alive(lease, "embed")
        lease.end_group("embed", "its upstream failed")
        with pytest.raises(StageError, match="was ended: its upstream failed"):
            ended.result(timeout=2)
        first.join()
        second.join()
        assert first.error is not None
        assert second.error is None
        again = lease.watch("embed")
        assert run_group(str(tmp_path), "embed", lambda: (["true"], {})).succeeded
        assert again.result(timeout=5).succeeded


def test_a_keeper_that_falls_silent_fails_the_future_and_its_group_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", 2.0)
    with RunLease(str(tmp_path)) as lease:
        ended = lease.watch("embed")
        group = Group(str(tmp_path), "embed", ["sleep", "3600"])
        wait_until_alive(lease, "embed")
        keeper = min(processes.find_marked(processes.RUN, lease.run), key=lambda process: process.start)
        os.kill(keeper.pid, signal.SIGSTOP)
        with pytest.raises(StageError, match=r"its keeper on .* was silent for 2 s"):
            ended.result(timeout=6)
        assert processes.find_marked(processes.GROUP, f"{lease.run}/embed") == []
        group.join(timeout=10)
        assert not processes.is_alive(keeper)
        assert group.error is not None


def test_a_lost_node_is_told_by_all_who_end_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", 4.0)  # the group's own keeper beats within that
    with RunLease(str(tmp_path)) as lease, zmq.Context() as context:
        ended = lease.watch("embed")
        group = Group(str(tmp_path), "embed", ["sleep", "3600"])
        wait_until_alive(lease, "embed")
        elsewhere = {"kind": "node", "stage": "embed", "host": "node2", "boot": "b", "namespace": "n", "pid": 1}
        with keeper_socket(context, tmp_path, elsewhere) as socket:
            socket.send(json.dumps({**elsewhere, "word": "beat"}).encode())
            assert socket.poll(1000)
        words = "its keeper on node2 was silent for 4 s: its node or the way there is lost"
        with pytest.raises(StageError, match=words):
            ended.result(timeout=12)
        group.join(timeout=10)
        assert words in str(group.error)  # and not that the launch command was killed, which is what followed


def keeper_socket(
    context: zmq.Context[zmq.Socket[bytes]],
    folder: Path,
    hello: Mapping[str, Any],
    keys: tuple[bytes, bytes] | None = None,
) -> zmq.Socket[bytes]:
    """A socket as a keeper has it, with the run's own keys or others."""
    own, driver = records.read(records.client_keys_path(str(folder))), records.read(records.driver_path(str(folder)))
    assert own is not None
    assert driver is not None
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    socket.curve_serverkey = own["server"].encode()
    socket.curve_publickey, socket.curve_secretkey = keys or (own["public"].encode(), own["secret"].encode())
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.ROUTING_ID, route_to(hello))
    socket.connect(driver["address"])
    return socket


def test_only_the_runs_own_keys_come_in(tmp_path: Path) -> None:
    with RunLease(str(tmp_path)) as lease:
        keeper = {"kind": "group", "stage": "s", "host": "h", "boot": "b", "namespace": "n", "pid": 1}
        hello = json.dumps({**keeper, "word": "beat"}).encode()
        goodbye = json.dumps({**keeper, "word": "bye", "result": GroupResult("s", 0).to_json()}).encode()
        answered = []
        with zmq.Context() as context:
            for keys in (zmq.curve_keypair(), None):
                socket = keeper_socket(context, tmp_path, keeper, keys)
                socket.send(hello)
                answered.append(bool(socket.poll(1000)))
            assert lease.alive("s")
            socket.send(goodbye)
            while lease.alive("s"):
                time.sleep(0.01)
        assert answered == [False, True]
    for path in (tmp_path / "keys", tmp_path / "keys/keeper.json", tmp_path / "driver.json"):
        assert path.stat().st_mode & 0o077 == 0


def test_a_folder_with_a_living_driver_is_refused_and_a_finished_one_taken(tmp_path: Path) -> None:
    with RunLease(str(tmp_path)) as lease, pytest.raises(RunError, match=f"driver with pid {os.getpid()} owns it"):
        RunLease(str(tmp_path))
    with RunLease(str(tmp_path)) as again:
        assert again.run != lease.run


def test_an_address_of_another_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"can't listen on 192\.0\.2\.1 .*interface"):
        RunLease(str(tmp_path), "192.0.2.1")


def test_a_group_whose_run_ended_meanwhile_does_not_start(tmp_path: Path) -> None:
    with RunLease(str(tmp_path)) as lease:
        pass
    future = None
    with pytest.raises(RunError, match="has ended"):
        run_group(str(tmp_path), "embed", lambda: ([sys.executable, "-c", "pass"], {}))
    future = lease.watch("embed")
    with pytest.raises(StageError, match="the driver ended the run: it is done"):
        future.result(timeout=0)
