"""The batch job that carries an engine, as a pilot on another node sees it."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping

from aaflow.errors import JobEnded
from aaflow.runtime import processes
from aaflow.runtime.keeping import DRIVER_GONE
from aaflow.runtime.records import engine_job, note_engine_job
from aaflow.scheduling.batch import ask

#: Seconds between two questions to a batch system.
JOB_SECONDS = 5.0
#: Seconds within which it says why a job ended.
WHY_SECONDS = 8.0


class EngineJob:
    """Looks after the job that is noted in a run folder, as soon as one is.

    Attributes:
        words: where it is, for a person; empty while nobody knows.
        running: whether it has nodes.
    """

    def __init__(self, run_folder: str) -> None:
        self._run_folder = run_folder
        self._asked = 0.0
        self.words = ""
        self.running = False

    def look(self, *, anew: bool = False) -> None:
        """Ask the batch system, every few seconds.

        Args:
            anew: ask it now: something has failed.

        Raises:
            JobEnded: the job is over; says why.
        """
        began = time.monotonic()
        noted = engine_job(self._run_folder) if anew or began - self._asked >= JOB_SECONDS else None
        if noted is None:
            return
        scheduler, job = noted
        self._asked = began
        found = ask(scheduler, job)
        while anew and found is not None and found.state == "ending" and time.monotonic() - began <= WHY_SECONDS:
            time.sleep(0.5)
            found = ask(scheduler, job) or found
        if found is None:
            return
        self.words = found.words
        self.running = found.state == "running"
        if found.over or (anew and found.state == "ending"):
            raise JobEnded(found.words, job=job, walltime=found.walltime)

    def ended(self) -> None:
        """Note that it is over: the engine has ended it."""
        if (noted := engine_job(self._run_folder)) is not None:
            note_engine_job(self._run_folder, *noted, over=True)


def told_to_job(marks: Mapping[str, str]) -> dict[str, str]:
    """The marks of an engine for its batch job: folders for temporary files are those of another node."""
    return {name: value for name, value in marks.items() if name not in ("TMPDIR", processes.NODE_TMPDIR)}


def end_without_driver(run_folder: str, signal: str = "TERM") -> str:
    """A line of a job's script that ends it, where its driver died while it waited; the job does not wait for it."""
    asks = shlex.join([sys.executable, "-m", "aaflow.runtime.keeper", run_folder, "-", "job"])
    return f"({asks}; [ $? -ne {DRIVER_GONE} ] || kill -{signal} $$) &"


def clean_at_end(run_folder: str) -> str:
    """Lines of a job's script that remove, when it ends, the shared memory and the files that its engine left there.

    The engine gets a ``TMPDIR`` of its own. Ranks don't (:func:`aaflow.runtime.group.run_group`): those on further
    nodes would have none. What cleans waits from the start for the end of a pipe, so that it outlives whoever is
    killed. It carries no mark by which others end an engine or a run, ignores what ends the job, and is in a session of
    its own; where a job's end is that of all its processes, the script waits for it, and cleans itself where it was
    killed.
    """
    cleans = shlex.join([sys.executable, "-m", "aaflow.runtime.keeper", run_folder, "-", "job-end"])
    return "\n".join(
        [
            f'export {processes.NODE_TMPDIR}="${{TMPDIR-}}" TMPDIR="$(mktemp -d)"',
            f"aaflow_clean() {{ unset {processes.ENGINE} {processes.RUN}; exec setsid {cleans}; }}",
            "exec 9> >(trap '' TERM; aaflow_clean)",
            "cleaner=$!",
            "trap 'trap \"\" TERM; exec 9>&-; wait $cleaner || (aaflow_clean </dev/null)' EXIT",
        ]
    )
