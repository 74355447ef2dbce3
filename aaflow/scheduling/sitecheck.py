"""What can be said about a site from here: is its launcher there, can runs be written, is anything left to fill in."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aaflow.errors import SiteError
from aaflow.operators.operator import Domain
from aaflow.scheduling.environment import BACKENDS, backend_problem, environment_problem, job_loads_modules
from aaflow.scheduling.interface import interface_of
from aaflow.scheduling.launch import find_launcher
from aaflow.scheduling.machine import usable_cores, usable_memory
from aaflow.scheduling.site import Site

#: Free space below which a run folder is reported, in bytes.
ENOUGH_SPACE = 1 << 30

#: What each launcher is part of; PALS is part of none of those that are known by their words.
_MPI = {"mpiexec": "MPICH", "openmpi": "Open MPI", "intelmpi": "Intel MPI", "pals": None}
#: What ``--version`` of their launchers says.
_SAY = (
    *(("HYDRA", "MPICH"), ("Intel(R) MPI", "Intel MPI")),
    *(("Open MPI", "Open MPI"), ("OpenRTE", "Open MPI")),
)
_COMMANDS = {"slurm": ("sbatch", "squeue", "scancel"), "pbs": ("qsub", "qstat", "qdel")}


@dataclass(frozen=True)
class Problem:
    """Something that keeps a site from working.

    Attributes:
        key: the key of the site file that it is about.
        text: what is wrong.
        remedy: what a person can do.
        certain: False where another node of the site may well have what this one lacks.
    """

    key: str
    text: str
    remedy: str
    certain: bool = True


def check_site(site: Site) -> list[Problem]:
    """The problems of a site that show on this machine, in the order of the site file's keys."""
    checks = (
        _placeholders,
        _scheduler,
        _node,
        _launcher,
        _communicator,
        _environments,
        _pilot,
        _run_folder,
        _interfaces,
    )
    return [problem for check in checks for problem in check(site)]


def _placeholders(site: Site) -> Iterator[Problem]:
    texts = {f"provider.{key}": value for key, value in site.provider.items() if key != "worker_init"}
    texts.update({f"environments.{name}": environment.python for name, environment in site.environments.items()})
    for key, value in {**texts, "run_folder": site.run_folder}.items():
        for braced, plain in re.findall(r"\$\{(\w+)\}|\$(\w+)", str(value)):
            name = braced or plain
            yield Problem(key, f"the environment variable {name} is not set", f"set it: export {name}=…")
        if "CHANGE_ME" in str(value):
            yield Problem(
                key, f"{value!r} is still to be filled in", "copy the site file to your own folder and edit it"
            )


def _scheduler(site: Site) -> Iterator[Problem]:
    missing = [command for command in _COMMANDS.get(site.scheduler, ()) if shutil.which(command) is None]
    if missing:
        remedy = f"run this on a login node of {site.name}"
        yield Problem("scheduler", f"{', '.join(missing)} not on PATH, which {site.scheduler} needs", remedy)


def _node(site: Site) -> Iterator[Problem]:
    if site.scheduler != "local":
        return
    cores = set(os.sched_getaffinity(0))
    if not cores >= set(site.node.cores):
        wrong = ", ".join(str(core) for core in site.node.cores if core not in cores)
        yield Problem("node.cores", f"this process may not use cores {wrong}", 'use cores = "auto"')
    elif len(site.node.cores) > len(usable_cores()):
        text = f"{len(site.node.cores)} cores, and the CPU quota pays for {len(usable_cores())}"
        yield Problem("node.cores", text, 'use cores = "auto"')
    if site.node.memory > usable_memory():
        text = f"{site.node.memory / 2**30:.1f} GiB, and this process may use {usable_memory() / 2**30:.1f} GiB"
        yield Problem("node.memory", text, 'use memory = "auto"')


def _launcher(site: Site) -> Iterator[Problem]:
    # Only compute nodes have PALS, and a batch job may load its modules in worker_init.
    certain = site.scheduler == "local"
    try:
        program = find_launcher(site.launcher)
    except SiteError as error:
        text, _, remedy = str(error).partition("; ")
        yield Problem("launcher", text, remedy, certain)
        return
    version = _output(program, "--version")
    found = next((mpi for words, mpi in _SAY if words in version), None)
    if site.launcher in _MPI and found != _MPI[site.launcher]:
        whose = f"{found}'s" if found else "of an MPI that aaflow doesn't know"
        remedy = 'name the launcher that is there: launcher = "mpiexec" (MPICH), "openmpi", "intelmpi" or "pals"'
        yield Problem("launcher", f"{program} is {whose}, not what {site.launcher!r} means", remedy, certain)


def _output(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def _communicator(site: Site) -> Iterator[Problem]:
    needed, remedy = BACKENDS[site.communicator]
    if needed and any(site.environment_of(domain.value) is None for domain in Domain):
        problem = backend_problem(site.communicator)
        if problem is not None:
            text = f"{site.communicator!r} needs {needed}: {problem}"
            certain = not job_loads_modules(site) or backend_problem(site.communicator, library=False) is not None
            yield Problem("communicator", text, remedy, certain)


def _environments(site: Site) -> Iterator[Problem]:
    for name, environment in site.environments.items():
        if "$" in environment.python:
            continue  # reported already
        python, backend = environment.python, environment.communicator
        problem = environment_problem(python, backend)
        if problem is not None:
            certain = not job_loads_modules(site) or environment_problem(python, backend, library=False) is not None
            remedy = "install what is missing there (docs/sites/README.md lists what an environment holds)"
            yield Problem(f"environments.{name}", problem, remedy, certain)


def _pilot(site: Site) -> Iterator[Problem]:
    known = sorted({"local", *(point.name for point in importlib.metadata.entry_points(group="aaflow.pilots"))})
    if site.pilot not in known:
        remedy = f"use one of {', '.join(known)}, or install the package that brings it"
        yield Problem("pilot", f"there is no pilot {site.pilot!r}", remedy)


def _run_folder(site: Site) -> Iterator[Problem]:
    if "$" in site.run_folder:
        return  # reported already
    folder = Path(site.run_folder)
    if not folder.is_absolute():
        yield Problem("run_folder", f"{folder} is relative; ranks start elsewhere", "give an absolute path")
        return
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield Problem("run_folder", f"{folder} can't be made or written: {there}", "choose another run_folder")
    elif (free := shutil.disk_usage(there).free) < ENOUGH_SPACE:
        text = f"{there} has {free / 2**20:.0f} MiB free, less than {ENOUGH_SPACE / 2**20:.0f} MiB"
        yield Problem("run_folder", text, "free some space or choose another run_folder")


def _interfaces(site: Site) -> Iterator[Problem]:
    known = [name for _, name in socket.if_nameindex()]
    remedies = {
        "interface": f"this node has {', '.join(known)}; compute nodes may have others (ip link)",
        "interconnect": f"this node has {', '.join(known)}; only compute nodes need it (ip link)",
    }
    for key, remedy in remedies.items():
        name = getattr(site, key)
        if name and interface_of(name) not in known:
            text = f"this node has no network interface {name!r}"
            yield Problem(key, text, remedy, certain=site.scheduler == "local")
