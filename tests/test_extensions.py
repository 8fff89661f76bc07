"""Models with compiled extensions whose derivatives are in a Python package."""

import importlib
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from ase.build import molecule
from helpers import make_model

from dualforce.engines import ModelReference, write_inputs
from dualforce.forces import EvaluationError
from dualforce.forces.extensions import (
    derivatives_known,
    extensions_of,
    register_derivatives,
)
from dualforce.md import MDSettings


GRADIENT = """
import sys
import ase.build
from dualforce import load_forces

assert "sphericart" not in sys.modules
forces = load_forces("model.pt", extensions="extensions")
atoms = ase.build.molecule("H2O")
force = forces.conservative(atoms).forces[1, 2]
energies = []
for shift in (1e-3, -1e-3):
    moved = atoms.copy()
    moved.positions[1, 2] += shift
    energies.append(forces.conservative(moved).energy)
difference = (energies[1] - energies[0]) / 2e-3
assert abs(force - difference) < 1e-5 * max(1.0, abs(force)), (force, difference)
assert abs(force) > 1e-3
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with ``sphericart``, untrained."""
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    model = make_model("soap_bpnn").export()
    model.save(str(folder / "model.pt"), collect_extensions=str(folder / "extensions"))
    return folder


def test_force_is_the_gradient_in_a_new_process(exported: Path) -> None:
    """Where nothing but dualforce has loaded the extension."""
    assert extensions_of(exported / "model.pt") == ["sphericart_torch"]
    command = [sys.executable, "-c", GRADIENT]
    result = subprocess.run(command, cwd=exported, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_missing_package_is_named(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than a wrong force."""
    missing = {"sphericart_torch": ("no_such_module", "sphericart-torch")}
    monkeypatch.setattr("dualforce.forces.extensions.DERIVATIVES", missing)
    with pytest.raises(ValueError, match="pip install sphericart-torch"):
        register_derivatives(exported / "model.pt")


def test_other_files_need_none(tmp_path: Path) -> None:
    """Neither models of other networks, exported where the extension is loaded, nor
    what is no model."""
    (tmp_path / "text.pt").write_text("no model")
    assert extensions_of(tmp_path / "text.pt") == []
    importlib.import_module("sphericart.torch")
    make_model("ace").export().save(str(tmp_path / "ace.pt"))
    with zipfile.ZipFile(tmp_path / "ace.pt") as archive:
        (listed,) = (n for n in archive.namelist() if n.endswith("extra/extensions"))
        assert b"sphericart_torch" in archive.read(listed)
    assert extensions_of(tmp_path / "ace.pt") == []


@pytest.mark.parametrize("engine, stock", [("lammps", False), ("ipi", True)])
def test_engines_without_the_package_are_refused(
    exported: Path, tmp_path: Path, engine: str, stock: bool
) -> None:
    """They would run with wrong forces."""
    reference = ModelReference(
        str(exported / "model.pt"), extensions=str(exported / "extensions")
    )
    atoms = molecule("H2O", vacuum=8.0, pbc=True)
    with pytest.raises(ValueError, match="would be wrong in"):
        write_inputs(
            engine,  # type: ignore[arg-type]
            reference,
            atoms,
            tmp_path / "folder",
            MDSettings(),
            stock=stock,
        )
    assert not (tmp_path / "folder").exists()


def test_unknown_derivative_is_an_error() -> None:
    """Of whatever extension: torch only warns."""
    library = torch.library.Library("dualforce_test", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: 2.0 * x, "CPU")
    x = torch.ones(3, requires_grad=True)
    y = (torch.ops.dualforce_test.twice(x) * x).sum()
    with (
        pytest.raises(EvaluationError, match="m.pt contains an operation"),
        derivatives_known("m.pt"),
    ):
        torch.autograd.grad(y, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with derivatives_known("m.pt"):
            torch.autograd.grad((x * x).sum(), x)
