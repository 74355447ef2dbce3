"""The right to write an index: one holder at a time, each with an epoch higher than all before it.

The claim of epoch e is the file ``writers/<e>.json``, made by an exclusive link; the highest one counts. Taking over
from a dead holder is linking the next one, so two contenders can't both win and nothing is ever taken away from a
holder that came later. A holder's beat is a counter in ``writers/<e>.beat``; where a contender can't look a process up
(another machine), it takes the holder for dead when the counter has stood still on the contender's own clock.
"""

from __future__ import annotations

import datetime
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from aaflow.errors import IndexLocked, StaleEpoch
from aaflow.index.files import create_file, make_folder, write_file
from aaflow.index.process import identity, lives

BEAT_SECONDS = 2.0
#: A beat that stood still for so long belongs to a dead holder.
SILENT_SECONDS = 15.0
_POLL_SECONDS = 0.25


class Claim:
    """The held right to write; made by :func:`claim`.

    Attributes:
        epoch: this holder's epoch.
    """

    def __init__(self, path: Path, epoch: int, who: dict[str, Any]) -> None:
        self.epoch = epoch
        self._path = path
        self._who = who
        self._done = threading.Event()
        self._descriptor = os.open(_beat_file(path, epoch), os.O_WRONLY | os.O_CREAT, 0o600)
        self._note(0)  # a contender that looks from now on sees it move every BEAT_SECONDS, or stand still
        self._beating = threading.Thread(target=self._beat, name=f"aaflow-beat-{epoch}", daemon=True)
        self._beating.start()

    def check(self) -> None:
        """Refuse to go on when another writer took over.

        Raises:
            StaleEpoch: a higher epoch exists, or this one was released.
        """
        check_epoch(self._path, self.epoch)

    def release(self) -> None:
        """Let the next writer in at once; the epoch stays on record. Idempotent."""
        if self._done.is_set():
            return
        self._done.set()
        self._beating.join()
        if current_epoch(self._path) == self.epoch:
            write_file(_claim_file(self._path, self.epoch), json.dumps({**self._who, "released": True}).encode())
        _beat_file(self._path, self.epoch).unlink(missing_ok=True)

    def _beat(self) -> None:
        count = 0
        try:
            while not self._done.wait(BEAT_SECONDS):
                count += 1
                self._note(count)
        finally:
            os.close(self._descriptor)

    def _note(self, count: int) -> None:
        # In place and of fixed width: opening a file anew shows what was synced to it, on NFS too.
        os.pwrite(self._descriptor, b"%016d" % count, 0)
        os.fsync(self._descriptor)


def claim(path: Path, owner: str) -> Claim:
    """Take the right to write the index at ``path`` and raise its epoch, durably.

    Args:
        path: the index folder.
        owner: what a person should read about the holder, for example the run folder.

    Raises:
        IndexLocked: another writer lives, or was quicker; the text names its host, process, owner and since when.
    """
    make_folder(path / "writers")
    highest = current_epoch(path)
    if highest:
        try:
            _require_dead(path, highest)
        except StaleEpoch:
            raise IndexLocked(f"{path}: another writer took over just now: wait until it ends") from None
    since = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    who = {**identity(), "owner": owner, "since": since}
    epoch = highest + 1
    if not create_file(_claim_file(path, epoch), json.dumps({**who, "released": False}).encode()):
        raise _locked(path, _read(path, epoch))
    for old in (path / "writers").iterdir():
        if old.stem.isdigit() and int(old.stem) < epoch:
            old.unlink(missing_ok=True)
    return Claim(path, epoch, who)


def current_epoch(path: Path) -> int:
    """The highest epoch ever claimed; 0 before the first."""
    try:
        names = os.listdir(path / "writers")
    except FileNotFoundError:
        return 0
    return max((int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit()), default=0)


def check_epoch(path: Path, epoch: int) -> None:
    """Refuse a writer of ``epoch`` when it is no longer the one that may write.

    Raises:
        StaleEpoch: a higher epoch exists, or the holder of this one has released it.
    """
    now = current_epoch(path)
    if now != epoch:
        raise StaleEpoch(f"{path}: epoch {epoch} may not write, the index is at epoch {now}: that run is over")
    if _read(path, epoch)["released"]:
        raise StaleEpoch(f"{path}: the writer of epoch {epoch} has released the index: its run is over")


def writer_lives(path: Path) -> bool:
    """Whether a writer may be at work now."""
    epoch = current_epoch(path)
    return bool(epoch) and not (who := _read(path, epoch))["released"] and lives(who) is not False


def _require_dead(path: Path, epoch: int) -> None:
    who = _read(path, epoch)
    if who["released"]:
        return
    known = lives(who)
    if known is None:
        known = _beats(path, epoch)
    if known:
        raise _locked(path, who)


def _beats(path: Path, epoch: int) -> bool:
    """Whether the beat of ``epoch`` moves, or its claim changes, within :data:`SILENT_SECONDS`."""
    first, start = _pulse(path, epoch), time.monotonic()
    while time.monotonic() - start < SILENT_SECONDS:
        time.sleep(_POLL_SECONDS)
        if _pulse(path, epoch) != first:
            return not _read(path, epoch)["released"]
    return False


def _pulse(path: Path, epoch: int) -> tuple[bytes, int]:
    try:
        return _beat_file(path, epoch).read_bytes(), current_epoch(path)
    except FileNotFoundError:
        return b"", current_epoch(path)


def _read(path: Path, epoch: int) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(_claim_file(path, epoch).read_bytes())
    except FileNotFoundError:
        # A later writer has tidied it away.
        raise StaleEpoch(f"{path}: epoch {epoch} has been followed by epoch {current_epoch(path)}") from None
    return values


def _locked(path: Path, who: dict[str, Any]) -> IndexLocked:
    return IndexLocked(
        f"{path} is being written by {who['owner']} (process {who['pid']} on {who['host']}, since {who['since']}): "
        "wait until it ends, or end it"
    )


def _claim_file(path: Path, epoch: int) -> Path:
    return path / "writers" / f"{epoch:08d}.json"


def _beat_file(path: Path, epoch: int) -> Path:
    return path / "writers" / f"{epoch:08d}.beat"
