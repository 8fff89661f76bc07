"""Training that starts from trained weights."""

import logging
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
import torch
from ase import Atoms
from metatomic.torch import ModelOutput
from metatrain.utils.data import read_systems
from metatrain.utils.io import model_from_checkpoint
from metatrain.utils.neighbor_lists import get_system_with_neighbor_lists
from train_helpers import (
    CPU,
    cluster,
    clusters,
    message_of,
    options,
    prepare,
    run_cli,
    write,
)

from dualforce.plugin.patches import _open
from dualforce.training.model import DualForce


F64 = torch.float64
STAY = {"num_epochs": 1, "learning_rate": 1e-30}
"""A training that leaves all weights as they are, but for those that are zero."""
PET = {
    "cutoff": 3.5,
    "cutoff_width": 0.5,
    "d_pet": 8,
    "d_head": 8,
    "d_node": 8,
    "d_feedforward": 8,
    "num_heads": 1,
    "num_attention_layers": 1,
    "num_gnn_layers": 1,
}


def _load(path: Path) -> Dict[str, Any]:
    return torch.load(path, weights_only=False, map_location="cpu")


def _opened(path: Path) -> Any:
    """The model that fine-tuning starts from."""
    return _open(model_from_checkpoint, _load(path), "finetune")


def _energies(model: Any, data: Path) -> np.ndarray:
    """Energies of all frames, from energies of atoms."""
    lists = model.requested_neighbor_lists()
    systems = [
        get_system_with_neighbor_lists(system, lists)
        for system in read_systems(str(data))
    ]
    request = {"energy": ModelOutput(unit="eV", sample_kind="atom")}
    values = model.eval()(systems, request)["energy"].block().values[:, 0]
    sizes = [len(system) for system in systems]
    return np.array([v.sum().item() for v in values.detach().split(sizes)])


def _train_pet(directory: Path, data: Path, targets: Dict[str, Any]) -> Path:
    given = options(data, model=PET)
    given["architecture"]["name"] = "pet"
    given["architecture"]["training"] = {"num_epochs": 1, "batch_size": 2}
    given["training_set"]["targets"].update(targets)
    run_cli(directory, given, output=directory / "pet.pt")
    return directory / "pet.ckpt"


@pytest.fixture(scope="module")
def pet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a PET that metatrain trained on energies, forces and stresses."""
    directory = tmp_path_factory.mktemp("pet")
    return _train_pet(directory, write(directory / "a.xyz", clusters(6)), {})


def test_starts_from_the_best_model_of_a_run(tmp_path: Path) -> None:
    """Weights, baseline and scales are those of the best model; what is new is fitted
    and trained."""
    path = write(tmp_path / "old.xyz", clusters(6))
    run_cli(tmp_path, options(path, {"num_epochs": 4}), output=tmp_path / "old.pt")
    old = _load(tmp_path / "old.ckpt")
    start = _opened(tmp_path / "old.ckpt")
    for name, value in start.state_dict().items():
        assert torch.equal(value, old["best_model_state_dict"][name])

    new = write(tmp_path / "new.xyz", clusters(9)[5:])
    tune: Dict[str, Any] = {"finetune": {"read_from": str(tmp_path / "old.ckpt")}}
    tune |= STAY
    run_cli(tmp_path, options(new, tune), output=tmp_path / "same.pt")
    same = DualForce.load_checkpoint(_load(tmp_path / "same.ckpt"), "export")
    before = DualForce.load_checkpoint(old, "export")
    assert np.array_equal(_energies(same, new), _energies(before, new))

    tune |= {"num_epochs": 2, "learning_rate": None}
    run_cli(tmp_path, options(new, tune), output=tmp_path / "tuned.pt")
    tuned = DualForce.load_checkpoint(_load(tmp_path / "tuned.ckpt"), "export")
    assert np.abs(_energies(tuned, new) - _energies(before, new)).max() > 1e-6


@pytest.mark.parametrize(
    "section",
    [{}, {"backbone": "pet"}, {"backbone": "pet", "pet": dict(PET)}],
    ids=["no section", "backbone", "backbone and hypers"],
)
def test_pet_becomes_the_backbone(section: Any, pet: Path, tmp_path: Path) -> None:
    """Before any step, energies are PET's own; afterwards there are two forces."""
    data = write(tmp_path / "new.xyz", clusters(9)[5:])
    tune = {"finetune": {"read_from": str(pet)}, **STAY}
    given = options(data, tune, section)
    if not section:
        del given["architecture"]["model"]
    run_cli(tmp_path, given, output=tmp_path / "start.pt")
    checkpoint = _load(tmp_path / "start.ckpt")
    source = model_from_checkpoint(_load(pet), "export").to(F64)
    start = DualForce.load_checkpoint(checkpoint, "export")
    assert start.hypers["backbone"] == "pet"
    assert start.hypers["pet"]["d_pet"] == PET["d_pet"]
    expected = _energies(source, data)
    assert np.abs(expected).max() > 10.0
    assert np.abs(_energies(start, data) - expected).max() < 1e-8

    given["architecture"]["training"] |= {"num_epochs": 3, "learning_rate": None}
    run_cli(tmp_path, given, output=tmp_path / "tuned.pt")
    tuned = DualForce.load_checkpoint(_load(tmp_path / "tuned.ckpt"), "export")
    assert "non_conservative_force" in tuned.targets
    assert np.abs(_energies(tuned, data) - expected).max() > 1e-9


