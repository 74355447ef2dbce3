"""What the formats of records share: which columns are read, and how they become a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from aaflow.operators.readers.documents import NOT_BLANK, Rows, strings
from aaflow.operators.readers.notices import Unreadable
from aaflow.operators.readers.options import TEXT_COLUMNS, LoadOptions, Split
from aaflow.schema import metadata_type

#: Between the columns of one text.
SEPARATOR = "\n\n"


def record_rows(
    split: Split, options: LoadOptions, columns: Mapping[str, pa.Array], text: pa.Array, position: pa.Array
) -> Rows:
    """Rows whose key is the id column's value, or ``position`` (int64: byte offset or row number) where it has none."""
    count = len(text)
    key = position.cast(pa.string())
    if options.id_column is not None and options.id_column in columns:
        key = pc.coalesce(strings(columns[options.id_column]), key)
    source = pa.repeat(pa.scalar(split.source, pa.string()), count)
    return Rows(
        doc_id=pc.binary_join_element_wise(source, key, "#"),
        source=source,
        record=position,
        text=text,
        source_type=pa.repeat(pa.scalar(split.format, pa.string()), count),
        metadata={f.name: columns[f.name] for f in metadata_type(options.metadata) if f.name in columns},
    )


def named_columns(options: LoadOptions) -> list[str]:
    """Columns beside the text ones that are read where they exist: the id and the metadata."""
    names = [f.name for f in metadata_type(options.metadata)]
    return names if options.id_column is None else [*names, options.id_column]


def text_names(split: Split, options: LoadOptions, present: Sequence[str], text_like: Sequence[str]) -> list[str]:
    """The columns that may hold the text of a file whose columns are known.

    Args:
        split: for the error.
        options: names the text columns, or None.
        present: all columns of the file.
        text_like: those of them that hold strings.

    Raises:
        Unreadable: there is none.
    """
    if options.text_columns is not None:
        names = [name for name in options.text_columns if name in present]
    else:
        names = [name for name in TEXT_COLUMNS if name in text_like]
        names = names or [name for name in text_like if name != options.id_column]
    if not names:
        wanted = ", ".join(options.text_columns or ("with text",))
        raise Unreadable(f"no column {wanted}; it has {', '.join(present)[:300]}: name its text columns")
    return names


def first_or_joined(options: LoadOptions, names: Sequence[str], columns: Sequence[pa.Array]) -> pa.Array:
    """The text of each row: the first column that is not blank if all are usual names for it, else all joined."""
    if len(columns) == 1:
        return columns[0]
    if options.text_columns is None and set(names) <= set(TEXT_COLUMNS):
        return _coalesce(columns)
    first, *others = map(_without_blank, columns)
    # pyarrow loses a row of which all columns are null: give it an empty one.
    none = pc.is_null(first)
    for other in others:
        none = pc.and_(none, pc.is_null(other))
    first = pc.if_else(none, pa.scalar("", pa.string()), first)
    return pc.binary_join_element_wise(first, *others, SEPARATOR, null_handling="skip")


def no_text(options: LoadOptions) -> str:
    """The reason for a record without text."""
    if options.text_columns is not None:
        return f"no text in {', '.join(options.text_columns)}"
    return "no text in this record; name its text columns if it has any"


def _coalesce(columns: Sequence[pa.Array]) -> pa.Array:
    first = _without_blank(columns[0])
    if first.null_count == 0:
        return first
    return pc.coalesce(first, *map(_without_blank, columns[1:]))


def _without_blank(column: pa.Array) -> pa.Array:
    there = pc.fill_null(pc.match_substring_regex(column, NOT_BLANK), False)
    if pc.all(there).as_py():
        return column
    return pc.if_else(there, column, pa.scalar(None, pa.string()))
