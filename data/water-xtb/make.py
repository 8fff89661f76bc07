"""Make ``train.xyz`` and ``held-out.xyz``: liquid water labelled with GFN1-xTB.

Needs ``pip install tblite openmm ase tqdm`` (numpy comes with them).

    python make.py            sample, label and write the data set (resumable)
    python make.py --check    finite-difference tests of forces and stress
    python make.py --stats    sanity numbers of the written file

Geometries come from classical molecular dynamics of a flexible three-site model
in OpenMM, labels from ``tblite``. Units are those of ASE: eV, Angstrom, eV/A^3;
the functions that talk to OpenMM say so, and use its nm, kJ/mol and ps.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing as mp
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.optimize import BFGS
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray
from tqdm import tqdm


Array = NDArray[np.float64]
Item = TypeVar("Item")

HERE = Path(__file__).resolve().parent
MOLECULES = 32
MOLAR_MASS = 18.01528  # g/mol
TEMPERATURES = (280.0, 450.0)  # K
DENSITIES = (0.90, 1.10)  # g/cm3
GROUP = 5  # of each group of trajectories: one held out, one in a strained cell
MAX_STRETCH = 0.08  # relative change of a strained cell's edges
MAX_SHEAR = 0.15  # off-diagonal cell elements over the mean edge
ACCURACY = 0.1  # of tblite's SCF; 1.0, its default, leaves noise in the stress

# Intermolecular part of SPC/Fw (Wu, Tepper and Voth 2006): nm, kJ/mol, e.
SIGMA, EPSILON, CHARGE_H = 0.3165492, 0.6503, 0.41
# Neighbours close this model's angle more than GFN1-xTB's: without this addition
# to the monomer's angle, GFN1-xTB pulls the sampled angles open by as much.
OPENING = math.radians(2.5)

# Configurations sampled at equilibrium do not depend on the masses, so heavier
# hydrogens buy a longer step at no cost.
MASS_O, MASS_H = 12.015, 3.0  # amu
STEP = 0.0015  # ps
FRICTION = 2.0  # 1/ps
HOT = 600.0  # K; melts the starting lattice
TIMES = (2.0, 4.0, 3.0)  # ps: hot, equilibration, then between two frames


@dataclass(frozen=True)
class Monomer:
    """Water monomer of GFN1-xTB: geometry (A, rad) and stiffness (eV, A, rad)."""

    bond: float
    angle: float
    depth: float  # eV, of the Morse curve
    width: float  # 1/A, of the Morse curve
    bend: float  # eV/rad^2


@dataclass(frozen=True)
class Run:
    """One trajectory: temperature (K), density (g/cm3), cell (A), seed."""

    index: int
    temperature: float
    density: float
    cell: list[list[float]]
    seed: int
    held_out: bool


def xtb() -> Any:
    """GFN1-xTB calculator for ASE (eV, A; stress in eV/A^3)."""
    from tblite.ase import TBLite

    return TBLite(method="GFN1-xTB", accuracy=ACCURACY, verbosity=0)


def monomer_positions(first: float, second: float, angle: float) -> Array:
    """Positions (A) of O, H, H for two bond lengths (A) and an angle (rad)."""
    end = [second * math.cos(angle), second * math.sin(angle), 0.0]
    return np.array([[0.0, 0.0, 0.0], [first, 0.0, 0.0], end])


def fit_monomer(step: float = 0.05) -> Monomer:
    """Fit a Morse bond and a harmonic angle by differences of ``step`` (A, rad)."""
    atoms = Atoms("OH2", monomer_positions(0.96, 0.96, 1.85))
    atoms.calc = xtb()
    BFGS(atoms, logfile=None).run(fmax=1e-4)
    bond = float(atoms.get_distance(0, 1))
    angle = math.radians(float(atoms.get_angle(1, 0, 2)))

    def rise(stretch: float, opening: float) -> float:
        atoms.positions = monomer_positions(bond + stretch, bond, angle + opening)
        return float(atoms.get_potential_energy())

    low = rise(0.0, 0.0)
    out, back = rise(step, 0.0) - low, rise(-step, 0.0) - low
    square = (out + back) / 2 / step**2
    width = (back - out) / 2 / step**3 / square
    bend = (rise(0.0, step) + rise(0.0, -step) - 2 * low) / step**2
    return Monomer(bond, angle, square / width**2, width, bend)


def edge(density: float) -> float:
    """Edge (A) of the cube that has this density (g/cm3)."""
    gram = MOLECULES * MOLAR_MASS / units.mol
    return float((gram / density * 1e24) ** (1 / 3))


def make_cell(density: float, strained: bool, rng: np.random.Generator) -> Array:
    """Lower-triangular cell (A) of this density (g/cm3), the form OpenMM takes."""
    cell = np.eye(3)
    if strained:
        cell *= 1 + rng.uniform(-MAX_STRETCH, MAX_STRETCH, 3)
        cell += np.tril(rng.uniform(-MAX_SHEAR, MAX_SHEAR, (3, 3)), -1)
    return np.asarray(cell * edge(density) / np.cbrt(np.linalg.det(cell)))


def spread(low: float, high: float, count: int, rng: np.random.Generator) -> Array:
    """One random value in each of ``count`` equal slices of [low, high], in order."""
    return low + (high - low) * (np.arange(count) + rng.random(count)) / count


def plan(count: int, seed: int) -> list[Run]:
    """Latin square of temperature and density, with the held-out runs spread."""
    rng = np.random.default_rng(seed)
    temperatures = spread(*TEMPERATURES, count, rng)
    densities = rng.permutation(spread(*DENSITIES, count, rng))
    runs = []
    for start in range(0, count, GROUP):
        held = int(rng.integers(GROUP))
        # Both parts get the same share of strained cells: one group in five
        # holds out its strained run.
        offset = 0 if start // GROUP % GROUP == 0 else int(rng.integers(1, GROUP))
        for i in range(start, min(start + GROUP, count)):
            strained = i - start == (held + offset) % GROUP
            cell = make_cell(densities[i], strained, rng)
            values = float(temperatures[i]), float(densities[i]), cell.tolist()
            number = int(rng.integers(1, 2**31 - 1))
            runs.append(Run(i, *values, number, i - start == held))
    return runs


def rotation(rng: np.random.Generator) -> Array:
    """Random proper rotation matrix."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    return np.asarray(q * np.linalg.det(q))


