"""One group of ratings -> LLVM instructions on vectors over the padded rank, as numba intrinsics.

numba cannot prove that a row of P and a row of Q do not overlap, and so leaves plain loops over them scalar. No flags
that assume NaN away: they would hide divergence.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from distmf.buffers import CACHE_LINE
from distmf.lanes import FLOAT32, INT32, Functions, Lanes
from distmf.losses import Constants, Objective

LANES = 16  # floats in a cache line; rows are padded to a multiple of it and start on a line
UNROLLED = 8  # cache lines of a row that code is written for, at most: the compiler's time grows with them
FLOAT64, INT64 = ir.DoubleType(), ir.IntType(64)
LINE = ir.VectorType(FLOAT32, LANES)


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


class Form(NamedTuple):
    """What a step is compiled for besides sizes: all that costs time where it is not needed.

    Attributes
    ----------
    objective : Objective
        With the constants that all have: those of a training are arguments.
    is_training : bool
        Whether factors are updated, or costs only added up.
    is_shared : bool
        Whether every row and column takes a share of the step size of its own, else all of it.
    is_weighted : bool
        Whether ratings have weights, else all count alike.
    is_sparse : bool
        Whether factors have an L1 penalty, by which the smallest become zero.
    is_drawn : bool
        Whether every row and column has, beside its share, a precision of its ratings, and a sum of squared errors.
    """

    objective: Objective
    is_training: bool = False
    is_shared: bool = False
    is_weighted: bool = False
    is_sparse: bool = False
    is_drawn: bool = False

    @property
    def line_bytes(self) -> int:
        """Bytes of what there is of a row or column besides factors and bias: its share, or a `Line`."""
        return 4 * len(Line._fields) if self.is_drawn else 4


class Line(NamedTuple):
    """What there is of a row or column of a chain of draws, side by side.

    Attributes
    ----------
    share
        Of the step size.
    precision
        Of its ratings, as a multiple of that of all: the precision of a rating is the product of its row's, its
        column's, and that of all.
    squares
        Squared errors of its ratings, each times the precision of the other side, added up.
    count
        Its ratings to train on.
    noise
        Variance of its ratings, as a multiple of that of all; not quite the inverse of the precision.
    """

    share: Any
    precision: Any
    squares: Any
    count: Any
    noise: Any


class Steps(NamedTuple):
    """The step size η, and its products with λ of each kind, for users and for items; of a group, a vector of each."""

    size: Any
    user_decay: Any
    item_decay: Any
    user_bias_decay: Any
    item_bias_decay: Any
    user_threshold: Any
    item_threshold: Any


class _Group:
    """Writes the code of one group: of one row, at `p` and `b_u`, and of the columns whose numbers lie at `cols`."""

    def __init__(self, builder: Any, n_floats: int, size: int, col_bytes: int, form: Form, places: Sequence[Any]):
        p, b_u, s_u, Q, b_i, s_i, cols = places
        self.builder, self.code = builder, Code(builder)
        self.n_lines, self.size, self.form = n_floats // LANES, size, form
        self.p, self.b_u, self.s_u = p, b_u, s_u
        numbers = self.code.numbers(cols, size, col_bytes)
        self.rows_of_Q = [self.code.indexed(Q, i, 4 * n_floats) for i in numbers]
        self.col_biases = [self.code.indexed(b_i, i, 4) for i in numbers]
        self.col_shares = [self.code.indexed(s_i, i, form.line_bytes) for i in numbers]

    def everywhere(self, value: Any, width: int) -> Lanes:
        """Return a single value in so many lanes."""
        return Lanes(self.builder, self.code.splat(self.code.gather([value]), 0, width))

    def each(self, values: Sequence[Any]) -> list[Lanes]:
        """Return each of some single values in all lanes of a cache line."""
        return [self.everywhere(value, LANES) for value in values]

    def loaded(self, places: Sequence[Any]) -> Lanes:
        """Return the single values that lie at some addresses."""
        return Lanes(self.builder, self.code.gather([self.code.load(place, FLOAT32) for place in places]))

    def line(self, address: Any, offset: Any) -> Lanes:
        """Return a cache line of a row."""
        return Lanes(self.builder, self.code.load(self.builder.add(address, offset), LINE, CACHE_LINE))

    def scores(self) -> Lanes:
        """Return b_u + b_i + p_u · q_i of all ratings."""
        zero = ir.Constant(LINE, [0.0] * LANES)
        dots = [cgutils.alloca_once_value(self.builder, zero) for _ in self.rows_of_Q]
        with self.code.each_line(self.n_lines) as offsets:
            for offset in offsets:
                a = self.line(self.p, offset)
                for q, dot in zip(self.rows_of_Q, dots, strict=True):
                    b = self.line(q, offset)
                    self.builder.store(self.code.fma(a.value, b.value, self.builder.load(dot)), dot)
        products = Lanes(self.builder, self.code.sums([self.builder.load(dot) for dot in dots]))
        return self.loaded(self.col_biases) + self.everywhere(self.code.load(self.b_u, FLOAT32), self.size) + products

    def precisions(self, squares: Lanes) -> Lanes:
        """Return the precisions of all ratings, after adding their squared errors to those of the row and columns."""
        at = [
            Line(*(self.code.offset(line, 4 * n) for n in range(len(Line._fields))))
            for line in (self.s_u, *self.col_shares)
        ]
        row, cols = at[0], at[1:]
        of_row = self.everywhere(self.code.load(row.precision, FLOAT32), self.size)
        of_cols = self.loaded([col.precision for col in cols])
        sums = self.loaded([col.squares for col in cols]) + squares * of_row
        for col, value in zip(cols, self.code.lanes(sums.value), strict=True):
            self.code.store(value, col.squares)
        gains = self.code.lanes((squares * of_cols).value)
        total = functools.reduce(self.builder.fadd, gains, self.code.load(row.squares, FLOAT32))
        self.code.store(total, row.squares)
        return of_row * of_cols

    def update(self, pull: Lanes, steps: Sequence[Any], weight: Lanes | None) -> None:
        """Take one step along the pulls on the scores."""
        row = col = Steps(*(self.everywhere(step, self.size) for step in steps))
        if weight is not None:
            row = col = Steps(*(step * weight for step in row))
        if self.form.is_shared:
            row_share = self.everywhere(self.code.load(self.s_u, FLOAT32), self.size)
            col_share = self.loaded(self.col_shares)
            row, col = Steps(*(step * row_share for step in row)), Steps(*(step * col_share for step in col))

        def of_all(steps: Lanes) -> Any:  # which the row takes one of for each rating
            if weight is None:
                return self.code.lanes((steps * self.size).value)[0]
            return functools.reduce(self.builder.fadd, self.code.lanes(steps.value))

        row_decays = [of_all(step) for step in (row.user_decay, row.user_bias_decay, row.user_threshold)]
        self._update_biases(pull * row.size, pull * col.size, row_decays[1], col.item_bias_decay)
        of_ratings = pull * row.size, pull * col.size, col.item_decay, col.item_threshold
        of_each = [self.each(self.code.lanes(lanes.value)) for lanes in of_ratings]
        self._update_factors(self.each(row_decays[::2]), *of_each)

    def _update_biases(self, row_gain: Lanes, col_gain: Lanes, row_decay: Any, col_decay: Lanes) -> None:
        new_biases = self.code.fma(self.loaded(self.col_biases).value, (1 - col_decay).value, col_gain.value)
        for bias, place in zip(self.code.lanes(new_biases), self.col_biases, strict=True):
            self.code.store(bias, place)
        kept = self.loaded([self.b_u]) * (1 - self.everywhere(row_decay, 1))
        gains = self.code.lanes(row_gain.value)
        self.code.store(functools.reduce(self.builder.fadd, gains, self.code.lanes(kept.value)[0]), self.b_u)

    def _update_factors(
        self,
        of_row: list[Lanes],
        row_gains: list[Lanes],
        col_gains: list[Lanes],
        col_decays: list[Lanes],
        col_thresholds: list[Lanes],
    ) -> None:
        row_decay, row_threshold = of_row
        kept_of_row, kept_of_cols = 1 - row_decay, [1 - decay for decay in col_decays]
        with self.code.each_line(self.n_lines) as offsets:
            for offset in offsets:
                a = self.line(self.p, offset)  # all updates are from before the group
                new_a = a * kept_of_row
                of_each = zip(self.rows_of_Q, row_gains, col_gains, kept_of_cols, col_thresholds, strict=True)
                for q, row_gain, col_gain, kept, threshold in of_each:
                    b = self.line(q, offset)
                    new_a = Lanes(self.builder, self.code.fma(b.value, row_gain.value, new_a.value))
                    new_b = Lanes(self.builder, self.code.fma(a.value, col_gain.value, (b * kept).value))
                    self._put(new_b, threshold, q, offset)
                self._put(new_a, row_threshold, self.p, offset)

    def _put(self, factors: Lanes, threshold: Lanes, address: Any, offset: Any) -> None:
        if self.form.is_sparse:
            factors = factors - Functions.minimum(Functions.maximum(factors, -threshold), threshold)
        if self.form.objective.nonnegative:
            factors = Functions.maximum(factors, 0)
        self.code.store(factors.value, self.builder.add(address, offset), CACHE_LINE)


def step_of_group(n_floats: int, size: int, col_bytes: int, form: Form) -> Any:
    """Return the intrinsic of one group: it updates what lies at the addresses, and adds up the costs."""
    singles, doubles = ir.VectorType(FLOAT32, size), ir.VectorType(FLOAT64, size)

    @intrinsic
    def step(typing_context, p, b_u, s_u, Q, b_i, s_i, cols, values, weights, steps, constants, costs):
        def codegen(context, builder, signature, arguments):
            *places, values, weights, steps, constants, costs = arguments
            group = _Group(builder, n_floats, size, col_bytes, form, places)
            value = Lanes(builder, group.code.load(values, singles))
            at = Constants(*(group.everywhere(number, size) for number in cgutils.unpack_tuple(builder, constants)))
            cost, pull = form.objective.costs(Functions, value, group.scores(), at)
            weight = Lanes(builder, group.code.load(weights, singles)) if form.is_weighted else None
            if weight is not None:
                cost = cost * weight
            if form.is_drawn:
                weight = group.precisions(cost)
            total = builder.fadd(builder.fpext(cost.value, doubles), group.code.load(costs, doubles, 8))
            group.code.store(total, costs, 8)
            if form.is_training:
                group.update(pull, cgutils.unpack_tuple(builder, steps), weight)

        return types.void(p, b_u, s_u, Q, b_i, s_i, cols, values, weights, steps, constants, costs), codegen

    return step
