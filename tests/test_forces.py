"""Both forces of exported models."""

import copy
from pathlib import Path
from typing import Any, Dict, List, Optional

import metatensor.torch
import numpy as np
import pytest
import torch
from ase import Atoms
from helpers import ENERGY, FORCE, STRESS, energy_info, make_model, random_cell
from metatensor.torch import Labels, TensorMap
from metatomic.torch import (
    AtomisticModel,
    ModelCapabilities,
    ModelMetadata,
    ModelOutput,
    NeighborListOptions,
    System,
)
from metatomic_ase import MetatomicCalculator

from dualforce.forces import (
    ConservativeCalculator,
    MetatomicForces,
    MissingForceError,
    load_forces,
)
from dualforce.md import RespaVelocityVerlet, RunFailedError


CLOSE: Dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, str]:
    """Exported models of several kinds."""
    folder = tmp_path_factory.mktemp("models")
    models = {
        "painn": make_model(),
        "pet": make_model("pet"),
        "energy": make_model(forces="conservative"),
        "variants": make_model(info=energy_info(("energy/a", "energy/b"))),
    }
    for name, model in models.items():
        model.export().save(str(folder / f"{name}.pt"))
    return {name: str(folder / f"{name}.pt") for name in models}


@pytest.fixture(autouse=True)
def no_compilation() -> Any:
    """Compiling takes longer than running."""
    with torch.jit.optimized_execution(False):
        yield


STRUCTURES: Dict[str, Any] = {
    "bulk": lambda: random_cell(10, 6.0, seed=7),
    "smaller than the cutoff": lambda: random_cell(3, 3.2, seed=1),
    "slab": lambda: random_cell(9, 6.0, seed=2, pbc=(True, True, False)),
    "molecule": lambda: random_cell(8, 5.0, seed=3, pbc=(False,) * 3),
    "without a cell": lambda: Atoms("OHH", [[0, 0, 0], [0.9, 0, 0.1], [0, 1.0, 0]]),
    "atom": lambda: Atoms("O", cell=[9, 9, 9], pbc=True),
}


@pytest.mark.parametrize(
    "model, structure",
    [("painn", name) for name in STRUCTURES] + [("pet", "bulk"), ("pet", "slab")],
)
def test_values_are_those_of_metatomic(
    model: str, structure: str, paths: Dict[str, str]
) -> None:
    """Energy, both forces and both stresses, alone and together."""
    atoms = STRUCTURES[structure]()
    forces, stress = MetatomicForces(paths[model]), bool(atoms.pbc.all())
    conservative, direct = forces.both(atoms, stress)
    for mine, other in (
        (forces.conservative(atoms, stress), conservative),
        (forces.direct(atoms, stress), direct),
    ):
        np.testing.assert_allclose(mine.forces, other.forces, **CLOSE)
        if stress:
            np.testing.assert_allclose(mine.stress, other.stress, **CLOSE)
        else:
            assert mine.stress is None
    np.testing.assert_allclose(direct.forces.sum(0), 0.0, atol=1e-12)
    for evaluation, flag in ((conservative, False), (direct, True)):
        atoms.calc = MetatomicCalculator(paths[model], non_conservative=flag)
        expected, found = atoms.get_forces(), evaluation.forces
        if flag:
            # The calculator takes out a net force by equal shares.
            shares = atoms.get_masses()[:, None] / atoms.get_masses().sum()
            found = found + shares * evaluation.net_force
            expected, found = expected - expected.mean(0), found - found.mean(0)
        np.testing.assert_allclose(found, expected, **CLOSE)
        if stress:
            expected = atoms.get_stress(voigt=False)
            np.testing.assert_allclose(evaluation.stress, expected, **CLOSE)
    assert conservative.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    assert direct.energy is None


@pytest.mark.parametrize("kind", ["conservative", "direct"])
def test_batches(kind: Any, paths: Dict[str, str]) -> None:
    """Several structures at once give what each gives alone."""
    frames = [random_cell(n, 5.0, seed=n) for n in (6, 9, 4)]
    forces = MetatomicForces(paths["painn"])
    found = forces.evaluate_batch(kind, frames, stress=True)
    for atoms, result in zip(frames, found, strict=True):
        alone = forces.evaluate(kind, atoms, stress=True)
        np.testing.assert_allclose(result.forces, alone.forces, **CLOSE)
        np.testing.assert_allclose(result.stress, alone.stress, **CLOSE)
        assert result.energy == pytest.approx(alone.energy, abs=1e-9)


