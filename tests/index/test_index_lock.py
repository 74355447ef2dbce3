from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from aaflow.errors import IndexLocked, StaleEpoch
from aaflow.index import Writer, lock
from aaflow.index.lock import claim, current_epoch, writer_lives
from aaflow.index.process import identity, lives

HOLDER = """
import sys, time
from aaflow.index.lock import claim
held = claim(__import__("pathlib").Path(sys.argv[1]), "the holder")
print(held.epoch, flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().strip() == "1"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def foreign(path, epoch):
    """Make the claim of ``epoch`` one of another machine."""
    file = path / "writers" / f"{epoch:08d}.json"
    who = json.loads(file.read_text())
    file.write_text(json.dumps({**who, "machine": "elsewhere", "host": "node17"}))


def test_a_living_holder_is_named(tmp_path, holder):
    with pytest.raises(IndexLocked, match=rf"the holder \(process {holder.pid} on .*since 20"):
        claim(tmp_path, "me")
    assert writer_lives(tmp_path)


def test_a_killed_holder_on_this_machine_is_followed_at_once(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet reaped by its parent
    start = time.monotonic()
    held = claim(tmp_path, "me")
    assert time.monotonic() - start < 1
    assert held.epoch == 2
    assert [file.name for file in (tmp_path / "writers").glob("*.json")] == ["00000002.json"]
    held.release()


def test_epochs_rise_over_releases(tmp_path):
    for epoch in range(1, 4):
        held = claim(tmp_path, "me")
        assert held.epoch == current_epoch(tmp_path) == epoch
        held.check()
        held.release()
        held.release()
        with pytest.raises(StaleEpoch, match="released"):
            held.check()
        assert not writer_lives(tmp_path)


def test_of_many_contenders_one_wins(tmp_path):
    barrier, won, refused = threading.Barrier(8), [], []

    def contend():
        barrier.wait()
        try:
            won.append(claim(tmp_path, "a contender"))
        except IndexLocked as error:
            refused.append(str(error))

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(refused) == 7
    won[0].release()


def test_a_holder_elsewhere_lives_while_its_beat_moves(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.2)
    held = claim(tmp_path, "far away")
    foreign(tmp_path, held.epoch)
    with pytest.raises(IndexLocked, match=r"far away .* on node17"):
        claim(tmp_path, "me")
    held.release()


def test_a_holder_elsewhere_is_followed_when_its_beat_stands_still(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(lock, "BEAT_SECONDS", 60)
    old = claim(tmp_path, "far away")
    foreign(tmp_path, old.epoch)
    start = time.monotonic()
    new = claim(tmp_path, "me")
    assert 1 <= time.monotonic() - start < 3
    with pytest.raises(StaleEpoch, match="the index is at epoch 2"):
        old.check()
    old.release()  # takes nothing away from its successor
    new.check()
    new.release()


def test_a_holder_elsewhere_that_releases_while_watched_is_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "SILENT_SECONDS", 10.0)
    held = claim(tmp_path, "far away")
    foreign(tmp_path, held.epoch)
    threading.Timer(0.5, held.release).start()
    start = time.monotonic()
    claim(tmp_path, "me").release()
    assert time.monotonic() - start < 5


def test_a_process_is_told_from_a_later_one_of_the_same_id():
    me = identity()
    assert lives(me) is True
    assert lives({**me, "started": me["started"] - 1}) is False
    assert lives({**me, "pid": 2**22 + 1}) is False
    assert lives({**me, "machine": "elsewhere"}) is None


def test_a_writer_that_fails_lets_the_next_one_in(run, spec):
    with pytest.raises(RuntimeError, match="boom"), Writer.acquire(run.path, spec, owner="fails"):
        raise RuntimeError("boom")
    with Writer.acquire(run.path, spec, owner="next") as writer:
        assert writer.epoch == 2
    assert [file.name for file in (run.path / "writers").iterdir()] == ["00000002.json"]
