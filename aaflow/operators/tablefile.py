"""Table files that ``join`` reads: CSV, TSV, Parquet, Arrow and JSON lines."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.ipc
import pyarrow.json
import pyarrow.parquet

from aaflow import schema
from aaflow.errors import InputError

FORMATS = ("csv", "tsv", "parquet", "arrow", "feather", "jsonl", "ndjson")


def describe_join_table(
    path: Path, key: str, key_type: str, declared: Mapping[str, str], columns: Sequence[str] | None
) -> dict[str, Any]:
    """The options by which a plan names a table: ``table``, ``digest``, ``key``, ``key_type``, ``fields``.

    Args:
        path: of the file, by whose ending its format is known; CSV and JSON lines may be compressed.
        key: the column that rows are found by; distinct values.
        key_type: name of the type of what it meets, one that metadata can have.
        declared: types that metadata fields have already; the table's are cast to them.
        columns: those that are joined; by default all but the key.

    Raises:
        InputError: the file can't be read, a column is missing or of a type that metadata can't have, or a key occurs
            twice.
    """
    options = {"table": str(path), "digest": file_digest(path), "key": key, "key_type": key_type}
    table = _read(path, {**declared, key: key_type})
    twice = [name for name in table.column_names if table.column_names.count(name) > 1]
    if twice:
        raise InputError(f"table {path} has {table.column_names.count(twice[0])} columns {twice[0]!r}: rename them")
    missing = [name for name in (key, *(columns or ())) if name not in table.column_names]
    if missing:
        raise InputError(f"table {path} has no column {missing[0]!r}; there are {', '.join(table.column_names)}")
    named = [name for name in table.column_names if name != key] if columns is None else list(columns)
    fields = {name: declared.get(name) or _type_of_column(path, table.schema.field(name)) for name in named}
    prepared = _prepared(path, table, key, key_type, fields)
    _refuse_duplicates(path, key, prepared["key"])
    return {**options, "fields": fields}


def read_join_table(options: Mapping[str, Any]) -> pa.Table:
    """The table that :func:`describe_join_table` described: ``key``, and ``metadata.NAME`` for each of its fields.

    Strings are large strings, so that any number of rows can be one chunk.

    Raises:
        InputError: the file has changed since, or can't be read.
    """
    path = Path(options["table"])
    if file_digest(path) != options["digest"]:
        raise InputError(f"table {path} has changed since the plan was made: compile again")
    fields = dict(options["fields"])
    key, key_type = options["key"], options["key_type"]
    return _prepared(path, _read(path, {**fields, key: key_type}), key, key_type, fields)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal.

    Raises:
        InputError: it can't be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise InputError(f"table {path} can't be read: {error.strerror or error}") from error
    return digest.hexdigest()


def _read(path: Path, types: Mapping[str, str]) -> pa.Table:
    """All of a table; columns of CSV get ``types``, by name, instead of what their values look like.

    An empty field of CSV is null unless it is in quotes.
    """
    endings = [ending.lstrip(".").lower() for ending in path.suffixes]
    kind = next((ending for ending in reversed(endings) if ending in FORMATS), None)
    try:
        if kind in ("csv", "tsv"):
            parsing = pa.csv.ParseOptions(delimiter="\t" if kind == "tsv" else ",", newlines_in_values=True)
            known = {name: schema.METADATA_TYPES[type_name] for name, type_name in types.items()}
            conversion = pa.csv.ConvertOptions(
                column_types=known, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
            )
            return pa.csv.read_csv(str(path), parse_options=parsing, convert_options=conversion)
        if kind in ("jsonl", "ndjson"):
            return pa.json.read_json(str(path))
        if kind == "parquet":
            return pa.parquet.ParquetFile(str(path)).read()
        if kind in ("arrow", "feather"):
            return _read_arrow(path)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"table {path} can't be read: {str(error).splitlines()[0]}") from error
    raise InputError(f"table {path}: its name ends in none of .{', .'.join(FORMATS)}, so its format is not known")


def _read_arrow(path: Path) -> pa.Table:
    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_stream(source).read_all()


def _type_of_column(path: Path, field: pa.Field) -> str:
    """The metadata type that a column of a table becomes."""
    name = schema.metadata_type_name(field.type.value_type if pa.types.is_dictionary(field.type) else field.type)
    if name is None:
        raise InputError(
            f"table {path}: column {field.name!r} is {field.type}, which metadata can't hold; name the columns to "
            "join, or leave it out of the table"
        )
    return name


def _prepared(path: Path, table: pa.Table, key: str, key_type: str, fields: Mapping[str, str]) -> pa.Table:
    columns = [_cast(path, name, table[name], kind) for name, kind in [(key, key_type), *fields.items()]]
    return pa.table(columns, names=["key", *(f"metadata.{name}" for name in fields)])


def _cast(path: Path, name: str, column: pa.ChunkedArray, type_name: str) -> pa.ChunkedArray:
    kind = pa.large_string() if type_name == "string" else schema.METADATA_TYPES[type_name]
    try:
        if pa.types.is_timestamp(kind) and pa.types.is_timestamp(column.type) and column.type.tz is None:
            column = pc.assume_timezone(column, "UTC")
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"table {path}: column {name!r} ({column.type}) is no {type_name}: {reason}") from error


def _refuse_duplicates(path: Path, key: str, keys: pa.ChunkedArray) -> None:
    counts = keys.drop_null().value_counts()
    twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        first = sorted(str(value) for value in twice.to_pylist())[0]
        more = f", and {len(twice) - 1} other keys do" if len(twice) > 1 else ""
        raise InputError(
            f"table {path}: key {first!r} of column {key!r} occurs more than once{more}; a key names one row"
        )
