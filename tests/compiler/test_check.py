"""What can't run is refused when compiling, and the error names the operator."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from aaflow.compiler.check import check_workflow
from aaflow.compiler.compile import compile_workflow
from aaflow.errors import InputError, WorkflowError
from aaflow.operators.operator import Domain, Operator, Pattern
from aaflow.scheduling.site import Site
from aaflow.workflow import Workflow

MakeSite = Callable[..., Site]
Ingestion = Callable[..., Workflow]
NUMBERS = pa.schema([("n", pa.int64())])
NOT_A_FUNCTION = 7


def keep(batch: pa.RecordBatch, flag: bool = True) -> pa.RecordBatch:
    return batch


def operator(
    name: str, upstream: str | None, given: pa.Schema | None = NUMBERS, function: str = "os:getcwd"
) -> Operator:
    domain = Domain.CPU_PARTITION
    return Operator(name, "own", function, given, NUMBERS, Pattern.EMBARRASSINGLY_PARALLEL, domain, upstream=upstream)


def by_name(*operators: Operator) -> dict[str, Operator]:
    return {one.name: one for one in operators}


def test_operators_come_in_the_order_of_their_edges_however_they_were_added() -> None:
    first, second, third = operator("a", None, None), operator("b", "a"), operator("c", "b")
    assert [one.name for one in check_workflow(by_name(third, second, first))] == ["a", "b", "c"]


def test_a_cycle_is_refused_by_the_names_in_it() -> None:
    with pytest.raises(WorkflowError, match="b, c form a cycle"):
        check_workflow(by_name(operator("a", None, None), operator("b", "c"), operator("c", "b")))


def test_an_operator_that_reads_itself_is_a_cycle() -> None:
    with pytest.raises(WorkflowError, match="b form a cycle"):
        check_workflow(by_name(operator("b", "b")))


def test_a_missing_input_is_refused() -> None:
    with pytest.raises(WorkflowError, match="'b' has no input"):
        check_workflow(by_name(operator("b", None)))
    with pytest.raises(WorkflowError, match="'b' reads from 'a', which is not in the workflow"):
        check_workflow(by_name(operator("b", "a")))
    with pytest.raises(WorkflowError, match="'b' takes no rows, but reads from 'a'"):
        check_workflow(by_name(operator("a", None, None), operator("b", "a", None)))
    with pytest.raises(WorkflowError, match="'b' reads from 'a', which gives no rows"):
        check_workflow(by_name(replace(operator("a", None, None), output=None), operator("b", "a")))


def test_an_empty_workflow_is_refused() -> None:
    with pytest.raises(WorkflowError, match="no operator"):
        check_workflow({})


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (pa.schema([("n", pa.int64()), ("word", pa.string())]), "column 'word' .string. is missing; there are n"),
        (pa.schema([("n", pa.float64())]), "column 'n' is int64, not double"),
        (pa.schema([]), "columns n are not expected"),
    ],
)
def test_schemas_that_do_not_meet_are_told_by_column(wanted: pa.Schema, said: str) -> None:
    with pytest.raises(WorkflowError, match=f"operator 'b' can't read the rows of 'a': {said}"):
        check_workflow(by_name(operator("a", None, None), operator("b", "a", wanted)))


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda docs, index: docs.embed("hash").upsert(index), "'upsert' can't read the rows of 'embed'"),
        (lambda docs, index: docs.transform().upsert(index), "'upsert' can't read the rows of 'transform'.*'vector'"),
        (lambda docs, index: docs.transform().transform(name="again"), "'again' can't read the rows of 'transform'"),
        (
            lambda docs, index: docs.apply("os:getcwd", name="cut", output=NUMBERS).embed("hash"),
            "'cut'.*can't be called",
        ),
        (
            lambda docs, index: docs.apply(f"{__name__}:keep", name="cut", output=NUMBERS).embed("hash"),
            "'embed' embeds the column 'text'",
        ),
        (
            lambda docs, index: docs.apply(f"{__name__}:keep", name="cut", output=NUMBERS).apply(
                f"{__name__}:keep", name="all", pattern=Pattern.SHUFFLE_COMPUTE
            ),
            "'all' wants its rows by the column 'partition'",
        ),
    ],
)
def test_operators_whose_rows_do_not_fit_are_refused(
    build: Callable[..., object], said: str, tmp_path: Path, docs: Path, site: MakeSite
) -> None:
    workflow = Workflow()
    build(workflow.load(docs), tmp_path / "index")
    with pytest.raises(WorkflowError, match=said):
        compile_workflow(workflow, site=site(), ranks=1)
    assert not (tmp_path / "index").exists()


def refusal(function: object, **options: object) -> str:
    workflow = Workflow()
    workflow.load("docs").apply(function, name="mine", options=options)  # type: ignore[arg-type]
    with pytest.raises(WorkflowError) as caught:
        check_workflow(workflow.operators)
    return str(caught.value)


def test_a_function_that_a_rank_could_not_import_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closure(batch: pa.RecordBatch) -> pa.RecordBatch:
        return batch.slice(NOT_A_FUNCTION)

    (tmp_path / "broken_module_of_a_user.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    made = types.ModuleType("made_in_a_notebook")
    made.work = closure  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, made.__name__, made)
    said = {
        "lambda": refusal(lambda batch: batch),
        "closure": refusal(closure),
        "main": refusal("__main__:work"),
        "module": refusal("no_such_module_anywhere:work"),
        "name": refusal("os:no_such_name"),
        "attribute": refusal("os:path.no_such_name"),
        "path": refusal("os.getcwd"),
        "value": refusal(f"{__name__}:NOT_A_FUNCTION"),
        "memory": refusal("made_in_a_notebook:work"),
        "raises": refusal("broken_module_of_a_user:work"),
    }
    assert all("operator 'mine'" in text for text in said.values())
    assert "lambda" in said["lambda"]
    assert "closure" in said["closure"]
    assert "__main__" in said["main"]
    assert "no_such_module_anywhere" in said["module"]
    assert "no_such_name" in said["name"]
    assert "no_such_name" in said["attribute"]
    assert "module:function" in said["path"]
    assert "not callable" in said["value"]
    assert "'made_in_a_notebook' is only in this program's memory" in said["memory"]
    assert "division by zero" in said["raises"]


def test_options_that_a_function_does_not_take_are_refused() -> None:
    assert "unexpected keyword argument 'colour'" in refusal(f"{__name__}:keep", colour="red")
    assert "not JSON" in refusal(f"{__name__}:keep", flag={1, 2})
    assert "not JSON" in refusal(f"{__name__}:keep", flag=float("nan"))


@pytest.mark.parametrize("options", [{"colour": "red"}, {"size": 0}, {"splitter": "sentences"}, {"size": "big"}])
def test_options_that_transform_does_not_have_are_refused(
    options: dict[str, object], docs: Path, site: MakeSite, tmp_path: Path
) -> None:
    workflow = Workflow()
    workflow.load(docs).transform(name="cut", **options).embed("hash").upsert(tmp_path / "index")
    with pytest.raises(WorkflowError, match="operator 'cut'"):
        compile_workflow(workflow, site=site(), ranks=1)


@pytest.mark.parametrize("options", [{"colour": "red"}, {"format": "docx"}, {"max_record_bytes": 0}])
def test_options_that_load_does_not_have_are_refused(
    options: dict[str, object], docs: Path, site: MakeSite, ingestion: Ingestion
) -> None:
    with pytest.raises(WorkflowError, match="operator 'load'"):
        compile_workflow(ingestion(docs, **options), site=site(), ranks=1)


def test_a_path_that_is_not_there_is_refused(site: MakeSite, ingestion: Ingestion, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        compile_workflow(ingestion(tmp_path / "nowhere"), site=site(), ranks=1)


def test_a_workflow_has_one_load_and_one_index(
    docs: Path, site: MakeSite, ingestion: Ingestion, tmp_path: Path
) -> None:
    workflow = ingestion(docs)
    workflow.load(docs, name="more").transform(name="cut")
    with pytest.raises(WorkflowError, match="load, more all load"):
        compile_workflow(workflow, site=site(), ranks=1)
    workflow = Workflow()
    vectors = workflow.load(docs).transform().embed("hash")
    vectors.upsert(tmp_path / "one", name="one")
    vectors.upsert(tmp_path / "two", name="two")
    with pytest.raises(WorkflowError, match="one, two all write an index"):
        compile_workflow(workflow, site=site(), ranks=1)
