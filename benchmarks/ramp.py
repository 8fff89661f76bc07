"""A ramp to twice the temperature a pair of forces was made for, with and without the
guard.

    python benchmarks/ramp.py LABEL MODEL [STRUCTURE] --temperature T [--ps 2]

MODEL is an exported model that ``dualforce tune`` has been run for, or a folder of
``dualforce accelerate``. Stochastic velocity rescaling (relaxation time 100 fs) at ten
temperatures from T to 2 T, one after the other: conservative forces alone, then both
forces, M and timestep as ``tune`` has found them, with ``--guard warn`` and ``--guard
shorten``. The drift is that of the conserved quantity, energy less the heat of the
thermostat, as a slope with its error, in each segment. Results are added under LABEL to
``docs/benchmarks/ramp.json``; the page is made of all that it holds. The copper-gold
pair is that of ``dualforce accelerate ase.calculators.emt:EMT CELL --temperature 600
--minutes 8 --rounds 2``, CELL 3 x 3 x 3 cubic cells of 3.9 Å, half of the atoms gold at
random.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

import ase
import ase.io
import numpy as np
import torch
from ase import units

from dualforce.engines import ModelReference
from dualforce.engines.tuned import inner_steps, tuned_timestep, usual_correction
from dualforce.forces import CountedForces, ForceSource, read_pair
from dualforce.md import Guard, RespaSVR, RunFailedError, equilibrate
from dualforce.md.preparation import fix_center_of_mass
from dualforce.md.statistics import slope_with_error


DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"
RESULTS = DOCS / "ramp.json"
SEGMENTS, TAU = 10, 100.0
"""TAU in fs."""
RUNS = {"conservative": False, "guard warn": False, "guard shorten": True}


def segment(
    run: RespaSVR, counted: CountedForces, picoseconds: float, temperature: float
) -> Dict[str, Any]:
    """Run at one temperature, and say what came out."""
    samples: List[Tuple[float, float, float, float]] = []

    def sample() -> None:
        samples.append(
            (
                run.get_time() / (1e3 * units.fs),
                1e3 * run.conserved / len(run.atoms),
                run.atoms.get_temperature(),
                1e3 * (run.point.correction or 0.0),
            )
        )

    run.attach(sample)
    calls = counted.conservative_cost.calls
    failure, begin = None, time.perf_counter()
    try:
        run.run(round(1e3 * units.fs * picoseconds / run.timestep / run.n_inner))
    except RunFailedError as error:
        failure = str(error).partition(". ")[0]
    n_steps = run.nsteps * run.n_inner
    seconds = time.perf_counter() - begin
    times, energies, kelvin, corrections = np.array(samples).T
    return {
        "K": temperature,
        "measured_K": float(kelvin.mean()),
        "drift": slope_with_error(times, energies),
        "correction": float(np.sqrt(np.mean(corrections**2))),
        "mean_n_inner": n_steps / max(counted.conservative_cost.calls - calls - 1, 1),
        "ms_per_step": 1e3 * seconds / max(n_steps, 1),
        "ps": float(times[-1]),
        "failure": failure,
    }


def ramp(
    forces: ForceSource,
    atoms: ase.Atoms,
    guard: Guard,
    given: argparse.Namespace,
    timestep: float,
    n_inner: int,
) -> List[Dict[str, Any]]:
    """All temperatures in turn, until a run fails; the guard is the same in all."""
    found: List[Dict[str, Any]] = []
    counted, now = CountedForces(forces), n_inner
    with tempfile.TemporaryDirectory() as folder:
        for index in range(SEGMENTS):
            temperature = given.temperature * (1.0 + index / (SEGMENTS - 1))
            run = RespaSVR(
                atoms,
                timestep * units.fs,
                counted,
                n_inner,
                temperature_K=temperature,
                tau=TAU * units.fs,
                rng=index,
                guard=guard,
                last_good=Path(folder) / "last-good.extxyz",
            )
            run.n_inner_now = now
            found.append(segment(run, counted, given.ps, temperature))
            now = run.n_inner_now
            print(found[-1], flush=True)
            if found[-1]["failure"]:
                break
    return found


def page(results: Dict[str, Any]) -> str:
    """All results, as Markdown."""
    lines = [
        "# A ramp to twice the temperature",
        "",
        "Stochastic velocity rescaling at ten temperatures from T to 2 T, one after "
        "the other. Drift is that of the conserved quantity (energy less the heat of "
        "the thermostat) in meV/atom/ps, M the mean number of inner steps between "
        "outer points, the correction the RMS of conservative minus direct force in "
        "meV/Å. `python benchmarks/ramp.py LABEL MODEL [STRUCTURE] --temperature T "
        "--ps PS`.",
    ]
    for label, entry in results.items():
        usual = 1e3 * entry["usual"]
        lines += [
            "",
            f"## {label}",
            "",
            f"{entry['n_atoms']} atoms, steps of {entry['timestep_fs']:g} fs, M = "
            f"{entry['n_inner']} at T = {entry['temperature']:g} K, where the "
            f"correction is {usual:.0f} meV/Å; {entry['ps']:g} ps at each temperature.",
            "",
            *_table(entry["runs"]),
        ]
    return "\n".join([*lines, ""])


def _table(runs: Dict[str, List[Dict[str, Any]]]) -> List[str]:
    names = [name for name in RUNS if name in runs]
    guarded = [name for name in names if name != "conservative"]
    header = ["temperature, K", *(f"drift, {name}" for name in names)]
    header += [f"{what}, {name}" for what in ("M", "correction") for name in guarded]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for index in range(max(map(len, runs.values()))):
        row = {k: v[index] if index < len(v) else None for k, v in runs.items()}
        kelvin = next(each["K"] for each in row.values() if each is not None)
        cells = [f"{kelvin:.0f}", *(_drift(row[name]) for name in names)]
        for key, style in (("mean_n_inner", ".1f"), ("correction", ".0f")):
            cells += [_cell(row[name], key, style) for name in guarded]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _drift(entry: Dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    drift, error = entry["drift"]
    ended = f", ended after {entry['ps']:.2f} ps" if entry["failure"] else ""
    return f"{drift:.2f} ± {error:.2f}{ended}"


def _cell(entry: Dict[str, Any] | None, key: str, style: str) -> str:
    return "" if entry is None else f"{entry[key]:{style}}"


def main() -> None:
    """Run everything, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("label")
    parser.add_argument("model")
    parser.add_argument("structure", nargs="?")
    parser.add_argument("--temperature", type=float, required=True, help="in K")
    parser.add_argument("--ps", type=float, default=2.0, help="at each temperature")
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = ModelReference(given.model).of_folder()
    structure = given.structure or read_pair(given.model).structure
    timestep = tuned_timestep(model, hydrogen_mass=None)
    usual = usual_correction(model, hydrogen_mass=None)
    if timestep is None or usual is None:
        parser.error(f"run `dualforce tune {given.model}` first")
    n_inner, _ = inner_steps(model, timestep=timestep, hydrogen_mass=None)
    forces = model.load()
    atoms = ase.io.read(structure)
    assert isinstance(atoms, ase.Atoms)
    forces.warm_up(atoms)
    start = equilibrate(
        forces, atoms, timestep * units.fs, temperature_K=given.temperature
    )
    fix_center_of_mass(start)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    entry = results.setdefault(given.label, {"runs": {}})
    entry |= {
        "n_atoms": len(atoms),
        "timestep_fs": timestep,
        "n_inner": n_inner,
        "usual": usual,
        "temperature": given.temperature,
        "ps": given.ps,
    }
    for name in given.runs:
        inner = 1 if name == "conservative" else n_inner
        guard = Guard(shorten=RUNS[name], usual=usual)
        print(name, flush=True)
        entry["runs"][name] = ramp(forces, start.copy(), guard, given, timestep, inner)
        RESULTS.write_text(json.dumps(results) + "\n")
    (DOCS / "ramp.md").write_text(page(results))


if __name__ == "__main__":
    main()
