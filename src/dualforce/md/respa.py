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
is bitwise identical to velocity Verlet with the conservative force.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Optional, Tuple, Union

import ase
import ase.io
import numpy as np
from ase import units
from ase.md.md import MolecularDynamics
from numpy.typing import NDArray

from ..forces import (
    Array,
    ConservativeCalculator,
    Evaluation,
    ForceSource,
    MissingForceError,
    list_atoms,
)
from .guard import Guard, RunFailedError, describe_overlap


MAX_DISPLACEMENT = 1.0
"""In Å: an atom that moves farther in one step of time ends the run."""

POINTWISE_CONSTRAINTS = {
    "FixAtoms",
    "FixCartesian",
    "FixedLine",
    "FixedPlane",
}
"""Constraints of single atoms, which only project their momenta."""


@dataclass(frozen=True)
class OuterPoint:
    """Both forces at the end of an outer step."""

    numbers: NDArray[np.integer]
    positions: Array
    cell: Array
    conservative: Evaluation
    direct: Optional[Evaluation]
    """None where every step is an outer step."""

    def is_at(self, atoms: ase.Atoms) -> bool:
        """Whether ``atoms`` have not been moved since."""
        return (
            np.array_equal(self.positions, atoms.positions)
            and np.array_equal(self.cell, atoms.cell.array)
            and np.array_equal(self.numbers, atoms.numbers)
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
    :param forces: source of conservative forces and, for more than one inner step, of
        direct forces.
    :param n_inner: inner steps in an outer step.
    :param guard: what to do where conservative and direct force differ more than
        usual; by default it warns, and usual is what the model knows to be.
    :param last_good: file that receives the last good structure of a run that fails.
    :param kwargs: as of :class:`ase.md.md.MolecularDynamics`: ``trajectory``,
        ``logfile``, ``loginterval``.
    :raises MissingForceError: if the source lacks a force that is needed.
    :raises ValueError: if ``timestep`` or ``n_inner`` is not positive, or the structure
        has a constraint that is not supported.
    """

    # ASE solves FixBondLengths by RATTLE, which is part of velocity Verlet.
    supported_constraints = POINTWISE_CONSTRAINTS | {"FixCom", "FixBondLengths"}
    needs_stress = False

    def __init__(
        self,
        atoms: ase.Atoms,
        timestep: float,
        forces: ForceSource,
        n_inner: int = 1,
        *,
        guard: Optional[Guard] = None,
        last_good: Union[str, Path] = "last-good.extxyz",
        **kwargs: Any,
    ) -> None:
        if not (np.isfinite(timestep) and timestep > 0.0):
            raise ValueError(f"the timestep must be positive, not {timestep}")
        if not (np.isfinite(n_inner) and n_inner >= 1 and int(n_inner) == n_inner):
            raise ValueError(f"n_inner must be 1, 2, 3, ..., not {n_inner}")
        check_source(forces, int(n_inner))
        self._check_constraints(atoms)
        self.timestep = float(timestep)
        self.forces = forces
        self.n_inner = int(n_inner)
        self.n_inner_now = self.n_inner
        """Inner steps between outer points at present, at most; the guard may shorten
        it."""
        self.guard = guard or Guard(usual=forces.usual_correction)
        self.guard.n_atoms = len(atoms)
        self.last_good = Path(last_good)
        self.heat = 0.0
        """Energy received from thermostat and barostat, in eV."""
        self.start_conserved: Optional[float] = None
        self._point: Optional[OuterPoint] = None
        atoms.calc = ConservativeCalculator(forces)
        super().__init__(atoms, self.n_inner * self.timestep, **kwargs)
        self.n_degrees = atoms.get_number_of_degrees_of_freedom()

    def _check_constraints(self, atoms: ase.Atoms) -> None:
        names = {type(constraint).__name__ for constraint in atoms.constraints}
        if "FixCom" in names and names & POINTWISE_CONSTRAINTS:
            raise ValueError(
                "the centre of mass (FixCom) cannot be kept together with fixed atoms: "
                "remove one of the constraints"
            )
        for name in sorted(names):
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

    # ----------------------------------------------------------------------- state

    def state(self) -> Dict[str, Any]:
        """All that changes from step to step: arrays, and what JSON can hold."""
        point, guard = self.point, self.guard
        state: Dict[str, Any] = {
            "positions": point.positions,
            "cell": point.cell,
            "momenta": self.atoms.get_momenta(),
            "energy": point.conservative.energy,
            "nsteps": self.nsteps,
            "n_inner_now": self.n_inner_now,
            "heat": self.heat,
            "start_conserved": self.start_conserved,
            "corrections": list(guard.corrections),
            "allowed": list(guard.allowed),
            "reported": guard.reported,
        }
        for kind in ("conservative", "direct"):
            evaluation: Optional[Evaluation] = getattr(point, kind)
            if evaluation is not None:
                state[f"{kind}_forces"] = evaluation.forces
                state[f"{kind}_stress"] = evaluation.stress
        for index, constraint in enumerate(self.atoms.constraints):
            if getattr(constraint, "bondlengths", None) is not None:
                state[f"bondlengths_{index}"] = constraint.bondlengths
        return state

    def restore(self, state: Dict[str, Any]) -> None:
        """Return to a :meth:`state` of a run made with the same arguments."""
        for index, constraint in enumerate(self.atoms.constraints):
            if f"bondlengths_{index}" in state:
                constraint.bondlengths = state[f"bondlengths_{index}"]
        self.atoms.set_cell(state["cell"])
        self.atoms.positions = state["positions"]
        self.atoms.set_momenta(state["momenta"], apply_constraint=False)
        self.nsteps = state["nsteps"]
        self.n_inner_now = state["n_inner_now"]
        self.heat = state["heat"]
        self.start_conserved = state["start_conserved"]
        self.guard.corrections = list(state["corrections"])
        self.guard.allowed = list(state["allowed"])
        # Checkpoints of earlier versions do not have it.
        self.guard.reported = state.get("reported", 0.0)
        evaluations = [
            Evaluation(state[f"{kind}_forces"], energy, state[f"{kind}_stress"])
            if f"{kind}_forces" in state
            else None
            for kind, energy in (("conservative", state["energy"]), ("direct", None))
        ]
        assert evaluations[0] is not None
        self.set_point(evaluations[0], evaluations[1])

    # ----------------------------------------------------------------------- steps

    def step(self, forces: Optional[Array] = None) -> None:
        """Take an outer step; if the guard has shortened the inner loop, several that
        together are as long.

        :param forces: not used; part of the signature in ASE.
        :raises RunFailedError: if the run cannot go on.
        """
        self._refresh_properties()
        if self.start_conserved is None:
            self.start_conserved = self.conserved
        start = self.state()
        try:
            self._whole_step()
        except BaseException as error:
            # An interrupted run can be saved and resumed, a failed one looked at.
            self.restore(start)
            if isinstance(error, (FloatingPointError, RuntimeError)):
                raise self._failure(error) from error
            raise

    def _whole_step(self) -> None:
        left = self.n_inner
        while left > 0:
            # As few parts as are short enough, as equal as can be: 5 is 3 and 2.
            n_parts = -(-left // self.n_inner_now)
            n_inner = -(-left // n_parts)
            self._outer_step(n_inner)
            self._watch()
            left -= n_inner
        self.n_inner_now = self.guard.end_step(self.n_inner)
        self._check_drift()

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

    def _refresh_properties(self) -> None:
        """Called by ASE before observers: what they read is at hand."""
        try:
            _ = self.point
        except (FloatingPointError, RuntimeError) as error:
            raise RunFailedError(
                f"the run cannot start from this structure: {error}"
                f"{describe_overlap(self.atoms)}"
            ) from error

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
            self.atoms.numbers.copy(),
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
            self.n_inner_now = self.guard.watch(correction, self.n_inner)

    def _check_drift(self) -> None:
        assert self.start_conserved is not None
        drift = (self.conserved - self.start_conserved) / len(self.atoms)
        if not abs(drift) <= self.guard.max_drift:
            raise FloatingPointError(
                f"the conserved quantity has changed by {drift:.3g} eV/atom since the "
                f"start, more than {self.guard.max_drift} (`max_drift` of the guard)"
            )

    def _failure(self, error: Exception) -> RunFailedError:
        """Write the present structure, the last good one, and say what happened."""
        try:
            ase.io.write(self.last_good, self.atoms)
            outcome = f"is in {self.last_good}"
        except Exception as failure:  # writers of ASE raise whatever they like
            outcome = f"could not be written to {self.last_good}: {failure}"
        correction = self.point.correction
        advice = f"Shorten the timestep ({self.timestep / units.fs:g} fs)"
        if correction is not None:
            advice = (
                "Conservative and direct force differed by "
                f"{1000 * correction:.3g} meV/Å (RMS) before. {advice} or n_inner "
                f"({self.n_inner})"
            )
        return RunFailedError(
            f"the run failed in outer step {self.nsteps + 1}, after "
            f"{self.get_time() / units.fs:.1f} fs: {error}"
            f"{describe_overlap(self.atoms)}. {advice}. The last good structure "
            f"{outcome}"
        )


def check_source(forces: ForceSource, n_inner: int) -> None:
    """
    :param forces: source of the forces of a run.
    :param n_inner: inner steps in an outer step.
    :raises MissingForceError: if it lacks a force that the run needs.
    """
    if not forces.has_conservative:
        raise MissingForceError(
            f"{forces.name} has no conservative force, which the dynamics needs at the "
            "outer points"
        )
    if n_inner > 1 and not forces.has_direct:
        raise MissingForceError(
            f"{forces.name} has no direct force for n_inner = {n_inner}: use n_inner = "
            "1 (--inner 1), or take direct forces from a second model (--direct-model)"
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
        raise FloatingPointError(
            f"atoms {list_atoms(wrong)} would move by more than {MAX_DISPLACEMENT} Å "
            "in one step of time"
        )
