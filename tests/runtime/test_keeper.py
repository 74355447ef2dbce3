"""Keepers on further nodes and of engines."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import aaflow
from aaflow.errors import StageError
from aaflow.runtime import processes, records, sharedfiles
from aaflow.runtime.cleaning import registered_files
from aaflow.runtime.group import run_group
from aaflow.runtime.lease import RunLease
from aaflow.runtime.processes import Process

pytestmark = pytest.mark.serial

#: Two ranks who take themselves to be on another node than the keeper that launched them.
FAR_RANKS = """
import os, sys, time
os.environ["AAFLOW_KEEPER"] = '{"host": "elsewhere", "boot": "another", "namespace": "another"}'
from aaflow.runtime.group import keep_node, register_rank
keep_node(sys.argv[1], "work")
from mpi4py import MPI
register_rank(sys.argv[1], "work", MPI.COMM_WORLD.Get_rank())
MPI.COMM_WORLD.Barrier()
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keepers and ranks find the package that is tested."""
    monkeypatch.setenv("PYTHONPATH", str(Path(aaflow.__file__).parent.parent))


#: One that stays inside MPI_Init, or is killed there: before it registered what it made.
UNREGISTERED = """
import os, signal, sys, time
from aaflow.runtime.group import keep_node
print(keep_node(sys.argv[1], "work"))
open(sys.argv[2], "x").close()
if sys.argv[3] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(3600)
"""
LATE = """
import sys
from aaflow.runtime.group import keep_node
print(keep_node(sys.argv[1], "work"))
"""


def far_ranks(folder: Path, seconds: float) -> list[str]:
    return ["mpiexec", "-n", "2", sys.executable, "-c", FAR_RANKS, str(folder), str(seconds)]


def far_rank(run: str, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A rank that takes itself to be on another node than its group's keeper, and that no such keeper sees."""
    far = {processes.KEEPER: '{"host": "elsewhere", "boot": "another", "namespace": "another"}'}
    environment = {**processes.marked(os.environ, run=run, stage="work"), **far}
    argv = [sys.executable, "-c", code, *arguments]
    return subprocess.run(argv, env=environment, stdout=subprocess.PIPE, text=True, timeout=20)


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def keepers(run: str, kind: str) -> list[Process]:
    """The run's keepers of one kind; of twins the one that keeps."""
    found = of_kind(run, kind)
    return [p for p in found if not set(processes.children(p.pid)) & set(found)]


def of_kind(run: str, kind: str) -> list[Process]:
    """The run's keepers of one kind, with their twins."""
    return [p for p in processes.find_marked(processes.RUN, run) if command_line(p).endswith(f"\0{kind}\0")]


def command_line(process: Process) -> str:
    try:
        return Path(f"/proc/{process.pid}/cmdline").read_text()
    except OSError:
        return ""


def start(folder: Path, seconds: float) -> tuple[threading.Thread, list[StageError]]:
    errors: list[StageError] = []

    def run() -> None:
        try:
            run_group(str(folder), "work", lambda: (far_ranks(folder, seconds), {}))
        except StageError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


def test_a_further_node_has_one_keeper_that_goes_with_its_ranks(tmp_path: Path) -> None:
    with RunLease(str(tmp_path)) as lease:
        thread, errors = start(tmp_path, 0.8)
        wait_for(lambda: len(keepers(lease.run, "node")) == 1)
        thread.join()
        assert errors == []
        wait_for(lambda: keepers(lease.run, "node") == [], 3)


def test_a_keeper_on_a_further_node_removes_what_ranks_made_that_never_registered(tmp_path: Path) -> None:
    made = Path("/dev/shm", f"mpich_shm_{tmp_path.name}")
    with RunLease(str(tmp_path)) as lease:
        rank = far_rank(lease.run, UNREGISTERED, str(tmp_path), str(made), "killed")
        assert rank.returncode == -signal.SIGKILL
        wait_for(lambda: not made.exists())
    assert far_rank(lease.run, LATE, str(tmp_path)).stdout == "False\n"


