"""What an acceleration brings, and whether it changes anything.

    python benchmarks/accelerate.py LABEL FOLDER [--ps 5] [--teacher-ps 2]

FOLDER is that of ``dualforce accelerate``. From its structure, at its temperature: the
teacher alone, with the longest timestep that suits it, against multiple time stepping
with timestep and number of inner steps that were recommended; at constant energy
(drift, speed) and at constant temperature (temperatures of the elements, radial
distribution functions). For metatomic teachers, energies of pair and teacher are
compared for 100 structures, bit for bit. Results are added under LABEL to
``docs/benchmarks/accelerate.json``; the table is made of all that it holds.
"""

import argparse
import json
from pathlib import Path
from typing import Any, Dict, List, Tuple

import ase
import numpy as np
import torch

from dualforce import ForceSource, load_forces
from dualforce.diagnostics import NVERun, NVTRun, prepare, run_nve, run_nvt
from dualforce.distillation.acceleration import (
    COMBINED,
    DESCRIPTION,
    PARTS,
    read_structures,
)
from dualforce.distillation.results import STRUCTURE
from dualforce.distillation.teacher import load_teacher
from dualforce.forces.pair_folder import read_pair
from dualforce.md.statistics import Estimate
from dualforce.md.tuning_report import TABLE


DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"
RESULTS = DOCS / "accelerate.json"
TAU = 100.0
"""Of the thermostat, in fs."""


def different_energies(folder: Path, teacher: str, atoms: ase.Atoms) -> int:
    """Structures of 100 whose energies are not bitwise identical."""
    both = load_forces(folder / COMBINED)
    alone = load_teacher(teacher, folder / "labels").forces
    rng, n_different = np.random.default_rng(0), 0
    with torch.jit.optimized_execution(False):
        for _ in range(100):
            moved = atoms.copy()
            moved.positions += rng.normal(0.0, 0.02, moved.positions.shape)
            mine, expected = (f.conservative(moved) for f in (both, alone))
            n_different += mine.energy != expected.energy
    return n_different


def recommended(folder: Path, temperature: float) -> Tuple[float, int, float]:
    """Timestep in fs and number of inner steps of the pair, and the longest timestep
    that suits the teacher."""
    tuning = json.loads((folder / f"tune-{temperature:g}K" / TABLE).read_text())
    suits = [t["fs"] for t in tuning["timesteps"] if not t["is_too_long"]]
    return tuning["timestep_fs"], tuning["recommended"], max(suits)


def measure(
    forces: ForceSource,
    start: ase.Atoms,
    temperature: float,
    timestep: float,
    n_inner: int,
    picoseconds: float,
) -> Dict[str, Any]:
    """Both runs; one inner step is the teacher alone."""
    length = 1000.0 * picoseconds
    common: Dict[str, Any] = {
        "kind": "conservative" if n_inner == 1 else "MTS",
        "n_inner": n_inner,
        "timestep_fs": timestep,
        "length_fs": length,
    }
    nvt = run_nvt(
        forces,
        start,
        thermostat="svr",
        tau_fs=TAU,
        temperature_K=temperature,
        equilibration_fs=0.1 * length,
        **common,
    )
    nve = run_nve(forces, start, **common)
    print(f"M = {n_inner}: {nve.candidate}", flush=True)
    return {
        "timestep_fs": timestep,
        "n_inner": n_inner,
        "ps": picoseconds,
        "nve": describe_nve(nve),
        "nvt": describe_nvt(nvt),
    }


def describe_nve(run: NVERun) -> Dict[str, Any]:
    """What the table needs."""
    candidate = run.candidate
    return {
        "drift": candidate.drift,
        "mean_drift": candidate.mean_drift,
        "failed": candidate.failed,
        "ms_per_fs": candidate.ms_per_fs,
    }


def describe_nvt(run: NVTRun) -> Dict[str, Any]:
    """What the table needs."""
    return {"deviation": run.deviation, "failed": run.failed, "rdf": run.rdf}


def rms_difference(first: List[float], second: List[float]) -> float:
    """Of two curves."""
    return float(np.sqrt(np.mean(np.subtract(first, second) ** 2)))


def change_of_structure(
    teacher: Dict[str, List[float]], pair: Dict[str, List[float]]
) -> str:
    """The largest difference of two radial distribution functions."""
    if not pair:  # without a cell
        return "–"
    changes = {name: rms_difference(g, teacher[name]) for name, g in pair.items()}
    name = max(changes, key=changes.__getitem__)
    return f"{changes[name]:.2f} ({name}, whose highest is {max(teacher[name]):.0f})"


