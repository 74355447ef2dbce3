"""Whatever part of a run is killed, the others end and nothing is left."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import aaflow
from aaflow.errors import RunError, SiteError, StageError
from aaflow.runtime import forked, leftovers, processes, records, sharedfiles
from aaflow.runtime.cleaning import registered_files
from aaflow.runtime.ending import GroupResult
from aaflow.runtime.group import Command, run_group, start_keeper
from aaflow.runtime.lease import RunLease
from aaflow.runtime.processes import Process

pytestmark = pytest.mark.serial

#: The budget of the design: after a kill everything else ends within this time, in seconds.
BUDGET = 10.0

#: Three ranks that hold rows in their shared window: 0 computes in pure Python, 1 waits in a collective, 2 sleeps.
BUSY_RANKS = """
import sys, time
import numpy as np, pyarrow as pa
from mpi4py import MPI
from aaflow.dataplane.communicator import communicator
from aaflow.runtime.group import register_rank
comm = communicator("mpi")
rank = comm.rank
held = comm.shuffle(pa.table({"n": range(3000)}), np.arange(3000) % 3)
register_rank(sys.argv[1], "work", rank)
while rank == 0:
    sum(range(1000))
if rank == 1:
    MPI.COMM_WORLD.Barrier()
time.sleep(3600)
"""

#: What an engine's worker does: it runs the group, with a keeper that is a program or a fork, and prints how it ended.
WORKER = """
import sys
from aaflow.errors import StageError
from aaflow.runtime.group import run_group
how, folder, *argv = sys.argv[1:]
try:
    print(run_group(folder, "work", lambda: (argv, {}), fork=how == "fork"))
except StageError as error:
    print(error)
"""

#: A driver with an engine of its own: a worker that runs the group, and an interchange that would never end.
DRIVER = """
import os, subprocess, sys
from aaflow.errors import StageError
from aaflow.runtime.lease import RunLease
how, folder, worker, *argv = sys.argv[1:]
with RunLease(folder) as lease:
    engine = {**os.environ, **lease.keep_engine()}
    subprocess.Popen(["sleep", "3600"], env=engine, start_new_session=True)
    ended = lease.watch("work")
    command = [sys.executable, "-c", worker, how, folder, *argv]
    if how == "fork":
        engine = {**os.environ, "AAFLOW_RUN": lease.run}
    started = subprocess.Popen(command, env=engine, start_new_session=True)
    try:
        print("ended well", ended.result(), flush=True)
    except StageError as error:
        print(error, flush=True)
"""


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks, workers and keepers find the package that is tested."""
    monkeypatch.setenv("PYTHONPATH", str(Path(aaflow.__file__).parent.parent))


def mpiexec(ranks: int, code: str, *arguments: str) -> list[str]:
    return ["mpiexec", "-n", str(ranks), sys.executable, "-c", code, *arguments]


