"""What diagnostics find out: plain numbers, which can be stored as JSON."""

from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple


Estimate = Tuple[float, float]
"""A value and its standard error (NaN where the error is not known)."""

CONSERVATIVE, DIRECT, FORCES = "conservative", "direct", "forces"
"""Kinds of force. ``forces`` are those of a calculator that has one kind only."""

MTS = "MTS"
"""Kind of a run with direct forces inside and conservative ones every few steps."""

LANGEVIN, SVR = "langevin", "svr"
"""Thermostats: white noise on every atom, and stochastic velocity rescaling."""


@dataclass(frozen=True)
class PairBin:
    """Asymmetry of the Jacobian's blocks of pairs in one range of distances."""

    elements: str
    """Both elements, in the order of the alphabet: ``H-O``."""
    distance: float
    """Middle of the range, in Å."""
    n_pairs: int
    asymmetry: float
    r"""Root of the summed squares: :math:`\sqrt{\sum |J^{anti}_{ij}|^2 / \sum
    |J_{ij}|^2}`."""
    norm: float
    """Root mean square Frobenius norm of a block of the Jacobian, in eV/Å^2."""
    antisymmetric_norm: float
    """The same of its antisymmetric part."""


@dataclass(frozen=True)
class Asymmetry:
    r"""Antisymmetric share :math:`\lambda` of the Jacobian of a force
    (arXiv:2412.11569): 0 for a conservative force, 1 for one without a conservative
    part."""

    kind: str
    """Kind of force."""
    value: float
    error: Optional[float]
    """Standard error, wide enough for 1.96 of it to hold the truth with a probability
    of 95 %; none where all of the Jacobian was computed."""
    method: str
    """``automatic differentiation`` or ``central differences``."""
    n_probes: int
    """Directions of the estimator, or columns of the whole Jacobian."""
    n_evaluations: int
    """Evaluations of the force, forward or backward."""
    seconds: float
    per_element: Dict[str, float]
    """Asymmetry of the rows and columns of each element; empty if not computed."""
    per_atom: List[float]
    """The same for each atom; empty if not computed."""
    pairs: List[PairBin]
    """By elements and distance; empty if not computed."""
    floor: Optional[float] = None
    """Asymmetry that rounding and finite steps alone would show; none for automatic
    differentiation. A value close to it means nothing but that it is not larger."""


@dataclass(frozen=True)
class LoopWork:
    """Work of a force around a closed loop: zero for a conservative one."""

    kind: str
    loop: str
    """``plane`` (a circle in a plane of random directions) or ``rotation`` (a molecule
    turned once around)."""
    work: float
    """In eV."""
    numerical_error: float
    """In eV, from half and a quarter of the points."""
    n_points: int
    length: float
    """Path length in configuration space, in Å."""
    angles: List[float]
    """In degrees, for the plot."""
    cumulative: List[float]
    """Work up to there, in eV."""


@dataclass(frozen=True)
class ForceErrors:
    """Mean absolute and root mean square errors of one kind of force."""

    kind: str
    reference: str
    """``labels`` or a kind of force."""
    mae: float
    """In eV/Å."""
    rmse: float
    """In eV/Å."""
    per_element: Dict[str, float]
    """MAE in eV/Å."""
    n_frames: int


@dataclass(frozen=True)
class Symmetries:
    """What physics wants to vanish or not to change, for one kind of force."""

    kind: str
    net_force: float
    """Norm of the sum over atoms, as the model predicts it, divided by the number of
    atoms, in eV/Å."""
    net_torque: Optional[float]
    """Norm of the sum of torques over atoms, divided by the number of atoms, in eV;
    none for periodic systems."""
    rotation: float
    """RMS of the change of the force when the structure is turned at random and the
    force turned back, in eV/Å."""
    inversion: float
    """The same for inversion."""


@dataclass(frozen=True)
class EnergyErrors:
    """Errors of the energy against labels, per atom, in eV."""

    mae: float
    rmse: float
    n_frames: int


@dataclass(frozen=True)
class NVERun:
    """A run at constant energy."""

    forces: str
    """``direct``, ``conservative``, ``forces`` or ``MTS``."""
    n_inner: int
    length_ps: float
    failed: Optional[str]
    """Why the run ended before its time."""
    drift: Estimate
    """Of kinetic plus conservative energy, in meV/atom/ps: the power per atom that the
    force injects. NaN without an energy."""
    heating: Estimate
    """In K/ps."""
    ms_per_step: float
    """Wall time of an inner step, in ms."""
    times: List[float]
    """In ps."""
    temperature: List[float]
    """In K."""
    conserved: List[float]
    """In meV/atom, from zero; empty without an energy."""


@dataclass(frozen=True)
class NVTRun:
    """A run with a thermostat."""

    forces: str
    n_inner: int
    thermostat: str
    """``langevin`` or ``svr``."""
    tau_fs: float
    """Time constant of the coupling: one over the friction, or of the rescaling."""
    target: float
    """Temperature asked for, in K."""
    length_ps: float
    """Without the equilibration before."""
    failed: Optional[str]
    """Why the run ended before its time; it may have done so before anything could be
    measured, and what follows is then empty."""
    deviation: Dict[str, Estimate]
    """Kinetic temperature minus the target in K, for ``all`` and for each element."""
    diffusion: Dict[str, Estimate]
    """Diffusion coefficient of each element in Å^2/ps, without finite-size
    correction; empty without a periodic cell, and for runs under 2 ps, in which atoms
    only rattle."""
    frequencies: List[float]
    """In 1/cm."""
    spectrum: Dict[str, List[float]]
    """Spectrum of the velocity autocorrelation of each element, of area one."""
    lags: List[float]
    """In ps."""
    autocorrelation: Dict[str, List[float]]
    """Velocity autocorrelation of each element, one at the beginning."""
    distances: List[float]
    """In Å; empty without a periodic cell."""
    rdf: Dict[str, List[float]]
    """Radial distribution function of each pair of elements, ``H-O``."""
    ms_per_step: float
    """Wall time of an inner step, in ms."""


@dataclass(frozen=True)
class RelaxationRate:
    """Optimisations from perturbed structures."""

    forces: str
    optimizer: str
    """``FIRE`` or ``LBFGS``."""
    fmax: float
    """In eV/Å."""
    max_steps: int
    converged: int
    n_runs: int
    median_steps: Optional[float]
    """Of the converged runs; none where there are none."""
    final_forces: List[float]
    """Largest force at the end of each run, in eV/Å, sorted; infinite for runs that
    failed."""


@dataclass(frozen=True)
class Sentence:
    """A piece of the verdict."""

    level: str
    """``good``, ``caution`` or ``bad``."""
    topic: str
    text: str
    """With the number it rests on."""
