"""The listing: what is found under which name, what is left out and why, and how big files are cut."""

from __future__ import annotations

import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aaflow.errors import InputError
from aaflow.hashing import partition_of_id
from aaflow.operators.listing import Listing, cut_tranches, list_inputs, split_sizes
from aaflow.operators.readers import LoadOptions
from aaflow.schema import LISTING, NOTICES


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "docs"
    for name in ("a.md", "b.txt", "sub/c.md", "sub/deep/d.md", ".hidden.md", ".git/e.md", "sub/.f/g.md"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


def listed(*paths: object, **options: Any) -> Listing:
    found = list_inputs([str(path) for path in paths], LoadOptions(**options))
    assert found.table.schema == LISTING
    assert found.notices.schema == NOTICES
    found.table.validate(full=True)
    return found


def sources(*paths: object, **options: Any) -> list[str]:
    table = listed(*paths, **options).table
    assert isinstance(table["source"].to_pylist(), list)
    return [str(source) for source in table["source"].to_pylist()]


def reasons(found: Listing) -> dict[str, str]:
    return dict(zip(found.notices["source"].to_pylist(), found.notices["reason"].to_pylist(), strict=True))


def test_a_folder_is_listed_whole_and_its_files_named_relative_to_it(tree: Path) -> None:
    found = listed(tree, partitions=8)
    assert found.roots == (tree.as_uri(),)
    first = found.table.to_pylist()[0]
    assert first.pop("mtime_ns") == (tree / "a.md").stat().st_mtime_ns
    assert first == {
        **{"root": tree.as_uri(), "source": "a.md", "uri": (tree / "a.md").as_uri(), "format": "md"},
        **{"compression": "", "size": 4, "start": 0, "end": 4, "records": False, "tranche": 0},
        "partition": partition_of_id("a.md", 8),
    }
    assert found.table["source"].to_pylist() == ["a.md", "b.txt", "sub/c.md", "sub/deep/d.md"]


def test_hidden_files_are_listed_on_demand(tree: Path) -> None:
    assert sources(tree, hidden=True) == [
        *(".git/e.md", ".hidden.md", "a.md", "b.txt", "sub/.f/g.md", "sub/c.md", "sub/deep/d.md")
    ]
    assert sources(tree / ".hidden.md") == [".hidden.md"]


def test_a_file_is_named_relative_to_its_folder_which_is_not_listed_whole(tree: Path) -> None:
    found = listed(tree / "sub" / "c.md")
    assert found.table.select(["root", "source"]).to_pylist() == [{"root": (tree / "sub").as_uri(), "source": "c.md"}]
    assert found.roots == ()


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.md", ["a.md"]),
        ("**/*.md", ["a.md", "sub/c.md", "sub/deep/d.md"]),
        ("sub/*.md", ["c.md"]),
        ("s*/**/d.md", ["sub/deep/d.md"]),
        ("[ab].*", ["a.md", "b.txt"]),
        ("[!a].*", ["b.txt"]),
        ("?.txt", ["b.txt"]),
        ("**", ["a.md", "b.txt", "sub/c.md", "sub/deep/d.md"]),
        (".h*", [".hidden.md"]),
        ("sub/.f/*", [".f/g.md"]),
    ],
)
def test_a_glob_chooses_files_as_a_shell_does(tree: Path, pattern: str, expected: list[str]) -> None:
    if pattern == "sub/.f/*":
        expected = ["g.md"]
    assert sources(tree / pattern) == expected


def test_a_glob_is_relative_to_the_working_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert sources("*.txt") == ["b.txt"]
    assert sources("*/c.md") == ["sub/c.md"]


def test_a_name_that_looks_like_a_glob_is_a_name_if_it_exists(tmp_path: Path) -> None:
    (tmp_path / "[a].txt").write_text("x")
    (tmp_path / "a.txt").write_text("x")
    assert sources(tmp_path / "[a].txt") == ["[a].txt"]


