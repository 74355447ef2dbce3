"""How the two ends of an edge find each other: small files in the run folder, on a file system that both see.

A consumer's rank writes ``edges/SOURCE/TARGET.RANK.json`` with one address per producer's rank, after it has bound
them, and removes it in the end.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from aaflow.dataplane.edge.spec import EdgeSpec


def _path(run_folder: Path, spec: EdgeSpec, rank: int) -> Path:
    return run_folder / "edges" / spec.source / f"{spec.target}.{rank}.json"


def publish(run_folder: Path, spec: EdgeSpec, rank: int, addresses: Mapping[int, str]) -> Path:
    """Say where a consumer's rank listens for each producer's rank; returns the file."""
    path = _path(run_folder, spec, rank)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
    temporary.write_text(json.dumps({str(producer): address for producer, address in addresses.items()}))
    temporary.replace(path)
    return path


def look_up(run_folder: Path, spec: EdgeSpec, rank: int, producer: int) -> str | None:
    """Where a consumer's rank listens for a producer's; None while it has not said."""
    path = _path(run_folder, spec, rank)
    with contextlib.suppress(OSError):
        os.listdir(path.parent)  # NFS remembers that a file was missing until its folder is opened anew
    try:
        record: dict[str, str] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return record.get(str(producer))
