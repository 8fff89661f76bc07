"""A cheap method plus a model of what it lacks."""

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.mixing import SumCalculator
from ase.calculators.morse import MorsePotential
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_extxyz
from click.testing import CliRunner
from train_helpers import PAINN, options, run_cli

import dualforce
from dualforce.cli import main
from dualforce.engines import ModelReference
from dualforce.forces import (
    CalculatorForces,
    MissingForceError,
    SummedForces,
    portable_name,
    split_sum,
)


EMT_NAME = "ase.calculators.emt:EMT"
MORSE_NAME = "ase.calculators.morse:MorsePotential"


def small_part() -> MorsePotential:
    """What the method lacks: a weak potential between pairs."""
    return MorsePotential(epsilon=0.1, r0=2.6, rho0=4.0, rcut1=3.6, rcut2=4.2)


def method_and_more() -> SumCalculator:
    """The method of the data."""
    return SumCalculator([EMT(), small_part()])


def rattled(n_frames: int) -> list[Atoms]:
    """Cells of copper, labelled by the method of the data."""
    frames = []
    for seed in range(n_frames):
        atoms = bulk("Cu", a=3.62, cubic=True)
        atoms.rattle(0.12, seed=seed)
        labels = atoms.copy()
        labels.calc = method_and_more()
        atoms.calc = SinglePointCalculator(
            atoms,
            energy=labels.get_potential_energy(),
            forces=labels.get_forces(),
            stress=labels.get_stress(),
        )
        frames.append(atoms)
    return frames


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A file of them."""
    path = tmp_path / "data.xyz"
    ase.io.write(path, rattled(6), format="extxyz")
    return path


def test_difference_is_what_the_method_lacks(data: Path, tmp_path: Path) -> None:
    """Energy, forces and stress, frame by frame; nothing else stays in the folder."""
    output = tmp_path / "difference.xyz"
    arguments = ["difference", EMT_NAME, str(data), "-o", str(output)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert f"6 frames, {data} minus {EMT_NAME}" in result.output
    for atoms, own in zip(ase.io.read(output, ":"), rattled(6), strict=True):
        own.calc = small_part()
        energy = own.get_potential_energy()
        assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-6)
        np.testing.assert_allclose(atoms.get_forces(), own.get_forces(), atol=1e-6)
        np.testing.assert_allclose(atoms.get_stress(), own.get_stress(), atol=1e-6)
    assert {path.name for path in tmp_path.iterdir()} == {"data.xyz", "difference.xyz"}
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1 and "exists already" in again.output


def test_labels_under_other_keys(tmp_path: Path) -> None:
    """Are found where the user says, and a wrong key ends in a sentence."""
    frames = []
    for atoms in rattled(2):
        plain = atoms.copy()
        plain.info["ref_energy"] = atoms.get_potential_energy()
        plain.arrays["ref_forces"] = atoms.get_forces()
        frames.append(plain)
    path, output = tmp_path / "data.xyz", tmp_path / "difference.xyz"
    ase.io.write(path, frames, format="extxyz")
    with pytest.raises(ValueError, match="frame 0 .*no energy under the key 'energy'"):
        dualforce.difference(EMT_NAME, path, output)
    with pytest.raises(ValueError, match=r"no forces under the key.*'ref_forces'"):
        dualforce.difference(
            EMT_NAME, path, output, energy_key="ref_energy", forces_key="ref_force"
        )
    found = dualforce.difference(
        EMT_NAME, path, output, energy_key="ref_energy", forces_key="ref_forces"
    )
    frames[0].calc = small_part()
    np.testing.assert_allclose(found[0].get_forces(), frames[0].get_forces(), atol=1e-6)
    assert "stress" not in found[0].calc.results


def test_virials(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the place of stresses, of the opposite sign; never left out in silence."""
    frames = []
    for atoms in rattled(2):
        plain = atoms.copy()
        plain.info["energy"] = atoms.get_potential_energy()
        plain.arrays["forces"] = atoms.get_forces()
        plain.info["virials"] = -atoms.get_volume() * atoms.get_stress(voigt=False)
        frames.append(plain)
    path = tmp_path / "data.xyz"
    ase.io.write(path, frames, format="extxyz")
    with pytest.raises(ValueError, match="no frame has the key 'virial'.*'virials'"):
        dualforce.difference(EMT_NAME, path, tmp_path / "a.xyz", virial_key="virial")
    first, _ = dualforce.difference(
        EMT_NAME, path, tmp_path / "b.xyz", virial_key="virials"
    )
    frames[0].calc = small_part()
    np.testing.assert_allclose(first.get_stress(), frames[0].get_stress(), atol=1e-6)
    first, _ = dualforce.difference(EMT_NAME, path, tmp_path / "c.xyz")
    assert "stress" not in first.calc.results
    assert "what is under 'virials' is ignored" in caplog.text


