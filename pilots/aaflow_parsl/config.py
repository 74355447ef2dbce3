"""From a site to a ``parsl.Config``: one HighThroughputExecutor on one block whose lead node starts the groups."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.executors.high_throughput.executor import DEFAULT_INTERCHANGE_LAUNCH_CMD, DEFAULT_LAUNCH_CMD
from parsl.launchers import SimpleLauncher
from parsl.providers import LocalProvider, PBSProProvider, SlurmProvider
from parsl.providers.base import ExecutionProvider

from aaflow.errors import SiteError
from aaflow.runtime.enginejob import end_without_driver
from aaflow.runtime.records import note_engine_job
from aaflow.scheduling.interface import interface_address
from aaflow.scheduling.site import Site

LABEL = "aaflow"


def engine_config(site: Site, *, groups: int, folder: Path, environment: Mapping[str, str]) -> Config:
    """The configuration of an engine for one run.

    Args:
        site: where.
        groups: task groups that run at once: so many workers.
        folder: for Parsl's own files, in the run folder.
        environment: variables that the engine's processes carry.

    Raises:
        SiteError: the site's scheduler or interface is unknown.
    """
    # Scripts of Parsl lie beside the interpreter, which need not be on PATH.
    scripts = Path(sys.executable).parent
    marked = ["env", *(f"{name}={value}" for name, value in environment.items())]
    executor = HighThroughputExecutor(
        label=LABEL,
        address=interface_address(site.interface),
        encrypted=True,
        provider=_provider(site, environment, str(folder.parent)),
        max_workers_per_node=groups,
        # A worker only starts a group and waits for it; the group's ranks pin themselves to cores of their own.
        cores_per_worker=1e-6,
        cpu_affinity="none",
        heartbeat_period=2,
        heartbeat_threshold=10,
        worker_logdir_root=str(folder),
        # In a session of its own: Ctrl-C is for the driver, which ends its engine.
        interchange_launch_cmd=[*marked, "setsid", *_beside(scripts, DEFAULT_INTERCHANGE_LAUNCH_CMD)],
        launch_cmd=" ".join(_beside(scripts, DEFAULT_LAUNCH_CMD.split())),
    )
    return Config(
        executors=[executor],
        run_dir=str(folder),
        strategy="none",
        # Parsl starts its block at the first tick of this clock; 5 s, its default, is how long a first task waits.
        strategy_period=0.1,
        retries=0,
        usage_tracking=0,
        initialize_logging=True,
    )


def _beside(scripts: Path, command: list[str] | tuple[str, ...]) -> list[str]:
    name, *rest = command
    return [str(scripts / name) if (scripts / name).exists() else name, *rest]


#: What a site calls an option of its scheduler, and what Parsl's provider calls it.
_SLURM = {"account": "account", "queue": "partition", "qos": "qos", "constraint": "constraint", "walltime": "walltime"}
_PBS = {"account": "account", "queue": "queue", "walltime": "walltime", "select_options": "select_options"}
_ALSO = {"scheduler_options": "scheduler_options"}


class _Noted:
    """Notes its job in the run folder: whoever comes after a driver that was killed finds it and cancels it."""

    scheduler: str
    run_folder: str

    def submit(self, command: str, tasks_per_node: int, job_name: str = "aaflow") -> str:
        """See Parsl."""
        job = str(super().submit(command, tasks_per_node, job_name))  # type: ignore[misc]
        note_engine_job(self.run_folder, self.scheduler, job)
        return job


class NotedSlurm(_Noted, SlurmProvider):
    """Slurm's provider."""

    scheduler = "slurm"


class NotedPBS(_Noted, PBSProProvider):
    """PBS's provider."""

    scheduler = "pbs"


def _provider(site: Site, environment: Mapping[str, str], run_folder: str) -> ExecutionProvider:
    # A folder for temporary files is one of this node, and a batch job has its own.
    told = {name: value for name, value in environment.items() if site.scheduler == "local" or name != "TMPDIR"}
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in told.items())
    init = str(site.provider.get("worker_init", ""))
    if site.scheduler != "local":
        init = f"{init}\n{end_without_driver(run_folder)}\n"
    common: dict[str, Any] = {
        "worker_init": exports + init,
        "launcher": SimpleLauncher(),
        "init_blocks": 1,
        "min_blocks": 1,
        "max_blocks": 1,
    }
    if site.scheduler == "local":
        return cast("ExecutionProvider", LocalProvider(**common))
    if site.scheduler == "slurm":
        given = _renamed(site.provider, {**_SLURM, **_ALSO})
        slurm = NotedSlurm(nodes_per_block=site.nodes, exclusive=True, **common, **given)
        slurm.run_folder = run_folder
        return cast("ExecutionProvider", slurm)
    if site.scheduler == "pbs":
        given = _renamed(site.provider, {**_PBS, **_ALSO})
        cores = max(site.node.cores) + 1
        pbs = NotedPBS(nodes_per_block=site.nodes, cpus_per_node=cores, **common, **given)
        pbs.run_folder = run_folder
        return cast("ExecutionProvider", pbs)
    raise SiteError(f"site {site.name!r}: pilot 'parsl' has no provider for scheduler {site.scheduler!r}")


def _renamed(options: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names[name]: value for name, value in options.items() if name in names and value not in (None, "")}
