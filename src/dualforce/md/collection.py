"""Structures that direct forces know too little of, kept from runs to learn from."""

from pathlib import Path
from typing import List, Optional, Union

import ase
import ase.io
import numpy as np
from ase import units
from ase.io.extxyz import key_val_str_to_dict

from ..forces import Evaluation
from .guard import describe_overlap
from .respa import RespaVelocityVerlet
from .structures import with_results


SPACING = 50.0
"""Least time between structures, in fs: vibrations have then gone on by half a period
or more, and velocities have lost most of their memory."""

DOUBLING = 20
"""After so many structures the spacing doubles: a run that stays out of range for long
goes on giving structures, and later ones as well as the first."""

MOST = 200
"""Structures of a run: they span a nanosecond out of range."""

MAX_FORCE = 50.0
"""In eV/Å: structures with larger forces are broken. Trainings leave them out."""


class Collection:
    """Structures of a run where conservative and direct force differ by more than the
    guard allows, or the training data of the model are left.

    They carry energy and conservative forces, which an outer point has anyway, and the
    stress where the run computes one.

    :param run: the run.
    :param path: extended XYZ file they are added to. What is there was collected by the
        same run before.
    """

    def __init__(self, run: RespaVelocityVerlet, path: Union[str, Path]) -> None:
        self.run, self.path = run, Path(path)
        self.steps = collected_steps(self.path, len(run.atoms))
        """Inner steps at which there was one."""

    def watch(self) -> None:
        """Keep the present structure, an outer point, if it is one to learn from."""
        if len(self.steps) >= MOST or not self._is_due:
            return
        reason = self._reason()
        if reason is not None and not self._is_broken():
            ase.io.write(self.path, self._frame(reason), format="extxyz", append=True)
            self.steps.append(self._step)

    @property
    def _step(self) -> int:
        return self.run.nsteps * self.run.n_inner

    @property
    def _is_due(self) -> bool:
        if not self.steps:
            return True
        spacing = SPACING * 2.0 ** (len(self.steps) // DOUBLING)
        passed = (self._step - self.steps[-1]) * self.run.timestep / units.fs
        return passed >= spacing - 1e-6

    def _reason(self) -> Optional[str]:
        """What is out of range."""
        correction, domain = self.run.point.correction, self.run.forces.domain
        if correction is not None and self.run.guard.is_out_of_range(correction):
            return "correction"
        if domain is None:
            return None
        return next((kind for kind, _ in domain.departures(self.run.atoms)), None)

    def _is_broken(self) -> bool:
        # Positions and forces that are not finite have ended the run before.
        forces = self.run.point.conservative.forces
        return bool(np.abs(forces).max() > MAX_FORCE) or bool(
            describe_overlap(self.run.atoms)
        )

    def _frame(self, reason: str) -> ase.Atoms:
        run, point = self.run, self.run.point
        info = {
            "step": self._step,
            "time_ps": run.get_time() / (1000.0 * units.fs),
            "reason": reason,
        }
        if point.correction is not None:
            info["correction"] = point.correction
        found, atoms = point.conservative, run.atoms
        plain = ase.Atoms(
            atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc
        )
        return with_results(
            plain, Evaluation(found.forces, found.energy, found.stress), info
        )


def collected_steps(path: Path, n_atoms: int) -> List[int]:
    """Inner steps at which the structures of a file were collected, up to one that is
    not whole.

    :param path: the file, which need not exist.
    :param n_atoms: atoms in each of its structures.
    """
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    steps = []
    for begin in range(0, len(lines) - n_atoms - 1, n_atoms + 2):
        steps.append(int(key_val_str_to_dict(lines[begin + 1])["step"]))
    return steps
