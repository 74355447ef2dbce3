"""Workflow: compose operators into a DAG. Building one runs nothing.

workflow = Workflow()
workflow.load("docs/").transform(size=1000).embed("hash").upsert("my-index")
plan = aaflow.compile(workflow, ranks=2)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from aaflow import schema
from aaflow.errors import WorkflowError
from aaflow.operators.operator import Domain, Operator, Pattern

if TYPE_CHECKING:
    import pyarrow.compute as pc


@dataclass(frozen=True)
class Stream:
    """The rows that one operator of a workflow gives; its methods add the operators that read them."""

    workflow: Workflow
    operator: Operator

    @property
    def schema(self) -> pa.Schema:
        """Schema of the rows.

        Raises:
            WorkflowError: the operator is the end of its chain and gives no rows.
        """
        if self.operator.output is None:
            raise WorkflowError(f"operator {self.operator.name!r} gives no rows: nothing can follow it")
        return self.operator.output

    @property
    def metadata(self) -> Mapping[str, str]:
        """The fields of the rows' ``metadata``, name to type name; those of the workflow where rows have none."""
        kind = self.schema.field("metadata").type if "metadata" in self.schema.names else None
        try:
            return schema.metadata_fields(kind) if isinstance(kind, pa.StructType) else self.workflow.metadata
        except ValueError:  # of a user's own making: where it does not fit, compiling says so
            return self.workflow.metadata

    def transform(self, *, name: str = "transform", **options: Any) -> Stream:
        """Split documents into chunks; options of :class:`aaflow.operators.transform.TransformOptions`."""
        return self._then(
            Operator(
                name=name,
                kind="transform",
                function="aaflow.operators.transform:Transform",
                input=schema.documents(self.metadata),
                output=schema.chunks(self.metadata),
                pattern=Pattern.EMBARRASSINGLY_PARALLEL,
                domain=Domain.CPU_PARTITION,
                options=options,
            )
        )

    def embed(
        self,
        model: str = "hash",
        *,
        dimension: int | None = None,
        device: str = "auto",
        window: int = 2048,
        name: str = "embed",
    ) -> Stream:
        """Add a ``vector`` column to any rows that have a ``text`` column.

        Args:
            model: ``hash``, or the name or folder of a sentence-transformers model.
            dimension: of the vectors; a model of its own dimension needs none.
            device: ``cpu``, ``accelerator``, or ``auto``: the accelerator of the slot where the site has any.
            window: rows that are sorted by length and embedded together.
            name: name of the operator.

        Raises:
            WorkflowError: ``device`` is unknown, or ``window`` is no positive number.
            InputError: the model is unknown, or its dimension is another one.
            DependencyError: the model needs a package that isn't installed.
        """
        from aaflow.operators.embedders import describe_embedder

        if device not in ("auto", "cpu", "accelerator"):
            raise WorkflowError(f"operator {name!r}: unknown device {device!r}; use auto, cpu or accelerator")
        _require_positive(name, window=window)
        known, _ = describe_embedder(model, dimension)
        return self._then(
            Operator(
                name=name,
                kind="embed",
                function="aaflow.operators.embed:Embed",
                input=self.schema,
                output=self.schema.append(schema.vector_field(known)),
                pattern=Pattern.EMBARRASSINGLY_PARALLEL,
                domain=Domain.BATCH_WORKER,
                options={"model": model, "dimension": known, "device": device, "window": window},
            )
        )

    def upsert(
        self,
        index: str | Path,
        *,
        partitions: int | None = None,
        metric: str = "cosine",
        prune: bool = False,
        name: str = "upsert",
    ) -> Stream:
        """Write embedded chunks into the index folder, in bulk per partition.

        Args:
            index: folder of the index; made if there is none.
            partitions: their number; by default that of the index, 64 in a new one.
            metric: ``cosine`` (inner product of normalised vectors), ``ip`` or ``l2``.
            prune: whether documents of the given roots that are gone leave the index.
            name: name of the operator.

        Raises:
            WorkflowError: ``partitions`` is no positive number.
        """
        _require_positive(name, partitions=1 if partitions is None else partitions)
        vector = self.schema.field("vector").type if "vector" in self.schema.names else None
        dimension = vector.list_size if isinstance(vector, pa.FixedSizeListType) else 1
        options = {
            "index": str(Path(index).expanduser().absolute()),
            "partitions": partitions,
            "metric": metric,
            "prune": prune,
        }
        return self._then(
            Operator(
                name=name,
                kind="upsert",
                function="aaflow.operators.upsert:Upsert",
                input=schema.embedded(dimension, self.metadata),
                output=None,
                pattern=Pattern.SHUFFLE_REDUCE,
                domain=Domain.BATCH_WRITE,
                options=options,
            )
        )

    def retrieve(self, index: str | Path, *, k: int = 10, backend: str = "exact", name: str = "retrieve") -> Stream:
        """The ``k`` nearest chunks of every query: the query to all shards, local top-k, merged top-k.

        Raises:
            WorkflowError: ``k`` is no positive number.
            IndexMissing: there is no index at this path.
        """
        from aaflow.index import open_index

        _require_positive(name, k=k)
        folder = Path(index).expanduser().absolute()
        with open_index(folder) as opened:
            spec = opened.spec
        return self._then(
            Operator(
                name=name,
                kind="retrieve",
                function="aaflow.operators.retrieve:Retrieve",
                input=schema.queries(spec.dimension),
                output=schema.hits(spec.metadata),
                pattern=Pattern.BROADCAST_REDUCE,
                domain=Domain.VECTOR_SHARD,
                options={"index": str(folder), "k": k, "backend": backend},
            )
        )

    def filter(self, where: str | pc.Expression, *, name: str = "filter") -> Stream:
        """Keep the rows for which ``where`` is true; where it is false or null they leave.

        Args:
            where: a text of :mod:`aaflow.operators.expressions`, such as ``metadata.year >= 2000``, or an expression
                of pyarrow that Substrait can hold.
            name: name of the operator.

        Raises:
            WorkflowError: it is no expression, or does not fit the rows; the text names their columns.
        """
        from aaflow.operators.declare import declare_filter

        return self._then(declare_filter(name, self.schema, where))

    def join(
        self,
        table: str | Path,
        *,
        on: str,
        key: str | None = None,
        columns: Sequence[str] | None = None,
        name: str = "join",
    ) -> Stream:
        """Add columns of a table to the ``metadata`` of documents or chunks; a left join.

        A row whose key the table lacks gets nulls, or keeps its own values of fields that it has already. New fields
        get the types of the table's columns; the table's values of declared ones are cast to the declared types.

        Args:
            table: a CSV, TSV, Parquet, Arrow or JSON lines file, which rank 0 reads; its bytes belong to the plan.
            on: column of the rows, such as ``source`` or ``metadata.isbn``.
            key: column of the table that it must equal; by default of the same name.
            columns: those to add; by default all but the key.
            name: name of the operator.

        Raises:
            WorkflowError: the table can't be read, a column is missing, or a key occurs twice; the text says which.
        """
        from aaflow.operators.declare import declare_join

        return self._then(declare_join(name, self.schema, table, on, key, columns))

    def deduplicate(self, *, name: str = "deduplicate") -> Stream:
        """Keep one document, or after ``transform`` one chunk, for each content hash, over the whole run.

        What the index holds and this run leaves as it is wins, then the lowest document id (and ordinal). It gives
        nothing before it has seen all rows, which it keeps in a file of the run folder.

        Raises:
            WorkflowError: the rows are neither documents nor chunks.
        """
        from aaflow.operators.declare import declare_deduplicate

        return self._then(declare_deduplicate(name, self.schema))

    def aggregate(self, by: Sequence[str], values: Mapping[str, str], *, name: str = "aggregate") -> Stream:
        """Group all rows of the run; one row a group, by rising key.

        Args:
            by: expressions of the keys, such as ``["source_type", "metadata.year"]``; empty for one group of all rows.
            values: column to ``count()``, ``count(x)``, ``sum(x)``, ``min(x)``, ``max(x)`` or ``mean(x)`` of an
                expression; nulls are left out. Sums and means do not depend on the order of the rows.
            name: name of the operator.

        Raises:
            WorkflowError: a key or value does not fit the rows, or two columns have one name.
        """
        from aaflow.operators.declare import declare_aggregate

        return self._then(declare_aggregate(name, self.schema, by, values))

    def apply(
        self,
        function: str | Callable[..., Any],
        *,
        output: pa.Schema | None = None,
        input: pa.Schema | None = None,
        pattern: Pattern = Pattern.EMBARRASSINGLY_PARALLEL,
        domain: Domain = Domain.CPU_PARTITION,
        options: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> Stream:
        """Your own operator: a function ``RecordBatch -> RecordBatch``, called with ``options`` as keywords.

        Args:
            function: ``module:name``, or a function that a rank can import by that path.
            output: schema of the rows it gives; by default that of the rows that come in.
            input: schema of the rows it takes; by default that of the rows that come in.
            pattern: with ``SHUFFLE_REDUCE`` or ``SHUFFLE_COMPUTE`` it sees all rows of a partition and tranche at once.
            domain: the kind of slot it needs.
            options: JSON values.
            name: name of the operator; by default that of the function.

        Raises:
            WorkflowError: ``function`` is an object without a name of its own, such as a partial.
        """
        path = function if isinstance(function, str) else _import_path(function)
        return self._then(
            Operator(
                name=name or path.rpartition(":")[2].replace(".", "-"),
                kind="apply",
                function=path,
                input=input or self.schema,
                output=output or self.schema,
                pattern=pattern,
                domain=domain,
                options=dict(options or {}),
            )
        )

    def _then(self, operator: Operator) -> Stream:
        return self.workflow.add(operator, upstream=self.operator.name)


@dataclass
class Workflow:
    """A DAG of operators with typed edges.

    Attributes:
        metadata: metadata fields that documents carry besides ``title``: name to type name (see
            :func:`aaflow.schema.metadata_type`).
        operators: by name, in the order in which they were added.
    """

    metadata: Mapping[str, str] = field(default_factory=dict)
    operators: dict[str, Operator] = field(default_factory=dict)

    def load(self, paths: str | Path | Iterable[str | Path], *, name: str = "load", **options: Any) -> Stream:
        """Read documents from folders, files, globs and fsspec URLs.

        ``options`` are those of :class:`aaflow.operators.listing.LoadOptions`.
        """
        given = [paths] if isinstance(paths, (str, Path)) else list(paths)
        return self.add(
            Operator(
                name=name,
                kind="load",
                function="aaflow.operators.load:Load",
                input=None,
                output=schema.documents(self.metadata),
                pattern=Pattern.EMBARRASSINGLY_PARALLEL,
                domain=Domain.CPU_PARTITION,
                options={"paths": [str(path) for path in given], "metadata": dict(self.metadata), **options},
            )
        )

    def queries(self, texts: Sequence[str], *, name: str = "queries") -> Stream:
        """Start from questions instead of documents: one row of :data:`aaflow.schema.QUERIES` a text."""
        return self.add(
            Operator(
                name=name,
                kind="queries",
                function="aaflow.operators.retrieve:Queries",
                input=None,
                output=schema.QUERIES,
                pattern=Pattern.EMBARRASSINGLY_PARALLEL,
                domain=Domain.CPU_PARTITION,
                options={"texts": list(texts)},
            )
        )

    @classmethod
    def retrieval(
        cls,
        index: str | Path,
        texts: Sequence[str],
        *,
        k: int = 10,
        backend: str = "exact",
        model: str | None = None,
    ) -> Workflow:
        """The workflow ``queries → embed → retrieve`` with the model of the index.

        ``model`` says where that model lies, by default where it was found when the index was built.

        Raises:
            IndexMissing: there is no index at this path.
        """
        from aaflow.index import open_index

        workflow = cls()
        with open_index(Path(index)) as opened:
            spec = opened.spec
        queries = workflow.queries(texts)
        queries.embed(model or str(spec.embedder["model"]), dimension=spec.dimension).retrieve(
            index, k=k, backend=backend
        )
        return workflow

    def add(self, operator: Operator, *, upstream: str | None = None) -> Stream:
        """Add an operator that reads the output of ``upstream``.

        Raises:
            WorkflowError: the name is taken.
        """
        if operator.name in self.operators:
            raise WorkflowError(f"two operators are named {operator.name!r}: give one of them another name=")
        placed = replace(operator, upstream=upstream)
        self.operators[placed.name] = placed
        return Stream(self, placed)


def _import_path(function: Callable[..., Any]) -> str:
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not module or not name:
        raise WorkflowError(
            f"apply: {function!r} has no import path that a rank could use; give a function at the top of a module, "
            "and what it is called with as options="
        )
    return f"{module}:{name}"


def _require_positive(operator: str, **numbers: Any) -> None:
    for name, number in numbers.items():
        if not isinstance(number, int) or number < 1:
            raise WorkflowError(f"operator {operator!r}: {name} is {number!r}; it must be a whole number from 1")
