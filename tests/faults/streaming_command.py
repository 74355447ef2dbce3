"""``aaflow run`` of an unfused workflow, with what the command has no option for.

Ranks differ by stage (``FAULTS_RANKS``, JSON), and a small corpus has many tranches, so that units are committed all
the way through the run.
"""

from __future__ import annotations

import json
import os
from typing import Any
from unittest import mock

from aaflow.cli import main, workflowfile
from aaflow.driver import compile
from aaflow.workflow import Workflow

#: Bytes of a tranche.
TRANCHE_BYTES = 8000
small_tranches = mock.patch("aaflow.compiler.ingest.TRANCHE_BYTES", TRANCHE_BYTES)


def compile_unfused(workflow: Workflow, **options: Any) -> Any:
    options |= {"ranks": json.loads(os.environ["FAULTS_RANKS"]), "fuse": False}
    return compile(workflow, **options)


if __name__ == "__main__":
    small_tranches.start()
    mock.patch.object(workflowfile, "compile", compile_unfused).start()
    main.main()
