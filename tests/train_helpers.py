"""Small data sets and runs for the tests of training."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import ase.io
import metatrain.cli.train as cli_train
import numpy as np
import torch
from ase import Atoms
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatrain.utils.architectures import get_default_hypers, import_architecture
from metatrain.utils.data import Dataset, DatasetInfo, get_atomic_types
from metatrain.utils.data.writers import DiskDatasetWriter
from metatrain.utils.omegaconf import expand_dataset_config, expand_loss_config
from omegaconf import OmegaConf

from dualforce.plugin.patches import training
from dualforce.training.data import make_frames
from dualforce.training.fitting import fit_calibration, to_raw_units
from dualforce.training.model import NAME, DualForce
from dualforce.training.terms import make_terms
from dualforce.training.trainer import Trainer


WATER = Path(__file__).parents[1] / "data" / "water-xtb" / "train.xyz"
PAINN = {"cutoff": 3.0, "n_layers": 1, "n_channels": 8, "n_radial": 4}
CPU = [torch.device("cpu")]

import_architecture(NAME)


def cluster(seed: int, n_molecules: int = 2) -> Atoms:
    """Water molecules in a box, with made-up labels that are smooth."""
    rng = np.random.default_rng(seed)
    atoms = Atoms(cell=[7.0, 8.0, 9.0], pbc=True)
    for molecule in range(n_molecules):
        water = Atoms("OHH", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
        water.rattle(0.05, rng=rng)
        water.translate([3.0 * (molecule % 2), 3.0 * (molecule // 2), 0.3 * molecule])
        atoms += water
    forces = rng.normal(size=(len(atoms), 3))
    stress = 0.01 * rng.normal(size=(3, 3))
    atoms.info["energy"] = float(-10.0 * n_molecules + rng.normal())
    atoms.arrays["forces"] = forces - forces.mean(0)
    atoms.info["stress"] = stress + stress.T
    return atoms


def clusters(number: int, n_molecules: int = 2) -> List[Atoms]:
    """Several frames of :func:`cluster`."""
    return [cluster(seed, n_molecules) for seed in range(number)]


def write(path: Path, frames: List[Atoms]) -> Path:
    """Write frames with their labels in info and arrays."""
    ase.io.write(path, frames, format="extxyz")
    return path


def options(
    data: Path,
    training: Optional[Dict[str, Any]] = None,
    model: Optional[Dict[str, Any]] = None,
    energy: Optional[Dict[str, Any]] = None,
    **others: Any,
) -> Dict[str, Any]:
    """An options file for a small network, two training epochs and half the frames for
    validation. A quarter of the frames is conservative, as where frames are large."""
    train = {
        "num_epochs": 2,
        "batch_size": 2,
        "conservative_fraction": 0.25,
        **(training or {}),
    }
    if model is None or "painn" in model:
        # a pair potential whatever the number of atoms
        network = {"backbone": "painn", "pair_potential": True, "painn": dict(PAINN)}
        model = {**network, **(model or {})}
    base = {
        "seed": 1,
        "device": "cpu",
        "base_precision": 64,
        "architecture": {
            "name": NAME,
            "model": model,
            "training": train,
        },
        "training_set": {
            "systems": {"read_from": str(data), "length_unit": "angstrom"},
            "targets": {"energy": {"unit": "eV", **(energy or {})}},
        },
        "validation_set": 0.5,
        "final_eval": False,
    }
    return {**base, **others}


def run_cli(directory: Path, given: Dict[str, Any], **arguments: Any) -> None:
    """``mtt train`` in this process."""
    shutil.rmtree(directory / "indices", ignore_errors=True)
    before = Path.cwd()
    os.chdir(directory)
    try:
        cli_train.train_model(
            OmegaConf.create(given), checkpoint_dir=directory, **arguments
        )
    finally:
        os.chdir(before)


def mtt(directory: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start ``mtt`` as a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "metatrain", *arguments],
        cwd=directory,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def read_rows(path: Path) -> List[Dict[str, str]]:
    """Rows of a ``train.csv``, without that of the units."""
    with open(path) as file:
        return [row for row in csv.DictReader(file) if row["Epoch"].strip().isdigit()]


def prepare_first_step(
    given: Dict[str, Any], dtype: torch.dtype = torch.float64
) -> Tuple[DualForce, Trainer]:
    """Model and trainer of an options file, with fitted scales, frames and terms."""
    model, trainer, dataset = prepare(given, dtype)
    frames = make_frames([dataset], "training", model, False)
    fit_calibration(model, frames, {}, True)
    trainer.model = model
    trainer.train_frames = to_raw_units(model, frames)
    trainer.terms = make_terms(model, trainer.train_frames, trainer.hypers)
    return model, trainer


def prepare(
    given: Dict[str, Any], dtype: torch.dtype = torch.float64
) -> Tuple[DualForce, Trainer, Dataset]:
    """Model, trainer and data set of an options file, nothing trained yet."""
    conf = OmegaConf.create(given)
    conf = OmegaConf.merge({"architecture": get_default_hypers(NAME)}, conf)
    conf["training_set"] = expand_dataset_config(conf["training_set"])
    training.begin(NAME, OmegaConf.to_container(conf["architecture"], resolve=True))
    dataset, targets, _ = cli_train.get_dataset(conf["training_set"][0])
    conf = expand_loss_config(conf)
    hypers = OmegaConf.to_container(conf["architecture"], resolve=True)
    info = DatasetInfo(
        length_unit="angstrom",
        atomic_types=get_atomic_types([dataset]),
        targets=targets,
    )
    torch.manual_seed(0)
    model = DualForce(hypers["model"], info)
    model.network_to(torch.device("cpu"), dtype)
    return model, Trainer(hypers["training"]), dataset


def train(
    given: Dict[str, Any], directory: Path, dtype: torch.dtype = torch.float64
) -> Tuple[DualForce, Trainer]:
    """Train on all frames of an options file and validate on the same."""
    model, trainer, dataset = prepare(given, dtype)
    trainer.train(model, dtype, CPU, [dataset], [dataset], str(directory))
    return model, trainer


def message_of(action: Callable[[], Any]) -> str:
    """What a user reads when an action fails."""
    try:
        action()
    except Exception as error:
        return str(error)
    raise AssertionError("nothing was raised")


def on_disk(path: Path, frames: List[Atoms]) -> Path:
    """The same frames as a data set on disk, with all gradients."""
    _, _, dataset = prepare(options(write(path.with_suffix(".xyz"), frames)))
    writer = DiskDatasetWriter(path)
    for index in range(len(dataset)):
        sample = dataset[index]
        block = sample["energy"].block()
        stored = TensorBlock(
            block.values, block.samples, block.components, block.properties
        )
        for name, gradient in block.gradients():
            rows = gradient.samples.values
            names, columns = ["sample"], rows[:, :1]
            if name == "positions":
                names, columns = ["sample", "atom"], rows[:, [0, 2]]
            samples = Labels(names, columns.contiguous())
            parts = (samples, gradient.components, gradient.properties)
            stored.add_gradient(name, TensorBlock(gradient.values, *parts))
        writer.write(
            [sample["system"]], {"energy": TensorMap(sample["energy"].keys, [stored])}
        )
    writer.finish()
    return path


def memory_mapped(path: Path, frames: List[Atoms]) -> Path:
    """The same frames as a folder of arrays in single precision."""
    path.mkdir()
    parts = {
        "x": [a.positions for a in frames],
        "a": [a.numbers for a in frames],
        "c": [a.cell.array for a in frames],
        "e": [[a.info["energy"]] for a in frames],
        "f": [a.arrays["forces"] for a in frames],
        "s": [a.info["stress"] for a in frames],
    }
    for name, arrays in parts.items():
        kind = np.int32 if name == "a" else np.float32
        np.concatenate(arrays).astype(kind).tofile(path / f"{name}.bin")
    np.save(path / "ns.npy", len(frames))
    np.save(path / "na.npy", np.cumsum([0, *map(len, frames)]).astype(np.int64))
    return path
