"""Whatever part of an ingestion dies: the rest ends, nothing is left, no work is lost and none is done twice."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable

import pyarrow.compute as pc
import pytest
from ingestions import ALL, OLD, Ended, Halted

from aaflow.index import open_index
from aaflow.runtime import processes, sharedfiles
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
ON_LOCAL = ("rank 0", "rank 1", "proxy", "launcher", "keeper")
ON_PARSL = ("rank 1", "proxy", "launcher", "keeper", "worker", "pool", "interchange")


def expect_nothing_left(halted: Halted) -> None:
    """No process, no shared memory, no temporary file; the index is as it was before, and sound."""
    assert halted.ingestion.alive() == []
    assert [file.path for file in halted.shared if sharedfiles.is_there(file)] == []
    assert list(halted.ingestion.temporary.rglob("*")) == []
    assert [str(path) for path in halted.run_folder.rglob("*.tmp")] == []
    with open_index(halted.ingestion.index) as index:
        assert index.info().generation == 1
        assert index.info().documents == OLD


def expect_rerun_goes_on(halted: Halted, pilot: str, undisturbed: str) -> None:
    """The next run ends with the digest of an undisturbed one, and does only what was not committed."""
    ingestion = halted.ingestion
    assert halted.committed
    assert halted.committed.items() <= ingestion.staged().items(), "what was committed must stay"
    segments = {ingestion.index / file for file in halted.committed.values() if file}
    kept = {path: path.stat().st_mtime_ns for path in segments}
    ended = ingestion.run(pilot)
    assert ended.code == 0, ended.err
    assert ingestion.content() == (2, undisturbed)
    assert {path: path.stat().st_mtime_ns for path in segments} == kept, "a committed segment was written again"
    trace = read_trace(ingestion.run_folders()[-1] / "trace")
    loaded = pc.sum(trace.filter(pc.equal(trace["operator"], "load"))["rows"]).as_py()
    again = set(zip(trace["tranche"].to_pylist(), trace["partition"].to_pylist(), strict=True))
    done = {(int(unit[:6]), int(unit[7:])) for unit in halted.committed}
    assert not done & again, "a committed unit was worked on again"
    assert 0 < loaded < ALL - OLD // 2, "the rerun did not read less than the whole"
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
    print(f"\nFAULT {pilot} {victim}: gone after {halted.wait_until_gone():.1f} s", end=" ")
    ended = halted.ended()
    print(ended)
    expect_nothing_left(halted)
    expect_one_error(ended, halted, SAYS[victim])
    expect_rerun_goes_on(halted, pilot, undisturbed)


@pytest.mark.parametrize("pilot", ["local", "parsl"])
def test_a_killed_driver_takes_its_run_along_and_the_rerun_goes_on(halt: Halt, undisturbed: str, pilot: str) -> None:
    halted = halt(pilot)
    processes.kill(halted.parts["driver"])
    print(f"\nFAULT {pilot} driver: gone after {halted.wait_until_gone():.1f} s", end=" ")
    ended = halted.ended()
    assert ended.code == -signal.SIGKILL
    expect_nothing_left(halted)
    expect_rerun_goes_on(halted, pilot, undisturbed)


@pytest.mark.parametrize("pilot", ["local", "parsl"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_command_ends_its_run(halt: Halt, pilot: str, number: signal.Signals) -> None:
    halted = halt(pilot)
    halted.command.send_signal(number)
    print(f"\nFAULT {pilot} {number.name}: gone after {halted.wait_until_gone():.1f} s", end=" ")
    ended = halted.ended()
    print(ended)
    expect_nothing_left(halted)
    assert (ended.code, ended.out) == (130, "")
    assert len(ended.err.strip().splitlines()) == 1