def with_error(estimate: Estimate, digits: int) -> str:
    """A value and its error, if it is known."""
    value, error = (f"{each:.{digits}f}" for each in estimate)
    return (
        f"{value} ± {error}" if error != "nan" else f"{value} (too short for an error)"
    )


def temperatures(nvt: Dict[str, Any]) -> str:
    """Deviations of a run, of all atoms and of each element."""
    return ", ".join(
        f"{name} {with_error(value, 0)}" for name, value in nvt["deviation"].items()
    )


def table(results: Dict[str, Any]) -> str:
    """All results, as Markdown."""
    lines = [
        "| | atoms, K | teacher alone, fs | step, fs, and M | speed "
        "| drift, meV/atom/ps, by slope | by spread "
        "| temperatures minus that of the thermostat, K: teacher | pair "
        "| largest change of g(r), RMS |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for label, result in results.items():
        teacher, pair = result["teacher"], result["pair"]
        nve, nvt = pair["nve"], pair["nvt"]
        change = change_of_structure(teacher["nvt"]["rdf"], nvt["rdf"])
        lines.append(
            f"| {label} | {result['n_atoms']}, {result['K']:g} "
            f"| {teacher['timestep_fs']:g} "
            f"| {pair['timestep_fs']:g}, {pair['n_inner']} "
            f"| {teacher['nve']['ms_per_fs'] / nve['ms_per_fs']:.1f} "
            f"| {nve['failed'] or with_error(nve['drift'], 2)} "
            f"| {with_error(nve['mean_drift'], 2)} "
            f"| {temperatures(teacher['nvt'])} | {temperatures(nvt)} | {change} |"
        )
        if result["different_energies"] is not None:
            lines.append(
                f"| | | | | | | | | | energies that differ: "
                f"{result['different_energies']} of 100 |"
            )
    return "\n".join(lines) + "\n"


def page(results: Dict[str, Any]) -> str:
    """Table and how it was made."""
    lengths = ", ".join(
        f"{label}: {result['pair']['ps']:g} and {result['teacher']['ps']:g} ps, "
        f"{result['minutes']:g} minutes"
        for label, result in results.items()
    )
    return (
        "# Existing models, accelerated\n\n"
        "One command each, `dualforce accelerate TEACHER STRUCTURES --temperature T "
        "--minutes N -o FOLDER` on one core, then `python benchmarks/accelerate.py "
        "LABEL FOLDER`. Speed: simulated time for a time of the computer, relative to "
        "the teacher alone with the longest step that suits it. Runs of the pair and "
        f"of the teacher, and time of the command: {lengths}. Stiff bonds of a few "
        "atoms take longer than runs of some picoseconds to come to equilibrium, with "
        "either force.\n\n" + table(results)
    )


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("label")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ps", type=float, default=5.0)
    parser.add_argument("--teacher-ps", type=float, default=2.0)
    arguments = parser.parse_args()
    folder = arguments.folder
    pair = read_pair(folder)
    described = json.loads((folder / DESCRIPTION).read_text())
    assert pair.temperature is not None, "a pair of `dualforce accelerate` has one"
    kelvin, atoms = pair.temperature, read_structures(folder / STRUCTURE)[0]
    step, n_inner, longest = recommended(folder, kelvin)
    forces = load_forces(folder)
    forces.warm_up(atoms)
    # Whatever the teacher costs, a tenth of what its own runs do.
    length = min(1000.0, 200.0 * arguments.teacher_ps)
    start = prepare(
        forces, atoms, temperature_K=kelvin, timestep_fs=step, length_fs=length
    )
    runs = ((longest, 1, arguments.teacher_ps), (step, n_inner, arguments.ps))
    teacher, both = (measure(forces, start, kelvin, *each) for each in runs)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    is_file = (folder / COMBINED).exists()
    results[arguments.label] = {
        "n_atoms": len(atoms),
        "K": kelvin,
        "minutes": described["minutes"],
        "plan": json.loads((folder / PARTS).read_text())["plan"],
        "different_energies": different_energies(folder, described["teacher"], atoms)
        if is_file
        else None,
        "teacher": teacher,
        "pair": both,
    }
    RESULTS.write_text(json.dumps(results) + "\n")
    (DOCS / "accelerate.md").write_text(page(results))
    print(table({arguments.label: results[arguments.label]}))


if __name__ == "__main__":
    main()
