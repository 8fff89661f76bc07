"""Drift at constant energy: direct forces, conservative forces, and both.

    python benchmarks/nve.py MODEL STRUCTURE LABEL [--ps 20] [--inner 0 1 2 4 8 16]
        [--hydrogen-mass 3]

``--inner 0`` is direct forces alone. Every run starts from the same structure,
equilibrated at ``--temperature``, and takes one core. Results are added under LABEL to
``docs/benchmarks/nve.json``; the table and the plot are made of all that it holds.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import gettempdir
from typing import Any, Dict, List, Optional, Tuple

import ase
import ase.io
import matplotlib
import numpy as np
import torch
from ase import units
from ase.md.velocitydistribution import Stationary, thermalize_momenta

from dualforce.forces import DirectOnly, MetatomicForces
from dualforce.md import (
    Guard,
    RespaLangevin,
    RespaVelocityVerlet,
    RunFailedError,
    repartition_hydrogen_mass,
)
from dualforce.md.statistics import (
    mean_with_error,
    power_from_spread,
    slope_with_error,
)


matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"
RESULTS = DOCS / "nve.json"
INNER = (0, 1, 2, 4, 6, 8, 16)
"""Numbers of inner steps; zero for direct forces alone."""
COLORS = dict(
    zip(
        INNER,
        ["#D55E00", "#0072B2", "#56B4E9", "#009E73", "#000000", "#E69F00", "#CC79A7"],
        strict=True,
    )
)
SAMPLE = 8.0
"""Femtoseconds between samples of energy and temperature."""


def run(
    model: Path, atoms: ase.Atoms, n_inner: int, picoseconds: float, timestep: float
) -> Dict[str, Any]:
    """One run.

    :return: times in ps, conserved energy in eV/atom and temperature in K, the latter
        also by element, and what ended the run, if something did.
    """
    torch.set_num_threads(1)
    forces = MetatomicForces(model)
    atoms = atoms.copy()
    dynamics = RespaVelocityVerlet(
        atoms,
        timestep * units.fs,
        forces if n_inner else DirectOnly(forces),
        max(n_inner, 1),
        guard=Guard(max_drift=1e3),
        last_good=Path(gettempdir()) / f"nve-{n_inner}.extxyz",
    )
    samples: List[Tuple[float, float, float]] = []
    corrections: List[float] = []
    elements: Dict[str, List[float]] = {symbol: [] for symbol in set(atoms.symbols)}

    def sample() -> None:
        energy = dynamics.conserved
        if n_inner == 0:
            potential = forces.conservative(atoms).energy
            energy += potential or 0.0
        time = dynamics.get_time() / (1e3 * units.fs)
        samples.append((time, energy / len(atoms), atoms.get_temperature()))
        for symbol, temperatures in elements.items():
            temperatures.append(atoms[atoms.symbols == symbol].get_temperature())
        if dynamics.point.correction is not None:
            corrections.append(dynamics.point.correction)

    dynamics.attach(
        sample, interval=max(1, round(SAMPLE / timestep) // max(n_inner, 1))
    )
    failure = None
    try:
        dynamics.run(round(1e3 * picoseconds / timestep / max(n_inner, 1)))
    except RunFailedError as error:
        failure = str(error)
    return {
        "n_inner": n_inner,
        "n_atoms": len(atoms),
        "samples": samples,
        "failure": failure,
        "elements": elements,
        "correction": float(np.mean(corrections)) if corrections else None,
    }


def equilibrated(
    model: Path,
    structure: Path,
    temperature: float,
    picoseconds: float = 1.0,
    hydrogen_mass: Optional[float] = None,
) -> ase.Atoms:
    """The structure after some time with friction, at rest as a whole."""
    atoms = ase.io.read(structure)
    if hydrogen_mass is not None:
        repartition_hydrogen_mass(atoms, hydrogen_mass)
    thermalize_momenta(atoms, temperature, rng=np.random.default_rng(0))
    dynamics = RespaLangevin(
        atoms,
        0.5 * units.fs,
        MetatomicForces(model),
        2,
        temperature_K=temperature,
        friction=0.01 / units.fs,
        rng=0,
    )
    dynamics.run(round(picoseconds * 1e3))
    Stationary(atoms)
    atoms.calc = None
    return atoms


def summary(result: Dict[str, Any]) -> Dict[str, Any]:
    """Drifts of a run, with errors."""
    times, energies, temperatures = np.array(result["samples"]).T
    drift, drift_error = slope_with_error(times, 1e3 * energies)
    heating, heating_error = slope_with_error(times, temperatures)
    n_atoms, kelvin = result["n_atoms"], float(np.mean(temperatures))
    power = power_from_spread(times, n_atoms * energies, units.kB * kelvin)
    return {
        "n_inner": result["n_inner"],
        "picoseconds": float(times[-1]),
        "drift": drift,
        "drift_error": drift_error,
        "mean_drift": [1e3 * value / n_atoms for value in power],
        "heating": heating,
        "heating_error": heating_error,
        "correction": result["correction"],
        "failure": result["failure"],
        "elements": {
            symbol: mean_with_error(temperatures)
            for symbol, temperatures in sorted(result["elements"].items())
        },
        "curve": [
            times[::25].tolist(),
            (1e3 * (energies - energies[0]))[::25].tolist(),
        ],
    }


def difference(runs: List[Dict[str, Any]]) -> str:
    """How far the forces are apart, from the run with the fewest inner steps."""
    with_both = [run_ for run_ in runs if run_["correction"]]
    if not with_both:
        return ""
    least = min(with_both, key=lambda run_: run_["n_inner"])
    return (
        f"; conservative and direct force differ by {1e3 * least['correction']:.0f} "
        f"meV/Å (RMS, M = {least['n_inner']})"
    )


def temperatures(runs: List[Dict[str, Any]]) -> List[str]:
    """Lines with the mean temperature of each element in each run; none where that was
    not recorded."""
    return [
        f"\n{name_of(run_['n_inner'])}, means over the run: "
        + ", ".join(
            f"{symbol} at {mean:.1f} K"
            + (
                f" ± {error:.1f} K"
                if np.isfinite(error)
                else " (too short for an error)"
            )
            for symbol, (mean, error) in run_["elements"].items()
        )
        + "."
        for run_ in sorted(runs, key=_order)
        if "elements" in run_
    ]


def name_of(n_inner: int) -> str:
    """How a run is called in tables."""
    return {0: "direct alone", 1: "conservative"}.get(n_inner, f"M = {n_inner}")


def _order(run_: Dict[str, Any]) -> Tuple[bool, int]:
    """Direct forces alone come last."""
    return run_["n_inner"] == 0, run_["n_inner"]


def mean_drift(run_: Dict[str, Any]) -> str:
    """As told by the spread of the energy; nothing for direct forces alone, whose
    energy grows by more than it spreads."""
    if run_["n_inner"] == 0 or "mean_drift" not in run_:
        return ""
    value, error = run_["mean_drift"]
    return f"{value:.2g} ± {error:.1g}"


def write_table(results: Dict[str, Any]) -> None:
    """Table and plot of all results."""
    lines = [
        "# Constant energy",
        "",
        "Drift of the conserved quantity and of the temperature. `python "
        "benchmarks/nve.py MODEL STRUCTURE LABEL`. A run of such a length is one "
        "sample of a random walk: the spread of the energy tells the mean drift more "
        "precisely than the slope of this sample does "
        "(`dualforce.md.statistics.power_from_spread`).",
    ]
    figure, axes = plt.subplots(
        1, len(results), figsize=(5 * len(results), 4), squeeze=False, sharey=True
    )
    for axis, (label, entry) in zip(axes[0], results.items(), strict=True):
        lines += [
            "",
            f"## {label}",
            "",
            entry["description"],
            "",
            "| run | ps | drift, meV/atom/ps | mean drift by its spread "
            "| heating, K/ps | ended |",
            "|---|---|---|---|---|---|",
        ]
        for run_ in sorted(entry["runs"], key=_order):
            failure = "early" if run_["failure"] else "as planned"
            lines.append(
                f"| {name_of(run_['n_inner'])} | {run_['picoseconds']:.1f} "
                f"| {run_['drift']:.3f} ± {run_['drift_error']:.3f} "
                f"| {mean_drift(run_)} "
                f"| {run_['heating']:.2f} ± {run_['heating_error']:.2f} "
                f"| {failure} |"
            )
            n_inner = run_["n_inner"]
            axis.plot(*run_["curve"], color=COLORS[n_inner], label=name_of(n_inner))
        lines += temperatures(entry["runs"])
        axis.set(title=label, xlabel="time, ps", yscale="symlog")
        axis.legend(fontsize=8)
    axes[0, 0].set_ylabel("conserved energy, meV/atom")
    figure.tight_layout()
    figure.savefig(DOCS / "nve.png", dpi=120)
    lines += ["", "![conserved energy against time](nve.png)", ""]
    (DOCS / "nve.md").write_text("\n".join(lines))


def main() -> None:
    """Run, and write the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("structure", type=Path)
    parser.add_argument("label")
    parser.add_argument("--ps", type=float, default=20.0)
    parser.add_argument("--timestep", type=float, default=0.5)
    parser.add_argument("--temperature", type=float, default=300.0)
    parser.add_argument("--inner", type=int, nargs="+", choices=INNER, default=INNER)
    parser.add_argument("--hydrogen-mass", type=float, help="in u")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    atoms = equilibrated(
        arguments.model,
        arguments.structure,
        arguments.temperature,
        hydrogen_mass=arguments.hydrogen_mass,
    )
    with ProcessPoolExecutor(arguments.workers, get_context("spawn")) as pool:
        futures = [
            pool.submit(
                run, arguments.model, atoms, n, arguments.ps, arguments.timestep
            )
            for n in arguments.inner
        ]
        runs = [summary(future.result()) for future in futures]
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    mass = arguments.hydrogen_mass
    hydrogen = f", hydrogen of {mass:g} u" if mass else ""
    results[arguments.label] = {
        "description": f"{len(atoms)} atoms, from {arguments.temperature:g} K, steps "
        f"of {arguments.timestep:g} fs{hydrogen}{difference(runs)}.",
        "runs": runs,
    }
    RESULTS.write_text(json.dumps(results, indent=1))
    write_table(results)


if __name__ == "__main__":
    main()
