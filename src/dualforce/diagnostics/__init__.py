"""How non-conservative a force is, and what it does to simulations."""

from .errors import (
    energy_errors,
    evaluate_frames,
    force_differences,
    force_errors,
    symmetries,
)
from .jacobian import estimate_asymmetry, exact_asymmetry
from .loops import NoMoleculeError, plane_loop, rotation_loop
from .subject import (
    ForceField,
    Subject,
    calculator_subject,
    load_subject,
)


__all__ = [
    "ForceField",
    "NoMoleculeError",
    "Subject",
    "calculator_subject",
    "energy_errors",
    "estimate_asymmetry",
    "evaluate_frames",
    "exact_asymmetry",
    "force_differences",
    "force_errors",
    "load_subject",
    "plane_loop",
    "rotation_loop",
    "symmetries",
]
