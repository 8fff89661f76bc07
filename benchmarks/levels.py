"""Two and three levels of time steps: speed at equal drift.

    mtt train options/short-range.yaml -o short-range.pt
    python benchmarks/levels.py MODEL short-range.pt STRUCTURE [--reference 2] [--ps 4]
        [--repeat 2]

SHORT is a small conservative potential. It stands inside in the place of the direct
force of MODEL, or, as a third level, inside of that: the short-range force acts in
every step of 0.5 fs, the direct force less the short-range one in every ``n_short``-th,
the correction in every ``n_inner``-th of these. Drifts are predicted from a run with
conservative forces and measured by their spread, on one core; speed follows from the
times of single evaluations, measured in turn, for the structure and for ``--repeat``
of it along each axis. Writes ``docs/benchmarks/levels.md``.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Dict, List, Optional, Tuple

import ase
import ase.io
import numpy as np
import torch
from ase import units
from numpy.typing import NDArray

from dualforce import CombinedForces, ForceSource, equilibrate, load_forces
from dualforce.md import RespaVelocityVerlet
from dualforce.md.constant_energy import PICOSECOND, ConstantEnergyRun, ReferenceRun
from dualforce.md.prediction import predicted_drift
from dualforce.md.statistics import Estimate


OUTPUT = Path(__file__).parents[1] / "docs" / "benchmarks" / "levels.md"

STEP = 0.5
"""Innermost step, in fs."""

WARM_UP, REPEATS = 25, 15
"""Evaluations of each kind before those that are timed, and these."""


@dataclass(frozen=True)
class Levels:
    """What acts how often."""

    n_short: int
    """Innermost steps between direct forces; 0 without the short-range potential."""
    n_inner: int
    """Of these between corrections; with 1 there is no direct force."""

    @property
    def outer(self) -> float:
        """Outer step, in fs."""
        return STEP * max(1, self.n_short) * self.n_inner

    @property
    def names(self) -> List[str]:
        """Steps in fs of the short-range, the direct and the conservative force; empty
        where there is none."""
        middle = STEP * max(1, self.n_short)
        short = f"{STEP:g}" if self.n_short else ""
        return [short, f"{middle:g}" if self.n_inner > 1 else "", f"{self.outer:g}"]


CHOICES = (
    Levels(0, 6),
    Levels(0, 8),
    Levels(4, 1),
    Levels(5, 1),
    Levels(2, 3),
    Levels(3, 2),
    Levels(4, 2),
)


class ThreeLevelVerlet(RespaVelocityVerlet):
    """Velocity Verlet with a short-range force inside of the direct force.

    :param short: source of the short-range force, which is its conservative one.
    :param n_short: its steps in a step of the direct force.
    """

    def __init__(
        self, *arguments: Any, short: ForceSource, n_short: int, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.short, self.n_short = short, n_short
        self._at: Optional[NDArray[np.float64]] = None

    def _short_forces(self) -> NDArray[np.float64]:
        if self._at is None or not np.array_equal(self._at, self.atoms.positions):
            self._at = self.atoms.get_positions()
            self._forces = self.short.conservative(self.atoms).forces
        return self._forces

    def _kick(self, forces: Any, stress: Any, time: float) -> None:
        # The short-range force acts for the n-th part of the time, and again inside.
        later = (1.0 - 1.0 / self.n_short) * self._short_forces()
        super()._kick(forces - later, stress, time)

    def _drift(self, time: float) -> None:
        part = time / self.n_short
        for number in range(self.n_short):
            if number:
                super()._kick(self._short_forces(), None, part)
            self._move(part)


class Reference(ReferenceRun):
    """A run with conservative forces that records the power of all differences.

    :param short: the short-range potential.
    """

    def __init__(self, *arguments: Any, short: ForceSource) -> None:
        super().__init__(*arguments)
        self._short = short
        self.powers: Dict[str, List[float]] = {"C-D": [], "D-S": [], "C-S": []}
        self.squares: Dict[str, List[float]] = {name: [] for name in self.powers}

    def _record(self) -> None:
        super()._record()
        atoms, point = self.run.atoms, self.run.point
        assert point.direct is not None
        forces = {
            "C": point.conservative.forces,
            "D": point.direct.forces,
            "S": self._short.conservative(atoms).forces,
        }
        for name in self.powers:
            difference = forces[name[0]] - forces[name[2]]
            self.powers[name].append(float((difference * atoms.get_velocities()).sum()))
            self.squares[name].append(float(np.mean(difference**2)))

    def drift(self, name: str, n_inner: int, timestep: float) -> Estimate:
        """Predicted drift of a difference of forces that acts in every ``n_inner``-th
        step, in meV/atom/ps."""
        value, error = predicted_drift(
            self.powers[name],
            self.run.timestep,
            n_inner,
            float(np.mean(self.series[2])),
            timestep=timestep * units.fs,
        )
        scale = 1000.0 * PICOSECOND / len(self.run.atoms)
        return scale * value, scale * error

    def of_levels(self, levels: Levels) -> Estimate:
        """Predicted drift with these levels, in meV/atom/ps."""
        if levels.n_short == 0:
            return self.drift("C-D", levels.n_inner, STEP)
        if levels.n_inner == 1:
            return self.drift("C-S", levels.n_short, STEP)
        inside = self.drift("D-S", levels.n_short, STEP)
        outside = self.drift("C-D", levels.n_inner, STEP * levels.n_short)
        return inside[0] + outside[0], float(np.hypot(inside[1], outside[1]))


def measure(
    start: ase.Atoms,
    model: ForceSource,
    short: ForceSource,
    levels: Levels,
    picoseconds: float,
) -> Estimate:
    """Drift of a run, told by the spread of its energy, in meV/atom/ps."""
    forces, n_inner, timestep = model, levels.n_inner, STEP
    dynamics: Callable[..., RespaVelocityVerlet] = RespaVelocityVerlet
    if levels.n_short and levels.n_inner == 1:
        forces, n_inner = CombinedForces(model, short), levels.n_short
    elif levels.n_short:
        timestep *= levels.n_short
        dynamics = partial(ThreeLevelVerlet, short=short, n_short=levels.n_short)

    class Run(ConstantEnergyRun):
        _dynamics = staticmethod(dynamics)  # type: ignore[assignment]

    run = Run(start, timestep * units.fs, forces, n_inner, max_drift=1.0)
    run.advance(picoseconds * PICOSECOND)
    return run.candidate().mean_drift


def costs(start: ase.Atoms, model: ForceSource, short: ForceSource) -> Dict[str, float]:
    """Milliseconds of processor time of evaluations, timed in turn."""
    kinds: Dict[str, Callable[[ase.Atoms], Any]] = {
        "direct": model.direct,
        "both": model.both,
        "conservative": model.conservative,
        "short": short.conservative,
    }
    found: Dict[str, List[float]] = {name: [] for name in kinds}
    rng = np.random.default_rng(0)
    for _ in range(WARM_UP + REPEATS):
        moved = start.copy()
        moved.positions += rng.normal(0.0, 1e-3, moved.positions.shape)
        for name, evaluate in kinds.items():
            begin = time.process_time()
            evaluate(moved)
            found[name].append(1000.0 * (time.process_time() - begin))
    return {name: median(times[WARM_UP:]) for name, times in found.items()}


def repeated(atoms: ase.Atoms, times: int) -> ase.Atoms:
    """A larger cell, without the constraint on the total momentum."""
    larger = atoms.copy()
    larger.set_constraint()
    return larger.repeat(times)


def cost_of(levels: Levels, of: Dict[str, float]) -> float:
    """Milliseconds for a simulated femtosecond."""
    total = levels.n_short * levels.n_inner * of["short"]
    if levels.n_inner == 1:
        return (total + of["conservative"]) / levels.outer
    return (total + (levels.n_inner - 1) * of["direct"] + of["both"]) / levels.outer


def shown(estimate: Estimate) -> str:
    """A number with its error."""
    return f"{estimate[0]:.3f} ± {estimate[1]:.3f}"


def main() -> None:
    """Predict, measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("short", type=Path)
    parser.add_argument("structure", type=Path)
    parser.add_argument("--reference", type=float, default=2.0, help="ps (2)")
    parser.add_argument("--ps", type=float, default=4.0, help="of each run (4)")
    parser.add_argument("--temperature", type=float, default=300.0, help="in K (300)")
    parser.add_argument("--repeat", type=int, default=2, help="of the larger one (2)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, short = load_forces(given.model), load_forces(given.short)
    atoms, step = ase.io.read(given.structure), STEP * units.fs
    assert isinstance(atoms, ase.Atoms)
    start = equilibrate(model, atoms, step, temperature_K=given.temperature)
    structures = [start, repeated(start, given.repeat)]
    of = [costs(each, model, short) for each in structures]
    reference = Reference(start, step, model, short=short)
    reference.advance(given.reference * PICOSECOND)
    sizes = {k: 1000.0 * np.mean(v) ** 0.5 for k, v in reference.squares.items()}
    lines = [
        "# Levels of time steps",
        "",
        f"{len(start)} atoms, one core, `python benchmarks/levels.py "
        f"{given.model.name} {given.short.name} {given.structure.name}`. Root mean "
        "squares in meV/Å: conservative less direct force "
        f"{sizes['C-D']:.0f}, conservative less short-range force {sizes['C-S']:.0f}. "
        f"Drifts in meV/atom/ps, predicted from {given.reference:g} ps with "
        f"conservative forces, measured by the spread of the energy in {given.ps:g} "
        f"ps. Speed relative to conservative steps of {STEP} fs, by the times of "
        "evaluations.",
        "",
        "| ms | direct | both | conservative | short-range |",
        "|---|---|---|---|---|",
        *(
            " | ".join([f"| {len(each)} atoms", *(f"{v:.1f}" for v in times.values())])
            + " |"
            for each, times in zip(structures, of, strict=True)
        ),
        "",
        "| short-range, every fs | direct | conservative | drift, predicted | measured "
        f"| {' | '.join(f'speed, {len(each)} atoms' for each in structures)} |",
        "|---" * 7 + "|",
    ]
    print("\n".join(lines))
    for levels in CHOICES:
        cells: Tuple[str, ...] = (
            *levels.names,
            shown(reference.of_levels(levels)),
            shown(measure(start, model, short, levels, given.ps)),
            *(
                f"{times['conservative'] / STEP / cost_of(levels, times):.2f}"
                for times in of
            ),
        )
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    OUTPUT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