def start_positions(run: Run, water: Monomer) -> Array:
    """Positions (A): molecules turned at random on a face-centred lattice."""
    rng = np.random.default_rng(run.seed)
    corner = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 4
    shifts = np.array(list(np.ndindex(2, 2, 2))) / 2
    sites = (shifts[:, None] + corner[None]).reshape(-1, 3) @ np.array(run.cell)
    shape = monomer_positions(water.bond, water.bond, water.angle)
    return np.concatenate([site + shape @ rotation(rng) for site in sites])


def add_bonded(system: Any, water: Monomer) -> None:
    """Add Morse bonds and harmonic angles to an OpenMM system (nm, kJ/mol)."""
    import openmm

    ev = units.mol / units.kJ
    bonds = openmm.CustomBondForce(
        f"{water.depth * ev}*(1-exp(-{water.width * 10}*(r-{water.bond / 10})))^2"
    )
    angles = openmm.HarmonicAngleForce()
    for o in range(0, 3 * MOLECULES, 3):
        bonds.addBond(o, o + 1)
        bonds.addBond(o, o + 2)
        angles.addAngle(o + 1, o, o + 2, water.angle + OPENING, water.bend * ev)
    system.addForce(bonds)
    system.addForce(angles)


def add_nonbonded(system: Any, cell: Array) -> None:
    """Add Lennard-Jones and PME electrostatics, ``cell`` in nm."""
    import openmm

    force = openmm.NonbondedForce()
    for o in range(0, 3 * MOLECULES, 3):
        force.addParticle(-2 * CHARGE_H, SIGMA, EPSILON)
        force.addParticle(CHARGE_H, 0.1, 0.0)
        force.addParticle(CHARGE_H, 0.1, 0.0)
        for i, j in ((o, o + 1), (o, o + 2), (o + 1, o + 2)):
            force.addException(i, j, 0.0, 1.0, 0.0)
    force.setNonbondedMethod(openmm.NonbondedForce.PME)
    # OpenMM wants twice the cutoff below each diagonal element of the cell.
    force.setCutoffDistance(0.48 * float(np.diag(cell).min()))
    system.addForce(force)


