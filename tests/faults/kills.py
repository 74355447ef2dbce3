"""One random kill of a streaming run: whom, when, and whether everything held that has to hold."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import streaming_command
from ingestions import ALL, BUDGET, OLD, Ingestion, command_line, write_documents

from aaflow.cli.workflowfile import read_workflow
from aaflow.driver import compile, place, run
from aaflow.index import open_index
from aaflow.runtime import forked, hydrafiles, processes, sharedfiles
from aaflow.runtime.processes import Process

#: Ranks of the stages, by pilot: rows go forward on some edges and to the owner of their partition on others.
RANKS = {
    "local": {"load": 1, "transform": 1, "pace": 1, "embed": 2, "upsert": 2},
    "parsl": {"load": 2, "transform": 1, "pace": 1, "embed": 1, "upsert": 2},
}
#: Seconds that a batch is held in the middle of the run, so that the run streams about as long as it starts.
PACE = 0.012
#: What a run may take that nothing disturbs, or that did not need what was killed; in seconds.
PATIENCE = 120.0
#: Load per core above which a missed budget may be the machine's fault.
BUSY = 1.5
_STAGE = re.compile(r"stage '([^']+)'")
_PROXIES = ("hydra_pmi_proxy", "prted", "orted")


class Streaming(Ingestion):
    """A streaming ingestion of documents and records, a task group for each operator."""

    def command(self, pilot: str) -> list[str]:
        """See :class:`Ingestion`; :meth:`start` says how many ranks there are."""
        python, _, _, *rest = super().command(pilot)
        at = rest.index("--ranks")
        return [python, streaming_command.__file__, *rest[:at], *rest[at + 2 :]]

    def begin(self, pilot: str, ranks: Mapping[str, int] | None = None, **environment: str) -> subprocess.Popen[str]:
        """Start the command."""
        environment |= {"FAULTS_RANKS": json.dumps(ranks or RANKS[pilot]), "FAULTS_PACE": str(PACE)}
        return self.start(self.command(pilot), **environment)

    def complete(self) -> Path:
        """Do what is left from this process, fused and on one rank; give the run folder."""
        super().command("local")
        with streaming_command.small_tranches:
            plan = compile(read_workflow(self.folder / "workflow.toml"), site="local", ranks=1)
        return run(place(plan, "local"), "local", run_folder=self.folder / "runs").folder

    def digest(self) -> str:
        return self.content()[1]


def write_corpus(folder: Path, edition: int) -> None:
    """Documents and records; the second edition has more of both and others for half of them."""
    write_documents(folder, range(OLD) if edition == 1 else range(OLD // 2, ALL), edition)
    for file in range(edition + 1):
        lines = (f"Edition {edition} of record {n} in file {file} has words of its own." for n in range(80))
        text = "".join(json.dumps({"id": str(n), "text": line}) + "\n" for n, line in enumerate(lines))
        (folder / f"records{file}.jsonl").write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Kill:
    """A kill as the seed has it.

    Attributes:
        number: in the campaign.
        pilot: of the run.
        moment: 0 (the command starts) to 1 (it ends).
        role: 0 to 1, over the roles that are alive at the moment; no role counts more for having more processes.
        which: 0 to 1, over the processes of that role.
    """

    number: int
    pilot: str
    moment: float
    role: float
    which: float

    @classmethod
    def drawn(cls, seed: int, number: int, pilots: Sequence[str] = tuple(sorted(RANKS))) -> Kill:
        chance = random.Random(f"{seed}/{number}")
        return cls(number, pilots[number % len(pilots)], chance.random(), chance.random(), chance.random())


@dataclass(frozen=True)
class Victim:
    """What a kill may hit.

    Attributes:
        stage: that it belongs to; empty for none.
        strike: hits it.
    """

    stage: str
    strike: Callable[[], object]


@dataclass
class Outcome:
    """What a kill did.

    Attributes:
        number: of the kill.
        pilot: of the run.
        after: seconds from the start of the command to the kill.
        role: of the victim.
        stage: of the victim; empty for one that belongs to no stage.
        committed: units that were committed at the moment.
        code: exit code of the command.
        error: what the command said.
        seconds: from the kill until no process was left.
        load: of the machine (one minute).
        problems: what did not hold, in words.
        missed: seconds, where the budget was missed on a busy machine and the kill was done again.
    """

    number: int
    pilot: str
    after: float = 0.0
    role: str = ""
    stage: str = ""
    committed: int = 0
    code: int | None = None
    error: str = ""
    seconds: float = 0.0
    load: float = 0.0
    problems: list[str] = field(default_factory=list)
    missed: float | None = None

    @property
    def held(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Kills:
    """Random kills of one ingestion: an index at generation 1 whose corpus has changed since.

    Args:
        folder: for the runs; those of kills that did not hold stay.
        seed: of the kills.
        alone: nothing else runs task groups on this machine, so what launchers leave in /tmp is looked at too.

    Attributes:
        pilots: that runs go through, in turns.
        budget: seconds within which everything ends.
    """

    pilots = tuple(sorted(RANKS))
    budget = BUDGET

    def __init__(self, folder: Path, seed: int, *, alone: bool = False) -> None:
        self._folder = folder
        self._alone = alone
        self._seed = seed
        self._before = Streaming(folder / "before", folder / "docs", PACED)
        (folder / "before").mkdir(parents=True)
        write_corpus(folder / "docs", 1)
        self._before.complete()
        self._old = self._before.digest()
        write_corpus(folder / "docs", 2)
        with self._copy("undisturbed") as undisturbed:
            undisturbed.complete()
            self._new = undisturbed.digest()
        self._life: dict[str, float] = {}

    def close(self) -> None:
        self._before.end()

    @contextlib.contextmanager
    def _copy(self, name: str) -> Iterator[Streaming]:
        """The index at generation 1 in a folder of its own, which goes unless an error leaves the block."""
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._before.index, folder / "index")
        made = self._made(folder, self._before.docs)
        try:
            yield made
            shutil.rmtree(folder)
        finally:
            made.end()

    def _made(self, folder: Path, docs: Path) -> Streaming:
        return Streaming(folder, docs, PACED)

    def life(self, pilot: str) -> float:
        """Seconds that an undisturbed run takes; seen once, then as the reruns have it."""
        if pilot not in self._life:
            with self._copy(f"life-{pilot}") as ingestion:
                problems = self._rerun(ingestion, pilot, {})
                assert not problems, problems
        return self._life[pilot]

    def do(self, number: int) -> Outcome:
        """Do a kill; once more when it missed the budget on a busy machine."""
        kill = Kill.drawn(self._seed, number, self.pilots)
        outcome = self._do(kill)
        missed = outcome.seconds if outcome.seconds >= self.budget else None
        if missed is not None and not outcome.held and outcome.load > BUSY * (os.cpu_count() or 1):
            _wait_for_calm()
            outcome = self._do(kill)
            outcome.missed = missed
        return outcome

    def _do(self, kill: Kill) -> Outcome:
        """Do a kill; a run that ends before its moment says how long it takes, and the kill is tried again."""
        for _ in range(4):
            moment = kill.moment * self.life(kill.pilot)
            outcome = Outcome(kill.number, kill.pilot)
            with contextlib.suppress(_Kept), self._copy(f"kill-{kill.number:04d}") as ingestion:
                begun, since = time.monotonic(), time.time_ns()
                command = ingestion.begin(kill.pilot)
                if _ended_before(command, begun + moment) or not (alive := ingestion.alive()):
                    self._life[kill.pilot] = time.monotonic() - begun
                    continue
                self._kill(kill, ingestion, command, alive, outcome, begun)
                outcome.problems += self._left(outcome, since)
                if outcome.problems:
                    raise _Kept
            return outcome
        raise AssertionError(f"kill {kill.number}: the run always ends before its moment")

    def _kill(
        self,
        kill: Kill,
        ingestion: Streaming,
        command: subprocess.Popen[str],
        alive: list[Process],
        outcome: Outcome,
        begun: float,
    ) -> None:
        roles = self._victims(ingestion, command, alive)
        outcome.role = sorted(roles)[int(kill.role * len(roles))]
        victim = roles[outcome.role][int(kill.which * len(roles[outcome.role]))]
        outcome.stage = victim.stage
        committed = ingestion.staged()
        shared = {file for process in alive for file in sharedfiles.mapped_by(process.pid)}
        outcome.committed, outcome.after = len(committed), time.monotonic() - begun
        victim.strike()
        outcome.problems += self._watch_end(ingestion, command, outcome, shared)
        if ingestion.alive():
            return
        outcome.problems += self._judge_index(ingestion, committed, outcome)
        if outcome.problems:
            return
        outcome.problems += self._rerun(ingestion, kill.pilot if self._goes_on(outcome) else None, committed)

    def _victims(
        self, ingestion: Streaming, command: subprocess.Popen[str], alive: Sequence[Process]
    ) -> Mapping[str, Sequence[Victim]]:
        """By role, what there is to hit."""
        own = processes.find_process(command.pid)
        roles: dict[str, list[Victim]] = {}
        for process in alive:
            role = "driver" if process == own else role_of(process)
            roles.setdefault(role, []).append(Victim(stage_of(process), functools.partial(processes.kill, process)))
        return roles

    def _goes_on(self, outcome: Outcome) -> bool:
        """Whether the rerun is through the pilot."""
        return outcome.number % 8 < 2

    def _left(self, outcome: Outcome, since: int) -> list[str]:
        """What is left outside of the ingestion's own folders of a run that was struck after ``since`` (ns)."""
        return [f"left: {path}" for path in hydrafiles.orphans(since)] if self._alone else []

    def _ending_since(self, killed: float) -> float:
        """From when on a run that was struck at ``killed`` has its budget for its end."""
        return killed

    def _watch_end(
        self,
        ingestion: Streaming,
        command: subprocess.Popen[str],
        outcome: Outcome,
        shared: set[sharedfiles.SharedFile],
    ) -> list[str]:
        """Wait until all is gone; what was wrong about that."""
        killed = time.monotonic()
        while alive := ingestion.alive():
            for process in alive:
                shared |= sharedfiles.mapped_by(process.pid)
            late = time.monotonic() - killed
            # A run that did not need its victim goes on to its end.
            if late > (PATIENCE if command.poll() is None else self.budget + 20):
                break
            time.sleep(0.05)
        outcome.seconds, outcome.load = time.monotonic() - self._ending_since(killed), os.getloadavg()[0]
        if alive:
            return [f"alive after {outcome.seconds:.1f} s: {[(p.pid, command_line(p)) for p in alive]}"]
        out, err = command.communicate()
        outcome.code, outcome.error = command.returncode, err.strip()
        problems = list(_wrong_words(outcome, out))
        if outcome.code != 0 and outcome.seconds > self.budget:
            problems.append(f"the last process ended {outcome.seconds:.1f} s after the kill")
        problems += [f"left: {file.path}" for file in shared if sharedfiles.is_there(file)]
        problems += [f"left: {path}" for path in ingestion.temporary.rglob("*")]
        problems += [f"left: {path}" for folder in ingestion.run_folders() for path in folder.rglob("*.tmp")]
        return problems

    def _judge_index(self, ingestion: Streaming, committed: dict[str, str], outcome: Outcome) -> list[str]:
        """The index is whole, at its last generation, and has what was committed."""
        generation, digest = ingestion.content()
        problems = []
        if (generation, digest) not in ((1, self._old), (2, self._new)):
            problems.append(f"the index is at generation {generation} with digest {digest}")
        if outcome.code == 0 and generation != 2:
            problems.append("the command ended well and published nothing")
        with open_index(ingestion.index) as index:
            # What a dead run was just writing is no harm: the next writer removes it.
            harms = [found for found in index.verify() if not found.endswith("the next writer removes it")]
        problems += [f"verify: {found}" for found in harms]
        if generation == 1 and not committed.items() <= ingestion.staged().items():
            problems.append("committed units are gone")
        return problems

    def _rerun(self, ingestion: Streaming, pilot: str | None, committed: dict[str, str]) -> list[str]:
        """Run again, through a pilot by the same command or fused from here; what was wrong about that."""
        files = {ingestion.index / file for file in committed.values() if file}
        kept = {path: path.stat().st_mtime_ns for path in files if path.exists()}
        if pilot is None:
            ingestion.complete()
        else:
            began = time.monotonic()
            command = ingestion.begin(pilot)
            _, err = command.communicate(timeout=PATIENCE)
            if command.returncode:
                return [f"the rerun failed: {err.strip()}"]
            if not committed:
                self._life[pilot] = time.monotonic() - began
        problems = [] if ingestion.content() == (2, self._new) else ["the rerun ended with another index"]
        with open_index(ingestion.index) as index:
            problems += [f"verify after the rerun: {found}" for found in index.verify()]
        if {path: path.stat().st_mtime_ns for path in kept if path.exists()} != kept:
            problems.append("a committed segment was written again")
        return problems


