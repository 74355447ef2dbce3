"""The batch job of a session, of which RADICAL-Pilot tells nothing but that it is over."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from aaflow.runtime.enginejob import JOB_SECONDS, EngineJob
from aaflow.runtime.records import engine_job, note_engine_job
from aaflow.scheduling.batch import find_slurm_job
from aaflow_radical.engine import JOB_FILE


class SessionJob(EngineJob):
    """Slurm finds it by its name; PBS's says itself which it is, once it runs.

    Args:
        run_folder: in which it is noted when it is known.
        scheduler: ``slurm`` or ``pbs``.
        name: of the job.
    """

    def __init__(self, run_folder: str, scheduler: str, name: str) -> None:
        super().__init__(run_folder)
        self._folder = run_folder
        self._scheduler = scheduler
        self._name = name
        self._searched = 0.0

    def look(self, *, anew: bool = False) -> None:
        """See :class:`aaflow.runtime.enginejob.EngineJob`."""
        if anew or time.monotonic() - self._searched >= JOB_SECONDS:
            self.find()
        super().look(anew=anew)

    def find(self) -> None:
        """Note the job, where it is not known yet and can be found now."""
        if engine_job(self._folder) is not None:
            return
        self._searched = time.monotonic()
        job = find_slurm_job(self._name) if self._scheduler == "slurm" else None
        with contextlib.suppress(FileNotFoundError):
            job = job or Path(self._folder, "radical", JOB_FILE).read_text(encoding="ascii").strip()
        if job:
            note_engine_job(self._folder, self._scheduler, job)
