"""Errors on molecules, at the temperature of the training and away from it.

    python benchmarks/molecules.py DATA acetylacetone --minutes 30 [--backbone ace]
    python benchmarks/molecules.py DATA acetylacetone --set n_channels=128 n_triples=4
    python benchmarks/molecules.py DATA acetylacetone --minutes 30 --model model.pt
    python benchmarks/molecules.py DATA 3bpa --pretrain gfn2-xtb --minutes 30
    python benchmarks/molecules.py DATA 3bpa --difference gfn2-xtb --minutes 120

DATA is the folder with ``acetylacetone-300K.xyz``, ``acetylacetone-600K.xyz``,
``3bpa-300K.xyz`` and ``3bpa-mixedT.xyz``. Trains on one core, on frames 0-449, and
tests on frames 450-499 and on the other file; with ``--model`` it tests a model that
was trained so before. With ``--pretrain`` it runs a cheap method from the training
frames first (``dualforce sample``), trains on what that meets for two fifths of the
time that is left, and goes on from there on the frames. With ``--difference`` it trains
on what the cheap method lacks for a fifth of the time (``dualforce difference``), runs
the sum of both from the frames, trains on what that meets and on the frames, and at
last for a short time on the frames alone. The minutes are those of all of it. Results
are added to ``docs/benchmarks/molecules.json``, and the table is made of all that it
holds.
"""

import argparse
import json
import os
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Optional

import ase
import ase.io
import numpy as np
import torch
import yaml

import dualforce


DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"
RESULTS = DOCS / "molecules.json"
ELSEWHERE = {"acetylacetone": "acetylacetone-600K.xyz", "3bpa": "3bpa-mixedT.xyz"}
N_TRAIN = 450
TEMPERATURES = (300.0, 600.0, 900.0, 1200.0)
"""Of the runs with a cheap method, in K."""
FIRST = 0.4
"""Share of the training time for what these meet, before the frames."""
DIFFERENCE = 0.22
"""Share of all of the time for a model of what a cheap method lacks."""
LAST = 0.022
"""Share of all of the time for the frames alone at the end, after such a model."""
LAST_RATE = 1e-3
"""Learning rate there, that of `options/finetune.yaml`."""


def train_on(
    folder: Path,
    training: List[ase.Atoms],
    validation: List[ase.Atoms],
    backbone: str,
    changes: Dict[str, Any],
    minutes: float,
    start: Optional[Path] = None,
    learning_rate: Optional[float] = None,
) -> Path:
    """Train with the default recipe, on one core, in a new folder, from the weights of
    a checkpoint if there is one."""
    folder.mkdir(parents=True)
    ase.io.write(folder / "train.xyz", training)
    ase.io.write(folder / "validation.xyz", validation)
    targets = {"energy": {"key": "energy", "unit": "eV"}}
    options: Dict[str, Any] = {
        "seed": 0,
        "device": "cpu",
        "base_precision": 32,
        "architecture": {
            "name": "experimental.dualforce",
            "model": {"backbone": backbone, backbone: changes},
            "training": {
                "num_epochs": None,
                "max_minutes": minutes,
                "learning_rate": learning_rate,
            },
        },
        "test_set": 0.0,
        "final_eval": False,
    }
    if start is not None:
        del options["architecture"]["model"]
        finetune = {"read_from": str(start.absolute())}
        options["architecture"]["training"]["finetune"] = finetune
    for split in ("train", "validation"):
        name = "training_set" if split == "train" else "validation_set"
        options[name] = {
            "systems": {"read_from": f"{split}.xyz", "length_unit": "angstrom"},
            "targets": targets,
        }
    (folder / "options.yaml").write_text(yaml.safe_dump(options))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = ["mtt", "train", "options.yaml", "-o", "model.pt"]
    with (folder / "train.txt").open("w") as log:
        subprocess.run(
            command, cwd=folder, env=environment, stdout=log, stderr=log, check=True
        )
    return folder / "model.pt"


def run_method(
    method: str, folder: Path, training: List[ase.Atoms], n_frames: int
) -> List[ase.Atoms]:
    """What runs with a method meet, labelled by it."""
    ase.io.write(folder / "frames.xyz", training)
    return dualforce.sample(
        method,
        folder / "frames.xyz",
        folder / "sampled.xyz",
        temperatures=TEMPERATURES,
        frames=n_frames,
    )


def train_after(
    method: str,
    n_frames: int,
    folder: Path,
    training: List[ase.Atoms],
    validation: List[ase.Atoms],
    backbone: str,
    changes: Dict[str, Any],
    minutes: float,
) -> Path:
    """Train on structures labelled by a cheap method, then on the frames."""
    begin = time.perf_counter()
    folder.mkdir(parents=True)
    sampled = run_method(method, folder, training, n_frames)
    left = minutes - (time.perf_counter() - begin) / 60.0
    print(f"{len(sampled)} frames of {method}, {left:.1f} minutes are left", flush=True)
    every = len(sampled) // len(validation)
    held_out = sampled[::every]
    learnt = [atoms for i, atoms in enumerate(sampled) if i % every]
    first = train_on(
        folder / "first", learnt, held_out, backbone, changes, FIRST * left
    )
    return train_on(
        folder / "second",
        training,
        validation,
        backbone,
        changes,
        (1.0 - FIRST) * left,
        first.with_suffix(".ckpt"),
    )


