"""A model of a copper-gold alloy and its surface, for benchmarks of other things.

    python benchmarks/alloy.py FOLDER [--minutes 3]

Structures and labels come from ASE's effective medium theory, along runs at 300 to 900
K of a bulk (108 atoms) and a slab with four layers (64 atoms). The folder, which must
be new, receives them, ``bulk.xyz`` and ``slab.xyz`` to start runs from, and
``model.pt``, an ``ace`` trained with the default options on one core.
"""

import argparse
from pathlib import Path
from typing import List

import ase.io
import numpy as np
from ase import units
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from molecules import train_on


LATTICE = 3.9
"""Lattice constant, in Å: between those of copper and gold."""
TEMPERATURES = (300.0, 600.0, 900.0)
"""In K."""
PER_RUN, SPACING, HELD_OUT = 25, 40, 5
"""Structures of a run, steps of 2 fs between them, and how many are for validation."""


def structures() -> List[ase.Atoms]:
    """Bulk and slab of random composition, by half."""
    rng = np.random.default_rng(0)
    cells = [
        bulk("Cu", "fcc", LATTICE, cubic=True) * (3, 3, 3),
        fcc111("Cu", (4, 4, 4), LATTICE, vacuum=8.0),
    ]
    for atoms in cells:
        atoms.numbers[rng.permutation(len(atoms))[: len(atoms) // 2]] = 79
        atoms.constraints = []
    return cells


def labelled_run(atoms: ase.Atoms, temperature: float) -> List[ase.Atoms]:
    """Structures along a run, with energies and forces."""
    atoms = atoms.copy()
    atoms.calc = EMT()
    rng = np.random.default_rng(round(temperature))
    thermalize_momenta(atoms, 2.0 * temperature, rng=rng)
    dynamics = Langevin(
        atoms,
        2.0 * units.fs,
        temperature_K=temperature,
        friction=0.01 / units.fs,
        rng=rng,
    )
    frames = []
    for _ in range(PER_RUN):
        dynamics.run(SPACING)
        frame = atoms.copy()
        frame.calc = SinglePointCalculator(
            frame, energy=atoms.get_potential_energy(), forces=atoms.get_forces()
        )
        frames.append(frame)
    return frames


def main() -> None:
    """Sample, label and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=3.0)
    arguments = parser.parse_args()
    training, validation = [], []
    cells = structures()
    for atoms in cells:
        for temperature in TEMPERATURES:
            frames = labelled_run(atoms, temperature)
            training += frames[:-HELD_OUT]
            validation += frames[-HELD_OUT:]
    train_on(arguments.folder, training, validation, "ace", arguments.minutes)
    for name, atoms in zip(("bulk", "slab"), cells, strict=True):
        ase.io.write(arguments.folder / f"{name}.xyz", atoms)


if __name__ == "__main__":
    main()
