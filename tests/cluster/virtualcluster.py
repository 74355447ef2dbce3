"""A Slurm cluster on one machine: a login node and compute nodes, each in namespaces of its own.

Every node has its own host name, processes, ``/dev/shm`` and network interfaces, so that nothing passes between nodes
but through files and two networks: ``eth0``, which the login node is on, and ``hsn0``, which it is not. Slurm and munge
are the real ones. Whatever happens to the process that made the cluster, the kernel ends every process, mount and
interface of it; only a temporary folder could be left.

    python tests/cluster/virtualcluster.py [COMMAND…]    a shell, or a command, on the login node
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "unshare", "nsenter", "ip")
UNSHARE = ["unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
CORES = 8
#: Seconds within which a cluster is up; it takes 1 on a quiet machine.
UP_SECONDS = 15.0

SLURM_CONF = """
ClusterName=virtual
SlurmctldHost=login(10.77.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
MpiDefault=pmi2
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
# A node says that it has {cores} cores, whatever this machine has.
SlurmdParameters=config_overrides
ReturnToService=2
# A lost node is noticed soon, and a walltime of a minute is one.
SlurmdTimeout=10
MessageTimeout=10
OverTimeLimit=0
KillWait=3
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0
{nodes}
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

SITE = """
description = "The virtual cluster of the tests"
scheduler = "slurm"
nodes = {nodes}
oversubscribe = true
launcher = "srun"
communicator = "mpi"
pilot = "parsl"
run_folder = "{run_folder}"
interface = "eth0"

[node]
cores = {cores}
memory = "1GiB"

[provider]
queue = "batch"
walltime = "{walltime}"
scheduler_options = "{scheduler_options}"
"""


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    """Return when a condition holds.

    Raises:
        TimeoutError: it never did.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain for {seconds:g} s")
        time.sleep(0.1)


def lacking() -> str | None:
    """Which programs are not here and how to get them, or None."""
    found = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    how = "on Debian or Ubuntu: apt install slurm-wlm munge iproute2"
    return f"the virtual cluster needs {', '.join(found)}; {how}" if found else None


def forbidden() -> str | None:
    """Why namespaces can't be made here, or None."""
    if os.geteuid() != 0:
        return "the virtual cluster's nodes are namespaces, which only root makes: sudo -E env PATH=$PATH …"
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    if not tried.returncode:
        return None
    return (
        f"the virtual cluster's nodes are namespaces, which can't be made here ({tried.stderr.strip()}): "
        "a container needs the capabilities SYS_ADMIN and NET_ADMIN"
    )


def unavailable() -> tuple[str, bool] | None:
    """Why there can't be a cluster here, and whether that is a failure; None where there can be one.

    CI has to install what is missing and to let root make namespaces. Without root it leaves these tests out, and runs
    them again with it.
    """
    missing, denied = lacking(), forbidden()
    if missing is None and denied is None:
        return None
    fails = bool(os.environ.get("CI")) and (missing is not None or os.geteuid() == 0)
    return missing or str(denied), fails


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _without_cgroups() -> str:
    """The plugin that leaves control groups alone: old versions have none, but this one does nothing by itself."""
    said = subprocess.run(["slurmd", "-V"], capture_output=True, text=True, check=True, env={"PATH": _path()}).stdout
    year, month = map(int, said.split()[-1].split(".")[:2])
    return "disabled" if (year, month) >= (23, 11) else "cgroup/v1"


class VirtualCluster:
    """A context manager: entering starts the cluster, leaving ends all of it.

    Attributes:
        folder: configuration, state and logs of its daemons; gone when it has ended.
        nodes: names of the compute nodes.
        environment: what a process needs to reach it, beside being on one of its machines (:meth:`on`).
    """

    def __init__(self, nodes: int = 4) -> None:
        self.nodes = [f"node{number}" for number in range(nodes)]
        self.folder = Path()
        self.environment: dict[str, str] = {}
        self._login: subprocess.Popen[str] | None = None

    def __enter__(self) -> VirtualCluster:
        self.folder = Path(tempfile.mkdtemp(prefix="cluster-", dir="/tmp"))
        os.chmod(self.folder, 0o755)  # a socket of munge has to be in a folder that everybody may enter
        self._configure()
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _path()}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PMI"))}
        boot = str(Path(__file__).with_name("boot.sh"))
        try:
            self._login = subprocess.Popen(
                [*UNSHARE, boot, "login", str(self.folder), str(len(self.nodes))],
                env={**inherited, **self.environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            assert self._login.stdout is not None
            if self._login.stdout.readline() != "up\n":
                raise RuntimeError(f"the login node did not start:\n{self.said()}")
            self.wait_for_idle()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._login is not None:
            ending = psutil.Process(self._login.pid).children(recursive=True)
            self._login.kill()  # the kernel ends the login node with it, and the compute nodes with that
            self._login.wait()
            psutil.wait_procs(ending, timeout=UP_SECONDS)
            for pipe in (self._login.stdin, self._login.stdout):
                assert pipe is not None
                pipe.close()
            self._login = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def _configure(self) -> None:
        for name in ("log", "state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(64))
        hosts = ["127.0.0.1 localhost", "10.77.0.1 login"]
        lines = []
        for number, node in enumerate(self.nodes):
            (self.folder / "spool" / node).mkdir()
            hosts.append(f"10.77.0.{10 + number} {node}")
            lines.append(f"NodeName={node} NodeAddr=10.77.0.{10 + number} CPUs={CORES} RealMemory=1024 State=UNKNOWN")
        (self.folder / "hosts").write_text("\n".join([*hosts, ""]))
        conf = SLURM_CONF.format(folder=self.folder, cores=CORES, nodes="\n".join(lines))
        (self.folder / "slurm.conf").write_text(conf)
        (self.folder / "cgroup.conf").write_text(f"CgroupPlugin={_without_cgroups()}\n")

    def on(self, machine: str, command: Sequence[str], folder: str | Path = "/") -> list[str]:
        """The command line that runs a command on a machine (``login`` or a node), in a folder."""
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        enter = [
            "nsenter",
            *user,
            "--mount",
            "--net",
            "--uts",
            "--ipc",
            "--pid",
            "--target",
            str(self._first(machine).pid),
        ]
        return [*enter, "env", "-C", str(folder), *command]

    def run(self, command: Sequence[str], machine: str = "login", **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on a machine to its end; ``options`` are those of subprocess.run."""
        given: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60, "check": False, **options}
        environment: Mapping[str, str] = given.pop("env", os.environ)
        return subprocess.run(self.on(machine, command), env={**environment, **self.environment}, **given)

    def states(self) -> dict[str, str]:
        """What Slurm says of every node."""
        shown = self.run(["sinfo", "--noheader", "--Node", "--format=%N %T"])
        return dict(line.split() for line in shown.stdout.splitlines())

    def wait_for_idle(self, seconds: float = UP_SECONDS) -> None:
        """Wait until every node is free."""
        try:
            wait_for(lambda: [*self.states().values()] == ["idle"] * len(self.nodes), seconds)
        except TimeoutError:
            raise RuntimeError(f"nodes are {self.states()}, not idle\n{self.said()}") from None

    def lose(self, node: str) -> None:
        """End a node at once: slurmd, the steps and all else on it."""
        self._first(node).kill()

    def bytes_sent(self, interface: str) -> dict[str, int]:
        """By node, what went out over an interface so far."""
        sent = {}
        for node in self.nodes:
            lines = Path(f"/proc/{self._first(node).pid}/net/dev").read_text(encoding="ascii").splitlines()
            (fields,) = (line.split() for line in lines if line.strip().startswith(f"{interface}:"))
            sent[node] = int(fields[9])
        return sent

    def site_file(
        self,
        path: Path,
        run_folder: Path,
        walltime: str = "00:10:00",
        scheduler_options: str = "",
        **changes: str,
    ) -> Path:
        """Write a site file of this cluster; ``changes`` replace the lines of those keys."""
        text = SITE.format(
            nodes=len(self.nodes),
            cores=CORES,
            run_folder=run_folder,
            walltime=walltime,
            scheduler_options=scheduler_options,
        )
        head, node, rest = text.partition("[node]")
        lines = [line for line in head.splitlines() if line.split(" ")[0] not in changes]
        lines += [f"{key} = {value}" for key, value in changes.items()]
        path.write_text("\n".join([*lines, "", node + rest]))
        return path

    def said(self) -> str:
        """The ends of its daemons' logs."""
        logs = sorted((self.folder / "log").iterdir())
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in logs)

    def _first(self, machine: str) -> psutil.Process:
        """The first process of a machine, by its pid here."""
        assert self._login is not None
        (login,) = psutil.Process(self._login.pid).children()
        if machine == "login":
            return login
        number = machine.removeprefix("node")
        for child in login.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.cmdline()[-2:] == [str(self.folder), number]:
                    (first,) = child.children()
                    return first
        raise RuntimeError(f"there is no machine {machine}")


def main(command: Sequence[str]) -> int:
    """A shell or a command on the login node of a new cluster."""
    why = lacking() or forbidden()
    if why is not None:
        print(why, file=sys.stderr)
        return 1
    began = time.monotonic()
    with VirtualCluster() as cluster, tempfile.TemporaryDirectory(prefix="sites-") as folder:
        site = cluster.site_file(Path(folder, "virtual.toml"), Path.home() / ".aaflow" / "runs")
        environment = {**os.environ, **cluster.environment, "AAFLOW_SITES": folder}
        print(
            f"4 nodes, up in {time.monotonic() - began:.1f} s; sinfo, srun, sbatch and aaflow --site {site.stem} "
            "work here; exit ends it all",
            file=sys.stderr,
        )
        shell = list(command) or [os.environ.get("SHELL", "/bin/bash")]
        return subprocess.run(cluster.on("login", shell, Path.cwd()), env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