def test_a_keeper_on_a_further_node_that_comes_when_the_run_has_ended_ends_its_ranks(tmp_path: Path) -> None:
    made = Path("/dev/shm", f"mpich_shm_{tmp_path.name}")
    with RunLease(str(tmp_path)) as lease:
        pass
    assert far_rank(lease.run, UNREGISTERED, str(tmp_path), str(made), "stays").returncode == -signal.SIGKILL
    wait_for(lambda: not made.exists())


def test_a_rank_that_comes_after_its_group_was_ended_goes_again(tmp_path: Path) -> None:
    with RunLease(str(tmp_path)) as lease:
        with pytest.raises(StageError):
            run_group(str(tmp_path), "work", lambda: (["false"], {}))
        environment = processes.marked(os.environ, run=lease.run, stage="work")
        argv = [sys.executable, "-c", LATE, str(tmp_path)]
        assert subprocess.run(argv, env=environment, stdout=subprocess.PIPE, text=True).stdout == "False\n"
        again = run_group(str(tmp_path), "work", lambda: (argv, {}))
        assert again.succeeded
        assert (tmp_path / "logs" / "work.out").read_text() == "True\n"


def test_a_keeper_on_a_further_node_ends_its_ranks_with_the_run(tmp_path: Path) -> None:
    with RunLease(str(tmp_path)) as lease:
        thread, errors = start(tmp_path, 3600)
        wait_for(lambda: keepers(lease.run, "node"))
        wait_for(lambda: registered_files(str(tmp_path), "work"))
        files = registered_files(str(tmp_path), "work")
    thread.join(timeout=5)
    assert "the driver ended the run" in str(errors[0])
    assert processes.find_marked(processes.RUN, lease.run) == []
    assert [file for file in files if sharedfiles.is_there(file)] == []


@pytest.mark.parametrize("twin", [False, True], ids=["the keeper", "its twin"])
def test_a_keeper_that_is_killed_on_a_further_node_has_a_twin(tmp_path: Path, twin: bool) -> None:
    """The ranks end at once, nothing stays, and the driver is told; without the twin the group goes on."""
    with RunLease(str(tmp_path)) as lease:
        thread, errors = start(tmp_path, 5.0 if twin else 3600)
        wait_for(lambda: len(registered_files(str(tmp_path), "work")) > 0 and len(of_kind(lease.run, "node")) == 2)
        files = registered_files(str(tmp_path), "work")
        (keeper,) = keepers(lease.run, "node")
        ranks = processes.find_marked(processes.GROUP, f"{lease.run}/work")
        parent = processes.parent_of(keeper.pid)
        assert parent is not None
        killed = time.monotonic()
        processes.kill(parent if twin else keeper)
        thread.join(timeout=20)
        assert not thread.is_alive()
        if not twin:
            assert time.monotonic() - killed < 5, "a silent one is given up after 6 s"
            # The driver looks at keepers of its own node, which this one is.
            assert re.search(r"its keeper (was killed by SIGKILL|on \S+ died)", str(errors[0]))
        assert (errors == []) == twin
        wait_for(lambda: processes.find_marked(processes.RUN, lease.run) == [], 3)
        assert not any(map(processes.is_alive, ranks))
        assert [file for file in files if sharedfiles.is_there(file)] == []


def test_the_twin_of_a_killed_keeper_ends_what_nobody_else_does(tmp_path: Path) -> None:
    """A rank and its memory on a node where there is no other keeper of its group."""
    made = Path("/dev/shm", f"mpich_shm_{tmp_path.name}")
    with RunLease(str(tmp_path)) as lease, ThreadPoolExecutor(1) as far:
        rank = far.submit(far_rank, lease.run, UNREGISTERED, str(tmp_path), str(made), "stays")
        wait_for(lambda: made.exists() and len(of_kind(lease.run, "node")) == 2)
        (keeper,) = keepers(lease.run, "node")
        processes.kill(keeper)
        assert rank.result().returncode == -signal.SIGKILL
        wait_for(lambda: not made.exists(), 3)
        wait_for(lambda: of_kind(lease.run, "node") == [], 3)


