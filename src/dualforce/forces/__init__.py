"""Sources of forces: exported models, calculators of ASE, and combinations of them."""

from .calculators import CalculatorForces, ConservativeCalculator
from .combined import CombinedForces, Cost, CountedForces, DirectOnly, SummedForces
from .domain import TrainingDomain
from .loading import (
    Model,
    load_calculator,
    load_forces,
    names_calculator,
    portable_name,
    split_sum,
)
from .metatomic import DIRECT_FORCE, DIRECT_STRESS, MetatomicForces, load_model
from .neighbors import pairs_within
from .packages import split_name
from .pair_folder import Pair, is_pair_folder, read_pair
from .protocol import (
    Array,
    Evaluation,
    EvaluationError,
    ForceSource,
    Kind,
    MissingForceError,
    check_finite,
    list_atoms,
    list_symbols,
    without_net_force,
)


__all__ = [
    "DIRECT_FORCE",
    "DIRECT_STRESS",
    "Array",
    "CalculatorForces",
    "CombinedForces",
    "ConservativeCalculator",
    "Cost",
    "CountedForces",
    "DirectOnly",
    "Evaluation",
    "EvaluationError",
    "ForceSource",
    "Kind",
    "MetatomicForces",
    "MissingForceError",
    "Model",
    "Pair",
    "SummedForces",
    "TrainingDomain",
    "check_finite",
    "is_pair_folder",
    "list_atoms",
    "list_symbols",
    "load_calculator",
    "load_forces",
    "load_model",
    "names_calculator",
    "pairs_within",
    "portable_name",
    "read_pair",
    "split_name",
    "split_sum",
    "without_net_force",
]
