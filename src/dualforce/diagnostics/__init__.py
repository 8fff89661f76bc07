"""How non-conservative a force is, and what it does to simulations."""

from .cache import Cache
from .conditions import Conditions, choose_structures
from .errors import (
    energy_errors,
    evaluate_frames,
    force_differences,
    force_errors,
    symmetries,
)
from .findings import Findings
from .heating import run_nve
from .jacobian import estimate_asymmetry, exact_asymmetry
from .loops import NoMoleculeError, plane_loop, rotation_loop
from .presets import PRESETS, Preset
from .relaxing import relaxation_rate
from .runs import prepare
from .subject import (
    ForceField,
    Subject,
    calculator_subject,
    load_subject,
)
from .thermostatted import run_nvt


__all__ = [
    "PRESETS",
    "Cache",
    "Conditions",
    "Findings",
    "ForceField",
    "NoMoleculeError",
    "Preset",
    "Subject",
    "calculator_subject",
    "choose_structures",
    "energy_errors",
    "estimate_asymmetry",
    "evaluate_frames",
    "exact_asymmetry",
    "force_differences",
    "force_errors",
    "load_subject",
    "plane_loop",
    "prepare",
    "relaxation_rate",
    "rotation_loop",
    "run_nve",
    "run_nvt",
    "symmetries",
]
