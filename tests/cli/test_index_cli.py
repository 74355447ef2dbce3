from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


def test_info_says_what_an_index_holds(cli: Cli, made: dict[str, Any]) -> None:
    info = cli("index", "info", made["index"], "--json").json()
    assert info["digest"] == made["digest"]
    assert (info["documents"], info["chunks"], info["generation"], info["dimension"]) == (4, 4, 1, 64)
    assert info["embedder"]["model"] == "hash"
    shown = cli("index", "info", made["index"])
    assert made["digest"] in shown.out.replace("\n", "")


def test_verify_tells_a_whole_index_from_a_damaged_one(cli: Cli, made: dict[str, Any], tmp_path: Path) -> None:
    whole = cli("index", "verify", made["index"], "--json")
    assert whole.code == 0
    assert whole.json()["problems"] == []
    assert made["digest"] in cli("index", "verify", made["index"]).out
    copy = tmp_path / "copy"
    shutil.copytree(made["index"], copy)
    segment = next(copy.rglob("partitions/**/*.arrow"))
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 0xFF
    segment.chmod(0o600)
    segment.write_bytes(data)
    damaged = cli("index", "verify", copy, "--json")
    assert damaged.code == 1
    assert damaged.json()["problems"]
    shown = cli("index", "verify", copy)
    assert shown.code == 1
    assert segment.name in shown.out.replace("\n", "")


def test_compacting_keeps_the_content(cli: Cli, made: dict[str, Any], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made["index"], copy)
    done = cli("index", "compact", copy, "--json").json()
    assert done["bytes_before"] > 0
    assert done["bytes_after"] > 0
    assert cli("index", "info", copy, "--json").json()["digest"] == made["digest"]
    assert "bytes" in cli("index", "compact", copy).out


@pytest.mark.parametrize("command", ["info", "verify", "compact"])
def test_a_folder_without_an_index_is_told_by_its_path(command: str, cli: Cli, tmp_path: Path) -> None:
    ended = cli("index", command, tmp_path)
    assert ended.code == 3
    assert str(tmp_path) in ended.err


def test_building_a_backend_says_how_many_partitions_needed_one(cli: Cli, made: dict[str, Any], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made["index"], copy)
    assert cli("index", "build", copy, "ivf", "--json").json()["built"] == 0
    assert "0 partition(s)" in cli("index", "build", copy, "ivf").out
    assert cli("index", "build", copy, "tree").code == 3
