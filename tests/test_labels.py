"""Data sets as people have them: wrong, incomplete, or in other conventions."""

import logging
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from train_helpers import (
    clusters,
    message_of,
    options,
    prepare,
    run_cli,
    train,
    write,
)

from dualforce.training.data import collate, make_frames


Change = Callable[[Atoms], None]


def _write_with(path: Path, change: Change, index: int = 3) -> Path:
    frames = clusters(6)
    change(frames[index])
    return write(path / "water.xyz", frames)


def _set_energy(value: Any) -> Change:
    return lambda atoms: atoms.info.update(energy=value)


def _set_force(value: float) -> Change:
    def change(atoms: Atoms) -> None:
        atoms.arrays["forces"][1, 2] = value

    return change


def _flatten_forces(atoms: Atoms) -> None:
    atoms.arrays["forces"] = atoms.arrays["forces"][:, :2].copy()


def _remove_cell(atoms: Atoms) -> None:
    atoms.cell[:] = 0.0
    atoms.pbc = False


def _duplicate_atom(atoms: Atoms) -> None:
    atoms.positions[3] = atoms.positions[0]


WRONG = [
    (_set_energy(float("nan")), "'energy' is NaN or infinite"),
    (_set_energy("unknown"), "'energy' is 'unknown', not numbers"),
    (lambda atoms: atoms.info.pop("energy"), "no energy under the key 'energy'"),
    (_set_force(np.inf), "'forces' is NaN or infinite at index [1, 2]"),
    (_set_force(np.nan), "'forces' is NaN or infinite at index [1, 2]"),
    (_flatten_forces, "the forces 'forces' have shape [6, 2], they must have [6, 3]"),
    (_remove_cell, "it has a stress or virial 'stress' but no cell"),
    (_duplicate_atom, "atoms 0 and 3 are at the same place"),
]


@pytest.mark.parametrize("change, expected", WRONG)
def test_wrong_frame_is_named(change: Change, expected: str, tmp_path: Path) -> None:
    """Nothing is trained, and the message says where to look."""
    path = _write_with(tmp_path, change)
    message = message_of(lambda: run_cli(tmp_path, options(path)))
    assert f"file '{path}', frame 3 (counted from 0)" in message
    assert expected in message
    assert not (tmp_path / "checkpoint.ckpt").exists()


def test_stress_of_wrong_shape(tmp_path: Path) -> None:
    """Three by three, nine or six numbers, and no others."""
    path = _write_with(tmp_path, lambda atoms: atoms.info.update(tension=np.ones(4)))
    given = options(path, energy={"stress": {"key": "tension"}})
    message = message_of(lambda: run_cli(tmp_path, given))
    assert "frame 3 (counted from 0): 'tension' has shape [4]" in message


@pytest.mark.parametrize(
    "section, proposal",
    [
        ({"key": "enrgy"}, "under the key 'enrgy'. Did you mean 'energy'?"),
        ({"forces": {"key": "force"}}, "'force' for forces. Did you mean 'forces'?"),
        ({"stress": {"key": "stres"}}, "'stres' for stresses. Did you mean 'stress'?"),
        ({"virial": True}, "no frame has the key 'virial' for virials."),
    ],
)
def test_misspelt_key(section: Any, proposal: str, tmp_path: Path) -> None:
    """The nearest key that the file has is proposed."""
    path = write(tmp_path / "water.xyz", clusters(4))
    message = message_of(lambda: run_cli(tmp_path, options(path, energy=section)))
    assert proposal in message
    assert str(path) in message


def test_data_without_forces_need_an_option(tmp_path: Path) -> None:
    """And train on energies once it is given."""
    frames = clusters(4)
    for atoms in frames:
        del atoms.arrays["forces"], atoms.info["stress"]
    path = write(tmp_path / "water.xyz", frames)
    message = message_of(lambda: run_cli(tmp_path, options(path)))
    assert "`forces: off`" in message

    _, trainer = train(options(path, energy={"forces": False}), tmp_path)
    assert [term.name for term in trainer.terms] == ["energy"]
    assert np.isfinite(trainer.progress.best_metric)