def test_finite_differences(paths: Dict[str, str]) -> None:
    """Conservative force and stress are derivatives of the energy."""
    atoms, forces = random_cell(6, 5.0, seed=5), MetatomicForces(paths["painn"])
    result = forces.conservative(atoms, stress=True)
    assert result.stress is not None
    step = 1e-4

    def energy(shift: Any = 0.0, strain: Optional[Any] = None) -> float:
        moved = atoms.copy()
        moved.positions += shift
        if strain is not None:
            moved.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        value = forces.conservative(moved).energy
        assert value is not None
        return value

    for index, axis in ((0, 0), (3, 2)):
        shift = np.zeros((6, 3))
        shift[index, axis] = step
        numerical = -(energy(shift) - energy(-shift)) / (2 * step)
        assert result.forces[index, axis] == pytest.approx(numerical, abs=1e-6)
    for i, j in ((0, 0), (1, 2)):
        strain = np.zeros((3, 3))
        strain[i, j] += 0.5 * step
        strain[j, i] += 0.5 * step
        change = energy(strain=strain) - energy(strain=-strain)
        numerical = change / (2 * step) / atoms.get_volume()
        assert result.stress[i, j] == pytest.approx(numerical, abs=1e-7)


def test_two_models(paths: Dict[str, str]) -> None:
    """Energy from one file, direct force from another."""
    atoms = random_cell(8, 6.0, seed=7)
    forces = load_forces(paths["energy"], paths["painn"])
    assert forces.has_direct_stress
    conservative, direct = forces.both(atoms, stress=True)
    expected = MetatomicForces(paths["painn"]).direct(atoms, stress=True)
    np.testing.assert_array_equal(direct.forces, expected.forces)
    np.testing.assert_array_equal(direct.stress, expected.stress)
    atoms.calc = MetatomicCalculator(paths["energy"])
    np.testing.assert_allclose(conservative.forces, atoms.get_forces(), **CLOSE)
    np.testing.assert_allclose(
        conservative.stress, atoms.get_stress(voigt=False), **CLOSE
    )


