"""Many replicas in torch-sim: trajectories, cost, ensembles, guard, restarts."""

import logging
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List

import ase
import numpy as np
import pytest
import torch
from ase import units
from ase.constraints import FixAtoms, FixBondLength
from helpers import FORCE, energy_info, make_model, random_cell
from metatomic.torch import (
    AtomisticModel,
    ModelCapabilities,
    ModelMetadata,
    ModelOutput,
)
from test_forces import Silent
from torch import Tensor

from dualforce.forces import MetatomicForces, MissingForceError
from dualforce.md import (
    Guard,
    RespaLangevin,
    RespaSVR,
    RespaVelocityVerlet,
    RunFailedError,
    set_thermal_momenta,
)


ts = pytest.importorskip("torch_sim")
torchsim = pytest.importorskip("dualforce.torchsim")
exported_model = pytest.importorskip("dualforce.torchsim.exported")

DT = 0.25 * units.fs
KT = 300.0 * units.kB
NVE = (torchsim.respa_nve_init, torchsim.respa_nve_step)


@pytest.fixture(autouse=True)
def _without_compilation() -> Any:
    """Compiling takes longer than running."""
    with torch.jit.optimized_execution(False):
        yield


@pytest.fixture(scope="module")
def exported() -> AtomisticModel:
    """A small untrained model, in double precision."""
    return make_model().export()


@pytest.fixture(scope="module")
def model(exported: AtomisticModel) -> Any:
    """The same, in torch-sim."""
    return torchsim.load_model(exported, device="cpu")


def frames(n: int = 3) -> List[ase.Atoms]:
    """Structures of different sizes and cells, with velocities."""
    structures = [random_cell(10 + 2 * i, 6.0 + 0.5 * i, seed=i) for i in range(n)]
    for i, atoms in enumerate(structures):
        set_thermal_momenta(atoms, 300.0, np.random.default_rng(i))
    return structures


class Springs(torchsim.TwoForceModel):  # type: ignore[name-defined]
    """Atoms on springs of 0.5 eV/Å^2; the direct force of one spring is off by a part.

    :param errors: part of the force, for each replica.
    """

    def __init__(self, errors: Any = 0.2) -> None:
        super().__init__(torch.device("cpu"), torch.float64)
        self.errors = torch.as_tensor(errors, dtype=torch.float64)
        self.sick: Dict[int, str] = {}
        """What happens to replicas where an atom is farther than 3 Å."""

    def _forces(self, state: Any) -> Tensor:
        forces = -0.5 * state.positions
        for index, number in enumerate(state.replica.tolist()):
            atoms = state.system_idx == index
            if number in self.sick and bool((state.positions[atoms] > 3.0).any()):
                if self.sick[number] == "raises":
                    raise RuntimeError("two atoms lie at the same place")
                # as in a network, where what is not finite may spread
                forces = torch.full_like(forces, torch.nan)
        return forces

    def forward(self, state: Any, **kwargs: Any) -> Dict[str, Tensor]:
        energies = 0.25 * (state.positions**2).sum(1)
        totals = torch.zeros(len(state.cell), dtype=torch.float64)
        totals = totals.index_add(0, state.system_idx, energies)
        return {"energy": totals, "forces": self._forces(state)}

    def direct(self, state: Any) -> Tensor:
        errors = self.errors if self.errors.ndim == 0 else self.errors[state.replica]
        factors = 1.0 - errors
        factors = factors if factors.ndim == 0 else factors[state.system_idx, None]
        return factors * self._forces(state)


def on_springs(n_replicas: int, n_atoms: int = 4, seed: int = 0) -> Any:
    """Replicas at 300 K; a thousand of them are good statistics."""
    rng = np.random.default_rng(seed)
    width = np.sqrt(KT / 0.5)
    structures = [
        ase.Atoms(f"Ar{n_atoms}", width * rng.standard_normal((n_atoms, 3)))
        for _ in range(n_replicas)
    ]
    for atoms in structures:
        momenta = np.sqrt(atoms.get_masses()[:, None] * KT)
        atoms.set_momenta(momenta * rng.standard_normal((n_atoms, 3)))
    return torchsim.state_from_atoms(structures)


