"""What compiled kernels need of Arrow: the decorator, and flat views on the buffers of an array.

A kernel is a numba function without the GIL, compiled once per machine and kept on disk by numba. It sees an Arrow
column as numpy arrays that share the column's memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from llvmlite import ir
from numba import types as numba_types
from numba.core import cgutils
from numba.core.caching import FunctionCache
from numba.core.runtime.nrt import rtsys
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])


class _Cache(FunctionCache):  # type: ignore[misc, unused-ignore]
    """numba's cache, but a process that finds a kernel there does not first get ready to compile others.

    To get ready is to import scipy and 70 modules of numba's, a third of what a rank's start costs. Who compiles does
    it all the same.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """See numba."""
        rtsys.initialize(target_context)  # what compiled code calls
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)  # type: ignore[no-untyped-call, unused-ignore]


def _compiled(function: F, **options: Any) -> F:
    dispatcher = numba.njit(nogil=True, boundscheck=False, **options)(function)
    dispatcher._cache = _Cache(function)  # type: ignore[no-untyped-call, unused-ignore]
    return cast(F, dispatcher)


def kernel(function: F) -> F:
    """Compile ``function`` for numpy arguments: no GIL, no bounds checks, cached on disk."""
    return _compiled(function)


def inlined(function: F) -> F:
    """A part of kernels that costs no call: LLVM alone would call what is as long as its threshold."""
    return _compiled(function, forceinline=True)


class Bytes(NamedTuple):
    """A column of byte strings: row i is ``data[offsets[i]:offsets[i + 1]]`` unless ``valid[i]`` is 0.

    Attributes:
        data: uint8, shared with the column.
        offsets: int64 [rows + 1].
        valid: uint8 [rows].
    """

    data: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    valid: npt.NDArray[np.uint8]


def view(column: pa.Array) -> Bytes:
    """The bytes of each row of ``column``: UTF-8, binary or the little-endian values of a fixed-width type.

    Raises:
        TypeError: the type has no flat form (lists of varying size, structs, lists that hold nulls, …).
    """
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return Bytes(_data(column, 2), _offsets(column, np.int32), validity(column))
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        return Bytes(_data(column, 2), _offsets(column, np.int64), validity(column))
    if pa.types.is_boolean(kind):
        return view(column.cast(pa.uint8()))
    width = width_of(kind)
    if pa.types.is_fixed_size_list(kind):
        if column.values.slice(column.offset * kind.list_size, len(column) * kind.list_size).null_count:
            raise TypeError(f"{kind}: values of a list may not be null")
        data, first = _data(column.values, 1), column.values.offset * (width // kind.list_size if width else 0)
        first += column.offset * width
    else:
        data, first = _data(column, 1), column.offset * width
    offsets = np.arange(len(column) + 1, dtype=np.int64) * width + first
    return Bytes(data, offsets, validity(column))


def width_of(kind: pa.DataType) -> int:
    """Bytes of one value of a fixed-width type; a list of fixed size counts all its values.

    Raises:
        TypeError: the type has no fixed width in whole bytes.
    """
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * width_of(kind.value_type)
    if pa.types.is_fixed_size_binary(kind):
        return int(kind.byte_width)
    if pa.types.is_primitive(kind) or pa.types.is_decimal(kind):
        bits = int(kind.bit_width)
        if bits % 8 == 0:
            return bits // 8
    raise TypeError(f"a column of type {kind} has no flat bytes; use strings, numbers, dates or lists of fixed size")


def validity(column: pa.Array) -> npt.NDArray[np.uint8]:
    """1 where a row is not null, as uint8 [rows]."""
    if column.null_count == 0:
        return np.ones(len(column), dtype=np.uint8)
    valid: npt.NDArray[np.uint8] = pc.is_valid(column).cast(pa.uint8()).to_numpy()
    return valid


def _data(column: pa.Array, index: int) -> npt.NDArray[np.uint8]:
    buffers = column.buffers()
    buffer = buffers[index] if index < len(buffers) else None
    return np.empty(0, dtype=np.uint8) if buffer is None else np.frombuffer(buffer, dtype=np.uint8)


def _offsets(column: pa.Array, width: type[np.signedinteger[Any]]) -> npt.NDArray[np.int64]:
    buffer = column.buffers()[1]
    if len(column) == 0 or buffer is None:
        return np.zeros(len(column) + 1, dtype=np.int64)
    return np.frombuffer(buffer, dtype=width)[column.offset : column.offset + len(column) + 1].astype(np.int64)


def _load(bits: int) -> Any:
    """An intrinsic that reads one unsigned integer of ``bits`` at any byte of a uint8 array, which it must lie in."""

    @intrinsic  # type: ignore[untyped-decorator, unused-ignore]
    def load(typing_context: Any, array: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            data = context.make_array(signature.args[0])(context, builder, args[0]).data
            word = ir.IntType(bits)
            pointer = builder.inttoptr(builder.add(builder.ptrtoint(data, ir.IntType(64)), args[1]), word.as_pointer())
            value = builder.load(pointer)
            value.align = 1
            return value

        return getattr(numba_types, f"uint{bits}")(array, numba_types.int64), generate

    return load


load8 = _load(8)
load32 = _load(32)
load64 = _load(64)


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def _copy(typing_context: Any, target: Any, at: Any, source: Any, start: Any, length: Any) -> Any:
    """``target[at:at + length] = source[start:start + length]`` of uint8 arrays that don't overlap: one memcpy."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def address(argument: int) -> Any:
            data = context.make_array(signature.args[argument])(context, builder, args[argument]).data
            return builder.gep(data, [args[argument + 1]])

        cgutils.raw_memcpy(builder, address(0), address(2), args[4], 1)  # type: ignore[no-untyped-call]
        return context.get_dummy_value()

    int64 = numba_types.int64
    return numba_types.void(target, int64, source, int64, int64), generate


copy: Any = _copy


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def _trailing_zeros(typing_context: Any, value: Any) -> Any:
    """Bits below the lowest one of a uint64, which isn't 0; int64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return numba_types.int64(numba_types.uint64), generate


trailing_zeros: Any = _trailing_zeros
