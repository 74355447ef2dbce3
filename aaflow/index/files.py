"""Files that are whole or absent: written under a temporary name, synced, then given their name.

Every name that a reader can see belongs to complete bytes that are on disk. Hard links and renames are what NFS and
Lustre keep atomic; fcntl locks are not used.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

#: Files whose name starts so belong to a write that has not ended, or never will.
TEMPORARY = ".tmp-"


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make ``folder`` and its missing parents, for their owner only, durably."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync_folder(folder.parent)


def make_folders(parent: Path, names: Iterable[str]) -> None:
    """Make several folders in ``parent`` like :func:`make_folder`, their names durable by one sync."""
    make_folder(parent)
    missing = [parent / name for name in names if not (parent / name).is_dir()]
    for folder in missing:
        folder.mkdir(mode=0o700, exist_ok=True)
    if missing:
        sync_folder(parent)


def _write_temporary(target: Path, data: bytes | memoryview) -> Path:
    temporary = target.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def write_file(target: Path, data: bytes | memoryview) -> None:
    """Put ``data`` at ``target``, replacing what was there, durably and at once."""
    temporary = _write_temporary(target, data)
    try:
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def create_file(target: Path, data: bytes | memoryview) -> bool:
    """Put ``data`` at ``target`` unless the name is taken; returns whether it was put, which only one of many is told.

    The link count decides, as NFS may report an error for a link that was made (open(2), on O_EXCL).
    """
    temporary = _write_temporary(target, data)
    try:
        try:
            os.link(temporary, target)
        except FileExistsError:
            if temporary.stat().st_nlink != 2:
                return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(target.parent)
    return True


def temporaries(folder: Path) -> Iterator[Path]:
    """What writes that never ended left anywhere below ``folder``."""
    yield from folder.rglob(f"{TEMPORARY}*")
