"""Numbers as text."""

import math

from ..md.statistics import Estimate


NOTHING = "–"

SMALL = 1e-4
"""Below, numbers are written with powers of ten."""

MAX_DIGITS = 5
"""After the point."""


def with_error(estimate: Estimate, scale: float = 1.0) -> str:
    """A value with its error, to as many digits as the error allows.

    :param estimate: value and error.
    :param scale: factor for both.
    """
    value, error = scale * estimate[0], scale * estimate[1]
    if not math.isfinite(value):
        return "not known"
    if not math.isfinite(error):
        return f"{signed(value)} ± ?"
    if error <= 0.0:
        return signed(value)
    if max(abs(value), error) < SMALL:
        exponent = math.floor(math.log10(max(abs(value), error)))
        inside = with_error((value / 10.0**exponent, error / 10.0**exponent))
        return f"({inside.lstrip('+')})·{_power_of_ten(exponent)}"
    digits = max(0, min(MAX_DIGITS, 1 - math.floor(math.log10(error))))
    # Rounding may leave nothing, of which there is no negative.
    rounded = round(value, digits) + 0.0
    return f"{rounded:+.{digits}f} ± {error:.{digits}f}".replace("-", "−")


def signed(value: float) -> str:
    """A number with its sign and two significant digits."""
    return ("−" if value < 0.0 else "+") + significant(abs(value))


def significant(value: float) -> str:
    """A number with two significant digits."""
    if value == 0.0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = math.floor(math.log10(abs(value)))
    if abs(value) < SMALL:
        return f"{value / 10.0**exponent:.1f}·{_power_of_ten(exponent)}"
    return f"{round(value, 1 - exponent):.{max(0, 1 - exponent)}f}"


def milli(value: float) -> str:
    """A number in thousandths, with two significant digits."""
    return significant(1000.0 * value)


def by_element(values: dict[str, float], scale: float = 1.0) -> str:
    """Numbers of elements, one after the other."""
    texts = (f"{name} {significant(scale * x)}" for name, x in values.items())
    return ", ".join(texts) or NOTHING


def _power_of_ten(exponent: int) -> str:
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
