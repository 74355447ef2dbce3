"""Who else uses the cores while something is measured."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Disturbance:
    """Share of the machine's cores that other processes used; 0 to 1."""

    others: float = 0.0


@contextmanager
def watched() -> Iterator[Disturbance]:
    """Tell afterwards what others used meanwhile: what the machine was busy, less this process and its children."""
    seen = Disturbance()
    busy, own, clock = _busy(), _own(), time.monotonic()
    yield seen
    used = (_busy() - busy) - (_own() - own)
    seen.others = max(0.0, used / ((time.monotonic() - clock) * (os.cpu_count() or 1)))


def _busy() -> float:
    """CPU seconds of all processes since the machine started, time stolen by its host among them (proc(5))."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)
