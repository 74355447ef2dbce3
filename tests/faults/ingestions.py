"""Ingestions as a user starts them, halted in the middle, with all their processes known by role."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import aaflow
from aaflow.cli.workflowfile import read_workflow
from aaflow.driver import compile, place, run
from aaflow.index import open_index
from aaflow.runtime import processes, records, sharedfiles
from aaflow.runtime.processes import Process

#: The budget of the design: after a kill everything else ends within this time, in seconds.
BUDGET = 10.0
RANKS = 2
PARTITIONS = 16
OLD, ALL = 48, 200
#: Batches (one a partition) that each rank lets through before it is held.
LET_THROUGH = 3

WORKFLOW = """
[[operator]]
kind = "load"
paths = ["{docs}"]
split_bytes = {split_bytes}
[[operator]]
kind = "transform"
size = {size}
[[operator]]
kind = "apply"
{apply}
[[operator]]
kind = "embed"
dimension = 64
window = {window}
[[operator]]
kind = "upsert"
index = "{index}"
partitions = {partitions}
"""
HOLD = 'function = "fault_operators:hold"'


def wait_for(condition: Callable[[], object], seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def command_line(process: Process) -> str:
    try:
        return Path(f"/proc/{process.pid}/cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def parent(process: Process) -> Process:
    found = processes.parent_of(process.pid)
    assert found is not None
    return found


@dataclass
class Ingestion:
    """An ingestion into the index of a folder, as its command sees it.

    Attributes:
        folder: of the test; holds ``index``, ``runs`` and the workflow file.
        docs: the corpus.
        apply: TOML lines of the operator between transform and embed.
        token: what every process of the ingestion carries in its environment, whoever started it.
        temporary: its TMPDIR, of a short name: engines make sockets in there.
        split_bytes: of a piece of a file.
        size: characters of a chunk.
        window: rows that are embedded together.
    """

    folder: Path
    docs: Path
    apply: str = HOLD
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    temporary: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="faults-")))
    split_bytes: int = 1 << 20
    size: int = 120
    window: int = 8

    @property
    def index(self) -> Path:
        return self.folder / "index"

    def command(self, pilot: str) -> list[str]:
        workflow = self.folder / "workflow.toml"
        text = WORKFLOW.format(**vars(self), index=self.index, partitions=PARTITIONS)
        workflow.write_text(text, encoding="utf-8")
        options = ["--pilot", pilot, "--ranks", str(RANKS), "--run-folder", str(self.folder / "runs"), "--json"]
        return [sys.executable, "-m", "aaflow.cli.main", "run", str(workflow), *options]

    def start(
        self, command: list[str], stdin: int = subprocess.DEVNULL, stderr: int = subprocess.PIPE, **environment: str
    ) -> subprocess.Popen[str]:
        environment["TMPDIR"] = str(self.temporary)
        environment["AAFLOW_FAULTS_TOKEN"] = self.token
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(Path(__file__).parent), str(source_folder()), os.environ.get("PYTHONPATH", "")]
        )
        return subprocess.Popen(
            command,
            env={**os.environ, **environment},
            cwd=self.folder,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )

    def run(self, pilot: str) -> Ended:
        """Run the command to its end."""
        process = self.start(self.command(pilot))
        out, err = process.communicate(timeout=150)
        return Ended(process.returncode, out, err)

    def complete(self) -> Path:
        """Run undisturbed, from this process and on one rank; give the run folder."""
        self.command("local")
        placement = place(compile(read_workflow(self.folder / "workflow.toml"), site="local", ranks=1), "local")
        return run(placement, "local", run_folder=self.folder / "runs").folder

    def alive(self) -> list[Process]:
        """Every living process of the ingestion, its command among them."""
        return processes.find_marked("AAFLOW_FAULTS_TOKEN", self.token)

    def end(self) -> None:
        """End what a failed test left: keepers too, so their work is done here."""
        files = {file for process in self.alive() for file in sharedfiles.mapped_by(process.pid)}
        processes.end_all(self.alive)
        sharedfiles.remove_unused(files)
        shutil.rmtree(self.temporary)

    def staged(self) -> dict[str, str]:
        """The segment file (relative to the index; empty where there are no rows) of every unit that was committed."""
        found = {}
        for record in self.index.glob("staging/*/*.json"):
            with contextlib.suppress(FileNotFoundError):  # it has just been published
                unit = json.loads(record.read_bytes())
                segment = unit["segment"]
                found[record.stem] = f"partitions/{unit['partition']:05d}/{segment['id']}.arrow" if segment else ""
        return found

    def run_folders(self) -> list[Path]:
        return sorted((self.folder / "runs").iterdir()) if (self.folder / "runs").is_dir() else []

    def content(self) -> tuple[int, str]:
        with open_index(self.index) as index:
            info = index.info()
        return info.generation, info.digest


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass
class Halted:
    """An ingestion whose ranks have committed something and are held, with its parts by role."""

    ingestion: Ingestion
    command: subprocess.Popen[str]
    run_folder: Path
    parts: dict[str, Process]
    committed: dict[str, str]
    shared: set[sharedfiles.SharedFile]

    def wait_until_gone(self) -> float:
        """Seconds until no process of the ingestion lives; at most the budget."""
        began = time.monotonic()
        while alive := self.ingestion.alive():
            seconds = time.monotonic() - began
            assert seconds < BUDGET, f"alive after {seconds:.1f} s: {[(p.pid, command_line(p)) for p in alive]}"
            time.sleep(0.05)
        return time.monotonic() - began

    def ended(self) -> Ended:
        out, err = self.command.communicate(timeout=5)
        return Ended(self.command.returncode, out, err)


def source_folder() -> Path:
    return Path(aaflow.__file__).parent.parent


def write_documents(folder: Path, numbers: range, edition: int) -> None:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        lines = [f"Edition {edition} of document {number} has a sentence {line} of its own." for line in range(4)]
        (folder / f"{number:04d}.txt").write_text("\n\n".join(lines), encoding="utf-8")


def copy_of(before: Ingestion, folder: Path, apply: str = HOLD) -> Ingestion:
    shutil.copytree(before.index, folder / "index")
    return Ingestion(folder, before.docs, apply)


def find_parts(run_folder: Path, driver: int, alive: list[Process]) -> dict[str, Process]:
    """The processes of a run by role."""
    (stage,) = (path.name.split(".")[0] for path in (run_folder / "ranks").glob("*.0.json"))
    ranks = records.per_rank(str(run_folder), "ranks", stage)
    parts = {f"rank {rank}": processes.read_process(record) for rank, record in ranks.items()}
    parts["proxy"] = parent(parts["rank 0"])
    parts["launcher"] = parent(parts["proxy"])
    parts["keeper"] = parent(parts["launcher"])
    own = processes.find_process(driver)
    assert own is not None
    parts["driver"] = own
    if parent(parts["keeper"]) == own:
        return parts
    if any("radical" in command_line(process) for process in alive):
        return parts
    parts["worker"] = parent(parts["keeper"])
    parts["pool"] = parent(parts["worker"])
    assert "aaflow_parsl.pool" in command_line(parts["pool"])
    (parts["interchange"],) = (process for process in alive if "HTEX interchange" in command_line(process))
    return parts
