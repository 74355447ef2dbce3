"""SHA-256 (FIPS 180-4) of many byte strings in one call, without the GIL.

``hashlib`` costs a Python object per string; this hashes the rows of a column where they lie, with the CPU's own
instructions where it has them.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types as numba_types
from numba.core import cgutils
from numba.extending import intrinsic

from aaflow.kernel import kernel, load32


def _roots(count: int, power: int) -> npt.NDArray[np.uint32]:
    """The first 32 bits of the fractions of the square or cube roots of the first primes (FIPS 180-4, 4.2.2, 5.3.3)."""
    primes = [n for n in range(2, 312) if all(n % d for d in range(2, n))][:count]
    words = []
    for prime in primes:
        low, high = 0, 1 << 40
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if middle**power <= prime << (32 * power) else (low, middle)
        words.append(low & 0xFFFFFFFF)
    return np.array(words, dtype=np.uint32)


_K = _roots(64, 3)
_START = _roots(8, 2)


@kernel
def _rotate32(value: Any, bits: int) -> Any:
    return np.uint32((np.uint32(value) >> np.uint32(bits)) | (np.uint32(value) << np.uint32(32 - bits)))


@kernel
def _compress(state: Any, data: Any, start: int) -> None:
    """One block of 64 bytes at ``data[start]`` into ``state`` (FIPS 180-4, 6.2.2)."""
    schedule = np.empty(64, dtype=np.uint32)
    for t in range(16):
        word = load32(data, start + 4 * t)
        schedule[t] = np.uint32(
            (word >> np.uint32(24))
            | ((word >> np.uint32(8)) & np.uint32(0xFF00))
            | ((word << np.uint32(8)) & np.uint32(0xFF0000))
            | (word << np.uint32(24))
        )
    for t in range(16, 64):
        x, y = schedule[t - 15], schedule[t - 2]
        s0 = _rotate32(x, 7) ^ _rotate32(x, 18) ^ np.uint32(x >> np.uint32(3))
        s1 = _rotate32(y, 17) ^ _rotate32(y, 19) ^ np.uint32(y >> np.uint32(10))
        schedule[t] = np.uint32(schedule[t - 16] + s0 + schedule[t - 7] + s1)
    a, b, c, d = state[0], state[1], state[2], state[3]
    e, f, g, h = state[4], state[5], state[6], state[7]
    for t in range(64):
        s1 = _rotate32(e, 6) ^ _rotate32(e, 11) ^ _rotate32(e, 25)
        t1 = np.uint32(h + s1 + (g ^ (e & (f ^ g))) + _K[t] + schedule[t])
        s0 = _rotate32(a, 2) ^ _rotate32(a, 13) ^ _rotate32(a, 22)
        t2 = np.uint32(s0 + ((a & b) | (c & (a | b))))
        h, g, f, e = g, f, e, np.uint32(d + t1)
        d, c, b, a = c, b, a, np.uint32(t1 + t2)
    state[0] = np.uint32(state[0] + a)
    state[1] = np.uint32(state[1] + b)
    state[2] = np.uint32(state[2] + c)
    state[3] = np.uint32(state[3] + d)
    state[4] = np.uint32(state[4] + e)
    state[5] = np.uint32(state[5] + f)
    state[6] = np.uint32(state[6] + g)
    state[7] = np.uint32(state[7] + h)


def _has_instructions() -> bool:
    """Whether this CPU has SHA-256 in hardware and numba compiles for this CPU."""
    features = llvm.get_host_cpu_features()
    generic = numba.config.CPU_NAME or numba.config.CPU_FEATURES  # type: ignore[attr-defined, unused-ignore]
    return not generic and bool(features.get("sha") and features.get("ssse3"))


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def _compress_hardware(typing_context: Any, state: Any, data: Any, start: Any) -> Any:
    """:func:`_compress` by the SHA extensions of x86 (Intel, "Intel SHA Extensions", 2013)."""
    vector = ir.VectorType(ir.IntType(32), 4)

    def shuffled(builder: Any, first: Any, second: Any, lanes: list[int]) -> Any:
        return builder.shuffle_vector(first, second, ir.Constant(vector, lanes))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def address(argument: int, offset: Any) -> Any:
            data = context.make_array(signature.args[argument])(context, builder, args[argument]).data
            return builder.inttoptr(builder.add(builder.ptrtoint(data, ir.IntType(64)), offset), vector.as_pointer())

        def call(name: str, *values: Any) -> Any:
            kind = ir.FunctionType(vector, [vector] * len(values))
            function = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
            return builder.call(function, values)

        def block(argument: int, offset: Any) -> Any:
            value = builder.load(address(argument, offset))
            value.align = 1
            return value

        at = [ir.Constant(ir.IntType(64), 16 * index) for index in range(4)]
        abcd, efgh = block(0, at[0]), block(0, at[1])
        abef, cdgh = shuffled(builder, abcd, efgh, [5, 4, 1, 0]), shuffled(builder, abcd, efgh, [7, 6, 3, 2])
        before = abef, cdgh
        words = [call("llvm.bswap.v4i32", block(1, builder.add(args[2], offset))) for offset in at]
        for group in range(16):
            if group >= 4:
                middle = shuffled(builder, words[-2], words[-1], [1, 2, 3, 4])
                partial = builder.add(call("llvm.x86.sha256msg1", words[-4], words[-3]), middle)
                words.append(call("llvm.x86.sha256msg2", partial, words[-1]))
            constants = ir.Constant(vector, [int(k) for k in _K[4 * group : 4 * group + 4]])
            low = builder.add(words[group], constants)
            cdgh = call("llvm.x86.sha256rnds2", cdgh, abef, low)
            abef = call("llvm.x86.sha256rnds2", abef, cdgh, shuffled(builder, low, low, [2, 3, 2, 3]))
        abef, cdgh = builder.add(abef, before[0]), builder.add(cdgh, before[1])
        for offset, lanes in ((at[0], [3, 2, 7, 6]), (at[1], [1, 0, 5, 4])):
            builder.store(shuffled(builder, abef, cdgh, lanes), address(0, offset), align=4)
        return context.get_dummy_value()

    return numba_types.void(state, data, numba_types.int64), generate


_compress_block: Any = _compress_hardware if _has_instructions() else _compress


@kernel
def digest_rows(data: Any, offsets: Any, out: Any) -> None:
    """SHA-256 of ``data[offsets[i]:offsets[i + 1]]`` into ``out[i]``."""
    state = np.empty(8, dtype=np.uint32)
    tail = np.empty(128, dtype=np.uint8)
    for row in range(out.shape[0]):
        start, end = offsets[row], offsets[row + 1]
        state[:] = _START
        while end - start >= 64:
            _compress_block(state, data, start)
            start += 64
        left = end - start
        padded = 64 if left < 56 else 128
        for byte in range(left):
            tail[byte] = data[start + byte]
        tail[left] = 0x80
        for byte in range(left + 1, padded):
            tail[byte] = 0
        bits = np.uint64(end - offsets[row]) * np.uint64(8)
        for byte in range(8):
            tail[padded - 1 - byte] = np.uint8((bits >> np.uint64(8 * byte)) & np.uint64(0xFF))
        _compress_block(state, tail, 0)
        if padded == 128:
            _compress_block(state, tail, 64)
        for word in range(8):
            for byte in range(4):
                out[row, 4 * word + byte] = np.uint8((state[word] >> np.uint32(24 - 8 * byte)) & np.uint32(0xFF))
