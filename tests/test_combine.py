"""Pairs of models: the energy of one, the direct force of the other."""

import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from click.testing import CliRunner
from helpers import (
    ENERGY,
    FORCE,
    STRESS,
    as_system,
    energy_info,
    make_model,
    random_cell,
)
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import (
    AtomisticModel,
    ModelCapabilities,
    ModelEvaluationOptions,
    ModelMetadata,
    ModelOutput,
    NeighborListOptions,
    System,
    load_atomistic_model,
)
from metatomic_ase import MetatomicCalculator
from test_export import run

from dualforce.cli import main
from dualforce.distillation import combine, combine_files, teacher
from dualforce.forces import MetatomicForces
from dualforce.forces.domain import KEY, TrainingDomain


class Springs(torch.nn.Module):
    """Direct forces: the sum of the vectors to all neighbours within a cutoff."""

    def __init__(self, cutoff: float, output: str = FORCE) -> None:
        super().__init__()
        self.options = NeighborListOptions(cutoff, full_list=True, strict=True)
        self.output = output

    def requested_neighbor_lists(self) -> List[NeighborListOptions]:
        """The list of neighbours."""
        return [self.options]

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels] = None,
    ) -> Dict[str, TensorMap]:
        """Forces on all atoms of one structure."""
        pairs = systems[0].get_neighbor_list(self.options)
        forces = torch.zeros_like(systems[0].positions)
        first = pairs.samples.values[:, 0].to(torch.long)
        forces = forces.index_add(0, first, pairs.values[:, :, 0])
        atoms = torch.arange(forces.shape[0], dtype=torch.int32)
        block = TensorBlock(
            forces.unsqueeze(-1),
            Labels(
                ["system", "atom"], torch.stack([torch.zeros_like(atoms), atoms], 1)
            ),
            [Labels(["xyz"], torch.arange(3, dtype=torch.int32).reshape(3, 1))],
            Labels([self.output], torch.zeros(1, 1, dtype=torch.int32)),
        )
        key = Labels(["_"], torch.zeros(1, 1, dtype=torch.int32))
        return {self.output: TensorMap(key, [block])}


class Forbidden(torch.nn.Module):
    """An energy that nobody may ask for."""

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels] = None,
    ) -> Dict[str, TensorMap]:
        """Fail."""
        raise ValueError("the teacher was run")


def wrap(
    module: torch.nn.Module,
    outputs: Dict[str, str],
    dtype: str = "float64",
    length_unit: str = "angstrom",
    types: Sequence[int] = (1, 6, 7, 8),
    devices: Sequence[str] = ("cpu",),
) -> AtomisticModel:
    """Export a module; ``outputs`` are units by name."""
    kinds = {name: "atom" if "force" in name else "system" for name in outputs}
    capabilities = ModelCapabilities(
        outputs={
            name: ModelOutput(unit=unit, sample_kind=kinds[name])
            for name, unit in outputs.items()
        },
        atomic_types=list(types),
        interaction_range=1.0,
        length_unit=length_unit,
        supported_devices=list(devices),
        dtype=dtype,
    )
    metadata = ModelMetadata(
        name="analytic",
        authors=["A", "B"],
        references={"model": ["a paper"], "architecture": ["another paper"]},
    )
    return AtomisticModel(module.eval(), metadata, capabilities)


def structures(number: int = 6) -> List[Atoms]:
    """Random structures, periodic in all or in some directions, and molecules."""
    conditions = [(True, True, True), (True, True, False), (False, False, False)]
    return [
        random_cell(10, 6.0, seed=seed, pbc=conditions[seed % 3])
        for seed in range(number)
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, str]:
    """A teacher in double precision with variants and forces of its own, a student in
    single precision with another cutoff, and their pair."""
    folder = tmp_path_factory.mktemp("pair")
    names = {n: str(folder / f"{n}.pt") for n in ("teacher", "student", "pair")}
    info = energy_info((ENERGY, "energy/pbe"))
    make_model(info=info).export().save(names["teacher"])
    student = make_model(dtype=torch.float32, forces="direct")
    torch.manual_seed(1)
    for parameter in student.backbone.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    student.export().save(names["student"])
    result = CliRunner().invoke(
        main,
        ["combine", names["teacher"], names["student"], "-o", names["pair"]],
    )
    assert result.exit_code == 0, result.output
    return names


def check_pair(
    pair: MetatomicForces,
    teacher: MetatomicForces,
    student: MetatomicForces,
    atoms: Atoms,
) -> None:
    """The pair has the energy of one and the direct forces of the other."""
    stress = bool(atoms.pbc.all())
    expected = teacher.conservative(atoms, stress)
    expected_direct = student.direct(atoms, stress)
    both = pair.both(atoms, stress)
    for mine in (both[0], pair.conservative(atoms, stress)):
        assert mine.energy == expected.energy
        assert np.array_equal(mine.forces, expected.forces)
        if stress:
            assert np.array_equal(mine.stress, expected.stress)
    for mine in (both[1], pair.direct(atoms, stress)):
        # the network of the student computes in single precision
        np.testing.assert_allclose(mine.forces, expected_direct.forces, atol=1e-6)
        assert np.abs(mine.forces.sum(0)).max() < 1e-12
        if stress:
            np.testing.assert_allclose(mine.stress, expected_direct.stress, atol=1e-8)
    assert np.abs(expected_direct.forces - teacher.direct(atoms).forces).max() > 0.1


