"""The virtual cluster is one: nodes that share nothing but files and networks, and that leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from virtualcluster import VirtualCluster, wait_for

pytestmark = [pytest.mark.serial, pytest.mark.timeout(240)]

STEP = ["srun", "--nodes=4", "--ntasks-per-node=2"]


def test_nodes_have_their_own_names_processes_memory_and_addresses(cluster: VirtualCluster) -> None:
    look = (
        "echo $(hostname) $(readlink /proc/self/ns/pid) $(readlink /proc/self/ns/ipc) "
        "$(cat /proc/sys/kernel/random/boot_id) $(stat -f -c %i /dev/shm) $(ip -4 -br address show eth0)"
    )
    shown = cluster.run(["srun", "--nodes=4", "--ntasks-per-node=1", "sh", "-c", look])
    columns = list(zip(*(line.split() for line in shown.stdout.splitlines()), strict=True))
    assert sorted(columns[0]) == cluster.nodes, shown
    for column in columns[1:5] + columns[-1:]:
        assert len(set(column)) == 4, column


def test_ranks_of_all_nodes_reach_each_other_whatever_their_memory_held_before(cluster: VirtualCluster) -> None:
    program = (
        "import os; from aaflow.dataplane import mpi; "
        "held = [os.urandom(size) for size in range(513, 9000)]; between = held[::7]; del held; "
        "mpi.MpiCommunicator(); "
        "from mpi4py import MPI; world = MPI.COMM_WORLD; "
        "near = world.Split_type(MPI.COMM_TYPE_SHARED).size; "
        "print(world.size, near, world.allreduce(world.rank))"
    )
    shown = cluster.run([*STEP, sys.executable, "-c", program])
    assert shown.stdout.splitlines() == ["8 2 28"] * 8, shown
    assert [cluster.run(["ls", "/dev/shm"], node).stdout for node in cluster.nodes] == [""] * 4


def test_a_lost_node_takes_its_step_along_and_slurm_notices(possible: None) -> None:
    with VirtualCluster(2) as cluster:
        task = f"touch {cluster.folder}/$(hostname).runs; sleep 100"
        step = subprocess.Popen(
            cluster.on("login", ["srun", "--nodes=2", "sh", "-c", task]), env={**os.environ, **cluster.environment}
        )
        wait_for(lambda: len(list(cluster.folder.glob("*.runs"))) == 2, 30)
        cluster.lose("node1")
        assert step.wait(90) != 0
        wait_for(lambda: "down" in cluster.states()["node1"], 90)
        wait_for(lambda: "idle" in cluster.states()["node0"], 30)


def test_nothing_is_left_of_a_cluster_whose_maker_is_killed(possible: None) -> None:
    program = (
        "import sys, time; from virtualcluster import VirtualCluster\n"
        "with VirtualCluster() as cluster:\n"
        "    print(cluster.folder, flush=True); time.sleep(100)"
    )
    maker = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with maker:
        assert maker.stdout is not None
        folder = maker.stdout.readline().strip()
        maker.send_signal(signal.SIGKILL)
    wait_for(lambda: not _mentioning(folder), 10)
    assert folder not in Path("/proc/self/mountinfo").read_text()
    subprocess.run(["rm", "-r", folder], check=True)  # all that a kill leaves


def test_nothing_is_left_of_a_cluster_that_ended(possible: None) -> None:
    began = time.monotonic()
    with VirtualCluster() as cluster:
        assert time.monotonic() - began < 15
        folder = cluster.folder
        assert len(_mentioning(str(folder))) >= 5
    assert not folder.exists()
    assert _mentioning(str(folder)) == []


def _mentioning(word: str) -> list[str]:
    """Command lines of living processes with this word in their command line or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue
        if word.encode() in command + environment and process.name != str(os.getpid()):
            found.append(command.decode(errors="replace").replace("\0", " "))
    return found
