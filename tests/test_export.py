"""Exported models: files, metadata, precision, and engines that read them."""

from pathlib import Path
from typing import Any, Dict, Tuple

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from helpers import (
    BACKBONES,
    ENERGY,
    FORCE,
    STRESS,
    as_system,
    energy_info,
    make_model,
    predict,
    random_cell,
)
from metatomic.torch import (
    AtomisticModel,
    ModelEvaluationOptions,
    ModelMetadata,
    ModelOutput,
    load_atomistic_model,
)
from metatomic_ase import MetatomicCalculator
from test_model import gradients


UNITS = {ENERGY: "eV", FORCE: "eV/Angstrom", STRESS: "eV/Angstrom^3", "feature": ""}


def save(model: Any, folder: Path) -> str:
    """Export a model to a file."""
    path = str(folder / "model.pt")
    model.export().save(path)
    return path


def run(
    exported: AtomisticModel, atoms: Atoms, outputs: Dict[str, ModelOutput]
) -> Dict[str, torch.Tensor]:
    """Values of outputs of an exported model, with all checks of metatomic."""
    dtype = getattr(torch, exported.capabilities().dtype)
    system = as_system(exported, atoms, dtype)
    options = ModelEvaluationOptions(length_unit="Angstrom", outputs=outputs)
    with torch.jit.optimized_execution(False):  # compiling takes longer than running
        results = exported([system], options, check_consistency=True)
    return {name: results[name].block().values.detach() for name in outputs}


# ------------------------------------------------------------------------- files


@pytest.mark.parametrize("forces", ["hybrid", "conservative", "direct"])
@pytest.mark.parametrize("zbl", [False, True])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_saved_model(backbone: str, zbl: bool, forces: str, tmp_path: Path) -> None:
    """A saved model has the outputs of its kind and the values of the model."""
    model = make_model(backbone, zbl=zbl, forces=forces)
    exported = load_atomistic_model(save(model, tmp_path))
    names = [ENERGY, "feature"]
    if forces != "conservative":
        names += [FORCE, STRESS]
    capabilities = exported.capabilities()
    assert set(names) <= set(capabilities.outputs)
    assert (FORCE in capabilities.outputs) == (forces != "conservative")
    atoms = random_cell(8, 5.0)
    for kind in ("atom", "system"):
        outputs = {
            name: ModelOutput(unit=UNITS[name], sample_kind=kind)
            for name in names
            if (name, kind) != (FORCE, "system")
        }
        values = run(exported, atoms, outputs)
        expected = predict(model, atoms, names=list(outputs), sample_kind=kind)
        for name in outputs:
            torch.testing.assert_close(values[name], expected[name])


def test_metadata_and_capabilities() -> None:
    """Units, types, range and references are declared."""
    exported = make_model(zbl=True).export(ModelMetadata(name="water"))
    capabilities = exported.capabilities()
    assert capabilities.atomic_types == [1, 6, 7, 8]
    assert capabilities.length_unit == "Angstrom"
    assert capabilities.interaction_range == 12.0  # two layers and the pairs of forces
    assert capabilities.supported_devices == ["cuda", "cpu"]
    for name, unit in UNITS.items():
        assert capabilities.outputs[name].unit == unit
    metadata = exported.metadata()
    assert metadata.name == "water"
    assert any("2412.11569" in text for text in metadata.references["architecture"])


def test_units_are_converted() -> None:
    """An engine may ask in its own units."""
    exported = make_model().export()
    atoms = random_cell(6, 5.0)
    own = {name: ModelOutput(unit=UNITS[name]) for name in (ENERGY, FORCE)}
    other = {
        ENERGY: ModelOutput(unit="Hartree"),
        FORCE: ModelOutput(unit="Hartree/Bohr"),
    }
    for name in own:
        own[name].sample_kind = other[name].sample_kind = "atom"
    values, converted = run(exported, atoms, own), run(exported, atoms, other)
    for name, unit in ((ENERGY, units.Ha), (FORCE, units.Ha / units.Bohr)):
        ratio = values[name] / converted[name]
        np.testing.assert_allclose(ratio.numpy(), unit, rtol=1e-6)


def test_variants() -> None:
    """Several levels of theory have a direct force and stress each, with units."""
    names = ("energy", "energy/pbe", "mtt::U0")
    model = make_model(info=energy_info(names))
    exported = model.export()
    outputs = {}
    for suffix in ("", "/pbe"):
        for base in (ENERGY, FORCE, STRESS):
            declared = exported.capabilities().outputs[base + suffix]
            assert declared.unit == UNITS[base]
            kind = "atom" if base == FORCE else "system"
            outputs[base + suffix] = ModelOutput(unit=UNITS[base], sample_kind=kind)
    outputs[FORCE + "/U0"] = ModelOutput(unit="eV/Angstrom", sample_kind="atom")
    values = run(exported, random_cell(6, 5.0), outputs)
    assert (values[FORCE] - values[FORCE + "/pbe"]).abs().max() > 1e-6
    assert (values[FORCE + "/U0"] - values[FORCE + "/pbe"]).abs().max() > 1e-6


