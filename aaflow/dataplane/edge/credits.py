"""What a sender may still send: which buffers are free, and how many messages without one are on their way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aaflow.dataplane.edge.memory import SharedMemory
from aaflow.dataplane.edge.protocol import SMALL, SMALL_MESSAGES


@dataclass
class _Buffer:
    """State of one buffer of shared memory: free when neither loaned nor held.

    Attributes:
        used: bytes from its start.
        loaned: a part of it was allocated and this process still refers to it.
        held: messages that lie in it and that the receiver has not released, or that are being written.
    """

    used: int = 0
    loaned: bool = False
    held: int = 0


class Credits:
    """The bounds of a channel, at its sender's end. Whoever calls holds the reactor's condition.

    What may be sent now is told by a value, what waiting will allow by None (see ``Reactor.wait``). Only the receiver
    is ever waited for, never this process itself.

    Args:
        bound: messages that may be unreleased: in buffers, and as many with memory of their own.
        buffers: of shared memory; 0 for a socket.
        buffer_bytes: size of one.
    """

    def __init__(self, bound: int, buffers: int, buffer_bytes: int) -> None:
        self._bound = bound
        self._buffer_bytes = buffer_bytes
        self._buffers = [_Buffer() for _ in range(buffers)]
        self._own: dict[int, SharedMemory | None] = {}
        self._next_number = bound
        self._small = 0

    @property
    def any_loaned(self) -> bool:
        """Whether this process refers to a part of a buffer that it allocated."""
        return any(buffer.loaned for buffer in self._buffers)

    def free_buffer(self) -> int | None:
        """A free buffer, or -1 when this process itself holds all, so that waiting might never end."""
        for index, buffer in enumerate(self._buffers):
            if not buffer.loaned and not buffer.held:
                return index
        return None if any(not buffer.loaned for buffer in self._buffers) else -1

    def room(self, located: set[int], size: int) -> tuple[int, int] | None:
        """Buffer and offset for ``size`` bytes, or (-1, 0) for memory of their own.

        Args:
            located: buffers that hold columns of the same message.
            size: of what else it has.
        """
        for index in located:
            if self._buffers[index].used + size <= self._buffer_bytes:
                return index, self._buffers[index].used
        free = self.free_buffer() if size <= self._buffer_bytes else -1
        if free is not None and free >= 0:
            return free, 0
        # A message that keeps buffers from becoming free must not wait for one.
        if free is None and not located:
            return None
        return (-1, 0) if self.own_allowed() else None

    def own_allowed(self) -> bool | None:
        """Whether one more message may have memory, or frames, of its own."""
        return True if len(self._own) < self._bound else None

    def small_allowed(self) -> bool | None:
        """Whether one more small message may be sent."""
        return True if self._small < SMALL_MESSAGES else None

    def loan(self, index: int, size: int) -> None:
        """A free buffer's start becomes this process's own to write."""
        self._buffers[index].loaned = True
        self._buffers[index].used = size

    def end_loan(self, index: int) -> None:
        """Nothing in this process refers to it any more."""
        self._buffers[index].loaned = False

    def use(self, index: int, end: int) -> None:
        """A buffer is in use up to ``end``."""
        self._buffers[index].used = end

    def number_own(self) -> int:
        """Take one credit for a message with memory of its own; returns its number."""
        self._next_number += 1
        self._own[self._next_number - 1] = None
        return self._next_number - 1

    def keep(self, number: int, memory: SharedMemory) -> None:
        """The memory of such a message, kept open until it is released."""
        self._own[number] = memory

    def hold(self, numbers: Iterable[int]) -> None:
        """A message lies in these buffers; numbers of other kinds are held by having been taken."""
        for number in numbers:
            if number == SMALL:
                self._small += 1
            elif number < len(self._buffers):
                self._buffers[number].held += 1

    def release(self, number: int) -> None:
        """The receiver let go of one message in a buffer, one with memory of its own, or a small one."""
        if number == SMALL:
            self._small -= 1
        elif number < len(self._buffers):
            self._buffers[number].held -= 1
        elif (memory := self._own.pop(number)) is not None:
            memory.close_descriptor()

    def drop(self) -> None:
        """Nothing is sent any more."""
        for memory in self._own.values():
            if memory is not None:
                memory.close_descriptor()
        self._own.clear()
