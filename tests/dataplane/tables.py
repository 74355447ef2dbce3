"""Tables of every kind of column, drawn from a seed: every rank can make every rank's table."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

WORDS = ["", "a", "kiln", "ferry", "überall", "a text that is longer than any inlined view of one"]
VECTOR = pa.list_(pa.field("item", pa.float32(), nullable=False), 5)
EPOCH = datetime.datetime(2020, 1, 1)

#: Column types by name, and how one value of each is drawn; values repeat, so that keys meet.
KINDS: dict[str, tuple[pa.DataType, Callable[[np.random.Generator], Any]]] = {
    "int8": (pa.int8(), lambda draw: int(draw.integers(-5, 5))),
    "int64": (pa.int64(), lambda draw: int(draw.integers(-(2**60), 2**60)) if draw.random() < 0.5 else 7),
    "float16": (pa.float16(), lambda draw: np.float16(draw.integers(-2, 3))),
    "float64": (pa.float64(), lambda draw: [0.0, -0.0, 1.5, float("inf"), -2.25][draw.integers(5)]),
    "bool": (pa.bool_(), lambda draw: bool(draw.integers(2))),
    "null": (pa.null(), lambda draw: None),
    "date": (pa.date32(), lambda draw: datetime.date(2020, 1, 1 + int(draw.integers(28)))),
    "timestamp": (pa.timestamp("us"), lambda draw: EPOCH + datetime.timedelta(seconds=int(draw.integers(9)))),
    "decimal": (pa.decimal128(20, 2), lambda draw: Decimal(int(draw.integers(-9, 9))) / 4),
    "digest": (pa.binary(16), lambda draw: bytes([int(draw.integers(3))]) * 16),
    "text": (pa.string(), lambda draw: WORDS[draw.integers(len(WORDS))]),
    "large_text": (pa.large_string(), lambda draw: WORDS[draw.integers(len(WORDS))]),
    "binary": (pa.binary(), lambda draw: WORDS[draw.integers(len(WORDS))].encode()),
    "vector": (VECTOR, lambda draw: [float(draw.integers(3)) for _ in range(5)]),
    "nullable_vector": (pa.list_(pa.float32(), 2), lambda draw: [1.5, None if draw.random() < 0.3 else 2.5]),
    "matrix": (pa.list_(pa.list_(pa.int16(), 2), 3), lambda draw: [[int(draw.integers(3)), 1]] * 3),
    "list": (pa.list_(pa.string()), lambda draw: [WORDS[i] for i in draw.integers(0, 4, draw.integers(4))]),
    "large_list": (pa.large_list(pa.int32()), lambda draw: [int(i) for i in draw.integers(0, 4, draw.integers(4))]),
    "struct": (
        pa.struct([("title", pa.string()), ("year", pa.int16())]),
        lambda draw: {"title": WORDS[draw.integers(len(WORDS))], "year": None if draw.random() < 0.3 else 2020},
    ),
    "map": (pa.map_(pa.string(), pa.int64()), lambda draw: [(WORDS[draw.integers(1, 4)], 3)]),
    "dictionary": (pa.dictionary(pa.int32(), pa.string()), lambda draw: WORDS[draw.integers(len(WORDS))]),
    "small_dictionary": (pa.dictionary(pa.int8(), pa.int64()), lambda draw: int(draw.integers(4))),
    "dictionaries": (pa.list_(pa.dictionary(pa.int8(), pa.string())), lambda draw: [WORDS[draw.integers(4)]] * 2),
}
# Types that not every pyarrow has.
if hasattr(pa, "run_end_encoded"):
    KINDS["runs"] = pa.run_end_encoded(pa.int16(), pa.string()), KINDS["text"][1]
    KINDS["runs_of_numbers"] = pa.run_end_encoded(pa.int64(), pa.float64()), KINDS["float64"][1]
if hasattr(pa, "string_view"):
    KINDS["text_view"] = pa.string_view(), KINDS["text"][1]
    KINDS["binary_view"] = pa.binary_view(), KINDS["binary"][1]
    KINDS["struct_of_views"] = (
        pa.struct([("title", pa.string_view()), ("year", pa.int16())]),
        KINDS["struct"][1],
    )
    KINDS["list_of_views"] = pa.list_(pa.string_view()), KINDS["list"][1]
if hasattr(pa, "list_view"):
    KINDS["list_view"] = pa.list_view(pa.string()), KINDS["list"][1]
    KINDS["large_list_view"] = pa.large_list_view(pa.int32()), KINDS["large_list"][1]
#: What only a newer pyarrow has.
NEWER = [name for name in KINDS if "view" in name or "runs" in name]
#: What can be the key of a shuffle.
KEYS = [name for name in KINDS if name not in ("map", "dictionaries")]
#: What can be sorted.
SORTABLE = ["int8", "int64", "float64", "date", "timestamp", "decimal", "text", "large_text", "binary", "dictionary"]
SORTABLE += [name for name in ("runs", "text_view", "binary_view") if name in KINDS]


def make_table(kinds: Sequence[str], rows: int, seed: int) -> pa.Table:
    """Rows of these kinds: nulls, chunks, slices and dictionaries fall as the seed says."""
    draw = np.random.default_rng(seed)
    return pa.table([make_column(kind, rows, draw) for kind in kinds], names=[f"{i}:{k}" for i, k in enumerate(kinds)])


def make_column(kind: str, rows: int, draw: np.random.Generator) -> pa.ChunkedArray:
    """One column: possibly of no chunk, of empty chunks, or of chunks that begin inside their buffers."""
    type_, value = KINDS[kind]
    nulls = float(draw.choice([0.0, 0.3, 1.0], p=[0.45, 0.45, 0.1]))
    cuts = sorted(draw.integers(0, rows + 1, draw.integers(0, 4)).tolist())
    chunks = []
    for start, end in zip([0, *cuts], [*cuts, rows], strict=True):
        ahead, behind = (int(n) for n in draw.integers(0, 12, 2)) if draw.random() < 0.5 else (0, 0)
        count = ahead + end - start + behind
        values = [None if draw.random() < nulls else value(draw) for _ in range(count)]
        chunks.append(_array_of(values, type_).slice(ahead, end - start))
    if rows == 0 and draw.random() < 0.5:
        chunks = []
    return pa.chunked_array(chunks, type_)


def _array_of(values: list[Any], kind: pa.DataType) -> pa.Array:
    if "run_end_encoded" in str(kind):
        return pc.run_end_encode(pa.array(values, kind.value_type), run_end_type=kind.run_end_type)
    return pa.array(values, kind)
