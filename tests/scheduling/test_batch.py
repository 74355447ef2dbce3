"""Job scripts as the manuals of sbatch and qsub want them, and what batch systems say of a job, in their words."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from aaflow.errors import PilotError, SiteError
from aaflow.scheduling import batch
from aaflow.scheduling.batch import Job, job_script, pbs_place, read_pbs, read_sacct, read_slurm
from aaflow.scheduling.site import Node, Site

SITE = Site(
    name="test", description="", nodes=4, node=Node(tuple(range(2, 32)), 8 << 30, None), oversubscribe=False,
    scheduler="slurm", launcher="srun", launcher_options=(), communicator="mpi", pilot="parsl",
    provider={
        "account": "m123", "queue": "debug", "qos": "premium", "constraint": "cpu&nvme", "walltime": "00:20:00",
        "worker_init": "module load mpi\nsource ~/env/bin/activate\n",
        "scheduler_options": "#SBATCH --licenses=scratch",
    },
)  # fmt: skip


def script(site: Site, command: list[str], folder: Path | str = "/work/my docs") -> str:
    environment = {"PYTHONPATH": "/work/a b"}
    return job_script(
        site, name="aaflow-1", log="/runs/100%/driver.out", folder=str(folder), environment=environment, command=command
    )


def test_a_script_for_slurm_asks_for_what_the_site_says_and_becomes_the_command() -> None:
    assert script(SITE, ["python", "-m", "aaflow", "drive", "/runs/the 1"]).splitlines() == [
        "#!/bin/bash",
        "#SBATCH --job-name=aaflow-1",
        "#SBATCH --output=/runs/100%%/driver.out",
        "#SBATCH --nodes=4",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --time=00:20:00",
        "#SBATCH --partition=debug",
        "#SBATCH --account=m123",
        "#SBATCH --qos=premium",
        "#SBATCH --constraint='cpu&nvme'",
        "#SBATCH --open-mode=append",
        "#SBATCH --exclusive",
        "#SBATCH --no-requeue",
        "#SBATCH --licenses=scratch",
        "export AAFLOW_JOB_BEGAN=$(date +%s)",
        "module load mpi",
        "source ~/env/bin/activate",
        "export PYTHONPATH='/work/a b'",
        "cd '/work/my docs' || exit 1",
        "exec python -m aaflow drive '/runs/the 1'",
    ]


def test_a_script_for_pbs_asks_for_chunks_of_whole_nodes() -> None:
    provider = {"account": "m123", "queue": "prod", "walltime": "01:00:00", "select_options": "system=polaris",
                "scheduler_options": "#PBS -l filesystems=home:eagle"}  # fmt: skip
    lines = script(replace(SITE, scheduler="pbs", provider=provider), ["run"]).splitlines()
    assert lines[1:12] == [
        "#PBS -S /bin/bash",
        "#PBS -N aaflow-1",
        "#PBS -j oe",
        "#PBS -o /runs/100%/driver.out",
        "#PBS -r n",
        "#PBS -l select=4:ncpus=32:system=polaris",
        "#PBS -l place=scatter:excl",
        "#PBS -l walltime=01:00:00",
        "#PBS -q prod",
        "#PBS -A m123",
        "#PBS -l filesystems=home:eagle",
    ]


@pytest.mark.parametrize(
    "options",
    [
        "#PBS -l place=scatter",
        "#PBS -l filesystems=home:eagle,place=vscatter:shared",
        '#PBS -m n\n#PBS -l "walltime=00:10:00,place=pack"',
        "#PBS -lplace=free",
    ],
)
def test_a_site_that_says_how_pbs_places_its_chunks_is_obeyed(options: str) -> None:
    text = script(replace(SITE, scheduler="pbs", provider={"scheduler_options": options}), ["run"])
    assert "place=scatter:excl" not in text
    assert options in text


def test_the_script_is_one_that_a_shell_runs(tmp_path: Path) -> None:
    site = replace(SITE, provider={"worker_init": "GREETING='good morning'"})
    text = script(site, ["sh", "-c", 'echo "$AAFLOW_JOB_BEGAN|$PYTHONPATH|$PWD"'], tmp_path)
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
    began, paths, folder = done.stdout.strip().split("|")
    assert began.isdecimal()
    assert (paths, folder) == ("/work/a b", str(tmp_path))


def test_a_site_without_a_batch_system_has_no_script() -> None:
    with pytest.raises(SiteError, match="site 'test' has no batch system: its scheduler is 'local'"):
        script(replace(SITE, scheduler="local"), ["run"])


def command(folder: Path, name: str, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch system's command, which says what it was called with."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o700)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_a_job_may_wait_for_the_end_of_another_and_inherits_no_wishes_of_its_submitter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "7")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    said = f'echo "$@ $SLURM_MEM_PER_NODE $SLURM_CONF" >{tmp_path}/said; echo "12;cluster"'
    command(tmp_path, "sbatch", said, monkeypatch)
    command(tmp_path, "qsub", f'echo "$@" >{tmp_path}/said; echo 12.pbs', monkeypatch)
    assert batch.submit("slurm", "job.sh", after="11") == "12"
    assert (tmp_path / "said").read_text() == "--parsable --dependency=afterany:11 job.sh  /etc/slurm.conf\n"
    assert batch.submit("pbs", "job.sh", after="11.pbs") == "12.pbs"
    assert (tmp_path / "said").read_text() == "-W depend=afterany:11.pbs job.sh\n"


def test_a_refused_job_is_an_error_with_the_words_of_the_batch_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(tmp_path, "sbatch", "echo 'sbatch: error: invalid partition specified: prod' >&2; exit 1", monkeypatch)
    with pytest.raises(PilotError, match=r"sbatch refused the job: sbatch: error: invalid partition .*; its script: x"):
        batch.submit("slurm", "x.sh")


def test_a_job_that_a_batch_system_has_forgotten_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    invalid = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
    command(tmp_path, "scontrol", invalid, monkeypatch)
    command(tmp_path, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1", monkeypatch)
    forgotten = batch.ask("slurm", "9")
    assert forgotten == Job("9", "forgotten", "Slurm job 9 is over, and Slurm no longer knows how it ended")
    assert forgotten is not None
    assert forgotten.over
    command(tmp_path, "sacct", "echo 'TIMEOUT|01:00:00|0:0'", monkeypatch)
    assert batch.ask("slurm", "9") == Job("9", "ended", "Slurm job 9 reached its walltime of 01:00:00", True)
    command(tmp_path, "scontrol", "echo 'Unable to contact slurm controller' >&2; exit 1", monkeypatch)
    assert batch.ask("slurm", "9") is None


SLURM = (
    "JobId=12 JobName=parsl.aaflow UserId=ada(1000) JobState={state} Reason={reason} Dependency=(null) ExitCode=0:0 "
    "TimeLimit=00:01:00 StartTime={start} Partition=batch NodeList=node[0-3] NumNodes=4"
)


@pytest.mark.parametrize(
    ("state", "reason", "start", "job"),
    [
        ("PENDING", "Priority", "Unknown", Job("12", "waiting", "Slurm job 12 waits in partition batch (Priority)")),
        (
            "PENDING",
            "Resources",
            "2026-11-21T10:00:00",
            Job(
                "12",
                "waiting",
                "Slurm job 12 waits in partition batch (Resources), expected to start at 2026-11-21 10:00:00",
            ),
        ),
        ("RUNNING", "None", "2026-11-21T10:00:00", Job("12", "running", "Slurm job 12 runs on node[0-3]")),
        ("TIMEOUT", "TimeLimit", "-", Job("12", "ended", "Slurm job 12 reached its walltime of 00:01:00", True)),
        ("COMPLETING", "None", "-", Job("12", "ending", "Slurm job 12 was ended")),
        ("COMPLETING", "TimeLimit", "-", Job("12", "ended", "Slurm job 12 reached its walltime of 00:01:00", True)),
        ("CANCELLED", "None", "-", Job("12", "ended", "Slurm job 12 was cancelled")),
        ("NODE_FAIL", "NodeDown", "-", Job("12", "ended", "Slurm job 12 lost a node")),
        ("FAILED", "NonZeroExitCode", "-", Job("12", "ended", "Slurm job 12 ended (FAILED, exit code 0:0)")),
    ],
)
def test_slurm(state: str, reason: str, start: str, job: Job) -> None:
    assert read_slurm("12", SLURM.format(state=state, reason=reason, start=start)) == job


@pytest.mark.parametrize(
    ("said", "job"),
    [
        ("TIMEOUT|00:01:00|0:0\n", Job("12", "ended", "Slurm job 12 reached its walltime of 00:01:00", True)),
        ("CANCELLED by 1000|00:01:00|0:0\n", Job("12", "ended", "Slurm job 12 was cancelled")),
        ("FAILED|00:01:00|1:0\n", Job("12", "ended", "Slurm job 12 ended (FAILED, exit code 1:0)")),
        ("RUNNING|00:01:00|0:0\n", None),
        ("", None),
    ],
)
def test_the_accounts_of_slurm(said: str, job: Job | None) -> None:
    assert read_sacct("12", said) == job


PBS_OVER = {"job_state": "F", "Resource_List": {"ncpus": 64, "nodect": 2, "walltime": "00:01:00"}}
PBS_RAN = "Job run at Sat Nov 21 at 10:00 on (x1:ncpus=32)+(x2:ncpus=32)"


@pytest.mark.parametrize(
    ("fields", "job"),
    [
        (
            {"job_state": "Q", "queue": "prod", "comment": "Not Running: no node is free"},
            Job("7.pbs", "waiting", "PBS job 7.pbs waits in queue prod (Not Running: no node is free)"),
        ),
        (
            {"job_state": "R", "exec_host": "x1/0*32+x1/1*32+x2/0*32"},
            Job("7.pbs", "running", "PBS job 7.pbs runs on x1, x2"),
        ),
        (
            {**PBS_OVER, "comment": f"{PBS_RAN} and exceeded resource walltime", "Exit_status": -29},
            Job("7.pbs", "ended", "PBS job 7.pbs reached its walltime of 00:01:00", True),
        ),
        (
            {**PBS_OVER, "comment": f"{PBS_RAN} and failed", "Exit_status": -29},
            Job("7.pbs", "ended", "PBS job 7.pbs reached its walltime of 00:01:00", True),
        ),
        (
            {**PBS_OVER, "comment": f"{PBS_RAN} and exceeded resource mem", "Exit_status": -27},
            Job("7.pbs", "ended", f"PBS job 7.pbs ran out of memory ({PBS_RAN} and exceeded resource mem)"),
        ),
        (
            {**PBS_OVER, "Exit_status": -1},
            Job("7.pbs", "ended", "PBS job 7.pbs could not be started on its nodes"),
        ),
        (
            {**PBS_OVER, "comment": f"{PBS_RAN} and terminated by ada", "Exit_status": 271},
            Job("7.pbs", "ended", f"PBS job 7.pbs ended with exit code 271 ({PBS_RAN} and terminated by ada)"),
        ),
    ],
)  # fmt: skip
def test_pbs(fields: dict[str, object], job: Job) -> None:
    assert read_pbs("7.pbs", json.dumps({"pbs_version": "2022.1", "Jobs": {"7.pbs": fields}})) == job


def test_an_answer_without_the_job_says_nothing() -> None:
    assert read_slurm("12", "slurm_load_jobs error: Invalid job id specified") is None
    assert read_pbs("7.pbs", '{"Jobs": {}}') is None
    assert read_pbs("7.pbs", "qstat: Unknown Job Id") is None


@pytest.mark.parametrize(
    ("options", "placed"),
    [("#PBS -l place=pack", False), ("#PBS -l 'place=pack'", False), ("# never -l place=pack", True), ("", True)],
)
def test_only_a_directive_of_the_site_takes_the_place_of_ours(options: str, placed: bool) -> None:
    assert bool(pbs_place(replace(SITE, scheduler="pbs", provider={"scheduler_options": options}))) is placed
