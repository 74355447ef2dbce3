"""What must hold before a workflow is compiled; every error names the operator."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping

import pyarrow as pa

from aaflow.compiler.plan import canonical_json
from aaflow.errors import WorkflowError
from aaflow.operators.operator import Operator, Pattern

#: Patterns whose rows go to the owner of their partition.
SHUFFLES = (Pattern.SHUFFLE_REDUCE, Pattern.SHUFFLE_COMPUTE)

_NAME = re.compile(r"[A-Za-z0-9_-]+")


def check_workflow(operators: Mapping[str, Operator]) -> list[Operator]:
    """Check a workflow; give its operators in the order of their edges.

    Raises:
        WorkflowError: no operator, a missing input, a cycle, schemas that do not meet, a function no rank can import.
    """
    if not operators:
        raise WorkflowError("the workflow has no operator: start with load() or queries()")
    for operator in operators.values():
        check_function(operator)
        if not _NAME.fullmatch(operator.name):
            raise WorkflowError(
                f"operator {operator.name!r}: a name is letters, digits, '_' and '-', since files are named by it"
            )
        _check_input(operator, operators)
    return _in_order(operators)


def check_function(operator: Operator) -> None:
    """An operator's function must be something that a rank on another node can import by its path.

    Raises:
        WorkflowError: it is a lambda, a closure, of ``__main__`` or of a module without a file, can't be imported, or
            doesn't take its options.
    """
    module, _, name = operator.function.partition(":")
    if not module or not name:
        raise WorkflowError(
            f"operator {operator.name!r}: {operator.function!r} is no import path like 'module:function'"
        )
    if "<lambda>" in name or "<locals>" in name:
        kind = "a lambda" if "<lambda>" in name else "a closure"
        raise WorkflowError(
            f"operator {operator.name!r}: {kind} can't be imported by a rank; define a function at the top of a module"
        )
    if module == "__main__":
        raise WorkflowError(
            f"operator {operator.name!r}: {name!r} is defined in the program itself (__main__), which ranks don't "
            "import; move it into a module of its own"
        )
    try:
        found = inspect.getattr_static(importlib.import_module(module), name.split(".")[0])
        for part in name.split(".")[1:]:
            found = getattr(found, part)
    except Exception as error:  # a module may raise anything while it is imported
        raise WorkflowError(f"operator {operator.name!r}: {operator.function!r} can't be imported: {error}") from error
    if not _on_disk(module.partition(".")[0]):
        raise WorkflowError(
            f"operator {operator.name!r}: module {module!r} is only in this program's memory, so no rank can import "
            f"{name!r}; write it to a file on the import path"
        )
    if not callable(found):
        raise WorkflowError(f"operator {operator.name!r}: {operator.function!r} is not callable")
    if operator.kind == "apply":
        _check_call(operator, found)


def _on_disk(package: str) -> bool:
    """Whether the import system finds a module anew, and does not only remember it."""
    finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
    return any(find is not None and find(package, None) is not None for find in finders)


def _check_call(operator: Operator, function: Callable[..., object]) -> None:
    """A user's function is called with a record batch and its options, which travel as JSON."""
    try:
        canonical_json(dict(operator.options))
    except (TypeError, ValueError) as error:
        raise WorkflowError(f"operator {operator.name!r}: its options are not JSON values: {error}") from error
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # compiled functions need not have one
        return
    try:
        signature.bind(None, **operator.options)
    except TypeError as error:
        raise WorkflowError(
            f"operator {operator.name!r}: {operator.function!r} can't be called with a record batch and the options "
            f"{', '.join(operator.options) or '(none)'}: {error}"
        ) from error


def _check_input(operator: Operator, operators: Mapping[str, Operator]) -> None:
    if operator.upstream is None:
        if operator.input is not None:
            raise WorkflowError(f"operator {operator.name!r} has no input: name the operator whose rows it reads")
        return
    if operator.upstream not in operators:
        raise WorkflowError(
            f"operator {operator.name!r} reads from {operator.upstream!r}, which is not in the workflow"
        )
    given, wanted = operators[operator.upstream].output, operator.input
    if given is None:
        raise WorkflowError(f"operator {operator.name!r} reads from {operator.upstream!r}, which gives no rows")
    if wanted is None:
        raise WorkflowError(f"operator {operator.name!r} takes no rows, but reads from {operator.upstream!r}")
    problem = schema_difference(given, wanted)
    if problem:
        raise WorkflowError(f"operator {operator.name!r} can't read the rows of {operator.upstream!r}: {problem}")
    if operator.kind == "embed" and not _has_column(given, "text", pa.string()):
        raise WorkflowError(
            f"operator {operator.name!r} embeds the column 'text' (string), which rows of {operator.upstream!r} lack"
        )
    if operator.pattern in SHUFFLES and not _has_column(given, "partition", pa.int32()):
        raise WorkflowError(
            f"operator {operator.name!r} wants its rows by the column 'partition' (int32), which rows of "
            f"{operator.upstream!r} lack"
        )


def _has_column(given: pa.Schema, name: str, kind: pa.DataType) -> bool:
    return name in given.names and given.field(name).type == kind


def schema_difference(given: pa.Schema, wanted: pa.Schema) -> str | None:
    """Why rows of the schema ``given`` are not what ``wanted`` asks for; None where they are."""
    for field in wanted:
        index = given.get_field_index(field.name)
        if index < 0:
            return f"column {field.name!r} ({field.type}) is missing; there are {', '.join(given.names)}"
        if given.field(index).type != field.type:
            return f"column {field.name!r} is {given.field(index).type}, not {field.type}"
    extra = [name for name in given.names if wanted.get_field_index(name) < 0]
    return f"columns {', '.join(extra)} are not expected" if extra else None


def _in_order(operators: Mapping[str, Operator]) -> list[Operator]:
    ordered: list[Operator] = []
    done: set[str] = set()
    waiting = list(operators.values())
    while waiting:
        ready = [operator for operator in waiting if operator.upstream is None or operator.upstream in done]
        if not ready:
            raise WorkflowError(f"the operators {', '.join(sorted(op.name for op in waiting))} form a cycle")
        ordered.extend(ready)
        done.update(operator.name for operator in ready)
        waiting = [operator for operator in waiting if operator.name not in done]
    return ordered
