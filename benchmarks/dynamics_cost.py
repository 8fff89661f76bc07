"""What an inner step costs: ours, ASE's and i-PI's own ways, the evaluations alone.

    python benchmarks/dynamics_cost.py MODEL STRUCTURE [--ipi] [--atoms 12288] [--cuda]

Everything is measured side by side: each repeat takes its turn with every variant, and
medians over the repeats are compared. MODEL is an exported hybrid model, STRUCTURE a
structure it knows; ``--atoms`` repeats it up to at least so many atoms.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
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
from ipi.scripting import InteractiveSimulation
from metatomic_ase import MetatomicCalculator

from dualforce.engines import ipi
from dualforce.engines.files import ModelReference, write_folder
from dualforce.forces import CountedForces, DirectOnly, MetatomicForces
from dualforce.md import RespaVelocityVerlet, start_structure
from dualforce.md.settings import MDSettings


TIMESTEP = 0.5 * units.fs
N_INNER = 6
"""``tune`` recommends 6 to 8 for the model of the quickstart."""

INTERVAL = 8 * N_INNER
"""Steps of time between records."""


def evaluations(
    forces: MetatomicForces, atoms: ase.Atoms, steps: int
) -> Dict[str, Callable[[], float]]:
    """Milliseconds of one evaluation, neighbour list included, of moving atoms."""
    rng = np.random.default_rng(0)
    moves = 0.003 * rng.standard_normal((steps, *atoms.positions.shape))

    def timer(evaluate: Callable[[ase.Atoms], object]) -> Callable[[], float]:
        moving = atoms.copy()

        def timed() -> float:
            start = time.perf_counter()
            for move in moves:
                moving.positions = atoms.positions + move
                evaluate(moving)
            return 1e3 * (time.perf_counter() - start) / steps

        return timed

    return {
        "direct": timer(forces.direct),
        "conservative": timer(forces.conservative),
        "both": timer(forces.both),
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
    model: Path,
    forces: MetatomicForces,
    atoms: ase.Atoms,
    steps: int,
    folder: Path,
    inside: Dict[int, CountedForces],
) -> Dict[str, Callable[[], float]]:
    """Dynamics to compare, each with log and trajectory every :data:`INTERVAL` steps.

    :param inside: receives the forces of our runs, which count what evaluations take.
    """

    out: Dict[str, Callable[[], float]] = {}

    def files(interval: int) -> Dict[str, object]:
        number = len(out)
        return {
            "logfile": str(folder / f"{number}.log"),
            "trajectory": str(folder / f"{number}.traj"),
            "loginterval": interval,
        }

    for n_inner in (1, N_INNER):
        name = f"ours, M = {n_inner}"
        options = files(INTERVAL // n_inner)
        counted = CountedForces(forces)
        respa = RespaVelocityVerlet(atoms.copy(), TIMESTEP, counted, n_inner, **options)
        out[name] = run_of(respa, steps)
        inside[n_inner] = counted
    direct = RespaVelocityVerlet(
        atoms.copy(), TIMESTEP, DirectOnly(forces), **files(INTERVAL)
    )
    out["ours, direct alone"] = run_of(direct, steps)
    for name, kind in (
        ("ASE, conservative", False),
        ("ASE, non_conservative=True", True),
        ('ASE, non_conservative="forces"', "forces"),
    ):
        stock = atoms.copy()
        stock.calc = MetatomicCalculator(
            model, non_conservative=kind, device=str(forces.device)
        )
        out[name] = run_of(VelocityVerlet(stock, TIMESTEP, **files(INTERVAL)), steps)
    return out


def _start_ipi(folder: Path) -> None:
    global simulation
    os.chdir(folder)
    simulation = InteractiveSimulation(Path("input.xml").read_text())
    simulation.run(20)  # TorchScript compiles


def _run_ipi(outer_steps: int) -> float:
    start = time.perf_counter()
    simulation.run(outer_steps)
    return time.perf_counter() - start


def ipi_runs(
    model: Path, atoms: ase.Atoms, steps: int, folder: Path, device: str
) -> Dict[str, Callable[[], float]]:
    """i-PI with our driver and with its own, with output every :data:`INTERVAL` steps;
    each in a process of its own."""
    settings = MDSettings(n_inner=N_INNER, interval=INTERVAL, steps=10**9)
    files = ModelReference(str(model.absolute()), device=device)
    start = start_structure(atoms, settings)

    def timer(number: int, stock: bool, threading: bool) -> Callable[[], float]:
        texts = ipi.input_files(start, settings, files, stock)
        if threading:
            texts["input.xml"] = texts["input.xml"].replace(' threading="false"', "")
        path = write_folder(folder / f"ipi-{number}", files, texts)
        pool = ProcessPoolExecutor(1, get_context("spawn"), _start_ipi, (path,))

        def timed() -> float:
            return 1e3 * pool.submit(_run_ipi, steps // N_INNER).result() / steps

        return timed

    return {
        f"i-PI, our input and driver, M = {N_INNER}": timer(0, False, False),
        f"i-PI, our input, its own driver, M = {N_INNER}": timer(1, True, False),
        f"i-PI, its own driver and threads, M = {N_INNER}": timer(2, True, True),
    }


def turns(timers: Dict[str, Callable[[], float]], n: int) -> Dict[str, List[float]]:
    """Times of timers that take turns."""
    times: Dict[str, List[float]] = {name: [] for name in timers}
    for _ in range(n):
        for name, timer in timers.items():
            times[name].append(timer())
    return times


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
    parser.add_argument("--ipi", action="store_true", help="also i-PI's drivers")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=144)
    arguments = parser.parse_args()

    atoms = repeated(ase.io.read(arguments.structure), arguments.atoms)
    thermalize_momenta(atoms, 300.0, rng=np.random.default_rng(0))
    forces = MetatomicForces(
        arguments.model, device="cuda" if arguments.cuda else "cpu"
    )
    device = torch.cuda.get_device_name() if arguments.cuda else "CPU"
    print(f"{len(atoms)} atoms, {device}, {torch.get_num_threads()} threads\n")
    forces.warm_up(atoms)
    with TemporaryDirectory() as folder:
        inside: Dict[int, CountedForces] = {}
        timers = runs(
            arguments.model, forces, atoms, arguments.steps, Path(folder), inside
        )
        if arguments.ipi:
            timers |= ipi_runs(
                arguments.model,
                atoms,
                arguments.steps,
                Path(folder),
                str(forces.device),
            )
        alone = evaluations(forces, atoms, arguments.steps)
        everything = turns(alone | timers, 1 + arguments.repeats)
    times = {name: statistics.median(t[1:]) for name, t in everything.items()}
    totals = {name: sum(t) for name, t in everything.items()}

    ours = times[f"ours, M = {N_INNER}"]
    print("| evaluation | ms |\n|---|---|")
    for name in alone:
        print(f"| {name} | {times.pop(name):.2f} |")
    print(f"\n| run | ms per step of time | relative to M = {N_INNER} |\n|---|---|---|")
    for name, value in times.items():
        print(f"| {name} | {value:.2f} | {value / ours:.2f} |")
    print()
    for n_inner, counted in inside.items():
        share = counted.conservative_cost.seconds + counted.direct_cost.seconds
        # one round of warm-up, and the runs that count
        rounds = (1 + arguments.repeats) * arguments.steps
        evaluations_ms = 1e3 * share / rounds
        total_ms = totals[f"ours, M = {n_inner}"] / (1 + arguments.repeats)
        print(
            f"M = {n_inner}: {total_ms:.2f} ms for a step, of which evaluations "
            f"{evaluations_ms:.2f} ms: {total_ms / evaluations_ms:.3f}"
        )
    direct = times["ours, direct alone"]
    print(f"M = {N_INNER}, relative to direct alone: {ours / direct:.2f}")


if __name__ == "__main__":
    main()
