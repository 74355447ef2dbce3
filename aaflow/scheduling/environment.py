"""Interpreters that run ranks: what they must be able to import, and where another one finds this aaflow."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from aaflow.compiler.plan import Plan
from aaflow.errors import DependencyError
from aaflow.scheduling.site import Site

#: What each backend of collectives needs, and where a person gets it.
BACKENDS = {
    "serial": ("", ""),
    "mpi": ("mpi4py and an MPI library", "pip install 'aaflow[mpich]', or load the site's MPI and pip install mpi4py"),
    "cylon": ("pycylon", "use the site's build of Cylon, or name an interpreter with one: [environments.cylon]"),
}
# What a rank imports for each backend (aaflow/dataplane/mpi.py and cylon.py). It is imported by an interpreter of its
# own, since it changes the process (the library is loaded), and without MPI being started, which needs a job.
_IMPORTS = {
    "serial": "",
    "mpi": "from mpi4py import MPI",
    "cylon": "from mpi4py import MPI\nimport pycylon.data.table, pycylon.frame, pycylon.net",
}
_NO_START = "\nimport mpi4py\nmpi4py.rc.initialize = mpi4py.rc.finalize = False\n"
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
    library = not job_loads_modules(site)
    for stage in plan.stages:
        if stage.environment is not None:
            python = site.environments[stage.environment].python
            problem = environment_problem(python, stage.communicator, library=library)
        else:
            problem = backend_problem(stage.communicator, library=library)
        if problem is not None:
            where = f"environments.{stage.environment}" if stage.environment else "communicator"
            raise DependencyError(f"stage {stage.name!r} can't run on site {site.name!r} ({where}): {problem}")


def job_loads_modules(site: Site) -> bool:
    """Whether the MPI library may be one that only the batch job loads."""
    return bool(site.provider.get("worker_init"))


def environment_problem(python: str, backend: str, *, library: bool = True) -> str | None:
    """Why an interpreter can't run ranks with this backend; None where it can.

    Args:
        python: its path.
        backend: of the ranks' collectives.
        library: whether the MPI library has to be here, too.
    """
    if not os.access(python, os.X_OK):
        return f"there is no interpreter {python}"
    return _failure(python, _RANK + _import_of(backend, library), alone=True)


def backend_problem(backend: str, *, library: bool = True) -> str | None:
    """Why ranks of this program's own interpreter can't use a backend; see :func:`environment_problem`."""
    code = _import_of(backend, library)
    return _failure(sys.executable, code, alone=False) if code else None


def _import_of(backend: str, library: bool) -> str:
    if not _IMPORTS[backend]:
        return ""
    return _NO_START + (_IMPORTS[backend] if library or backend == "cylon" else "")


@functools.cache
def _failure(python: str, code: str, *, alone: bool) -> str | None:
    """Why an interpreter can't run this code; ``alone``: with this aaflow, and nothing else from here."""
    if not alone:
        return _outcome(python, code, dict(os.environ))
    with tempfile.TemporaryDirectory(prefix="aaflow-") as folder:
        return _outcome(python, code, {**os.environ, "PYTHONPATH": str(link_aaflow(Path(folder)))})


def _outcome(python: str, code: str, environment: Mapping[str, str]) -> str | None:
    try:
        done = subprocess.run(
            [python, "-c", code], env=environment, capture_output=True, text=True, errors="replace",
            timeout=IMPORT_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{python}: {error}"
    if not done.returncode:
        return None
    return f"{python}: {_reason(done.stderr) or f'it ended with code {done.returncode}'}"


def _reason(printed: str) -> str:
    """What was wrong, of what an interpreter printed: its exception without the traceback, or else its last line."""
    lines = printed.strip().splitlines()
    begins = [at for at, line in enumerate(lines) if line.startswith("Traceback")]
    said = [at for at in range(begins[-1] + 1, len(lines)) if not lines[at].startswith(" ")] if begins else []
    return "; ".join(line.strip() for line in (lines[said[0] :] if said else lines[-1:]))