def test_pair_is_teacher_and_student_bit_for_bit(files: Dict[str, str]) -> None:
    """Energy and conservative force of one, direct force of the other, alone and in one
    evaluation.

    Without the optimiser of TorchScript: while it compiles, the first evaluations of
    any model differ among themselves in the last bit.
    """
    pair = MetatomicForces(files["pair"])
    teacher, student = (
        MetatomicForces(files["teacher"]),
        MetatomicForces(files["student"]),
    )
    with torch.jit.optimized_execution(False):
        for atoms in structures():
            check_pair(pair, teacher, student, atoms)


def test_other_outputs_are_the_teachers(files: Dict[str, str]) -> None:
    """Variants and features; its direct forces are gone."""
    pair, teacher = (load_atomistic_model(files[n]) for n in ("pair", "teacher"))
    assert {n for n in pair.capabilities().outputs if n.startswith("non")} == {
        FORCE,
        FORCE + "s",  # the name that older engines ask for
        STRESS,
    }
    names = [ENERGY, "energy/pbe", "feature"]
    outputs = {
        n: ModelOutput(sample_kind="atom", unit="" if n == "feature" else "eV")
        for n in names
    }
    for atoms in structures(2):
        mine, expected = run(pair, atoms, outputs), run(teacher, atoms, outputs)
        for name in names:
            assert torch.equal(mine[name], expected[name])


def test_direct_requests_do_not_run_the_teacher() -> None:
    """And energies do not run the student."""
    teacher = wrap(Forbidden(), {ENERGY: "eV"})
    pair = combine(teacher, wrap(Springs(3.0), {FORCE: "eV/Angstrom"}))
    forces = MetatomicForces(pair)
    atoms = structures(1)[0]
    assert np.abs(forces.direct(atoms).forces).max() > 0.1
    with pytest.raises(ValueError, match="the teacher was run"):
        forces.conservative(atoms)
    student = wrap(Forbidden(), {FORCE: "eV/Angstrom"})
    exported = make_model().export()
    energy = MetatomicForces(combine(exported, student)).conservative(atoms).energy
    assert energy == MetatomicForces(exported).conservative(atoms).energy


def test_units_and_precision_of_the_student(tmp_path: Path) -> None:
    """A student in nanometres and single precision, with the old name of its output;
    engines ask in their own units."""
    springs = Springs(0.3, FORCE + "s")
    with pytest.warns(UserWarning, match="deprecated"):
        student = wrap(springs, {FORCE + "s": "eV/nm"}, "float32", "nm")
    pair = combine(make_model().export(), student)
    pair.save(str(tmp_path / "combined.pt"))
    loaded = load_atomistic_model(str(tmp_path / "combined.pt"))
    capabilities = loaded.capabilities()
    assert capabilities.dtype == "float64" and capabilities.length_unit == "Angstrom"
    cutoffs = [options.cutoff for options in loaded.requested_neighbor_lists()]
    assert cutoffs == pytest.approx([4.0, 3.0])
    for atoms in structures(3):
        vectors = np.zeros((len(atoms), 3))
        first, second, shifts = ase.neighborlist.neighbor_list("ijS", atoms, 3.0)
        positions = atoms.positions
        pairs = positions[second] - positions[first] + shifts @ atoms.cell.array
        np.add.at(vectors, first, pairs)
        outputs = {FORCE: ModelOutput(unit="eV/Angstrom", sample_kind="atom")}
        values = run(loaded, atoms, outputs)[FORCE]
        assert values.dtype == torch.float64
        # the sum is in nm and eV/nm
        np.testing.assert_allclose(values[:, :, 0], 0.01 * vectors, atol=1e-6)


def test_ase_reads_a_pair(files: Dict[str, str]) -> None:
    """With the calculator of metatomic, and all its checks."""
    atoms = structures(1)[0]
    results = {}
    for name in ("pair", "teacher"):
        atoms.calc = MetatomicCalculator(files[name], check_consistency=True)
        results[name] = (atoms.get_potential_energy(), atoms.get_forces())
    assert results["pair"][0] == results["teacher"][0]
    assert np.array_equal(results["pair"][1], results["teacher"][1])
    forces = {}
    for name in ("pair", "student"):
        atoms.calc = MetatomicCalculator(
            files[name], non_conservative=True, check_consistency=True
        )
        forces[name] = atoms.get_forces()
    np.testing.assert_allclose(forces["pair"], forces["student"], atol=1e-12)


