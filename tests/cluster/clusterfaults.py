"""Random faults of streaming runs on the virtual cluster, started on its login node."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import streaming_command
from ingestions import command_line
from kills import PACED, PATIENCE, Kills, Outcome, Streaming, Victim
from virtualcluster import VirtualCluster, wait_for

from aaflow.runtime import processes, sharedfiles
from aaflow.runtime.processes import Process

RANKS = {"load": 2, "transform": 1, "pace": 1, "embed": 2, "upsert": 4}
NODES = 2
#: Seconds after which a person cancels a job that waits though the nodes were free; Slurm starts it within three.
PENDING_SECONDS = 8.0


@dataclass
class ClusterStreaming(Streaming):
    """A streaming ingestion from the login node of a cluster."""

    cluster: VirtualCluster | None = None

    def command(self, pilot: str) -> list[str]:
        """See :class:`Streaming`."""
        assert self.cluster is not None
        python, program, run, workflow, *_ = super().command(pilot)
        site = self.cluster.site_file(self.folder / "virtual.toml", self.folder / "runs", interconnect='"hsn0"')
        return self.cluster.on("login", [python, program, run, workflow, "--site", str(site), "--json"], self.folder)

    def begin(self, pilot: str, ranks: Mapping[str, int] | None = None, **environment: str) -> subprocess.Popen[str]:
        """See :class:`Streaming`."""
        assert self.cluster is not None
        return super().begin(pilot, ranks or RANKS, **self.cluster.environment, **environment)


class ClusterFaults(Kills):
    """Faults on a cluster that is new for each."""

    pilots = ("parsl",)
    #: A silent node is given up after 6 s, and Slurm takes its time to end a job.
    budget = 30.0

    _cluster: VirtualCluster
    #: When a person cancelled a job that waited for a lost node.
    _cancelled = 0.0

    @contextlib.contextmanager
    def _copy(self, name: str) -> Iterator[Streaming]:
        with VirtualCluster(NODES) as self._cluster, super()._copy(name) as made:
            yield made

    def _made(self, folder: Path, docs: Path) -> Streaming:
        return ClusterStreaming(folder, docs, PACED, cluster=self._cluster)

    def _victims(
        self, ingestion: Streaming, command: subprocess.Popen[str], alive: Sequence[Process]
    ) -> Mapping[str, Sequence[Victim]]:
        roles = dict(super()._victims(ingestion, command, [each for each in alive if not _only_enters(each)]))
        drivers = [each for each in alive if _is_driver(each)]
        roles["driver"] = [Victim("", functools.partial(processes.kill, driver)) for driver in drivers]
        cluster, nodes = self._cluster, self._cluster.nodes
        roles["node"] = [Victim("", functools.partial(cluster.lose, node)) for node in nodes]
        roles["job"] = [Victim("", functools.partial(cluster.run, ["scancel", "--user=root"]))]
        hide = ["mount", "-t", "tmpfs", "none", str(ingestion.folder)]
        roles["shared folder"] = [Victim("", functools.partial(cluster.run, hide, node)) for node in nodes]
        return {role: victims for role, victims in roles.items() if victims}

    def _goes_on(self, outcome: Outcome) -> bool:
        return outcome.role not in ("node", "shared folder") and super()._goes_on(outcome)

    def _watch_end(
        self,
        ingestion: Streaming,
        command: subprocess.Popen[str],
        outcome: Outcome,
        shared: set[sharedfiles.SharedFile],
    ) -> list[str]:
        if outcome.role == "node":
            threading.Thread(target=self._cancel_what_waits_for_it, args=(command,), daemon=True).start()
        problems = super()._watch_end(ingestion, command, outcome, shared)
        # What a lost node had in its /tmp, which is that of all nodes here, is out of reach.
        return [problem for problem in problems if outcome.role != "node" or str(ingestion.temporary) not in problem]

    def _cancel_what_waits_for_it(self, command: subprocess.Popen[str]) -> None:
        """A job that was in the queue when its node was lost stays there until a person cancels it.

        So does one that Slurm had given to the node and takes back; it says why after a minute or more.
        """
        deadline, since = time.monotonic() + PATIENCE, float("inf")
        while command.poll() is None and time.monotonic() < deadline:
            waits = self._cluster.run(["squeue", "--noheader", "--states=PENDING"]).stdout
            since = min(since, time.monotonic()) if waits else float("inf")
            if time.monotonic() - since > PENDING_SECONDS:
                self._cancelled = time.monotonic()
                self._cluster.run(["scancel", "--user=root"])
                return
            time.sleep(0.5)

    def _ending_since(self, killed: float) -> float:
        return max(killed, self._cancelled)

    def _left(self, outcome: Outcome, since: int) -> list[str]:
        """Jobs, and files in the memory of nodes that are still there, when Slurm has had its time to end the job."""
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: not self._jobs(), self.budget)
        problems = [f"left: job {job}" for job in self._jobs()]
        for node in self._cluster.nodes if outcome.role != "node" else ():
            files = self._cluster.run(["ls", "/dev/shm"], node).stdout.split()
            problems += [f"left on {node}: /dev/shm/{file}" for file in files]
        return problems

    def _jobs(self) -> list[str]:
        return [job for job in self._cluster.run(["squeue", "--noheader"]).stdout.split("\n") if job]


def _is_driver(process: Process) -> bool:
    words = command_line(process).split()
    return words[:2] == [sys.executable, streaming_command.__file__]


def _only_enters(process: Process) -> bool:
    """Whether it is the driver, or waits for it outside of the cluster."""
    return _is_driver(process) or processes.command_name(process.pid) == "nsenter"
