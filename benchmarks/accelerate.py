"""What a direct force learnt from a teacher brings, and whether it changes anything.

    python benchmarks/accelerate.py LABEL TEACHER STRUCTURES --pair PAIR
    python benchmarks/accelerate.py LABEL module:callable STRUCTURES --student STUDENT

TEACHER is an exported model, or a calculator of ASE as in ``options/``. From the last
of the STRUCTURES: the conservative force of the teacher alone against multiple time
stepping with the pair, at constant energy (drift, speed) and at constant temperature
(temperatures of the elements, diffusion, radial distribution functions). For exported
models, energies of the pair and the teacher are compared for 100 structures, bit for
bit. Results are added under LABEL to ``docs/benchmarks/accelerate.json``; the table is
made of all that it holds.
"""

import argparse
import json
from pathlib import Path
from typing import Any, Dict, List

import ase
import ase.io
import numpy as np
import torch

from dualforce import CombinedForces, ForceSource, MetatomicForces, load_forces
from dualforce.diagnostics import NVERun, NVTRun, prepare, run_nve, run_nvt
from dualforce.distillation.teacher import load_teacher
from dualforce.md import repartition_hydrogen_mass
from dualforce.md.statistics import Estimate


DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"
RESULTS = DOCS / "accelerate.json"
TIMESTEP, TEMPERATURE, TAU = 0.5, 300.0, 100.0
"""fs, K, fs."""


def different_energies(teacher: str, pair: str, frames: List[ase.Atoms]) -> int:
    """Structures of 100 whose energies are not bitwise identical."""
    both, alone = MetatomicForces(pair), load_forces(teacher, pair)
    rng, n_different = np.random.default_rng(0), 0
    with torch.jit.optimized_execution(False):
        for number in range(100):
            atoms = frames[number % len(frames)].copy()
            atoms.positions += rng.normal(0.0, 0.02, atoms.positions.shape)
            mine, expected = (f.conservative(atoms) for f in (both, alone))
            n_different += mine.energy != expected.energy
    return n_different


def load(arguments: argparse.Namespace) -> ForceSource:
    """The pair, or teacher and student."""
    if arguments.pair:
        return MetatomicForces(arguments.pair)
    teacher = load_teacher(arguments.teacher, Path("labels"))
    return CombinedForces(teacher.forces, load_forces(arguments.student))


def measure(
    forces: ForceSource,
    start: ase.Atoms,
    n_inner: int,
    picoseconds: float,
    timestep: float,
) -> Dict[str, Any]:
    """Both runs with one number of inner steps; one is the teacher alone."""
    kind = "conservative" if n_inner == 1 else "MTS"
    length = 1000.0 * picoseconds
    common: Dict[str, Any] = {
        "kind": kind,
        "n_inner": n_inner,
        "timestep_fs": timestep,
        "length_fs": length,
    }
    nve = run_nve(forces, start, **common)
    nvt = run_nvt(
        forces,
        start,
        thermostat="svr",
        tau_fs=TAU,
        temperature_K=TEMPERATURE,
        equilibration_fs=0.1 * length,
        **common,
    )
    return {"nve": describe_nve(nve), "nvt": describe_nvt(nvt)}


def describe_nve(run: NVERun) -> Dict[str, Any]:
    """What the table needs."""
    candidate = run.candidate
    return {
        "drift": candidate.drift,
        "failed": candidate.failed,
        "ms_per_step": candidate.ms_per_step,
    }


def describe_nvt(run: NVTRun) -> Dict[str, Any]:
    """What the table needs."""
    return {
        "deviation": run.deviation,
        "diffusion": run.diffusion,
        "failed": run.failed,
        "rdf": run.rdf,
    }


def rms_difference(first: List[float], second: List[float]) -> float:
    """Of two curves."""
    return float(np.sqrt(np.mean(np.subtract(first, second) ** 2)))


def text(estimates: Dict[str, Estimate]) -> str:
    """Values with errors, by element."""
    return ", ".join(f"{k} {v:.2f} ± {e:.2f}" for k, (v, e) in estimates.items())


def table(results: Dict[str, Any]) -> str:
    """All results, as Markdown."""
    lines = [
        "| | M | ms per step | speed | drift, meV/atom/ps | temperature - 300 K | "
        "diffusion, Å²/ps | change of g(r), RMS |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for label, result in results.items():
        first = result["runs"]["1"]
        for n_inner, run in result["runs"].items():
            nve, nvt = run["nve"], run["nvt"]
            ratio = first["nve"]["ms_per_step"] / nve["ms_per_step"]
            drift = nve["failed"] or "{:.2f} ± {:.2f}".format(*nve["drift"])
            change = max(
                (
                    rms_difference(g, first["nvt"]["rdf"][pair])
                    for pair, g in nvt["rdf"].items()
                ),
                default=float("nan"),
            )
            lines.append(
                f"| {label} | {n_inner} | {nve['ms_per_step']:.1f} | {ratio:.2f} | "
                f"{drift} | {text(nvt['deviation'])} | {text(nvt['diffusion'])} | "
                f"{change:.2f} |"
            )
        if result["different_energies"] is not None:
            lines.append(
                f"| {label} | | | | | | | energies that differ: "
                f"{result['different_energies']} of 100 |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("label")
    parser.add_argument("teacher")
    parser.add_argument("structures")
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--pair")
    chosen.add_argument("--student")
    parser.add_argument("--ps", type=float, default=10.0)
    parser.add_argument("--inner", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--timestep", type=float, default=TIMESTEP, help="in fs")
    parser.add_argument("--hydrogen-mass", type=float, help="in u, in all runs")
    arguments = parser.parse_args()
    frames = ase.io.read(arguments.structures, ":")
    if arguments.hydrogen_mass is not None:
        repartition_hydrogen_mass(frames[-1], arguments.hydrogen_mass)
    forces = load(arguments)
    if isinstance(forces, MetatomicForces):
        forces.warm_up(frames[-1])
    start = prepare(
        forces,
        frames[-1],
        temperature_K=TEMPERATURE,
        timestep_fs=arguments.timestep,
        length_fs=min(1000.0, 200.0 * arguments.ps),
    )
    result: Dict[str, Any] = {"different_energies": None, "runs": {}}
    if arguments.pair:
        result["different_energies"] = different_energies(
            arguments.teacher, arguments.pair, frames
        )
    for n_inner in [1, *arguments.inner]:
        run = measure(forces, start, n_inner, arguments.ps, arguments.timestep)
        result["runs"][str(n_inner)] = run
        print(f"M = {n_inner}: {run['nve']}", flush=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[arguments.label] = result
    RESULTS.write_text(json.dumps(results) + "\n")
    (DOCS / "accelerate.md").write_text(
        "# Existing models, accelerated\n\n"
        "`python benchmarks/accelerate.py LABEL TEACHER STRUCTURES`, with `--pair "
        "PAIR` or `--student STUDENT`, and `--hydrogen-mass 4` or `--timestep` where "
        "the label says so. M = 1 is the teacher alone.\n\n" + table(results)
    )
    print(table({arguments.label: result}))


if __name__ == "__main__":
    main()