def make_context(run: Run, water: Monomer) -> tuple[Any, Any]:
    """OpenMM context and integrator of one trajectory, at its starting lattice."""
    import openmm

    system = openmm.System()
    for _ in range(MOLECULES):
        for mass in (MASS_O, MASS_H, MASS_H):
            system.addParticle(mass)
    cell = np.array(run.cell) / 10
    system.setDefaultPeriodicBoxVectors(*(openmm.Vec3(*row) for row in cell))
    add_bonded(system, water)
    add_nonbonded(system, cell)
    integrator = openmm.LangevinMiddleIntegrator(HOT, FRICTION, STEP)
    integrator.setRandomNumberSeed(run.seed)
    # With more threads, or without the property, runs do not repeat bit by bit.
    platform = openmm.Platform.getPlatformByName("CPU")
    fixed = {"Threads": "1", "DeterministicForces": "true"}
    context = openmm.Context(system, integrator, platform, fixed)
    context.setPositions(start_positions(run, water) / 10)
    return context, integrator


def wrap(positions: Array, cell: Array) -> Array:
    """Move whole molecules so that their oxygens lie in the cell (both A)."""
    groups = positions.reshape(-1, 3, 3)
    moves = np.floor(groups[:, :1] @ np.linalg.inv(cell)) @ cell
    return np.asarray((groups - moves).reshape(-1, 3))


def get_positions(context: Any, cell: Array) -> Array:
    """Positions (A) of an OpenMM context, whole molecules in the cell (A)."""
    state = context.getState(getPositions=True)
    return wrap(10 * np.asarray(state.getPositions(asNumpy=True)._value), cell)


def sample(run: Run, water: Monomer, frames: int, folder: Path) -> None:
    """Run one trajectory and file its positions (A); does nothing if filed."""
    import openmm

    target = folder / f"run-{run.index:03d}.npy"
    if target.exists():
        return
    context, integrator = make_context(run, water)
    openmm.LocalEnergyMinimizer.minimize(context, 10.0, 500)
    context.setVelocitiesToTemperature(HOT, run.seed)
    hot, settle, between = (round(time / STEP) for time in TIMES)
    integrator.step(hot)
    integrator.setTemperature(run.temperature)
    integrator.step(settle)
    taken = []
    for _ in range(frames):
        integrator.step(between)
        taken.append(get_positions(context, np.array(run.cell)))
    scratch = target.with_suffix(".part.npy")
    np.save(scratch, np.array(taken))
    scratch.replace(target)


def build(run: Run, positions: Array) -> Atoms:
    """Periodic atoms of one frame, temperature (K) and density (g/cm3) in info."""
    atoms = Atoms("OH2" * MOLECULES, positions, cell=run.cell, pbc=True)
    atoms.info["temperature"] = round(run.temperature, 2)
    atoms.info["density"] = round(run.density, 5)
    return atoms


def load_frames(runs: list[Run], folder: Path) -> list[Atoms]:
    """All sampled frames, ordered by trajectory and time."""
    frames = []
    for run in runs:
        taken = np.load(folder / f"run-{run.index:03d}.npy")
        frames += [build(run, positions) for positions in taken]
    return frames


def label(job: tuple[int, Atoms]) -> dict[str, Any]:
    """Energy (eV), forces (eV/A) and Voigt stress (eV/A^3) of one frame."""
    index, atoms = job
    atoms.calc = xtb()
    return {
        "index": index,
        "energy": float(atoms.get_potential_energy()),
        "forces": np.asarray(atoms.get_forces()).tolist(),
        "stress": np.asarray(atoms.get_stress()).tolist(),
    }


def load_labels(path: Path) -> dict[int, dict[str, Any]]:
    """Labels already in the partial file, which is cleaned of a cut last line."""
    if not path.exists():
        return {}
    lines = path.read_text().split("\n")[:-1]
    scratch = path.with_suffix(".tmp")
    scratch.write_text("".join(line + "\n" for line in lines))
    scratch.replace(path)
    return {label["index"]: label for label in map(json.loads, lines)}


