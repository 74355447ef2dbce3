"""Whoever waits for something on a rank's edges is woken when it happens."""

from __future__ import annotations

import threading
from pathlib import Path

from aaflow.dataplane.edge.keys import read_edge_keys, write_edge_keys
from aaflow.dataplane.edge.memory import Lease
from aaflow.dataplane.edge.reactor import Reactor


class Buffer:
    """A channel of one buffer, which is on loan."""

    free: bool | None = None

    def on_released(self, number: int) -> None:
        self.free = True


def test_a_release_that_one_waiter_accounts_for_wakes_the_other(tmp_path: Path) -> None:
    write_edge_keys(tmp_path)
    reactor = Reactor("edges", read_edge_keys(tmp_path), encrypted=False)
    buffer, asked, woken = Buffer(), threading.Event(), threading.Event()

    def ready() -> bool | None:
        asked.set()
        return buffer.free

    def wait() -> None:
        with reactor.changed:
            reactor.wait(ready)
        woken.set()

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    assert asked.wait(10)
    with reactor.changed:  # the reactor's own thread is not faster
        Lease(reactor.releases, buffer, 0)
        reactor.wait(lambda: True)
        assert buffer.free
    try:
        assert woken.wait(10)
    finally:
        buffer.free = True
        with reactor.changed:
            reactor.changed.notify_all()
        waiter.join(10)
        reactor.stop(0)
