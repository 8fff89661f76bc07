"""Molecular dynamics and relaxation with two forces."""

from .barostat import RespaNPT
from .checkpoint import restore_run, save_run
from .guard import Guard, RunFailedError, describe_overlap
from .masses import repartition_hydrogen_mass
from .preparation import (
    equilibrate,
    fix_center_of_mass,
    set_thermal_momenta,
    start_structure,
)
from .relaxation import Relaxation, relax
from .respa import RespaVelocityVerlet
from .runner import Outcome, make_run, run_md
from .settings import CellShape, Ensemble, MDSettings
from .thermostats import RespaLangevin, RespaSVR
from .tuning import Tuning, tune


__all__ = [
    "CellShape",
    "Ensemble",
    "Guard",
    "MDSettings",
    "Outcome",
    "Relaxation",
    "RespaLangevin",
    "RespaNPT",
    "RespaSVR",
    "RespaVelocityVerlet",
    "RunFailedError",
    "Tuning",
    "describe_overlap",
    "equilibrate",
    "fix_center_of_mass",
    "make_run",
    "relax",
    "repartition_hydrogen_mass",
    "restore_run",
    "run_md",
    "save_run",
    "set_thermal_momenta",
    "start_structure",
    "tune",
]
