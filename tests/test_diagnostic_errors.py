"""Forces as predicted, their errors, and the symmetries they break."""

from pathlib import Path
from typing import Any, List, Tuple

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from helpers import energy_info, make_model, random_cell
from metatomic_ase import MetatomicCalculator
from potentials import Analytic

from dualforce.diagnostics.derivatives import predicted
from dualforce.diagnostics.measures.errors import (
    energy_errors,
    evaluate_frames,
    force_differences,
    force_errors,
)
from dualforce.diagnostics.measures.symmetries import broken_symmetries
from dualforce.forces import CalculatorForces, Evaluation, Kind, load_forces


C: Kind = "conservative"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported models of several kinds."""
    path = tmp_path_factory.mktemp("models")
    make_model("pet").export().save(str(path / "hybrid.pt"))
    make_model(forces="conservative").export().save(str(path / "conservative.pt"))
    variants = energy_info(("energy/a", "energy/b"))
    make_model(info=variants).export().save(str(path / "variants.pt"))
    return path


@pytest.fixture(autouse=True)
def no_compilation() -> Any:
    """Compiling takes longer than running."""
    with torch.jit.optimized_execution(False):
        yield


# ------------------------------------------------------------------ forces as predicted


def test_predicted_forces(folder: Path) -> None:
    """They are those of metatomic, with the net force that evaluations leave out."""
    path, atoms = str(folder / "hybrid.pt"), random_cell(8, 5.0)
    source = load_forces(path)
    atoms.calc = MetatomicCalculator(path)
    conservative = predicted(source, "conservative", atoms)
    assert conservative.energy == pytest.approx(atoms.get_potential_energy())
    np.testing.assert_allclose(conservative.forces, atoms.get_forces(), atol=1e-9)
    calculator = MetatomicCalculator(path, non_conservative=True)
    name = "non_conservative_force"
    output = calculator._model.capabilities().outputs[name]
    blocks = calculator.run_model(atoms, {name: output})[name]
    expected = blocks.block().values.reshape(-1, 3).numpy()
    direct = predicted(source, "direct", atoms)
    assert direct.energy is None
    np.testing.assert_allclose(direct.forces, expected, atol=1e-9)
    assert np.abs(direct.forces.mean(0)).max() > 1e-6
    _, differentiable = source.differentiable("direct", atoms)
    np.testing.assert_allclose(differentiable.detach(), expected, atol=1e-9)
    shares = atoms.get_masses()[:, None] / atoms.get_masses().sum()
    removed = expected - shares * expected.sum(0)
    np.testing.assert_allclose(source.direct(atoms).forces, removed, atol=1e-9)


def test_variants_are_different_models(folder: Path) -> None:
    """And their results are not mixed up."""
    path, atoms = str(folder / "variants.pt"), random_cell(6, 5.0)
    sources = [load_forces(path, variant=name) for name in "ab"]
    assert sources[0].digest != sources[1].digest
    for kind in sources[0].kinds:
        first, second = (predicted(each, kind, atoms).forces for each in sources)
        assert np.abs(first - second).max() > 1e-6
    with pytest.raises(ValueError, match="variant"):
        load_forces(path, variant="c")


# ------------------------------------------------------------------------------- errors


class Wind(Analytic):
    """A force that is the same for all atoms, wherever they are, and a swirl around the
    vertical."""

    implemented_properties = ["forces"]

    def __init__(self, strength: float, swirl: float = 0.0) -> None:
        super().__init__()
        self.strength, self.swirl = strength, swirl

    def evaluate(self, atoms: Atoms) -> Tuple[float, Any, Any]:
        """Energy, forces and stress."""
        forces = np.zeros((len(atoms), 3))
        forces[:, 0] = self.strength
        arms = atoms.positions - atoms.positions.mean(0)
        forces += self.swirl * np.cross([0.0, 0.0, 1.0], arms)
        return 0.0, forces, None


def labelled() -> list[Atoms]:
    """Three molecules with labels, one without."""
    frames = []
    for index, name in enumerate(["H2O", "CH4", "NH3", "CO2"]):
        atoms = molecule(name)
        if index != 2:
            forces = np.full((len(atoms), 3), 0.1 * (index + 1))
            energy = -2.0 * len(atoms) * (index + 1)
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        frames.append(atoms)
    return frames


def test_errors_against_labels(tmp_path: Path) -> None:
    """By hand, as read from a file, without the frame that has no labels."""
    ase.io.write(tmp_path / "labelled.xyz", labelled(), format="extxyz")
    frames = ase.io.read(tmp_path / "labelled.xyz", ":")
    zero = [Evaluation(np.zeros((len(atoms), 3)), 0.0) for atoms in frames]
    result = force_errors("direct", frames, zero)
    sizes = np.repeat([0.1, 0.2, 0.4], [3, 5, 3])
    assert result is not None and result.n_frames == 3
    assert result.kind == "direct" and result.reference == "labels"
    assert result.mae == pytest.approx(sizes.mean())
    assert result.rmse == pytest.approx(np.sqrt((sizes**2).mean()))
    assert result.per_element == pytest.approx(
        {"C": 0.3, "H": (2 * 0.1 + 4 * 0.2) / 6, "O": (0.1 + 2 * 0.4) / 3}
    )
    energies = energy_errors(frames, zero)
    assert energies is not None and energies.n_frames == 3
    assert energies.mae == pytest.approx(np.mean([2.0, 4.0, 8.0]))
    assert energies.rmse == pytest.approx(np.sqrt(np.mean([4.0, 16.0, 64.0])))
    assert energies.scatter == pytest.approx(np.std([2.0, 4.0, 8.0]))
    # Three compositions explain three energies.
    assert energies.spread is None


def test_spread_of_energies() -> None:
    """Is what the composition does not explain."""
    rng, frames = np.random.default_rng(0), []
    for index in range(40):
        atoms = molecule(("H2O", "CH4")[index % 2])
        energy = (-2.0 - 3.0 * (index % 2) + rng.normal(0.0, 0.05)) * len(atoms)
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
        frames.append(atoms)
    zero = [Evaluation(np.zeros((len(atoms), 3)), 0.0) for atoms in frames]
    energies = energy_errors(frames, zero)
    assert energies is not None and energies.spread is not None
    assert energies.spread == pytest.approx(0.05, rel=0.3)
    assert energies.scatter == pytest.approx(1.5, rel=0.05)


def test_no_labels() -> None:
    """Nothing, instead of numbers."""
    frames = [molecule("H2O")]
    zero = [Evaluation(np.zeros((3, 3)), 0.0)]
    assert force_errors("direct", frames, zero) is None
    assert energy_errors(frames, zero) is None
    labels = labelled()[:1]
    assert energy_errors(labels, [Evaluation(np.zeros((3, 3)))]) is None


def test_bad_labels() -> None:
    """Are refused with the frame."""
    frames = labelled()[:2]
    zero = [Evaluation(np.zeros((len(atoms), 3)), 0.0) for atoms in frames]
    frames[1].calc.results["forces"][2, 1] = np.nan
    with pytest.raises(ValueError, match="frame 1 .*: the forces must be finite"):
        force_errors("direct", frames, zero)
    frames[0].calc.results["energy"] = np.inf
    with pytest.raises(ValueError, match="frame 0 .*: the energy is inf"):
        energy_errors(frames, zero)


def test_one_force_against_another() -> None:
    """Symmetric in both."""
    frames = labelled()[:2]
    winds = [
        evaluate_frames(CalculatorForces(Wind(strength), "wind"), C, frames)
        for strength in (0.3, 0.9)
    ]
    result = force_differences("direct", "conservative", frames, *winds)
    assert result is not None and result.reference == "conservative"
    assert result.mae == pytest.approx(0.2)
    assert result.rmse == pytest.approx(0.6 / np.sqrt(3))
    assert result.n_frames == 2


def test_frames_that_fail_are_named() -> None:
    """With their number."""
    source = load_forces("ase.calculators.emt:EMT")
    frames = [molecule("H2O"), Atoms("FeO", [[0, 0, 0], [0, 0, 2]])]
    with pytest.raises(RuntimeError, match="frame 1 .*EMT failed on FeO"):
        evaluate_frames(source, C, frames)


@pytest.mark.parametrize("kind", ["conservative", "direct"])
def test_frames_are_evaluated_together(kind: Kind, folder: Path) -> None:
    """A slab, a crystal and molecules, with the forces that each has alone; one that
    fails is named."""
    source = load_forces(str(folder / "hybrid.pt"))
    frames = [
        random_cell(8, 5.0),
        random_cell(6, 6.0, seed=1, pbc=(True, True, False)),
        molecule("CH3OH"),
        molecule("H2O"),
    ]
    shares: List[float] = []
    found = evaluate_frames(source, kind, frames, shares.append)
    assert shares == [1.0]  # all at once
    for atoms, evaluation in zip(frames, found, strict=True):
        alone = predicted(source, kind, atoms)
        np.testing.assert_allclose(evaluation.forces, alone.forces, atol=1e-9)
        assert evaluation.energy == pytest.approx(alone.energy, abs=1e-9)
    frames[2].positions[1] = np.nan
    with pytest.raises(FloatingPointError, match="frame 27 .*: the positions of atoms"):
        evaluate_frames(source, kind, frames, numbers=[4, 5, 27, 9])


# --------------------------------------------------------------------------- symmetries


def test_broken_symmetries() -> None:
    """Of a wind: in closed form."""
    frames = [molecule("CH4")]
    source = CalculatorForces(Wind(0.3, swirl=0.2), "wind")
    result = broken_symmetries(source, C, frames)
    assert result.net_force == pytest.approx(0.3)
    arms = frames[0].positions - frames[0].positions.mean(0)
    # Methane is as wide in all directions, so that torque points along the vertical.
    torque = 0.2 * (arms[:, :2] ** 2).sum() / 5
    assert result.net_torque == pytest.approx(torque, rel=1e-6)
    # Inversion turns the wind around, and leaves the swirl.
    assert result.inversion == pytest.approx(0.6 / np.sqrt(3))
    assert 0.0 < result.rotation < 0.6


def test_rotation_error_of_a_wind() -> None:
    """The mean over rotations of its squared change is twice the square of the wind."""
    frames = [molecule("H2O")] * 2000
    source = CalculatorForces(Wind(0.3), "wind")
    result = broken_symmetries(source, C, frames)
    assert result.rotation == pytest.approx(0.3 * np.sqrt(2 / 3), rel=0.03)
    assert result.net_torque == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("kind", ["conservative", "direct"])
def test_kept_symmetries(kind: Kind, tmp_path: Path) -> None:
    """Of an equivariant network in a periodic, triclinic cell."""
    make_model().export().save(str(tmp_path / "model.pt"))
    source = load_forces(str(tmp_path / "model.pt"))
    frames = [random_cell(8, 5.0, seed=seed) for seed in (1, 2)]
    result = broken_symmetries(source, kind, frames)
    assert result.kind == kind
    assert result.rotation < 1e-12 and result.inversion < 1e-12
    assert result.net_force < 1e-12 and result.net_torque is None


def test_symmetries_of_nothing() -> None:
    """Are refused."""
    with pytest.raises(ValueError, match="at least one structure"):
        broken_symmetries(CalculatorForces(Wind(0.3), "wind"), C, [])