def test_selected_atoms(files: Dict[str, str]) -> None:
    """Engines that split the atoms over domains ask for some of them."""
    pair = load_atomistic_model(files["pair"])
    atoms = structures(1)[0]
    outputs = {FORCE: ModelOutput(unit="eV/Angstrom", sample_kind="atom")}
    everything = run(pair, atoms, outputs)[FORCE]
    chosen = Labels(["system", "atom"], torch.tensor([[0, 2], [0, 7]]))
    options = ModelEvaluationOptions("Angstrom", outputs, chosen)
    system = as_system(pair, atoms)
    some = pair([system], options, check_consistency=True)[FORCE].block()
    assert torch.equal(some.values, everything[[2, 7]])


def test_metadata_names_both() -> None:
    """Authors and references of both, once each."""
    student = wrap(Springs(3.0), {FORCE: "eV/Angstrom"})
    pair = combine(make_model().export(ModelMetadata(name="T", authors=["A"])), student)
    metadata = pair.metadata()
    assert metadata.name == "T"
    assert "T" in metadata.description and "analytic" in metadata.description
    assert metadata.authors == ["A", "B"]
    assert metadata.references["model"] == ["a paper"]
    cited = metadata.references["architecture"]
    assert "another paper" in cited and any("2412.11569" in text for text in cited)
    assert pair.capabilities().interaction_range == 12.0


def test_what_the_teacher_knows_of_its_forces_is_not_said_of_the_pair() -> None:
    """How far its own two forces are apart; what its data cover stays."""
    domain = {
        "cutoff": 5.0,
        "shortest": {"H-O": 0.9},
        "neighbors": {},
        "density": [],
        "composition": {},
        "force_difference": {"energy": 0.02},
    }
    metadata = ModelMetadata(extra={KEY: json.dumps(domain)})
    student = wrap(Springs(3.0), {FORCE: "eV/Angstrom"})
    pair = combine(make_model().export(metadata), student)
    known = TrainingDomain.from_extra(pair.metadata().extra)
    assert known is not None and known.shortest["O", "H"] == 0.9
    assert known.force_difference == {}
    assert MetatomicForces(pair).usual_correction is None


def test_only_common_elements(caplog: pytest.LogCaptureFixture) -> None:
    """A general teacher with a student for some elements."""
    student = wrap(Springs(3.0), {FORCE: "eV/Angstrom"}, types=(1, 8, 92))
    pair = combine(make_model().export(), student)
    assert pair.capabilities().atomic_types == [1, 8]
    assert (
        "the student does not know C, N; the combined model is for H, O" in caplog.text
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"types": [92]}, "knows H, C, N, O, the student U: they have no element"),
        ({"devices": ["mps"]}, "the student on mps: there is no device for both"),
        ({"length_unit": ""}, "the student does not say its length unit"),
        ({"outputs": {ENERGY: "eV"}}, "the student has no direct force"),
    ],
)
def test_models_that_do_not_fit(changes: Dict[str, Any], message: str) -> None:
    """What does not fit is said."""
    given = {"outputs": {FORCE: "eV/Angstrom"}, **changes}
    with pytest.raises(ValueError, match=message):
        combine(make_model().export(), wrap(Springs(3.0), **given))


@pytest.mark.parametrize("source", ["exported.pt", "teacher.ckpt"])
def test_teacher_without_a_length_unit(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before it labels anything, exported or not."""
    exported = tmp_path / "exported.pt"
    wrap(Forbidden(), {ENERGY: "eV"}, length_unit="").save(str(exported))
    (tmp_path / "teacher.ckpt").touch()
    monkeypatch.setattr(teacher, "_export", lambda *_: exported)
    with pytest.raises(ValueError, match="the teacher does not say its length unit"):
        teacher.load_teacher(str(tmp_path / source), tmp_path)


def test_teacher_without_energy() -> None:
    """There must be one."""
    direct = wrap(Springs(3.0), {FORCE: "eV/Angstrom"})
    with pytest.raises(ValueError, match="the teacher has no energy; it has non_cons"):
        combine(direct, direct)


def test_files_that_are_no_models(files: Dict[str, str], tmp_path: Path) -> None:
    """Named, and nothing is written."""
    (tmp_path / "model.ckpt").write_text("no model")
    with pytest.raises(ValueError, match="model.ckpt is not an exported metatomic"):
        combine_files(
            files["teacher"], tmp_path / "model.ckpt", tmp_path / "combined.pt"
        )
    assert not (tmp_path / "combined.pt").exists()


def test_pair_of_a_pair(files: Dict[str, str], tmp_path: Path) -> None:
    """A pair may be a teacher in turn."""
    combine_files(files["pair"], files["teacher"], tmp_path / "again.pt")
    again, teacher = (
        MetatomicForces(p) for p in (tmp_path / "again.pt", files["teacher"])
    )
    atoms = structures(1)[0]
    mine, expected = again.both(atoms), teacher.both(atoms)
    assert mine[0].energy == expected[0].energy
    assert np.array_equal(mine[1].forces, expected[1].forces)
