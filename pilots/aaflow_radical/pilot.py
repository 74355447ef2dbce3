"""The RADICAL-Pilot pilot."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aaflow.errors import AaflowError, PilotError
from aaflow.runtime.cleaning import cancel_engine_job
from aaflow.runtime.lease import RunLease
from aaflow.scheduling.placement import Placement
from aaflow_radical.engine import start_engine
from aaflow_radical.job import SessionJob
from aaflow_radical.task import read_result

if TYPE_CHECKING:  # importing it makes a folder in the user's home
    import radical.pilot as rp

    from aaflow_radical.groups import Groups

#: States in which a pilot of RADICAL-Pilot has ended.
FINAL = ("DONE", "FAILED", "CANCELED")

#: Seconds within which a session, and an agent on this machine, has to be up.
START_SECONDS = 120.0
#: Seconds within which an agent has to be up once its batch job has nodes.
AGENT_SECONDS = 600.0
#: Seconds within which an agent that is up has to start a task. One with slots waits for no others to end, though it
#: passes the agent's queues behind those that a program submitted before.
TASK_SECONDS = 600.0
#: Seconds that a session has for its end; then it is killed, with all that it started on this node.
END_SECONDS = 30.0
#: Seconds within which the last words of a session are read.
LISTEN_SECONDS = 2.0
#: What a state of RADICAL-Pilot's pilot means to a person.
_WORDS = {
    "NEW": "RADICAL-Pilot starts its session",
    "PMGR_LAUNCHING_PENDING": "RADICAL-Pilot launches its pilot",
    "PMGR_LAUNCHING": "RADICAL-Pilot launches its pilot",
    "PMGR_ACTIVE_PENDING": "RADICAL-Pilot's pilot is submitted; its agent is not up yet",
    "PMGR_ACTIVE": "RADICAL-Pilot's agent is up",
}


class RadicalPilot:
    """Starts each task group as one task of RADICAL-Pilot, with a slot for each rank.

    By default the pilot makes a session of its own from the site and ends it after the run. Inside a program that has
    a session give all three; they are used and left as they are.

    Args:
        session: of the program.
        task_manager: of that session; the pilot has been added to it.
        pilot: of that session, on nodes of the site that the plan is placed on.

    Raises:
        PilotError: some of them are given, or they don't belong together.
    """

    name = "radical"

    def __init__(
        self,
        *,
        session: rp.Session | None = None,
        task_manager: rp.TaskManager | None = None,
        pilot: rp.Pilot | None = None,
    ) -> None:
        self._given: tuple[rp.TaskManager, rp.Pilot] | None = None
        if session is not None and task_manager is not None and pilot is not None:
            if not session.uid == task_manager.session.uid == pilot.session.uid:
                raise PilotError("RadicalPilot: session, task_manager and pilot are not of one session")
            if pilot.uid not in task_manager.list_pilots():
                raise PilotError(f"RadicalPilot: call task_manager.add_pilots() with {pilot.uid} first")
            self._given = task_manager, pilot
        elif (session, task_manager, pilot) != (None, None, None):
            raise PilotError("RadicalPilot takes session, task_manager and pilot of your program together, or none")
        self._engine: subprocess.Popen[str] | None = None
        self._listener: threading.Thread | None = None
        self._groups: Groups | None = None
        self._futures: dict[str, Future[str]] = {}
        self._waiting: dict[str, float] = {}
        self._run_folder = ""
        self._state = "NEW"
        self._failed = ""
        self._job: SessionJob | None = None
        self._began = self._active = 0.0
        self._running: float | None = None

    def start(self, placement: Placement, lease: RunLease) -> None:
        """See :class:`aaflow.pilot.Pilot`.

        Raises:
            PilotError: the pilot that was given has ended, or RADICAL-Pilot can't work in the run folder.
            SiteError: RADICAL-Pilot can't use this site.
        """
        self._run_folder, self._began = lease.run_folder, time.monotonic()
        if self._given is not None:
            task_manager, pilot = self._given
            if pilot.state in FINAL:
                raise PilotError(f"RADICAL-Pilot's pilot {pilot.uid} has ended ({pilot.state})")
            from aaflow_radical.groups import Groups

            self._groups = Groups(task_manager, pilot, self._take)
            return
        folder = Path(lease.run_folder, "radical")
        folder.mkdir(mode=0o700)
        scheduler, name = placement.site.scheduler, f"aaflow-{lease.run[-12:]}"
        if scheduler != "local":
            self._job = SessionJob(lease.run_folder, scheduler, name)
        marks = lease.keep_engine(nodes=placement.site.nodes)
        self._engine = start_engine(placement.site, folder, name, marks)
        self._listener = threading.Thread(target=self._listen, args=(self._engine,), name="aaflow-radical", daemon=True)
        self._listener.start()

    def submit(self, stage: str, run_folder: str) -> Future[str]:
        """See :class:`aaflow.pilot.Pilot`; RADICAL-Pilot gets the task when its pilot is active."""
        future = self._futures[stage] = Future()
        self._waiting[stage] = time.monotonic()
        if self._groups is not None:
            self._groups.submit(run_folder, stage)
        elif self._engine is not None and self._engine.stdin is not None:
            with contextlib.suppress(OSError):  # its end is noticed by check
                self._engine.stdin.write(json.dumps([run_folder, stage]) + "\n")
                self._engine.stdin.flush()
        return future

    def check(self, *, anew: bool = False) -> None:
        """See :class:`aaflow.pilot.Pilot`."""
        code = self._engine.poll() if self._engine is not None else None
        if code is not None and self._listener is not None:
            self._listener.join(LISTEN_SECONDS)  # it may have said why
        if self._failed:
            raise PilotError(f"RADICAL-Pilot can't start ({self._failed}{self._logs})")
        if self._job is not None:
            self._job.look(anew=anew or self._state in FINAL)
        if self._state in FINAL:
            raise PilotError(f"RADICAL-Pilot's pilot ended ({self._state}{self._logs})")
        if code is not None:
            raise PilotError(f"the process of RADICAL-Pilot's session died (exit code {code}{self._logs})")
        if self._state == "PMGR_ACTIVE":
            self._check_agent()
        elif self._job is not None and self._state != "NEW":
            self._check_job(self._job)
        elif self._engine is not None and time.monotonic() - self._began > START_SECONDS:
            raise PilotError(f"RADICAL-Pilot was not up within {START_SECONDS:g} s ({self._state}{self._logs})")

    def _check_job(self, job: SessionJob) -> None:
        """Raise where a batch job has had its nodes for long and no agent is up; in its queue it may wait."""
        if not job.running:
            self._running = None
            return
        self._running = self._running or time.monotonic()
        if time.monotonic() - self._running > AGENT_SECONDS:
            raise PilotError(
                f"RADICAL-Pilot's job has had its nodes for {AGENT_SECONDS:g} s and its agent is not up: do they reach "
                f"the login node by the site's `interface`, and does `worker_init` come to its end?{self._logs}"
            )

    def _check_agent(self) -> None:
        """Raise where the agent is up and does not start a task, as one that was given bad slots by others."""
        for stage, since in list(self._waiting.items()):
            if time.monotonic() - max(since, self._active) > TASK_SECONDS:
                raise PilotError(
                    f"RADICAL-Pilot's agent is up, and did not start the task of stage {stage!r} within "
                    f"{TASK_SECONDS:g} s{self._logs}"
                )

    @property
    def _logs(self) -> str:
        return "; logs: radical/ in the run folder" if self._engine is not None else ""

    def status(self) -> str:
        """See :class:`aaflow.pilot.Pilot`: how far the pilot is, or where its batch job."""
        if self._job is not None and self._job.words and self._state != "PMGR_ACTIVE":
            return self._job.words
        return _WORDS.get(self._state, "")

    def close(self) -> None:
        """See :class:`aaflow.pilot.Pilot`; what was given is left alone."""
        if self._groups is not None:
            self._groups.close()
        if self._engine is None:
            return
        assert self._engine.stdin is not None
        with contextlib.suppress(OSError):
            self._engine.stdin.close()
        try:
            ended = self._engine.wait(END_SECONDS) == 0
        except subprocess.TimeoutExpired:
            ended = False
            self._engine.kill()
            self._engine.wait()
        if self._job is not None and ended:
            self._job.ended()
        elif self._job is not None:
            self._job.find()
            cancel_engine_job(self._run_folder)

    def _listen(self, engine: subprocess.Popen[str]) -> None:
        assert engine.stdout is not None
        with engine.stdout as events:
            for line in events:
                self._take(json.loads(line))

    def _take(self, event: dict[str, Any]) -> None:
        """Take what a session tells."""
        if "failed" in event:
            self._failed = str(event["failed"])
        elif "pilot" in event:
            if event["pilot"] == "PMGR_ACTIVE":
                self._active = time.monotonic()  # before the state, which another thread looks at
            self._state = str(event["pilot"])
        elif "begun" in event:
            self._waiting.pop(event["begun"], None)
        elif "error" in event:
            self._futures[event["stage"]].set_exception(PilotError(f"stage {event['stage']!r}: {event['error']}"))
        else:
            self._end(str(event["stage"]), str(event["state"]), str(event["why"]))

    def _end(self, stage: str, state: str, why: str) -> None:
        future = self._futures[stage]
        self._waiting.pop(stage, None)
        try:
            result = read_result(self._run_folder, stage)
        except AaflowError as error:
            future.set_exception(error)
            return
        if result is not None:
            future.set_result(result)
            return
        if self._state in FINAL:
            return  # check says so
        words = f"RADICAL-Pilot ended its task without a result ({state})" + (f": {why}" if why else "")
        future.set_exception(PilotError(f"stage {stage!r}: {words}; run folder: {self._run_folder}"))
