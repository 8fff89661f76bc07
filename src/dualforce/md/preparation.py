"""Structures at the start of a run."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import ase
import numpy as np
from ase import units
from ase.constraints import FixCom

from ..forces import Array, ForceSource
from .guard import Guard, RunFailedError
from .masses import repartition_hydrogen_mass
from .settings import MDSettings
from .thermostats import RespaLangevin


EQUILIBRATION = 300.0 * units.fs

FRICTION = 0.02 / units.fs
"""Strong, so that the structure forgets soon what it came from."""


def equilibrate(
    forces: ForceSource,
    atoms: ase.Atoms,
    timestep: float,
    *,
    temperature_K: float,
    seed: int = 0,
    length: float = EQUILIBRATION,
    progress: Callable[[float], None] = lambda share: None,
) -> ase.Atoms:
    """Run Langevin dynamics with the conservative force, as the start of other runs.

    :param forces: the model.
    :param atoms: structure, which is not changed; its velocities are not used.
    :param timestep: length of a step, in ASE's unit of time.
    :param temperature_K: temperature, in K.
    :param seed: of velocities and noise.
    :param length: time to run, in ASE's unit of time.
    :param progress: told the part that is done.
    :return: structure with momenta and, unless it has constraints, a fixed centre of
        mass.
    :raises RunFailedError: if the structure cannot be equilibrated.
    """
    start = atoms.copy()
    rng = np.random.default_rng(seed)
    set_thermal_momenta(start, temperature_K, rng)
    with tempfile.TemporaryDirectory() as folder:
        run = RespaLangevin(
            start,
            timestep,
            forces,
            temperature_K=temperature_K,
            friction=FRICTION,
            rng=rng,
            # Structures that are far from equilibrium may give off much heat here.
            guard=Guard(max_drift=1.0),
            last_good=Path(folder) / "last-good.extxyz",
        )
        n_steps = max(1, round(length / timestep))
        try:
            for _ in run.irun(n_steps):
                progress(run.nsteps / n_steps)
        except RunFailedError as error:
            raise RunFailedError(
                f"the structure cannot be equilibrated at {temperature_K:g} K: it "
                f"fails after {run.get_time() / units.fs:.1f} fs ({error.__cause__}). "
                "Relax it first, or shorten the timestep"
            ) from error
    fix_center_of_mass(start)
    return start


def start_structure(atoms: ase.Atoms, settings: MDSettings) -> ase.Atoms:
    """A copy of a structure with the masses of a run and, if it had none, velocities.

    :raises ValueError: if masses cannot be repartitioned.
    """
    start = atoms.copy()
    start.set_masses(start.get_masses())
    if settings.hydrogen_mass is not None:
        repartition_hydrogen_mass(start, settings.hydrogen_mass)
    if not start.get_momenta().any():
        rng = np.random.default_rng(settings.seed)
        set_thermal_momenta(start, settings.temperature, rng)
    return start


def fix_center_of_mass(atoms: ase.Atoms) -> None:
    """Take the centre of mass out of the degrees of freedom, where forces conserve it.

    Forces sum to zero, so without a Langevin thermostat or fixed atoms the total
    momentum stays zero: kinetic energy belongs to ``3 N - 3`` degrees of freedom, and a
    thermostat that counts ``3 N`` would aim too high.

    :param atoms: structure to change; left alone if it has constraints.
    """
    if len(atoms) > 1 and not atoms.constraints:
        atoms.set_constraint(FixCom())
        atoms.set_momenta(atoms.get_momenta())


def set_thermal_momenta(
    atoms: ase.Atoms, temperature_K: float, rng: np.random.Generator
) -> None:
    """Draw momenta from the Maxwell-Boltzmann distribution, with zero total momentum
    unless constraints hold some atoms.

    :param atoms: structure to change.
    :param temperature_K: temperature, in K.
    :param rng: source of random numbers.
    """
    masses = atoms.get_masses()[:, None]
    width = np.sqrt(masses * units.kB * temperature_K)
    momenta = width * rng.standard_normal((len(atoms), 3))
    if len(atoms) > 1 and not atoms.constraints:
        momenta -= masses * momenta.sum(0) / masses.sum()
    atoms.set_momenta(momenta)


def degrees_of_freedom(atoms: ase.Atoms) -> Array:
    r"""Degrees of freedom of each atom, :math:`\langle p^2 / m \rangle / k_B T`.

    Exact for a fixed centre of mass and for fixed atoms; what another constraint
    removes is taken from its atoms in equal shares.

    :return: shape ``[n_atoms]``.
    """
    degrees = np.full(len(atoms), 3.0)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixCom):
            masses = atoms.get_masses()
            degrees -= 3.0 * masses / masses.sum()
        else:
            indices = constraint.get_indices()
            degrees[indices] -= constraint.get_removed_dof(atoms) / len(indices)
    return degrees


def temperatures(atoms: ase.Atoms, degrees: Array) -> dict[str, float]:
    """Kinetic temperature of each element in K; NaN where all its atoms are fixed.

    :param atoms: structure with momenta.
    :param degrees: as of :func:`degrees_of_freedom`, shape ``[n_atoms]``.
    """
    twice_kinetic = (atoms.get_momenta() ** 2).sum(1) / atoms.get_masses()
    symbols = np.array(atoms.get_chemical_symbols())
    result = {}
    for symbol in dict.fromkeys(symbols):
        chosen = symbols == symbol
        free = degrees[chosen].sum()
        energy = twice_kinetic[chosen].sum() / units.kB
        result[str(symbol)] = float(energy / free) if free > 1e-9 else float("nan")
    return result
