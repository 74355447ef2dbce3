"""What a task of RADICAL-Pilot runs in place of a launch command: ``python -m aaflow_radical.task RUN_FOLDER STAGE``.

It is a process of its own with one thread and the marks of a keeper, so that the group's keeper is a fork of it. On
the driver's machine it gives ranks the driver's environment, of which an agent has a part only, and no exact one.
RADICAL-Pilot carries an exit code back; the result, or the error, lies in the run folder.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping

from aaflow import errors
from aaflow.launchorder import start_stage
from aaflow.runtime import processes, records

#: Name of the file with the environment of the driver.
ENVIRONMENT = "environment.json"
#: What a task has of its own.
_MARKS = (processes.ENGINE, *processes.GROUP_MARKS)


def main(arguments: list[str]) -> int:
    """Start the group of a stage and wait for its end; 0 when it did its work."""
    run_folder, stage = arguments
    take_environment(run_folder)
    try:
        record = {"result": json.loads(start_stage(run_folder, stage, fork=True))}
    except errors.AaflowError as error:
        record = {"error": type(error).__name__, "words": str(error), "fields": vars(error)}
    records.write(result_path(run_folder, stage), record)
    return 0 if "result" in record else 1


def write_environment(temporary: str, environment: Mapping[str, str]) -> None:
    """Put by, in the engine's folder for temporary files, what tasks on this machine take for their own.

    It may hold secrets: that folder goes with the engine, however that ends.
    """
    own = {name: value for name, value in environment.items() if name and name not in _MARKS}
    records.write(os.path.join(temporary, ENVIRONMENT), own)


def take_environment(run_folder: str) -> None:
    """Have the driver's environment, and nothing else but marks, where the driver put it by on this machine."""
    engine = records.read(records.engine_path(run_folder))
    if engine is not None and (given := records.read(os.path.join(engine["temporary"], ENVIRONMENT))):
        for name in os.environ.keys() - given.keys() - set(_MARKS):
            del os.environ[name]
        os.environ.update(given)


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