def test_extreme_frames_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of both sets; never most of them."""
    path = _write_with(tmp_path, _set_force(900.0))
    _, trainer = train(options(path), tmp_path)
    assert len(trainer.train_frames) == len(trainer.val_frames) == 5
    warnings = [r.message for r in caplog.records if "max_force" in r.message]
    assert [line.split(" set")[0] for line in warnings] == ["training", "validation"]
    assert "frame 3 (counted from 0): a force of 900 eV/angstrom" in warnings[0]

    given = options(path, {"max_force": 1e-3})
    assert "6 of 6 frames of the training set" in message_of(
        lambda: train(given, tmp_path)
    )


def test_names_tell_file_and_frame_of_a_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The frame of the file, not its place in the split."""
    path = _write_with(tmp_path, _set_force(900.0))
    (tmp_path / "train.txt").write_text("5\n3\n1\n0\n")
    (tmp_path / "val.txt").write_text("2\n")
    given = options(path, validation_set={"indices": str(tmp_path / "val.txt")})
    given["training_set"]["indices"] = str(tmp_path / "train.txt")
    with caplog.at_level(logging.WARNING):
        run_cli(tmp_path, given)
    assert f"training set, file '{path}', frame 3 (counted from 0)" in caplog.text


def test_partial_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Labels that are there are used, and go to the right rows of a batch."""
    frames = clusters(5)
    del frames[1].arrays["forces"], frames[4].arrays["forces"]
    del frames[2].info["stress"]
    path = write(tmp_path / "water.xyz", frames)
    model, trainer, dataset = prepare(options(path))
    read = make_frames([dataset], "training", model, False)
    assert "2 of 5 frames have no forces under 'forces' (frames 1, 4)" in caplog.text
    assert "1 of 5 frames have no stresses under 'stress' (frames 2)" in caplog.text

    forces, stress = "energy_positions_gradients", "energy_strain_gradients"
    assert [i for i, frame in enumerate(read) if forces in frame.labels] == [0, 2, 3]
    assert [i for i, f in enumerate(read) if stress in f.labels] == [0, 1, 3, 4]
    batch = collate(read[:3], model.per_atom(), torch.float64, torch.device("cpu"))
    assert batch.rows[forces].tolist() == [*range(6), *range(12, 18)]
    assert batch.rows[stress].tolist() == [0, 1]
    assert "energy" not in batch.rows
    expected = np.concatenate([frames[0].arrays["forces"], frames[2].arrays["forces"]])
    assert np.allclose(batch.labels[forces][:, :, 0], expected, atol=1e-7)
    trainer.train(
        model, torch.float64, [torch.device("cpu")], [dataset], [dataset], str(tmp_path)
    )
    assert np.isfinite(trainer.progress.best_metric)


def test_calculator_results_and_virial(tmp_path: Path) -> None:
    """The same labels from a calculator, from a virial and from a Voigt stress."""
    by_info, by_calculator, by_virial, by_voigt = (clusters(2) for _ in range(4))
    for atoms in by_calculator:
        stress = atoms.info.pop("stress")
        voigt = stress.reshape(-1)[[0, 4, 8, 5, 2, 1]]
        energy, forces = atoms.info.pop("energy"), atoms.arrays.pop("forces")
        atoms.calc = SinglePointCalculator(
            atoms, energy=energy, forces=forces, stress=voigt
        )
    for atoms in by_virial:
        atoms.info["virial"] = -atoms.info.pop("stress") * atoms.cell.volume
    for atoms in by_voigt:
        atoms.info["tension"] = atoms.info.pop("stress").reshape(-1)[[0, 4, 8, 5, 2, 1]]
    labels = []
    for name, frames, energy in (
        ("info", by_info, {}),
        ("calculator", by_calculator, {}),
        ("virial", by_virial, {"virial": True}),
        ("voigt", by_voigt, {"stress": {"key": "tension"}}),
    ):
        path = write(tmp_path / f"{name}.xyz", frames)
        model, _, dataset = prepare(options(path, energy=energy))
        labels.append(make_frames([dataset], "training", model, False)[1].labels)
    for other in labels[1:]:
        assert other.keys() == labels[0].keys()
        for key, values in labels[0].items():
            torch.testing.assert_close(other[key], values, rtol=0, atol=1e-6)


def test_gradients_from_another_file_must_match(tmp_path: Path) -> None:
    """Forces may lie in a file of their own."""
    path = write(tmp_path / "energies.xyz", clusters(4))
    other = write(tmp_path / "forces.xyz", clusters(3))
    given = options(path, energy={"forces": {"read_from": str(other)}})
    message = message_of(lambda: run_cli(tmp_path, given))
    assert str(path) in message and str(other) in message
    assert "differ in the number of frames" in message


def test_changed_file_is_read_again(tmp_path: Path) -> None:
    """Files read are kept in memory as long as they stay as they are."""
    path = write(tmp_path / "water.xyz", clusters(2))
    first = prepare(options(path))[2][0]["energy"].block().values.item()
    write(path, clusters(3)[1:])
    second = prepare(options(path))[2][0]["energy"].block().values.item()
    assert first == pytest.approx(clusters(1)[0].info["energy"])
    assert second == pytest.approx(clusters(2)[1].info["energy"])