@pytest.mark.parametrize("given", ["nowhere", "*.nothing", "no/*.md", "", "name=nowhere", "memory://no/such/file"])
def test_what_does_not_exist_is_an_error_that_names_it(tree: Path, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    with pytest.raises(InputError, match=re.escape(given or "empty")):
        list_inputs([given], LoadOptions())


def test_a_link_to_nowhere_given_as_a_path_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to("gone")
    with pytest.raises(InputError, match="No such file"):
        listed(tmp_path / "a.txt")


def test_chained_urls_are_refused() -> None:
    with pytest.raises(InputError, match="chained"):
        listed("zip://*.txt::memory://a.zip")


def test_links_are_followed_and_loops_end(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "o.txt").write_text("o")
    (other / "back").symlink_to(tree)
    (tree / "x").symlink_to(other)
    (tree / "sub" / "y").symlink_to(other)
    (tree / "link.txt").symlink_to(tree / "b.txt")
    (tree / "up").symlink_to("..")
    (tree / "sub" / "loop").symlink_to(tree)
    (tree / "self.txt").symlink_to("self.txt")
    (tree / "dangling.txt").symlink_to("missing")
    found = listed(tree)
    assert found.table["source"].to_pylist() == [
        # The links to ``other`` are followed in the order of their names.
        *("a.md", "b.txt", "link.txt", "sub/c.md", "sub/deep/d.md", "sub/y/o.txt")
    ]
    again = "link to a folder that is listed already"
    assert reasons(found) == {
        "dangling.txt": "link to nowhere: 'missing' does not exist",
        "self.txt": "link loop: the link leads back to itself",
        "sub/loop": "link loop: it leads back to a folder that it is in",
        "sub/y/back": again,
        "up": "link loop: it leads back to a folder that it is in",
        "x": again,
    }


def test_many_folders_that_link_to_each_other_are_listed_once(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"d{i}").mkdir()
        (tmp_path / f"d{i}" / "f.txt").write_text("x")
        for j in range(12):
            (tmp_path / f"d{i}" / f"l{j}").symlink_to(tmp_path / f"d{j}")
    found = listed(tmp_path)
    assert found.table.num_rows == 12
    assert found.notices.num_rows == 144


def test_what_has_no_known_format_is_skipped_in_a_folder_and_read_where_named(tree: Path) -> None:
    (tree / "x.bin").write_text("x")
    (tree / "README").write_text("x")
    (tree / "old.tar.gz").write_text("x")
    assert reasons(listed(tree)) == {
        "README": "no ending that says its format; --format txt reads it as text",
        "old.tar.gz": "unknown format .tar; --format txt reads it as text",
        "x.bin": "unknown format .bin; --format txt reads it as text",
    }
    assert listed(tree / "x.bin").table["format"].to_pylist() == ["txt"]
    assert listed(tree / "README").table["format"].to_pylist() == ["txt"]
    assert set(listed(tree, format="txt").table["format"].to_pylist()) == {"txt"}


def test_endings_say_format_and_compression(tmp_path: Path) -> None:
    names = {
        **{
            "A.HTM": ("html", ""),
            "b.Markdown": ("md", ""),
            "c.ndjson.zst": ("jsonl", "zst"),
            "d.tsv.bz2": ("tsv", "bz2"),
        },
        **{"e.json.xz": ("json", "xz"), "f.parquet": ("parquet", ""), "g.pdf": ("pdf", ""), "h.rst.gz": ("rst", "gz")},
    }
    for name in names:
        (tmp_path / name).write_text("x")
    table = listed(tmp_path).table
    assert {r["source"]: (r["format"], r["compression"]) for r in table.to_pylist()} == names
    assert {r["source"] for r in table.to_pylist() if r["records"]} == {
        *("c.ndjson.zst", "d.tsv.bz2", "e.json.xz", "f.parquet")
    }


def test_names_that_are_no_utf8_are_skipped_and_other_odd_ones_listed(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff.txt", "w"):
        pass
    (tmp_path / "a\nb.txt").write_text("x")
    os.mkfifo(tmp_path / "pipe.txt")
    found = listed(tmp_path)
    assert found.table["source"].to_pylist() == ["a\nb.txt"]
    assert found.table["uri"].to_pylist() == [f"{tmp_path.as_uri()}/a%0Ab.txt"]
    assert reasons(found) == {
        "\\xff.txt": "its name is not valid UTF-8; rename it",
        "pipe.txt": "not a regular file but a pipe, socket or device",
    }


def test_two_files_of_one_name_are_an_error_until_their_paths_are_named(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    one, two = tmp_path / "one", tmp_path / "two"
    with pytest.raises(InputError, match=r"both hold 'a.txt'; name the paths"):
        listed(one, two)
    assert sources(f"x={one}", f"y={two}") == ["x/a.txt", "y/a.txt"]
    assert sources(one, one / "a.txt", one / "*.txt") == ["a.txt"], "the same file counts once"


def test_an_equals_sign_in_an_existing_path_names_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "year=2024").mkdir()
    (tmp_path / "year=2024" / "a.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert sources("year=2024") == ["a.txt"]
    assert sources("year=2024/*.txt") == ["a.txt"]
    assert sources("y=year=2024") == ["y/a.txt"]


def test_the_order_of_the_paths_does_not_matter(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "z.txt").write_text("x")
    one = listed(tree, tmp_path / "z.txt")
    assert one.table.equals(listed(tmp_path / "z.txt", tree).table)


@given(size=st.integers(0, 300), split_bytes=st.integers(1, 100))
def test_ranges_of_json_lines_cover_the_file_once(
    tmp_path_factory: pytest.TempPathFactory, size: int, split_bytes: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "ranges.jsonl"
    path.write_bytes(b"x" * size)
    table = listed(path, split_bytes=split_bytes).table
    ranges = list(zip(table["start"].to_pylist(), table["end"].to_pylist(), strict=True))
    assert ranges[0][0] == 0
    assert ranges[-1][1] == size
    assert all(a[1] == b[0] for a, b in pairwise(ranges))
    assert all(b - a <= split_bytes for a, b in ranges)
    assert split_sizes(table).sum() == size


def test_only_what_can_be_cut_is_cut(tmp_path: Path) -> None:
    cut, whole = ("a.csv", "b.tsv", "c.jsonl"), ("d.csv.gz", "e.tsv.zst", "f.jsonl.gz", "g.json", "h.txt")
    for name in cut + whole:
        (tmp_path / name).write_text("x" * 100)
    table = listed(tmp_path, split_bytes=30).table
    counts = {row["values"]: row["counts"] for row in table["source"].value_counts().to_pylist()}
    assert counts == {**dict.fromkeys(cut, 4), **dict.fromkeys(whole, 1)}
    assert listed(tmp_path, split_bytes=30, encoding="utf-16").table.num_rows == len(cut + whole)


def test_parquet_files_are_cut_between_row_groups_and_sized_in_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(100)]}), path, row_group_size=10)
    size = path.stat().st_size
    (tmp_path / "b.parquet").write_text("broken, and long enough to be cut" * 10)
    table = listed(tmp_path, split_bytes=size // 4).table
    mine = [(r["start"], r["end"]) for r in table.to_pylist() if r["source"] == "a.parquet"]
    assert mine == [(0, 30), (30, 60), (60, 90), (90, 100)]
    assert abs(int(split_sizes(table)[:4].sum()) - size) < 4
    assert table.num_rows == 5
    assert listed(path).table.select(["start", "end"]).to_pylist() == [{"start": 0, "end": size}]


@given(sizes=st.lists(st.integers(0, 50_000), max_size=30), tranche_bytes=st.integers(1, 60_000))
def test_tranches_are_slices_of_about_equal_bytes_in_order(sizes: list[int], tranche_bytes: int) -> None:
    rows = [
        {
            **{"root": "r", "source": f"{i:03d}", "uri": f"u{i}", "format": "txt", "compression": "", "size": size},
            **{"mtime_ns": 0, "start": 0, "end": size, "records": False, "partition": 0, "tranche": 0},
        }
        for i, size in enumerate(sizes)
    ]
    table = cut_tranches(pa.Table.from_pylist(rows, schema=LISTING), tranche_bytes)
    assert table.schema == LISTING
    tranche = table["tranche"].to_numpy()
    assert sorted(tranche) == list(tranche)
    assert set(tranche) == set(range(len(set(tranche))))
    for number in set(tranche):
        mine = np.maximum(sizes, 1024)[tranche == number]
        assert mine[:-1].sum() < tranche_bytes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partitions": 0}, "partitions is 0"),
        ({"format": "docx"}, "unknown format 'docx'; use txt"),
        ({"encoding": "klingon"}, "unknown encoding 'klingon'"),
        ({"metadata": {"n": "integer"}}, "unknown type 'integer'"),
        ({"text_columns": ()}, "text_columns is empty"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LoadOptions(**options)


def test_options_survive_json() -> None:
    options = LoadOptions(text_columns=("a", "b"), metadata={"n": "int64"}, scope="s", split_bytes=5)
    assert LoadOptions.from_json(options.to_json()) == options
    assert LoadOptions.from_json({}) == LoadOptions()
    with pytest.raises(InputError, match="unknown option colour"):
        LoadOptions.from_json({"colour": "red"})
