"""Concurrent task groups, some not connected yet: who is blamed when a part dies, and what an interrupt leaves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ingestions import BUDGET, HOLD, wait_for
from kills import Streaming, role_of, stage_of, write_corpus

from aaflow.runtime import processes
from aaflow.runtime.processes import Process

pytestmark = [pytest.mark.serial, pytest.mark.timeout(180)]

RANKS = {"load": 1, "transform": 1, "hold": 1, "embed": 1, "upsert": 1}


@pytest.fixture
def streaming(tmp_path: Path) -> Iterator[Streaming]:
    """A streaming ingestion into a new index, whose middle stage can be held."""
    write_corpus(tmp_path / "docs", 1)
    made = Streaming(tmp_path, tmp_path / "docs", f'{HOLD}\nname = "hold"')
    yield made
    made.end()


def part(streaming: Streaming, role: str, stage: str) -> Process | None:
    found = (process for process in streaming.alive() if role_of(process) == role and stage_of(process) == stage)
    return next(found, None)


def wait_for_part(streaming: Streaming, command: subprocess.Popen[str], role: str, stage: str) -> Process:
    found = None
    while found is None:
        assert command.poll() is None, command.communicate()
        time.sleep(0.02)
        found = part(streaming, role, stage)
    return found


def wait_until_gone(streaming: Streaming) -> None:
    wait_for(lambda: not streaming.alive(), BUDGET)
    assert list(streaming.temporary.rglob("*")) == []


def log(streaming: Streaming, stage: str) -> str:
    return (streaming.run_folders()[-1] / "logs" / f"{stage}.out").read_text()


@pytest.mark.parametrize(
    ("role", "says"),
    [
        ("rank", r"stage 'upsert' failed: a rank was killed by SIGKILL .*"),
        ("keeper", r"stage 'upsert' was ended: its keeper .*(died|was killed by SIGKILL).*"),
        ("driver", None),
    ],
)
def test_who_dies_while_the_ranks_find_each_other_ends_the_run(
    streaming: Streaming, role: str, says: str | None
) -> None:
    command = streaming.begin("local", RANKS)
    late = wait_for_part(streaming, command, "rank", "upsert")
    os.kill(late.pid, signal.SIGSTOP)  # it never says where it listens
    wait_for(lambda: len(list(streaming.run_folders()[-1].glob("edges/*/*.json"))) == len(RANKS) - 2)
    victim = processes.find_process(command.pid) if role == "driver" else part(streaming, role, "upsert")
    assert victim is not None
    processes.kill(victim)
    wait_until_gone(streaming)
    _, err = command.communicate()
    if says is None:
        assert command.returncode == -signal.SIGKILL
        return
    assert command.returncode == 1
    assert re.fullmatch(rf"aaflow: {says}\n", err), err


def hold(streaming: Streaming) -> subprocess.Popen[str]:
    """Start; returns when the middle stage holds a batch and those around it wait for room or for rows."""
    folder = streaming.folder / "held"
    folder.mkdir()
    command = streaming.begin("local", RANKS, FAULTS_HOLD=str(folder), FAULTS_BATCHES="3")
    wait_for(lambda: list(folder.iterdir()) or command.poll() is not None)
    return command


def test_the_stage_of_a_killed_rank_is_blamed_and_its_neighbours_only_say_whom_they_lost(streaming: Streaming) -> None:
    command = hold(streaming)
    victim = part(streaming, "rank", "hold")
    assert victim is not None
    os.kill(command.pid, signal.SIGSTOP)  # the driver ends nobody before both neighbours have noticed
    processes.kill(victim)
    lost = "rank 0 of stage 'hold' is gone before"
    wait_for(lambda: all(lost in log(streaming, stage) for stage in ("transform", "embed")))
    os.kill(command.pid, signal.SIGCONT)
    wait_until_gone(streaming)
    _, err = command.communicate()
    assert command.returncode == 1
    says = rf"stage 'hold' failed: a rank was killed by SIGKILL \(rank 0 \(pid {victim.pid} on .+/logs/hold.out"
    assert re.fullmatch(rf"aaflow: {says}\n", err), err


def test_a_rank_that_stands_still_ends_the_run_and_is_named(streaming: Streaming) -> None:
    command = hold(streaming)
    victim = part(streaming, "rank", "hold")
    assert victim is not None
    os.kill(victim.pid, signal.SIGSTOP)
    _, err = command.communicate(timeout=5 + 2 * BUDGET)  # 4 s for heartbeats to stay away
    assert command.returncode == 1
    says = r"stage 'hold' failed: its rank 0 is gone or stands still: edge .* rank 0 of stage 'hold' is gone before .*"
    assert re.fullmatch(rf"aaflow: {says}/logs/hold.out\n", err), err
    wait_until_gone(streaming)


def test_an_operator_that_fails_in_a_middle_stage_is_named(streaming: Streaming) -> None:
    streaming.apply = 'function = "fault_operators:refuse"\nname = "hold"\noptions = { source = "0023.txt" }'
    command = streaming.begin("local", RANKS)
    out, err = command.communicate(timeout=60)
    assert (command.returncode, out) == (1, "")
    says = r"stage 'hold' failed on rank 0 in operator 'hold': ValueError: 0023.txt is not to my taste \(at .*"
    assert re.fullmatch(rf"aaflow: {says}/logs/hold.out\n", err), err
    wait_until_gone(streaming)


def test_an_interrupted_streaming_run_leaves_nothing(streaming: Streaming) -> None:
    command = hold(streaming)
    os.killpg(command.pid, signal.SIGINT)  # as Ctrl-C in a terminal
    wait_until_gone(streaming)
    out, err = command.communicate()
    assert (command.returncode, out, err) == (130, "", "aaflow: interrupted\n")
    assert not list((streaming.run_folders()[-1]).rglob("*.tmp"))
