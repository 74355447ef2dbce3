"""Readers say which generation they hold, so that what they may still open is spared."""

from __future__ import annotations

import json
import os
import time
import uuid
import weakref
from collections.abc import Callable
from pathlib import Path

from aaflow.index.files import make_folder
from aaflow.index.process import identity, lives

#: A reader on another machine can't be looked up; it is believed for so long.
FOREIGN_SECONDS = 24 * 3600.0


def hold(path: Path, generation: int, owner: object) -> Callable[[], object]:
    """Register that this process reads ``generation`` until ``owner`` dies or the returned function is called.

    An index on a read-only file system is read without: nothing can be taken away from it there.
    """
    folder = path / "readers"
    file = folder / f"{generation:08d}-{uuid.uuid4().hex}.json"
    try:
        make_folder(folder)
        with open(file, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as stream:
            json.dump(identity(), stream)
    except OSError:
        return lambda: None
    return weakref.finalize(owner, _let_go, file, os.getpid())


def _let_go(file: Path, pid: int) -> None:
    if os.getpid() == pid:  # a forked child inherits the registration, but it is not its own
        file.unlink(missing_ok=True)


def held(path: Path) -> set[int]:
    """The generations that living readers hold; registrations of dead ones are removed."""
    found: set[int] = set()
    for file in (path / "readers").glob("*.json"):
        try:
            alive = lives(json.loads(file.read_bytes()))
            if alive is None:
                alive = time.time() - file.stat().st_mtime < FOREIGN_SECONDS
        except FileNotFoundError:
            continue
        except (ValueError, KeyError):
            alive = time.time() - file.stat().st_mtime < 60  # just being written, or cut short
        if alive:
            found.add(int(file.name.split("-")[0]))
        else:
            file.unlink(missing_ok=True)
    return found
