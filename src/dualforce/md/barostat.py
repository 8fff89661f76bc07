r"""Constant pressure and temperature, by reversible RESPA.

Martyna-Tobias-Klein equations (J. Chem. Phys. 101, 4177 (1994), Eqs. 2.9 and 2.10) with
a symmetric momentum :math:`p_g` of the cell, thermostatted as by Bussi, Zykova-Timan
and Parrinello (J. Chem. Phys. 130, 074101 (2009)): stochastic velocity rescaling of the
particles, white noise on the cell. With :math:`\nu = p_g / W`

.. math::

    \dot x &= p / m + \nu x, \qquad \dot h = \nu h \\
    \dot p &= f - (\nu + \mathrm{tr}\,\nu / N_f)\, p \\
    \dot p_g &= \textstyle\sum p \otimes p / m + \sum p^2 / (m N_f)
        - V (\sigma + P)

conserves :math:`E + K + P V + |p_g|^2 / 2W`, less the heat received. The stress
:math:`\sigma` is split like the forces: the direct one inside, the correction outside.
"""

from typing import Any, Dict, Literal, Optional

import ase
import numpy as np
from ase import units

from ..forces import Array, ForceSource
from .respa import check_displacements
from .thermostats import RandomRespa, VelocityRescaling, check_positive


CellShape = Literal["isotropic", "orthorhombic", "triclinic"]

MIN_HEIGHT = 3.0
"""In Å: a cell that is thinner cannot be simulated at constant pressure."""

_PROJECTIONS = {
    "isotropic": lambda matrix: np.trace(matrix) / 3.0 * np.eye(3),
    "orthorhombic": lambda matrix: np.diag(np.diag(matrix)),
    "triclinic": lambda matrix: 0.5 * (matrix + matrix.T),
}


