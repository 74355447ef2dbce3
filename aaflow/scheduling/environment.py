"""Interpreters that run ranks: what they must be able to import, and where another one finds this aaflow."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from aaflow.compiler.plan import Plan
from aaflow.errors import DependencyError
from aaflow.scheduling.site import Site

#: The package that each backend of collectives needs, and where a person gets it.
BACKENDS = {
    "serial": ("", ""),
    "mpi": ("mpi4py", "pip install mpi4py"),
    "cylon": ("pycylon", "use the site's build of Cylon, or name an interpreter with one: [environments.cylon]"),
}
#: Seconds that an interpreter may take to import what a rank needs; a cold file system is slow.
IMPORT_SECONDS = 120

# What every rank imports is what a stage imports: there is no second list of packages that could differ from it.
_RANK = """
import sys
if sys.version_info < (3, 10):
    sys.exit(f"it is Python {sys.version.split()[0]}, and aaflow needs 3.10 or newer")
import pyarrow
if int(pyarrow.__version__.split(".")[0]) < 9:
    sys.exit(f"it has pyarrow {pyarrow.__version__}, and aaflow needs 9 or newer")
import aaflow.runtime.chain, aaflow.runtime.lease, aaflow.runtime.stage
"""


def link_aaflow(folder: Path) -> Path:
    """Make a folder from which another interpreter imports this aaflow, and nothing else of this environment."""
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / "aaflow").symlink_to(Path(__file__).parents[1], target_is_directory=True)
    return folder


def require_backends(plan: Plan, site: Site) -> None:
    """Check that the ranks of every stage can import what they need, in the interpreter that they will run.

    Raises:
        DependencyError: they can't; names the stage, the interpreter and the reason.
    """
    for stage in plan.stages:
        problem = None
        if stage.environment is not None:
            problem = environment_problem(site.environments[stage.environment].python, stage.communicator)
        elif stage.communicator == "cylon":
            problem = backend_problem("cylon")
        if problem is not None:
            where = f"environments.{stage.environment}" if stage.environment else "communicator"
            raise DependencyError(f"stage {stage.name!r} can't run on site {site.name!r} ({where}): {problem}")


@functools.cache
def environment_problem(python: str, backend: str) -> str | None:
    """Why an interpreter can't run ranks with this backend; None where it can."""
    if not os.access(python, os.X_OK):
        return f"there is no interpreter {python}"
    with tempfile.TemporaryDirectory(prefix="aaflow-") as folder:
        return _failure(python, _RANK + _import_of(backend), link_aaflow(Path(folder)))


@functools.cache
def backend_problem(backend: str) -> str | None:
    """Why ranks of this program's own interpreter can't use a backend; None where they can."""
    return _failure(sys.executable, _import_of(backend))


def _import_of(backend: str) -> str:
    module, _ = BACKENDS[backend]
    # "import pycylon" imports mpi4py.MPI, which would start MPI: not wanted outside of a job.
    return f"\nimport mpi4py\nmpi4py.rc.initialize = mpi4py.rc.finalize = False\nimport {module}\n" if module else ""


def _failure(python: str, code: str, folder: Path | None = None) -> str | None:
    environment = {name: value for name, value in os.environ.items() if folder is None or name != "PYTHONPATH"}
    if folder is not None:
        environment["PYTHONPATH"] = str(folder)
    try:
        done = subprocess.run(
            [python, "-c", code], env=environment, capture_output=True, text=True, errors="replace",
            timeout=IMPORT_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{python}: {error}"
    if not done.returncode:
        return None
    last = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
    return f"{python}: {last}"
