"""Whether free molecules stay whole at constant energy, far above the training.

    python benchmarks/free_molecules.py MODEL STRUCTURES LABEL [--inner 1 4] [--ps 20]

Molecules from STRUCTURES, spread over the file, start with velocities of
``--temperature`` and without drift and rotation. They are so far apart that none sees
another, and run as one structure. A molecule is broken once a bond between heavy atoms
is half again as long as its covalent radii say, or a hydrogen atom is more than 1.6 Å
from all heavy atoms (it may change its place). Results are added under LABEL to
``docs/benchmarks/free-molecules.json``, and the table is made of all that it holds.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Tuple

import ase.io
import numpy as np
import torch
from ase import units
from ase.data import covalent_radii
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta

from dualforce import load_forces
from dualforce.forces import ForceSource
from dualforce.md import Guard, RespaVelocityVerlet, RunFailedError
from dualforce.md.statistics import slope_with_error


DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"
RESULTS = DOCS / "free-molecules.json"
APART = 40.0
"""In Å."""
BONDED, BROKEN = 1.2, 1.5
"""Distance of heavy atoms relative to the sum of their covalent radii."""
LOST = 1.6
"""Distance of hydrogen from the nearest heavy atom, in Å."""
SAMPLE = 10.0
"""In fs."""


def molecules(path: Path, number: int, temperature: float) -> List[ase.Atoms]:
    """Molecules with velocities, each at its place."""
    frames = ase.io.read(path, ":")
    chosen = [frames[i * len(frames) // number].copy() for i in range(number)]
    for index, atoms in enumerate(chosen):
        atoms.pbc, atoms.cell, atoms.calc = False, None, None
        rng = np.random.default_rng(index)
        thermalize_momenta(atoms, temperature, rng=rng)
        Stationary(atoms)
        ZeroRotation(atoms)
        atoms.translate(-atoms.get_center_of_mass() + [APART * index, 0.0, 0.0])
    return chosen


class Bonds:
    """What holds a molecule together."""

    def __init__(self, atoms: ase.Atoms) -> None:
        radii = covalent_radii[atoms.numbers]
        self.lengths = radii[:, None] + radii
        self.heavy = atoms.numbers > 1
        both = np.outer(self.heavy, self.heavy) & ~np.eye(len(atoms), dtype=bool)
        self.bonds = both & (atoms.get_all_distances() < BONDED * self.lengths)

    def are_broken(self, positions: Any) -> bool:
        """Whether one of them is broken."""
        distances = np.linalg.norm(positions[:, None] - positions, axis=2)
        if not (distances[self.bonds] < BROKEN * self.lengths[self.bonds]).all():
            return True
        nearest = distances[~self.heavy][:, self.heavy].min(1)
        return not bool((nearest < LOST).all())


def run(
    parts: List[ase.Atoms],
    forces: ForceSource,
    n_inner: int,
    picoseconds: float,
    timestep: float,
) -> Dict[str, Any]:
    """When each molecule broke, in ps, and the drift as far as none was."""
    bonds = [Bonds(atoms) for atoms in parts]
    together = ase.Atoms()
    for atoms in parts:
        together += atoms
    ends = np.cumsum([len(atoms) for atoms in parts])
    broken: Dict[int, float] = {}
    samples: List[Tuple[float, float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        dynamics = RespaVelocityVerlet(
            together,
            timestep * units.fs,
            forces,
            n_inner,
            guard=Guard(max_drift=1e3),
            last_good=Path(folder) / "last-good.extxyz",
        )

        def sample() -> None:
            time = dynamics.get_time() / (1e3 * units.fs)
            for index, end in enumerate(ends):
                positions = together.positions[end - len(parts[index]) : end]
                if index not in broken and bonds[index].are_broken(positions):
                    broken[index] = time
            if not broken:
                energy = 1e3 * dynamics.conserved / len(together)
                samples.append((time, energy, together.get_temperature()))

        dynamics.attach(sample, interval=max(1, round(SAMPLE / timestep / n_inner)))
        failure = None
        try:
            dynamics.run(round(1e3 * picoseconds / timestep / n_inner))
        except RunFailedError as error:
            failure = str(error)
    times, energies, temperatures = np.array(samples).T
    return {
        "molecules": len(parts),
        "ps": dynamics.get_time() / (1e3 * units.fs),
        "broken": {str(index): time for index, time in broken.items()},
        "drift": slope_with_error(times, energies),
        "K": float(temperatures[len(temperatures) // 2 :].mean()),
        "failure": failure,
    }


def table(results: Dict[str, Any]) -> List[str]:
    """The page."""
    lines = [
        "# Free molecules far above the training temperature",
        "",
        "Molecules at constant energy, too far apart to see each other; broken: a bond "
        f"of heavy atoms {BROKEN:g} times as long as the covalent radii say, or "
        f"hydrogen {LOST:g} Å from all heavy atoms. `python "
        "benchmarks/free_molecules.py MODEL STRUCTURES LABEL`. Drift and temperature "
        "(of the second half) are those before the first of them broke.",
    ]
    for label, entry in results.items():
        lines += [
            "",
            f"## {label}",
            "",
            f"Velocities of {entry['K']:g} K, steps of {entry['timestep_fs']:g} fs.",
            "",
            "| M | molecules | ps | broken (at ps) | drift, meV/atom/ps | temperature, "
            "K |",
            "|---|---|---|---|---|---|",
        ]
        for n_inner, found in entry["runs"].items():
            times = ", ".join(f"{time:.1f}" for time in found["broken"].values())
            broken = f"{len(found['broken'])} ({times})" if times else "0"
            drift, error = found["drift"]
            lines.append(
                f"| {n_inner} | {found['molecules']} | {found['ps']:.1f} | {broken} | "
                f"{drift:.3f} ± {error:.3f} | {found['K']:.0f} |"
            )
    return lines


def main() -> None:
    """Run what is asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("structures", type=Path)
    parser.add_argument("label")
    parser.add_argument("--inner", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--ps", type=float, default=20.0)
    parser.add_argument("--molecules", type=int, default=10)
    parser.add_argument("--temperature", type=float, default=600.0)
    parser.add_argument("--timestep", type=float, default=0.5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts = molecules(arguments.structures, arguments.molecules, arguments.temperature)
    forces = load_forces(arguments.model)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    settings = {"K": arguments.temperature, "timestep_fs": arguments.timestep}
    entry = results.setdefault(arguments.label, {**settings, "runs": {}})
    for n_inner in arguments.inner:
        entry["runs"][str(n_inner)] = run(
            parts, forces, n_inner, arguments.ps, arguments.timestep
        )
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        page = "\n".join(table(results)) + "\n"
        (DOCS / "free-molecules.md").write_text(page)


if __name__ == "__main__":
    main()