def bar(items: Iterable[Item], total: int, text: str) -> Iterator[Item]:
    """Progress bar over ``items``."""
    return iter(tqdm(items, total=total, desc=text, unit="job", mininterval=5))


def label_all(frames: list[Atoms], path: Path, pool: Any) -> dict[int, dict[str, Any]]:
    """Label the frames that the partial file lacks."""
    done = load_labels(path)
    jobs = [(i, atoms) for i, atoms in enumerate(frames) if i not in done]
    with path.open("a") as file:
        for result in bar(pool.imap_unordered(label, jobs), len(jobs), "label"):
            file.write(json.dumps(result) + "\n")
            file.flush()
            done[result["index"]] = result
    return done


def attach(atoms: Atoms, values: dict[str, Any]) -> Atoms:
    """Frame with its labels as ASE writes them."""
    kept = {key: np.array(values[key]) for key in ("forces", "stress")}
    atoms.calc = SinglePointCalculator(atoms, energy=values["energy"], **kept)
    return atoms


def order(runs: list[Run], frames: int, seed: int) -> dict[str, list[int]]:
    """Frame numbers of each part, shuffled."""
    rng = np.random.default_rng(seed)
    parts: dict[str, list[int]] = {}
    for name, held in (("train", False), ("held-out", True)):
        chosen = [run.index for run in runs if run.held_out == held]
        part = [i * frames + k for i in chosen for k in range(frames)]
        parts[name] = [int(i) for i in rng.permutation(part)]
    return parts


def make(options: argparse.Namespace) -> None:
    """Sample, label and write; what an earlier, cut run left is used."""
    runs = plan(options.runs, options.seed)
    name = f"seed-{options.seed}-runs-{options.runs}-frames-{options.frames}"
    folder = options.scratch / name
    folder.mkdir(parents=True, exist_ok=True)
    water = fit_monomer()
    print(f"monomer: {asdict(water)}")
    job = partial(sample, water=water, frames=options.frames, folder=folder)
    with mp.get_context("spawn").Pool(options.workers) as pool:
        for _ in bar(pool.imap_unordered(job, runs), len(runs), "sample"):
            pass
        frames = load_frames(runs, folder)
        labels = label_all(frames, folder / "labels.jsonl", pool)
    for part, chosen in order(runs, options.frames, options.seed).items():
        path = options.output / f"{part}.xyz"
        write(path, [attach(frames[i], labels[i]) for i in chosen])
        print(f"wrote {len(chosen)} frames: {path}")


def energy_at(atoms: Atoms, positions: Array, cell: Array) -> float:
    """Energy (eV) of the same atoms at other positions and cell (A)."""
    moved = Atoms(atoms.numbers, positions, cell=cell, pbc=True)
    moved.calc = xtb()
    return float(moved.get_potential_energy())


def slope_force(atoms: Atoms, atom: int, axis: int, step: float = 0.002) -> float:
    """Force component (eV/A) by central difference of the energy."""
    ends = []
    for sign in (1, -1):
        positions = atoms.positions.copy()
        positions[atom, axis] += sign * step
        ends.append(energy_at(atoms, positions, atoms.cell.array))
    return (ends[1] - ends[0]) / (2 * step)


def slope_stress(atoms: Atoms, i: int, j: int, step: float = 0.001) -> float:
    """Stress component (eV/A^3): dE/d(strain) over volume, ASE's convention."""
    ends = []
    for sign in (1, -1):
        strain = np.eye(3)
        strain[i, j] += sign * step / 2
        strain[j, i] += sign * step / 2
        cell = atoms.cell.array @ strain
        ends.append(energy_at(atoms, atoms.positions @ strain, cell))
    return (ends[0] - ends[1]) / (2 * step * float(atoms.get_volume()))


def skew(atoms: Atoms) -> float:
    """Largest off-diagonal cell element (A)."""
    cell = atoms.cell.array
    return float(np.abs(cell - np.diag(np.diag(cell))).max())


