"""From a site to Parsl's configuration."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider, PBSProProvider, SlurmProvider

from aaflow.errors import SiteError
from aaflow.runtime import processes, records
from aaflow.runtime.enginejob import clean_at_end, end_without_driver
from aaflow.scheduling.site import Node, Site
from aaflow_parsl.config import LABEL, engine_config

SITE = Site(
    name="test", description="", nodes=4, node=Node(tuple(range(2, 32)), 8 << 30, None), oversubscribe=False,
    scheduler="local", launcher="srun", launcher_options=(), communicator="mpi", pilot="parsl",
    provider={"account": "m123", "walltime": "00:20:00", "worker_init": "module load mpi", "queue": None},
)  # fmt: skip


def executor(site: Site, folder: Path, groups: int = 2) -> HighThroughputExecutor:
    config = engine_config(site, groups=groups, folder=folder, environment={"AAFLOW_RUN": "a b"})
    [made] = config.executors
    assert config.run_dir == str(folder)
    assert config.usage_tracking == 0
    return made


def test_an_engine_is_one_block_with_a_worker_for_each_group(tmp_path: Path) -> None:
    made = executor(replace(SITE, provider={}), tmp_path, groups=3)
    assert made.label == LABEL
    assert made.encrypted
    assert made.max_workers_per_node == 3
    assert isinstance(made.provider, LocalProvider)
    assert (made.provider.init_blocks, made.provider.max_blocks) == (1, 1)
    assert "export AAFLOW_RUN='a b'" in made.provider.worker_init
    assert made.interchange_launch_cmd[:2] == ["env", "AAFLOW_RUN=a b"]


def test_slurm_gets_the_options_of_the_site_and_all_nodes_in_one_block(tmp_path: Path) -> None:
    provider = executor(replace(SITE, scheduler="slurm"), tmp_path).provider
    assert isinstance(provider, SlurmProvider)
    assert (provider.nodes_per_block, provider.max_blocks, provider.account) == (4, 1, "m123")
    assert provider.walltime == "00:20:00"
    assert provider.exclusive
    assert provider.worker_init.split("\n")[1] == "module load mpi"
    assert clean_at_end(str(tmp_path.parent)) in provider.worker_init
    assert end_without_driver(str(tmp_path.parent)) in provider.worker_init


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ("exit 3", 3),
        ("kill $$", -signal.SIGTERM),
        ("(sleep 0.02; kill $$) & exit 3", 3),
        ("kill -KILL $$", -signal.SIGKILL),
        ("kill -KILL $cleaner; exit 3", 3),
    ],
)
def test_a_batch_job_removes_the_temporary_files_of_its_engine_and_keeps_the_folder_of_the_node(
    tmp_path: Path, ends: str, code: int
) -> None:
    node = tmp_path / "node"
    node.mkdir()
    lines = clean_at_end(str(tmp_path / "run"))
    script = f'{lines}\ntouch "$TMPDIR/pymp-1" || exit 9\necho "$TMPDIR $AAFLOW_NODE_TMPDIR"\n{ends}'
    ended = subprocess.run(["bash", "-c", script], env={**os.environ, "TMPDIR": str(node)}, stdout=-1, text=True)
    assert ended.returncode == code
    own, kept = ended.stdout.split()
    assert (Path(own).parent, kept) == (node, str(node))
    assert not list(node.iterdir())


def test_what_an_engine_left_on_a_node_goes_though_the_node_has_lost_the_run_folder(tmp_path: Path) -> None:
    run, semaphore = f"run-{secrets.token_hex(4)}", Path(f"/dev/shm/sem.mp-{secrets.token_hex(4)}")
    engine = Path(records.engine_path(str(tmp_path / "run")))
    engine.parent.mkdir()
    os.mkfifo(engine)  # what cleans reads it when it is read here
    since = time.time_ns()
    lines = clean_at_end(str(tmp_path / "run"))
    script = f"{lines}\nAAFLOW_ENGINE={run} setsid sleep 302.5 9>&- & echo $! >{semaphore}\nread -r"
    job = subprocess.Popen(["bash", "-c", script], stdin=subprocess.PIPE)
    engine.write_text(json.dumps({"run": run, "since": since}))
    shutil.rmtree(engine.parent)
    while not semaphore.exists() or not (pid := semaphore.read_text()):
        time.sleep(0.01)
    left = processes.find_process(int(pid))
    assert left is not None
    job.communicate(b"the end\n", timeout=20)
    assert not processes.is_alive(left)
    assert not semaphore.exists()


def pbs_script(site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """The words with which Parsl calls ``qsub`` for a site, and the lines of the script that it gives it."""
    called, submitted = folder / "called", folder / "submitted"
    programs, scripts = folder / "bin", folder / "scripts"
    for made in (programs, scripts):
        made.mkdir()
    qsub = f'#!/bin/sh\necho "$@" >{called}\nfor script; do :; done\ncp "$script" {submitted}\necho 7.pbs\n'
    (programs / "qsub").write_text(qsub)
    (programs / "qsub").chmod(0o700)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    provider = executor(site, folder / "parsl").provider
    assert isinstance(provider, PBSProProvider)
    provider.script_dir = str(scripts)
    assert provider.submit("start the pool", 1, "aaflow") == "7.pbs"
    assert records.engine_job(str(folder)) == ("pbs", "7.pbs")
    return called.read_text().split(), submitted.read_text().splitlines()


def test_pbs_gets_a_script_with_the_options_of_the_site_and_whole_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"queue": "prod", "select_options": "ngpus=4", "scheduler_options": "#PBS -l filesystems=home:eagle"}
    site = replace(SITE, scheduler="pbs", provider={**SITE.provider, **options})
    called, lines = pbs_script(site, tmp_path, monkeypatch)
    assert called[:4] == ["-q", "prod", "-A", "m123"]
    directives = [line.removeprefix("#PBS ") for line in lines if line.startswith("#PBS")]
    assert [words for words in directives if words.startswith("-l")] == [
        "-l walltime=00:20:00",
        "-l select=4:ncpus=32:ngpus=4",
        "-l place=scatter:excl",
        "-l filesystems=home:eagle",
    ]
    assert "-S /bin/bash" in directives
    text = "\n".join(lines)
    assert text.index("export AAFLOW_RUN='a b'") < text.index("module load mpi") < text.index("start the pool")
    assert clean_at_end(str(tmp_path)) in text
    assert end_without_driver(str(tmp_path)) in text
    assert subprocess.run(["bash", "-n", "-c", text], check=False).returncode == 0


def test_a_site_that_says_how_pbs_places_its_chunks_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = replace(SITE, scheduler="pbs", provider={**SITE.provider, "scheduler_options": "#PBS -l place=scatter"})
    _, lines = pbs_script(site, tmp_path, monkeypatch)
    assert [line for line in lines if "place=" in line] == ["#PBS -l place=scatter"]


def test_a_scheduler_without_a_provider_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="site 'test': pilot 'parsl' has no provider for scheduler 'cobalt'"):
        executor(replace(SITE, scheduler="cobalt"), tmp_path)
