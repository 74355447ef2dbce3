"""The process that has a session of RADICAL-Pilot (:mod:`aaflow_radical.session`), and what it is given.

A session forks, logs, changes signals and its working directory's content, and reads its settings from the environment
of its process. Here it has one that is made for it, in which all that it starts, but tasks, carries the marks by which
a run's keeper finds it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import site as python_site
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from aaflow.launchorder import import_folders
from aaflow.runtime.enginejob import end_without_driver, told_to_job
from aaflow.scheduling.interface import interface_address
from aaflow.scheduling.site import Site
from aaflow_radical.resource import configure, search_path
from aaflow_radical.task import write_environment

#: What a batch job writes its id into, in an engine's folder.
JOB_FILE = "job"
#: Variables that RADICAL-Pilot's own programs on this machine may need: those of every program, of Python, the loader
#: and thread pools, of batch systems and launchers, and those by which a login shell knows that modules are loaded.
_OWN = re.compile(
    r"BASH_ENV|ENV|HOME|LANG|LOGNAME|PATH|PWD|SHELL|TMPDIR|TZ|USER|VIRTUAL_ENV"
    r"|(AAFLOW_|CONDA|LC_|LD_|OMP_|OPENBLAS_|PSIJ|PYTHON|RADICAL_|RP_|SPT_).*"
    r"|(HYDRA|I_MPI|MPICH|OMPI|OPAL|PALS|PBS|PMI|PMIX|PRTE|SLURM)_.*"
    r"|.*(LMFILES|LMOD|MODULE|Module).*"
)


def start_engine(site: Site, folder: Path, job: str, marks: Mapping[str, str]) -> subprocess.Popen[str]:
    """Write an engine's settings into a new folder and start it.

    Args:
        site: where.
        folder: for all of its files, in the run folder.
        job: name of its batch job, as far as Slurm goes.
        marks: variables that its processes carry.

    Raises:
        PilotError: RADICAL-Pilot can't work in this folder.
        SiteError: RADICAL-Pilot can't use this site.
    """
    told = told_to_job(marks) if site.scheduler != "local" else marks
    environment = engine_environment(site, folder, marks)
    described = configure(site, folder, environment=told, begin=_begin(site, folder), path=environment["PATH"])
    if site.scheduler == "local":
        write_environment(marks["TMPDIR"], {**os.environ, **marks, "PATH": environment["PATH"]})
        environment = agent_environment(environment)
    else:
        environment["SBATCH_JOB_NAME"] = job
    (folder / "pilot.json").write_text(json.dumps(described))
    with (folder / "engine.log").open("w", encoding="utf-8") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "aaflow_radical.session", str(folder)],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            # Ctrl-C is for the driver, which ends its engine.
            start_new_session=True,
        )


def _begin(site: Site, folder: Path) -> str:
    """What a batch job does first: it says which it is, and ends itself where its driver died while it waited."""
    if site.scheduler == "local":
        return ""
    job = shlex.quote(str(folder / JOB_FILE))
    paths = shlex.quote(os.pathsep.join(import_folders()))
    return (
        f"echo ${{SLURM_JOB_ID:-$PBS_JOBID}} > {job}.new && mv {job}.new {job}\n"
        # RADICAL-Pilot's script goes on after SIGTERM.
        f"(export PYTHONPATH={paths}; {end_without_driver(str(folder.parent), 'KILL')})\n"
    )


def engine_environment(site: Site, folder: Path, marks: Mapping[str, str]) -> dict[str, str]:
    """The environment of an engine: this one, with RADICAL-Pilot's files in a folder and its programs on PATH."""
    environment = {**os.environ, **marks, "PATH": search_path(), "PWD": str(folder)}
    # PSI/J keeps its scripts in the home folder, from which Python may import; tasks get the user's own.
    environment["HOME"] = str(folder)
    if python_site.ENABLE_USER_SITE:
        environment["PYTHONUSERBASE"] = python_site.getuserbase()
    # Counters and caches; the user's own resource descriptions and settings are left out of it.
    environment["RADICAL_BASE"] = environment["RADICAL_CONFIG_USER_DIR"] = str(folder)
    for name in ("PYTHONHOME", "RADICAL_PILOT_PROXY_URL", "RADICAL_PILOT_BASE", "RADICAL_PILOT_SESSION_BASE"):
        environment.pop(name, None)
    # The agent activates what this names.
    environment.pop("VIRTUAL_ENV", None)
    if sys.prefix != sys.base_prefix:
        environment["VIRTUAL_ENV"] = sys.prefix
    if site.scheduler != "local":
        environment["RADICAL_PILOT_PROXY_HOST"] = interface_address(site.interface)
        environment["PATH"] = os.pathsep.join([str(folder / "bin"), environment["PATH"]])
    return environment


def agent_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What of an environment a session and an agent on this machine get; :mod:`aaflow_radical.task` has the whole.

    An agent's scripts call some twenty programs for every variable that they find when they start, which takes 0.03 s
    of two cores. Functions of a shell are left to them.
    """
    return {
        name: value
        for name, value in environment.items()
        if _OWN.fullmatch(name) or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII)
    }
