"""How many task groups an executor of a user's program starts at once, and who may start theirs.

Groups of one run wait for each other, so all of them need a worker at the same time. Parsl hands out one worker after
another: two runs of one program could each get half of what they need, and both would wait.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from parsl.executors import HighThroughputExecutor, ThreadPoolExecutor
from parsl.launchers import SimpleLauncher, SingleNodeLauncher
from parsl.providers import LocalProvider

from aaflow.errors import PilotError

#: Seconds between two questions whether a run that waits is still wanted.
CHECK_SECONDS = 0.5


def workers_of(executor: Any, *, cores: int, memory: int, scales: bool) -> int | None:
    """How many tasks an executor runs at once when all its blocks are up; None where nobody knows.

    Args:
        executor: of Parsl.
        cores: of a node, as the site has it, where the executor's provider does not say.
        memory: of a node, in bytes, likewise.
        scales: whether the program's strategy starts more blocks than the first.
    """
    if isinstance(executor, ThreadPoolExecutor):
        return int(executor.max_threads or 1)
    if not isinstance(executor, HighThroughputExecutor) or executor.provider is None:
        return None
    provider = executor.provider
    if isinstance(provider, LocalProvider):
        cores = os.cpu_count() or cores
    cores = getattr(provider, "cores_per_node", None) or cores
    # As the pool itself counts them (parsl.executors.high_throughput.process_worker_pool).
    on_node = min(executor.max_workers_per_node, math.floor(cores / executor.cores_per_worker))
    if executor.mem_per_worker:
        gigabytes = getattr(provider, "mem_per_node", None) or memory / 2**30
        on_node = min(on_node, math.floor(gigabytes / executor.mem_per_worker))
    if executor.available_accelerators:
        on_node = min(on_node, len(executor.available_accelerators))
    # With less parallelism Parsl may never start another block for a few tasks.
    blocks = provider.max_blocks if scales and provider.parallelism >= 1 else provider.init_blocks
    launcher = getattr(provider, "launcher", None)
    one_pool = isinstance(launcher, (SimpleLauncher, SingleNodeLauncher))  # a block, on its first node
    pools = 1 if one_pool else provider.nodes_per_block
    return int(on_node * blocks * pools)


def require_workers(workers: int | None, label: str, groups: int) -> None:
    """Refuse an executor that can't start all concurrent groups at once: they would wait for each other for ever.

    Raises:
        PilotError: it has fewer workers than there are groups.
    """
    if workers is not None and workers < groups:
        raise PilotError(
            f"Parsl's executor {label!r} has {workers} worker(s), and {groups} task groups have to run at once; "
            f"give it max_workers_per_node={groups} and cores_per_worker=0.1 (a worker only starts its group and waits)"
        )


class _Room:
    """Workers of one executor that are not promised to a run."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.taken = 0


_rooms: weakref.WeakKeyDictionary[Any, _Room] = weakref.WeakKeyDictionary()
_rooms_lock = threading.Lock()


@contextlib.contextmanager
def all_at_once(workers: Mapping[Any, int | None], groups: int, check: Callable[[], None]) -> Iterator[None]:
    """Hold ``groups`` workers of each executor; runs of this program that find too few wait until others are done.

    Args:
        workers: by executor, as :func:`workers_of` and :func:`require_workers` found them.
        groups: that run at once.
        check: called while this waits; raises where the run is no longer wanted.
    """
    with contextlib.ExitStack() as held:
        # In one order for all, so that no two wait for each other.
        for executor, most in sorted(workers.items(), key=lambda item: str(item[0].label)):
            if most is not None:
                held.enter_context(_held(executor, most, groups, check))
        yield


@contextlib.contextmanager
def _held(executor: Any, most: int, groups: int, check: Callable[[], None]) -> Iterator[None]:
    with _rooms_lock:
        room = _rooms.setdefault(executor, _Room())
    with room.changed:
        while not room.changed.wait_for(lambda: room.taken + groups <= most, timeout=CHECK_SECONDS):
            check()
        room.taken += groups
    try:
        yield
    finally:
        with room.changed:
            room.taken -= groups
            room.changed.notify_all()
