"""What a batch system says of the job that carries an engine: Parsl looks once a minute and forgets why a job ended."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass

#: Seconds that a batch system may take to answer.
ANSWER_SECONDS = 20.0


@dataclass(frozen=True)
class Job:
    """A batch job.

    Attributes:
        id: what the batch system calls it.
        state: ``waiting``, ``running``, ``ending`` (it is over; why is told in a moment) or ``ended``.
        words: a sentence for a person, without its full stop.
        walltime: whether it ended because its walltime was over.
    """

    id: str
    state: str
    words: str
    walltime: bool = False


def ask(scheduler: str, job: str) -> Job | None:
    """What ``slurm`` or ``pbs`` says of a job now; None where it says nothing."""
    command, read = _SCHEDULERS[scheduler]
    try:
        done = subprocess.run([*command, job], capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return read(job, done.stdout) if done.returncode == 0 else None


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
        return Job(job, "ending", f"{name} was ended")
    if state == "RUNNING":
        return Job(job, "running", f"{name} runs on {fields.get('NodeList', '?')}")
    how = {
        "TIMEOUT": f"reached its walltime of {fields.get('TimeLimit', '?')}",
        "DEADLINE": "reached its deadline",
        "CANCELLED": "was cancelled",
        "PREEMPTED": "was preempted",
        "NODE_FAIL": "lost a node",
        "BOOT_FAIL": "could not boot its nodes",
        "OUT_OF_MEMORY": "ran out of memory",
    }.get(state, f"ended ({state}, exit code {fields.get('ExitCode', '?')})")
    return Job(job, "ended", f"{name} {how}", walltime=state == "TIMEOUT")


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
    if "walltime" in comment.lower():
        limit = fields.get("Resource_List", {}).get("walltime", "?")
        return Job(job, "ended", f"{name} reached its walltime of {limit}", walltime=True)
    code = fields.get("Exit_status", "?")
    return Job(job, "ended", f"{name} ended with exit code {code}" + (f" ({comment})" if comment else ""))


_SCHEDULERS: Mapping[str, tuple[list[str], Callable[[str, str], Job | None]]] = {
    "slurm": (["scontrol", "show", "job", "--oneliner"], read_slurm),
    "pbs": (["qstat", "-x", "-f", "-F", "json"], read_pbs),
}