class _Kept(Exception):
    """The folder of a kill that did not hold stays."""


PACED = 'function = "fault_operators:pace"\nname = "pace"'


def _ended_before(command: subprocess.Popen[str], deadline: float) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        command.wait(max(0.0, deadline - time.monotonic()))
        return True
    return False


def _wait_for_calm() -> None:
    deadline = time.monotonic() + PATIENCE
    while os.getloadavg()[0] > BUSY * (os.cpu_count() or 1) and time.monotonic() < deadline:
        time.sleep(1)


def _wrong_words(outcome: Outcome, out: str) -> Iterator[str]:
    """What is wrong about exit code and text of the command."""
    if outcome.role == "driver":
        if outcome.code not in (-signal.SIGKILL, 0):  # it may have been done just now
            yield f"a killed driver ended with code {outcome.code}"
        return
    if outcome.code == 0:
        if outcome.error:
            yield f"a run that ended well said {outcome.error!r}"
        return
    if outcome.code != 1 or out:
        yield f"the command ended with code {outcome.code} and said {out!r}"
    if not re.fullmatch(r"aaflow: [^\n]+", outcome.error):
        yield f"not one line of error: {outcome.error!r}"
    named = _STAGE.search(outcome.error)
    if outcome.stage and (named is None or named[1] != outcome.stage):
        yield f"a part of stage {outcome.stage!r} was killed, and the error does not name it first: {outcome.error}"


