from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import aaflow
from aaflow.cli.output import exit_code
from aaflow.errors import (
    AaflowError,
    EmbedderMismatch,
    IndexCorrupt,
    IndexLocked,
    IndexMissing,
    InputError,
    PilotError,
    PlacementError,
    RunCancelled,
    SiteError,
    StageError,
    WorkflowError,
)

Cli = Callable[..., Any]


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ([AaflowError, PilotError, StageError, ValueError], 1),
        ([InputError, WorkflowError, PlacementError, SiteError], 2),
        ([EmbedderMismatch, IndexCorrupt, IndexLocked, IndexMissing], 3),
        ([KeyboardInterrupt, RunCancelled], 130),
    ],
)
def test_every_kind_of_error_has_its_exit_code(errors: list[type[BaseException]], code: int) -> None:
    assert [exit_code(error) for error in errors] == [code] * len(errors)


def test_the_version_is_the_distributions(cli: Cli) -> None:
    assert cli("--version").out.strip() == aaflow.__version__


def test_help_names_every_command(cli: Cli) -> None:
    shown = cli("--help")
    assert shown.code == 0
    for name in (
        "ingest",
        "query",
        "ask",
        "plan",
        "run",
        "status",
        "attach",
        "logs",
        "cancel",
        "sites",
        "index",
        "trace",
        "doctor",
    ):
        assert name in shown.out


def test_an_error_is_one_text_without_a_traceback(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "aaflow.cli.main", "index", "info", str(tmp_path)]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 3
    assert ended.stdout == ""
    assert ended.stderr.startswith("aaflow: ")
    assert "Traceback" not in ended.stderr


def test_an_interrupt_is_130_and_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("aaflow.cli.answer.ask_index", interrupted)
    ended = cli("query", tmp_path, "what?")
    assert ended.code == 130
    assert ended.out == ""
    assert ended.err.strip() == "aaflow: interrupted"
