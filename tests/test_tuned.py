"""The number of inner steps where the user gives none."""

import json
from pathlib import Path
from typing import Any, Dict

import ase.io
import pytest
from click.testing import CliRunner
from helpers import make_model, random_cell

from dualforce.cli import main
from dualforce.engines import ModelReference
from dualforce.engines.tuned import (
    inner_steps,
    record_file,
    remember,
    usual_correction,
)


@pytest.fixture
def model(tmp_path: Path) -> ModelReference:
    """A file that stands for a model."""
    path = tmp_path / "model.pt"
    path.write_bytes(b"weights")
    return ModelReference(str(path))


def test_nothing_is_known(model: ModelReference) -> None:
    """A safe number, and how to get a better one."""
    n_inner, sentence = inner_steps(model, timestep=0.5, hydrogen_mass=None)
    assert n_inner == 4 and "dualforce tune" in sentence
    calculator = ModelReference("ase.calculators.emt:EMT")
    assert inner_steps(calculator, timestep=0.5, hydrogen_mass=None)[0] == 4
    settings = {"timestep": 0.5, "temperature": 300.0, "hydrogen_mass": None}
    assert remember(calculator, 6, **settings) is None


def test_what_was_found_is_used(model: ModelReference) -> None:
    """With outer steps of the same length; other masses have their own."""
    for n_inner, mass in ((5, None), (6, None), (8, 4.0)):
        remember(model, n_inner, timestep=0.5, temperature=330.0, hydrogen_mass=mass)
    for timestep, mass, expected in (
        (0.5, None, 6),
        (1.0, None, 3),
        (0.7, None, 4),
        (5.0, None, 1),
        (0.5, 4.0, 8),
        (0.5, 3.0, 4),
    ):
        found = inner_steps(model, timestep=timestep, hydrogen_mass=mass)
        assert found[0] == expected
    sentence = inner_steps(model, timestep=0.5, hydrogen_mass=None)[1]
    assert "3 fs" in sentence and "330 K" in sentence


def test_another_model_under_the_same_name(model: ModelReference) -> None:
    """What was found for a model that has been replaced does not count."""
    remember(model, 6, timestep=0.5, temperature=300.0, hydrogen_mass=None)
    Path(model.model).write_bytes(b"others")
    assert inner_steps(model, timestep=0.5, hydrogen_mass=None)[0] == 4


@pytest.mark.parametrize("name", ["mace:{}", "gfn2-xtb+{}", "mace:{}+mace:{}"])
def test_name_of_a_file_that_has_been_replaced(
    name: str, model: ModelReference, tmp_path: Path
) -> None:
    """Files within names and sums count by their contents, wherever they lie."""
    first, second = tmp_path / "first.pt", tmp_path / "second.pt"
    first.write_bytes(b"weights")
    second.write_bytes(b"weights")
    before, after = (
        ModelReference(model.model, name.replace("{}", str(path)))
        for path in (first, second)
    )
    remember(before, 6, timestep=0.5, temperature=300.0, hydrogen_mass=None)
    assert inner_steps(after, timestep=0.5, hydrogen_mass=None)[0] == 6
    second.write_bytes(b"others")
    assert inner_steps(after, timestep=0.5, hydrogen_mass=None)[0] == 4


@pytest.mark.parametrize(
    "text", ["", "[1]", "{}", '[{"n_inner": "6"}]', '[{"n_inner": -1}]']
)
def test_damaged_file(model: ModelReference, text: str) -> None:
    """It counts as missing."""
    path = record_file(model)
    assert path is not None
    path.write_text(text)
    assert inner_steps(model, timestep=0.5, hydrogen_mass=None)[0] == 4
    remember(model, 6, timestep=0.5, temperature=300.0, hydrogen_mass=None)
    assert inner_steps(model, timestep=0.5, hydrogen_mass=None)[0] == 6


def test_usual_correction(model: ModelReference) -> None:
    """What the forces differed by where inner steps were found; none where that was not
    kept."""
    assert usual_correction(model, hydrogen_mass=None) is None
    remember(model, 6, timestep=0.5, temperature=300.0, hydrogen_mass=None)
    assert usual_correction(model, hydrogen_mass=None) is None
    found: Dict[str, Any] = {"timestep": 0.5, "temperature": 330.0, "correction": 25.0}
    remember(model, 6, hydrogen_mass=None, **found)
    assert usual_correction(model, hydrogen_mass=None) == pytest.approx(0.025)
    assert usual_correction(model, hydrogen_mass=3.0) is None


def test_runs(tmp_path: Path, model: ModelReference) -> None:
    """``md`` takes what was found, and a run that is resumed keeps its own."""
    structure, output = tmp_path / "structure.xyz", tmp_path / "run"
    make_model().export().save(model.model)
    ase.io.write(structure, random_cell(8, 6.0, seed=1), format="extxyz")
    found: Dict[str, Any] = {"timestep": 0.1, "temperature": 50.0, "correction": 1e-3}
    remember(model, 3, hydrogen_mass=None, **found)
    arguments = ["md", model.model, str(structure), "--temperature", "50"]
    arguments += ["--timestep", "0.1", "-o", str(output), "--steps"]
    result = CliRunner().invoke(main, [*arguments, "6"])
    assert result.exit_code == 0, result.output
    assert "M = 3, from" in result.output
    assert "meV/Å (RMS), usually by 0" in result.output
    written = json.loads((output / "run.json").read_text())
    assert written["run"]["n_inner"] == 3
    remember(model, 2, timestep=0.1, temperature=50.0, hydrogen_mass=None)
    result = CliRunner().invoke(main, [*arguments, "12", "--resume"])
    assert result.exit_code == 0, result.output
