"""What is used of the data, what is not, and data that cannot be used: before a run
starts, with file and frame."""

import logging
from pathlib import Path
from typing import Any, Callable, Dict, List

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from train_helpers import (
    clusters,
    message_of,
    on_disk,
    options,
    prepare,
    run_cli,
    train,
    write,
)

from dualforce.training.data import make_frames


FORCES, VIRIAL = "energy_positions_gradients", "energy_strain_gradients"


# ------------------------------------------------------------------- used and not used


def test_what_is_used_of_a_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line for each file names keys that are used, missing and not used."""
    frames = clusters(4)
    for index, atoms in enumerate(frames):
        atoms.arrays["charges"] = np.ones(len(atoms))
        atoms.info["dipole"] = np.ones(3)
        if index:
            del atoms.info["stress"]
    path = write(tmp_path / "water.xyz", frames)
    with caplog.at_level(logging.INFO):
        prepare(options(path))
    (line,) = [r.message for r in caplog.records if r.message.startswith("File ")]
    assert line == (
        f"File '{path}', 4 frames: used 'energy' (energy), 'forces' (forces of "
        "energy), 'stress' (stress of energy) in 1; not used 'charges', 'dipole'"
    )


@pytest.mark.parametrize("key", ["virial", "REF_stress", "dft_virials"])
def test_stresses_under_another_key(key: str, tmp_path: Path) -> None:
    """Nobody loses them without a word; each proposal does what it says."""
    frames = clusters(4)
    for atoms in frames:
        stress = atoms.info.pop("stress")
        is_virial = "virial" in key
        atoms.info[key] = -stress * atoms.cell.volume if is_virial else stress
    path = write(tmp_path / "water.xyz", frames)
    message = message_of(lambda: run_cli(tmp_path, options(path)))
    assert f"file '{path}': no frame has the key 'stress' for stresses" in message
    assert f"Did you mean '{key}'?" in message

    proposal: Dict[str, Any] = {"stress": {"key": key}}
    if is_virial:
        proposal = {"stress": False, "virial": {"key": key}}
    for section, count in ((proposal, 4), ({"stress": False}, 0)):
        model, _, dataset = prepare(options(path, energy=section))
        made = make_frames([dataset], "training", model, False)
        virials = [f.labels[VIRIAL] for f in made if VIRIAL in f.labels]
        assert len(virials) == count
        for found, atoms in zip(virials, clusters(4), strict=False):
            expected = atoms.info["stress"] * atoms.cell.volume
            assert found.numpy().reshape(3, 3) == pytest.approx(expected, rel=1e-6)


def test_only_a_free_energy(tmp_path: Path) -> None:
    """It is proposed, and can be used."""
    frames = clusters(4)
    for atoms in frames:
        energy = atoms.info.pop("energy")
        results = {"free_energy": energy, "forces": atoms.arrays.pop("forces")}
        atoms.info.clear()
        atoms.calc = SinglePointCalculator(atoms, **results)
    path = tmp_path / "water.xyz"
    ase.io.write(path, frames, format="extxyz")
    message = message_of(lambda: run_cli(tmp_path, options(path)))
    assert "no energy under the key 'energy'. Did you mean 'free_energy'?" in message
    model, _, dataset = prepare(options(path, energy={"key": "free_energy"}))
    made = make_frames([dataset], "training", model, False)
    energies = [float(frame.labels["energy"]) for frame in made]
    assert energies == pytest.approx([a.info["energy"] for a in clusters(4)])


def test_labels_of_one_split_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is not measured, and what is not learnt, is said."""
    path = write(tmp_path / "train.xyz", clusters(4))
    frames = clusters(8)[4:]
    for atoms in frames:
        del atoms.info["stress"]
    other = write(tmp_path / "val.xyz", frames)
    run_cli(tmp_path, options(path, validation_set=options(other)["training_set"]))
    assert f"No frame of the validation set has a label '{VIRIAL}'" in caplog.text


