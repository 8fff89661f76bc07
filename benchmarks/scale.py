"""Large data and mixed sizes: memory, start and throughput of a training.

    python benchmarks/scale.py data/water-xtb/train.xyz \
        --molecules acetylacetone-300K.xyz --cells water-pbe0ts.xyz

Makes data sets from the frames of a file, copied with noise, as folders of arrays that
metatrain maps into memory, and trains on them with default options, each run in a
process of its own:

- frames held in memory against frames read when they are needed (``max_memory``): peak
  memory, time to the first step, frames per second;
- a mixture of molecules and cells, equal numbers of atoms of both, in batches of
  ``batch_size`` and of ``max_atoms_per_batch``, as large as the largest fixed batch
  that there was, and as that there may be.

Throughput is in frames per second of processor time of all threads, so that what else
the machine does counts little and nothing is free that runs beside the network; the
time to the first step is that of the clock. Prints tables and writes them to
``docs/benchmarks/scale.md``.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict, List, Optional

import ase.io
import numpy as np
import torch
from ase import Atoms


OUTPUT = Path(__file__).parents[1] / "docs" / "benchmarks" / "scale.md"

BATCH = 4
"""Frames in a fixed batch."""

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
    parser.add_argument("--steps", type=int, default=100, help="steps to time (100)")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each kind (1)")
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


def run_one(case: Dict[str, Any], steps: int, threads: int) -> Dict[str, float]:
    """Train for some steps in this process.

    :return: seconds to the first step, frames and atoms per second, atoms of batches,
        peak memory in GB.
    """
    # started before these, which a user waits for as well
    import metatrain.cli.train as cli_train
    from omegaconf import OmegaConf

    from dualforce.training.trainer import Trainer

    class Enough(Exception):
        pass

    torch.set_num_threads(threads)
    started = time.monotonic()
    warmup = max(5, steps // 10)
    marks: List[Any] = []
    first: List[float] = []
    step = Trainer._step

    def timed(self: Trainer, frames: Any, *others: Any) -> Any:
        here = [frame for frame in frames.frames if frame is not None]
        marks.append((time.process_time(), len(here), sum(map(len, here))))
        if len(marks) == 1:
            first.append(time.monotonic() - started)
        if len(marks) > warmup + steps:
            raise Enough
        return step(self, frames, *others)

    Trainer._step = timed  # type: ignore[method-assign]
    with TemporaryDirectory() as directory:
        os.chdir(directory)
        try:
            cli_train.train_model(OmegaConf.create(options_of(case)))
        except Exception as error:
            if len(marks) <= warmup + steps:
                raise error
    counted = marks[warmup:-1]
    seconds = marks[-1][0] - marks[warmup][0]
    return {
        "start": first[0],
        "frames": sum(frames for _, frames, _ in counted) / seconds,
        "atoms": sum(atoms for _, _, atoms in counted) / seconds,
        "largest": max(atoms for _, _, atoms in marks),
        "batch": sum(atoms for _, _, atoms in counted) / len(counted),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def run(case: Dict[str, Any], given: argparse.Namespace) -> Dict[str, float]:
    """Train in a process of its own, and take the best of several runs."""
    found: List[Dict[str, float]] = []
    for _ in range(given.repeats):
        command = [sys.executable, __file__, str(given.data), "--one", json.dumps(case)]
        command += ["--steps", str(given.steps), "--threads", str(given.threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        found.append(json.loads(done.stdout.strip().splitlines()[-1]))
    return max(found, key=lambda result: result["frames"])


# ------------------------------------------------------------------------ the tables


def table_of_streams(given: argparse.Namespace, folder: Path) -> str:
    """Frames in memory against frames on disk."""
    frames = ase.io.read(given.data, ":")
    lines = [
        "| frames | where | peak memory, GB | until the first step, s | frames/s |",
        "|---:|---|---:|---:|---:|",
    ]
    rates: List[float] = []
    cases = [(given.held, 1e6, "in memory")]
    cases += [(count, 0.0, "on disk") for count in given.streamed]
    for count, memory, where in cases:
        data = folder / f"{count}-frames"
        if not data.exists():
            write_arrays(data, frames, np.arange(count) % len(frames), True)
        training = {"max_memory": memory}
        result = run({"data": str(data), "training": training, "stress": True}, given)
        rates.append(result["frames"])
        lines.append(
            f"| {count:,} | {where} | {result['memory']:.2f} | {result['start']:.0f} | "
            f"{result['frames']:.1f} |"
        )
        print(lines[-1], flush=True)
    ratios = ", ".join(f"{rate / rates[0]:.2f}" for rate in rates[1:])
    lines += ["", f"Frames per second against frames in memory: {ratios}."]
    return "\n".join(lines)


def table_of_mixture(given: argparse.Namespace, folder: Path) -> str:
    """Fixed batches against batches of atoms with the same largest batch."""
    molecules = ase.io.read(given.molecules, ":")
    cells = ase.io.read(given.cells, ":")
    data = folder / "mixture"
    write_arrays(data, molecules + cells, mixture(molecules, cells, 2_000), False)
    lines = [
        "| batches | largest, atoms | mean, atoms | peak memory, GB | frames/s |",
        "|---|---:|---:|---:|---:|",
    ]
    rates = []
    largest = BATCH * len(cells[0])
    # The rule for the share of conservative frames is not what is compared.
    shared = {"conservative_fraction": 0.25, "max_energy": 1e9}
    limits: List[Optional[int]] = [None, largest]
    for limit in limits:
        name = f"{BATCH} frames" if limit is None else f"{limit} atoms"
        training: Dict[str, Optional[float]] = {"max_atoms_per_batch": limit, **shared}
        result = run({"data": str(data), "training": training, "stress": False}, given)
        if limit is None:  # of the largest fixed batch that there was
            limits.insert(1, int(result["largest"]))
        rates.append(result["frames"])
        lines.append(
            f"| {name} | {result['largest']:.0f} | {result['batch']:.0f} | "
            f"{result['memory']:.2f} | {result['frames']:.1f} |"
        )
        print(lines[-1], flush=True)
    lines.append("")
    ratios = ", ".join(f"{rate / rates[0]:.2f}" for rate in rates[1:])
    lines.append(f"Frames per second against fixed batches: {ratios}.")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    given = read_options()
    if given.one:
        print(json.dumps(run_one(given.one, given.steps, given.threads)))
        return
    parts = [
        "# Large data and mixed sizes",
        f"Default options (`ace`), float32, {given.threads} thread(s), {given.steps} "
        f"steps, best of {given.repeats} run(s), torch {torch.__version__}, "
        f"{platform.machine()}. Frames per second of processor time of all "
        "threads; the time until the first step is that of the clock.",
    ]
    with TemporaryDirectory(dir=given.folder) as directory:
        parts += ["## Frames in memory and on disk"]
        parts += [f"Copies of `{given.data.name}` with noise, batches of {BATCH}."]
        parts += [table_of_streams(given, Path(directory))]
        if given.molecules and given.cells:
            parts += ["## Molecules and cells"]
            parts += [
                f"`{given.molecules.name}` and `{given.cells.name}`, as many atoms of "
                "one as of the other."
            ]
            parts += [table_of_mixture(given, Path(directory))]
    parts += [f"Made with `python benchmarks/scale.py {' '.join(sys.argv[1:])}`."]
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
