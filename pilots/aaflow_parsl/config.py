"""From a site to a ``parsl.Config``: one HighThroughputExecutor on one block whose lead node starts the groups."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.executors.high_throughput.executor import DEFAULT_INTERCHANGE_LAUNCH_CMD, DEFAULT_LAUNCH_CMD
from parsl.launchers import SimpleLauncher
from parsl.providers import LocalProvider, PBSProProvider, SlurmProvider
from parsl.providers.base import ExecutionProvider

from aaflow.errors import SiteError
from aaflow.runtime.enginejob import clean_at_end, end_without_driver, told_to_job
from aaflow.runtime.records import note_engine_job
from aaflow.scheduling.batch import pbs_place
from aaflow.scheduling.interface import interface_address
from aaflow.scheduling.site import Site
from aaflow.scheduling.sitefile import load_site

LABEL = "aaflow"


def configure(site: str | Site, folder: str | Path, *, workers: int) -> Config:
    """The configuration of a site for a Parsl program of your own, which loads it and gives aaflow the same site.

    It has one executor, ``aaflow``, with one block of all nodes of the site, whose workers run on its first node; the
    launchers of task groups spread their ranks.

    Args:
        site: a site or its name.
        folder: for Parsl's own files; on a cluster one that all nodes share.
        workers: apps that run at once; a task group of aaflow takes one, too.

    Raises:
        SiteError: the site is unknown, or its scheduler or interface is.
    """
    there = site if isinstance(site, Site) else load_site(site)
    provider = _provider(there, str(there.provider.get("worker_init", "")), SlurmProvider, PBSProProvider)
    return _config(there, workers, Path(folder).absolute(), provider, [])


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
    marked = ["env", *(f"{name}={value}" for name, value in environment.items())]
    told = told_to_job(environment) if site.scheduler != "local" else environment
    init = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in told.items())
    init += str(site.provider.get("worker_init", ""))
    if site.scheduler != "local":
        init = "\n".join([init, clean_at_end(str(folder.parent)), end_without_driver(str(folder.parent)), ""])
    provider = _provider(site, init, NotedSlurm, NotedPBS)
    if isinstance(provider, _Noted):
        provider.run_folder = str(folder.parent)
    # In a session of its own: Ctrl-C is for the driver, which ends its engine.
    return _config(site, groups, folder, provider, [*marked, "setsid"])


def _config(
    site: Site, workers: int, folder: Path, provider: ExecutionProvider, interchange_prefix: Sequence[str]
) -> Config:
    # Scripts of Parsl lie beside the interpreter, which need not be on PATH.
    scripts = Path(sys.executable).parent
    executor = HighThroughputExecutor(
        label=LABEL,
        address=interface_address(site.interface),
        encrypted=True,
        provider=provider,
        max_workers_per_node=workers,
        # A worker only starts a group and waits for it; the group's ranks pin themselves to cores of their own.
        cores_per_worker=1e-6,
        cpu_affinity="none",
        heartbeat_period=2,
        heartbeat_threshold=10,
        worker_logdir_root=str(folder),
        interchange_launch_cmd=[*interchange_prefix, *_beside(scripts, DEFAULT_INTERCHANGE_LAUNCH_CMD)],
        launch_cmd=_pool_command(),
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


def _pool_command() -> str:
    """Parsl's command for a pool of workers, which :mod:`aaflow_parsl.pool` starts and watches."""
    _, *options = DEFAULT_LAUNCH_CMD.split(" ")
    return " ".join([shlex.quote(sys.executable), "-m", "aaflow_parsl.pool", *options])


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


class WatchedLocal(LocalProvider):
    """The provider for one machine; Parsl asks it every second whether the pool lives, and by default every five."""

    @property
    def status_polling_interval(self) -> int:
        """See Parsl; seconds."""
        return 1


class NotedSlurm(_Noted, SlurmProvider):
    """Slurm's provider."""

    scheduler = "slurm"


class NotedPBS(_Noted, PBSProProvider):
    """PBS's provider."""

    scheduler = "pbs"


def _provider(
    site: Site, init: str, slurm: type[SlurmProvider], pbs: type[PBSProProvider]
) -> LocalProvider | SlurmProvider | PBSProProvider:
    common: dict[str, Any] = {
        "worker_init": init,
        "launcher": SimpleLauncher(),
        "init_blocks": 1,
        "min_blocks": 1,
        "max_blocks": 1,
    }
    if site.scheduler == "local":
        return WatchedLocal(**common)
    if site.scheduler == "slurm":
        given = _renamed(site.provider, {**_SLURM, **_ALSO})
        return slurm(nodes_per_block=site.nodes, exclusive=True, **common, **given)
    if site.scheduler == "pbs":
        given = _renamed(site.provider, {**_PBS, **_ALSO})
        if place := pbs_place(site):
            given["scheduler_options"] = "\n".join([f"#PBS -l {place}", given.get("scheduler_options", "")]).rstrip()
        return pbs(nodes_per_block=site.nodes, cpus_per_node=max(site.node.cores) + 1, **common, **given)
    raise SiteError(f"site {site.name!r}: pilot 'parsl' has no provider for scheduler {site.scheduler!r}")


def _renamed(options: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names[name]: value for name, value in options.items() if name in names and value not in (None, "")}