def test_new_heads_of_pet_are_untrained_and_scaled(pet: Path, tmp_path: Path) -> None:
    """Their scale is that of the new labels."""
    data = write(tmp_path / "new.xyz", clusters(6))
    model = _opened(pet)
    assert model.fitted == ["energy"]
    inherited = model.calibrations["energy"].scale.clone()
    fresh, trainer, dataset = prepare(options(data, STAY))
    model.restart(fresh.dataset_info)
    trainer.train(model, F64, CPU, [dataset], [dataset], str(tmp_path))
    forces = np.concatenate([atoms.arrays["forces"] for atoms in clusters(6)])
    rms = float(np.sqrt(np.mean(forces**2)))
    scale = model.calibrations["non_conservative_force"].scale
    assert scale.tolist() == pytest.approx([rms, rms], rel=1e-6)
    assert torch.equal(model.calibrations["energy"].scale, inherited)


def test_direct_head_of_pet_is_kept(tmp_path: Path) -> None:
    """PET with a direct force of its own brings its head along."""
    data = write(tmp_path / "a.xyz", clusters(6))
    direct = {
        "non_conservative_force": {
            "key": "forces",
            "sample_kind": "atom",
            "type": {"cartesian": {"rank": 1}},
            "unit": "eV/angstrom",
        }
    }
    checkpoint = _train_pet(tmp_path, data, direct)
    model = _opened(checkpoint)
    assert sorted(model.fitted) == ["energy", "non_conservative_force"]
    own = model_from_checkpoint(_load(checkpoint), "export").state_dict()
    inner = model.backbone.model.state_dict()
    heads = [name for name in inner if "non_conservative_force" in name]
    assert heads
    assert all(torch.equal(inner[name], own[name]) for name in heads)


def test_variants_of_pet(tmp_path: Path) -> None:
    """Data for one variant train its energy and its direct force; the others stay, and
    get no heads."""
    data = write(tmp_path / "a.xyz", clusters(6))
    given = options(data, model=PET)
    given["architecture"]["name"] = "pet"
    given["architecture"]["training"] = {"num_epochs": 1, "batch_size": 2}
    energy = given["training_set"]["targets"].pop("energy")
    energy |= {"key": "energy", "forces": {"key": "forces"}}
    direct = {
        "key": "forces",
        "sample_kind": "atom",
        "type": {"cartesian": {"rank": 1}},
        "unit": "eV/angstrom",
    }
    given["training_set"]["targets"] = {
        f"{name}/{variant}": target
        for variant in "ab"
        for name, target in (("energy", energy), ("non_conservative_force", direct))
    }
    run_cli(tmp_path, given, output=tmp_path / "pet.pt")
    tune = {"finetune": {"read_from": str(tmp_path / "pet.ckpt")}, "num_epochs": 2}
    given = options(data, tune)
    del given["architecture"]["model"]
    given["training_set"]["targets"] = {"energy/a": energy}
    run_cli(tmp_path, given, output=tmp_path / "tuned.pt")
    start = _opened(tmp_path / "pet.ckpt").backbone.model.state_dict()
    tuned = DualForce.load_checkpoint(_load(tmp_path / "tuned.ckpt"), "export")
    assert {name for name in tuned.targets if name.endswith("b")} == {
        "energy/b",
        "non_conservative_force/b",
    }
    changed = {
        part
        for name, values in tuned.backbone.model.state_dict().items()
        for part in ("energy/a", "energy/b", "force/a", "force/b")
        if f"{part}." in name and not torch.equal(values, start[name].to(values))
    }
    assert changed == {"energy/a", "force/a"}


