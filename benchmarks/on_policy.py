"""Rounds with the pair against one round, by the correction on structures of neither.

    dualforce accelerate TEACHER STRUCTURES --temperature T --rounds 1 -o one
    dualforce accelerate TEACHER STRUCTURES --temperature T --rounds 3 -o three
    python benchmarks/on_policy.py TEACHER STRUCTURES T one three

The teacher alone runs at T and 1.5 T, from the first of the STRUCTURES, with other
seeds and for longer than those runs. For each folder: evaluations of the teacher,
structures its last student has learnt from, and the RMS of conservative minus direct
force.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import List

import ase
import ase.io
import numpy as np

from dualforce import load_forces
from dualforce.distillation.labelling import LabelStore, label_of
from dualforce.distillation.plan import MARGIN
from dualforce.distillation.sampling import Mover, short_run
from dualforce.distillation.teacher import Teacher, load_teacher
from dualforce.md.timesteps import propose_timestep


N_RUNS, SPACING = 2, 100.0
"""Runs at each temperature, and fs between their structures; the last half of each run
is used."""


def structures_at(
    teacher: Teacher, start: ase.Atoms, temperature: float, folder: Path
) -> List[ase.Atoms]:
    """Labelled structures of the teacher's own runs."""
    mover = Mover(teacher.forces, propose_timestep(start), interval=SPACING)
    store = LabelStore(folder / f"{temperature:g}.extxyz")
    found: List[ase.Atoms] = []
    for number in range(N_RUNS):
        name, seed = f"run {number}", 987_000 + number
        run = short_run(start, mover, teacher, store, name, temperature, seed)
        found += run[len(run) // 2 :]
    return found


def correction(student: Path, frames: List[ase.Atoms]) -> float:
    """RMS over all components, in meV/Å."""
    forces = load_forces(student)
    errors = [forces.direct(a).forces - label_of(a).forces for a in frames]
    return float(1000.0 * np.sqrt(np.mean(np.square(errors))))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("teacher")
    parser.add_argument("structures")
    parser.add_argument("temperature", type=float)
    parser.add_argument("folders", nargs="+", type=Path)
    given = parser.parse_args()
    start = ase.io.read(given.structures, 0)
    assert isinstance(start, ase.Atoms)
    with tempfile.TemporaryDirectory() as place:
        teacher = load_teacher(given.teacher, Path(place))
        temperatures = [given.temperature, MARGIN * given.temperature]
        sets = [structures_at(teacher, start, t, Path(place)) for t in temperatures]
    names = [f"correction at {t:g} K, meV/Å" for t in temperatures]
    print(f"| folder | teacher calls | structures | {' | '.join(names)} |")
    print("|---" * (3 + len(names)) + "|")
    for folder in given.folders:
        parts = json.loads((folder / "parts.json").read_text())
        rounds = [part for name, part in parts.items() if name.startswith("round")]
        student = folder / f"round-{len(rounds)}" / "student.pt"
        values = " | ".join(f"{correction(student, frames):.1f}" for frames in sets)
        calls = sum(part["calls"] for part in rounds)
        print(f"| {folder} | {calls} | {rounds[-1]['frames']} | {values} |")


if __name__ == "__main__":
    main()
