"""What a task of RADICAL-Pilot runs in place of a launch command: ``python -m aaflow_radical.task RUN_FOLDER STAGE``.

It is a process of its own with one thread and the marks of a keeper, so that the group's keeper is a fork of it. On
the driver's machine it gives ranks the driver's environment, of which an agent has a part only, and no exact one.
RADICAL-Pilot carries an exit code back; the result, or the error, lies in the run folder.
"""

from __future__ import annotations

import json
import os
import sys

from aaflow import errors
from aaflow.launchorder import start_stage
from aaflow.runtime import records


def main(arguments: list[str]) -> int:
    """Start the group of a stage and wait for its end; 0 when it did its work."""
    run_folder, stage = arguments
    os.environ.update(records.read(environment_path(run_folder)) or {})
    try:
        record = {"result": json.loads(start_stage(run_folder, stage, fork=True))}
    except errors.AaflowError as error:
        record = {"error": type(error).__name__, "words": str(error), "fields": vars(error)}
    records.write(result_path(run_folder, stage), record)
    return 0 if "result" in record else 1


def environment_path(run_folder: str) -> str:
    """Where the environment of the driver lies, if a task runs on its machine."""
    return os.path.join(run_folder, "radical", "environment.json")


def result_path(run_folder: str, stage: str) -> str:
    """Where the task of a stage says how it ended."""
    return os.path.join(run_folder, "radical", "results", f"{stage}.json")


def read_result(run_folder: str, stage: str) -> str | None:
    """The result of a stage's group, as JSON; None where its task did not come to say.

    Raises:
        AaflowError: what the task failed with.
    """
    record = records.read(result_path(run_folder, stage))
    if record is None:
        return None
    if "result" in record:
        return json.dumps(record["result"])
    raise getattr(errors, record["error"])(record["words"], **record["fields"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
