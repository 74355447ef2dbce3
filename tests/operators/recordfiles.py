"""What the tests of records share: a file of them, and all that reading it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aaflow.operators.listing import list_inputs
from aaflow.operators.readers import LoadOptions, read, splits
from aaflow.schema import documents


def load(path: Path, **options: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    opts = LoadOptions(**options)
    listing = list_inputs([str(path)], opts)
    assert listing.table["partition"].to_pylist() == [-1] * listing.table.num_rows
    rows: list[dict[str, Any]] = []
    notices: list[dict[str, Any]] = []
    for split in splits(listing.table):
        for batch, notice in read(split, opts):
            if batch is not None:
                batch.validate(full=True)
                assert batch.schema == documents(opts.metadata)
                rows += batch.to_pylist()
            notices += notice.to_pylist() if notice is not None else []
    return rows, notices


def texts(path: Path, **options: Any) -> dict[str, str]:
    rows, notices = load(path, **options)
    assert notices == []
    return {row["doc_id"]: row["text"] for row in rows}


def reasons(path: Path, **options: Any) -> dict[str, str]:
    return {notice["doc_id"]: notice["reason"] for notice in load(path, **options)[1]}


def write(tmp_path: Path, name: str, data: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path
