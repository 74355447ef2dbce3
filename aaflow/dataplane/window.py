"""The memory that the ranks of one node share: an MPI-3 window that is made once and used again and again."""

from __future__ import annotations

import collections
import ctypes
import errno
import mmap
import os
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from aaflow.dataplane.sections import ALIGNMENT

if TYPE_CHECKING:
    from mpi4py import MPI

#: Where MPI libraries put the memory of a window.
_SHARED_MEMORY = "/dev/shm"
_MADV_POPULATE_WRITE = 23  # Linux 5.14

_libc = ctypes.CDLL(None, use_errno=True)


class Region:
    """A part of this rank's own memory in a window; it can be used again when nothing refers to this object.

    Attributes:
        offset: from the beginning of the rank's part of the window.
        address: in this process.
        size: bytes.
    """

    def __init__(self, offset: int, address: int, size: int) -> None:
        self.offset = offset
        self.address = address
        self.size = size


class Window:
    """This rank's part of the node's shared memory, and where the others' are.

    Memory costs nothing until it is touched; what was touched is given out again first, since first touch costs several
    times a write.

    Args:
        node: the ranks of this node.
        limit: bytes of each rank's part, at most; less where the node has less shared memory to give.
        table: words of the control table that every rank of the node can read.

    Attributes:
        capacity: bytes that :meth:`allocate` can give out; 0 where there is no shared memory.
        bases: addresses of the parts of the ranks of the node.
        tables: the control table of each rank of the node, int64 [words]; None where there is no shared memory.
    """

    def __init__(self, mpi: Any, node: MPI.Intracomm, limit: int, table: int) -> None:
        own = np.array([min(limit, _free() // 2 // node.size) // mmap.PAGESIZE * mmap.PAGESIZE], np.int64)
        node.Allreduce(mpi.IN_PLACE, own, op=mpi.MIN)
        head = -(-8 * table // ALIGNMENT) * ALIGNMENT
        self.capacity = 0
        self.bases: list[int] = []
        self.tables: list[npt.NDArray[np.int64]] | None = None
        self._free: list[tuple[int, int]] = []  # offsets of beginning and end, by place
        self._freed: collections.deque[tuple[int, int]] = collections.deque()
        if own[0] <= head:
            return
        self._window = mpi.Win.Allocate_shared(int(own[0]), 1, comm=node)
        self._window.Lock_all(mpi.MODE_NOCHECK)
        memory = [self._window.Shared_query(rank)[0] for rank in range(node.size)]
        self.bases = [part.address for part in memory]
        self.tables = [np.frombuffer(part, np.int64, table) for part in memory]
        self.capacity = int(own[0]) - head
        self._base = self.bases[node.rank]
        self._free = [(head, int(own[0]))]
        self._touched = 0

    def allocate(self, size: int) -> Region | None:
        """Memory for ``size`` bytes, a multiple of :data:`ALIGNMENT`; None where there isn't as much at once."""
        self._take_back()
        number = next((at for at, (start, end) in enumerate(self._free) if end - start >= size), None)
        if number is None or not self._touch(self._free[number][0] + size):
            return None
        start, end = self._free[number]
        self._free[number : number + 1] = [(start + size, end)] if end - start > size else []
        region = Region(start, self._base + start, size)
        weakref.finalize(region, self._freed.append, (start, start + size)).atexit = False
        return region

    def sync(self) -> None:
        """Make what this rank wrote visible, and see what others wrote: before and after a barrier."""
        if self.capacity:
            self._window.Sync()

    def _take_back(self) -> None:
        """Join what was freed to the free memory; the garbage collector of any thread frees."""
        if not self._freed:
            return
        while self._freed:
            self._free.append(self._freed.popleft())
        joined: list[tuple[int, int]] = []
        for start, end in sorted(self._free):
            if joined and joined[-1][1] == start:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((start, end))
        self._free = joined

    def _touch(self, end: int) -> bool:
        """Touch all memory up to ``end``; False where the node has no more: a write to it would be a SIGBUS."""
        if end <= self._touched:
            return True
        start = (self._base + self._touched) // mmap.PAGESIZE * mmap.PAGESIZE
        length = self._base + end - start
        if _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _MADV_POPULATE_WRITE) != 0:
            unknown = ctypes.get_errno() == errno.EINVAL
            if not unknown or _free() < 2 * length:
                return False
        self._touched = end
        return True


def _free() -> int:
    """Bytes of shared memory that this node can still give."""
    try:
        state = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return 0
    return state.f_bavail * state.f_frsize