def test_direct_asks_for_no_energy(
    paths: Dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a model does not compute it is not asked for; both forces take one pass."""
    forces = MetatomicForces(paths["painn"])
    requests: List[Any] = []
    run = forces._run

    def spy(systems: Any, names: List[str]) -> Any:
        requests.append((sorted(names), torch.is_grad_enabled()))
        return run(systems, names)

    monkeypatch.setattr(forces, "_run", spy)
    atoms = random_cell(6, 5.0)
    forces.direct(atoms)
    forces.both(atoms)
    forces.conservative(atoms)
    assert requests == [
        ([FORCE], False),
        ([ENERGY, FORCE], True),
        ([ENERGY], True),
    ]


# ------------------------------------------------------------------- neighbour lists


def test_neighbours_are_exact(paths: Dict[str, str]) -> None:
    """Whatever happens to the structure between evaluations, values are those of new
    lists."""
    kept = MetatomicForces(paths["painn"], skin=1.0)
    atoms = random_cell(12, 6.5, seed=11)
    rng = np.random.default_rng(0)

    def compare() -> None:
        new = MetatomicForces(kept._model, skin=0.0).both(atoms, True)
        for mine, other in zip(kept.both(atoms, True), new, strict=True):
            np.testing.assert_allclose(mine.forces, other.forces, **CLOSE)
            np.testing.assert_allclose(mine.stress, other.stress, **CLOSE)

    compare()
    for _ in range(12):  # in small steps, in place
        atoms.positions += 0.08
        atoms.positions += rng.normal(0.0, 0.08, atoms.positions.shape)
        compare()
    atoms.wrap()
    compare()
    atoms.positions[3] += atoms.cell[0] - 2 * atoms.cell[2]
    compare()
    for _ in range(6):
        atoms.set_cell(atoms.cell.array * 0.985, scale_atoms=True)
        compare()
    atoms.set_cell(atoms.cell.array * 1.02)
    compare()
    atoms.pbc = (True, True, True)
    atoms.cell[0, 1] += 0.3  # in place
    compare()
    atoms.numbers[:] = atoms.numbers[::-1].copy()
    compare()
    atoms = random_cell(12, 7.0, seed=12)  # as many others
    compare()
    atoms = random_cell(5, 4.0, seed=13)  # fewer
    compare()


def test_neighbours_when_periodicity_changes(paths: Dict[str, str]) -> None:
    """A boundary is opened and closed again."""
    kept, atoms = MetatomicForces(paths["painn"]), random_cell(8, 5.0, seed=4)
    for pbc in ((True,) * 3, (True, False, True), (False,) * 3, (True,) * 3):
        atoms.pbc = pbc
        expected = MetatomicForces(kept._model, skin=0.0).both(atoms)
        for mine, other in zip(kept.both(atoms), expected, strict=True):
            np.testing.assert_allclose(mine.forces, other.forces, **CLOSE)


# ------------------------------------------------------------------------- precision


def test_single_precision() -> None:
    """Totals are summed in double precision: a small change of a total that is large
    arrives."""
    model = make_model(dtype=torch.float32).to(torch.float32)
    model.calibrations[ENERGY].baseline.fill_(-470.123)
    forces = MetatomicForces(model.export())
    assert forces.dtype == torch.float32
    atoms = random_cell(96, 11.0, seed=3)
    moved = atoms.copy()
    step = 0.01 * forces.conservative(atoms).forces
    moved.positions += step
    before, after = forces.conservative(atoms), forces.conservative(moved)
    assert before.energy is not None and after.energy is not None
    work = 0.5 * np.sum((before.forces + after.forces) * step)
    assert before.energy - after.energy == pytest.approx(work, abs=2e-3)
    assert abs(before.energy) > 4e4  # steps of float32: 4e-3
    for evaluation in forces.both(atoms):
        assert evaluation.forces.dtype == np.float64


# ------------------------------------------------------------------------- bad input


def test_missing_outputs(paths: Dict[str, str]) -> None:
    """A sentence says what is missing, and what to do."""
    with pytest.raises(MissingForceError, match="no direct force .*`forces: hybrid`"):
        MetatomicForces(paths["energy"]).direct(random_cell(4, 4.0))
    with pytest.raises(MissingForceError, match="no direct force"):
        load_forces(paths["energy"]).both(random_cell(4, 4.0))
    with pytest.raises(FileNotFoundError, match="there is no model file 'no.pt'"):
        MetatomicForces("no.pt")


class Silent(torch.nn.Module):
    """A model that computes nothing."""

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels],
    ) -> Dict[str, TensorMap]:
        """No outputs."""
        return {}


def test_missing_energy() -> None:
    """A sentence says what there is."""
    capabilities = ModelCapabilities(
        outputs={FORCE: ModelOutput(unit="eV/Angstrom", sample_kind="atom")},
        atomic_types=[1],
        interaction_range=4.0,
        length_unit="Angstrom",
        supported_devices=["cpu"],
        dtype="float64",
    )
    model = AtomisticModel(Silent().eval(), ModelMetadata(), capabilities)
    with pytest.raises(MissingForceError, match="has no energy, .*; it has non_conse"):
        MetatomicForces(model).conservative(random_cell(4, 4.0))


def test_variants(paths: Dict[str, str]) -> None:
    """One of several levels of theory is chosen by name."""
    atoms = random_cell(6, 5.0)
    results = [MetatomicForces(paths["variants"], variant=v).both(atoms) for v in "ab"]
    for first, second in zip(*results, strict=True):
        assert np.abs(first.forces - second.forces).max() > 1e-6
    for variant, message in (
        (None, "several variants of 'energy': a, b; name one of them"),
        ("c", "no variant 'c' of its energy; it has a, b"),
    ):
        with pytest.raises(ValueError, match=message):
            MetatomicForces(paths["variants"], variant=variant)


def test_variants_without_direct_forces() -> None:
    """Some variants of an energy have a direct force or stress, others none."""
    model = make_model(info=energy_info(("energy/a", "energy/b", "energy/c")))
    exported = model.export()
    capabilities = exported.capabilities()
    capabilities.outputs = {
        name: output
        for name, output in capabilities.outputs.items()
        if name not in (f"{FORCE}/b", f"{FORCE}s/b", f"{STRESS}/a", f"{STRESS}/b")
    }
    cut = AtomisticModel(exported.module, exported.metadata(), capabilities)
    atoms = random_cell(6, 5.0)
    forces = {v: MetatomicForces(cut, variant=v) for v in "abc"}
    assert [forces[v].has_direct for v in "abc"] == [True, False, True]
    assert [forces[v].has_direct_stress for v in "abc"] == [False, False, True]
    whole = MetatomicForces(exported, variant="b")
    found, expected = forces["b"].conservative(atoms), whole.conservative(atoms)
    np.testing.assert_allclose(found.forces, expected.forces, **CLOSE)
    with pytest.raises(MissingForceError, match="non_conservative_force/a"):
        forces["b"].direct(atoms)


class Published(torch.nn.Module):
    """A model as older ones were published: plural names, kcal/mol, no direct
    stress."""

    def __init__(self, model: AtomisticModel) -> None:
        super().__init__()
        self.model = model.module

    def requested_neighbor_lists(self) -> List[NeighborListOptions]:
        """Those of the model."""
        return self.model.requested_neighbor_lists()

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels],
    ) -> Dict[str, TensorMap]:
        """Its outputs in other units."""
        asked: Dict[str, ModelOutput] = {}
        for name, output in outputs.items():
            asked[name.replace("forces", "force")] = output
        found = self.model(systems, asked, selected_atoms)
        results: Dict[str, TensorMap] = {}
        for name in outputs:
            values = found[name.replace("forces", "force")]
            results[name] = metatensor.torch.multiply(values, 23.060547830619026)
        return results


def test_older_published_models(tmp_path: Path) -> None:
    """Their forces are found, in our units, also from a file."""
    model = make_model(info=energy_info(("energy/a", "energy/b"))).export()
    old = model.capabilities()
    energy = ModelOutput(unit="kcal/mol", sample_kind="system")
    force = ModelOutput(unit="kcal/mol/A", sample_kind="atom")
    capabilities = ModelCapabilities(
        outputs={"energy/a": energy, "energy/b": energy, f"{FORCE}s/a": force},
        atomic_types=old.atomic_types,
        interaction_range=old.interaction_range,
        length_unit=old.length_unit,
        supported_devices=old.supported_devices,
        dtype=old.dtype,
    )
    published = AtomisticModel(Published(model).eval(), ModelMetadata(), capabilities)
    published.save(tmp_path / "published.pt")
    forces, atoms = load_forces(tmp_path / "published.pt", variant="a"), random_cell(6)
    assert forces.has_direct and not forces.has_direct_stress
    expected = MetatomicForces(model, variant="a").both(atoms, stress=True)
    conservative, direct = forces.both(atoms, stress=True)
    assert conservative.energy == pytest.approx(expected[0].energy)
    assert conservative.stress is not None and direct.stress is None
    np.testing.assert_allclose(conservative.stress, expected[0].stress, **CLOSE)
    for mine, other in zip((conservative, direct), expected, strict=True):
        np.testing.assert_allclose(mine.forces, other.forces, **CLOSE)
    with pytest.raises(MissingForceError, match="no direct force"):
        load_forces(tmp_path / "published.pt", variant="b").direct(atoms)


def test_unknown_elements(paths: Dict[str, str]) -> None:
    """Are named."""
    forces = MetatomicForces(paths["painn"])
    atoms = Atoms("FeOAu", [[0, 0, 0], [2, 0, 0], [4, 0, 0]])
    with pytest.raises(ValueError, match="does not know Fe, Au; it knows H, C, N, O"):
        forces.direct(atoms)
    with pytest.raises(ValueError, match="does not know Fe, Au"):
        RespaVelocityVerlet(atoms, 0.1, forces, 2).run(1)


def test_positions_that_are_not_numbers(paths: Dict[str, str], tmp_path: Path) -> None:
    """Do not get as far as the first step."""
    forces, atoms = MetatomicForces(paths["painn"]), random_cell(6, 5.0)
    atoms.positions[2, 0] = np.nan
    run = RespaVelocityVerlet(atoms, 0.1, forces, 2, last_good=tmp_path / "last.xyz")
    with pytest.raises(RunFailedError, match="positions of atoms 2 are not finite"):
        run.run(1)


def test_overlapping_atoms(paths: Dict[str, str], tmp_path: Path) -> None:
    """Two atoms in one place end the run before they meet a nan, with their names."""
    forces, atoms = MetatomicForces(paths["painn"]), random_cell(6, 5.0)
    atoms.positions[2] = atoms.positions[4]
    run = RespaVelocityVerlet(atoms, 0.1, forces, 2, last_good=tmp_path / "last.xyz")
    with pytest.raises(RunFailedError, match="atoms 2 and 4 are only 0.00 Å apart"):
        run.run(2)


# -------------------------------------------------------------------------- calculator


def test_calculator(paths: Dict[str, str]) -> None:
    """A calculator of ASE with the conservative side."""
    forces, atoms = MetatomicForces(paths["painn"]), random_cell(6, 5.0)
    expected = forces.conservative(atoms, stress=True)
    assert expected.stress is not None
    atoms.calc = ConservativeCalculator(forces)
    assert atoms.get_potential_energy() == pytest.approx(expected.energy, abs=1e-10)
    np.testing.assert_allclose(atoms.get_forces(), expected.forces, **CLOSE)
    np.testing.assert_allclose(atoms.get_stress(voigt=False), expected.stress, **CLOSE)
    before = copy.deepcopy(atoms.get_forces())
    atoms.positions[0] += 0.1
    assert np.abs(atoms.get_forces() - before).max() > 1e-6


def test_warm_up_is_done_once(
    paths: Dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves the structure alone."""
    forces, atoms = MetatomicForces(paths["painn"]), random_cell(4, 4.0)
    before = atoms.positions.copy()
    forces.warm_up(atoms)
    monkeypatch.delattr(forces, "_model")
    forces.warm_up(atoms)
    np.testing.assert_array_equal(atoms.positions, before)