def test_direct_head_in_another_unit(tmp_path: Path) -> None:
    """Forces of an energy in eV do not train a head that predicts in other units."""
    data = write(tmp_path / "a.xyz", clusters(6))
    given = options(data, model=PET)
    direct = {
        "key": "forces",
        "sample_kind": "atom",
        "type": {"cartesian": {"rank": 1}},
        "unit": "kcal/mol/angstrom",
    }
    given["training_set"]["targets"]["energy"]["unit"] = "eV"
    given["training_set"]["targets"]["non_conservative_force"] = direct
    given["architecture"] |= {
        "name": "pet",
        "training": {"num_epochs": 1, "batch_size": 2},
    }
    run_cli(tmp_path, given, output=tmp_path / "pet.pt")
    given = options(data, {"finetune": {"read_from": str(tmp_path / "pet.ckpt")}})
    given["training_set"]["targets"]["energy"]["unit"] = "eV"
    del given["architecture"]["model"]
    message = message_of(lambda: run_cli(tmp_path, given, output=tmp_path / "new.pt"))
    assert "predicts 'non_conservative_force' in kcal/mol/angstrom, and" in message


def test_data_with_new_types_are_refused(pet: Path, tmp_path: Path) -> None:
    """A network knows the types it was made for."""
    frames = clusters(4)
    frames[1].numbers[0] = 16
    data = write(tmp_path / "new.xyz", frames)
    tune = {"finetune": {"read_from": str(pet)}}
    message = message_of(lambda: run_cli(tmp_path, options(data, tune, {})))
    assert "the data contain atomic types [16], the model knows [1, 8]" in message


def test_another_network_than_that_of_the_checkpoint(pet: Path, tmp_path: Path) -> None:
    """The checkpoint decides what the backbone is."""
    data = write(tmp_path / "new.xyz", clusters(4))
    given = options(data, {"finetune": {"read_from": str(pet)}}, {"backbone": "painn"})
    message = message_of(lambda: run_cli(tmp_path, given))
    assert "Mismatched hypers: ['backbone']" in message


# ----------------------------------------------------------------- the zero of energy


