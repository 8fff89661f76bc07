"""What is judged, its errors, and the symmetries it breaks."""

from pathlib import Path
from typing import Any, Tuple

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from helpers import energy_info, make_model, random_cell
from metatomic_ase import MetatomicCalculator
from potentials import Analytic, LennardJones, argon

from dualforce.diagnostics.errors import (
    energy_errors,
    evaluate_frames,
    force_differences,
    force_errors,
    symmetries,
)
from dualforce.diagnostics.subject import (
    CalculatorForce,
    calculator_subject,
    load_subject,
)
from dualforce.dynamics import Evaluation, HybridForces


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


# ----------------------------------------------------------------------------- subjects


def test_hybrid_model(folder: Path) -> None:
    """Raw forces are those of metatomic, with the net force that dynamics takes out."""
    subject, atoms = load_subject(str(folder / "hybrid.pt")), random_cell(8, 5.0)
    assert subject.name == "hybrid.pt" and subject.has_both and subject.has_energy
    assert isinstance(subject.two_forces, HybridForces)
    atoms.calc = MetatomicCalculator(str(folder / "hybrid.pt"))
    conservative = subject.forces["conservative"].evaluate(atoms)
    assert conservative.energy == pytest.approx(atoms.get_potential_energy())
    np.testing.assert_allclose(conservative.forces, atoms.get_forces(), atol=1e-9)
    calculator = MetatomicCalculator(str(folder / "hybrid.pt"), non_conservative=True)
    outputs = calculator.run_model(
        atoms, {"non_conservative_force": _force_output(calculator)}
    )
    expected = outputs["non_conservative_force"].block().values.reshape(-1, 3).numpy()
    direct = subject.forces["direct"].evaluate(atoms)
    assert direct.energy is None
    np.testing.assert_allclose(direct.forces, expected, atol=1e-9)
    assert np.abs(direct.forces.mean(0)).max() > 1e-6
    np.testing.assert_allclose(
        subject.two_forces.direct(atoms).forces,
        expected - expected.mean(0),
        atol=1e-9,
    )


def _force_output(calculator: MetatomicCalculator) -> Any:
    name = "non_conservative_force"
    return calculator._model.capabilities().outputs[name]


def test_conservative_model(folder: Path) -> None:
    """One force serves dynamics as both."""
    subject, atoms = load_subject(str(folder / "conservative.pt")), random_cell(6, 5.0)
    assert list(subject.forces) == ["conservative"] and not subject.has_both
    expected = subject.forces["conservative"].evaluate(atoms)
    for result in subject.two_forces.both(atoms):
        np.testing.assert_array_equal(result.forces, expected.forces)
        assert result.energy == expected.energy


def test_variants_are_different_models(folder: Path) -> None:
    """And their results are not mixed up."""
    path, atoms = str(folder / "variants.pt"), random_cell(6, 5.0)
    subjects = [load_subject(path, variant=name) for name in "ab"]
    assert subjects[0].digest != subjects[1].digest
    for kind in ("conservative", "direct"):
        first, second = (each.forces[kind].evaluate(atoms) for each in subjects)
        assert np.abs(first.forces - second.forces).max() > 1e-6
    with pytest.raises(ValueError, match="variant"):
        load_subject(path, variant="c")


CODE = """
from ase.calculators.emt import EMT

class Charges(EMT):
    implemented_properties = ["charges"]

def number():
    return 3

def fails():
    raise RuntimeError("no licence")

class NoEnergy(EMT):
    implemented_properties = ["forces"]
"""


def test_calculators(tmp_path: Path) -> None:
    """From modules and files; their results are those of ASE."""
    (tmp_path / "mine.py").write_text(CODE)
    atoms = argon()[0]
    atoms.symbols[:] = "Cu"
    atoms.set_cell(0.7 * atoms.cell.array, scale_atoms=True)
    digests = set()
    for spec in ("ase.calculators.emt:EMT", f"{tmp_path}/mine.py:NoEnergy"):
        subject = load_subject(spec)
        digests.add(subject.digest)
        result = subject.forces["forces"].evaluate(atoms)
        reference = atoms.copy()
        reference.calc = EMT()
        np.testing.assert_allclose(result.forces, reference.get_forces())
        assert not subject.has_both
        assert subject.has_energy == (result.energy is not None) == ("ase" in spec)
        assert subject.two_forces.conservative(atoms).energy == (result.energy or 0.0)
        assert load_subject(spec).digest == subject.digest
    (tmp_path / "mine.py").write_text(CODE + "\n# changed\n")
    digests.add(load_subject(f"{tmp_path}/mine.py:NoEnergy").digest)
    assert len(digests) == 3


