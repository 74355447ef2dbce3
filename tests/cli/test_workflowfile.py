from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aaflow import Domain, Pattern
from aaflow.cli.workflowfile import read_workflow
from aaflow.errors import WorkflowError
from aaflow.index import open_index

Cli = Callable[..., Any]

FILE = """
[metadata]
year = "int64"

[[operator]]
kind = "load"
paths = ["{corpus}"]
id_column = "id"

[[operator]]
kind = "apply"
function = "{module}:shout"
options = {{ mark = "!" }}

[[operator]]
kind = "transform"
size = 80
overlap = 8

[[operator]]
kind = "embed"
model = "hash"
dimension = 64

[[operator]]
kind = "upsert"
index = "{index}"
partitions = 8
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "workflow.toml"
    file.write_text(text)
    return file


@pytest.mark.serial
def test_a_workflow_file_runs_with_a_users_operator(
    cli: Cli, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import pyarrow.compute as pc\ndef shout(batch, mark):\n"
    code += "    text = pc.binary_join_element_wise(pc.utf8_upper(batch['text']), mark, '')\n"
    code += "    return batch.set_column(batch.schema.get_field_index('text'), batch.schema.field('text'), text)\n"
    (tmp_path / "operators_of_a_workflow_file.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    text = FILE.format(corpus=corpus, index=tmp_path / "index", module="operators_of_a_workflow_file")
    file = written(tmp_path, text)
    ended = cli("run", file, "--pilot", "local", "--ranks", 2, "--run-folder", tmp_path / "runs", "--json")
    assert ended.code == 0, ended.err
    report = ended.json()
    assert report["generation"] == 1
    assert {Path(row["path"]).name for row in report["skipped"]} == {"binary.txt", "records.jsonl"}
    assert Path(report["run_folder"], "report.json").is_file()
    with open_index(tmp_path / "index") as index:
        texts = index.search([[1.0] + [0.0] * 63], 100)["text"].to_pylist()
    assert "REVERSE A LIST!" in texts
    assert all(text.isupper() for text in texts)
    shown = cli("run", file, "--pilot", "local", "--ranks", 2, "--run-folder", tmp_path / "runs")
    assert shown.code == 0
    assert "done in" in shown.err


def test_operators_read_the_one_before_them_or_the_one_they_name(tmp_path: Path) -> None:
    text = '[[operator]]\nkind = "load"\npaths = "docs"\n[[operator]]\nkind = "transform"\nname = "cut"\n'
    text += '[[operator]]\nkind = "embed"\ndimension = 8\n'
    text += '[[operator]]\nkind = "apply"\nfunction = "os.path:join"\nname = "side"\nfrom = "cut"\n'
    text += 'pattern = "shuffle-compute"\ndomain = "aggregation"\n'
    operators = read_workflow(written(tmp_path, text)).operators
    assert [(one.name, one.upstream) for one in operators.values()] == [
        ("load", None),
        ("cut", "load"),
        ("embed", "cut"),
        ("side", "cut"),
    ]
    assert (operators["side"].pattern, operators["side"].domain) == (Pattern.SHUFFLE_COMPUTE, Domain.AGGREGATION)


LOAD = '[[operator]]\nkind = "load"\npaths = ["docs"]\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"no \[\[operator\]\] table"),
        ("= 1", "workflow.toml: "),
        ('[[operator]]\nkind = "transform"', "operator 1: 'transform' needs rows"),
        ('[[operator]]\npaths = "docs"', "operator 1: unknown kind None"),
        (LOAD + '[[operator]]\nkind = "dream"', "operator 2: unknown kind 'dream'"),
        (LOAD + '[[operator]]\nkind = "embed"\ncolour = "red"', r"operator 2 \(embed\).*colour"),
        (LOAD + '[[operator]]\nkind = "embed"\nfrom = "lode"', "operator 2: it reads from 'lode'"),
        (
            LOAD + '[[operator]]\nkind = "apply"\nfunction = "a:b"\npattern = "magic"',
            r"operator 2 \(apply\).*'magic'.*use",
        ),
        ('[[operator]]\nkind = "load"', r"operator 1 \(load\).*paths"),
        ('operator = "load"', "operator"),
        (LOAD + "[[operator]]\nkind = 7", "operator 2: unknown kind 7"),
        ("metadata = 5\n" + LOAD, "metadata"),
        ('[metadata]\nyear = "number"\n' + LOAD, "number"),
    ],
)
def test_a_workflow_file_that_is_wrong_is_told_by_operator(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(WorkflowError, match=said):
        read_workflow(written(tmp_path, text))


def test_a_missing_workflow_file_ends_with_2(cli: Cli, tmp_path: Path) -> None:
    ended = cli("run", tmp_path / "none.toml")
    assert ended.code == 2
    assert "none.toml" in ended.err
    assert "Traceback" not in ended.err
