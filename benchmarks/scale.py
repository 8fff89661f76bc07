"""Large data and mixed sizes: memory, start and throughput of a training.

    python benchmarks/scale.py data/water-xtb/train.xyz \
        --molecules acetylacetone-300K.xyz --cells water-pbe0ts.xyz

Makes data sets from the frames of a file, copied with noise, as folders of arrays that
metatrain maps into memory, and trains on them with default options, each run in a
process of its own:

- frames held in memory against frames read when they are needed (``max_memory``): peak
  memory, time to the first step, steps in a time;
- four processes on two cores that train together, frames in memory and read from disk,
  against four that each train alone, frames in memory: what is lost to communication
  and reading;
- a mixture of molecules and cells, equal numbers of atoms of both, in batches of
  ``batch_size`` and of ``max_atoms_per_batch``, as large as a fixed batch may be (cells
  alone).

The speed of a machine that others use as well changes from minute to minute. What is
compared takes turns within one run, some seconds each. Prints tables and
writes them to ``docs/benchmarks/scale.md``.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Dict, List, Sequence, Tuple

import ase.io
import numpy as np
import torch
from ase import Atoms


OUTPUT = Path(__file__).parents[1] / "docs" / "benchmarks" / "scale.md"

BATCH = 4
"""Frames in a fixed batch."""

FEW = 2
"""Frames in a smaller fixed batch."""

TURN = 16
"""Steps of a way to train before it is the turn of the next."""

HELD = 64
"""Frames in memory that take turns with those on disk."""

FRAMES_OF_TURN = 120
"""Frames of a turn, about, where rules for batches take turns."""

NOISE = 0.01
"""Standard deviation of the displacements, in Angstrom. Labels stay as they are."""


def read_options() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="frames with energy, forces and stress")
    parser.add_argument("--molecules", type=Path, help="frames of a molecule")
    parser.add_argument("--cells", type=Path, help="frames of a large cell")
    parser.add_argument("--held", type=int, default=4_000, help="frames held (4000)")
    parser.add_argument(
        "--streamed",
        type=int,
        nargs="*",
        default=[4_000, 100_000, 1_000_000],
        help="numbers of frames that are read from disk (4000 100000 1000000)",
    )
    parser.add_argument(
        "--steps", type=int, default=100, help="of mixtures, for sizes and memory (100)"
    )
    parser.add_argument("--turns", type=int, default=8, help="turns of each way (8)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    parser.add_argument("--folder", type=Path, help="where to make the data sets")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


# -------------------------------------------------------------------------- the data


def write_arrays(path: Path, frames: List[Atoms], choice: Any, stress: bool) -> None:
    """A folder of arrays that metatrain maps into memory.

    :param path: the folder.
    :param frames: frames to copy.
    :param choice: which of them to copy, shape ``[n_copies]``.
    :param stress: whether frames have stresses.
    """
    path.mkdir()
    rng = np.random.default_rng(0)
    arrays = [_arrays_of(atoms, stress) for atoms in frames]
    with ExitStack() as stack:
        files = {
            name: stack.enter_context(open(path / f"{name}.bin", "wb"))
            for name in ("x", *arrays[0])
        }
        for index in choice:
            noise = NOISE * rng.normal(size=frames[index].positions.shape)
            positions = (frames[index].positions + noise).astype(np.float32)
            files["x"].write(positions.tobytes())
            for name, array in arrays[index].items():
                files[name].write(array.tobytes())
    np.save(path / "ns.npy", len(choice))
    sizes = [len(frames[index]) for index in choice]
    np.save(path / "na.npy", np.cumsum([0, *sizes]).astype(np.int64))


def _arrays_of(atoms: Atoms, stress: bool) -> Dict[str, np.ndarray]:
    """What is the same in all copies of a frame, by the names of metatrain's files."""
    cell = np.where(atoms.pbc.all(), atoms.cell.array, 0.0)
    arrays = {
        "a": atoms.numbers.astype(np.int32),
        "c": cell.astype(np.float32),
        "e": np.array([atoms.get_potential_energy()], np.float32),
        "f": atoms.get_forces().astype(np.float32),
    }
    if stress:
        arrays["s"] = atoms.get_stress(voigt=False).astype(np.float32)
    return arrays


def mixture(molecules: List[Atoms], cells: List[Atoms], count: int) -> Any:
    """Which of the molecules and cells, in this order, a mixture has: as many atoms of
    one kind as of the other, in random order."""
    rng = np.random.default_rng(0)
    share = len(cells[0]) / (len(molecules[0]) + len(cells[0]))
    is_molecule = rng.random(count) < share
    return np.where(
        is_molecule,
        rng.integers(len(molecules), size=count),
        len(molecules) + rng.integers(len(cells), size=count),
    )


