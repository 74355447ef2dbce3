"""Batch systems: the script that makes a program a job of a site, submitting it, what becomes of it, cancelling it.

Slurm and PBS Pro, by their own commands. Standard library only: keepers cancel jobs too.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aaflow.errors import JobRefused, PilotError, SiteError

if TYPE_CHECKING:  # keepers start fast
    from aaflow.scheduling.site import Site

#: Seconds that a batch system may take to answer.
ANSWER_SECONDS = 20.0
#: Variable of a job's environment: when its script began, in seconds since 1970.
BEGAN = "AAFLOW_JOB_BEGAN"
NAMES = {"slurm": "Slurm", "pbs": "PBS"}
#: The commands that take a script.
SUBMIT = {"slurm": "sbatch", "pbs": "qsub"}


@dataclass(frozen=True)
class Job:
    """A batch job.

    Attributes:
        id: what the batch system calls it.
        state: ``waiting``, ``running``, ``ending`` (why is told in a moment), ``ended``, or ``forgotten``: it is over,
            and nobody says how it ended.
        words: a sentence for a person, without its full stop.
        walltime: whether it ended because its walltime was over.
    """

    id: str
    state: str
    words: str
    walltime: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing more will become of it."""
        return self.state in ("ended", "forgotten")


def job_script(
    site: Site, *, name: str, log: str, folder: str, environment: Mapping[str, str], command: Sequence[str]
) -> str:
    """The script of a batch job that runs a command on the first of the site's nodes, once its shell is set up.

    The command takes the place of the shell, so that a signal of the batch system reaches it.

    Args:
        site: what to ask for, and ``worker_init``.
        name: of the job.
        log: file for stdout and stderr, appended to.
        folder: to run in.
        environment: variables to set besides those that the batch system gives.
        command: words of the command.

    Raises:
        SiteError: the site has no batch system.
    """
    options = {"slurm": _slurm_options, "pbs": _pbs_options}.get(site.scheduler)
    if options is None:
        raise SiteError(f"site {site.name!r} has no batch system: its scheduler is {site.scheduler!r}")
    lines = [
        "#!/bin/bash",
        *options(site, name, log),
        str(site.provider.get("scheduler_options", "")),
        f"export {BEGAN}=$(date +%s)",
        str(site.provider.get("worker_init", "")),
        *(f"export {variable}={shlex.quote(value)}" for variable, value in environment.items()),
        f"cd {shlex.quote(folder)} || exit 1",
        f"exec {shlex.join(command)}",
    ]
    return "\n".join([line.rstrip("\n") for line in lines if line.strip()] + [""])


def _slurm_options(site: Site, name: str, log: str) -> list[str]:
    given = site.provider
    options = [
        ("job-name", name),
        ("output", log.replace("%", "%%")),
        ("nodes", site.nodes),
        ("ntasks-per-node", 1),
        ("time", given.get("walltime")),
        ("partition", given.get("queue")),
        ("account", given.get("account")),
        ("qos", given.get("qos")),
        ("constraint", given.get("constraint")),
    ]
    # Not queued again by Slurm: a run goes on in a new job, which knows what this one did.
    flags = ["#SBATCH --open-mode=append", "#SBATCH --exclusive", "#SBATCH --no-requeue"]
    return [*(f"#SBATCH --{option}={shlex.quote(str(value))}" for option, value in options if value), *flags]


def pbs_place(site: Site) -> str:
    """What PBS has to be told with ``-l`` so that no two chunks share a node, nor a job with another.

    Empty where the site's own options say how to place: of two in one script PBS takes the first.
    """
    options = str(site.provider.get("scheduler_options", ""))
    says = re.search(r"""^\s*#PBS\s.*-l\s*["']?(?:\S*,)?place=""", options, re.MULTILINE)
    return "" if says else "place=scatter:excl"


def pbs_select(site: Site) -> str:
    """What PBS has to be told with ``-l`` to give a chunk of all cores for each of the site's nodes."""
    more = str(site.provider.get("select_options", "")).removeprefix(":")
    return f"select={site.nodes}:ncpus={max(site.node.cores) + 1}" + (f":{more}" if more else "")


