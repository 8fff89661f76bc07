"""What a run is made of, for every engine."""

from dataclasses import dataclass
from typing import Literal, Optional, get_args

import numpy as np


Ensemble = Literal["nve", "nvt-langevin", "nvt-svr", "npt"]
CellShape = Literal["isotropic", "orthorhombic", "triclinic"]


@dataclass(frozen=True)
class MDSettings:
    """Settings of a run.

    :raises ValueError: naming the first setting that makes no sense.
    """

    ensemble: Ensemble = "nve"
    temperature: float = 300.0
    """In K; also that of initial velocities, where the structure has none."""
    pressure: float = 1.0
    """In bar, for ``npt``."""
    timestep: float = 0.5
    """Inner step, in fs."""
    n_inner: int = 4
    """Inner steps (:math:`M`) in an outer step; 4 suits most models, and
    :func:`~dualforce.tune` finds the best."""
    steps: int = 10000
    """Inner steps in all; rounded up to whole outer steps."""
    friction: float = 1.0
    """In 1/ps, for ``nvt-langevin``."""
    tau: float = 100.0
    """Relaxation time of the kinetic energy in fs, for ``nvt-svr`` and ``npt``."""
    tau_p: float = 1000.0
    """Time scale of the cell in fs, for ``npt``."""
    cell: CellShape = "isotropic"
    """What of the cell changes, for ``npt``."""
    hydrogen_mass: Optional[float] = None
    """New mass of hydrogen in u, taken from its neighbours."""
    seed: int = 0
    """Of velocities and thermostats."""
    interval: int = 20
    """Inner steps between frames and lines of the log; rounded up likewise."""

    def __post_init__(self) -> None:
        if self.ensemble not in get_args(Ensemble):
            raise ValueError(
                f"ensemble must be one of {', '.join(get_args(Ensemble))}, not "
                f"'{self.ensemble}'"
            )
        if self.cell not in get_args(CellShape):
            raise ValueError(
                f"cell must be one of {', '.join(get_args(CellShape))}, not "
                f"'{self.cell}'"
            )
        if not np.isfinite(self.pressure):
            raise ValueError(f"pressure must be a number, not {self.pressure}")
        positive = ["temperature", "timestep", "friction", "tau", "tau_p"]
        if self.hydrogen_mass is not None:
            positive.append("hydrogen_mass")
        for name in positive:
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0.0):
                raise ValueError(f"{name} must be positive, not {value}")
        for name in ("n_inner", "steps", "interval"):
            value = getattr(self, name)
            if int(value) != value or value < 1:
                raise ValueError(f"{name} must be 1, 2, 3, ..., not {value}")

    @property
    def outer_steps(self) -> int:
        """Outer steps in all."""
        return -(-self.steps // self.n_inner)

    @property
    def outer_interval(self) -> int:
        """Outer steps between frames."""
        return -(-self.interval // self.n_inner)
