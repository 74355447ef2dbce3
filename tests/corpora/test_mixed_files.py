"""10,000 good and broken files at once: the good are indexed, each bad one is reported with its reason."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.serial, pytest.mark.timeout(400)]

GOOD = 9_000
#: Resident memory that a rank may take at most, in MiB: far less than the 200 MB line alone would need twice.
RANK_MEBIBYTES = 500


def write_corpus(root: Path) -> dict[str, str]:
    """Write the files; give, for each bad one, its name and what its reason must say."""
    expected: dict[str, str] = {}

    def put(name: str, data: bytes, reason: str | None = None) -> Path:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if reason is not None:
            expected[name] = reason
        return path

    for number in range(GOOD):
        folder = f"good/{number % 97:02d}"
        put(f"{folder}/{number}.txt", f"Note {number}. The valve of pump {number % 13} was replaced.\n".encode())
    for number in range(200):
        put(f"bad/empty-{number}.txt", b"", "empty")
        put(f"bad/binary-{number}.txt", b"GIF89a\x00\x01\x00\xff" * 20, "binary")
        put(f"bad/latin-{number}.txt", "caf\u00e9 ".encode("latin-1") * 5, "UTF-8")
        put(f"bad/broken-{number}.pdf", b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog", "PDF")
    for number in range(100):
        lines = [json.dumps({"id": f"{number}-a", "text": f"Record a of file {number}."}).encode(), b'{"text": "cut']
        lines.append(json.dumps({"id": f"{number}-c", "text": f"Record c of file {number}."}).encode())
        put(f"records/{number}.jsonl", b"\n".join(lines), "JSON")
    unreadable = put("bad/unreadable.txt", b"secret", "permission")
    unreadable.chmod(0)
    put("bad/new\nline.txt", b"A file whose name holds a newline.")
    put("bad/new\nline-empty.txt", b"", "empty")
    (root / "bad/nowhere.txt").symlink_to("does-not-exist")
    expected["bad/nowhere.txt"] = "link"
    (root / "bad/loop").symlink_to("../bad")
    big = root / "bad/one-line.jsonl"
    with big.open("wb") as file:
        file.write(b'{"text": "')
        for _ in range(200):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"text": "the record after the long one"}\n')
    expected["bad/one-line.jsonl"] = "max_record_bytes"
    return expected


def as_an_ordinary_user() -> list[str]:
    """A prefix under which file modes hold for root too."""
    if os.geteuid() != 0:
        return []
    dropped = "-dac_override,-dac_read_search"
    assert shutil.which("setpriv"), "as root this test needs setpriv (Debian package util-linux)"
    return ["setpriv", f"--inh-caps={dropped}", f"--bounding-set={dropped}"]


def test_good_files_are_indexed_and_each_bad_one_is_listed_with_its_reason(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    expected = write_corpus(corpus)
    program = [sys.executable, "-m", "aaflow.cli.main"]
    argv = ["ingest", str(corpus), "--index", str(tmp_path / "index"), "--pilot", "local", "--ranks", "2", "--json"]
    argv += ["--run-folder", str(tmp_path / "runs"), "--id-column", "id"]
    done = subprocess.run(
        [*as_an_ordinary_user(), *program, *argv], capture_output=True, text=True, errors="surrogateescape", check=False
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["documents"] == GOOD + 200 + 1 + 1  # the records, the newline's file, the record after the long one

    told: dict[str, str] = {}
    for skipped in summary["skipped"]:
        name = os.path.relpath(skipped["path"], corpus) if skipped["path"].startswith("/") else skipped["path"]
        told[name] = skipped["reason"]
    assert {name for name in expected if name not in told} == set()
    for name, reason in expected.items():
        assert reason.lower() in told[name].lower(), (name, told[name])
    assert {name for name in told if name not in expected} <= {"bad/loop"}

    peaks = [int(peak) for path in (tmp_path / "runs").glob("*/results/*.json") for peak in _peaks(path)]
    assert len(peaks) == 2
    assert max(peaks) < RANK_MEBIBYTES


def _peaks(path: Path) -> list[str]:
    return re.findall(r'"peak_mebibytes": (\d+)', path.read_text())
