"""Arithmetic on vectors of LLVM, written as on arrays of NumPy.

A formula that takes its functions from an argument runs on both: `formula(numpy, …)` on arrays, `formula(Functions(…),
…)` in machine code. Nothing here assumes NaN away, and every function gives the same bits on every machine: those of
the system's mathematical library do not.
"""

from collections.abc import Callable
from typing import Any, Self

from llvmlite import ir

FLOAT32, INT32 = ir.FloatType(), ir.IntType(32)
LARGEST_EXPONENT = 87.0  # e to this power, and to its negative, are normal numbers
LOG2_E = 1.44269504088896341
LN_2 = 0.693359375, -2.12194440e-4  # in two parts, of which the first is exact
ROUNDING = 1.5 * 2.0**23  # added to a number, its last bits are the nearest integer
BIAS_OF_EXPONENT, MANTISSA_BITS = 127, 23
HALF_POWER = 0.70710678118654752

# Polynomials of S. Moshier, Cephes Mathematical Library, 1992: expf and logf; relative errors below 2e-7.
OF_EXP = 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1
OF_LOG = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
    *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)


class Lanes:
    """A vector of float32 in the function that is being compiled, with the operators of an array."""

    def __init__(self, builder: ir.IRBuilder, value: Any) -> None:
        self.builder, self.value = builder, value

    def like(self, other: Any) -> Self:
        """Return a number in every lane; lanes stay as they are."""
        if isinstance(other, Lanes):
            return other  # type: ignore[return-value]
        return type(self)(self.builder, ir.Constant(self.value.type, [float(other)] * self.value.type.count))

    def _by(self, instruction: str, left: Any, right: Any) -> Self:
        operation: Callable[..., Any] = getattr(self.builder, instruction)
        return type(self)(self.builder, operation(self.like(left).value, self.like(right).value))

    def __add__(self, other: Any) -> Self:
        return self._by("fadd", self, other)

    def __radd__(self, other: Any) -> Self:
        return self._by("fadd", other, self)

    def __sub__(self, other: Any) -> Self:
        return self._by("fsub", self, other)

    def __rsub__(self, other: Any) -> Self:
        return self._by("fsub", other, self)

    def __mul__(self, other: Any) -> Self:
        return self._by("fmul", self, other)

    def __rmul__(self, other: Any) -> Self:
        return self._by("fmul", other, self)

    def __truediv__(self, other: Any) -> Self:
        return self._by("fdiv", self, other)

    def __rtruediv__(self, other: Any) -> Self:
        return self._by("fdiv", other, self)

    def __neg__(self) -> Self:
        return type(self)(self.builder, self.builder.fneg(self.value))

    def __lt__(self, other: Any) -> Any:
        """Return which lanes are less, none where one of the two is NaN."""
        return self.builder.fcmp_ordered("<", self.value, self.like(other).value)


class Functions:
    """The functions of NumPy that formulas use, on lanes."""

    @staticmethod
    def where(mask: Any, a: Lanes, b: Any) -> Lanes:
        """Return lanes of `a` where the mask holds, else those of `b`."""
        return Lanes(a.builder, a.builder.select(mask, a.value, a.like(b).value))

    @staticmethod
    def maximum(a: Lanes, b: Any) -> Lanes:
        """Return the larger of each pair; NaN where `a` is NaN."""
        return Functions.where(a < b, a.like(b), a)

    @staticmethod
    def minimum(a: Lanes, b: Any) -> Lanes:
        """Return the smaller of each pair; NaN where `a` is NaN."""
        return Functions.where(a.like(b) < a, a.like(b), a)

    @staticmethod
    def abs(a: Lanes) -> Lanes:
        """Return sizes."""
        return Functions.where(a < 0, -a, a)

    @staticmethod
    def sign(a: Lanes) -> Lanes:
        """Return -1, 0, 1, or NaN."""
        return Functions.where(a < 0, a.like(-1), Functions.where(a.like(0) < a, a.like(1), a))

    @staticmethod
    def exp(x: Lanes) -> Lanes:
        """Return e^x for x from -87 to 87, and outside what is at these ends."""
        builder, integers = x.builder, ir.VectorType(INT32, x.value.type.count)
        x = Functions.minimum(Functions.maximum(x, -LARGEST_EXPONENT), LARGEST_EXPONENT)
        rounded = x * LOG2_E + ROUNDING
        n = rounded - ROUNDING
        x = x - n * LN_2[0] - n * LN_2[1]
        power = builder.shl(
            builder.add(builder.bitcast(rounded.value, integers), _whole(integers, BIAS_OF_EXPONENT)),
            _whole(integers, MANTISSA_BITS),
        )
        return (_polynomial(OF_EXP, x) * (x * x) + x + 1) * Lanes(builder, builder.bitcast(power, x.value.type))

    @staticmethod
    def log(x: Lanes) -> Lanes:
        """Return the natural logarithm of positive normal numbers; NaN for NaN and infinity."""
        builder, kind = x.builder, x.value.type
        integers = ir.VectorType(INT32, kind.count)
        bits = builder.bitcast(x.value, integers)
        exponent = builder.sub(
            builder.lshr(bits, _whole(integers, MANTISSA_BITS)), _whole(integers, BIAS_OF_EXPONENT - 1)
        )
        n = Lanes(builder, builder.sitofp(exponent, kind))
        mantissa = builder.and_(bits, _whole(integers, (1 << MANTISSA_BITS) - 1))
        half = _whole(integers, BIAS_OF_EXPONENT - 1 << MANTISSA_BITS)
        m = Lanes(builder, builder.bitcast(builder.or_(mantissa, half), kind))
        is_low = m < HALF_POWER
        n, m = Functions.where(is_low, n - 1, n), Functions.where(is_low, m + m, m) - 1
        square = m * m
        found = _polynomial(OF_LOG, m) * m * square + n * LN_2[1] - 0.5 * square + m + n * LN_2[0]
        return found + (x - x)


def _whole(kind: ir.VectorType, number: int) -> Any:
    return ir.Constant(kind, [number] * kind.count)


def _polynomial(coefficients: tuple[float, ...], x: Lanes) -> Lanes:
    value = x.like(coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value
