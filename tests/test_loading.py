"""From what users name to sources of forces."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from potentials import LennardJones, argon

from dualforce.forces import CalculatorForces, load_forces


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
        source = load_forces(spec)
        digests.add(source.digest)
        result = source.conservative(atoms)
        reference = atoms.copy()
        reference.calc = EMT()
        np.testing.assert_allclose(result.forces, reference.get_forces())
        assert source.kinds == ("conservative",)
        assert source.has_energy == (result.energy != 0.0) == ("ase" in spec)
        assert load_forces(spec).digest == source.digest
    (tmp_path / "mine.py").write_text(CODE + "\n# changed\n")
    digests.add(load_forces(f"{tmp_path}/mine.py:NoEnergy").digest)
    assert len(digests) == 3


def test_results_are_not_those_of_another_structure() -> None:
    """Calculators keep what they are given; what came before does not change."""
    source, atoms = CalculatorForces(LennardJones(0.01, 3.4, 5.0)), argon()[0]
    before = source.conservative(atoms).forces
    kept = before.copy()
    atoms.positions[0] += 0.1
    assert np.abs(source.conservative(atoms).forces - before).max() > 1e-6
    np.testing.assert_array_equal(before, kept)


@pytest.mark.parametrize(
    "spec, error, message",
    [
        ("no.pt", FileNotFoundError, "'no.pt' does not exist; give an exported model"),
        ("nothing", FileNotFoundError, "'nothing' does not exist"),
        ("{}", FileNotFoundError, "is a folder"),
        ("{}/text.pt", ValueError, "is not an exported metatomic model"),
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
        load_forces(spec.format(tmp_path))


def test_calculator_without_an_element() -> None:
    """Fails with its own words and the structure."""
    source = load_forces("ase.calculators.emt:EMT")
    with pytest.raises(RuntimeError, match="EMT failed on FeO: .*Fe"):
        source.conservative(Atoms("FeO", [[0, 0, 0], [0, 0, 2]]))


def test_calculator_without_forces() -> None:
    """Says what there is."""
    nothing = LennardJones(0.01, 3.4, 5.0)
    nothing.implemented_properties = []
    with pytest.raises(ValueError, match="argon computes no forces, only nothing"):
        CalculatorForces(nothing, "argon")
