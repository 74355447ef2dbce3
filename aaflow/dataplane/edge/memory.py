"""Shared memory without a name: it can't be left behind, the kernel frees it with the last process that maps it."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from aaflow.errors import EdgeError

Bytes = npt.NDArray[np.uint8]

#: Memory that is left to others when buffers are reserved, and the steps in which that is done; bytes.
_SPARE = 128 << 20
_STEP = 64 << 20


class SharedMemory:
    """A mapped memfd; a peer of the same user and pid namespace opens it through ``/proc/PID/fd``.

    Attributes:
        size: bytes.
        array: ``uint8[size]`` over the mapping; read-only in a peer.
        descriptor: of the memfd until :meth:`close_descriptor`; the mapping lives as long as views of it.
    """

    def __init__(self, descriptor: int, size: int, *, writable: bool) -> None:
        self.size = size
        self.descriptor = descriptor
        protection = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
        mapping = mmap.mmap(descriptor, size, mmap.MAP_SHARED, protection)
        self.array: Bytes = np.frombuffer(mapping, np.uint8)
        self.inode = os.fstat(descriptor).st_ino

    @classmethod
    def reserve(cls, size: int) -> SharedMemory:
        """New memory, reserved in full: writing to it later can't fail.

        Raises:
            EdgeError: this node or the control group of this process hasn't so much left.
        """
        descriptor = os.memfd_create("aaflow-edge", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.fchmod(descriptor, 0o600)
            _require_available(size, size)
            for start in range(0, size, _STEP):
                step = min(_STEP, size - start)
                _require_available(step, size)  # other ranks reserve at the same time
                os.posix_fallocate(descriptor, start, step)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            memory = cls(descriptor, size, writable=True)
        except OSError as error:
            os.close(descriptor)
            raise EdgeError(f"{size >> 20} MiB of shared memory can't be reserved: {error}") from error
        except BaseException:
            os.close(descriptor)
            raise
        return memory

    @classmethod
    def open(cls, process: int, descriptor: int, inode: int, size: int) -> SharedMemory:
        """A peer's memory, to read.

        Raises:
            OSError: there is no such memory, or it is another one: the peer has another pid namespace.
        """
        own = os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(own)
            if (status.st_ino, status.st_size) != (inode, size):
                raise OSError(f"/proc/{process}/fd/{descriptor} is not the memory of the peer")
            memory = cls(own, size, writable=False)
        finally:
            os.close(own)
        memory.descriptor = -1
        return memory

    @property
    def handle(self) -> tuple[int, int, int]:
        """Descriptor, inode and size: with the pid, what :meth:`open` needs."""
        return self.descriptor, self.inode, self.size

    def touch(self) -> None:
        """Have every page mapped and, by its owner, zeroed: the first touch costs about 10 times a later write."""
        pages = self.array[:: mmap.PAGESIZE]
        if pages.flags.writeable:
            pages[:] = 0
        else:
            pages.max(initial=0)

    def close_descriptor(self) -> None:
        """Once the peer has mapped the memory, nobody else can."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Wakeup:
    """Wakes a thread that polls :attr:`descriptor`; open as long as anyone may still ring, whatever ended before."""

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._write, self._close = os.eventfd_write, os.close

    def ring(self) -> None:
        """From any thread; never blocks and takes no lock."""
        self._write(self.descriptor, 1)

    def clear(self) -> None:
        """Forget the rings so far."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.descriptor)

    def __del__(self) -> None:
        self._close(self.descriptor)


class Releases:
    """What was let go of, in any thread, in any order, also after its endpoint was closed."""

    def __init__(self) -> None:
        self.wakeup = Wakeup()
        self._items: deque[tuple[Any, int]] = deque()
        self._open = True

    def add(self, item: tuple[Any, int]) -> None:
        """Takes no lock, as the garbage collector may call it anywhere."""
        if self._open:
            self._items.append(item)
            self.wakeup.ring()

    def close(self) -> None:
        """Nobody is interested any more."""
        self._open = False
        self._items.clear()

    def take(self) -> list[tuple[Any, int]]:
        """Everything added so far."""
        taken = []
        try:
            while True:
                taken.append(self._items.popleft())
        except IndexError:
            return taken


class Lease:
    """Memory is in use as long as this lives."""

    __slots__ = ("_item", "_releases")

    def __init__(self, releases: Releases, channel: Any, number: int) -> None:
        self._releases = releases
        self._item = (channel, number)

    def __del__(self) -> None:
        self._releases.add(self._item)


class _Leased(np.ndarray[Any, Any]):
    lease: Lease


def leased(array: Bytes, lease: Lease) -> pa.Buffer:
    """``array`` as an Arrow buffer; the lease ends when nothing refers to any part of it any more."""
    view = array.view(_Leased)
    view.lease = lease
    return pa.py_buffer(view)


def _require_available(size: int, whole: int) -> None:
    left = available_memory()
    if left < size + _SPARE:
        raise EdgeError(
            f"{whole >> 20} MiB of shared memory can't be reserved: the node, or this process's control group, has "
            f"{left >> 20} MiB left; use fewer or smaller buffers or fewer ranks on a node, or ask for more memory"
        )


def available_memory() -> int:
    """Bytes that can still be had on this node and in the control groups (v1 and v2) of this process."""
    left = [_meminfo("MemAvailable")]
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            left += _left_in_groups(Path("/sys/fs/cgroup"), path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = Path("/sys/fs/cgroup/memory")
            left += _left_in_groups(root, path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return min(left)


def _left_in_groups(root: Path, path: str, limit: str, usage: str, reclaimable: str) -> list[int]:
    """What a control group and those around it have left; a container often sees its own as the root."""
    own = root / path.lstrip("/")
    left = []
    for folder in (own, *own.parents):
        if not folder.is_relative_to(root):
            break
        most, used = _lines(folder / limit), _lines(folder / usage)
        if most and used and most[0].isdecimal():
            cached = [int(line.split()[1]) for line in _lines(folder / "memory.stat") if line.startswith(reclaimable)]
            left.append(int(most[0]) - int(used[0]) + sum(cached))
    return left


def _meminfo(name: str) -> int:
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    return 1 << 62


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
