"""A stage that runs under another interpreter than the program which started the run."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import aaflow
from aaflow import Domain
from aaflow.scheduling.site import Environment
from aaflow.scheduling.sitefile import load_site

pytestmark = pytest.mark.serial

SEEN = pa.schema([("mark", pa.string()), ("path", pa.string())])
MODULE = """
import os
import aaflow
import pyarrow as pa

def look(batch):
    mark, path = os.environ.get("MARK", "none"), aaflow.__file__
    return pa.RecordBatch.from_pydict({"mark": [mark] * len(batch), "path": [path] * len(batch)})
"""


def test_a_stage_runs_under_the_interpreter_that_its_environment_names(
    workspace: Any, user_module: Callable[[str], str], tmp_path: Path
) -> None:
    """Its ranks find this aaflow and the user's operators, and nothing else that this interpreter has installed."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nMARK=own exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    own = {"own": Environment(str(python), "mpi", (Domain.AGGREGATION.value,))}
    site = dataclasses.replace(load_site("local"), environments=own)
    chunks = aaflow.Workflow(metadata={"year": "int64"}).load(workspace.docs).transform(size=60, overlap=10)
    function = f"{user_module(MODULE)}:look"
    looked = chunks.apply(function, output=SEEN, domain=Domain.AGGREGATION, name="there")
    here = chunks.apply(function, output=SEEN, name="here")
    assert here.workflow is looked.workflow
    plan = aaflow.compile(here.workflow, site=site, ranks=2)
    assert {stage.name: stage.environment for stage in plan.stages}["there"] == "own"
    result = aaflow.run(aaflow.place(plan, site), "local", run_folder=workspace.folder / "runs")
    output = result.output()
    assert set(output["mark"].to_pylist()) == {"own", "none"}
    paths = set(output["path"].to_pylist())
    assert {Path(path).resolve() for path in paths} == {Path(aaflow.__file__).resolve()}
