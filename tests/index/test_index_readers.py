from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from aaflow.errors import IndexMissing
from aaflow.index import compact, open_index
from aaflow.index.process import identity
from aaflow.index.readers import held


def files(path):
    return sorted(str(file.relative_to(path)) for file in (path / "partitions").rglob("*.arrow"))


@pytest.fixture
def updated(run, corpus, kit):
    run(corpus)
    run([kit.Doc("f3.txt", ("edited", "tail"))])
    return run.path


def test_a_reader_keeps_its_generation_while_a_compaction_runs(updated, kit):
    query = np.stack([kit.vector("passage 3 0", 8)])
    with open_index(updated, generation=1) as old, open_index(updated) as new:
        before, shared = old.search(query, 30), new.search(query, 30)
        compact(updated)
        assert old.search(query, 30).equals(before)
        assert old.verify() == new.verify() == []
        with open_index(updated) as compacted:
            assert compacted.info().generation == 3
            assert compacted.search(query, 30).equals(shared)
        spared = files(updated)
    compact(updated)  # nothing to rewrite, and nobody holds the old files any more
    assert len(files(updated)) < len(spared)
    with pytest.raises(IndexMissing, match="no generation 1"):
        open_index(updated, generation=1)


def test_readers_let_go_when_they_are_closed_or_forgotten(updated):
    index = open_index(updated)
    assert held(updated) == {2}
    index.close()
    index.close()
    assert held(updated) == set()
    forgotten = open_index(updated)
    assert held(updated) == {2}
    del forgotten
    gc.collect()
    assert held(updated) == set()
    assert list((updated / "readers").iterdir()) == []


def test_a_killed_reader_holds_nothing(updated):
    code = "import sys, os; from aaflow.index import open_index; i = open_index(sys.argv[1]); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, str(updated)], check=False).returncode == -9
    assert len(list((updated / "readers").iterdir())) == 1
    assert held(updated) == set()
    assert list((updated / "readers").iterdir()) == []


def test_a_reader_on_another_machine_is_believed_for_a_day(updated):
    file = updated / "readers" / "00000001-abc.json"
    file.write_text(json.dumps({**identity(), "machine": "elsewhere"}))
    assert held(updated) == {1}
    yesterday = time.time() - 25 * 3600
    os.utime(file, (yesterday, yesterday))
    assert held(updated) == set()


def test_a_forked_child_that_ends_does_not_let_go_for_its_parent(updated):
    with open_index(updated) as index:
        child = os.fork()
        if not child:
            index._let_go()
            os._exit(0)
        os.waitpid(child, 0)
        assert held(updated) == {2}


def test_an_index_on_a_read_only_file_system_is_read(updated, monkeypatch, kit):
    def refuse(*args, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("aaflow.index.readers.make_folder", refuse)
    with open_index(updated) as index:
        assert index.search([kit.vector("edited", 8)], 1)["text"].to_pylist() == ["edited"]
        assert held(updated) == set()
