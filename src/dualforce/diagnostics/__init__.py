"""Whether forces are conservative, and what they do to simulations."""

from .content import Sentence
from .findings import Findings
from .measure import Case, Measure
from .measures.equilibration import prepare
from .measures.errors import energy_errors, force_differences, force_errors
from .measures.gradient import check_gradient
from .measures.jacobian import estimate_asymmetry, exact_asymmetry
from .measures.loops import NoMoleculeError, plane_loop, rotation_loop
from .measures.nve import NVERun, run_nve
from .measures.nvt import NVTRun, run_nvt
from .measures.relaxation import relaxation_rate
from .measures.symmetries import broken_symmetries
from .report import Report
from .study import diagnose


__all__ = [
    "Case",
    "Findings",
    "Measure",
    "NVERun",
    "NVTRun",
    "NoMoleculeError",
    "Report",
    "Sentence",
    "broken_symmetries",
    "check_gradient",
    "diagnose",
    "energy_errors",
    "estimate_asymmetry",
    "exact_asymmetry",
    "force_differences",
    "force_errors",
    "plane_loop",
    "prepare",
    "relaxation_rate",
    "rotation_loop",
    "run_nve",
    "run_nvt",
]
