"""All edges of one rank."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from aaflow.dataplane.edge.keys import read_edge_keys
from aaflow.dataplane.edge.reactor import Reactor
from aaflow.dataplane.edge.receiver import Inbox, Receiver
from aaflow.dataplane.edge.rendezvous import look_up, publish
from aaflow.dataplane.edge.sender import Sender
from aaflow.dataplane.edge.spec import EdgeSpec, Form
from aaflow.errors import EdgeCancelled, EdgeError

#: How often a missing address is looked for, at first and later, in seconds.
_LOOK_SECONDS = (0.01, 0.5)
#: How long the last words to peers may take to go out, in milliseconds.
_LINGER = 3000


class Endpoint:
    """The edges of one rank: declare them, connect, use them, close. A context manager; an error in it cancels.

    Args:
        folder: the run folder, on a file system that all ranks see; :func:`write_edge_keys` was called for it.
        stage: of this rank.
        rank: of this process in its stage.
        address: IP address of this node that other ranks reach.
        encrypted: CURVE on all sockets; False is for private networks, where peers show a password in plain text.

    Raises:
        EdgeError: the keys can't be read.
    """

    def __init__(self, folder: str | Path, stage: str, rank: int, *, address: str, encrypted: bool = True) -> None:
        self._folder = Path(folder)
        self._stage = stage
        self._rank = rank
        self._host = f"[{address}]" if ":" in address else address
        self._encrypted = encrypted
        self._keys = read_edge_keys(folder)
        self._receivers: list[tuple[EdgeSpec, Receiver]] = []
        self._senders: list[tuple[EdgeSpec, Sender]] = []
        self._published: list[Path] = []
        self._closed = False
        self._reactor = Reactor(f"edges {stage}.{rank}", self._keys, encrypted=encrypted)

    def receive_from(self, spec: EdgeSpec, producers: Mapping[int, Form]) -> Receiver:
        """Declare an edge into this rank; listens at once and waits for nobody.

        Args:
            spec: of the edge; its target is this stage.
            producers: the ranks of the source that send here, and how.

        Raises:
            EdgeError: this rank can't listen on its address, or may not have so many files open.
        """
        self._reactor.expect(len(producers))
        receiver = Receiver(self._reactor, spec, producers, self._rank)
        for inbox in receiver.inboxes.values():
            socket = self._reactor.socket()
            self._keys.protect_listener(socket, encrypted=self._encrypted)
            inbox.listen(socket, self._host)
        self._receivers.append((spec, receiver))
        addresses = {rank: inbox.address for rank, inbox in receiver.inboxes.items()}
        self._published.append(publish(self._folder, spec, self._rank, addresses))
        return receiver

    def send_to(self, spec: EdgeSpec, consumers: Mapping[int, Form]) -> dict[int, Sender]:
        """Declare an edge out of this rank; waits for nobody.

        Args:
            spec: of the edge; its source is this stage.
            consumers: the ranks of the target that this rank sends to, and how.

        Returns:
            A sender per consumer's rank, to be used after :meth:`connect`.

        Raises:
            EdgeError: this process may not have so many files open.
        """
        self._reactor.expect(len(consumers))
        senders = {
            rank: Sender(self._reactor, spec, rank, form, self._rank) for rank, form in sorted(consumers.items())
        }
        self._senders += [(spec, sender) for sender in senders.values()]
        return senders

    def connect(self, timeout: float) -> None:
        """Reserve all memory, find all peers, and return when every channel is up.

        Args:
            timeout: seconds.

        Raises:
            EdgeError: somebody is missing when the time is over (the text names each), there is not enough memory, or
                the two ends of an edge don't agree.
            PeerLost, EdgeCancelled: meanwhile.
        """
        deadline = time.monotonic() + timeout
        for _, sender in self._senders:
            sender.prepare()
        calling: dict[Sender, str] = {}
        nap, longest = _LOOK_SECONDS
        while True:
            self._call(calling)
            with self._reactor.changed:
                self._reactor.check()
                said = [inbox for inbox in self._inboxes() if inbox.hello is not None and not inbox.up]
                if not said and all(channel.up for channel in self._channels()):
                    return
                left = deadline - time.monotonic()
                if left <= 0:
                    raise EdgeError(self._who_is_missing(calling, timeout))
                if not said:
                    self._reactor.wait(lambda: None, min(left, nap))
                    nap = min(nap * 1.5, longest)
            for inbox in said:
                inbox.accept()

    def channels(self) -> list[dict[str, Any]]:
        """Every channel of this rank: ``from`` or ``to`` which stage, its ``rank``, ``form``, and if ``encrypted``."""
        ends: list[tuple[str, str, Inbox | Sender]] = []
        for spec, receiver in self._receivers:
            ends += [("from", spec.source, inbox) for inbox in receiver.inboxes.values()]
        ends += [("to", spec.target, sender) for spec, sender in self._senders]
        return [
            {way: stage, "rank": end.rank, "form": end.form.value, "encrypted": self._encrypted}
            for way, stage, end in ends
        ]

    def _inboxes(self) -> list[Inbox]:
        return [inbox for _, receiver in self._receivers for inbox in receiver.inboxes.values()]

    def _channels(self) -> list[Inbox | Sender]:
        return [*self._inboxes(), *(sender for _, sender in self._senders)]

    def _call(self, calling: dict[Sender, str]) -> None:
        """Call the receivers whose address is known by now, or is another one than before."""
        for spec, sender in self._senders:
            if sender.up or sender.connected:
                continue
            address = look_up(self._folder, spec, sender.rank, self._rank)
            if address is None or address == calling.get(sender):
                continue
            calling[sender] = address
            socket = self._reactor.socket()
            self._keys.protect_caller(socket, encrypted=self._encrypted)
            sender.connect(socket, address)

    def _who_is_missing(self, calling: Mapping[Sender, str], timeout: float) -> str:
        missing = []
        for spec, sender in self._senders:
            if not sender.up:
                why = "has not said where it listens"
                if sender in calling:
                    why = sender.refused or f"does not answer at {calling[sender]}"
                missing.append(f"rank {sender.rank} of {spec.target!r} {why}")
        for spec, receiver in self._receivers:
            silent = [inbox for inbox in receiver.inboxes.values() if not inbox.up]
            missing += [
                f"rank {inbox.rank} of {spec.source!r} has not connected to {inbox.address}" for inbox in silent
            ]
        return (
            f"rank {self._rank} of stage {self._stage!r}: its edges are not up after {timeout:g} s: "
            f"{'; '.join(missing)}. Did these ranks start (logs/ in {self._folder}), and can they reach this node?"
        )

    def cancel(self) -> None:
        """Wake everything that waits on this rank's edges with :class:`EdgeCancelled`; peers see this rank as lost."""
        self._reactor.fail(EdgeCancelled(f"rank {self._rank} of stage {self._stage!r} gave its edges up"))

    def close(self) -> None:
        """End all edges of this rank.

        After success this sleeps until the peers have taken everything. After :meth:`cancel`, after the loss of a
        peer, and with streams that have not ended, it is done at once, and the peers are told. Batches that were
        taken stay valid.

        Raises:
            PeerLost, EdgeCancelled: while this waited.
        """
        if self._closed:
            return
        self._closed = True
        senders = [sender for _, sender in self._senders]
        clean = False
        try:
            with self._reactor.changed:
                if not self._reactor.failed and all(sender.ended for sender in senders):
                    self._reactor.wait(lambda: True if all(sender.finished for sender in senders) else None)
                    clean = True
        finally:
            self._reactor.stop(_LINGER if clean else 0)
            for channel in self._channels():
                channel.drop()
            for path in self._published:
                path.unlink(missing_ok=True)

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.cancel()
        self.close()
