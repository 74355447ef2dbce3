"""SIGKILL at durable steps: the last generation stays whole, and the same run again ends as if nothing happened."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aaflow.index import Writer, compact, open_index
from aaflow.index.stage import staged_units

# Forks a child per kill point; a child dies by SIGKILL at the n-th call that makes something durable or names it.
KILLER = """
import importlib.util, json, os, signal, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("kit", sys.argv[1])
kit = importlib.util.module_from_spec(spec)
sys.modules["kit"] = kit
spec.loader.exec_module(kit)
from aaflow.index import IndexSpec, Writer, compact

def die_at(step):
    count = 0
    def guarded(call):
        def before(*args, **options):
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)
        return before
    for name in ("fsync", "replace", "link", "unlink"):
        setattr(os, name, guarded(getattr(os, name)))
    Path.unlink = guarded(Path.unlink)
    return lambda: count

for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        steps = die_at(job["step"])
        path = Path(job["path"])
        if job["what"] == "compact":
            compact(path)
        else:
            docs = [kit.Doc(f"f{n}.txt", (f"new {n}", "more")) for n in range(2, 9)]
            spec = IndexSpec(8, {"model": "test", "dtype": "float32"}, {"chunk": 100}, {}, partitions=4)
            kit.Run(path, spec)(docs, key="ab", kept=[kit.Doc("f0.txt", ("old 0",))])
        Path(job["path"] + ".steps").write_text(str(steps()))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def kill_at():
    command = [sys.executable, "-c", KILLER, str(Path(__file__).with_name("conftest.py"))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(what, path, step):
        process.stdin.write(json.dumps({"what": what, "path": str(path), "step": step}) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    yield run
    process.stdin.close()
    process.wait(30)
    process.stdout.close()


@pytest.fixture
def before(run, kit):
    """An index of two generations' segments, with tombstones."""
    run([kit.Doc(f"f{n}.txt", (f"old {n}",)) for n in range(6)])
    run([kit.Doc("f5.txt", ("old 5, edited", "tail"))])
    return run.path


def staged(path):
    return {u.segment.id for folder in (path / "staging").glob("*") for u in staged_units(folder) if u.segment}


def test_a_run_killed_at_any_step_leaves_the_last_generation_and_is_finished_by_the_next(
    tmp_path, before, run, kill_at
):
    with open_index(before) as index:
        old = index.manifest.digest
    whole = tmp_path / "whole"
    shutil.copytree(before, whole)
    assert kill_at("run", whole, -1) == 0
    new = open_index(whole).manifest.digest
    steps = int((tmp_path / "whole.steps").read_text())
    assert steps > 50
    seen = set()
    for step in range(1, steps + 1, 17):
        path = tmp_path / f"step{step}"
        shutil.copytree(before, path)
        assert kill_at("run", path, step) == -9
        with open_index(path) as index:
            found = index.manifest.digest
            assert found in (old, new)
            seen.add(found)
            assert all("nothing refers to it" in problem for problem in index.verify())
        committed = staged(path) if found == old else set()
        assert kill_at("run", path, -1) == 0
        with open_index(path) as index:
            assert index.manifest.digest == new
            assert committed <= {segment.id for _, segment in index.manifest.segments()}
            assert index.verify() == []
        shutil.rmtree(path)
    assert seen == {old, new}


def test_a_compaction_killed_at_any_step_leaves_the_content(tmp_path, before, kill_at):
    whole = tmp_path / "whole"
    shutil.copytree(before, whole)
    assert kill_at("compact", whole, -1) == 0
    digest = open_index(before).manifest.digest
    for step in range(1, int((tmp_path / "whole.steps").read_text()) + 1, 7):
        path = tmp_path / f"step{step}"
        shutil.copytree(before, path)
        assert kill_at("compact", path, step) == -9
        with open_index(path) as index:
            assert index.manifest.digest == digest
            assert all("nothing refers to it" in problem for problem in index.verify())
        compact(path)
        with open_index(path) as index:
            assert (index.manifest.digest, index.info().tombstones) == (digest, 0)
            assert index.verify() == []


def test_what_a_killed_writer_left_half_written_is_removed_by_the_next(run, spec, corpus):
    run(corpus)
    left = run.path / "partitions" / "00000" / ".tmp-of-a-dead-one"
    left.write_bytes(b"half")
    assert any(".tmp-of-a-dead-one: nothing refers to it" in p for p in open_index(run.path).verify())
    with Writer.acquire(run.path, spec, owner="next"):
        assert not left.exists()
