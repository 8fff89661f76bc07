"""Large data and mixed sizes: memory, start and throughput of a training.

    python benchmarks/scale.py data/water-xtb/train.xyz \
        --molecules acetylacetone-300K.xyz --cells water-pbe0ts.xyz

Makes data sets from the frames of a file, copied with noise, as folders of arrays that
metatrain maps into memory, and trains on them with default options, each run in a
process of its own:

- frames held in memory against frames read when they are needed (``max_memory``): peak
  memory, time to the first step, frames per second;
- four processes on two cores that train together, frames in memory and read from disk,
  against four that each train alone, frames in memory: what is lost to communication
  and reading. All steps counted are those while all four train;
- a mixture of molecules and cells, equal numbers of atoms of both, in batches of
  ``batch_size`` and of ``max_atoms_per_batch``, as large as a fixed batch may be (cells
  alone), and as the largest one that there was.

Throughput is in frames per second of the clock, and of processor time of all threads,
where nothing is free that runs beside the network. Prints tables and writes them to
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Dict, List, Sequence

import ase.io
import numpy as np
import torch
from ase import Atoms


OUTPUT = Path(__file__).parents[1] / "docs" / "benchmarks" / "scale.md"

BATCH = 4
"""Frames in a fixed batch."""

FEW = 2
"""Frames in a smaller fixed batch."""

STOP = "stop"
"""Name of the file that ends processes which train side by side."""

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
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="to time four processes for (60)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind (3)")
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


def run_one(case: Dict[str, Any], steps: int, threads: int) -> Dict[str, Any]:
    """Train for some steps in this process, or until a signal says so.

    :return: seconds to the first step, frames per second of the clock and of
        processor time, atoms of batches, peak memory in GB, and for each step counted
        the time and the number of frames.
    """
    started = time.monotonic()  # before what a user waits for as well
    import metatrain.cli.train as cli_train
    from omegaconf import OmegaConf

    from dualforce.training.trainer import Trainer

    class Enough(Exception):
        pass

    torch.set_num_threads(threads)
    warmup = max(5, steps // 10)
    marks: List[Any] = []
    first: List[float] = []
    step = Trainer._step
    signals = Path(case["signals"]) if "signals" in case else None

    def is_over() -> bool:
        if signals is None:
            return len(marks) > warmup + steps
        if len(marks) == warmup:
            (signals / f"warm-{os.getpid()}").touch()
        return (signals / STOP).exists()

    def timed(self: Trainer, frames: Any, *others: Any) -> Any:
        here = [frame for frame in frames.frames if frame is not None]
        now = time.monotonic(), time.process_time()
        marks.append((*now, len(here), sum(map(len, here))))
        if len(marks) == 1:
            first.append(time.monotonic() - started)
        if is_over():
            raise Enough
        return step(self, frames, *others)

    Trainer._step = timed  # type: ignore[method-assign]
    with TemporaryDirectory() as directory:
        os.chdir(directory)
        try:
            cli_train.train_model(OmegaConf.create(options_of(case)))
        except Exception as error:
            if not is_over():
                raise error
    counted = marks[warmup:-1]
    clock, processor = (marks[-1][i] - marks[warmup][i] for i in (0, 1))
    frames = sum(mark[2] for mark in counted)
    return {
        "start": first[0],
        "clock": frames / clock,
        "processor": frames / processor,
        "largest": max(mark[3] for mark in marks),
        "batch": sum(mark[3] for mark in counted) / len(counted),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "steps": [(mark[0], mark[2]) for mark in counted],
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


def medians(results: List[Dict[str, Any]]) -> Dict[str, float]:
    """Medians of several runs; of memory the largest."""
    names = [name for name in results[0] if name != "steps"]
    found = {name: median(run[name] for run in results) for name in names}
    return found | {"memory": max(run["memory"] for run in results)}


def run_in_turn(
    cases: Sequence[Dict[str, Any]], given: argparse.Namespace
) -> List[Dict[str, float]]:
    """Run all cases one after the other, several times, and take medians."""
    found: List[List[Dict[str, Any]]] = [[] for _ in cases]
    for _ in range(given.repeats):
        for case, results in zip(cases, found, strict=True):
            results.append(run(case, given))
    return [medians(results) for results in found]


# ------------------------------------------------------------------------ the tables


def case_of(data: Path, in_memory: bool) -> Dict[str, Any]:
    """A training on frames with stresses."""
    training = {"max_memory": 1e6 if in_memory else 0.0}
    return {"data": str(data), "training": training, "stress": True}


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
        "| frames | where | peak memory, GB | until the first step, s | frames/s "
        "| frames/s of processor time |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    counts = [given.held, *given.streamed]
    places = [True] + len(given.streamed) * [False]
    cases = [
        case_of(copies(given, folder, count), place)
        for count, place in zip(counts, places, strict=True)
    ]
    results = run_in_turn(cases, given)
    for count, place, result in zip(counts, places, results, strict=True):
        lines.append(
            row(
                f"{count:,}",
                "in memory" if place else "on disk",
                f"{result['memory']:.2f}",
                f"{result['start']:.0f}",
                f"{result['clock']:.1f}",
                f"{result['processor']:.1f}",
            )
        )
    lines.append("")
    for name, words in (("clock", "the clock"), ("processor", "processor time")):
        ratios = [f"{result[name] / results[0][name]:.2f}" for result in results[1:]]
        lines.append(f"Against frames in memory, by {words}: {', '.join(ratios)}.")
    return "\n".join(lines)


def slurm(rank: int, size: int) -> Dict[str, str]:
    """What tells a process about the others."""
    return {
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NTASKS": str(size),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
    }


def rate_of_all(
    case: Dict[str, Any], given: argparse.Namespace, variables: List[Dict[str, str]]
) -> float:
    """Frames per second of several processes, counted while all of them train.

    :param variables: of the environment of each.
    """
    with TemporaryDirectory() as folder, ThreadPoolExecutor(len(variables)) as pool:
        case = case | {"signals": folder}
        started = [pool.submit(run, case, given, **each) for each in variables]
        while len(os.listdir(folder)) < len(variables):
            if any(process.done() for process in started):
                break  # with an error, which is raised below
            time.sleep(0.1)
        time.sleep(given.seconds)
        (Path(folder) / STOP).touch()
        steps = [process.result()["steps"] for process in started]
    begin = max(own[0][0] for own in steps)
    end = min(own[-1][0] for own in steps)
    counted = [n for own in steps for begun, n in own if begin <= begun < end]
    return sum(counted) / (end - begin)


def table_of_processes(given: argparse.Namespace, folder: Path) -> str:
    """Four processes together against four on their own."""
    data = copies(given, folder, given.held)
    alone = [{} for _ in range(4)]
    together = [slurm(rank, 4) for rank in range(4)]
    kinds = {
        "each on its own, frames in memory": (True, alone),
        "together, frames in memory": (True, together),
        "together, frames on disk": (False, together),
    }
    rates: Dict[str, List[float]] = {name: [] for name in kinds}
    for _ in range(given.repeats):
        for name, (in_memory, variables) in kinds.items():
            rates[name].append(rate_of_all(case_of(data, in_memory), given, variables))
    lines = ["| processes | frames/s of all | against on their own, by run |"]
    lines += ["|---|---:|---:|"]
    own = rates[next(iter(kinds))]
    for name, found in rates.items():
        ratios = [f"{b / a:.2f}" for a, b in zip(own, found, strict=True)]
        shown = "" if found is own else ", ".join(ratios)
        lines.append(row(name, f"{median(found):.1f}", shown))
    return "\n".join(lines)


def table_of_mixture(given: argparse.Namespace, folder: Path) -> str:
    """Fixed batches against batches of atoms with the same largest batch."""
    molecules = ase.io.read(given.molecules, ":")
    cells = ase.io.read(given.cells, ":")
    data = folder / "mixture"
    if not data.exists():
        choice = mixture(molecules, cells, 2_000)
        write_arrays(data, molecules + cells, choice, False)
    # The rule for the share of conservative frames is not what is compared.
    shared = {"conservative_fraction": 0.25, "max_energy": 1e9}

    def case(**rule: int) -> Dict[str, Any]:
        return {"data": str(data), "training": {**rule, **shared}, "stress": False}

    # As large as a fixed batch may be, and as the largest one that there was.
    n_atoms = len(cells[0])
    fixed = run(case(batch_size=BATCH), given)
    rules = [
        {"batch_size": FEW},
        {"max_atoms_per_batch": FEW * n_atoms},
        {"batch_size": BATCH},
        {"max_atoms_per_batch": BATCH * n_atoms},
        {"max_atoms_per_batch": int(fixed["largest"])},
    ]
    results = run_in_turn([case(**rule) for rule in rules], given)
    lines = [
        "| batches | largest, atoms | mean, atoms | peak memory, GB | frames/s "
        "| against fixed batches |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for rule, result in zip(rules, results, strict=True):
        if "batch_size" in rule:
            name, against = f"{rule['batch_size']} frames", result["clock"]
        else:
            name = f"{rule['max_atoms_per_batch']} atoms"
        lines.append(
            row(
                name,
                f"{result['largest']:.0f}",
                f"{result['batch']:.0f}",
                f"{result['memory']:.2f}",
                f"{result['clock']:.1f}",
                "" if "batch_size" in rule else f"{result['clock'] / against:.2f}",
            )
        )
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
        f"{os.cpu_count()} cores, {given.steps} steps, median of {given.repeats} runs "
        f"in turn (of memory the largest), torch {torch.__version__}, "
        f"{platform.machine()}. Frames per second of the clock, and of processor time "
        "of all threads.",
    ]
    with ExitStack() as stack:
        folder = given.folder
        if folder is None:
            folder = Path(stack.enter_context(TemporaryDirectory()))
        parts += ["## Frames in memory and on disk"]
        parts += [f"Copies of `{given.data.name}` with noise, batches of {BATCH}."]
        parts += [table_of_streams(given, folder)]
        parts += ["## Four processes"]
        parts += [f"{given.held:,} frames, batches of {BATCH} in each process."]
        parts += [table_of_processes(given, folder)]
        if given.molecules and given.cells:
            parts += ["## Molecules and cells"]
            parts += [
                f"`{given.molecules.name}` and `{given.cells.name}`, as many atoms of "
                "one as of the other."
            ]
            parts += [table_of_mixture(given, folder)]
    parts += [f"Made with `python benchmarks/scale.py {' '.join(sys.argv[1:])}`."]
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
