"""Fixtures that several test modules use."""

from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule


# Threads cost more than they bring in tensors as small as those of the tests.
torch.set_num_threads(1)

MOLECULES = ["CH4", "NH3", "H2O", "C2H2", "HCN", "H2CO", "CH3OH", "N2H4", "CO2"]

ATOM_ENERGIES = {"H": -13.6, "C": -1030.0, "N": -1485.0, "O": -2043.0}


def made_up_energy(atoms: Atoms) -> float:
    """Energies of atoms and a Morse-like sum over pairs, in eV."""
    distances = atoms.get_all_distances()[np.triu_indices(len(atoms), k=1)]
    wells = np.exp(-2.0 * (distances - 1.2)) - 2.0 * np.exp(-(distances - 1.2))
    return float(sum(ATOM_ENERGIES[s] for s in atoms.symbols) + 2.0 * wells.sum())


@pytest.fixture(scope="session")
def molecules_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of small molecules of C, H, N and O with energies under ``U0``."""
    frames = []
    for name in MOLECULES:
        atoms = molecule(name)
        atoms.info["U0"] = made_up_energy(atoms)
        frames.append(atoms)
    path: Path = tmp_path_factory.mktemp("molecules") / "molecules.xyz"
    ase.io.write(path, frames, format="extxyz")
    return str(path)