class RespaNPT(RandomRespa):
    """Constant pressure and temperature.

    :param temperature_K: temperature, in K.
    :param pressure: pressure, in eV/Å^3 (``ase.units.GPa``).
    :param tau: relaxation time of the kinetic energy, in ASE's unit of time.
    :param tau_p: time scale of the cell, and relaxation time of its momentum.
    :param cell: what of the cell changes: the volume alone (``isotropic``), the
        lengths along x, y and z (``orthorhombic``), or lengths and angles
        (``triclinic``).
    :param rng: seed or generator of the random numbers.
    :param thermostat: switch off to conserve the enthalpy instead of the temperature,
        which then only sets the mass of the cell.
    :raises ValueError: if the structure is not periodic or its cell is too small.

    Everything else as of :class:`RespaVelocityVerlet`. Where the model has no direct
    stress, the conservative one acts at the outer points alone.
    """

    supported_constraints = {"FixCom"}
    needs_stress = True

    def __init__(
        self,
        atoms: ase.Atoms,
        timestep: float,
        forces: ForceSource,
        n_inner: int = 1,
        *,
        temperature_K: float,
        pressure: float,
        tau: float,
        tau_p: float,
        cell: CellShape = "isotropic",
        thermostat: bool = True,
        **kwargs: Any,
    ) -> None:
        check_positive(temperature_K=temperature_K, tau_p=tau_p)
        if not np.isfinite(pressure):
            raise ValueError(f"the pressure must be a number, not {pressure}")
        if cell not in _PROJECTIONS:
            raise ValueError(
                f"cell must be one of {', '.join(_PROJECTIONS)}, not '{cell}'"
            )
        _check_cell(atoms)
        super().__init__(atoms, timestep, forces, n_inner, **kwargs)
        self.pressure, self.tau_p = pressure, tau_p
        self.temperature = units.kB * temperature_K
        self.cell_momentum = np.zeros((3, 3))
        self.cell_mass = (self.n_degrees + 3) * self.temperature * tau_p**2 / 3.0
        self.thermostat = thermostat
        self._rescaling = VelocityRescaling(temperature_K, tau, self.n_degrees)
        self._project = _PROJECTIONS[cell]

    def state(self) -> Dict[str, Any]:
        return super().state() | {"cell_momentum": self.cell_momentum}

    def restore(self, state: Dict[str, Any]) -> None:
        super().restore(state)
        self.cell_momentum = state["cell_momentum"]

    @property
    def conserved(self) -> float:
        """The conserved quantity, in eV: conservative, kinetic and cell energy, less
        the heat received from the thermostats."""
        work = self.pressure * self.atoms.get_volume()
        return super().conserved + work + self._cell_energy()

    def _cell_energy(self) -> float:
        return float((self.cell_momentum**2).sum() / (2.0 * self.cell_mass))

    def _outer_step(self, n_inner: int) -> None:
        if self.thermostat:
            self._thermalise(n_inner * self.timestep)
        super()._outer_step(n_inner)
        thickness = _thickness(self.atoms)
        if not thickness >= MIN_HEIGHT:
            raise FloatingPointError(f"the cell has become {thickness:.2f} Å thin")

    def _thermalise(self, time: float) -> None:
        self.heat += self._rescaling.apply(self.atoms, time, self.rng)
        before = self._cell_energy()
        decay = np.exp(-time / self.tau_p)
        noise = self._project(self.rng.standard_normal((3, 3)))
        width = np.sqrt(self.cell_mass * self.temperature * (1.0 - decay**2))
        self.cell_momentum = decay * self.cell_momentum + width * noise
        self.heat += self._cell_energy() - before

    # ------------------------------------------------------------------- splitting

    def _kick(self, forces: Array, stress: Optional[Array], time: float) -> None:
        super()._kick(forces, stress, time)
        if stress is not None:
            volume = self.atoms.get_volume()
            self._push(-time * volume * stress)

    def _drift(self, time: float) -> None:
        check_displacements(time * self.atoms.get_momenta() / self.masses)
        self._push_cell(0.5 * time)
        self._damp(0.5 * time)
        self._move(time)
        self._damp(0.5 * time)
        self._push_cell(0.5 * time)

    def _push_cell(self, time: float) -> None:
        """Kinetic and external pressure act on the cell."""
        momenta = self.atoms.get_momenta()
        kinetic = momenta.T @ (momenta / self.masses)
        internal = kinetic + np.trace(kinetic) / self.n_degrees * np.eye(3)
        external = self.pressure * self.atoms.get_volume() * np.eye(3)
        self._push(time * (internal - external))

    def _push(self, impulse: Array) -> None:
        if not np.isfinite(impulse).all():
            raise FloatingPointError("the stress is not finite")
        self.cell_momentum = self.cell_momentum + self._project(impulse)

    def _damp(self, time: float) -> None:
        """The moving cell changes momenta."""
        rate = self.cell_momentum / self.cell_mass
        rate = rate + np.trace(rate) / self.n_degrees * np.eye(3)
        momenta = self.atoms.get_momenta()
        self.atoms.set_momenta(momenta @ _exponentials(-time * rate)[0])

    def _move(self, time: float) -> None:
        """Positions and cell move together, at constant momenta."""
        atoms = self.atoms
        full, half = _exponentials(time * self.cell_momentum / self.cell_mass)
        velocities = atoms.get_momenta() / self.masses
        atoms.positions = atoms.positions @ full + time * velocities @ half
        atoms.set_cell(atoms.cell.array @ full)


def _exponentials(matrix: Array) -> tuple[Array, Array]:
    r""":math:`e^A` and :math:`\int_0^1 e^{sA} ds` of a symmetric matrix."""
    values, vectors = np.linalg.eigh(matrix)
    half = 0.5 * values
    mean = np.where(
        np.abs(half) < 1e-4,
        1.0 + half**2 / 6.0,
        np.sinh(half) / np.where(half, half, 1),
    )
    mean = np.exp(half) * mean
    return (
        (vectors * np.exp(values)) @ vectors.T,
        (vectors * mean) @ vectors.T,
    )


def _check_cell(atoms: ase.Atoms) -> None:
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        raise ValueError(
            "constant pressure needs a cell that is periodic in all directions"
        )
    thickness = _thickness(atoms)
    if thickness < MIN_HEIGHT:
        raise ValueError(
            f"the cell is {thickness:.2f} Å thin, too small for constant pressure "
            f"(at least {MIN_HEIGHT} Å); repeat it"
        )


def _thickness(atoms: ase.Atoms) -> float:
    return float(1.0 / np.linalg.norm(atoms.cell.reciprocal(), axis=1).max())
