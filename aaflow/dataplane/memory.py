"""Memory by address: what moves rows between Arrow buffers and shared memory outside the interpreter's lock.

Addresses are int64. Nothing is checked: callers lay out what they write beforehand.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba import types as numba_types
from numba.core import cgutils
from numba.extending import intrinsic

from aaflow.kernel import inlined, kernel


def _load(bits: int) -> Any:
    @intrinsic  # type: ignore[untyped-decorator, unused-ignore]
    def load(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            value = builder.load(builder.inttoptr(args[0], ir.IntType(bits).as_pointer()))
            value.align = 1
            return value

        return getattr(numba_types, f"uint{bits}")(numba_types.int64), generate

    return load


def _store(bits: int) -> Any:
    kind = getattr(numba_types, f"uint{bits}")

    @intrinsic  # type: ignore[untyped-decorator, unused-ignore]
    def store(typing_context: Any, address: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            stored = builder.store(args[1], builder.inttoptr(args[0], ir.IntType(bits).as_pointer()))
            stored.align = 1
            return context.get_dummy_value()

        return numba_types.void(numba_types.int64, kind), generate

    return store


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def _copy(typing_context: Any, target: Any, source: Any, length: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        places = [builder.inttoptr(address, pointer) for address in args[:2]]
        cgutils.raw_memcpy(builder, places[0], places[1], args[2], 1)  # type: ignore[no-untyped-call]
        return context.get_dummy_value()

    int64 = numba_types.int64
    return numba_types.void(int64, int64, int64), generate


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def _put_past_caches(typing_context: Any, target: Any, source: Any) -> Any:
    """Copy 16 bytes to an address that is a multiple of 16, past the caches."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = ir.VectorType(ir.IntType(64), 2).as_pointer()
        value = builder.load(builder.inttoptr(args[1], pointer))
        value.align = 1
        stored = builder.store(value, builder.inttoptr(args[0], pointer))
        stored.align = 16
        stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return numba_types.void(numba_types.int64, numba_types.int64), generate


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def _fence(typing_context: Any) -> Any:
    """What was stored before is seen by others before what is stored after."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return numba_types.void(), generate


_move: Any = _copy
_put16: Any = _put_past_caches
_order: Any = _fence
load8, load16, load32, load64 = (_load(bits) for bits in (8, 16, 32, 64))
store8, store16, store32, store64 = (_store(bits) for bits in (8, 16, 32, 64))


@kernel
def move(target: Any, source: Any, length: Any) -> None:
    """Copy ``length`` bytes between places that don't overlap."""
    _move(target, source, length)


@kernel
def stream(target: Any, source: Any, length: Any) -> None:
    """:func:`move` past the caches, to a multiple of 16.

    For more than a cache holds until it is read: what is written need not be read from memory before, a third less for
    the memory to do.
    """
    whole = length & ~numba.int64(63)
    for at in range(0, whole, 64):
        _put16(target + at, source + at)
        _put16(target + at + 16, source + at + 16)
        _put16(target + at + 32, source + at + 32)
        _put16(target + at + 48, source + at + 48)
    _move(target + whole, source + whole, length - whole)
    _order()  # such stores are not in order with those that tell the reader


@kernel
def scatter_values(source: Any, width: Any, targets: Any, at: Any) -> None:
    """Row i, ``width`` bytes, to ``at[targets[i]]``, which moves past it."""
    if width == 1:
        for row in range(targets.shape[0]):
            to = targets[row]
            store8(at[to], load8(source + row))
            at[to] += 1
    elif width == 2:
        for row in range(targets.shape[0]):
            to = targets[row]
            store16(at[to], load16(source + 2 * row))
            at[to] += 2
    elif width == 4:
        for row in range(targets.shape[0]):
            to = targets[row]
            store32(at[to], load32(source + 4 * row))
            at[to] += 4
    elif width == 8:
        for row in range(targets.shape[0]):
            to = targets[row]
            store64(at[to], load64(source + 8 * row))
            at[to] += 8
    else:
        for row in range(targets.shape[0]):
            to = targets[row]
            _move(at[to], source + row * width, width)
            at[to] += width


@kernel
def scatter_bits(source: Any, first: Any, targets: Any, base: Any, position: Any, zeros: Any) -> None:
    """Bit ``first + i`` of ``source`` (of ones where that is 0) to its target's next bit; counts the zeros of each."""
    for row in range(targets.shape[0]):
        bit = numba.uint8(1)
        if source != 0:
            index = first + row
            bit = (load8(source + (index >> 3)) >> numba.uint8(index & 7)) & numba.uint8(1)
        to = targets[row]
        at = position[to]
        place = base[to] + (at >> 3)
        # The first bit of a byte overwrites what was there: memory is used again.
        store8(place, bit if at & 7 == 0 else load8(place) | numba.uint8(bit << numba.uint8(at & 7)))
        position[to] = at + 1
        zeros[to] += 1 - bit


@inlined
def _offset(offsets: Any, width: Any, row: Any) -> Any:
    return numba.int64(load32(offsets + 4 * row)) if width == 4 else numba.int64(load64(offsets + 8 * row))


@kernel
def count_bytes(offsets: Any, width: Any, targets: Any, totals: Any) -> None:
    """Add the length of each value, between offsets of ``width`` bytes, to the total of its target."""
    start = _offset(offsets, width, 0)
    for row in range(targets.shape[0]):
        end = _offset(offsets, width, row + 1)
        totals[targets[row]] += end - start
        start = end


@kernel
def begin_offsets(width: Any, rows: Any, at: Any) -> None:
    """Write the first offset, 0, of each target that has rows, and move past it."""
    for to in range(at.shape[0]):
        if rows[to] != 0:
            if width == 4:
                store32(at[to], numba.uint32(0))
            else:
                store64(at[to], numba.uint64(0))
        at[to] += width


@kernel
def scatter_bytes(offsets: Any, width: Any, data: Any, targets: Any, at: Any, base: Any, used: Any) -> None:
    """Values between offsets of ``width`` bytes to their targets.

    ``at`` is where a target's next offset goes (the one before is written), ``base`` where its bytes begin, of which
    ``used`` are there.
    """
    start = _offset(offsets, width, 0)
    for row in range(targets.shape[0]):
        end = _offset(offsets, width, row + 1)
        to = targets[row]
        _move(base[to] + used[to], data + start, end - start)
        used[to] += end - start
        if width == 4:
            store32(at[to], numba.uint32(used[to]))
        else:
            store64(at[to], numba.uint64(used[to]))
        at[to] += width
        start = end
