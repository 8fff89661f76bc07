"""Replicas together in torch-sim, against one after the other with our own dynamics.

    python benchmarks/torchsim.py MODEL STRUCTURES [--replicas 32] [--inner 4 8]

Constant energy with M inner steps of 0.5 fs. Each repeat takes its turn with every
variant; after one that warms up, medians over the repeats are compared. Times are those
that the process spends on a processor (on a GPU: that pass). The frames of STRUCTURES
are used in turn, with velocities of their own; MODEL is an exported hybrid model.
Beside ours: torch-sim's own velocity Verlet, with conservative forces at every step,
from the same model and, where it is installed, from metatomic-torchsim.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Dict, List

import ase
import ase.io
import numpy as np
import torch
import torch_sim
from ase import units

from dualforce import torchsim
from dualforce.forces import MetatomicForces
from dualforce.forces.metatomic import WARM_UP_EVALUATIONS
from dualforce.md import RespaVelocityVerlet, set_thermal_momenta


TIMESTEP = 0.5 * units.fs


def replicas(path: Path, number: int) -> List[ase.Atoms]:
    """Frames of a file in turn, at 300 K."""
    frames = ase.io.read(path, ":")
    chosen = [frames[index % len(frames)].copy() for index in range(number)]
    for index, atoms in enumerate(chosen):
        set_thermal_momenta(atoms, 300.0, np.random.default_rng(index))
    return chosen


class OneByOne:
    """Our own dynamics, of one replica after the other."""

    def __init__(
        self, frames: List[ase.Atoms], forces: MetatomicForces, n_inner: int
    ) -> None:
        self.forces = forces
        copies = [atoms.copy() for atoms in frames]
        self.runs = [
            RespaVelocityVerlet(atoms, TIMESTEP, forces, n_inner) for atoms in copies
        ]

    def take(self, outer_steps: int) -> None:
        """Move all replicas."""
        for run in self.runs:
            run.run(outer_steps)

    def positions(self) -> Any:
        """Of all atoms of all replicas."""
        return np.concatenate([run.atoms.positions for run in self.runs])


class Together:
    """Steps of torch-sim, of all replicas at once."""

    def __init__(
        self, frames: List[ase.Atoms], model: Any, init: Any, step: Any, **options: Any
    ) -> None:
        self.model, self.step, self.options = model, step, options
        start = torchsim.state_from_atoms(frames, model.device)
        if not isinstance(model, torchsim.TwoForceModel):
            start.positions = start.positions.to(model.dtype)
            start = start.to(dtype=model.dtype)
        self.state = init(start, model, kT=0.0)

    def take(self, outer_steps: int) -> None:
        """Move all replicas."""
        for _ in range(outer_steps):
            self.state = self.step(self.state, self.model, dt=TIMESTEP, **self.options)

    def positions(self) -> Any:
        """Of all atoms of all replicas."""
        return self.state.positions.cpu().numpy()


def compile_for(model: Any, state: Any) -> None:
    """Evaluate until TorchScript has compiled what it wants to compile."""
    for _ in range(WARM_UP_EVALUATIONS):
        model.direct(state)
        model.both(state)
        model(state)


def clock(cuda: bool) -> Callable[[], float]:
    """What tells the time."""

    def on_gpu() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return on_gpu if cuda else time.process_time


def measure(variants: Dict[str, Any], steps: Dict[str, int], arguments: Any) -> None:
    """Print the time of an inner step of a replica, and ratios.

    :param steps: calls of ``take`` for each variant.
    """
    now = clock(arguments.cuda)
    times: Dict[str, List[float]] = {name: [] for name in variants}
    for repeat in range(1 + arguments.repeats):
        for name, variant in variants.items():
            start = now()
            variant.take(steps[name])
            times[name].append(now() - start)
        if repeat == 0:
            ours, batch = (variants[name].positions() for name in list(variants)[:2])
            deviation = np.abs(ours - batch).max()
    n = arguments.replicas * arguments.steps
    medians = {name: 1e3 * statistics.median(t[1:]) / n for name, t in times.items()}
    reference = next(iter(medians.values()))
    for name, value in medians.items():
        spread = [1e3 * t / n for t in times[name][1:]]
        print(
            f"| {name} | {value:.2f} ({min(spread):.2f} to {max(spread):.2f}) | "
            f"{reference / value:.2f} |"
        )
    print(
        f"\nlargest deviation of a position after {arguments.steps} steps of time: "
        f"{deviation:.1e} Å\n"
    )


def main() -> None:
    """Measure and print a table for each M."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("structures", type=Path)
    parser.add_argument("--replicas", type=int, default=32)
    parser.add_argument("--inner", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--steps", type=int, default=16, help="of time, in a repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cuda", action="store_true")
    arguments = parser.parse_args()

    device = "cuda" if arguments.cuda else "cpu"
    frames = replicas(arguments.structures, arguments.replicas)
    print(f"{len(frames)} replicas of {len(frames[0])} atoms, {device}")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    forces = MetatomicForces(arguments.model, device=device)
    forces.warm_up(frames[0])
    model = torchsim.load_model(arguments.model, device=device)
    compile_for(model, torchsim.state_from_atoms(frames, device))
    respa = (torchsim.respa_nve_init, torchsim.respa_nve_step)
    verlet = (torch_sim.nve_init, torch_sim.nve_step)
    for n_inner in arguments.inner:
        variants: Dict[str, Any] = {
            f"one after the other, M = {n_inner}": OneByOne(frames, forces, n_inner),
            f"together, M = {n_inner}": Together(
                frames, model, *respa, n_inner=n_inner
            ),
        }
        steps = dict.fromkeys(variants, arguments.steps // n_inner)
        if n_inner == arguments.inner[-1]:
            others = {"torch-sim's `nve_step`, our model": model}
            try:
                from metatomic_torchsim import MetatomicModel

                others["torch-sim's `nve_step`, metatomic-torchsim"] = MetatomicModel(
                    arguments.model, device=device, compute_stress=False
                )
            except ImportError:
                pass
            for name, other in others.items():
                variants[name] = Together(frames, other, *verlet)
                steps[name] = arguments.steps
        print("| run | ms per replica and step of time | throughput |\n|---|---|---|")
        measure(variants, steps, arguments)


if __name__ == "__main__":
    main()
