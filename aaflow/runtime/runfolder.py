"""The run folder: plan, placement, keys, logs, trace, report. Everything a person needs to see why a run failed."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run. Folders are 0700."""

    path: Path

    @classmethod
    def create(cls, parent: str | Path, plan_digest: str) -> RunFolder:
        """Make a new run folder, named by time, plan and chance."""
        base = Path(parent).expanduser().absolute()
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = base / f"{time.strftime('%Y%m%d-%H%M%S')}-{plan_digest[:8]}-{secrets.token_hex(3)}"
        folder.mkdir(mode=0o700)
        run = cls(folder)
        for path in (run.logs, run.trace, run.progress, run.results, run.output, run.edges, run.errors):
            path.mkdir(mode=0o700, exist_ok=True)
        return run

    @property
    def logs(self) -> Path:
        """Logs of every group."""
        return self.path / "logs"

    @property
    def errors(self) -> Path:
        """What a failing rank said: ``<stage>.<rank>.json``."""
        return self.path / "errors"

    @property
    def trace(self) -> Path:
        """Trace of every rank: ``<stage>.<rank>.arrow``."""
        return self.path / "trace"

    @property
    def progress(self) -> Path:
        """How far every rank is: ``<stage>.<rank>.json``."""
        return self.path / "progress"

    @property
    def results(self) -> Path:
        """What every rank did in the end: ``<stage>.<rank>.json``."""
        return self.path / "results"

    @property
    def output(self) -> Path:
        """Rows that the last operator of a workflow gives: ``<stage>.<rank>.arrow``."""
        return self.path / "output"

    @property
    def edges(self) -> Path:
        """Files that hand rows from stage to stage: ``<stage>/<from>-<to>.rows``."""
        return self.path / "edges"

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a small JSON file, at once or not at all."""
        target = self.path / name
        temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}")
        temporary.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8", errors="surrogatepass")
        temporary.replace(target)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """What :meth:`write_json` wrote; None where there is nothing yet."""
        try:
            text = (self.path / name).read_text(encoding="utf-8", errors="surrogatepass")
        except FileNotFoundError:
            return None
        value = json.loads(text)
        return value if isinstance(value, dict) else None