# --------------------------------------------------------------------- precision


def test_interface_is_double() -> None:
    """A float32 network exchanges float64; ``.to(float32)`` changes both."""
    model = make_model(dtype=torch.float32)
    assert model.export().capabilities().dtype == "float64"
    values = run(model.export(), random_cell(6, 5.0), {ENERGY: ModelOutput()})
    assert values[ENERGY].dtype == torch.float64
    single = make_model(dtype=torch.float32).to(torch.float32)
    assert single.export().capabilities().dtype == "float32"
    values = run(single.export(), random_cell(6, 5.0), {ENERGY: ModelOutput()})
    assert values[ENERGY].dtype == torch.float32


@pytest.mark.parametrize("backbone", BACKBONES)
def test_large_totals_are_not_rounded(backbone: str, tmp_path: Path) -> None:
    """A float32 network resolves small differences of DFT-sized totals."""
    atoms = random_cell(96, 11.0, seed=3)
    differences = []
    for baseline in (0.0, -470.123456789):
        model = make_model(backbone, torch.float32)
        model.calibrations[ENERGY].baseline.fill_(baseline)
        exported = load_atomistic_model(save(model, tmp_path))
        outputs = {ENERGY: ModelOutput(sample_kind="system")}
        moved = atoms.copy()
        moved.positions[0, 0] += 1e-3
        start, end = (float(run(exported, a, outputs)[ENERGY]) for a in (atoms, moved))
        assert start == pytest.approx(baseline * 96, abs=300.0)
        differences.append(end - start)
    # the spacing of float32 numbers at this total is 4e-3
    assert abs(differences[0]) < 1e-2
    assert differences[1] == pytest.approx(differences[0], abs=1e-9)


# ----------------------------------------------------------------------- engines


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Tuple[Any, str]:
    """A model with repulsion, and its file."""
    model = make_model(zbl=True)
    return model, save(model, tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("pbc", [True, False])
def test_ase(shared: Tuple[Any, str], pbc: bool) -> None:
    """ASE gets the energy, both forces and both stresses."""
    model, path = shared
    atoms = random_cell(10, 6.0, seed=7, pbc=[pbc] * 3, min_distance=0.9)
    expected = predict(model, atoms)
    force, stress = gradients(model, atoms)
    direct = (expected[FORCE].squeeze(-1), expected[STRESS].squeeze(-1)[0])
    for non_conservative, (f, s) in ((False, (force, stress)), (True, direct)):
        atoms.calc = MetatomicCalculator(
            path, check_consistency=True, non_conservative=non_conservative
        )
        energy = float(expected[ENERGY])
        assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-10)
        np.testing.assert_allclose(atoms.get_forces(), f, atol=1e-10)
        if pbc:
            s = 0.5 * (s + s.T)
            np.testing.assert_allclose(atoms.get_stress(voigt=False), s, atol=1e-10)


@pytest.mark.parametrize("non_conservative", [False, True])
def test_ipi(shared: Tuple[Any, str], non_conservative: bool, tmp_path: Path) -> None:
    """The driver of i-PI gets the energy, either force and either virial."""
    driver_module = pytest.importorskip("ipi.pes.metatomic")
    model, path = shared
    atoms = random_cell(10, 6.0, seed=7, min_distance=0.9)
    template = str(tmp_path / "template.xyz")
    ase.io.write(template, atoms)
    driver = driver_module.MetatomicDriver(
        template, path, check_consistency=True, non_conservative=non_conservative
    )
    cell, positions = atoms.cell.array.T / units.Bohr, atoms.positions / units.Bohr
    energy, forces, virial, _ = driver.compute(cell, positions)
    expected = predict(model, atoms)
    force, stress = gradients(model, atoms)
    if non_conservative:
        force, stress = expected[FORCE].squeeze(-1), expected[STRESS].squeeze(-1)[0]
    assert energy * units.Ha == pytest.approx(float(expected[ENERGY]), rel=1e-6)
    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(forces * units.Ha / units.Bohr, force, **close)
    pressure = -0.5 * (stress + stress.T) * atoms.get_volume()
    np.testing.assert_allclose(virial * units.Ha, pressure, **close)


def test_conservative_model_is_evaluated_more_than_once(tmp_path: Path) -> None:
    """TorchScript optimises after the first evaluations; forces stay the same, also
    where parts of the last layer are not used."""
    exported = load_atomistic_model(save(make_model(forces="conservative"), tmp_path))
    atoms = random_cell(8, 5.0)
    options = ModelEvaluationOptions("Angstrom", {ENERGY: ModelOutput(unit="eV")})
    forces = []
    for _ in range(4):
        positions = torch.tensor(atoms.positions, requires_grad=True)
        system = as_system(exported, atoms, positions=positions)
        energy = exported([system], options, check_consistency=False)[ENERGY]
        energy.block().values.sum().backward()
        forces.append(positions.grad)
    for other in forces[1:]:
        torch.testing.assert_close(other, forces[0])
