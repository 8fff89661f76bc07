"""Forces of trained models where atoms are far too close.

    python benchmarks/bounds.py LABEL CHECKPOINT STRUCTURE TRAINING

Atoms of STRUCTURE are displaced by normal numbers of growing size, and pairs of
neighbours of each combination of elements are brought together down to 0.2 Å. The model
of CHECKPOINT is exported in single and in double precision for that. TRAINING is the
file with its training data: energies are given relative to the lowest of those of as
many atoms. Results are added under LABEL to ``docs/benchmarks/bounds.json``, and the
table is made of all that it holds.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Tuple

import ase.io
import numpy as np
import torch
from ase.geometry import get_distances
from metatrain.utils.io import load_model

from dualforce.forces import MetatomicForces


DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"
RESULTS = DOCS / "bounds.json"
AMPLITUDES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8)
"""Standard deviations of the displacements, in Å."""
N_FRAMES = 10
"""Of each."""
SHORTEST = 0.2
"""In Å."""
CLOSE = 0.6
"""Relative to the shortest distance of the pair's elements in the training data: below,
a pair must repel."""
STEP = 1e-4
"""Of the differences that check gradients, in Å."""


def exported(checkpoint: Path, dtype: torch.dtype) -> MetatomicForces:
    """The model of a checkpoint, as a file that engines run."""
    model = load_model(checkpoint).to(dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        model.export().save(str(path))
        return MetatomicForces(path)


def rattled(atoms: ase.Atoms) -> List[ase.Atoms]:
    """Displaced structures whose atoms keep a distance of 0.2 Å."""
    rng = np.random.default_rng(0)
    frames = []
    for amplitude in AMPLITUDES:
        for _ in range(N_FRAMES):
            moved = atoms.copy()
            moved.positions += rng.normal(scale=amplitude, size=(len(atoms), 3))
            if shortest(moved) >= SHORTEST:
                frames.append(moved)
    return frames


def shortest(atoms: ase.Atoms) -> float:
    """Shortest distance, in Å."""
    distances = atoms.get_all_distances(mic=atoms.pbc.any())
    return float(distances[~np.eye(len(atoms), dtype=bool)].min())


def nearest_pairs(frames: List[ase.Atoms]) -> Dict[Tuple[str, str], float]:
    """Shortest distance of each pair of elements in the training data, in Å."""
    found: Dict[Tuple[str, str], float] = {}
    for atoms in frames:
        distances = atoms.get_all_distances(mic=atoms.pbc.any())
        np.fill_diagonal(distances, np.inf)
        symbols = np.array(atoms.get_chemical_symbols())
        for one in sorted(set(symbols)):
            for other in sorted(set(symbols)):
                block = distances[np.ix_(symbols == one, symbols == other)]
                if one <= other and np.isfinite(block.min(initial=np.inf)):
                    pair = (one, other)
                    found[pair] = min(found.get(pair, np.inf), float(block.min()))
    return found


def approaches(
    atoms: ase.Atoms, limits: Dict[Tuple[str, str], float]
) -> List[Tuple[ase.Atoms, int, int]]:
    """Structures with one pair far too close, and which atoms these are."""
    distances = atoms.get_all_distances(mic=atoms.pbc.any())
    np.fill_diagonal(distances, np.inf)
    symbols = np.array(atoms.get_chemical_symbols())
    frames = []
    for (one, other), limit in limits.items():
        masked = np.where(
            (symbols[:, None] == one) & (symbols[None] == other), distances, np.inf
        )
        i, j = np.unravel_index(masked.argmin(), masked.shape)
        if not np.isfinite(masked[i, j]):
            continue
        direction = axis(atoms, i, j)
        for distance in np.arange(SHORTEST, CLOSE * limit + 1e-6, 0.05):
            moved = atoms.copy()
            moved.positions[j] = moved.positions[i] + distance * direction
            if shortest(moved) >= SHORTEST - 1e-6:
                frames.append((moved, int(i), int(j)))
    return frames


def axis(atoms: ase.Atoms, i: int, j: int) -> Any:
    """Unit vector from an atom to another."""
    vectors, lengths = get_distances(
        atoms.positions[[i]], atoms.positions[[j]], cell=atoms.cell, pbc=atoms.pbc
    )
    return vectors[0, 0] / lengths[0, 0]


def measure(
    forces: MetatomicForces, atoms: ase.Atoms, training: List[ase.Atoms]
) -> Dict[str, float]:
    """Extremes of forces and energies, and the worst error of a gradient."""
    lowest = min(
        frame.get_potential_energy() for frame in training if len(frame) == len(atoms)
    )
    frames, pairs = rattled(atoms), approaches(atoms, nearest_pairs(training))
    largest, energies = np.zeros(2), []
    for frame in [*frames, *(frame for frame, _, _ in pairs)]:
        conservative, direct = forces.both(frame)
        for k, part in enumerate((conservative.forces, direct.forces)):
            size = np.abs(part).max()
            largest[k] = max(largest[k], size if np.isfinite(part).all() else np.inf)
        energies.append(float(conservative.energy or np.nan) - lowest)
    weakest = np.full(2, np.inf)
    for frame, i, j in pairs:
        direction = axis(frame, i, j)
        for k, part in enumerate(forces.both(frame)):
            push = 0.5 * float((part.forces[j] - part.forces[i]) @ direction)
            weakest[k] = min(weakest[k], push)
    return {
        "structures": len(frames) + len(pairs),
        "shortest": min(shortest(frame) for frame in frames),
        "conservative": float(largest[0]),
        "direct": float(largest[1]),
        "energy": float(min(energies)) / len(atoms),
        "weakest conservative": float(weakest[0]),
        "weakest direct": float(weakest[1]),
        "gradient": max(gradient_error(forces, frame) for frame in frames[::8]),
    }


def gradient_error(forces: MetatomicForces, atoms: ase.Atoms) -> float:
    """Force along a random direction against a difference of energies, relative to the
    norm of the forces."""
    direction = np.random.default_rng(1).standard_normal((len(atoms), 3))
    direction /= np.linalg.norm(direction)
    energies = []
    for sign in (1.0, -1.0):
        moved = atoms.copy()
        moved.positions += sign * STEP * direction
        energies.append(float(forces.conservative(moved).energy or np.nan))
    expected = -(energies[0] - energies[1]) / (2.0 * STEP)
    found = forces.conservative(atoms).forces
    return float(abs((found * direction).sum() - expected) / np.linalg.norm(found))


def table(results: Dict[str, Any]) -> List[str]:
    """The page."""
    lines = [
        "# Atoms far too close",
        "",
        "Extremes over structures displaced by normal numbers of "
        f"{AMPLITUDES[0]:g} to {AMPLITUDES[-1]:g} Å, as far as atoms stay "
        f"{SHORTEST:g} Å apart, and over structures with one pair of each combination "
        f"of elements at {SHORTEST:g} Å to {CLOSE:g} of its shortest distance in the "
        "training data. Exported models, `python benchmarks/bounds.py LABEL "
        "CHECKPOINT STRUCTURE TRAINING`. *Largest*: component of a force, eV/Å. "
        "*Weakest repulsion*: of these pairs, eV/Å. *Lowest energy*: relative to the "
        "lowest of the training data, eV/atom. *Gradient*: deviation of the force "
        "along a random direction from a difference of energies, relative to the norm "
        "of the forces (in single precision it is rounding of the energies).",
        "",
        "| model | precision | structures | shortest of the displaced, Å | largest, "
        "conservative | direct | weakest repulsion, conservative | direct | lowest "
        "energy | gradient |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for label, precisions in results.items():
        for precision, found in precisions.items():
            lines.append(
                f"| {label} | {precision} | {found['structures']} | "
                f"{found['shortest']:.2f} | {found['conservative']:.0f} | "
                f"{found['direct']:.0f} | {found['weakest conservative']:.0f} | "
                f"{found['weakest direct']:.0f} | {found['energy']:.3f} | "
                f"{found['gradient']:.0e} |"
            )
    return lines


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("label")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("structure", type=Path)
    parser.add_argument("training", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    atoms = ase.io.read(arguments.structure)
    training = ase.io.read(arguments.training, ":")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[arguments.label] = {
        str(dtype).removeprefix("torch."): measure(
            exported(arguments.checkpoint, dtype), atoms, training
        )
        for dtype in (torch.float32, torch.float64)
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    (DOCS / "bounds.md").write_text("\n".join(table(results)) + "\n")


if __name__ == "__main__":
    main()