def _springs(number: int, first_seed: int = 0) -> List[Atoms]:
    """Two, or three, molecules of water, one of them without a hydrogen now and then,
    with springs for bonds: pairs and baseline predict their energies."""
    frames = []
    for index in range(number):
        atoms = cluster(first_seed + index, n_molecules=2 + index % 2)
        if index % 3 == 0:
            del atoms[-1]
        energy, forces = 0.0, np.zeros((len(atoms), 3))
        for i in np.flatnonzero(atoms.numbers == 1):
            j = int(i - 1 - (atoms.numbers[i - 1] == 1))
            bond = atoms.positions[i] - atoms.positions[j]
            length = float(np.linalg.norm(bond))
            energy += 0.5 * 30.0 * (length - 0.96) ** 2
            pull = 30.0 * (length - 0.96) * bond / length
            forces[i] -= pull
            forces[j] += pull
        counts = [(atoms.numbers == number).sum() for number in (1, 8)]
        atoms.info = {"energy": energy + float(np.dot(counts, [-13.6, -2041.0]))}
        atoms.arrays["forces"] = forces
        frames.append(atoms)
    return frames


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a model that predicts the energies of springs."""
    directory = tmp_path_factory.mktemp("trained")
    path = write(directory / "a.xyz", _springs(40))
    run_cli(directory, options(path, STAY), output=directory / "a.pt")
    return directory / "a.ckpt"


def _shifted(frames: List[Atoms], hydrogen: float, oxygen: float) -> List[Atoms]:
    for atoms in frames:
        n_hydrogen = int((atoms.numbers == 1).sum())
        n_oxygen = int((atoms.numbers == 8).sum())
        atoms.info["energy"] += hydrogen * n_hydrogen + oxygen * n_oxygen
    return frames


def _start(checkpoint: Path, data: Path, directory: Path, **others: Any) -> Any:
    """The model that fine-tuning would train."""
    tune = {"finetune": {"read_from": str(checkpoint)}, **STAY, **others}
    given = options(data, tune, validation_set=options(data)["training_set"])
    run_cli(directory, given, output=directory / "start.pt")
    return DualForce.load_checkpoint(_load(directory / "start.ckpt"), "export")


@pytest.mark.parametrize(
    "hydrogen, oxygen", [(0.7, -1900.0), (-0.1, 0.5)], ids=["another code", "mild"]
)
def test_baseline_moves_to_another_zero_of_energy(
    hydrogen: float,
    oxygen: float,
    trained: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without any training, by least squares of what the model gets wrong."""
    frames = _shifted(_springs(20, first_seed=100), hydrogen, oxygen)
    data = write(tmp_path / "new.xyz", frames)
    before = DualForce.load_checkpoint(_load(trained), "export")
    sizes = np.array([len(atoms) for atoms in frames])
    labels = np.array([atoms.info["energy"] for atoms in frames])
    counts = np.array([[(a.numbers == z).sum() for z in (1, 8)] for a in frames])
    wrong = labels - _energies(before, data)
    expected = np.linalg.lstsq(counts / sizes[:, None], wrong / sizes, rcond=None)[0]
    assert expected == pytest.approx([hydrogen, oxygen], abs=0.05)

    start = _start(trained, data, tmp_path)
    baselines = [m.calibrations["energy"].baseline[:, 0] for m in (before, start)]
    assert (baselines[1] - baselines[0]).numpy() == pytest.approx(expected, abs=1e-8)
    errors = np.abs(labels - _energies(start, data)) / sizes
    assert errors.mean() < 0.004 < 0.03 < np.abs(wrong / sizes).mean()
    assert "have another zero of energy than the checkpoint" in caplog.text


def test_baseline_is_kept_where_the_data_agree(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bitwise, and the log says so."""
    data = write(tmp_path / "new.xyz", _springs(20, first_seed=100))
    before = DualForce.load_checkpoint(_load(trained), "export")
    with caplog.at_level(logging.INFO):
        start = _start(trained, data, tmp_path)
    baselines = [m.calibrations["energy"].baseline for m in (before, start)]
    assert torch.equal(*baselines)
    assert "The baseline of the checkpoint is kept: 'energy' is off by" in caplog.text


def test_given_baseline_is_refused_for_a_known_energy(
    trained: Path, tmp_path: Path
) -> None:
    """It would have no effect, or a wrong one."""
    data = write(tmp_path / "a.xyz", _springs(8))
    baseline = {"energy": {1: -13.6, 8: -2041.0}}
    message = message_of(
        lambda: _start(trained, data, tmp_path, atomic_baseline=baseline)
    )
    assert "`atomic_baseline` gives energies of atoms for 'energy', which" in message
    assert "Leave `atomic_baseline` out" in message


def test_frozen_energy_keeps_its_baseline(tmp_path: Path) -> None:
    """With `train: direct_head` the energy stays bitwise identical, whatever the data
    say about energies."""
    path = write(tmp_path / "a.xyz", clusters(6))
    run_cli(tmp_path, options(path), output=tmp_path / "a.pt")
    new = write(tmp_path / "new.xyz", _shifted(clusters(6), 0.7, -19.0))
    finetune = {"read_from": str(tmp_path / "a.ckpt"), "train": "direct_head"}
    given = options(new, {"finetune": finetune})
    run_cli(tmp_path, given, output=tmp_path / "b.pt")
    models = [
        DualForce.load_checkpoint(_load(tmp_path / f"{name}.ckpt"), "export")
        for name in "ab"
    ]
    assert torch.equal(*(m.calibrations["energy"].baseline for m in models))
    assert np.array_equal(*(_energies(model, path) for model in models))