def test_a_proxy_that_dies_on_a_further_node_ends_the_whole_group(tmp_path: Path) -> None:
    with RunLease(str(tmp_path)) as lease:
        thread, errors = start(tmp_path, 3600)
        wait_for(lambda: keepers(lease.run, "node") and lease.alive("work"))
        # Leave the proxy's death to the far keeper: the near one, which would see it too, sleeps meanwhile.
        (near,) = keepers(lease.run, "group") or [None]
        assert near is not None
        time.sleep(1.5)
        os.kill(near.pid, signal.SIGSTOP)
        rank = processes.read_process(records.per_rank(str(tmp_path), "ranks", "work")[0])
        proxy = processes.parent_of(rank.pid)
        assert proxy is not None
        processes.kill(proxy)
        wait_for(lambda: not processes.is_alive(rank))
        os.kill(near.pid, signal.SIGCONT)
        thread.join(timeout=8)
        assert "proxy" in str(errors[0])
        wait_for(lambda: processes.find_marked(processes.RUN, lease.run) == [], 3)


def test_an_engine_ends_with_its_run_and_the_environment_of_others_is_left_alone(tmp_path: Path) -> None:
    with RunLease(str(tmp_path)) as lease:
        marks = lease.keep_engine()
        engine = subprocess.Popen(["sleep", "3600"], env={**os.environ, **marks}, start_new_session=True)
        other = subprocess.Popen(["sleep", "3600"], env={**os.environ, "AAFLOW_ENGINE": "another-run"})
        wait_for(lambda: keepers(lease.run, "engine"))
        assert engine.poll() is None
    try:
        assert engine.wait(timeout=2) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        for process in (engine, other):
            process.kill()
            process.wait()


def test_an_engine_that_is_ended_leaves_no_semaphores(tmp_path: Path) -> None:
    code = """
import multiprocessing, time
lock = multiprocessing.get_context("spawn").Lock()
print(lock._semlock.name, flush=True)
time.sleep(3600)
"""
    with RunLease(str(tmp_path)) as lease:
        environment = {**os.environ, **lease.keep_engine()}
        engine = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert engine.stdout is not None
        semaphore = f"{sharedfiles.FOLDER}/sem.{engine.stdout.readline().strip().lstrip('/')}"
        assert os.path.exists(semaphore)
    with engine:
        assert engine.wait(timeout=2) == -signal.SIGKILL
    assert not os.path.exists(semaphore)


def test_a_keeper_that_is_asked_to_end_ends_its_group_first(tmp_path: Path) -> None:
    with RunLease(str(tmp_path)) as lease:
        ended = lease.watch("work")
        thread, errors = start(tmp_path, 3600)
        wait_for(lambda: len(records.per_rank(str(tmp_path), "ranks", "work")) == 2)
        (keeper,) = keepers(lease.run, "group")
        os.kill(keeper.pid, signal.SIGTERM)
        with pytest.raises(StageError, match="its keeper got SIGTERM"):
            ended.result(timeout=5)
        thread.join(timeout=5)
        assert "its keeper got SIGTERM" in str(errors[0])
        assert processes.find_marked(processes.GROUP, f"{lease.run}/work") == []


def test_a_keeper_of_a_run_that_has_ended_starts_nothing(tmp_path: Path) -> None:
    with RunLease(str(tmp_path)):
        pass
    command = [sys.executable, "-m", "aaflow.runtime.keeper", str(tmp_path), "work"]
    subprocess.run(command, stdin=subprocess.DEVNULL, check=True)
    group = records.read(records.group_path(str(tmp_path), "work"))
    assert group is not None
    assert group["reason"] == "its run has ended (it is done), so nothing was started"
    empty = subprocess.run([*command[:3], str(tmp_path / "none"), "work"], capture_output=True, text=True)
    assert empty.returncode == 1
    assert "is missing, so there is nothing to keep" in empty.stderr
