"""What a device does in a second: training steps, evaluations, dynamics.

    python benchmarks/gpu.py --device cuda
    python benchmarks/gpu.py --device cpu --output page.md --boxes 1 8 --batch 4

The default network, untrained, which does not change its cost. Training steps take
frames of the shipped data; evaluations and dynamics take liquid water, 192 atoms in a
box, and 2, 4 and 8 boxes along each edge (98,304 atoms). The device is waited for
before and after whatever is timed. The page is ``docs/benchmarks/gpu.md``; on a CPU
``--output`` must say where it goes instead.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import ase
import numpy as np
import torch
from ase import units
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from evaluation import MODES, device_name, export, runner, water
from metatomic_ase import MetatomicCalculator
from metatrain.utils.architectures import import_architecture
from profile_step import make_trainer, take_steps

from dualforce.forces import MetatomicForces
from dualforce.md import RespaVelocityVerlet
from dualforce.training.model import NAME


ROOT = Path(__file__).parents[1]
DATA = ROOT / "data" / "water-xtb" / "train.xyz"
OUTPUT = ROOT / "docs" / "benchmarks" / "gpu.md"
N_INNER = 4
TIMESTEP = 0.5 * units.fs
RULE = "|" + 6 * "---:|"
Cost = tuple[float, float]
"""Milliseconds, and the peak of allocated memory in GB (zero on a CPU)."""


class Meter:
    """Times work on a device and watches its memory.

    :param device: the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"

    def _wait(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()

    def cost(self, work: Callable[[], object], warm_up: int, rounds: int) -> Cost:
        """Median cost of some work; infinite where it does not fit into memory.

        :param work: what to measure.
        :param warm_up: rounds before.
        :param rounds: rounds that count.
        """
        if self._on_gpu:
            torch.cuda.empty_cache()
        try:
            for _ in range(warm_up):
                work()
            if self._on_gpu:
                torch.cuda.reset_peak_memory_stats()
            times = []
            for _ in range(rounds):
                self._wait()
                start = time.perf_counter()
                work()
                self._wait()
                times.append(1e3 * (time.perf_counter() - start))
        except RuntimeError as error:  # TorchScript hides the type
            if "out of memory" not in str(error):
                raise
            return np.inf, np.inf
        peak = torch.cuda.max_memory_allocated() / 1e9 if self._on_gpu else 0.0
        return statistics.median(times), peak


def cells(*costs: Cost) -> str:
    """Cells of a table: times, then the largest peak of memory."""
    times = [f"{ms:.3g}" if ms < np.inf else "out of memory" for ms, _ in costs]
    peak = max((gb for _, gb in costs if 0.0 < gb < np.inf), default=None)
    return " | ".join([*times, "–" if peak is None else f"{peak:.2f}"])


def training(meter: Meter, given: argparse.Namespace) -> Iterator[str]:
    """Rows of the table of training steps."""
    settings = {"data": DATA, "frames": max(given.batch), "device": given.device}
    with TemporaryDirectory() as folder:
        options = argparse.Namespace(**settings, batch=1)
        trainer, _ = make_trainer(options, Path(folder))
    atoms = len(trainer.train_frames[0])
    for batch in given.batch:
        costs = []
        for fraction in (0.0, 0.25, 1.0):
            steps = take_steps(trainer, fraction, batch)
            costs.append(meter.cost(lambda: next(steps), 5, given.rounds))  # noqa: B023
        yield f"| {batch} | {batch * atoms:,} | {cells(*costs)} |"


def evaluation(meter: Meter, given: argparse.Namespace, model: Path) -> Iterator[str]:
    """Rows of the table of evaluations, neighbour lists made before."""
    for boxes in given.boxes:
        atoms = water(boxes)
        one = runner(model, atoms, torch.device(given.device))
        costs = [
            meter.cost(lambda: one.run(mode), given.warm_up, given.rounds)  # noqa: B023
            for mode in MODES
        ]
        yield f"| {len(atoms):,} | {cells(*costs)} |"


def integrators(
    model: Path, atoms: ase.Atoms, device: str
) -> Iterator[tuple[Callable[[int], object], int]]:
    """Runs to compare, with the steps of time that a step of theirs takes."""
    stock = atoms.copy()
    stock.calc = MetatomicCalculator(model, device=device)
    yield VelocityVerlet(stock, TIMESTEP).run, 1
    for n_inner in (1, N_INNER):
        forces = MetatomicForces(model, device=device)
        respa = RespaVelocityVerlet(atoms.copy(), TIMESTEP, forces, n_inner)
        yield respa.run, n_inner


def dynamics(meter: Meter, given: argparse.Namespace, model: Path) -> Iterator[str]:
    """Rows of the table of dynamics, for a step of time."""
    for boxes in given.boxes:
        atoms = water(boxes)
        thermalize_momenta(atoms, 300.0, rng=np.random.default_rng(0))
        costs = []
        for run, length in integrators(model, atoms, given.device):
            outer = max(1, given.rounds // length)
            ms, peak = meter.cost(lambda: run(1), given.warm_up, outer)  # noqa: B023
            costs.append((ms / length, peak))
        gain = costs[0][0] / costs[-1][0]
        last = f"{gain:.2f}" if np.isfinite(gain) else "–"
        yield f"| {len(atoms):,} | {cells(*costs)} | {last} |"


def page(given: argparse.Namespace) -> Iterator[str]:
    """Lines of the page."""
    device = torch.device(given.device)
    meter = Meter(device)
    yield f"# On a {device.type.replace('cuda', 'gpu').upper()}"
    yield ""
    yield f"{device_name(device)}, torch {torch.__version__}; `ace` with its default"
    yield "options, single precision. Median times in ms, peak of allocated GB:"
    yield f"`python benchmarks/gpu.py --device {device}`, {given.rounds} rounds after"
    yield f"{given.warm_up} that do not count."
    yield from ("", "## A training step", "")
    yield "Frames of 96 atoms, for each `conservative_fraction`."
    yield from ("", "| frames | atoms | fraction 0 | 0.25 | 1 | GB |", RULE)
    yield from training(meter, given)
    with TemporaryDirectory() as folder:
        model = export("ace", Path(folder))
        yield from ("", "## An evaluation", "", "Neighbour lists are made before.")
        yield from ("", "| atoms | direct | conservative | both | GB |", RULE[5:])
        yield from evaluation(meter, given, model)
        yield from ("", "## A step of dynamics", "")
        yield "0.5 fs; stock is ASE's velocity Verlet with `MetatomicCalculator`."
        yield ""
        yield f"| atoms | stock | M = 1 | M = {N_INNER} | GB | stock / M = {N_INNER} |"
        yield RULE
        yield from dynamics(meter, given, model)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path, help="page to write (docs, on a GPU)")
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 32, 128])
    parser.add_argument("--boxes", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--warm-up", type=int, default=20)
    given = parser.parse_args()
    if given.device == "cpu" and given.output is None:
        parser.error("on a CPU give `--output`: the page in the docs is that of a GPU")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU; `--device cpu` measures the CPU")
    import_architecture(NAME)
    lines = []
    for line in page(given):
        print(line, flush=True)
        lines.append(line)
    (given.output or OUTPUT).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