def wait_for(condition: object, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@dataclass
class Running:
    """A driver with one group of three ranks at work, all parts known by their role."""

    folder: str
    run: str
    driver: subprocess.Popen[str]
    parts: dict[str, Process]
    files: set[sharedfiles.SharedFile]

    def alive(self) -> list[str]:
        """What still runs: parts by role, then pids of anything that carries the run's mark."""
        parts = [name for name, process in self.parts.items() if processes.is_alive(process)]
        return parts + [str(process.pid) for process in marked(self.run)]

    def wait_until_gone(self) -> float:
        began = time.monotonic()
        while self.alive():
            assert time.monotonic() - began < BUDGET, f"still alive: {self.alive()}"
            time.sleep(0.02)
        return time.monotonic() - began

    def temporary_files(self) -> list[str]:
        return [str(path) for path in Path(self.folder).rglob("*.tmp")]


def marked(run: str) -> list[Process]:
    return processes.find_marked(processes.RUN, run) + processes.find_marked(processes.ENGINE, run)


def parent(process: Process) -> Process:
    found = processes.parent_of(process.pid)
    assert found is not None
    return found


@pytest.fixture(params=["program", "fork"])
def running(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Running]:
    folder = str(tmp_path / "run")
    argv = [sys.executable, "-c", DRIVER, request.param, folder, WORKER, *mpiexec(3, BUSY_RANKS, folder)]
    with (
        subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True) as driver,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(driver.kill)  # its keepers end the rest, also where this fails
        wait_for(lambda: len(records.per_rank(folder, "ranks", "work")) == 3)
        ranks = [processes.read_process(record) for record in records.per_rank(folder, "ranks", "work").values()]
        proxy = parent(ranks[0])
        launcher = parent(proxy)
        keeper = parent(launcher)
        worker = parent(keeper)
        assert (processes.command_name(keeper.pid) == forked.NAME) == (request.param == "fork")
        own = processes.find_process(driver.pid)
        assert own is not None
        parts = dict(zip(("computing rank", "waiting rank", "sleeping rank"), ranks, strict=True))
        parts |= {"proxy": proxy, "launcher": launcher, "keeper": keeper, "worker": worker, "driver": own}
        record = records.read(records.driver_path(folder))
        assert record is not None
        found = Running(folder, str(record["run"]), driver, parts, registered_files(folder, "work"))
        yield found
        for process in [*parts.values(), *marked(found.run)]:
            processes.kill(process)


VICTIMS = (
    "computing rank",
    "waiting rank",
    "sleeping rank",
    "proxy",
    "launcher",
    "keeper",
    "worker",
    "driver",
)


@pytest.mark.parametrize("victim", VICTIMS)
def test_whoever_is_killed_the_rest_of_the_run_ends_and_leaves_nothing(running: Running, victim: str) -> None:
    assert processes.command_name(running.parts["proxy"].pid) == "hydra_pmi_proxy"
    assert running.files, "the ranks registered no shared memory"
    # A window of MPICH has lost its name already; another library's would be registered.
    mapped = set().union(*(sharedfiles.mapped_by(running.parts[name].pid) for name in VICTIMS[:3]))
    assert mapped <= running.files
    processes.kill(running.parts[victim])
    running.wait_until_gone()
    assert [file for file in running.files if sharedfiles.is_there(file)] == []
    assert running.temporary_files() == []
    told, _ = running.driver.communicate(timeout=BUDGET)
    if victim == "driver":
        assert running.driver.returncode == -signal.SIGKILL
    else:
        reasons = {
            "computing rank": "a rank was killed by SIGKILL (rank ",
            "waiting rank": "a rank was killed by SIGKILL (rank ",
            "sleeping rank": "a rank was killed by SIGKILL (rank ",
            "proxy": "the launcher's proxy (pid",
            "launcher": "its launch command was killed by SIGKILL",
            "keeper": "its keeper",
            "worker": f"the process that started it (pid {running.parts['worker'].pid}) died",
        }
        assert reasons[victim] in told
        assert running.driver.returncode == 0


def test_ctrl_c_ends_the_run_and_leaves_nothing(running: Running) -> None:
    running.driver.send_signal(signal.SIGINT)
    running.wait_until_gone()
    assert [file for file in running.files if sharedfiles.is_there(file)] == []
    record = records.read(records.driver_path(running.folder))
    assert record is not None
    assert record["ended"] == "KeyboardInterrupt"
    group = records.read(records.group_path(running.folder, "work"))
    assert group is not None
    assert group["reason"] == "the driver ended the run: KeyboardInterrupt"


def test_a_worker_that_is_stopped_does_not_outlive_the_driver(running: Running) -> None:
    os.kill(running.parts["worker"].pid, signal.SIGSTOP)
    processes.kill(running.parts["driver"])
    running.wait_until_gone()


@pytest.mark.parametrize("how", ["program", "fork"])
def test_a_worker_that_is_stopped_before_its_group_begins_does_not_outlive_the_driver(tmp_path: Path, how: str) -> None:
    worker = f"""
import os, signal, sys
from aaflow.runtime.group import run_group
run_group({str(tmp_path)!r}, "work", lambda: os.kill(os.getpid(), signal.SIGSTOP), fork=sys.argv[1] == "fork")
"""
    argv = [sys.executable, "-c", DRIVER, how, str(tmp_path), worker]
    with subprocess.Popen(argv, start_new_session=True) as driver:
        wait_for(lambda: os.path.exists(records.driver_path(str(tmp_path))))
        record = records.read(records.driver_path(str(tmp_path)))
        assert record is not None
        run = str(record["run"])
        wait_for(lambda: any(_is_stopped(process) for process in marked(run)))
        driver.kill()
    wait_for(lambda: not marked(run), BUDGET)


def _is_stopped(process: Process) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def test_a_driver_that_is_stopped_loses_its_run(running: Running) -> None:
    running.driver.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    wait_for(lambda: running.alive() == ["driver"], BUDGET)
    assert time.monotonic() - began > 3, "a pause shorter than the lease must do no harm"
    group = records.read(records.group_path(running.folder, "work"))
    assert group is not None
    # Keepers judge by themselves: either the group's own or the engine's (which ends the worker) is the first.
    assert group["reason"].startswith(("the driver was silent for", "the process that started it"))


def test_where_keepers_died_with_the_driver_the_next_run_finds_and_removes_the_leftovers(running: Running) -> None:
    runs = os.path.dirname(running.folder)
    assert leftovers.find_leftovers(runs) == [], "a run with a living driver is no leftover"
    engine_keeper = next(p for p in processes.children(running.driver.pid) if "engine" in command_line(p))
    dying = [running.parts[name] for name in ("driver", "worker", "keeper")] + [engine_keeper]
    for process in dying:
        os.kill(process.pid, signal.SIGSTOP)
    for process in dying:
        processes.kill(process)
    wait_for(lambda: running.driver.poll() is not None)
    (leftover,) = leftovers.find_leftovers(runs)
    ranks = {running.parts[name] for name in VICTIMS[:3]}
    assert ranks <= set(leftover.processes)
    assert set(leftover.files) == running.files
    assert leftovers.remove(leftover) == ()
    assert running.alive() == []
    assert leftovers.find_leftovers(runs) == []
    assert [file for file in running.files if sharedfiles.is_there(file)] == []


def command_line(process: Process) -> str:
    return Path(f"/proc/{process.pid}/cmdline").read_text().replace("\0", " ")


GOOD_RANKS = """
import sys
from mpi4py import MPI
from aaflow.runtime.group import register_rank
register_rank(sys.argv[1], "work", MPI.COMM_WORLD.Get_rank())
MPI.COMM_WORLD.Barrier()
print("done", flush=True)
"""


def test_an_undisturbed_group_returns_cleanly_again_and_again(tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    argv = mpiexec(2, GOOD_RANKS, folder)
    with RunLease(folder) as lease:
        for _ in range(5):
            told = lease.watch("work")
            result = run_group(folder, "work", lambda: (argv, {}))
            assert result.succeeded
            assert told.result(timeout=5) == result
        assert marked(lease.run) == []
    assert (tmp_path / "run/logs/work.out").read_text().count("done") == 10
    assert (tmp_path / "run/logs/work.out").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700


def test_the_group_gets_the_callers_environment_and_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INHERITED", "yes")
    code = "import os, json; print(json.dumps(dict(os.environ)))"
    with RunLease(str(tmp_path)) as lease:
        run_group(str(tmp_path), "work", lambda: ([sys.executable, "-c", code], {"ADDED": "x" * 100_000}))
        run = lease.run
    seen = json.loads((tmp_path / "logs/work.out").read_text())
    assert seen["INHERITED"] == "yes"
    assert len(seen["ADDED"]) == 100_000
    assert seen["AAFLOW_RUN"] == run
    assert seen["AAFLOW_GROUP"] == f"{run}/work"
    assert set(processes.GROUP_MARKS) <= seen.keys()


def test_a_process_without_standard_files_forks_a_keeper_that_has_them(tmp_path: Path) -> None:
    worker = [sys.executable, "-c", WORKER, "fork", str(tmp_path), "sh", "-c", "sleep 0.2; ls -l /proc/$PPID/fd"]
    with RunLease(str(tmp_path)) as lease:
        environment = {**os.environ, processes.RUN: lease.run}
        subprocess.run(["sh", "-c", f"exec {shlex.join(worker)} <&- >&- 2>&-"], env=environment, check=True, timeout=20)
    group = records.read(records.group_path(str(tmp_path), "work"))
    assert group is not None
    assert GroupResult.from_json(group).succeeded
    log = Path(records.log_path(str(tmp_path), "work"))
    listed = re.findall(r" (\d+) -> (\S+)", log.read_text())
    opened = {int(descriptor): name for descriptor, name in listed}
    assert (opened[1], opened[2]) == (str(log), str(log))
    assert opened[0].startswith("pipe:")
    assert list(opened.values()).count(str(log)) == 2, "the keeper has files of the process that forked"


def test_a_forked_keeper_does_not_hold_its_own_pipe_open(tmp_path: Path) -> None:
    worker = [sys.executable, "-c", WORKER, "fork", str(tmp_path), "sh", "-c", "ls -l /proc/$PPID/fd"]
    with RunLease(str(tmp_path)) as lease:
        subprocess.run(worker, env={**os.environ, processes.RUN: lease.run}, check=True, timeout=20)
    opened = re.findall(r" (\d+) -> (pipe:\S+)", Path(records.log_path(str(tmp_path), "work")).read_text())
    (own,) = (name for descriptor, name in opened if descriptor == "0")
    assert [name for _, name in opened].count(own) == 1


def test_a_process_with_other_marks_than_a_keeper_can_not_fork_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunLease(str(tmp_path)) as lease:
        for name, value in ((processes.RUN, "another"), (processes.ENGINE, lease.run)):
            monkeypatch.setenv(processes.RUN, lease.run)
            monkeypatch.setenv(name, value)
            with pytest.raises(ValueError, match=f"has to have AAFLOW_RUN={lease.run} alone"):
                run_group(str(tmp_path), "work", lambda: (["true"], {}), fork=True)


def test_the_first_error_of_a_rank_is_the_error_of_the_stage(tmp_path: Path) -> None:
    code = """
import sys, time
from mpi4py import MPI
from aaflow.runtime import records
rank = MPI.COMM_WORLD.Get_rank()
error = {"rank": rank, "type": "ValueError", "error": f"bad row {rank}", "where": "rows.py:7", "time": 10 - rank}
records.write(f"{sys.argv[1]}/errors/work.{rank}.json", error)
MPI.COMM_WORLD.Barrier()
MPI.COMM_WORLD.Abort(3)
"""
    with RunLease(str(tmp_path)), pytest.raises(StageError) as caught:
        run_group(str(tmp_path), "work", lambda: (mpiexec(2, code, str(tmp_path)), {}))
    assert str(caught.value).startswith("stage 'work' failed on rank 1: ValueError: bad row 1 (at rows.py:7); log: ")
    assert caught.value.rank == 1
    assert caught.value.log == str(tmp_path / "logs/work.out")


def test_a_rank_that_crashes_is_named(tmp_path: Path) -> None:
    code = """
import os, signal, sys, time
from mpi4py import MPI
from aaflow.runtime.group import register_rank
rank = MPI.COMM_WORLD.Get_rank()
register_rank(sys.argv[1], "work", rank)
MPI.COMM_WORLD.Barrier()
if rank == 1:
    os.kill(os.getpid(), signal.SIGSEGV)
time.sleep(3600)
"""
    with (
        RunLease(str(tmp_path)),
        pytest.raises(StageError, match=r"rank 1 \(pid \d+ on .*\) was killed by SIGSEGV") as caught,
    ):
        run_group(str(tmp_path), "work", lambda: (mpiexec(2, code, str(tmp_path)), {}))
    assert caught.value.rank == 1


def test_a_launch_command_that_fails_or_is_missing_is_named(tmp_path: Path) -> None:
    with RunLease(str(tmp_path)):
        with pytest.raises(StageError, match=r"ended with exit code 7; it said: no such partition; log: "):
            run_group(str(tmp_path), "work", lambda: (["sh", "-c", "echo no such partition; exit 7"], {}))
        with pytest.raises(StageError, match=r"'no-such-launcher' can't be started: .*No such file"):
            run_group(str(tmp_path), "work", lambda: (["no-such-launcher"], {}))
        with pytest.raises(ValueError, match="a name is made of"):
            run_group(str(tmp_path), "../work", lambda: (["true"], {}))
    with pytest.raises(RunError, match="has ended or never began"):
        run_group(str(tmp_path), "work", lambda: (["true"], {}))


def test_a_launch_command_that_cannot_be_composed_starts_nothing(tmp_path: Path) -> None:
    def compose() -> Command:
        raise SiteError("no launcher 'srun' here")

    with RunLease(str(tmp_path)) as lease:
        told = lease.watch("work")
        with pytest.raises(SiteError, match="no launcher"):
            run_group(str(tmp_path), "work", compose)
        run = json.loads((tmp_path / "driver.json").read_text())["run"]
        assert processes.find_marked(processes.RUN, run) == []
        assert not told.done()
    assert not (tmp_path / "groups").exists()
    assert (tmp_path / "logs" / "work.out").read_text() == ""


def test_a_keeper_that_gets_no_order_starts_nothing(tmp_path: Path) -> None:
    with RunLease(str(tmp_path)):
        run = json.loads((tmp_path / "driver.json").read_text())["run"]
        keeper = start_keeper(str(tmp_path), "work", "group", run=run)
        assert keeper.stdin is not None
        keeper.stdin.close()  # as when the process that was to compose it is killed
        keeper.wait(timeout=10)
        record = json.loads((tmp_path / "groups" / "work.json").read_text())
    assert record["reason"] == "the process that started it died"
    assert "Traceback" not in (tmp_path / "logs" / "work.out").read_text()


def test_processes_that_a_group_leaves_in_the_background_end_with_it(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    stray = f"(setsid sleep 3600 & echo $! >> {pids}); (env -i setsid sleep 3600 & echo $! >> {pids}); sleep 0.1"
    with RunLease(str(tmp_path)) as lease:
        assert run_group(str(tmp_path), "work", lambda: (["sh", "-c", stray], {})).succeeded
        assert marked(lease.run) == []
    strays = [int(pid) for pid in pids.read_text().split()]
    assert len(strays) == 2
    assert [pid for pid in strays if processes.find_process(pid)] == []


def test_ranks_killed_before_they_register_leave_no_shared_memory(tmp_path: Path) -> None:
    code = """
import os, re, signal, sys
from mpi4py import MPI
open(sys.argv[1], "a").writelines(line for line in open("/proc/self/maps") if "/dev/shm/mpich" in line)
MPI.COMM_WORLD.Barrier()
os.kill(os.getpid(), signal.SIGKILL)
"""
    maps = tmp_path / "maps"
    with RunLease(str(tmp_path / "run")), pytest.raises(StageError, match="was killed by SIGKILL"):
        run_group(str(tmp_path / "run"), "work", lambda: (mpiexec(2, code, str(maps)), {}))
    paths = {line.split()[5] for line in maps.read_text().splitlines()}
    assert paths
    assert [path for path in paths if os.path.exists(path)] == []


def test_a_proxy_killed_before_the_ranks_are_up_ends_the_group(tmp_path: Path) -> None:
    code = """
import os, signal, time
if os.environ["PMI_RANK"] == "0":
    os.kill(os.getppid(), signal.SIGKILL)
time.sleep(3600)
"""
    began = time.monotonic()
    with RunLease(str(tmp_path)) as lease:
        with pytest.raises(StageError, match="was ended: the launcher's proxy"):
            run_group(str(tmp_path), "work", lambda: (mpiexec(2, code), {}))
        assert marked(lease.run) == []
    assert time.monotonic() - began < BUDGET


@pytest.mark.parametrize("folder", ["", "/scratch/of/the/node"])
def test_the_temporary_folder_of_an_engine_is_not_that_of_its_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv(processes.NODE_TMPDIR, folder)
    with RunLease(str(tmp_path)):
        run_group(str(tmp_path), "work", lambda: (["sh", "-c", 'echo "<${TMPDIR-none}>"'], {}))
    assert f"<{folder or 'none'}>" in (tmp_path / "logs" / "work.out").read_text()