def without_energy() -> AtomisticModel:
    """A model that promises a direct force only."""
    capabilities = ModelCapabilities(
        outputs={FORCE: ModelOutput(unit="eV/Angstrom", sample_kind="atom")},
        atomic_types=[1],
        interaction_range=4.0,
        length_unit="Angstrom",
        supported_devices=["cpu"],
        dtype="float64",
    )
    return AtomisticModel(Silent().eval(), ModelMetadata(), capabilities)


def steps(step: Any, state: Any, model: Any, number: int, **options: Any) -> Any:
    """Take some outer steps."""
    for _ in range(number):
        state = step(state=state, model=model, **options)
    return state


# ------------------------------------------------------------------------ trajectories


@pytest.mark.parametrize("n_inner", [1, 4])
def test_trajectory_is_ours(
    n_inner: int, model: Any, exported: AtomisticModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replicas follow the trajectories they follow alone in ASE, at the promised cost
    and with the same conserved quantity and correction."""
    passes: List[Any] = []
    evaluate = exported_model.ExportedModel.evaluate_systems

    def counted(self: Any, systems: Any, **wanted: bool) -> Any:
        passes.append(tuple(sorted(k for k in wanted if wanted[k])))
        return evaluate(self, systems, **wanted)

    structures = frames()
    state = torchsim.respa_nve_init(torchsim.state_from_atoms(structures), model, kT=KT)
    monkeypatch.setattr(exported_model.ExportedModel, "evaluate_systems", counted)
    state = steps(torchsim.respa_nve_step, state, model, 10, dt=DT, n_inner=n_inner)
    direct = [("direct",)] * (n_inner - 1)
    outer = ("direct", "energy") if n_inner > 1 else ("energy",)
    assert passes == (direct + [outer]) * 10
    forces = MetatomicForces(exported, device="cpu")
    for index, (atoms, ours) in enumerate(
        zip(structures, torchsim.atoms_from_state(state), strict=True)
    ):
        start = atoms.positions.copy()
        run = RespaVelocityVerlet(atoms, DT, forces, n_inner)
        run.run(10)
        assert np.abs(atoms.positions - start).max() > 0.02
        np.testing.assert_allclose(ours.positions, atoms.positions, atol=1e-10)
        np.testing.assert_allclose(ours.get_momenta(), atoms.get_momenta(), atol=1e-9)
        np.testing.assert_allclose(ours.get_forces(), atoms.get_forces(), atol=1e-8)
        np.testing.assert_array_equal(ours.get_masses(), atoms.get_masses())
        assert ours.get_potential_energy() == pytest.approx(
            run.point.conservative.energy
        )
        assert float(state.conserved[index]) == pytest.approx(run.conserved, abs=1e-9)
        correction = run.point.correction or np.nan
        assert float(state.correction[index]) == pytest.approx(
            correction, rel=1e-8, nan_ok=True
        )


@pytest.mark.parametrize("name", ["nve", "nvt_langevin", "nvt_vrescale"])
def test_one_inner_step_is_torch_sim(name: str, model: Any) -> None:
    """The same seed gives the trajectory of torch-sim's own integrator, from drawn
    velocities on; at constant energy and with friction bitwise."""
    options: Dict[str, Any] = {"dt": DT}
    if name == "nvt_langevin":
        options |= {"kT": KT, "gamma": 0.1}
    elif name == "nvt_vrescale":
        options |= {"kT": torch.tensor([KT, 2 * KT, KT]), "tau": 30.0 * DT}
    finals = []
    for module, prefix in ((ts, ""), (torchsim, "respa_")):
        start = ts.initialize_state(frames(), model.device, model.dtype)
        start.rng = 7
        state = getattr(module, f"{prefix}{name}_init")(start, model, kT=KT)
        step = getattr(module, f"{prefix}{name}_step")
        finals.append(steps(step, state, model, 10, **options))
    theirs, ours = finals
    # torch-sim draws a part of the numbers for rescaling in single precision
    tolerance = 1e-8 if name == "nvt_vrescale" else 0.0
    for field in ("positions", "momenta", "forces", "energy"):
        torch.testing.assert_close(
            getattr(ours, field), getattr(theirs, field), atol=tolerance, rtol=0.0
        )


class Chosen:
    """Random numbers that are not."""

    def __init__(self, normal: Any, gamma: Any = ()) -> None:
        self.normal, self.gamma = list(normal), list(gamma)
        self.bit_generator = SimpleNamespace(state=None)

    def standard_normal(self, shape: Any = None) -> Any:
        """The next of them."""
        return self.normal.pop(0)

    def standard_gamma(self, shape: float) -> Any:
        """The next of them."""
        return self.gamma.pop(0)


@pytest.mark.parametrize("name", ["langevin", "vrescale"])
def test_thermostats_are_ours(name: str, model: Any, exported: AtomisticModel) -> None:
    """The same random numbers give the trajectory of our own thermostats, and the same
    heat, for four inner steps."""
    (atoms,) = frames(1)
    start = torchsim.state_from_atoms(atoms)
    start.rng = 3
    state = getattr(torchsim, f"respa_nvt_{name}_init")(start, model, kT=KT)
    numbers = torch.Generator()
    numbers.set_state(state.rng.get_state())
    shape, n_steps, wide = atoms.positions.shape, 6, {"dtype": torch.float64}
    normal: List[Any] = []
    gamma: List[Any] = []
    for _ in range(n_steps):
        if name == "langevin":
            normal += [torch.randn(shape, generator=numbers, **wide) for _ in range(4)]
            continue
        normal.append(float(torch.randn(1, generator=numbers, **wide)))
        half = torch.tensor([0.5 * (3 * len(atoms) - 4)], **wide)
        gamma.append(float(torch._standard_gamma(half, generator=numbers)))
    common: Dict[str, Any] = {"temperature_K": 500.0}
    common["rng"] = np.random.default_rng()
    forces = MetatomicForces(exported, device="cpu")
    if name == "langevin":
        normal = [noise.numpy() for noise in normal]
        run: Any = RespaLangevin(atoms, DT, forces, 4, friction=0.1, **common)
        options = {"gamma": 0.1}
    else:
        run = RespaSVR(atoms, DT, forces, 4, tau=30 * DT, **common)
        run._rescaling.n_degrees -= 3  # the centre of mass
        options = {"tau": 30 * DT}
    run.rng = Chosen(normal, gamma)
    run.run(n_steps)
    step = getattr(torchsim, f"respa_nvt_{name}_step")
    state = steps(
        step, state, model, n_steps, dt=DT, kT=500.0 * units.kB, n_inner=4, **options
    )
    np.testing.assert_allclose(state.positions, atoms.positions, atol=1e-9)
    np.testing.assert_allclose(state.momenta, atoms.get_momenta(), atol=1e-9)
    assert abs(run.heat) > 1e-3
    assert float(state.heat[0]) == pytest.approx(run.heat, abs=1e-9)
    assert float(state.conserved[0]) == pytest.approx(run.conserved, abs=1e-9)


def test_temperatures() -> None:
    """Kinetic energy and springs have the temperature of each replica, although the
    direct force is wrong by a fifth, and the conserved quantity hardly moves."""
    n, springs = 400, Springs(0.2)
    start = on_springs(n)
    start.rng = 1
    kT = KT * torch.cat([torch.ones(n // 2), torch.full((n // 2,), 2.0)])
    state = torchsim.respa_nvt_langevin_init(start, springs, kT=KT)
    options = {"dt": 0.5, "kT": kT, "gamma": 0.06, "n_inner": 4}
    kinetic, potential = [], []
    for number in range(200):
        state = torchsim.respa_nvt_langevin_step(state, springs, **options)
        if number >= 100:
            kinetic.append(state.calc_kT().reshape(2, -1).mean(1))
            potential.append(state.energy.reshape(2, -1).mean(1) / 6.0)
    expected = KT * np.array([1.0, 2.0])
    np.testing.assert_allclose(torch.stack(kinetic).mean(0), expected, rtol=0.03)
    np.testing.assert_allclose(torch.stack(potential).mean(0), expected, rtol=0.03)
    drift = (state.conserved - state.start_conserved) / 4
    assert float(drift.abs().mean()) < 0.1 * KT < 0.5 * float(state.heat.abs().mean())


def test_energy_is_conserved(model: Any) -> None:
    """Conservative and kinetic energy, although the direct force is that of an
    untrained network; without the correction they drift."""
    state = torchsim.respa_nve_init(torchsim.state_from_atoms(frames()), model, kT=KT)
    state = steps(torchsim.respa_nve_step, state, model, 20, dt=DT, n_inner=2)
    drift = (state.conserved - state.start_conserved) / state.n_atoms_per_system
    assert float(drift.abs().max()) < 1e-3
    assert float(state.kinetic_energy.min()) > 0.1


# --------------------------------------------------------------------------- the model


def test_model_is_one_of_torch_sim(tmp_path: Path) -> None:
    """It passes torch-sim's own checks, from a file as well."""
    info = energy_info(types=[1, 6, 12, 14, 26])
    path = tmp_path / "small.pt"
    make_model(info=info).export().save(str(path))
    model = torchsim.load_model(path, device="cpu")
    ts.models.interface.validate_model_outputs(model, model.device, model.dtype)


def test_model_is_that_of_metatomic(exported: AtomisticModel) -> None:
    """Energies, conservative forces and stresses are those of metatomic-torchsim."""
    metatomic_torchsim = pytest.importorskip("metatomic_torchsim")
    ours = torchsim.load_model(exported, device="cpu")
    ours.compute_stress = True
    theirs = metatomic_torchsim.MetatomicModel(exported, device="cpu")
    state = ts.initialize_state(frames(), ours.device, ours.dtype)
    results, expected = ours.both(state), theirs(state)
    for name in ("energy", "forces", "stress"):
        torch.testing.assert_close(results[name], expected[name], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(results["direct_forces"], ours.direct(state))


def test_net_direct_force_is_removed_by_mass() -> None:
    """In each replica on its own, so that accelerations change by a constant."""
    exported = make_model("pet").export()
    model = torchsim.load_model(exported, device="cpu")
    structures = frames()
    forces = MetatomicForces(exported, device="cpu")
    state = torchsim.state_from_atoms(structures)
    direct = model.direct(state)
    assert direct.dtype == torch.float64
    for index, atoms in enumerate(structures):
        expected = forces.direct(atoms)
        assert np.abs(expected.net_force).max() > 1e-4
        ours = direct[state.system_idx == index].numpy()
        np.testing.assert_allclose(ours, expected.forces, atol=1e-10)
        np.testing.assert_allclose(ours.sum(0), 0.0, atol=1e-12)


def test_energies_in_double_precision() -> None:
    """Of a model that exchanges single precision, whose totals are rounded."""
    network = make_model(dtype=torch.float32)
    network.interface = network.interface.float()
    for calibration in network.calibrations.values():
        calibration.baseline.sub_(300.0)
    exported = network.export()
    model = torchsim.load_model(exported, device="cpu")
    structures = frames()
    energies = model(torchsim.state_from_atoms(structures))["energy"]
    forces = MetatomicForces(exported, device="cpu")
    expected = [forces.conservative(atoms).energy for atoms in structures]
    assert energies.dtype == torch.float64
    np.testing.assert_allclose(energies, expected, atol=1e-9)


def test_combined_models(model: Any, exported: AtomisticModel, tmp_path: Path) -> None:
    """The direct force of a second model, or its conservative one, and its cost."""
    exported.save(str(tmp_path / "small.pt"))
    other = make_model("pet").export()
    state = torchsim.state_from_atoms(frames())
    combined = torchsim.load_model(tmp_path / "small.pt", other, device="cpu")
    results = combined.both(state)
    torch.testing.assert_close(results["forces"], model(state)["forces"])
    second = torchsim.load_model(other, device="cpu")
    torch.testing.assert_close(results["direct_forces"], second.direct(state))
    assert "small.pt with the direct force of" in combined.name
    lennard_jones = pytest.importorskip("torch_sim.models.lennard_jones")
    plain = lennard_jones.LennardJonesModel(
        sigma=1.0, epsilon=0.01, cutoff=3.0, dtype=torch.float64
    )
    combined = torchsim.CombinedModel(model, plain)
    torch.testing.assert_close(combined.direct(state), plain(state)["forces"])
    combined.compute_stress = True
    assert "stress" in combined(state)
    combined.compute_stress = False
    started = torchsim.respa_nve_init(state, combined, kT=KT)
    final = torchsim.respa_nve_step(started, combined, dt=DT, n_inner=2)
    assert not final.failed.any()


# --------------------------------------------------------------- restarts and batches


@pytest.mark.parametrize("name", ["nve", "nvt_langevin", "nvt_vrescale"])
def test_restarts(name: str, model: Any, tmp_path: Path) -> None:
    """Bitwise identical, through a file and through torch-sim's own loop."""
    options: Dict[str, Any] = {"n_inner": 2}
    options |= {"gamma": 0.1} if name == "nvt_langevin" else {}
    options |= {"tau": 30.0 * DT} if name == "nvt_vrescale" else {}
    init = getattr(torchsim, f"respa_{name}_init")
    step = getattr(torchsim, f"respa_{name}_step")

    def run(state: Any, number: int) -> Any:
        return ts.integrate(
            state,
            model,
            integrator=(init, step),
            n_steps=number,
            timestep=0.00025,
            temperature=300.0,
            **options,
        )

    start = torchsim.state_from_atoms(frames())
    start.rng = 5
    whole = run(start, 6)
    half = run(start, 3)
    torch.save(asdict(half), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=False)
    continued = run(type(half)(**saved), 3)
    for field, expected in asdict(whole).items():
        if isinstance(expected, Tensor):
            found = getattr(continued, field)
            torch.testing.assert_close(found, expected, atol=0, rtol=0, equal_nan=True)
    assert whole.outer_steps.tolist() == [6, 6, 6]
    assert not torch.equal(whole.positions, half.positions)


def test_autobatching(model: Any) -> None:
    """Replicas that do not run together follow the same trajectories, keep their
    numbers, and get random numbers of their own."""
    structures = frames(2) + frames(2)
    for atoms in structures:
        atoms.set_momenta(np.zeros_like(atoms.positions))
    batcher = ts.BinningAutoBatcher(
        model=model, memory_scales_with="n_atoms", max_memory_scaler=24
    )

    def run(integrator: Any, autobatcher: Any, **options: Any) -> Any:
        state = torchsim.state_from_atoms(structures)
        state.rng = 5
        return ts.integrate(
            state,
            model,
            integrator=integrator,
            n_steps=3,
            timestep=0.00025,
            temperature=300.0,
            n_inner=2,
            autobatcher=autobatcher,
            **options,
        )

    langevin = (torchsim.respa_nvt_langevin_init, torchsim.respa_nvt_langevin_step)
    final = run(langevin, batcher, gamma=0.5)
    assert final.replica.tolist() == [0, 1, 2, 3]
    twins = [final.positions[final.system_idx == i] for i in range(4)]
    assert float((twins[0] - twins[2]).abs().max()) > 1e-3
    assert float((twins[1] - twins[3]).abs().max()) > 1e-3
    structures[:] = frames(4)
    together, apart = run(NVE, False), run(NVE, batcher)
    torch.testing.assert_close(together.positions, apart.positions, atol=1e-10, rtol=0)
    torch.testing.assert_close(together.conserved, apart.conserved, atol=1e-9, rtol=0)


def test_structures(model: Any) -> None:
    """Velocities, masses and fixed atoms come along; the rest is refused."""
    structures = frames(2)
    structures[1].set_constraint(FixAtoms([2, 3]))
    structures[1].set_momenta(structures[1].get_momenta())
    structures[0].set_masses(2.0 + np.arange(len(structures[0])))
    start = torchsim.state_from_atoms(structures)
    state = torchsim.respa_nvt_vrescale_init(start, model, kT=KT)
    degrees = state.get_number_of_degrees_of_freedom().tolist()
    assert degrees == [3 * 10 - 3, 3 * 10]
    state = steps(
        torchsim.respa_nvt_vrescale_step,
        state,
        model,
        3,
        dt=DT,
        kT=KT,
        tau=10.0,
        n_inner=2,
    )
    final = torchsim.atoms_from_state(state)
    moved = [a.positions - b.positions for a, b in zip(final, structures, strict=True)]
    np.testing.assert_array_equal(moved[1][[2, 3]], 0.0)
    assert all((np.abs(m).max(1) > 1e-4).sum() >= 10 for m in moved)
    np.testing.assert_array_equal(final[0].get_masses(), structures[0].get_masses())
    assert not hasattr(torchsim.state_from_atoms(random_cell(4)), "momenta")
    structures[0].set_constraint(FixBondLength(0, 1))
    with pytest.raises(ValueError, match="FixBondLengths is not carried over"):
        torchsim.state_from_atoms(structures)


# --------------------------------------------------------------------------- the guard


def test_guard_watches_each_replica(caplog: pytest.LogCaptureFixture) -> None:
    """The correction of each against its own usual value; warnings have the number of
    the replica, and another one comes with what is worse."""
    springs = Springs(torch.tensor([0.1, 0.2, 0.02]))
    state = on_springs(3, n_atoms=60)
    state = torchsim.respa_nve_init(state, springs, kT=KT, window=5)

    def run(number: int) -> List[str]:
        nonlocal state
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            state = steps(
                torchsim.respa_nve_step, state, springs, number, dt=0.3, n_inner=2
            )
        return [record.message for record in caplog.records]

    assert run(10) == []
    usual = state.corrections.quantile(0.5, dim=1)
    assert float(usual[1]) == pytest.approx(2 * float(usual[0]), rel=0.2), (
        "the corrections are those of the errors"
    )
    springs.errors = torch.tensor([0.1, 0.4, 0.04])
    (first, second) = run(3)
    assert first.startswith("replica 1: conservative and direct force differ by")
    assert second.startswith("replica 2: ")
    assert f"usually by {1000 * float(usual[1]):.0f}: use fewer inner steps" in first
    assert run(3) == []
    springs.errors = torch.tensor([0.1, 0.2, 0.04])
    assert run(6) == []
    springs.errors = torch.tensor([0.1, 0.4, 0.04])
    assert run(1) == []  # as large as before
    springs.errors = torch.tensor([0.1, 0.8, 0.04])
    (again,) = run(1)
    assert again.startswith("replica 1: ")
    guard, run_of_one = Guard(window=5), state.corrections[0].tolist()
    for value in run_of_one:
        guard.watch(value, 2)
    assert np.median(guard.corrections) == pytest.approx(float(usual[0]))


@pytest.mark.parametrize("what", ["raises", "nan", "far", "drift"])
@pytest.mark.parametrize("name", ["nve", "nvt_langevin", "nvt_vrescale"])
def test_bad_replica(what: str, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Stops at its last good structure, and the others do not notice."""

    def run(bad: bool) -> Any:
        springs = Springs()
        state = on_springs(4)
        state.rng = 2
        init = getattr(torchsim, f"respa_{name}_init")
        state = init(state, springs, kT=KT)
        if bad:
            hit = torch.zeros_like(state.momenta)
            # atom 1 of replica 1, of 40 u
            hit[5, 0] = {"far": 200.0, "drift": 0.0}.get(what, 30.0)
            state.momenta = state.momenta + hit
            if what in ("raises", "nan"):
                springs.sick = {1: what}
            lost = torch.tensor([0.0, 100.0 * (what == "drift"), 0.0, 0.0])
            state.start_conserved = state.conserved + lost
        options: Dict[str, Any] = {"dt": 0.5, "n_inner": 4, "max_drift": 10.0}
        options |= {"kT": KT, "gamma": 0.02} if name == "nvt_langevin" else {}
        options |= {"kT": KT, "tau": 50.0} if name == "nvt_vrescale" else {}
        step = getattr(torchsim, f"respa_{name}_step")
        return steps(step, state, springs, 8, **options)

    with caplog.at_level(logging.WARNING):
        state, healthy = run(True), run(False)
    assert state.failed.tolist() == [False, True, False, False]
    assert not healthy.failed.any()
    (message,) = [r.message for r in caplog.records if "has stopped" in r.message][:1]
    reason = {
        "raises": "two atoms lie at the same place",
        "nan": "its energy or a force is not finite",
        "far": "atoms 1 would move by more than 1.0 Å in one step of time",
        "drift": "its conserved quantity has changed by",
    }[what]
    taken = int(state.outer_steps[1])
    expected = f"replica 1 has stopped after {taken} outer steps, at its last good"
    assert message.startswith(expected) and reason in message
    assert taken < 8 and state.outer_steps.tolist() == [8, taken, 8, 8]
    for field in ("positions", "momenta", "forces", "direct_forces"):
        values = getattr(state, field)
        assert torch.isfinite(values).all()
        others = state.system_idx != 1
        assert torch.equal(values[others], getattr(healthy, field)[others])
    others = torch.tensor([0, 2, 3])
    assert torch.equal(state.conserved[others], healthy.conserved[others])
    assert torch.isfinite(state.conserved).all()


def test_all_have_stopped(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing happens any more, so that other batches go on."""
    state = torchsim.respa_nve_init(on_springs(2), Springs(), kT=KT)
    state = steps(
        torchsim.respa_nve_step, state, Springs(), 3, dt=0.5, n_inner=2, max_drift=1e-12
    )
    assert state.failed.all() and state.outer_steps.tolist() == [0, 0]
    assert len(caplog.records) == 2
    sick = Springs()
    sick.sick = {0: "raises"}
    state.positions = state.positions + 5.0
    torchsim.respa_nve_step(state, sick, dt=0.5, n_inner=2)


def test_network_fails_for_one(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Atoms at the same place end one replica, whatever the network says of them."""
    state = torchsim.respa_nve_init(torchsim.state_from_atoms(frames()), model, kT=KT)
    first, second = torch.where(state.system_idx == 1)[0][:2]
    shift = torch.tensor([0.3, 0.0, 0.0], dtype=torch.float64)
    for name in ("positions", "momenta", "forces", "direct_forces"):
        values = getattr(state, name).clone()
        values[first] = values[second] = 0.0
        setattr(state, name, values)
    # without forces, one moves to the other in a step of length one
    state.positions[second] = shift
    state.momenta[first] = shift * state.masses[first]
    state = torchsim.respa_nve_step(state, model, dt=1.0, n_inner=2, max_drift=1e9)
    assert state.failed.tolist() == [False, True, False]
    assert caplog.records[0].message.startswith("replica 1 has stopped")
    assert "same place" in caplog.records[0].message
    assert torch.isfinite(state.forces).all()


def test_refusals(model: Any) -> None:
    """What cannot be done is refused in a sentence."""
    state = torchsim.state_from_atoms(frames())
    started = torchsim.respa_nve_init(state, model, kT=KT)
    with pytest.raises(ValueError, match="n_inner must be 1, 2, 3"):
        torchsim.respa_nve_step(started, model, dt=DT, n_inner=0)
    with pytest.raises(TypeError, match="n_iner"):
        torchsim.respa_nve_step(started, model, dt=DT, n_iner=2)
    conservative = torchsim.load_model(
        make_model(forces="conservative").export(), device="cpu"
    )
    plain = torchsim.respa_nve_init(state, conservative, kT=KT)
    torchsim.respa_nve_step(plain, conservative, dt=DT)
    with pytest.raises(MissingForceError, match="no direct force for n_inner = 2"):
        torchsim.respa_nve_step(plain, conservative, dt=DT, n_inner=2)
    # a model that has one can take over
    final = torchsim.respa_nve_step(plain, model, dt=DT, n_inner=2, max_drift=1e9)
    assert torch.isfinite(final.direct_forces).all()
    with pytest.raises(MissingForceError, match="has no energy"):
        torchsim.load_model(without_energy(), device="cpu")
    with pytest.raises(ValueError, match="is a calculator of ASE"):
        torchsim.load_model("ase.calculators.emt:EMT")
    with pytest.raises(FileNotFoundError, match="no model file"):
        torchsim.load_model("nothing.pt")
    with pytest.raises(ValueError, match="same periodic"):
        torchsim.state_from_atoms([random_cell(4), ase.Atoms("He")])


def test_starts_that_fail(model: Any) -> None:
    """The replica is named."""
    structures = frames()
    structures[2].symbols[:] = "He"
    with pytest.raises(RunFailedError, match="1 of 3 .* replica 2: .* not know He"):
        torchsim.respa_nve_init(torchsim.state_from_atoms(structures), model, kT=KT)
    structures = frames()
    structures[1].set_momenta(np.zeros((len(structures[1]), 3)))
    state = torchsim.state_from_atoms(structures)
    with pytest.raises(ValueError, match="replica 1 is at rest"):
        torchsim.respa_nvt_vrescale_init(state, model, kT=KT)
