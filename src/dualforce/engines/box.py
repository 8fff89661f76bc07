"""Cells in the standard form that engines want, and back."""

from dataclasses import dataclass

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from ..forces import Array
from ..md import MDSettings


VACUUM = 50.0
"""In Å, on each side of a molecule in engines that want a box."""


@dataclass(frozen=True)
class Box:
    """A structure in a standard box, and the way back to its own frame.

    In the box, cell vectors are the rows of a lower triangular matrix with a positive
    diagonal and off-diagonal elements of at most half of the diagonal one above them:
    the same lattice, rotated, with the shortest tilts. Positions and velocities are
    rotated together with the cell. Rows are mapped by ``x_box = x @ rotation.T +
    shift``.
    """

    atoms: ase.Atoms
    """The structure in the box."""
    rotation: Array
    """A proper rotation, shape ``[3, 3]``."""
    shift: Array
    """In Å, shape ``[3]``."""
    multiples: Array
    """Integers, shape ``[3, 3]``: cell vectors of the box, before the rotation, in
    those of the structure."""

    def back(self, boxed: ase.Atoms) -> ase.Atoms:
        """A structure of an engine in the frame of the original one.

        :param boxed: with positions, momenta and cell, and maybe forces, in the box.
        """
        atoms = boxed.copy()
        atoms.positions = (boxed.positions - self.shift) @ self.rotation
        if boxed.has("momenta"):
            atoms.set_momenta(boxed.get_momenta() @ self.rotation)
        if boxed.pbc.any():
            inverse = np.linalg.inv(self.multiples)
            atoms.set_cell(inverse @ boxed.cell.array @ self.rotation)
        else:
            atoms.set_cell(None)
        results = dict(getattr(boxed.calc, "results", {}))
        if "forces" in results:
            results["forces"] = results["forces"] @ self.rotation
            results.pop("stress", None)
            atoms.calc = SinglePointCalculator(atoms, **results)
        return atoms


def in_box(atoms: ase.Atoms, settings: MDSettings, engine: str) -> Box:
    """Bring a structure to the form that engines want; a molecule gets a box with
    vacuum around it.

    :param atoms: structure, of any handedness and skew.
    :param settings: settings of the run.
    :param engine: name of the engine, for messages.
    :raises ValueError: if the structure has constraints, is periodic in some directions
        only, or has no cell for constant pressure.
    """
    _check(atoms, settings, engine)
    boxed, shift, multiples = atoms.copy(), np.zeros(3), np.eye(3)
    rotation = np.eye(3)
    if not atoms.pbc.any():
        shift = VACUUM - atoms.positions.min(axis=0)
        boxed.set_cell(np.ptp(atoms.positions, axis=0) + 2.0 * VACUUM)
    else:
        cell, rotation, multiples = _standard_form(atoms.cell.array)
        boxed.set_cell(cell)
    boxed.positions = atoms.positions @ rotation.T + shift
    boxed.set_momenta(atoms.get_momenta() @ rotation.T)
    return Box(boxed, rotation, shift, multiples)


def _check(atoms: ase.Atoms, settings: MDSettings, engine: str) -> None:
    if atoms.constraints:
        raise ValueError(
            f"the structure has constraints, which are not written for {engine}: "
            "remove them, or use `dualforce md`"
        )
    if atoms.pbc.any() and not atoms.pbc.all():
        raise ValueError(
            f"the structure is periodic in some directions only; for {engine} make it "
            "periodic in all, with vacuum"
        )
    if atoms.pbc.all() and atoms.cell.rank < 3:
        raise ValueError("the structure is periodic but its cell has no volume")
    if settings.ensemble == "npt" and not atoms.pbc.all():
        raise ValueError("constant pressure needs a periodic cell")


def _standard_form(cell: Array) -> tuple[Array, Array, Array]:
    """Cell in standard form, the rotation towards it, and the multiples of the vectors
    of ``cell`` that it is made of."""
    multiples = np.eye(3)
    if np.linalg.det(cell) < 0.0:
        # The same lattice, and a right-handed system.
        multiples[2, 2] = -1.0
    standard, rotation = _rotated(multiples @ cell)
    for upper, lower in ((1, 2), (0, 1), (0, 2)):
        count = np.round(standard[lower, upper] / standard[upper, upper])
        standard[lower] -= count * standard[upper]
        multiples[lower] -= count * multiples[upper]
    return standard, rotation, multiples


def _rotated(cell: Array) -> tuple[Array, Array]:
    """A right-handed cell as a lower triangular matrix with a positive diagonal, and
    the rotation that makes it so."""
    if np.array_equal(cell, np.tril(cell)) and (np.diag(cell) > 0.0).all():
        return cell.copy(), np.eye(3)
    orthogonal, triangular = np.linalg.qr(cell.T)
    signs = np.sign(np.diag(triangular))
    # Rounding leaves remainders where zeros should be.
    return np.tril((triangular * signs[:, None]).T), (orthogonal * signs).T