def role_of(process: Process) -> str:
    """What a process is in a run, by its command; the driver is known by its pid.

    The command line is read first: a keeper's child may become a launcher in between, whose line has a rank's words.
    """
    line, name = command_line(process), processes.command_name(process.pid)
    if name in _PROXIES:
        return "proxy"
    if name.startswith(("mpiexec", "mpirun", "srun")):
        return "launcher"
    if name == forked.NAME:
        return "keeper"
    if "aaflow.runtime.keeper" in line:
        return "engine's keeper" if line.rstrip().endswith("- engine") else "keeper"
    kinds = {
        "HTEX interchange": "interchange",
        "interchange.py": "interchange",
        "aaflow_parsl.pool": "pool",
        "multiprocessing.resource_tracker": "tracker",
        "multiprocessing.spawn": "worker",
        "aaflow.runtime.stage": "rank",
    }
    return next((role for words, role in kinds.items() if words in line), "other")


def stage_of(process: Process) -> str:
    """The stage that a process belongs to, as its environment or its keeper's command has it; else empty."""
    words = command_line(process).split()
    for program in ("aaflow.runtime.keeper", "aaflow_radical.task"):
        if program in words:
            stage = words[words.index(program) + 2]
            return "" if stage == "-" else stage
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(f"{processes.GROUP}=".encode()):
                return entry.decode().rpartition("/")[2]
    keepers = (child for child in processes.children(process.pid) if role_of(child) == "keeper")
    return next((stage_of(keeper) for keeper in keepers), "") if role_of(process) == "worker" else ""
