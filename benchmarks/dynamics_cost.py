"""What an inner step costs: ours, ASE's own integrator and the evaluations alone.

    python benchmarks/dynamics_cost.py MODEL STRUCTURE [--atoms 12288] [--cuda]

Everything is measured side by side: each repeat takes its turn with every variant, and
medians over the repeats are compared. MODEL is an exported hybrid model, STRUCTURE a
structure it knows; ``--atoms`` repeats it up to at least so many atoms.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Dict, List

import ase
import ase.io
import numpy as np
import torch
from ase import units
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from metatomic_ase import MetatomicCalculator

from dualforce.dynamics import DirectOnly, HybridForces, RespaVelocityVerlet


TIMESTEP = 0.5 * units.fs
N_INNER = 8


def evaluations(
    forces: HybridForces, atoms: ase.Atoms
) -> Dict[str, Callable[[], float]]:
    """Milliseconds of one evaluation, neighbour list included, at a new place."""
    rng = np.random.default_rng(0)
    positions = atoms.positions.copy()

    def timed(evaluate: Callable[[ase.Atoms], object]) -> float:
        atoms.positions = positions + rng.normal(0.0, 0.01, positions.shape)
        start = time.perf_counter()
        evaluate(atoms)
        return 1e3 * (time.perf_counter() - start)

    return {
        "direct": lambda: timed(forces.direct),
        "conservative": lambda: timed(forces.conservative),
        "both": lambda: timed(forces.both),
    }


def run_of(dynamics: VelocityVerlet, steps: int) -> Callable[[], float]:
    """Milliseconds per step of time of an integrator of ASE, with its log."""

    def timed() -> float:
        n_inner = getattr(dynamics, "n_inner", 1)
        start = time.perf_counter()
        dynamics.run(steps // n_inner)
        return 1e3 * (time.perf_counter() - start) / steps

    return timed


def runs(
    model: Path, forces: HybridForces, atoms: ase.Atoms, steps: int, folder: Path
) -> Dict[str, Callable[[], float]]:
    """Dynamics to compare, each with a log and a trajectory every 40 steps of time."""

    def files(name: str, interval: int) -> Dict[str, object]:
        return {
            "logfile": str(folder / f"{name}.log"),
            "trajectory": str(folder / f"{name}.traj"),
            "loginterval": interval,
        }

    out = {}
    for n_inner in (1, N_INNER):
        name = f"respa-{n_inner}"
        options = files(name, 40 // n_inner)
        respa = RespaVelocityVerlet(atoms.copy(), TIMESTEP, forces, n_inner, **options)
        out[name] = run_of(respa, steps)
    direct = RespaVelocityVerlet(
        atoms.copy(), TIMESTEP, DirectOnly(forces), **files("direct", 40)
    )
    out["direct"] = run_of(direct, steps)
    for name, kind in (("ase-conservative", False), ("ase-direct", True)):
        stock = atoms.copy()
        stock.calc = MetatomicCalculator(
            model, non_conservative=kind, device=str(forces.device)
        )
        out[name] = run_of(VelocityVerlet(stock, TIMESTEP, **files(name, 40)), steps)
    forces_only = atoms.copy()
    forces_only.calc = MetatomicCalculator(
        model, non_conservative="forces", device=str(forces.device)
    )
    out["ase-direct-forces"] = run_of(
        VelocityVerlet(forces_only, TIMESTEP, **files("ase-direct-forces", 40)), steps
    )
    return out


def medians(
    timers: Dict[str, Callable[[], float]], repeats: int, warm_up: int
) -> Dict[str, float]:
    """Median over repeats, in which the timers take turns."""
    times: Dict[str, List[float]] = {name: [] for name in timers}
    for repeat in range(warm_up + repeats):
        for name, timer in timers.items():
            value = timer()
            if repeat >= warm_up:
                times[name].append(value)
    return {name: statistics.median(values) for name, values in times.items()}


def repeated(atoms: ase.Atoms, n_atoms: int) -> ase.Atoms:
    """The structure, repeated along its shortest edges up to ``n_atoms``."""
    while len(atoms) < n_atoms:
        repeats = [1, 1, 1]
        repeats[int(np.argmin(atoms.cell.lengths()))] = 2
        atoms = atoms.repeat(repeats)
    return atoms


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("structure", type=Path)
    parser.add_argument("--atoms", type=int, default=1)
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=160)
    arguments = parser.parse_args()

    atoms = repeated(ase.io.read(arguments.structure), arguments.atoms)
    thermalize_momenta(atoms, 300.0, rng=np.random.default_rng(0))
    forces = HybridForces(arguments.model, device="cuda" if arguments.cuda else "cpu")
    device = torch.cuda.get_device_name() if arguments.cuda else "CPU"
    print(f"{len(atoms)} atoms, {device}, {torch.get_num_threads()} threads")
    print(f"warm-up of TorchScript: {forces.warm_up(atoms):.1f} s\n")
    with TemporaryDirectory() as folder:
        timers = runs(arguments.model, forces, atoms, arguments.steps, Path(folder))
        alone = medians(evaluations(forces, atoms.copy()), 15 * arguments.repeats, 20)
        times = medians(timers, arguments.repeats, 1)

    ideal = ((N_INNER - 1) * alone["direct"] + alone["both"]) / N_INNER
    ours = times[f"respa-{N_INNER}"]
    print("| evaluation | ms |\n|---|---|")
    for name, value in alone.items():
        print(f"| {name} | {value:.2f} |")
    print(f"| ({N_INNER - 1} direct + both) / {N_INNER} | {ideal:.2f} |")
    print(f"\n| run | ms per step of time | relative to M = {N_INNER} |\n|---|---|---|")
    for name, value in times.items():
        print(f"| {name} | {value:.2f} | {value / ours:.2f} |")
    print(f"\nM = {N_INNER}, relative to its evaluations: {ours / ideal:.3f}")
    print(f"M = {N_INNER}, relative to direct alone: {ours / times['direct']:.2f}")


if __name__ == "__main__":
    main()
