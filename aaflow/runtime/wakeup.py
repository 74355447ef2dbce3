"""Signals as bytes in a pipe, for a process that sleeps in ``poll``. Standard library only."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType


class Wakeup:
    """A file descriptor that becomes readable with SIGCHLD, and the signal that asked the keeper to end."""

    def __init__(self) -> None:
        self.descriptor, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.asked: int | None = None
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = number

    def drain(self) -> None:
        """Forget the wake-ups so far."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.descriptor, 512):
                pass