def check(path: Path) -> None:
    """Compare filed labels with finite differences in the most skewed frame."""
    frames: Any = read(path, ":")
    atoms = max(frames, key=skew)
    forces, stress = atoms.get_forces(), atoms.get_stress(voigt=False)
    gaps = []
    for atom in range(0, len(atoms), 17):
        value = slope_force(atoms, atom, atom % 3)
        gaps.append(abs(value - forces[atom, atom % 3]))
    print(f"forces: largest gap {max(gaps):.1e} eV/A in {len(gaps)} components")
    slopes = np.array([[slope_stress(atoms, i, j) for j in range(3)] for i in range(3)])
    print("stress filed    ", full_3x3_to_voigt_6_stress(stress))
    print("stress by strain", full_3x3_to_voigt_6_stress(slopes))
    print(f"stress: largest gap {np.abs(slopes - stress).max():.1e} eV/A^3")


def contacts(atoms: Atoms) -> tuple[Array, Array, Array]:
    """O-H bonds, and the O-O and O...H distances between molecules (all A)."""
    distances = atoms.get_all_distances(mic=True)
    oxygens = range(0, len(atoms), 3)
    bonds = np.array([distances[o, o + k] for o in oxygens for k in (1, 2)])
    for o in oxygens:
        distances[o : o + 3, o : o + 3] = np.inf
    to_oxygen = np.delete(distances[::3], np.s_[::3], axis=1)
    return bonds, distances[::3, ::3].ravel(), to_oxygen.ravel()


def span(text: str, values: Array | list[float], unit: str) -> None:
    """Print range, mean and standard deviation."""
    v = np.asarray(values)
    spread_text = f"mean {v.mean():10.4f} std {v.std():8.4f}"
    print(f"{text:24s} {v.min():10.4f} to {v.max():10.4f} {spread_text} {unit}")


def stats(frames: list[Atoms]) -> None:
    """Print the sanity numbers of some frames."""
    forces = np.array([atoms.get_forces() for atoms in frames])
    bonds, oo, oh = zip(*(contacts(atoms) for atoms in frames), strict=True)
    cells = [atoms.cell.angles() for atoms in frames]
    strained = sum(bool(np.abs(angles - 90).max() > 1e-3) for angles in cells)
    print(f"{len(frames)} frames, {strained} in strained cells")
    for key, unit in (("temperature", "K"), ("density", "g/cm3")):
        span(key, [atoms.info[key] for atoms in frames], unit)
    energies = [float(atoms.get_potential_energy()) / MOLECULES for atoms in frames]
    span("energy per molecule", energies, "eV")
    span("force component", forces.ravel(), "eV/A")
    span("|force component|", np.abs(forces).ravel(), "eV/A")
    span("force norm", np.linalg.norm(forces, axis=-1).ravel(), "eV/A")
    pressures = [-atoms.get_stress()[:3].mean() / units.GPa for atoms in frames]
    span("pressure, no kinetic", pressures, "GPa")
    shears = np.array([atoms.get_stress()[3:] / units.GPa for atoms in frames])
    span("shear stress", shears.ravel(), "GPa")
    span("O-H bond", np.concatenate(bonds), "A")
    span("nearest O-O of a frame", [d.min() for d in oo], "A")
    span("nearest O...H of a frame", [d.min() for d in oh], "A")


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=HERE, help="folder")
    parser.add_argument("--scratch", type=Path, default=HERE / "scratch")
    parser.add_argument("--runs", type=int, default=125, help="trajectories")
    parser.add_argument("--frames", type=int, default=2, help="frames of each")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="finite differences")
    parser.add_argument("--stats", action="store_true", help="sanity numbers")
    return parser.parse_args()


def main() -> None:
    """Run what the command line asks for."""
    options = parse()
    # Workers start afresh and read this; one thread each, as many as workers.
    os.environ["OMP_NUM_THREADS"] = "1"
    if options.check:
        check(options.output / "train.xyz")
    elif options.stats:
        for part in ("train", "held-out"):
            stats(read(options.output / f"{part}.xyz", ":"))
    else:
        make(options)


if __name__ == "__main__":
    main()
