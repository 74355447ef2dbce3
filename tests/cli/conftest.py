"""The command as a user calls it, in this process; a corpus; an index of it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aaflow.cli.main import main


@dataclass(frozen=True)
class Ended:
    """How a call ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """The one JSON object on stdout."""
        [line] = self.out.splitlines()
        return json.loads(line)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Ended]]:
    """Calls ``aaflow`` with words."""
    handler = signal.getsignal(signal.SIGTERM)

    def call(*words: object) -> Ended:
        monkeypatch.setattr("sys.argv", ["aaflow", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Ended(int(ended.value.code or 0), said.out, said.err)

    yield call
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and bad documents."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "dates.txt").write_text("To parse an ISO date call date.fromisoformat with a string.")
    (folder / "sleep.md").write_text("# Sleeping\n\nCall time.sleep to wait for some seconds [really].")
    lines = ['{"id": "a", "text": "sort a list in place", "year": 2001}\n', "{bad\n"]
    (folder / "records.jsonl").write_text("".join(lines) + '{"id": "b", "text": "reverse a list", "year": 2002}\n')
    (folder / "binary.txt").write_bytes(b"\x00\xff\x00")
    return folder


@pytest.fixture(scope="session")
def made(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An index of the corpus, as ``aaflow ingest --json`` reports it."""
    from typer.testing import CliRunner

    from aaflow.cli.main import app

    folder = tmp_path_factory.mktemp("made")
    words = ["ingest", corpus, "--index", folder / "index", "--pilot", "local", "--ranks", 2, "--dim", 64]
    words += ["--partitions", 8, "--id-column", "id", "--metadata", "year:int64", "--run-folder", folder / "runs"]
    ended = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert ended.exit_code == 0, ended.output
    report: dict[str, Any] = json.loads(ended.stdout)
    return report
