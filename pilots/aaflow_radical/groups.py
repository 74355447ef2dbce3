"""Task groups as tasks of one pilot of RADICAL-Pilot, in the process that has the session."""

from __future__ import annotations

import contextlib
import json
import queue
import secrets
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import radical.pilot as rp

from aaflow.errors import AaflowError, PilotError
from aaflow.runtime import records
from aaflow.scheduling.placement import Placement
from aaflow_radical.tasks import slots_of, task_description

#: What is told: ``{"pilot": state}``, ``{"begun": stage}``, ``{"stage": name, "state": a final one, "why": words}``,
#: ``{"stage": name, "error": words}`` for a task that was not submitted.
Tell = Callable[[dict[str, Any]], None]


class Groups:
    """Submits groups once the pilot is there and tells how they ended.

    RADICAL-Pilot calls back in threads of its own; all work is done in one other, so that they never wait for it.

    Args:
        task_manager: that submits.
        pilot: that runs them.
        tell: called in that one thread.
    """

    def __init__(self, task_manager: rp.TaskManager, pilot: rp.Pilot, tell: Tell) -> None:
        self._task_manager = task_manager
        self._pilot = pilot
        self._tell = tell
        self._waiting: list[tuple[str, str]] = []
        self._running: dict[str, tuple[str, list[rp.Slot]]] = {}
        self._prefix = f"aaflow.{secrets.token_hex(4)}"
        self._count = 0
        self._said = ""
        self._queue: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="aaflow-radical", daemon=True)
        # RADICAL-Pilot knows a callback by its id, and a bound method is another one each time it is named.
        self._callbacks = self._on_pilot, self._on_task
        pilot.register_callback(self._callbacks[0])
        task_manager.register_callback(self._callbacks[1])
        self._thread.start()
        self._queue.put((self._follow, ()))

    def submit(self, run_folder: str, stage: str) -> None:
        """Submit the group of a stage, when the pilot is active."""
        self._queue.put((self._submit, (run_folder, stage)))

    def close(self) -> None:
        """Cancel what is not done and leave pilot and task manager as they were."""
        self._queue.put(None)
        self._thread.join()
        with contextlib.suppress(ValueError):  # one that is closed has forgotten its callbacks
            self._task_manager.unregister_callback(self._callbacks[1])
        with contextlib.suppress(ValueError):
            self._pilot.unregister_callback(self._callbacks[0])
        if self._running:
            self._task_manager.cancel_tasks(list(self._running))
        for uid in list(self._running):
            self._free(uid)

    def _on_pilot(self, *_: Any) -> bool:
        self._queue.put((self._follow, ()))
        return True

    def _on_task(self, task: rp.Task, state: str, *_: Any) -> bool:
        if state == rp.AGENT_EXECUTING:
            self._queue.put((self._begin, (task.uid,)))
        elif state in rp.FINAL:
            self._queue.put((self._end, (task.uid, state, _words(task))))
        return True

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            function, arguments = call
            function(*arguments)

    def _follow(self) -> None:
        """Tell a new state of the pilot; submit what waited for it."""
        state = str(self._pilot.state)
        if state != self._said:
            self._said = state
            self._tell({"pilot": state})
        if state == rp.PMGR_ACTIVE:
            waiting, self._waiting = self._waiting, []
            for order in waiting:
                self._submit(*order)

    def _submit(self, run_folder: str, stage: str) -> None:
        if self._pilot.state != rp.PMGR_ACTIVE:
            self._waiting.append((run_folder, stage))
            return
        self._count += 1
        uid = f"{self._prefix}.{self._count:04d}"
        try:
            self._task_manager.submit_tasks(self._occupy(uid, run_folder, stage))
        except Exception as error:
            self._free(uid)
            known = isinstance(error, AaflowError)
            words = str(error) if known else f"RADICAL-Pilot can't take it: {type(error).__name__}: {error}"
            self._tell({"stage": stage, "error": words})

    def _occupy(self, uid: str, run_folder: str, stage: str) -> rp.TaskDescription:
        """Take the slots of a stage; the task that runs on them."""
        placement = Placement.load(Path(run_folder))
        order = json.loads(Path(run_folder, "launch", f"{stage}.json").read_text(encoding="utf-8"))
        driver = records.read(records.driver_path(run_folder))
        if driver is None:
            raise PilotError(f"the run in {run_folder} has no driver")
        nodelist = self._pilot.nodelist
        if nodelist is None:
            raise PilotError(f"RADICAL-Pilot's pilot {self._pilot.uid} does not say which nodes it has")
        slots = slots_of(placement, stage, nodelist.nodes)
        for slot in slots:
            nodelist.nodes[slot.node_index].allocate_slot(slot, _check=False)
        self._running[uid] = (stage, slots)
        return task_description(
            stage,
            slots,
            uid=uid,
            pilot=self._pilot.uid,
            run_folder=run_folder,
            run=str(driver["run"]),
            python=sys.executable,
            rank_python=order["python"] or sys.executable,
            environment=order["environment"],
        )

    def _free(self, uid: str) -> str | None:
        """Give the slots of a task back; its stage, or None where there is no such task of ours."""
        stage, slots = self._running.pop(uid, (None, []))
        if slots:
            self._pilot.nodelist.release_slots(slots)
        return stage

    def _begin(self, uid: str) -> None:
        if uid in self._running:
            self._tell({"begun": self._running[uid][0]})

    def _end(self, uid: str, state: str, why: str) -> None:
        if uid in self._running:
            self._follow()  # a pilot that ended takes its tasks along, and they are told first
            self._tell({"stage": self._free(uid), "state": state, "why": why})


def _words(task: rp.Task) -> str:
    """What RADICAL-Pilot says of the end of a task, and where the task said something."""
    said = " ".join(str(word) for word in (task.exception, task.exception_detail) if word)
    sandbox = urlsplit(str(task.task_sandbox or "")).path
    return f"{said}; its output: {sandbox.rstrip('/')}/{task.uid}.launch.out" if sandbox else said
