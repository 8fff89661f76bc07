"""Temperatures of the elements and mean energy at constant temperature.

    python benchmarks/nvt.py MODEL STRUCTURE [--ps 20]

Direct forces alone, both forces and conservative forces under a strong global
thermostat, stochastic velocity rescaling with a relaxation time of 10 fs, as in the
table of arXiv:2412.11569; and outer steps of 8 fs with friction and heavier hydrogen.
Writes ``docs/benchmarks/nvt.md``; lines kept in ``--results`` are not run again.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from tempfile import gettempdir
from typing import Any, Dict, List, NamedTuple, Tuple

import ase
import numpy as np
import torch
from ase import units
from nve import DOCS, equilibrated

from dualforce.forces import DirectOnly, MetatomicForces
from dualforce.md import (
    Guard,
    RespaLangevin,
    RespaSVR,
    RespaVelocityVerlet,
    RunFailedError,
    repartition_hydrogen_mass,
)
from dualforce.md.preparation import (
    degrees_of_freedom,
    fix_center_of_mass,
    temperatures,
)
from dualforce.md.statistics import mean_with_error


TEMPERATURE = 300.0
EQUILIBRATION = 0.1
"""Share of the run that is left out of averages."""


class Case(NamedTuple):
    """One line of the table."""

    name: str
    n_inner: int
    """Zero for direct forces alone."""
    friction: float = 0.0
    """In 1/ps; zero for stochastic velocity rescaling."""
    hydrogen_mass: float = 0.0
    """In u; zero for the natural one."""


CASES = (
    Case("conservative, SVR 10 fs", 1),
    Case("direct alone, SVR 10 fs", 0),
    Case("M = 4, SVR 10 fs", 4),
    Case("M = 8, SVR 10 fs", 8),
    Case("conservative, Langevin 5/ps", 1, friction=5.0),
    Case("M = 16, Langevin 5/ps", 16, friction=5.0),
    Case("M = 16, Langevin 5/ps, hydrogen of 4 u", 16, friction=5.0, hydrogen_mass=4.0),
    Case(
        "M = 16, Langevin 50/ps, hydrogen of 4 u", 16, friction=50.0, hydrogen_mass=4.0
    ),
)


def make_run(
    case: Case, atoms: ase.Atoms, forces: MetatomicForces
) -> RespaVelocityVerlet:
    """The integrator of a case."""
    options: Dict[str, Any] = {
        "n_inner": max(case.n_inner, 1),
        "temperature_K": TEMPERATURE,
        "rng": 1,
        "guard": Guard(max_drift=1e3),
        "last_good": Path(gettempdir()) / f"nvt-{CASES.index(case)}.extxyz",
    }
    source = forces if case.n_inner else DirectOnly(forces)
    timestep = 0.5 * units.fs
    if case.friction:
        friction = case.friction / (1e3 * units.fs)
        return RespaLangevin(atoms, timestep, source, friction=friction, **options)
    return RespaSVR(atoms, timestep, source, tau=10.0 * units.fs, **options)


def run(model: Path, atoms: ase.Atoms, case: Case, picoseconds: float) -> List[str]:
    """One run.

    :return: cells of its line of the table.
    """
    torch.set_num_threads(1)
    forces = MetatomicForces(model)
    atoms = atoms.copy()
    if case.hydrogen_mass:
        repartition_hydrogen_mass(atoms, case.hydrogen_mass)
    if not case.friction:
        fix_center_of_mass(atoms)
    degrees = degrees_of_freedom(atoms)
    dynamics = make_run(case, atoms, forces)
    samples: List[Tuple[float, ...]] = []

    def sample() -> None:
        energy = forces.conservative(atoms).energy if case.n_inner == 0 else None
        if energy is None:
            energy = atoms.get_potential_energy()
        kelvin = temperatures(atoms, degrees)
        samples.append((kelvin["H"], kelvin["O"], 1e3 * energy / len(atoms)))

    dynamics.attach(sample, interval=max(1, 16 // max(case.n_inner, 1)))
    failure = ""
    try:
        dynamics.run(round(2e3 * picoseconds / max(case.n_inner, 1)))
    except RunFailedError:
        failure = f", ended after {dynamics.get_time() / (1e3 * units.fs):.1f} ps"
    values = np.array(samples)[int(EQUILIBRATION * len(samples)) :]
    estimates = [mean_with_error(column) for column in values.T]
    return [case.name + failure] + [
        f"{mean:.1f} ± {error:.1f}" for mean, error in estimates
    ]


def draw(results: Dict[str, Any]) -> None:
    """Write the table."""
    rows = [results["rows"][case.name] for case in CASES]
    reference = float(rows[0][3].split()[0])
    for row in rows:
        mean, _, width = row[3].split()
        row[3] = f"{float(mean) - reference:.1f} ± {width}"
    lines = [
        "# Constant temperature",
        "",
        f"{results['n_atoms']} atoms at {TEMPERATURE:g} K, inner steps of 0.5 fs, "
        f"{results['ps']:g} ps of which the first tenth is left out; errors of the "
        "mean from ten blocks. `python benchmarks/nvt.py MODEL STRUCTURE`.",
        "",
        "| run | temperature of H, K | of O, K | conservative energy, meV/atom |",
        "|---|---|---|---|",
    ]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    (DOCS / "nvt.md").write_text("\n".join([*lines, ""]))


def main() -> None:
    """Run the cases and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("structure", type=Path)
    parser.add_argument("--ps", type=float, default=20.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path("outputs/nvt.json"))
    arguments = parser.parse_args()
    atoms = equilibrated(arguments.model, arguments.structure, TEMPERATURE)
    results: Dict[str, Any] = {"n_atoms": len(atoms), "ps": arguments.ps, "rows": {}}
    if arguments.results.exists():
        results = json.loads(arguments.results.read_text())
        if results["ps"] != arguments.ps:
            parser.error(
                f"{arguments.results} has runs of {results['ps']} ps: remove it"
            )
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(arguments.workers, get_context("spawn")) as pool:
        futures = {
            pool.submit(run, arguments.model, atoms, case, arguments.ps): case.name
            for case in CASES
            if case.name not in results["rows"]
        }
        for future in as_completed(futures):
            results["rows"][futures[future]] = future.result()
            arguments.results.write_text(json.dumps(results))
    draw(results)


if __name__ == "__main__":
    main()
