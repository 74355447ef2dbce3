"""Whatever part of an ingestion dies: the rest ends, nothing is left, no work is lost and none is done twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc
import pytest
from ingestions import ALL, BUDGET, OLD, PARTITIONS, Ended, Halted, Ingestion, command_line, wait_for

from aaflow.index import open_index
from aaflow.runtime import processes, sharedfiles
from aaflow.runtime.processes import Process
from aaflow.runtime.trace import read_trace

pytestmark = pytest.mark.serial

Halt = Callable[[str], Halted]

#: What the command says when a part of the run was killed: it names the stage, its log, and who died.
SAYS = {
    "rank 0": r"a rank was killed by SIGKILL \(rank \d \(pid \d+ on .+\), or the launcher took it for the first\)",
    "rank 1": r"a rank was killed by SIGKILL \(rank \d \(pid \d+ on .+\), or the launcher took it for the first\)",
    "proxy": r"the launcher's proxy \(pid \d+\) died",
    "launcher": r"its launch command was killed by SIGKILL",
    "keeper": r"its keeper .*(died|was killed by SIGKILL)",
    "worker": r"the process that started it \(pid \d+\) died",
    "pool": r"the process that started it \(pid \d+\) died",
    "interchange": r"Parsl's interchange .* died before stage 'load.*' was done",
}
#: A second run on the same index: refused before it reads a thing.
INGEST = (sys.executable, "-m", "aaflow.cli.main", "ingest")
INGEST_OPTIONS = ("--dim", "64", "--chunk-size", "120", "--partitions", str(PARTITIONS), "--pilot", "local", "--json")
ON_LOCAL = ("rank 0", "rank 1", "proxy", "launcher", "keeper")
#: Below its keeper a group is the same on both; its launcher and one rank stand for that.
ON_PARSL = ("rank 1", "launcher", "keeper", "worker", "pool", "interchange")


def expect_nothing_left(halted: Halted) -> None:
    """No process, no shared memory, no temporary file; the index is as it was before, and sound."""
    assert halted.ingestion.alive() == []
    assert [file.path for file in halted.shared if sharedfiles.is_there(file)] == []
    assert list(halted.ingestion.temporary.rglob("*")) == []
    assert [str(path) for path in halted.run_folder.rglob("*.tmp")] == []
    with open_index(halted.ingestion.index) as index:
        assert index.info().generation == 1
        assert index.info().documents == OLD


def expect_rerun_goes_on(halted: Halted, undisturbed: str, rerun: Callable[[], object]) -> None:
    """The next run ends with the digest of an undisturbed one, and does only what was not committed."""
    ingestion = halted.ingestion
    assert halted.committed
    assert halted.committed.items() <= ingestion.staged().items(), "what was committed must stay"
    segments = {ingestion.index / file for file in halted.committed.values() if file}
    kept = {path: path.stat().st_mtime_ns for path in segments}
    rerun()
    assert ingestion.content() == (2, undisturbed)
    assert {path: path.stat().st_mtime_ns for path in segments} == kept, "a committed segment was written again"
    trace = read_trace(ingestion.run_folders()[-1] / "trace")
    worked_on = set(zip(trace["tranche"].to_pylist(), trace["partition"].to_pylist(), strict=True))
    assert not worked_on & {(int(unit[:6]), int(unit[7:])) for unit in halted.committed}
    loaded = pc.sum(trace.filter(pc.equal(trace["operator"], "load"))["rows"]).as_py()
    assert 0 < loaded < ALL - OLD // 2, "the rerun must read less than the whole"
    with open_index(ingestion.index) as index:
        assert index.verify() == []


def expect_one_error(ended: Ended, halted: Halted, says: str, code: int = 1) -> None:
    """One line on stderr that names what died and where to look, nothing on stdout."""
    assert (ended.code, ended.out) == (code, "")
    (line,) = ended.err.strip().splitlines()
    assert re.search(says, line), line
    assert line.startswith("aaflow: ")
    assert str(halted.run_folder) in line


@pytest.mark.parametrize(
    ("pilot", "victim"), [*(("local", victim) for victim in ON_LOCAL), *(("parsl", victim) for victim in ON_PARSL)]
)
def test_whoever_is_killed_the_command_says_so_and_the_rerun_goes_on(
    halt: Halt, undisturbed: str, pilot: str, victim: str
) -> None:
    halted = halt(pilot)
    processes.kill(halted.parts[victim])
    halted.wait_until_gone()
    expect_nothing_left(halted)
    expect_one_error(halted.ended(), halted, SAYS[victim])
    expect_rerun_goes_on(halted, undisturbed, halted.ingestion.complete)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("pilot", ["local", "parsl", "radical"])
def test_a_second_run_is_refused_until_the_driver_of_the_first_is_killed(
    halt: Halt, undisturbed: str, pilot: str, request: pytest.FixtureRequest
) -> None:
    if pilot == "radical":
        request.getfixturevalue("radical_turn")
    halted = halt(pilot)
    ingestion = halted.ingestion
    rank = halted.parts["rank 0"].pid
    assert not any(processes.has_variable(rank, name) for name in ("RADICAL_BASE", "RP_TASK_ID")), "not the command's"
    second = ingestion.start([*INGEST, str(ingestion.docs), "--index", str(ingestion.index), *INGEST_OPTIONS])
    out, err = second.communicate(timeout=60)
    assert (second.returncode, out) == (3, "")
    assert re.fullmatch(rf"aaflow: .* is being written by {re.escape(str(halted.run_folder))} \(process .*\n", err), err

    processes.kill(halted.parts["driver"])
    halted.wait_until_gone()
    assert halted.ended().code == -signal.SIGKILL
    expect_nothing_left(halted)

    def again() -> None:
        ended = ingestion.run(pilot)
        assert ended.code == 0, ended.err
        assert json.loads(ended.out)["generation"] == 2

    expect_rerun_goes_on(halted, undisturbed, again)
    assert list(ingestion.temporary.rglob("*")) == []


@pytest.mark.parametrize(
    ("pilot", "number"), [("local", signal.SIGTERM), ("parsl", signal.SIGINT)], ids=["local-SIGTERM", "parsl-SIGINT"]
)
def test_an_interrupted_command_ends_its_run(halt: Halt, pilot: str, number: signal.Signals) -> None:
    halted = halt(pilot)
    if number == signal.SIGINT:  # Ctrl-C in a terminal reaches all processes of the foreground group
        os.killpg(halted.command.pid, number)
    else:
        halted.command.send_signal(number)
    halted.wait_until_gone()
    expect_nothing_left(halted)
    assert halted.ended() == Ended(130, "", "aaflow: interrupted\n")


def test_an_interchange_that_dies_before_the_group_starts_ends_the_run(ingestion: Ingestion) -> None:
    command = ingestion.start(ingestion.command("parsl"))

    def find() -> list[Process]:
        return [process for process in ingestion.alive() if "HTEX interchange" in command_line(process)]

    wait_for(lambda: any("aaflow_parsl.pool" in command_line(process) for process in ingestion.alive()))
    (interchange,) = find()
    processes.kill(interchange)
    out, err = command.communicate(timeout=BUDGET)
    assert (command.returncode, out) == (1, "")
    assert re.match(
        r"aaflow: Parsl's interchange of executor 'aaflow' died before stage 'load\+.*' was done; run fol", err
    )
    assert not list((ingestion.run_folders()[-1] / "ranks").glob("*"))
    assert ingestion.alive() == []
    assert list(ingestion.temporary.rglob("*")) == []
    assert ingestion.content()[0] == 1


def test_an_interchange_that_dies_while_it_starts_ends_the_run(ingestion: Ingestion) -> None:
    command = ingestion.start(ingestion.command("parsl"))

    def find() -> list[Process]:
        return [process for process in ingestion.alive() if "interchange.py" in command_line(process)]

    wait_for(find)
    processes.kill(find()[0])
    out, err = command.communicate(timeout=BUDGET)
    assert (command.returncode, out) == (1, "")
    assert err == "aaflow: Parsl's interchange of executor 'aaflow' died while it started\n"
    assert ingestion.alive() == []
    assert list(ingestion.temporary.rglob("*")) == []


def expect_ended(ingestion: Ingestion, command: subprocess.Popen[str], says: str) -> None:
    """A run that started no group failed, says why, left nothing, and the index is as it was."""
    out, err = command.communicate(timeout=BUDGET)
    assert (command.returncode, out) == (1, "")
    assert re.match(says, err), err
    assert ingestion.alive() == []
    assert list(ingestion.temporary.rglob("*")) == []
    assert ingestion.content()[0] == 1


def test_the_manager_of_parsls_pool_that_dies_before_a_task_starts_ends_the_run(ingestion: Ingestion) -> None:
    command = ingestion.start(ingestion.command("parsl"))

    def find() -> list[Process]:
        """The manager, which the pool starts first, and its workers."""
        found = [process for process in ingestion.alive() if "multiprocessing.spawn" in command_line(process)]
        return sorted(found, key=lambda process: process.start)

    wait_for(lambda: len(find()) > 1)
    processes.kill(find()[0])
    expect_ended(ingestion, command, r"aaflow: stage 'load\+.*' failed .* the manager process of Parsl's pool died")


def test_a_pool_of_parsl_whose_thread_fails_ends_the_run(ingestion: Ingestion) -> None:
    command = ingestion.start(ingestion.command("parsl"))

    # It starts its manager, and then the threads that read its keys.
    wait_for(lambda: any("multiprocessing.spawn" in command_line(process) for process in ingestion.alive()))
    # As on a node that has lost the shared folder.
    shutil.rmtree(ingestion.run_folders()[-1] / "parsl" / "000" / "aaflow" / "certificates")
    expect_ended(
        ingestion, command, r"aaflow: stage 'load\+.*' failed .* a thread of Parsl's pool failed \(.*certificates"
    )


def test_a_pool_of_parsl_whose_workers_can_not_start_ends_the_run(ingestion: Ingestion) -> None:
    command = ingestion.start(ingestion.command("parsl"))

    def started() -> list[Path]:
        return [log for run in ingestion.run_folders() for log in run.glob("parsl/aaflow/block-0/*/manager.log")]

    wait_for(started)
    shutil.rmtree(ingestion.run_folders()[-1] / "parsl" / "aaflow")  # where its workers, which come next, log
    expect_ended(
        ingestion, command, r"aaflow: stage 'load\+.*' failed .* a worker of Parsl's pool failed as it started"
    )


@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_a_session_of_radical_pilot_that_ends_before_its_agent_is_up_ends_the_run(
    radical_turn: None, ingestion: Ingestion, how: str
) -> None:
    command = ingestion.start(ingestion.command("radical"))

    def find() -> list[Process]:
        return [process for process in ingestion.alive() if "aaflow_radical.session" in command_line(process)]

    wait_for(lambda: any("radical-pilot-bridge" in command_line(process) for process in ingestion.alive()))
    if how == "killed":
        processes.kill(find()[0])
    else:
        os.killpg(command.pid, signal.SIGINT)
    out, err = command.communicate(timeout=BUDGET + 5)
    if how == "killed":
        says = (
            r"aaflow: the process of RADICAL-Pilot's session died \(exit code -9; .*\) before stage 'load.*' was done"
        )
        assert re.match(says, err), err
        assert (command.returncode, out) == (1, "")
    else:
        assert Ended(command.returncode, out, err) == Ended(130, "", "aaflow: interrupted\n")
    assert ingestion.alive() == []
    assert list(ingestion.temporary.rglob("*")) == []
    assert ingestion.content()[0] == 1


@pytest.mark.parametrize("pilot", ["local", "parsl"])
def test_an_operator_that_fails_is_named_with_its_stage_rank_and_log(ingestion: Ingestion, pilot: str) -> None:
    ingestion.apply = 'function = "fault_operators:refuse"\noptions = { source = "0123.txt" }'
    ended = ingestion.run(pilot)
    assert (ended.code, ended.out) == (1, "")
    log = re.escape(str(ingestion.run_folders()[-1] / "logs"))
    says = (
        r"aaflow: stage 'load\+transform\+refuse\+embed\+upsert' failed on rank [01] in operator 'refuse': "
        rf"ValueError: 0123.txt is not to my taste \(at .*/fault_operators.py:\d+\); log: {log}/load\+.*\.out\n"
    )
    assert re.fullmatch(says, ended.err), ended.err
    assert "Traceback" in Path(ended.err.split("log: ")[1].strip()).read_text()
    assert ingestion.alive() == []
    assert ingestion.content()[0] == 1
