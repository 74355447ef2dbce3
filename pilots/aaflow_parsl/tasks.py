"""What a Parsl worker runs. Parsl carries two strings there and one JSON text back."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import signal
from collections.abc import Iterator

from aaflow.launchorder import start_stage


def run_stage(run_folder: str, stage: str) -> str:
    """Run the task group of a stage."""
    with _ended_with_pool():
        return start_stage(run_folder, stage)


@contextlib.contextmanager
def _ended_with_pool() -> Iterator[None]:
    """Let the kernel end this worker when its pool dies; else it would wait for a group whose result nobody takes."""
    set_parent_death_signal = 1
    libc = ctypes.CDLL(None)
    if multiprocessing.parent_process() is None:  # a thread of the user's own program
        yield
        return
    libc.prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(set_parent_death_signal, 0, 0, 0, 0)
