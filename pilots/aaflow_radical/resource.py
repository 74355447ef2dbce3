"""From a site to what RADICAL-Pilot wants to know of a machine: a resource description and a pilot description."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aaflow.errors import PilotError, SiteError
from aaflow.scheduling.batch import SUBMIT, pbs_select
from aaflow.scheduling.interface import interface_of
from aaflow.scheduling.site import Site

#: The resource in the generated description, as ``RESOURCES.NAME``.
RESOURCE = "aaflow.site"
#: RADICAL-Pilot's words for schedulers: its resource manager and the scheme of its job endpoint.
_SCHEDULERS = {"local": ("FORK", "fork"), "slurm": ("SLURM", "slurm"), "pbs": ("PBSPRO", "pbspro")}
#: The launch method that RADICAL-Pilot makes tasks of several ranks ready with.
_LAUNCH_METHODS = {
    **dict.fromkeys(("mpiexec", "openmpi", "intelmpi", "pals"), "MPIEXEC"),
    "srun": "SRUN",
}
#: How lines with options begin in a script.
_DIRECTIVES = {"slurm": "#SBATCH", "pbs": "#PBS"}
#: Minutes for which a pilot on this machine may run: as long as its driver does, which ends it.
_NO_LIMIT = 60 * 24 * 365


def configure(
    site: Site,
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
    begin: str = "",
    path: str | None = None,
) -> dict[str, Any]:
    """Write into a new folder what RADICAL-Pilot has to know of a site.

    ``RADICAL_CONFIG_USER_DIR`` has to name that folder when a session starts. Where a site has options for which
    RADICAL-Pilot has no word, the folder's ``bin`` has to be the first on the session's ``PATH``: the ``sbatch`` or
    ``qsub`` there adds them. Nothing else is touched, least of all the user's own configuration.

    Args:
        site: where.
        folder: is made; the sandboxes of pilots come into it too.
        environment: variables that agent, launchers and tasks get.
        begin: shell commands that come once, before the agent.
        path: ``PATH`` of the session's process; by default that of this one.

    Returns:
        The values of the ``radical.pilot.PilotDescription`` of all nodes of the site.

    Raises:
        PilotError: RADICAL-Pilot can't work in this folder.
        SiteError: RADICAL-Pilot can't use this site, or not with this ``PATH``.
    """
    folder = folder.absolute()
    check_folder(folder)
    described = resource_description(site, folder)
    submit = _submit_script(site, folder / "bin", path if path is not None else os.environ.get("PATH", os.defpath))
    configs = folder / ".radical" / "pilot" / "configs"
    configs.mkdir(mode=0o700, parents=True)
    (configs / f"resource_{RESOURCE.partition('.')[0]}.json").write_text(json.dumps(described, indent=1))
    (folder / "setup.sh").write_text(setup_script(site, environment or {}))
    (folder / "begin.sh").write_text(begin)
    if submit:
        program = folder / "bin" / SUBMIT[site.scheduler]
        program.parent.mkdir(mode=0o700)
        program.write_text(submit)
        program.chmod(0o700)
    return pilot_description(site)


def submit_words(site: Site) -> list[str]:
    """What ``sbatch`` or ``qsub`` has to be told besides RADICAL-Pilot's script, which they heed less than these words.

    Raises:
        SiteError: among the site's options is something else.
    """
    constraint = str(site.provider.get("constraint", ""))
    words: list[str] = []
    if site.scheduler == "pbs":
        # PSI/J asks for as many cores as are not blocked, so that a node would lack the last ones.
        words += ["-l", pbs_select(site)]
    elif constraint and shlex.quote(constraint) != constraint:  # PSI/J has the quotes in its value
        words += [f"--constraint={constraint}"]
    for line in str(site.provider.get("scheduler_options", "")).splitlines():
        first, options = [*line.split(maxsplit=1), "", ""][:2]
        if first == _DIRECTIVES[site.scheduler]:
            words += shlex.split(options, comments=True)
        elif first and not first.startswith("#"):
            raise SiteError(
                f"site {site.name!r}: pilot 'radical' can't hand this line of provider.scheduler_options to "
                f"{site.scheduler}: {line.strip()!r} is no {_DIRECTIVES[site.scheduler]}; use worker_init for commands"
            )
    return words


def _submit_script(site: Site, folder: Path, path: str) -> str:
    """The program that a session has for ``sbatch`` or ``qsub``; empty where it needs none of its own.

    Args:
        site: where.
        folder: of that program.
        path: ``PATH`` of the session.

    Raises:
        SiteError: the session would not find it, or there is no program that it could call; or see ``submit_words``.
    """
    words = submit_words(site) if site.scheduler != "local" else []
    if not words:
        return ""
    first, _, others = path.partition(os.pathsep)
    if first != str(folder):
        raise SiteError(
            f"site {site.name!r} has options for which RADICAL-Pilot has no word ({shlex.join(words)}): "
            f"put {folder} before all else on PATH, then configure and start the session"
        )
    command = SUBMIT[site.scheduler]
    program = shutil.which(command, path=others)
    if program is None:
        raise SiteError(f"{command} not on PATH, which {site.scheduler} needs; run this on a login node of {site.name}")
    return f'#!/bin/sh\n# RADICAL-Pilot has no word for these options.\nexec {shlex.join([program, *words])} "$@"\n'


def search_path() -> str:
    """PATH with the programs of this Python environment, which need not be active, before all others."""
    return os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])


def check_folder(folder: Path) -> None:
    """Refuse a folder whose name RADICAL-Pilot's shell scripts and templates would take apart.

    Raises:
        PilotError: its path has other characters than letters, digits and ``/ . _ + , : @ = -``.
    """
    if not re.fullmatch(r"[\w/.+,:@=-]+", str(folder), re.ASCII):
        raise PilotError(
            f"RADICAL-Pilot's scripts can't work in {folder}: the path of a run folder may have letters, digits and "
            "/ . _ + , : @ = - only; choose another with the site's `run_folder`"
        )


def resource_description(site: Site, folder: Path) -> dict[str, Any]:
    """What RADICAL-Pilot reads as a file ``resource_*.json``.

    Args:
        site: where.
        folder: for sandboxes, with the scripts ``setup.sh`` (see :func:`setup_script`) and ``begin.sh``.
    """
    manager, scheme = _SCHEDULERS[site.scheduler]
    methods = [_LAUNCH_METHODS[site.launcher]]
    if site.scheduler == "local":
        methods.insert(0, "FORK")  # starts a single rank at less cost
    setup = f". {folder}/setup.sh"
    cores = max(site.node.cores) + 1
    constraint = site.provider.get("constraint")
    described: dict[str, Any] = {
        "description": "generated by aaflow",
        "default_schema": "here",
        "schemas": {
            "here": {"job_manager_endpoint": f"{scheme}://localhost/", "filesystem_endpoint": "file://localhost/"}
        },
        "default_remote_workdir": str(folder),
        "resource_manager": manager,
        "agent_config": "default",
        "agent_scheduler": "CONTINUOUS",
        "agent_spawner": "POPEN",
        # A launcher gets the environment from before pre_bootstrap_0.
        "pre_bootstrap_0": [setup, f". {folder}/begin.sh"],
        "launch_methods": {"order": methods, **{method: {"pre_exec_cached": [setup]} for method in methods}},
        "rp_version": "installed",
        "virtenv_mode": "local",
        "cores_per_node": cores,
        "gpus_per_node": len(site.node.accelerators.ids) if site.node.accelerators else 0,
        "system_architecture": {
            "smt": 1,  # core ids are those of the kernel
            "blocked_cores": sorted(set(range(cores)) - set(site.node.cores)),
            "exclusive": site.scheduler != "local",
            "options": [constraint] if constraint else [],
        },
    }
    if site.scheduler == "local":
        described["fake_resources"] = True  # the placement has checked the cores, and sites may oversubscribe them
    else:
        described["network_interface"] = interface_of(site.interface)
    return {RESOURCE.partition(".")[2]: described}


def pilot_description(site: Site) -> dict[str, Any]:
    """The values of a ``radical.pilot.PilotDescription`` of all nodes of a site."""
    described: dict[str, Any] = {
        "resource": RESOURCE,
        "nodes": site.nodes,
        "runtime": _NO_LIMIT,
        "exit_on_error": False,  # else a pilot that fails ends the process that asked for it
    }
    if site.scheduler == "local":
        return described
    hours, minutes, seconds = (int(part) for part in str(site.provider["walltime"]).split(":"))
    queue, qos = site.provider.get("queue") or "", site.provider.get("qos") or ""
    described["runtime"] = max(1, 60 * hours + minutes + (seconds > 0))
    described["project"] = site.provider.get("account") or None
    described["queue"] = (f"{queue}:{qos}" if qos else queue) or None
    return described


def setup_script(site: Site, environment: Mapping[str, str]) -> str:
    """What agent and launchers run before anything else: a login shell, in which the agent starts, resets PATH.

    Args:
        site: where.
        environment: variables to set.
    """
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    if site.scheduler == "local":
        lines += [f"export PATH={shlex.quote(search_path())}", f"export HOME={shlex.quote(str(Path.home()))}"]
    else:
        lines += [str(site.provider.get("worker_init", ""))]
        lines += [f"export PATH={shlex.quote(os.path.dirname(sys.executable))}:$PATH"]
    return "\n".join([*lines, ""])
