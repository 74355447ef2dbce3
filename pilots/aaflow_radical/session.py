"""A session of RADICAL-Pilot and its pilot: ``python -m aaflow_radical.session FOLDER``.

Orders come as lines of JSON on stdin (``[RUN_FOLDER, STAGE]``), events go as lines to stdout (see
:data:`aaflow_radical.groups.Tell`); the end of stdin ends the session and the pilot. What can be done while the agent
comes up is left until it was asked for.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main(folder: str) -> None:
    """Hold a session until stdin ends.

    Args:
        folder: with ``pilot.json``, the values of a ``radical.pilot.PilotDescription``.
    """
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else is printed goes to the log

    def tell(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    try:
        import radical.pilot as rp

        session = rp.Session()
        with open(os.path.join(folder, "pilot.json"), encoding="utf-8") as file:
            described = rp.PilotDescription(json.load(file))
        pilot = rp.PilotManager(session).submit_pilots(described)
        tasks = rp.TaskManager(session)
        tasks.add_pilots(pilot)

        from aaflow_radical.groups import Groups

        groups = Groups(tasks, pilot, tell)
    except Exception as error:
        tell({"failed": f"{type(error).__name__}: {error}"})
        raise
    for line in sys.stdin:
        groups.submit(*json.loads(line))
    groups.close()
    session.close()


if __name__ == "__main__":
    main(sys.argv[1])
