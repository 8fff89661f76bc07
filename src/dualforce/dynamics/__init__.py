"""Dynamics with two forces: evaluation of models, integrators, thermostats."""

from .barostat import RespaNPT
from .calculator import ConservativeCalculator
from .checkpoint import restore_run, save_run
from .evaluation import CalculatorForces, DirectOnly, Evaluation, TwoForces
from .forces import HybridForces, MissingOutputError
from .guard import Guard, RunFailedError
from .masses import repartition_hydrogen_mass
from .respa import RespaVelocityVerlet
from .thermostats import RespaLangevin, RespaSVR


__all__ = [
    "CalculatorForces",
    "ConservativeCalculator",
    "DirectOnly",
    "Evaluation",
    "Guard",
    "HybridForces",
    "MissingOutputError",
    "RespaLangevin",
    "RespaNPT",
    "RespaSVR",
    "RespaVelocityVerlet",
    "RunFailedError",
    "TwoForces",
    "repartition_hydrogen_mass",
    "restore_run",
    "save_run",
]
