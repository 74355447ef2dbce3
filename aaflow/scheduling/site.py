"""Site: what a machine has and how jobs start there (frozen dataclasses; TOML is validated in sitefile.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class AcceleratorKind:
    """The accelerators of one node.

    Attributes:
        kind: ``cuda``, ``rocm`` or ``level-zero``.
        ids: device ids of a node.
        variable: environment variable that makes a device visible.
    """

    kind: str
    ids: tuple[str, ...]
    variable: str


@dataclass(frozen=True)
class Node:
    """One node of a site: all nodes of a site are alike.

    Attributes:
        cores: ids of the cores that ranks may use, in order.
        memory: bytes of main memory that ranks may use.
        accelerators: what every node has, or None.
    """

    cores: tuple[int, ...]
    memory: int
    accelerators: AcceleratorKind | None


@dataclass(frozen=True)
class Environment:
    """An interpreter of its own for the ranks of some stages.

    Attributes:
        python: its path, the same on every node.
        communicator: backend of its stages' collectives: ``mpi``, ``serial`` or ``cylon``.
        domains: domains whose stages run under it; empty for those that no other environment names, where the
            communicator is the site's.
    """

    python: str
    communicator: str
    domains: tuple[str, ...]


@dataclass(frozen=True)
class Site:
    """A machine, as its site file describes it.

    Attributes:
        name: the name of the site file.
        description: one line.
        nodes: number of nodes of one job.
        node: what each node has.
        oversubscribe: whether ranks may share cores (then they pin modulo the allowed cores).
        scheduler: ``local``, ``slurm`` or ``pbs``.
        launcher: ``mpiexec`` (MPICH's Hydra), ``openmpi``, ``intelmpi``, ``srun`` or ``pals``.
        launcher_options: further words for the launcher's command line.
        communicator: backend of collectives, where a stage's environment names no other: ``mpi``, ``serial`` or
            ``cylon``.
        pilot: name of the pilot used when none is asked for.
        provider: options of the scheduler: account, queue, qos, constraint, walltime, worker_init, scheduler_options.
        run_folder: parent of the run folders; ``~`` and environment variables are already expanded.
        interface: network interface by which the driver, the engine and the keepers of the nodes reach each other;
            ``lo`` on one machine.
        interconnect: network interface or fabric device of the nodes that edges and MPI use; where it is empty edges
            use ``interface``, and MPI what it finds best.
        encrypted_edges: whether edges between nodes are encrypted; False is for an interconnect that is private.
        environments: by name, the interpreters that stages may have instead of this program's.
    """

    name: str
    description: str
    nodes: int
    node: Node
    oversubscribe: bool
    scheduler: str
    launcher: str
    launcher_options: tuple[str, ...]
    communicator: str
    pilot: str
    provider: Mapping[str, Any] = field(default_factory=dict)
    run_folder: str = "~/.aaflow/runs"
    interface: str = "lo"
    interconnect: str = ""
    encrypted_edges: bool = True
    environments: Mapping[str, Environment] = field(default_factory=dict)

    def environment_of(self, domain: str) -> str | None:
        """Name of the environment in which stages of a domain run; None for this program's own."""
        general = None
        for name, environment in self.environments.items():
            if domain in environment.domains:
                return name
            if not environment.domains:
                general = name
        return general

    def communicator_of(self, domain: str) -> str:
        """Backend of the collectives of a domain's stages."""
        name = self.environment_of(domain)
        return self.communicator if name is None else self.environments[name].communicator