def train_beside(
    method: str,
    n_frames: int,
    folder: Path,
    training: List[ase.Atoms],
    validation: List[ase.Atoms],
    backbone: str,
    changes: Dict[str, Any],
    minutes: float,
) -> Path:
    """Train on the frames and on structures labelled by a cheap method and a model of
    what it lacks."""
    begin = time.perf_counter()
    folder.mkdir(parents=True)
    ase.io.write(folder / "data.xyz", [*training, *validation])
    lacking = dualforce.difference(
        method, folder / "data.xyz", folder / "difference.xyz"
    )
    learnt, held_out = lacking[: len(training)], lacking[len(training) :]
    model = train_on(
        folder / "difference",
        learnt,
        held_out,
        backbone,
        changes,
        DIFFERENCE * minutes,
    )
    sampled = run_method(f"{method}+{model}", folder, training, n_frames)
    left = (1.0 - LAST) * minutes - (time.perf_counter() - begin) / 60.0
    print(f"{len(sampled)} frames of the sum, {left:.1f} minutes for them", flush=True)
    both = [*sampled, *training]
    corrected = train_on(folder / "sum", both, validation, backbone, changes, left)
    return train_on(
        folder / "frames",
        training,
        validation,
        backbone,
        changes,
        LAST * minutes,
        corrected.with_suffix(".ckpt"),
        LAST_RATE,
    )


def errors(model: Path, frames: List[ase.Atoms]) -> Dict[str, float]:
    """Root mean square errors of both forces in meV/Å, the largest of a frame, and the
    mean absolute error of the energy in meV/atom."""
    forces = dualforce.load_forces(str(model))
    found: Dict[str, List[Any]] = {"conservative": [], "direct": [], "energy": []}
    for atoms in frames:
        conservative, direct = forces.both(atoms)
        reference = atoms.get_forces()
        found["conservative"].append(conservative.forces - reference)
        found["direct"].append(direct.forces - reference)
        assert conservative.energy is not None
        deviation = conservative.energy - atoms.get_potential_energy()
        found["energy"].append(abs(deviation) / len(atoms))
    results = {
        name: float(1e3 * np.sqrt(np.mean(np.square(found[name]))))
        for name in ("conservative", "direct")
    }
    results["worst frame"] = float(
        1e3 * max(np.sqrt(np.mean(f**2)) for f in found["conservative"])
    )
    results["energy"] = float(1e3 * np.mean(found["energy"]))
    return results


def by_temperature(path: Path) -> Dict[str, List[ase.Atoms]]:
    """Frames of a file, apart where it tells temperatures."""
    sets: Dict[str, List[ase.Atoms]] = {}
    for atoms in ase.io.read(path, ":"):
        name = atoms.info.get("config_type", atoms.info.get("temperature", path.stem))
        sets.setdefault(str(name), []).append(atoms)
    return sets


def table(results: Dict[str, Any]) -> List[str]:
    """The page."""
    lines = [
        "# Few frames of a molecule",
        "",
        "Default options but those of the network that are named, trained on frames "
        "0-449 of the files at 300 K for the time given, on one core. Root "
        "mean square errors of conservative and direct force in meV/Å, the largest of "
        "a single frame (conservative), and the mean absolute error of the energy in "
        "meV/atom. `python benchmarks/molecules.py DATA SYSTEM --minutes MINUTES "
        "[--set n_channels=128 n_triples=4]`; frames 450-499 chose the best weights. "
        "`gfn2-xtb first`: with `--pretrain gfn2-xtb`, a training on structures that "
        "this method labels comes first. `gfn2-xtb corrected`: with `--difference "
        "gfn2-xtb`, beside structures that this method and a model of what it lacks "
        "label. The minutes include all of it.",
        "",
        "| system | network | minutes | test set | conservative | direct | worst frame "
        "| energy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key in sorted(results):
        system, network, minutes = key.split("/")
        for name, found in results[key].items():
            lines.append(
                f"| {system} | {network} | {float(minutes):g} | {name} | "
                f"{found['conservative']:.1f} | {found['direct']:.1f} | "
                f"{found['worst frame']:.0f} | {found['energy']:.3f} |"
            )
    return lines


def main() -> None:
    """Train, test, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("system", choices=ELSEWHERE)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--backbone", default="ace")
    parser.add_argument("--set", nargs="*", default=[], metavar="OPTION=VALUE")
    parser.add_argument("--model", type=Path)
    cheap = parser.add_mutually_exclusive_group()
    cheap.add_argument("--pretrain", metavar="METHOD")
    cheap.add_argument("--difference", metavar="METHOD")
    parser.add_argument("--frames", type=int, default=1000, help="of the cheap method")
    parser.add_argument("--work", type=Path, default=Path("outputs/molecules"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    frames = ase.io.read(arguments.data / f"{arguments.system}-300K.xyz", ":")
    network = ", ".join([arguments.backbone, *arguments.set])
    changes = yaml.safe_load("\n".join(arguments.set).replace("=", ": ")) or {}
    train = train_on
    if arguments.pretrain:
        network += f", {arguments.pretrain} first"
        train = partial(train_after, arguments.pretrain, arguments.frames)
    if arguments.difference:
        network += f", {arguments.difference} corrected"
        train = partial(train_beside, arguments.difference, arguments.frames)
    key = f"{arguments.system}/{network}/{arguments.minutes:05.1f}"
    model = arguments.model or train(
        arguments.work / key,
        frames[:N_TRAIN],
        frames[N_TRAIN:],
        arguments.backbone,
        changes,
        arguments.minutes,
    )
    sets = {"frames 450-499": frames[N_TRAIN:]}
    sets |= by_temperature(arguments.data / ELSEWHERE[arguments.system])
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[key] = {name: errors(model, chosen) for name, chosen in sets.items()}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    (DOCS / "molecules.md").write_text("\n".join(table(results)) + "\n")


if __name__ == "__main__":
    main()
