"""One group of ratings -> LLVM instructions on vectors over the padded rank, as numba intrinsics.

numba cannot prove that a row of P and a row of Q do not overlap, and so leaves plain loops over them scalar. No flags
that assume NaN away: they would hide divergence.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from distmf.buffers import CACHE_LINE

LANES = 16  # floats in a cache line; rows are padded to a multiple of it and start on a line
UNROLLED = 8  # cache lines of a row that code is written for, at most: the compiler's time grows with them
FLOAT32, FLOAT64, INT32, INT64 = ir.FloatType(), ir.DoubleType(), ir.IntType(32), ir.IntType(64)


class Code:
    """Writes LLVM instructions on vectors into the function that numba is compiling."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self._builder = builder

    def load(self, address: Any, kind: Any, align: int = 4) -> Any:
        """Return what lies at an address."""
        value = self._builder.load(self._builder.inttoptr(address, kind.as_pointer()))
        value.align = align
        return value

    def store(self, value: Any, address: Any, align: int = 4) -> None:
        """Put a value at an address."""
        self._builder.store(value, self._builder.inttoptr(address, value.type.as_pointer())).align = align

    def offset(self, address: Any, n_bytes: int) -> Any:
        """Return the address so many bytes on."""
        return self._builder.add(address, ir.Constant(INT64, n_bytes))

    def indexed(self, address: Any, number: Any, n_bytes: int) -> Any:
        """Return the address of a row by its number; rows take `n_bytes` each."""
        return self._builder.add(address, self._builder.mul(number, ir.Constant(INT64, n_bytes)))

    def numbers(self, address: Any, n: int, n_bytes: int) -> list[Any]:
        """Return n unsigned numbers that lie side by side."""
        kind = ir.IntType(8 * n_bytes)
        return [
            self._builder.zext(self.load(self.offset(address, k * n_bytes), kind, n_bytes), INT64) for k in range(n)
        ]

    def call(self, name: str, result: Any, arguments: list[Any]) -> Any:
        """Return what an intrinsic of LLVM returns."""
        kinds = [argument.type for argument in arguments]
        module = self._builder.module
        function = module.globals.get(name) or ir.Function(module, ir.FunctionType(result, kinds), name)
        return self._builder.call(function, arguments)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """Return a · b + c, rounded once."""
        kind = "f64" if a.type.element == FLOAT64 else "f32"
        return self.call(f"llvm.fma.v{a.type.count}{kind}", a.type, [a, b, c])

    def prefetch(self, address: Any, n_lines: int = 1) -> None:
        """Ask for cache lines: to read, into the nearest cache, data and not instructions."""
        hints = [ir.Constant(INT32, hint) for hint in (0, 3, 1)]
        for line in range(n_lines):
            place = self._builder.inttoptr(self.offset(address, line * CACHE_LINE), ir.IntType(8).as_pointer())
            self.call("llvm.prefetch.p0", ir.VoidType(), [place, *hints])

    @contextlib.contextmanager
    def each_line(self, n: int) -> Iterator[list[Any]]:
        """Yield where some of n cache lines of a row begin, for what is to be done to them; all come to it in turn."""
        at_once = max(k for k in range(1, UNROLLED + 1) if n % k == 0)
        start, stop, step = (ir.Constant(INT64, lines * CACHE_LINE) for lines in (0, n, at_once))
        with cgutils.for_range_slice(self._builder, start, stop, step, INT64) as (offset, _):
            yield [self.offset(offset, k * CACHE_LINE) for k in range(at_once)]

    def shuffle(self, a: Any, b: Any, lanes: Sequence[int]) -> Any:
        """Return some lanes of two vectors, side by side; those of b count on from those of a."""
        return self._builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(INT32, len(lanes)), list(lanes)))

    def splat(self, vector: Any, lane: int, width: int) -> Any:
        """Return one lane of a vector, so many times."""
        return self.shuffle(vector, vector, [lane] * width)

    def gather(self, values: Sequence[Any]) -> Any:
        """Return a vector of single values."""
        vector = ir.Constant(ir.VectorType(values[0].type, len(values)), ir.Undefined)
        for k, value in enumerate(values):
            vector = self._builder.insert_element(vector, value, ir.Constant(INT32, k))
        return vector

    def lanes(self, vector: Any) -> list[Any]:
        """Return the single values of a vector."""
        return [self._builder.extract_element(vector, ir.Constant(INT32, k)) for k in range(vector.type.count)]

    def halved(self, vector: Any) -> Any:
        """Return the sum of the two halves of a vector."""
        half = vector.type.count // 2
        return self._builder.fadd(
            self.shuffle(vector, vector, range(half)), self.shuffle(vector, vector, range(half, 2 * half))
        )

    def sums(self, vectors: list[Any]) -> Any:
        """Return a vector of the sums of 1, 2 or 4 vectors: each added up in the same order, however many they are."""
        while vectors[0].type.count > 4:
            vectors = [self.halved(vector) for vector in vectors]
        if len(vectors) == 1:
            return self.halved(self.halved(vectors[0]))
        pairs = [
            self._builder.fadd(self.shuffle(a, b, (0, 4, 1, 5)), self.shuffle(a, b, (2, 6, 3, 7)))
            for a, b in zip(vectors[::2], vectors[1::2], strict=True)
        ]
        if len(pairs) == 1:
            return self.halved(pairs[0])
        a, b = pairs
        return self._builder.fadd(self.shuffle(a, b, (0, 1, 4, 5)), self.shuffle(a, b, (2, 3, 6, 7)))