def test_results_are_not_those_of_another_structure() -> None:
    """Calculators keep what they are given; what came before does not change."""
    force, atoms = CalculatorForce(LennardJones(0.01, 3.4, 5.0), "argon"), argon()[0]
    before = force.evaluate(atoms).forces
    kept = before.copy()
    atoms.positions[0] += 0.1
    assert np.abs(force.evaluate(atoms).forces - before).max() > 1e-6
    np.testing.assert_array_equal(before, kept)


@pytest.mark.parametrize(
    "spec, error, message",
    [
        ("no.pt", FileNotFoundError, "'no.pt' does not exist; give an exported model"),
        ("nothing", FileNotFoundError, "'nothing' does not exist"),
        ("{}", FileNotFoundError, "is a folder"),
        ("{}/text.pt", ValueError, "is no exported model"),
        ("no.such.module:EMT", ImportError, "'no.such.module' cannot be imported"),
        ("ase.calculators.emt:EMP", ImportError, "has nothing called 'EMP'"),
        ("{}/none.py:EMT", FileNotFoundError, "there is no file '.*none.py'"),
        ("{}/mine.py:number", ValueError, "returned int, which is no calculator"),
        ("{}/mine.py:fails", ValueError, "failed: RuntimeError: no licence"),
        ("{}/mine.py:Charges", ValueError, "computes no forces, only charges"),
        ("{}/wrong.py:EMT", ImportError, "cannot be imported: SyntaxError"),
    ],
)
def test_what_is_no_model(spec: str, error: Any, message: str, tmp_path: Path) -> None:
    """Is said, and what it is."""
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "wrong.py").write_text("def")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(error, match=message):
        load_subject(spec.format(tmp_path))


def test_calculator_without_an_element() -> None:
    """Fails with its own words and the structure."""
    subject = load_subject("ase.calculators.emt:EMT")
    with pytest.raises(RuntimeError, match="EMT failed on FeO: .*Fe"):
        subject.forces["forces"].evaluate(Atoms("FeO", [[0, 0, 0], [0, 0, 2]]))


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
        evaluate_frames(CalculatorForce(Wind(strength), "wind"), frames)
        for strength in (0.3, 0.9)
    ]
    result = force_differences("direct", "conservative", frames, *winds)
    assert result is not None and result.reference == "conservative"
    assert result.mae == pytest.approx(0.2)
    assert result.rmse == pytest.approx(0.6 / np.sqrt(3))
    assert result.n_frames == 2


def test_frames_that_fail_are_named() -> None:
    """With their number."""
    force = load_subject("ase.calculators.emt:EMT").forces["forces"]
    frames = [molecule("H2O"), Atoms("FeO", [[0, 0, 0], [0, 0, 2]])]
    with pytest.raises(RuntimeError, match="frame 1 .*EMT failed on FeO"):
        evaluate_frames(force, frames)


# --------------------------------------------------------------------------- symmetries


def test_broken_symmetries() -> None:
    """Of a wind: in closed form."""
    frames = [molecule("CH4")]
    force = CalculatorForce(Wind(0.3, swirl=0.2), "wind")
    result = symmetries(force, frames, evaluate_frames(force, frames))
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
    force = CalculatorForce(Wind(0.3), "wind")
    result = symmetries(force, frames, evaluate_frames(force, frames))
    assert result.rotation == pytest.approx(0.3 * np.sqrt(2 / 3), rel=0.03)
    assert result.net_torque == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("kind", ["conservative", "direct"])
def test_kept_symmetries(kind: str, tmp_path: Path) -> None:
    """Of an equivariant network in a periodic, triclinic cell."""
    make_model().export().save(str(tmp_path / "model.pt"))
    force = load_subject(str(tmp_path / "model.pt")).forces[kind]
    frames = [random_cell(8, 5.0, seed=seed) for seed in (1, 2)]
    result = symmetries(force, frames, evaluate_frames(force, frames))
    assert result.kind == kind
    assert result.rotation < 1e-12 and result.inversion < 1e-12
    assert result.net_force < 1e-12 and result.net_torque is None


def test_symmetries_of_nothing() -> None:
    """Are refused."""
    with pytest.raises(ValueError, match="at least one structure"):
        symmetries(CalculatorForce(Wind(0.3), "wind"), [], [])


def test_calculator_subject_needs_forces() -> None:
    """And says what there is."""
    wind = Wind(0.1)
    wind.implemented_properties = []
    with pytest.raises(ValueError, match="wind computes no forces, only nothing"):
        calculator_subject(wind, "wind")
