r"""Multiple time stepping with direct and conservative forces.

An outer step of ``n_inner`` (:math:`M`) steps of length :math:`\Delta t` is

.. math::

    v &\leftarrow v + \tfrac{\Delta t}{2m} [M f_C - (M - 1) f_D] \\
    x &\leftarrow x + \Delta t\, v, \quad
    \{ v \leftarrow v + \tfrac{\Delta t}{m} f_D, \quad
       x \leftarrow x + \Delta t\, v \} \times (M - 1) \\
    v &\leftarrow v + \tfrac{\Delta t}{2m} [M f_C - (M - 1) f_D]

that is, reversible RESPA (Tuckerman, Berne, Martyna, J. Chem. Phys. 97, 1990 (1992),
Eq. 2.22) with the direct force inside and the correction outside
(arXiv:2412.11569, Sec. 4), where the kicks at an outer point are taken together. It
costs ``n_inner - 1`` direct evaluations and one of both forces; with ``n_inner = 1`` it
is velocity Verlet with the conservative force, in every bit.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Optional, Tuple, Union

import ase
import ase.io
import numpy as np
from ase import units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.md import MolecularDynamics

from .calculator import ConservativeCalculator
from .evaluation import Array, Evaluation, TwoForces
from .guard import Guard, RunFailedError


MAX_DISPLACEMENT = 1.0
"""In Å: an atom that moves farther in one step of time ends the run."""

POINTWISE_CONSTRAINTS = {
    "FixAtoms",
    "FixCartesian",
    "FixedLine",
    "FixedPlane",
    "FixCom",
}
"""Constraints that only project momenta, and go with every integrator."""

BOND_CONSTRAINTS = {"FixBondLengths", "FixLinearTriatomic"}
"""Constraints that ASE solves by RATTLE, within velocity Verlet."""


@dataclass(frozen=True)
class OuterPoint:
    """Both forces at the end of an outer step."""

    positions: Array
    cell: Array
    conservative: Evaluation
    direct: Optional[Evaluation]
    """None where every step is an outer step."""

    def is_at(self, atoms: ase.Atoms) -> bool:
        """Whether ``atoms`` have not been moved since."""
        return np.array_equal(self.positions, atoms.positions) and np.array_equal(
            self.cell, atoms.cell.array
        )

    @property
    def correction(self) -> Optional[float]:
        """Root mean square of conservative minus direct force, in eV/Å."""
        if self.direct is None:
            return None
        difference = self.conservative.forces - self.direct.forces
        return float(np.sqrt(np.mean(difference**2)))


def combine(
    conservative: Evaluation, direct: Optional[Evaluation], n_inner: int
) -> Tuple[Array, Optional[Array]]:
    """Force and stress of the kicks at an outer point, in units of half a step."""
    forces, stress = conservative.forces, conservative.stress
    if n_inner == 1:
        return forces, stress
    assert direct is not None
    forces = n_inner * forces - (n_inner - 1) * direct.forces
    if stress is not None:
        stress = n_inner * stress
        if direct.stress is not None:
            stress = stress - (n_inner - 1) * direct.stress
    return forces, stress


class RespaVelocityVerlet(MolecularDynamics):
    """Constant energy, by reversible RESPA.

    One step of ASE (``run(steps)``, ``loginterval``, ``nsteps``) is an outer step, of
    length ``n_inner * timestep``. At its end ``atoms`` carries energy and conservative
    forces.

    :param atoms: structure; its momenta are the initial ones. Its calculator is
        replaced.
    :param timestep: length of an inner step, in ASE's unit of time.
    :param forces: the model.
    :param n_inner: inner steps in an outer step.
    :param guard: what to do where conservative and direct force differ more than
        usual.
    :param last_good: file that receives the last good structure of a run that fails.
    :param kwargs: as of :class:`ase.md.md.MolecularDynamics`: ``trajectory``,
        ``logfile``, ``loginterval``.
    :raises ValueError: if ``timestep`` or ``n_inner`` is not positive, or the structure
        has a constraint that is not supported.
    """

    supported_constraints = POINTWISE_CONSTRAINTS | BOND_CONSTRAINTS
    needs_stress = False

    def __init__(
        self,
        atoms: ase.Atoms,
        timestep: float,
        forces: TwoForces,
        n_inner: int = 1,
        *,
        guard: Optional[Guard] = None,
        last_good: Union[str, Path] = "last-good.extxyz",
        **kwargs: Any,
    ) -> None:
        if not (np.isfinite(timestep) and timestep > 0.0):
            raise ValueError(f"the timestep must be positive, not {timestep}")
        if n_inner < 1 or int(n_inner) != n_inner:
            raise ValueError(f"n_inner must be 1, 2, 3, ..., not {n_inner}")
        self._check_constraints(atoms)
        self.timestep = float(timestep)
        self.forces = forces
        self.n_inner = int(n_inner)
        self.n_inner_now = self.n_inner
        """Inner steps between outer points at present; the guard may shorten it."""
        self.guard = guard or Guard()
        self.last_good = Path(last_good)
        self.heat = 0.0
        """Energy received from thermostat and barostat, in eV."""
        self.start_conserved: Optional[float] = None
        self._point: Optional[OuterPoint] = None
        atoms.calc = ConservativeCalculator(forces)
        super().__init__(atoms, self.n_inner * self.timestep, **kwargs)
        self.n_degrees = atoms.get_number_of_degrees_of_freedom()

    def _check_constraints(self, atoms: ase.Atoms) -> None:
        for constraint in atoms.constraints:
            name = type(constraint).__name__
            if name not in self.supported_constraints:
                supported = ", ".join(sorted(self.supported_constraints)) or "none"
                raise ValueError(
                    f"{type(self).__name__} does not support the constraint {name}; "
                    f"supported: {supported}"
                )

    def todict(self) -> Dict[str, Any]:
        """Description of the run in trajectories of ASE."""
        return super().todict() | {
            "timestep": self.timestep,
            "n_inner": self.n_inner,
        }

    # ----------------------------------------------------------------- observables

    @property
    def point(self) -> OuterPoint:
        """Forces at the present structure, which must be an outer point."""
        if self._point is None or not self._point.is_at(self.atoms):
            self._evaluate()
        assert self._point is not None
        return self._point

    @property
    def conserved(self) -> float:
        """The conserved quantity in eV: conservative energy plus kinetic energy, less
        the heat received from thermostat and barostat."""
        energy = self.point.conservative.energy
        assert energy is not None
        return energy + self.atoms.get_kinetic_energy() - self.heat

    # ----------------------------------------------------------------------- steps

    def step(self, forces: Optional[Array] = None) -> None:
        """Take an outer step; if the guard has shortened the inner loop, several that
        together are as long.

        :param forces: not used; part of the signature in ASE.
        :raises RunFailedError: if the run cannot go on.
        """
        before, point = self.atoms.copy(), self.point
        if self.start_conserved is None:
            self.start_conserved = self.conserved
        done = 0
        try:
            while done < self.n_inner:
                n_inner = self.n_inner_now
                self._outer_step(n_inner)
                self._watch()
                done += n_inner
            self.n_inner_now = self.guard.lengthen(self.n_inner_now, self.n_inner)
            self._check_drift()
        except (FloatingPointError, RuntimeError, ValueError) as error:
            raise self._failure(error, before, point) from error

    def _outer_step(self, n_inner: int) -> None:
        """Kick, drift and kick through ``n_inner`` steps of time."""
        self._kick_at(self.point, n_inner)
        self._drift(self.timestep)
        for _ in range(n_inner - 1):
            inner = self.forces.direct(self.atoms, self.needs_stress)
            self._kick(inner.forces, inner.stress, self.timestep)
            self._drift(self.timestep)
        self._evaluate()
        self._kick_at(self.point, n_inner)

    def _evaluate(self) -> None:
        direct = None
        if self.n_inner == 1:
            conservative = self.forces.conservative(self.atoms, self.needs_stress)
        else:
            conservative, direct = self.forces.both(self.atoms, self.needs_stress)
        self.set_point(conservative, direct)

    def set_point(self, conservative: Evaluation, direct: Optional[Evaluation]) -> None:
        """Take evaluations as those at the present structure."""
        self.atoms.calc.store(self.atoms, conservative)
        self._point = OuterPoint(
            self.atoms.positions.copy(),
            self.atoms.cell.array.copy(),
            conservative,
            direct,
        )

    def _kick_at(self, point: OuterPoint, n_inner: int) -> None:
        forces, stress = combine(point.conservative, point.direct, n_inner)
        self._kick(forces, stress, 0.5 * self.timestep)

    def _kick(self, forces: Array, stress: Optional[Array], time: float) -> None:
        """Change momenta by a force that acts for some time."""
        self.atoms.set_momenta(self.atoms.get_momenta() + time * forces)

    def _drift(self, time: float) -> None:
        """Move the atoms, and with thermostats inside the step, thermalise them."""
        self._move(time)

    def _move(self, time: float) -> None:
        atoms = self.atoms
        momenta, before = atoms.get_momenta(), atoms.get_positions()
        displacements = time * momenta / self.masses
        check_displacements(displacements)
        atoms.set_positions(before + displacements)
        if atoms.constraints:
            momenta = (atoms.get_positions() - before) * self.masses / time
            atoms.set_momenta(momenta, apply_constraint=False)

    # ----------------------------------------------------------------------- guard

    def _watch(self) -> None:
        correction = self.point.correction
        if correction is not None:
            self.n_inner_now = self.guard.watch(correction, self.n_inner_now)

    def _check_drift(self) -> None:
        assert self.start_conserved is not None
        drift = (self.conserved - self.start_conserved) / len(self.atoms)
        if not abs(drift) <= self.guard.max_drift:
            raise FloatingPointError(
                f"the conserved quantity has changed by {drift:.3g} eV/atom since the "
                f"start, more than {self.guard.max_drift} (`max_drift` of the guard)"
            )

    def _failure(
        self, error: Exception, before: ase.Atoms, point: OuterPoint
    ) -> RunFailedError:
        """Write the last good structure and say what happened."""
        before.calc = SinglePointCalculator(
            before,
            energy=point.conservative.energy,
            forces=point.conservative.forces,
        )
        ase.io.write(self.last_good, before)
        correction = point.correction
        advice = f"Shorten the timestep ({self.timestep / units.fs:g} fs)"
        if correction is not None:
            advice = (
                "Conservative and direct force differed by "
                f"{1000 * correction:.0f} meV/Å (RMS) before. {advice} or n_inner "
                f"({self.n_inner})"
            )
        return RunFailedError(
            f"the run failed in outer step {self.nsteps + 1}, after "
            f"{self.get_time() / units.fs:.1f} fs: {error}. {advice}. The last good "
            f"structure is in {self.last_good}"
        )


def check_displacements(displacements: Array) -> None:
    """
    :param displacements: in Å, shape ``[n_atoms, 3]``.
    :raises FloatingPointError: naming atoms that move too far, or to nowhere.
    """
    squared = np.einsum("ij,ij->i", displacements, displacements)
    # Written so that NaN counts as too far.
    wrong = np.flatnonzero(~(squared < MAX_DISPLACEMENT**2))
    if len(wrong):
        listed = ", ".join(str(i) for i in wrong[:10])
        raise FloatingPointError(
            f"atoms {listed}{', ...' if len(wrong) > 10 else ''} would move by more "
            f"than {MAX_DISPLACEMENT} Å in one step of time"
        )