def test_frames_without_labels_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are not used."""
    frames = clusters(4)
    frames[2].arrays["forces"] = np.full((6, 3), np.nan)
    path = write(tmp_path / "water.xyz", frames)
    given = options(path)
    given["training_set"]["targets"] = {
        "non_conservative_force": {
            "key": "forces",
            "sample_kind": "atom",
            "type": {"cartesian": {"rank": 1}},
            "unit": "eV/angstrom",
        }
    }
    model, _, dataset = prepare(given)
    assert len(make_frames([dataset], "training", model, False)) == 3
    assert "1 of 4 frames of the training set have no label and are not" in caplog.text
    assert "the first is training set, file" in caplog.text


# ----------------------------------------------------------------------------- readers


@pytest.mark.parametrize("name", ["water.traj", "water.db"])
def test_reader_of_the_structures_reads_their_targets(
    name: str, tmp_path: Path
) -> None:
    """`reader: ase` need not be repeated for the same file."""
    frames = clusters(4)
    for atoms in frames:
        results = {
            "energy": atoms.info["energy"],
            "forces": atoms.arrays.pop("forces"),
            "stress": atoms.info["stress"].reshape(-1)[[0, 4, 8, 5, 2, 1]],
        }
        atoms.info.clear()
        atoms.calc = SinglePointCalculator(atoms, **results)
    path = tmp_path / name
    ase.io.write(path, frames)
    given = options(path)
    given["training_set"]["systems"]["reader"] = "ase"
    model, _, dataset = prepare(given)
    made = make_frames([dataset], "training", model, False)
    assert [sorted(frame.labels) for frame in made] == 4 * [
        [
            "energy",
            FORCES,
            VIRIAL,
            "non_conservative_force",
            "non_conservative_stress",
        ]
    ]


def test_section_without_a_reader_is_named(tmp_path: Path) -> None:
    """Where another file holds the labels."""
    path = write(tmp_path / "water.xyz", clusters(4))
    given = options(path, energy={"read_from": str(tmp_path / "labels.traj")})
    message = message_of(lambda: run_cli(tmp_path, given))
    assert "labels.traj' of 'energy' has no reader: add `reader: ase` to the" in message


# -------------------------------------------------------------------------- structures


def _no_atoms(frames: List[Atoms]) -> None:
    empty = Atoms(cell=[5.0, 5.0, 5.0], pbc=True)
    empty.info["energy"] = 0.0
    frames[2] = empty


def _nan_position(frames: List[Atoms]) -> None:
    frames[2].positions[1, 0] = np.nan


def _no_cell(frames: List[Atoms]) -> None:
    frames[2].cell[:] = 0.0
    del frames[2].info["stress"]


def _flat_cell(frames: List[Atoms]) -> None:
    frames[2].cell[2] = frames[2].cell[0] + frames[2].cell[1]
    del frames[2].info["stress"]


def _ghost(frames: List[Atoms]) -> None:
    frames[2].numbers[3] = 0


@pytest.mark.parametrize(
    "change, expected",
    [
        (_no_atoms, "it has no atoms; remove the frame"),
        (_nan_position, "the position of atom 1 (counted from 0) is NaN or infinite"),
        (_no_cell, "it is periodic (pbc 'T T T'), but its cell vectors"),
        (_flat_cell, "span no cell along these directions; give the frame its cell"),
        (_ghost, "atom 3 (counted from 0) has the atomic number 0, which is no"),
    ],
)
def test_structures_that_cannot_be_used(
    change: Callable[[List[Atoms]], None], expected: str, tmp_path: Path
) -> None:
    """They are refused with file and frame."""
    frames = clusters(4)
    change(frames)
    path = tmp_path / "water.traj"
    for atoms in frames:
        info, forces = dict(atoms.info), atoms.arrays.pop("forces", None)
        results = {"energy": info["energy"], "forces": forces}
        if "stress" in info:
            results["stress"] = info["stress"].reshape(-1)[[0, 4, 8, 5, 2, 1]]
        atoms.info.clear()
        atoms.calc = SinglePointCalculator(
            atoms, **{key: value for key, value in results.items() if value is not None}
        )
    ase.io.write(path, frames)
    given = options(path)
    given["training_set"]["systems"]["reader"] = "ase"
    message = message_of(lambda: run_cli(tmp_path, given))
    assert f"file '{path}', frame 2 (counted from 0): " in message
    assert expected in message


def test_cutoff_against_the_unit_of_length(tmp_path: Path) -> None:
    """It is checked before data are read."""
    path = tmp_path / "not there.xyz"
    for cutoff, unit in ((0.5, "angstrom"), (4.5, "nm")):
        given = options(path, model={"painn": {"cutoff": cutoff}})
        given["training_set"]["systems"]["length_unit"] = unit
        message = message_of(lambda given=given: run_cli(tmp_path, given))
        assert f"`model.painn.cutoff` is {cutoff} {unit} (" in message
        assert "it must be at least 1 and at most 30 Å" in message


# -------------------------------------------------------------------- data sets on disk


@pytest.mark.parametrize(
    "section, expected",
    [
        ({}, {"energy", FORCES, VIRIAL}),
        ({"forces": False}, {"energy", VIRIAL}),
        ({"stress": False}, {"energy", FORCES}),
        ({"forces": False, "stress": False}, {"energy"}),
    ],
)
def test_options_act_on_data_setson_disk(
    section: Any, expected: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Gradients that are stored and turned off are not learnt, and that is said."""
    path = on_disk(tmp_path / "water.zip", clusters(4))
    caplog.clear()
    with caplog.at_level(logging.INFO):
        model, _, dataset = prepare(options(path, energy=section))
    made = make_frames([dataset], "training", model, False)
    for frame in made:
        assert {n for n in frame.labels if not n.startswith("non_c")} == expected
    assert ("the forces of 'energy' in it are not used" in caplog.text) == (
        FORCES not in expected
    )
    direct = {"non_conservative_force": FORCES, "non_conservative_stress": VIRIAL}
    assert {name for name in model.targets if name in direct} == {
        name for name, source in direct.items() if source in expected
    }


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_data_sets_with_and_without_forces(order: List[int], tmp_path: Path) -> None:
    """What one of them has is learnt, whichever comes last."""
    paths = [
        write(tmp_path / "with.xyz", clusters(4)),
        write(tmp_path / "without.xyz", clusters(8)[4:]),
    ]
    sections = [
        options(paths[0])["training_set"],
        options(paths[1], energy={"forces": False, "stress": False})["training_set"],
    ]
    given = options(paths[0], training_set=[sections[i] for i in order])
    given["final_eval"] = True
    run_cli(tmp_path, given, output=tmp_path / "model.pt")
    checkpoint = torch.load(tmp_path / "model.ckpt", weights_only=False)
    targets = checkpoint["model_data"]["dataset_info"].targets
    assert targets["energy"].gradients == ["positions", "strain"]
    assert any(
        "non_conservative_force" in name for name in checkpoint["model_state_dict"]
    )


def test_training_on_part_of_the_labels(tmp_path: Path) -> None:
    """A data set on disk trains like the file it was made of."""
    weights = []
    for path in (
        on_disk(tmp_path / "water.zip", clusters(4)),
        tmp_path / "water.xyz",
    ):
        model, _ = train(options(path, energy={"stress": False}), tmp_path)
        weights.append(torch.cat([p.reshape(-1) for p in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=0.0, atol=1e-12)
