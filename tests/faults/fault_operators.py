"""Operators of the fault tests; ranks find them through PYTHONPATH."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pyarrow as pa

_seen = 0


def hold(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Give the rows on; after ``FAULTS_BATCHES`` batches say so in the folder ``FAULTS_HOLD`` and go no further.

    Without these variables nothing is held, so a rerun does the same work under the same plan.
    """
    global _seen
    folder = os.environ.get("FAULTS_HOLD")
    if folder is not None:
        _seen += 1
        if _seen > int(os.environ["FAULTS_BATCHES"]):
            Path(folder, f"{os.uname().nodename}.{os.getpid()}").touch()
            time.sleep(3600)
    return rows


def hold_in(rows: pa.RecordBatch, *, folder: str, batches: int = 0) -> pa.RecordBatch:
    """Give the rows on; where there is this folder, after so many batches say so in it and go no further."""
    global _seen
    _seen += 1
    if _seen > batches and os.path.isdir(folder):
        Path(folder, f"{os.uname().nodename}.{os.getpid()}").touch()
        time.sleep(3600)
    return rows


def refuse(rows: pa.RecordBatch, *, source: str) -> pa.RecordBatch:
    """Give the rows on, but fail on those of one document."""
    if source in rows["source"].to_pylist():
        raise ValueError(f"{source} is not to my taste")
    return rows


def pace(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Give the rows on, each batch after ``FAULTS_PACE`` seconds: a small corpus streams for a while."""
    time.sleep(float(os.environ.get("FAULTS_PACE", "0")))
    return rows