# -------------------------------------------------------------------------- one run


def options_of(case: Dict[str, Any]) -> Dict[str, Any]:
    """Options of a training that is ended after some steps."""
    energy: Dict[str, Any] = {"key": "e", "unit": "eV", "forces": {"key": "f"}}
    energy["stress"] = {"key": "s"} if case["stress"] else False
    return {
        "seed": 1,
        "device": "cpu",
        "base_precision": 32,
        "architecture": {
            "name": "experimental.dualforce",
            "training": {"batch_size": BATCH, "num_epochs": 10, **case["training"]},
        },
        "training_set": {
            "systems": {"read_from": case["data"], "length_unit": "angstrom"},
            "targets": {"energy": energy},
        },
        "validation_set": 0.01,
        "final_eval": False,
    }


@dataclass
class Turns:
    """Ways to train that take turns within one run.

    :param ways: whether frames are in memory, and whether processes train together.
    """

    ways: Sequence[Tuple[bool, bool]]
    step: int = 0
    started: List[float] = field(default_factory=list)
    """Of each turn."""

    @property
    def way(self) -> Tuple[bool, bool]:
        """The one of this step."""
        return self.ways[self.step // TURN % len(self.ways)]

    def load(self, original: Callable[..., Any]) -> Callable[..., Iterator[Any]]:
        """In the place of ``load_ahead``."""

        def load_by_turns(frames: Any, batches: Any) -> Iterator[Any]:
            held = [frames[index] for index in range(HELD)]
            loaded = original(frames, batches)
            while True:
                first = BATCH * self.step % HELD
                in_memory = held[first : first + BATCH]
                yield in_memory if self.way[0] else next(loaded)

        return load_by_turns

    def sum_(self, original: Callable[..., None]) -> Callable[..., None]:
        """In the place of ``Processes.sum_``."""

        def sum_by_turns(processes: Any, tensors: Any) -> None:
            tensors = list(tensors)
            if self.way[1]:
                original(processes, tensors)
            elif len(tensors) == 1:
                # Numbers of labels, the same in all frames: of those of others too.
                lacks = tensors[0].sum(1) == 0
                tensors[0][lacks] = tensors[0][~lacks][0].clone()
            if self.step == TURN * len(self.started):
                self.started.append(time.monotonic())

        return sum_by_turns

    def rates(self) -> List[List[float]]:
        """Steps per second of each way, turn by turn; without the first of each."""
        lengths = np.diff(self.started)[len(self.ways) :]
        n_ways = len(self.ways)
        return [(TURN / lengths[way::n_ways]).tolist() for way in range(n_ways)]


@dataclass
class Rules:
    """Rules for batches that take turns within one run.

    :param options: those of each rule.
    """

    options: Sequence[Dict[str, int]]
    turn: List[int] = field(default_factory=list)
    """Number of the turn of each step."""
    steps: List[List[int]] = field(default_factory=list)
    """Frames of each step."""

    def plan(self, trainer: Any, generator: Any) -> "Rules":
        """In the place of the plan of an epoch: all frames once, in random order."""
        import torch

        from dualforce.training.batches import BatchRule, sizes_of

        defaults = {"batch_size": 1, "max_atoms_per_batch": None}
        rules = [BatchRule.of(defaults | options) for options in self.options]
        order = torch.randperm(len(trainer.train_frames), generator=generator).numpy()
        sizes, turn = sizes_of(trainer.train_frames)[order], 0
        while len(order) > FRAMES_OF_TURN:
            last = 0
            for batch in rules[turn % len(rules)].pack(sizes):
                if batch.start < FRAMES_OF_TURN:
                    self.steps.append(order[batch.start : batch.stop].tolist())
                    self.turn.append(turn)
                    last = batch.stop
            order, sizes, turn = order[last:], sizes[last:], turn + 1
        return self

    def __len__(self) -> int:
        return len(self.steps)

    def shares(self, step: int) -> List[List[int]]:
        """Of one process."""
        return [self.steps[step]]

    def rates(self, started: Sequence[float]) -> List[List[float]]:
        """Frames per second of each rule, turn by turn; without the first of each.

        :param started: of each step.
        """
        n_rules, found = len(self.options), [[] for _ in self.options]
        for turn in range(n_rules, self.turn[-1]):
            first, last = self.turn.index(turn), self.turn.index(turn + 1)
            frames = sum(map(len, self.steps[first:last]))
            found[turn % n_rules].append(frames / (started[last] - started[first]))
        return found


class EnoughError(Exception):
    """What was to be measured is measured."""


def run_one(case: Dict[str, Any], steps: int, threads: int) -> Dict[str, Any]:
    """Train for some steps, or turns, in this process.

    :return: seconds to the first step, atoms of the largest and of the average batch,
        peak memory in GB, and steps or frames per second of what took turns.
    """
    started = time.monotonic()  # before what a user waits for as well
    import metatrain.cli.train as cli_train
    from omegaconf import OmegaConf

    from dualforce.training import trainer
    from dualforce.training.distributed import Processes

    torch.set_num_threads(threads)
    turns, rules = Turns(case.get("ways", [])), Rules(case.get("rules", []))
    warmup = max(5, steps // 10)
    steps += warmup
    if rules.options:
        trainer.Trainer._plan_of_epoch = (  # type: ignore[method-assign]
            lambda self, generator: rules.plan(self, generator)
        )
    if turns.ways:
        trainer.load_ahead = turns.load(trainer.load_ahead)  # type: ignore[assignment]
        Processes.sum_ = turns.sum_(Processes.sum_)  # type: ignore[method-assign]
        steps = (case["turns"] + 1) * len(turns.ways) * TURN
    marks: List[Tuple[float, int]] = []
    step = trainer.Trainer._step

    def timed(self: Any, frames: Any, *others: Any) -> Any:
        here = [len(frame) for frame in frames.frames if frame is not None]
        marks.append((time.monotonic(), sum(here)))
        if turns.step >= (len(rules) - 1 if rules.options else steps):
            raise EnoughError
        loss = step(self, frames, *others)
        turns.step += 1
        return loss

    trainer.Trainer._step = timed  # type: ignore[method-assign]
    with TemporaryDirectory() as directory:
        os.chdir(directory)
        try:
            cli_train.train_model(OmegaConf.create(options_of(case)))
        except Exception as error:
            # metatrain hides what ended it
            if "EnoughError" not in traceback.format_exc():
                raise error
    counted = marks[warmup:-1]
    return {
        "start": marks[0][0] - started,
        "largest": max(mark[1] for mark in marks),
        "batch": sum(mark[1] for mark in counted) / len(counted),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "rates": turns.rates()
        if turns.ways
        else rules.rates([mark[0] for mark in marks])
        if rules.options
        else [],
    }


def run(
    case: Dict[str, Any], given: argparse.Namespace, **variables: str
) -> Dict[str, Any]:
    """Train in a process of its own.

    :param variables: of the environment.
    """
    command = [sys.executable, __file__, str(given.data), "--one", json.dumps(case)]
    command += ["--steps", str(given.steps), "--threads", str(given.threads)]
    environment = os.environ | variables
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: Dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


# ------------------------------------------------------------------------ the tables


def case_of(
    data: Path, turns: int, ways: Sequence[Tuple[bool, bool]] = ()
) -> Dict[str, Any]:
    """A training on frames with stresses; frames are on disk where ways take turns."""
    training = {"max_memory": 0.0 if ways else 1e6}
    return {
        "data": str(data),
        "training": training,
        "stress": True,
        "turns": turns,
        "ways": ways,
    }


def copies(given: argparse.Namespace, folder: Path, count: int) -> Path:
    """A data set of so many copies, made once."""
    data = folder / f"{count}-frames"
    if not data.exists():
        frames = ase.io.read(given.data, ":")
        write_arrays(data, frames, np.arange(count) % len(frames), True)
    return data


def row(*cells: Any) -> str:
    """A row of a table, also printed."""
    line = "| " + " | ".join(map(str, cells)) + " |"
    print(line, flush=True)
    return line


def table_of_streams(given: argparse.Namespace, folder: Path) -> str:
    """Frames in memory against frames on disk."""
    lines = [
        "| frames | where | peak memory, GB | until the first step, s "
        "| steps/s, by turns with frames in memory | against these, and quartiles |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    all_held = run(case_of(copies(given, folder, given.held), 0), given)
    known = f"{all_held['memory']:.2f}", f"{all_held['start']:.0f}"
    lines.append(row(f"{given.held:,}", "in memory", *known, "", ""))
    for count in given.streamed:
        ways = [(True, True), (False, True)]
        case = case_of(copies(given, folder, count), given.turns, ways)
        found = run(case, given)
        known = f"{found['memory']:.2f}", f"{found['start']:.0f}"
        rates = f"{median(found['rates'][1]):.2f}"
        against = ratio(found["rates"][1], found["rates"][0])
        lines.append(row(f"{count:,}", "on disk", *known, rates, against))
    return "\n".join(lines)


def ratio(rates: Sequence[float], others: Sequence[float]) -> str:
    """Of two ways that took turns: median and quartiles."""
    pairs = zip(rates, others, strict=False)  # the last turn may be missing
    ratios = [own / other for own, other in pairs]
    lower, middle, upper = np.quantile(ratios, [0.25, 0.5, 0.75])
    return f"{middle:.2f} ({lower:.2f} to {upper:.2f})"


def slurm(rank: int, size: int) -> Dict[str, str]:
    """What tells a process about the others."""
    return {
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NTASKS": str(size),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
    }


def table_of_processes(given: argparse.Namespace, folder: Path) -> str:
    """Four processes together against four on their own."""
    kinds = {
        "each on its own, frames in memory": (True, False),
        "together, frames in memory": (True, True),
        "together, frames on disk": (False, True),
    }
    # Enough for one epoch, which validates at its end.
    n_steps = TURN * (given.turns + 2) * len(kinds)
    data = copies(given, folder, 4 * BATCH * n_steps)
    case = case_of(data, given.turns, list(kinds.values()))
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(run, case, given, **slurm(rank, 4)) for rank in range(4)]
        found = [process.result() for process in running]
    # All wait for the last one where a turn together begins.
    rates = found[0]["rates"]
    lines = ["| processes | steps/s | against on their own, and quartiles |"]
    lines += ["|---|---:|---:|"]
    for name, own in zip(kinds, rates, strict=True):
        against = "" if own is rates[0] else ratio(own, rates[0])
        lines.append(row(name, f"{median(own):.2f}", against))
    return "\n".join(lines)


def table_of_mixture(given: argparse.Namespace, folder: Path) -> str:
    """Fixed batches against batches of atoms with the same largest batch."""
    molecules = ase.io.read(given.molecules, ":")
    cells = ase.io.read(given.cells, ":")
    data = folder / "mixture"
    if not data.exists():
        choice = mixture(molecules, cells, 4_000)
        write_arrays(data, molecules + cells, choice, False)

    def case(training: Dict[str, Any], **others: Any) -> Dict[str, Any]:
        # The rule for the share of conservative frames is not what is compared.
        shared = {"conservative_fraction": 0.25, "max_energy": 1e9}
        options = {"data": str(data), "training": {**training, **shared}}
        return {**options, "stress": False, **others}

    lines = [
        "| batches | largest, atoms | mean, atoms | peak memory, GB "
        "| frames/s, by turns | against fixed batches, and quartiles |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for count in (FEW, BATCH):
        # As large as a fixed batch may be.
        n_atoms = count * len(cells[0])
        rules = [{"batch_size": count}, {"max_atoms_per_batch": n_atoms}]
        rates = run(case({}, rules=rules), given)["rates"]
        shown = ["", ratio(rates[1], rates[0])]
        names = [f"{count} frames", f"{n_atoms} atoms"]
        for rule, name, own, against in zip(rules, names, rates, shown, strict=True):
            one = run(case(rule), given)
            sizes = f"{one['largest']:.0f}", f"{one['batch']:.0f}"
            memory = f"{one['memory']:.2f}"
            lines.append(row(name, *sizes, memory, f"{median(own):.1f}", against))
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    given = read_options()
    if given.one:
        print(json.dumps(run_one(given.one, given.steps, given.threads)))
        return
    parts = [
        "# Large data and mixed sizes",
        f"Default options (`ace`), float32, {given.threads} thread(s) on "
        f"{os.cpu_count()} cores, torch {torch.__version__}, {platform.machine()}. "
        "Steps in a time are measured in one run, in which the ways to train take "
        f"turns of {TURN} steps: medians of {given.turns} turns.",
    ]
    with ExitStack() as stack:
        folder = given.folder
        if folder is None:
            folder = Path(stack.enter_context(TemporaryDirectory()))
        parts += ["## Frames in memory and on disk"]
        parts += [f"Copies of `{given.data.name}` with noise, batches of {BATCH}."]
        parts += [table_of_streams(given, folder)]
        parts += ["## Four processes"]
        parts += [f"Batches of {BATCH} in each process."]
        parts += [table_of_processes(given, folder)]
        if given.molecules and given.cells:
            parts += ["## Molecules and cells"]
            parts += [
                f"`{given.molecules.name}` and `{given.cells.name}`, as many atoms of "
                f"one as of the other. Frames in a time by turns of {FRAMES_OF_TURN} "
                f"frames in one run, sizes and memory from {given.steps} steps of each."
            ]
            parts += [table_of_mixture(given, folder)]
    parts += [f"Made with `python benchmarks/scale.py {' '.join(sys.argv[1:])}`."]
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
