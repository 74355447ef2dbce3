"""Compile the kernels that most tests use: once, before many ranks of many tests would each do it at the same time."""

from __future__ import annotations

import tempfile
from pathlib import Path

import aaflow

RECORDS = [
    '{"text": "The kiln fires clay.", "year": 1}',
    '{"text": "A ferry crosses.", "year": 2}',
]
TABLE = "text,year\nA mill grinds grain.,3\nA loom weaves cloth.,4\n"


def main() -> None:
    """Ingest a few records, in one rank and in two, and verify the indexes."""
    with tempfile.TemporaryDirectory(prefix="kernels-") as name:
        folder = Path(name)
        (folder / "docs").mkdir()
        (folder / "docs" / "records.jsonl").write_text("\n".join(RECORDS), encoding="ascii")
        (folder / "docs" / "table.csv").write_text(TABLE, encoding="ascii")
        for ranks in (1, 2):
            workflow = aaflow.Workflow(metadata={"year": "int64"})
            chunks = workflow.load(folder / "docs", split_bytes=20).transform().deduplicate()
            chunks.embed("hash", dimension=32).upsert(folder / str(ranks))
            plan = aaflow.compile(workflow, ranks=ranks)
            aaflow.run(aaflow.place(plan), "local", run_folder=folder / "runs")
            with aaflow.open_index(folder / str(ranks)) as index:
                index.verify()


if __name__ == "__main__":
    main()