def ask_for_group(n_floats: int, size: int, col_bytes: int) -> Any:
    """Return the intrinsic that asks for all that one group needs ahead of time."""

    @intrinsic
    def ask_for(typing_context, p, b_u, Q, b_i, cols):
        def codegen(context, builder, signature, arguments):
            p, b_u, Q, b_i, cols = arguments
            code, n_lines = Code(builder), n_floats // LANES
            code.prefetch(p, n_lines)
            code.prefetch(b_u)
            for i in code.numbers(cols, size, col_bytes):
                code.prefetch(code.indexed(Q, i, 4 * n_floats), n_lines)
                code.prefetch(code.indexed(b_i, i, 4))

        return types.void(p, b_u, Q, b_i, cols), codegen

    return ask_for


def step_of_group(n_floats: int, size: int, col_bytes: int, *, training: bool, shared: bool) -> Any:
    """Return the intrinsic of one group: it updates what lies at the addresses, and adds up the squared errors.

    Every row and column takes a share of the step size of its own if it is `shared`, else all of it.
    """
    vector, n_lines = ir.VectorType(FLOAT32, LANES), n_floats // LANES
    singles, doubles = ir.VectorType(FLOAT32, size), ir.VectorType(FLOAT64, size)

    @intrinsic
    def step(typing_context, p, b_u, s_u, Q, b_i, s_i, cols, values, steps, squares):
        def codegen(context, builder, signature, arguments):
            p, b_u, s_u, Q, b_i, s_i, cols, values, steps, squares = arguments
            step_size, decay, bias_decay = cgutils.unpack_tuple(builder, steps)
            code = Code(builder)

            def everywhere(value, width):
                return code.splat(code.gather([value]), 0, width)

            def kept(decays, n):  # of values, after n ratings
                one, times = (everywhere(ir.Constant(FLOAT32, float(k)), decays.type.count) for k in (1, n))
                return builder.fsub(one, builder.fmul(times, decays))

            numbers = code.numbers(cols, size, col_bytes)
            rows_of_Q = [code.indexed(Q, i, 4 * n_floats) for i in numbers]
            col_places = [code.indexed(b_i, i, 4) for i in numbers]
            dots = [cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * LANES)) for _ in numbers]
            with code.each_line(n_lines) as offsets:
                for offset in offsets:
                    a = code.load(builder.add(p, offset), vector, CACHE_LINE)
                    for q, dot in zip(rows_of_Q, dots, strict=True):
                        b = code.load(builder.add(q, offset), vector, CACHE_LINE)
                        builder.store(code.fma(a, b, builder.load(dot)), dot)
            row_bias = code.load(b_u, FLOAT32)
            col_biases = code.gather([code.load(place, FLOAT32) for place in col_places])
            error = builder.fsub(code.load(values, singles), col_biases)
            error = builder.fsub(
                builder.fsub(error, everywhere(row_bias, size)), code.sums([builder.load(dot) for dot in dots])
            )
            wide = builder.fpext(error, doubles)
            code.store(code.fma(wide, wide, code.load(squares, doubles, 8)), squares, 8)
            if not training:
                return
            row_gain = col_gain = builder.fmul(error, everywhere(step_size, size))
            row_decays = col_decays = everywhere(decay, size)
            row_bias_decays = col_bias_decays = everywhere(bias_decay, size)
            if shared:
                row_shares = everywhere(code.load(s_u, FLOAT32), size)
                col_shares = code.gather([code.load(code.indexed(s_i, i, 4), FLOAT32) for i in numbers])
                row_gain, row_decays, row_bias_decays = (
                    builder.fmul(part, row_shares) for part in (row_gain, row_decays, row_bias_decays)
                )
                col_gain, col_decays, col_bias_decays = (
                    builder.fmul(part, col_shares) for part in (col_gain, col_decays, col_bias_decays)
                )
            new_biases = code.fma(col_biases, kept(col_bias_decays, 1), col_gain)
            for bias, place in zip(code.lanes(new_biases), col_places, strict=True):
                code.store(bias, place)
            new_bias = builder.fmul(row_bias, code.lanes(kept(row_bias_decays, size))[0])
            for k in code.lanes(row_gain):
                new_bias = builder.fadd(new_bias, k)
            code.store(new_bias, b_u)
            row_gains, col_gains = ([code.splat(some, k, LANES) for k in range(size)] for some in (row_gain, col_gain))
            of_row = code.splat(kept(row_decays, size), 0, LANES)
            of_cols = [code.splat(kept(col_decays, 1), k, LANES) for k in range(size)]
            with code.each_line(n_lines) as offsets:
                for offset in offsets:
                    a = code.load(builder.add(p, offset), vector, CACHE_LINE)
                    new_a = builder.fmul(a, of_row)
                    for q, row_k, col_k, of_col in zip(rows_of_Q, row_gains, col_gains, of_cols, strict=True):
                        place = builder.add(q, offset)
                        b = code.load(place, vector, CACHE_LINE)
                        new_a = code.fma(b, row_k, new_a)
                        code.store(code.fma(a, col_k, builder.fmul(b, of_col)), place, CACHE_LINE)
                    code.store(new_a, builder.add(p, offset), CACHE_LINE)

        return types.void(p, b_u, s_u, Q, b_i, s_i, cols, values, steps, squares), codegen

    return step
