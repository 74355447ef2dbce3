"""What batch systems say of a job, in the words that their commands print."""

from __future__ import annotations

import json

import pytest

from aaflow_parsl.jobs import Job, read_pbs, read_slurm

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
            {
                "job_state": "F",
                "comment": "job killed: walltime 75 exceeded limit 60",
                "Resource_List": {"walltime": "00:01:00"},
                "Exit_status": -29,
            },
            Job("7.pbs", "ended", "PBS job 7.pbs reached its walltime of 00:01:00", True),
        ),
        (
            {"job_state": "F", "Exit_status": 271, "comment": "terminated by ada"},
            Job("7.pbs", "ended", "PBS job 7.pbs ended with exit code 271 (terminated by ada)"),
        ),
    ],
)  # fmt: skip
def test_pbs(fields: dict[str, object], job: Job) -> None:
    assert read_pbs("7.pbs", json.dumps({"pbs_version": "2022.1", "Jobs": {"7.pbs": fields}})) == job


def test_an_answer_without_the_job_says_nothing() -> None:
    assert read_slurm("12", "slurm_load_jobs error: Invalid job id specified") is None
    assert read_pbs("7.pbs", '{"Jobs": {}}') is None
    assert read_pbs("7.pbs", "qstat: Unknown Job Id") is None
