"""How much is measured."""

from dataclasses import dataclass
from typing import Tuple

from .results import CONSERVATIVE, DIRECT, LANGEVIN, MTS, SVR


@dataclass(frozen=True)
class Coupling:
    """A run with a thermostat.

    ``MTS`` stands for the conservative force where no number of inner steps will do,
    and each kind for the only one of a model that has one force.
    """

    forces: str
    thermostat: str
    tau_fs: float


@dataclass(frozen=True)
class Preset:
    """Sizes of a study. Lengths are in fs."""

    name: str
    n_frames: int
    """Structures whose errors are taken."""
    n_probes: int
    """Directions of the estimator of the asymmetry."""
    n_pair_atoms: int
    """Atoms whose pairs are looked at, where the asymmetry is estimated."""
    max_exact: int
    """Atoms up to which the whole Jacobian is computed."""
    loop_points: int
    """Evaluations along a closed loop, at most."""
    equilibration_fs: float
    inner_steps: Tuple[int, ...]
    """Numbers of inner steps to try, rising."""
    nve_fs: float
    nvt_fs: float
    nvt_equilibration_fs: float
    couplings: Tuple[Coupling, ...]
    optimizers: Tuple[str, ...]
    n_relaxations: int
    relaxation_steps: int
    """Steps at most."""
    dynamics_seconds: float
    """Wall time that runs may take; they are shortened to it."""
    relaxation_seconds: float
    """Wall time that relaxations may take; there are fewer where it does not last."""


QUICK = Preset(
    name="quick",
    n_frames=8,
    n_probes=16,
    n_pair_atoms=12,
    max_exact=30,
    loop_points=64,
    equilibration_fs=100.0,
    inner_steps=(2, 4, 8),
    nve_fs=250.0,
    nvt_fs=200.0,
    nvt_equilibration_fs=40.0,
    couplings=(
        Coupling(DIRECT, SVR, 10.0),
        Coupling(MTS, SVR, 10.0),
        Coupling(DIRECT, LANGEVIN, 10.0),
    ),
    optimizers=("LBFGS",),
    n_relaxations=5,
    relaxation_steps=1000,
    dynamics_seconds=60.0,
    relaxation_seconds=10.0,
)
"""Under two minutes for 192 atoms on two cores: shows what is grossly wrong."""

FULL = Preset(
    name="full",
    n_frames=50,
    n_probes=48,
    n_pair_atoms=48,
    max_exact=400,
    loop_points=512,
    equilibration_fs=2000.0,
    inner_steps=(2, 4, 8, 16),
    nve_fs=5000.0,
    nvt_fs=20000.0,
    nvt_equilibration_fs=1000.0,
    couplings=(
        Coupling(CONSERVATIVE, SVR, 10.0),
        Coupling(MTS, SVR, 10.0),
        Coupling(DIRECT, SVR, 10.0),
        Coupling(DIRECT, LANGEVIN, 1000.0),
        Coupling(DIRECT, LANGEVIN, 100.0),
        Coupling(DIRECT, LANGEVIN, 10.0),
    ),
    optimizers=("LBFGS", "FIRE"),
    n_relaxations=10,
    relaxation_steps=1000,
    dynamics_seconds=5400.0,
    relaxation_seconds=1200.0,
)
"""Some two hours for 192 atoms on two cores: figures with small errors."""

PRESETS = {preset.name: preset for preset in (QUICK, FULL)}
