"""Ingestions whose commands run on the login node of a virtual cluster."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingestions import Ended, Ingestion, copy_of, wait_for
from virtualcluster import VirtualCluster

from aaflow.index import open_index

RANKS = 8
ALL = 200


@dataclass
class ClusterIngestion(Ingestion):
    """An ingestion whose command runs on the login node of a cluster."""

    cluster: VirtualCluster | None = None
    options: tuple[str, ...] = ("--ranks", str(RANKS), "--json")
    walltime: str = "00:10:00"
    nodes: int = 4
    pilot: str = "parsl"
    launcher: str = "srun"
    scheduler_options: str = ""

    def command(self, pilot: str) -> list[str]:
        given = super().command(pilot)
        if pilot == "local":
            return given
        assert self.cluster is not None
        changes = {"interconnect": '"hsn0"', "nodes": str(self.nodes), "pilot": f'"{self.pilot}"'}
        changes["launcher"] = f'"{self.launcher}"'
        path, runs = self.folder / "virtual.toml", self.folder / "runs"
        site = self.cluster.site_file(path, runs, self.walltime, self.scheduler_options, **changes)
        workflow = given[: given.index("--pilot")]
        return self.cluster.on("login", [*workflow, "--site", str(site), *self.options], self.folder)

    def launch(self, **environment: str) -> subprocess.Popen[str]:
        assert self.cluster is not None
        return self.start(self.command(self.pilot), **self.cluster.environment, **environment)

    def run(self, pilot: str = "parsl", **environment: str) -> Ended:
        return ended(self.launch(**environment))

    def ask(self, *words: str) -> Ended:
        """Run another command of aaflow on the login node."""
        assert self.cluster is not None
        command = [sys.executable, "-m", "aaflow.cli.main", *words, "--run-folder", str(self.folder / "runs")]
        return ended(self.start(self.cluster.on("login", command, self.folder), **self.cluster.environment))

    def run_folder(self) -> Path:
        return self.run_folders()[-1]

    def expect_nothing_alive(self, seconds: float) -> None:
        wait_for(lambda: not self.alive(), seconds)

    def expect_whole_index(self) -> None:
        """The index has its last generation, unharmed."""
        with open_index(self.index) as index:
            assert index.info().generation == 1
            # What a killed rank was writing stays until the next writer removes it, and is no fault of the index.
            assert [line for line in index.verify() if not line.endswith("the next writer removes it")] == []


def on_cluster(before: Ingestion, folder: Path, cluster: VirtualCluster, **options: Any) -> ClusterIngestion:
    """An ingestion of a corpus that has grown since its index was made."""
    copied = copy_of(before, folder)
    return ClusterIngestion(
        folder, before.docs, copied.apply, copied.token, copied.temporary, cluster=cluster, **options
    )


def ended(command: subprocess.Popen[str]) -> Ended:
    out, err = command.communicate(timeout=350)
    return Ended(command.returncode, out, err)
