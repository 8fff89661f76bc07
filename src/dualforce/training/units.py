"""Physical bounds in the units of the data."""

from metatomic.torch import unit_conversion_factor


def in_unit(value: float, unit: str, wanted: str) -> float:
    """A value in another unit; unchanged where the data do not tell theirs.

    :param value: in ``unit``.
    :param unit: its unit.
    :param wanted: the unit of the data, or an empty string.
    """
    return value * unit_conversion_factor(unit, wanted) if wanted else value


def force_unit(energy_unit: str, length_unit: str) -> str:
    """Unit of a force, or an empty string where one of the two is unknown."""
    return f"{energy_unit}/{length_unit}" if energy_unit and length_unit else ""


def stress_unit(energy_unit: str, length_unit: str) -> str:
    """Unit of a stress, or an empty string where one of the two is unknown."""
    return f"{energy_unit}/{length_unit}^3" if energy_unit and length_unit else ""
