"""Drift with multiple time steps: predicted by ``dualforce tune``, and measured.

    python benchmarks/prediction.py MODEL STRUCTURE LABEL [--reference 4] [--ps 10]
        [--inner 4 5 6 8 10] [--hydrogen-mass 4]

The prediction comes from a run with conservative forces of ``--reference`` ps, the
measurements from runs of ``--ps`` ps from the same start, on one core. Results are
added under LABEL to ``docs/benchmarks/prediction.json``; table and plot are made of all
that it holds. Started again, the command goes on with what is missing.
"""

import argparse
import json
from pathlib import Path
from typing import Any, Dict, List

import ase.io
import matplotlib
import torch
from ase import units

from dualforce import equilibrate, load_forces
from dualforce.md import repartition_hydrogen_mass
from dualforce.md.constant_energy import PICOSECOND, ConstantEnergyRun, ReferenceRun
from dualforce.md.statistics import difference
from dualforce.md.tuning import CANDIDATES


matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"
RESULTS = DOCS / "prediction.json"
TIMESTEP = 0.5
"""In fs."""
FAILED = 1.0
"""In eV/atom: change of the energy that ends a run."""


def predict(start: ase.Atoms, forces: Any, picoseconds: float) -> Dict[str, Any]:
    """Predictions for all numbers of inner steps, and the drift of the run itself."""
    run = ReferenceRun(start, TIMESTEP * units.fs, forces)
    run.advance(picoseconds * PICOSECOND)
    drifts = {str(n): run.predict(n) for n in CANDIDATES}
    return {"ps": picoseconds, "own": run.candidate().drift, "drifts": drifts}


def measure(
    start: ase.Atoms, forces: Any, n_inner: int, picoseconds: float
) -> Dict[str, Any]:
    """Drift of a run with multiple time steps."""
    run = ConstantEnergyRun(
        start, TIMESTEP * units.fs, forces, n_inner, max_drift=FAILED
    )
    run.advance(picoseconds * PICOSECOND)
    found = run.candidate()
    return {
        "drift": found.drift,
        "ps": found.length_ps,
        "correction": found.correction,
        "failed": found.failed is not None,
    }


def main() -> None:
    """Predict and measure what is missing, and write table and plot."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    entry = results.setdefault(arguments.label, {"measured": {}})
    atoms = ase.io.read(arguments.structure)
    if arguments.hydrogen_mass is not None:
        repartition_hydrogen_mass(atoms, arguments.hydrogen_mass)
    forces = load_forces(arguments.model)
    start = equilibrate(forces, atoms, TIMESTEP * units.fs, temperature_K=300.0)
    if "predicted" not in entry:
        entry["predicted"] = predict(start, forces, arguments.reference)
        write(results)
    for n_inner in arguments.inner:
        if str(n_inner) not in entry["measured"]:
            entry["measured"][str(n_inner)] = measure(
                start, forces, n_inner, arguments.ps
            )
            write(results)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("structure")
    parser.add_argument("label")
    parser.add_argument("--reference", type=float, default=4.0)
    parser.add_argument("--ps", type=float, default=10.0)
    parser.add_argument("--inner", type=int, nargs="+", default=[4, 5, 6, 8, 10])
    parser.add_argument("--hydrogen-mass", type=float)
    return parser.parse_args()


def write(results: Dict[str, Any]) -> None:
    """Write all results as numbers, table and plot."""
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    (DOCS / "prediction.md").write_text("\n".join(table(results)) + "\n")
    plot(results)


def table(results: Dict[str, Any]) -> List[str]:
    """The page."""
    lines = [
        "# Drift, predicted and measured",
        "",
        "Drift with M inner steps of 0.5 fs beyond that of the conservative force, in "
        "meV/atom/ps, at 300 K. Predicted from the spectrum of g·v (g: difference of "
        "the forces) along a run with conservative forces, as `dualforce tune` does; "
        "measured in runs of the length given. `python benchmarks/prediction.py MODEL "
        "STRUCTURE LABEL`.",
    ]
    for label, entry in results.items():
        predicted = entry["predicted"]
        lines += [
            "",
            f"## {label}",
            "",
            f"Run with conservative forces: {predicted['ps']:g} ps.",
            "",
            "| M | predicted | measured | ps | RMS f_C - f_D, meV/Å |",
            "|---|---|---|---|---|",
        ]
        for n_inner, found in entry["measured"].items():
            value, error = predicted["drifts"][n_inner]
            drift, uncertainty = difference(found["drift"], predicted["own"])
            end = ", ended early" if found["failed"] else ""
            lines.append(
                f"| {n_inner} | {value:.2g} ± {error:.1g} | {drift:.2g} ± "
                f"{uncertainty:.1g} | {found['ps']:.1f}{end} | "
                f"{found['correction']:.0f} |"
            )
    return [
        *lines,
        "",
        "![drift, predicted and measured](prediction.png)",
        "",
        "*Measured drifts that are not positive are not drawn.*",
    ]


def plot(results: Dict[str, Any]) -> None:
    """Measured drifts over predicted ones."""
    figure, axes = plt.subplots(figsize=(4.2, 4.0), layout="constrained")
    for label, entry in results.items():
        drifts = entry["predicted"]["drifts"]
        own = entry["predicted"]["own"]
        rows = [
            (drifts[n], difference(found["drift"], own), n)
            for n, found in entry["measured"].items()
            if found["drift"][0] > 0.0
        ]
        axes.errorbar(
            [x[0] for x, _, _ in rows],
            [y[0] for _, y, _ in rows],
            [y[1] for _, y, _ in rows],
            [x[1] for x, _, _ in rows],
            fmt="o",
            label=label,
        )
        for x, y, n in rows:
            axes.annotate(f" {n}", (x[0], y[0]), fontsize=7, va="bottom")
    limits = (1e-3, 1e2)
    axes.plot(limits, limits, color="gray", lw=1.0)
    axes.fill_between(
        limits,
        [0.5 * x for x in limits],
        [2.0 * x for x in limits],
        color="gray",
        alpha=0.2,
        lw=0.0,
        label="factor of two",
    )
    axes.set(
        xscale="log",
        yscale="log",
        xlim=limits,
        ylim=limits,
        xlabel="predicted drift (meV/atom/ps)",
        ylabel="measured drift (meV/atom/ps)",
    )
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(DOCS / "prediction.png", dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