def _pbs_options(site: Site, name: str, log: str) -> list[str]:
    given = site.provider
    options = [
        ("S", "/bin/bash"),
        ("N", name),
        ("j", "oe"),
        ("o", log),
        ("r", "n"),
        ("l", pbs_select(site)),
        ("l", pbs_place(site)),
        ("l", f"walltime={given['walltime']}" if given.get("walltime") else ""),
        ("q", given.get("queue")),
        ("A", given.get("account")),
    ]
    return [f"#PBS -{option} {value}" for option, value in options if value]


def submit(scheduler: str, script: str | Path, *, after: str | None = None) -> str:
    """Give a script to the batch system.

    Args:
        scheduler: ``slurm`` or ``pbs``.
        script: its path.
        after: id of a job that has to end, however it does, before this one starts.

    Returns:
        The job's id.

    Raises:
        JobRefused: the batch system refused it; says its words.
        PilotError: the batch system is not here, or does not answer; it may have taken the job.
    """
    parsable = ["--parsable"] if scheduler == "slurm" else []
    depend = {"slurm": [f"--dependency=afterany:{after}"], "pbs": ["-W", f"depend=afterany:{after}"]}
    command = [SUBMIT[scheduler], *parsable, *(depend[scheduler] if after is not None else []), str(script)]
    # What a job inherits would be taken for wishes of the job that it submits.
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in ("SLURM_CONF", "SLURM_CLUSTERS") or not name.startswith(("SLURM_", "PBS_", "PMI"))
    }
    try:
        done = _call(command, environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PilotError(f"the job can't be submitted: {error}") from error
    if done.returncode:
        raise JobRefused(f"{command[0]} refused the job: {' '.join(done.stderr.split())}; its script: {script}")
    return done.stdout.strip().split(";")[0]


def cancel(scheduler: str, job: str) -> bool:
    """Cancel a job, waiting or running; whether the batch system took that."""
    try:
        return _call([{"slurm": "scancel", "pbs": "qdel"}[scheduler], job]).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def own_job() -> tuple[str, str] | None:
    """The batch system and the id of the job that this process is part of; None outside of one."""
    for scheduler, variable in (("slurm", "SLURM_JOB_ID"), ("pbs", "PBS_JOBID")):
        if os.environ.get(variable):
            return scheduler, os.environ[variable]
    return None


def seconds_of(walltime: str) -> int:
    """The seconds of ``hours:minutes:seconds``."""
    hours, minutes, seconds = map(int, walltime.split(":"))
    return (hours * 60 + minutes) * 60 + seconds


def find_slurm_job(name: str) -> str | None:
    """The id of this user's job of that name, waiting, running or just over; None where Slurm knows none."""
    command = ["squeue", "--noheader", "--me", "--states=all", f"--name={name}", "--format=%i"]
    try:
        found = _call(command).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found[0] if found else None


def ask(scheduler: str, job: str, *, seconds: float = ANSWER_SECONDS) -> Job | None:
    """What ``slurm`` or ``pbs`` says of a job now; None where it doesn't answer within ``seconds``."""
    command, read = _SCHEDULERS[scheduler]
    try:
        done = _call([*command, job], seconds=seconds)
        if done.returncode == 0:
            return read(job, done.stdout)
        if not re.search(r"invalid job id|unknown job id", done.stderr, re.IGNORECASE):
            return None
        # Slurm's controller forgets a job some minutes after its end; where a site keeps accounts, they know.
        if scheduler == "slurm" and (kept := _call([*_SACCT, job], seconds=seconds)).returncode == 0:
            return read_sacct(job, kept.stdout) or _forgotten(scheduler, job)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return _forgotten(scheduler, job)


def _forgotten(scheduler: str, job: str) -> Job:
    name = NAMES[scheduler]
    return Job(job, "forgotten", f"{name} job {job} is over, and {name} no longer knows how it ended")


def _call(
    command: Sequence[str], environment: Mapping[str, str] | None = None, *, seconds: float = ANSWER_SECONDS
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False
    )


def words_of_an_end(scheduler: str, job: str) -> str:
    """What is said of a job while its batch system ends it and does not say yet why."""
    return f"{NAMES[scheduler]} job {job} was ended"


def read_slurm(job: str, said: str) -> Job | None:
    """The job in the answer of ``scontrol show job --oneliner``."""
    fields = dict(re.findall(r"(\w+)=(\S*)", said))
    state = fields.get("JobState")
    if state is None:
        return None
    name, reason = f"Slurm job {job}", fields.get("Reason", "None")
    if state in ("PENDING", "CONFIGURING", "REQUEUED", "SUSPENDED"):
        why = f" ({reason})" if reason != "None" else ""
        start = fields.get("StartTime", "Unknown")
        then = f", expected to start at {start.replace('T', ' ')}" if start not in ("Unknown", "N/A") else ""
        return Job(job, "waiting", f"{name} waits in partition {fields.get('Partition', '?')}{why}{then}")
    if state == "COMPLETING" and reason == "TimeLimit":
        state = "TIMEOUT"
    if state == "COMPLETING":
        return Job(job, "ending", words_of_an_end("slurm", job))
    if state == "RUNNING":
        return Job(job, "running", f"{name} runs on {fields.get('NodeList', '?')}")
    return _slurm_end(job, state, fields.get("TimeLimit", "?"), fields.get("ExitCode", "?"))


def read_sacct(job: str, said: str) -> Job | None:
    """The job that is over in the answer of ``sacct``: state, time limit and exit code with bars between them."""
    state, *rest = said.strip().split("|")
    if len(rest) != 2 or state in ("", "PENDING", "RUNNING"):
        return None
    return _slurm_end(job, state.split()[0], *rest)  # of one that was cancelled it also says by whom


def _slurm_end(job: str, state: str, limit: str, code: str) -> Job:
    how = {
        "TIMEOUT": f"reached its walltime of {limit}",
        "DEADLINE": "reached its deadline",
        "CANCELLED": "was cancelled",
        "PREEMPTED": "was preempted",
        "NODE_FAIL": "lost a node",
        "BOOT_FAIL": "could not boot its nodes",
        "OUT_OF_MEMORY": "ran out of memory",
    }.get(state, f"ended ({state}, exit code {code})")
    return Job(job, "ended", f"Slurm job {job} {how}", walltime=state == "TIMEOUT")


def read_pbs(job: str, said: str) -> Job | None:
    """The job in the answer of ``qstat -x -f -F json``."""
    try:
        (fields,) = json.loads(said)["Jobs"].values()
    except (ValueError, KeyError):
        return None
    name, state, comment = f"PBS job {job}", fields.get("job_state"), str(fields.get("comment", "")).strip()
    if state in ("Q", "H", "W", "T", "S"):
        return Job(
            job, "waiting", f"{name} waits in queue {fields.get('queue', '?')}" + (f" ({comment})" if comment else "")
        )
    if state in ("R", "E", "B"):
        nodes = dict.fromkeys(part.split("/")[0] for part in str(fields.get("exec_host", "?")).split("+"))
        return Job(job, "running", f"{name} runs on {', '.join(nodes)}")
    code = str(fields.get("Exit_status", "?"))
    # Its comment says so too, but for older versions, where it only says that it failed.
    if code == _PBS_WALLTIME or "walltime" in comment.lower():
        limit = fields.get("Resource_List", {}).get("walltime", "?")
        return Job(job, "ended", f"{name} reached its walltime of {limit}", walltime=True)
    how = _PBS_ENDS.get(code, f"ended with exit code {code}")
    return Job(job, "ended", f"{name} {how}" + (f" ({comment})" if comment else ""))


#: Exit codes below 0 are PBS's own: JOB_EXEC_… in its sources.
_PBS_WALLTIME = "-29"
_PBS_ENDS = {
    **dict.fromkeys(("-1", "-2"), "could not be started on its nodes"),
    **dict.fromkeys(("-24", "-25"), "used more processors than it had asked for"),
    "-26": "used more virtual memory than it had asked for",
    "-27": "ran out of memory",
    "-28": "reached its limit of processor time",
}


_SCHEDULERS: Mapping[str, tuple[list[str], Callable[[str, str], Job | None]]] = {
    "slurm": (["scontrol", "show", "job", "--oneliner"], read_slurm),
    "pbs": (["qstat", "-x", "-f", "-F", "json"], read_pbs),
}
_SACCT = ["sacct", "--allocations", "--noheader", "--parsable2", "--format=State,Timelimit,ExitCode", "--jobs"]
