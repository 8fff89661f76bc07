"""The measures of ``dualforce diagnose``, in the order they are taken and reported.

To add one, write a subclass of :class:`~dualforce.diagnostics.measure.Measure` in a
file of its own and add an instance here.
"""

from typing import List

from ..measure import Measure
from .equilibration import Equilibration
from .errors import Errors
from .gradient import EnergyGradient
from .jacobian import JacobianSymmetry
from .loops import ClosedLoops
from .nve import ConstantEnergy
from .nvt import ConstantTemperature
from .relaxation import Relaxations
from .speed import EvaluationCost
from .symmetries import Symmetries


MEASURES: List[Measure] = [
    EvaluationCost(),
    EnergyGradient(),
    JacobianSymmetry(),
    ClosedLoops(),
    Errors(),
    Symmetries(),
    Equilibration(),
    ConstantEnergy(),
    ConstantTemperature(),
    Relaxations(),
]
