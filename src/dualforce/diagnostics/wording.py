"""Names and numbers for people."""

import math
from typing import Union

from .results import FORCES, MTS, Estimate, NVERun, NVTRun


SMALL = 1e-4
"""Below, numbers are written with powers of ten."""

MAX_DIGITS = 5
"""After the point."""


def force_name(kind: str) -> str:
    """A kind of force in words."""
    names = {FORCES: "force", MTS: "both forces"}
    return names.get(kind, f"{kind} force")


def run_name(run: NVTRun) -> str:
    """What drives a run, in words."""
    if run.forces == MTS:
        return f"both forces (M = {run.n_inner})"
    return f"the {force_name(run.forces)}"


def elements_text(run: NVTRun) -> str:
    """Deviations of the elements' temperatures."""
    return ", ".join(
        f"{name} {with_error(value)} K"
        for name, value in run.deviation.items()
        if name != "all"
    )


def with_error(estimate: Estimate) -> str:
    """A value with its error, to as many digits as the error allows."""
    value, error = estimate
    if not math.isfinite(value):
        return "not known"
    if not (math.isfinite(error) and error > 0.0):
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
    sign = "−" if value < 0.0 else "+"
    return sign + significant(abs(value))


def significant(value: float) -> str:
    """A number with two significant digits."""
    if value == 0.0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = math.floor(math.log10(abs(value)))
    if abs(value) < SMALL:
        return f"{value / 10.0**exponent:.1f}·{_power_of_ten(exponent)}"
    return f"{round(value, 1 - exponent):.{max(0, 1 - exponent)}f}"


def _power_of_ten(exponent: int) -> str:
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def length_text(run: Union[NVERun, NVTRun]) -> str:
    """How long a run was."""
    return f"a run of {significant(run.length_ps)} ps"