def test_interrupted_difference_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the method has computed is not computed again."""
    evaluate, calls = CalculatorForces.conservative, []

    def counted(*arguments: object, **others: object) -> object:
        calls.append(None)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return evaluate(*arguments, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(CalculatorForces, "conservative", counted)
    output = tmp_path / "difference.xyz"
    with pytest.raises(KeyboardInterrupt):
        dualforce.difference(EMT_NAME, data, output)
    assert not output.exists()
    assert len(dualforce.difference(EMT_NAME, data, output)) == 6
    assert len(calls) == 5 + 2


def test_stresses_that_the_method_lacks(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Are left out, and that is said."""
    monkeypatch.setattr(EMT, "implemented_properties", ["energy", "forces"])
    found = dualforce.difference(EMT_NAME, data, tmp_path / "difference.xyz")
    assert "stress" not in found[0].calc.results
    assert "stresses of the data are left out" in caplog.text


def test_a_method_far_from_the_data(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Is no help, and that is said."""
    far = tmp_path / "far.xyz"
    with far.open("w") as file:
        for atoms in rattled(3):
            atoms.calc.results["forces"] = 0.01 * atoms.get_forces()
            write_extxyz(file, [atoms])
    dualforce.difference(EMT_NAME, far, tmp_path / "difference.xyz")
    assert "has as much to learn" in caplog.text


def test_sum_of_two_sources() -> None:
    """Energy, forces and stress are those of ASE's sum of calculators."""
    forces = dualforce.load_forces(f"{EMT_NAME}+{MORSE_NAME}")
    assert isinstance(forces, SummedForces) and forces.has_stress
    assert not forces.has_direct and forces.digest
    atoms = rattled(1)[0]
    found = forces.conservative(atoms, stress=True)
    atoms.calc = SumCalculator([EMT(), MorsePotential()])
    assert found.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
    np.testing.assert_allclose(found.forces, atoms.get_forces(), atol=1e-10)
    np.testing.assert_allclose(found.stress, atoms.get_stress(voigt=False), atol=1e-10)


def test_sum_needs_energies() -> None:
    """A term without one is named."""
    only_direct = CalculatorForces(EMT())
    only_direct.has_energy, only_direct.name = False, "that one"
    with pytest.raises(MissingForceError, match="that one has no energy"):
        SummedForces([CalculatorForces(EMT()), only_direct])


def test_names_of_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files with a plus in their names are files; a term that is none is named; and
    where a folder is made, the files of the terms are found from it."""
    monkeypatch.chdir(tmp_path)
    for name in ("a+b.pt", "c.pt", "d+e.py"):
        Path(name).touch()
    assert split_sum("a+b.pt") == split_sum("d+e.py:f") == split_sum("x+y.pt") == []
    assert split_sum("mace:a+b.pt") == []
    assert split_sum("d+e.py:f+a+b.pt") == ["d+e.py:f", "a+b.pt"]
    assert split_sum("mace:a+b.pt+gfn2-xtb") == ["mace:a+b.pt", "gfn2-xtb"]
    assert split_sum("gfn2-xtb+c.pt") == ["gfn2-xtb", "c.pt"]
    assert split_sum("mace:c.pt+c.pt") == ["mace:c.pt", "c.pt"]
    with pytest.raises(FileNotFoundError, match="'missing.pt' does not exist"):
        dualforce.load_forces(f"{EMT_NAME}+missing.pt")
    absolute = f"mace:{tmp_path}/c.pt+{tmp_path}/c.pt"
    assert portable_name("mace:c.pt+c.pt") == absolute
    reference = ModelReference("mace:c.pt+c.pt").named_in_folder()
    assert reference.model == absolute


def test_method_plus_model_of_the_difference(data: Path, tmp_path: Path) -> None:
    """After a training of seconds the sum is nearer to the data than the method alone,
    and runs of it are labelled by it."""
    path = tmp_path / "difference.xyz"
    dualforce.difference(EMT_NAME, data, path)
    given = options(
        path,
        {"num_epochs": 120, "conservative_fraction": 1.0, "learning_rate": 1e-2},
        {"backbone": "painn", "painn": PAINN | {"cutoff": 4.0}},
        base_precision=32,
    )
    run_cli(tmp_path, given, output="model.pt")
    name = f"{EMT_NAME}+{tmp_path / 'model.pt'}"
    both, method = dualforce.load_forces(name), dualforce.load_forces(EMT_NAME)

    def error(forces: dualforce.ForceSource) -> float:
        frames = rattled(6)
        found = [forces.conservative(a).forces - a.get_forces() for a in frames]
        return float(np.sqrt(np.mean(np.square(found))))

    assert error(both) < 0.5 * error(method)
    output = tmp_path / "sampled.xyz"
    found = dualforce.sample(name, data, output, frames=10, temperatures=[300.0])
    expected = both.conservative(found[-1], stress=True)
    np.testing.assert_allclose(found[-1].get_forces(), expected.forces, atol=1e-6)
    assert found[-1].get_potential_energy() == pytest.approx(expected.energy, abs=1e-5)
