"""Drift with multiple time steps: predicted by ``dualforce tune``, and measured.

    python benchmarks/prediction.py MODEL STRUCTURE LABEL [--reference 4] [--ps 10]
        [--inner 4 5 6 8 10] [--timestep 0.5] [--temperature 300] [--hydrogen-mass 4]
        [--nve LABEL]

The prediction comes from a run with conservative forces of ``--reference`` ps, the
measurements from runs of ``--ps`` ps from the same start, on one core. Results are
added under LABEL to ``docs/benchmarks/prediction.json``; table and plot are made of all
that it holds. Started again, the command goes on with what is missing. With ``--nve``
the measurements are those of ``benchmarks/nve.py`` under that label.
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
SHOWN = 10
"""Predictions up to so many inner steps are shown although nothing was measured."""
FAILED = 1.0
"""In eV/atom: change of the energy that ends a run."""


def predict(
    start: ase.Atoms, timestep: float, forces: Any, picoseconds: float
) -> Dict[str, Any]:
    """Predictions for all numbers of inner steps, and the drift of the run itself."""
    run = ReferenceRun(start, timestep, forces)
    run.advance(picoseconds * PICOSECOND)
    drifts = {str(n): run.predict(n) for n in CANDIDATES}
    return {"ps": picoseconds, "own": run.candidate().drift, "drifts": drifts}


def measure(
    start: ase.Atoms, timestep: float, forces: Any, n_inner: int, picoseconds: float
) -> Dict[str, Any]:
    """Drift of a run with multiple time steps, by its slope and by its spread."""
    run = ConstantEnergyRun(start, timestep, forces, n_inner, max_drift=FAILED)
    run.advance(picoseconds * PICOSECOND)
    found = run.candidate()
    return {
        "drift": found.drift,
        "mean_drift": found.mean_drift,
        "ps": found.length_ps,
        "correction": found.correction,
        "failed": found.failed is not None,
    }


def measured_by_nve(label: str) -> Dict[str, Any]:
    """Drifts of the runs of ``benchmarks/nve.py`` with multiple time steps, and that of
    the conservative force."""
    runs = json.loads((DOCS / "nve.json").read_text())[label]["runs"]
    return {
        str(run["n_inner"]): {
            "drift": [run["drift"], run["drift_error"]],
            "mean_drift": run["mean_drift"],
            "ps": run["picoseconds"],
            "correction": 1000.0 * (run["correction"] or 0.0),
            "failed": run["failure"] is not None,
        }
        for run in runs
        if run["n_inner"] > 0
    }


def main() -> None:
    """Predict and measure what is missing, and write table and plot."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    settings = {"timestep_fs": arguments.timestep, "K": arguments.temperature}
    entry = results.setdefault(arguments.label, {**settings, "measured": {}})
    atoms = ase.io.read(arguments.structure)
    if arguments.hydrogen_mass is not None:
        repartition_hydrogen_mass(atoms, arguments.hydrogen_mass)
    forces = load_forces(arguments.model)
    timestep = arguments.timestep * units.fs
    start = equilibrate(forces, atoms, timestep, temperature_K=arguments.temperature)
    if "predicted" not in entry:
        entry["predicted"] = predict(start, timestep, forces, arguments.reference)
        write(results)
    if arguments.nve is not None:
        entry["measured"] = measured_by_nve(arguments.nve)
        entry["predicted"]["own"] = entry["measured"].pop("1")["drift"]
        entry["source"] = "; the others are those of [another page](nve.md)"
        write(results)
        return
    for n_inner in arguments.inner:
        if str(n_inner) not in entry["measured"]:
            entry["measured"][str(n_inner)] = measure(
                start, timestep, forces, n_inner, arguments.ps
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
    parser.add_argument("--timestep", type=float, default=0.5)
    parser.add_argument("--temperature", type=float, default=300.0)
    parser.add_argument("--hydrogen-mass", type=float)
    parser.add_argument("--nve", metavar="LABEL")
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
        "Drift with M inner steps beyond that of the conservative force, in "
        "meV/atom/ps. Predicted from the spectrum of g·v (g: difference of "
        "the forces) along a run with conservative forces, as `dualforce tune` does; "
        "measured in runs of the length given, by the slope of the energy and by its "
        "spread (`dualforce.md.statistics.power_from_spread`), which is more precise. "
        "`python benchmarks/prediction.py MODEL STRUCTURE LABEL`.",
    ]
    for label, entry in results.items():
        predicted = entry["predicted"]
        lines += [
            "",
            f"## {label}",
            "",
            f"Inner steps of {entry['timestep_fs']:g} fs, {entry['K']:g} K; run with "
            f"conservative forces: {predicted['ps']:g} ps{entry.get('source', '')}.",
            "",
            "| M | predicted | by the spread | by the slope | ps "
            "| RMS f_C - f_D, meV/Å |",
            "|---|---|---|---|---|---|",
        ]
        for n_inner, (value, error) in predicted["drifts"].items():
            line = f"| {n_inner} | {value:.2g} ± {error:.1g} |"
            found = entry["measured"].get(n_inner)
            if found is None and int(n_inner) <= SHOWN:
                lines.append(f"{line} | | | |")
            elif found is not None:
                drift, uncertainty = difference(found["drift"], predicted["own"])
                mean, error = found["mean_drift"]
                end = ", ended early" if found["failed"] else ""
                lines.append(
                    f"{line} {mean:.2g} ± {error:.1g} "
                    f"| {drift:.2g} ± {uncertainty:.1g} | "
                    f"{found['ps']:.1f}{end} | {found['correction']:.0f} |"
                )
    return [
        *lines,
        "",
        "![drift, predicted and measured](prediction.png)",
        "",
        "*Measured: by the spread of the energy. Open circles: less than twice the "
        "error. What is not positive is not drawn.*",
    ]


def plot(results: Dict[str, Any]) -> None:
    """Measured drifts over predicted ones."""
    figure, axes = plt.subplots(figsize=(4.2, 4.0), layout="constrained")
    for index, (label, entry) in enumerate(results.items()):
        drifts = entry["predicted"]["drifts"]
        rows = [
            (drifts[n], found["mean_drift"], n)
            for n, found in entry["measured"].items()
            if found["mean_drift"][0] > 0.0
        ]
        color = f"C{index}"
        axes.plot([], [], "o", color=color, label=label)
        for x, y, _ in rows:
            face = color if y[0] > 2.0 * y[1] else "white"
            axes.errorbar(x[0], y[0], y[1], x[1], "o", color=color, mfc=face)
        for x, y, n in rows:
            axes.annotate(f" {n}", (x[0], y[0]), fontsize=7, va="bottom")
    limits = (1e-4, 1e1)
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
