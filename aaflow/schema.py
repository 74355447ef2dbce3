"""The Arrow schema of every edge, in one place.

Rows of ``documents``, ``chunks`` and ``embedded`` carry a ``metadata`` struct whose fields the workflow declares once,
so that every file format ends in one typed schema.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

#: Metadata fields that every index has: what most formats know about a document.
DEFAULT_METADATA: Mapping[str, str] = {"title": "string"}

#: The types that a metadata field can have, by the names that workflows use.
METADATA_TYPES: Mapping[str, pa.DataType] = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}


def metadata_type(fields: Mapping[str, str] | None = None) -> pa.StructType:
    """The struct type of the ``metadata`` column: :data:`DEFAULT_METADATA` and ``fields``, sorted by name.

    Args:
        fields: field name to type name (string, int64, float64, bool, date, timestamp).

    Raises:
        ValueError: a type name is unknown.
    """
    named = {**DEFAULT_METADATA, **(fields or {})}
    for name, type_name in named.items():
        if type_name not in METADATA_TYPES:
            raise ValueError(f"metadata field {name!r}: unknown type {type_name!r}; use {', '.join(METADATA_TYPES)}")
    return pa.struct([pa.field(name, METADATA_TYPES[named[name]]) for name in sorted(named)])


def metadata_fields(kind: pa.StructType) -> dict[str, str]:
    """The inverse of :func:`metadata_type`: field name to type name.

    Raises:
        ValueError: a field has a type that :func:`metadata_type` doesn't give.
    """
    names = {known: name for name, known in METADATA_TYPES.items()}
    strange = [field for field in kind if field.type not in names]
    if strange:
        raise ValueError(f"metadata field {strange[0].name!r} is {strange[0].type}; use {', '.join(METADATA_TYPES)}")
    return {field.name: names[field.type] for field in kind}


def metadata_type_name(kind: pa.DataType) -> str | None:
    """The name of the metadata type that holds values of a type; None where none does."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind):
        return "string"
    if pa.types.is_integer(kind):
        return "int64"
    if pa.types.is_floating(kind):
        return "float64"
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_date(kind):
        return "date"
    return "timestamp" if pa.types.is_timestamp(kind) else None


def documents(metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """One row per document: a whole file, or one record of a file of records.

    ``doc_id`` is ``source`` for a whole file and ``source#key`` for a record (key: id column, else byte offset or row
    number). ``record`` is the byte offset or row number of the record in its file, 0 for a whole file. ``source`` is
    the URI relative to its root. ``content_hash`` is the SHA-256 of the text's UTF-8 and the canonical metadata.
    ``partition`` is the owner: the first 8 bytes (big endian) of SHA-256(doc_id) modulo the number of partitions.
    """
    return pa.schema(
        [
            pa.field("doc_id", pa.string(), nullable=False),
            pa.field("partition", pa.int32(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("record", pa.int64(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("content_hash", pa.binary(32), nullable=False),
            pa.field("source_type", pa.string(), nullable=False),
            pa.field("scope", pa.string(), nullable=False),
            pa.field("metadata", metadata_type(metadata), nullable=False),
        ]
    )


def chunks(metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """One row per chunk of a document.

    ``chunk_id`` is the first 16 bytes of SHA-256(doc_id, start, text): content and place, nothing else. ``start`` and
    ``end`` are byte offsets into the UTF-8 of the document's text (for a plain UTF-8 file: of the file). ``ordinal``
    counts the chunks of a document from 0. ``content_hash`` is the SHA-256 of the chunk's text, ``doc_hash`` the
    document's ``content_hash``.
    """
    return pa.schema(
        [
            pa.field("chunk_id", pa.binary(16), nullable=False),
            pa.field("doc_id", pa.string(), nullable=False),
            pa.field("partition", pa.int32(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("record", pa.int64(), nullable=False),
            pa.field("ordinal", pa.int32(), nullable=False),
            pa.field("start", pa.int64(), nullable=False),
            pa.field("end", pa.int64(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("content_hash", pa.binary(32), nullable=False),
            pa.field("doc_hash", pa.binary(32), nullable=False),
            pa.field("source_type", pa.string(), nullable=False),
            pa.field("scope", pa.string(), nullable=False),
            pa.field("metadata", metadata_type(metadata), nullable=False),
        ]
    )


def vector_field(dimension: int) -> pa.Field:
    """The ``vector`` column: ``fixed_size_list<float32>[dimension]``, neither the list nor its values null."""
    return pa.field("vector", pa.list_(pa.field("item", pa.float32(), nullable=False), dimension), nullable=False)


def embedded(dimension: int, metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """:func:`chunks` and their ``vector``."""
    return chunks(metadata).append(vector_field(dimension))


#: What happened to one document beside becoming rows. ``kind``: ``skipped`` (not indexed, ``reason`` says why),
#: ``conflict`` (a metadata value that does not fit its type became null), ``duplicate`` (dropped, wholly or some of its
#: chunks, since another document has the same) or ``kept`` (unchanged in the index).
NOTICES = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("record", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)

#: One row per file, or per byte range of a file of records, to read. ``root`` is the absolute URI that ``source`` is
#: relative to; ``[start, end)`` is the byte range (row range for parquet); ``records`` says whether its rows are
#: documents of their own, which belong to many partitions.
LISTING = pa.schema(
    [
        pa.field("root", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("format", pa.string(), nullable=False),
        pa.field("compression", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("mtime_ns", pa.int64(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("end", pa.int64(), nullable=False),
        pa.field("records", pa.bool_(), nullable=False),
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("tranche", pa.int32(), nullable=False),
    ]
)

#: The questions of a retrieval.
QUERIES = pa.schema([pa.field("query_id", pa.int32(), nullable=False), pa.field("text", pa.string(), nullable=False)])


def queries(dimension: int) -> pa.Schema:
    """:data:`QUERIES` and their ``vector``."""
    return QUERIES.append(vector_field(dimension))


def hits(metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """The answers of a retrieval: per query, by falling ``score`` and then by rising ``chunk_id``; ``rank`` from 0."""
    fields = [pa.field("query_id", pa.int32(), nullable=False), pa.field("rank", pa.int32(), nullable=False)]
    fields.append(pa.field("score", pa.float32(), nullable=False))
    return pa.schema(fields + [f for f in chunks(metadata) if f.name != "doc_hash"])
