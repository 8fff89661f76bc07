"""Figures of a report beside those of the paper (arXiv:2412.11569).

    dualforce diagnose MODEL STRUCTURES --preset full -o REPORT
    python benchmarks/findings.py REPORT STRUCTURES [--others NAME=MODEL ...]

Reads ``REPORT/report.json``, writes ``docs/diagnostics.md`` and its picture. The first
panel also shows the asymmetry of pairs of other models, on the last of the STRUCTURES.
"""

import argparse
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import ase.io
import matplotlib

from dualforce import load_forces
from dualforce.diagnostics import exact_asymmetry


matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402


DOCS = Path(__file__).parents[1] / "docs"
STYLES = (".-", "--", ":")
COLORS = {"direct": "#D55E00", "conservative": "#0072B2", "MTS": "#009E73"}
Results = Dict[str, List[Dict[str, Any]]]


def read(folder: Path) -> Tuple[Dict[str, Any], Results]:
    """A report, and the results of its first model by measure."""
    report = json.loads((folder / "report.json").read_text())
    results: Results = {}
    for entry in report["models"][0]["entries"]:
        if entry["status"] == "done":
            results.setdefault(entry["task"].split("/")[0], []).append(entry["result"])
    return report, results


def label_of(run: Dict[str, Any]) -> str:
    """How a run is called."""
    n_inner = run.get("candidate", run)["n_inner"]
    name = f"M = {n_inner}" if run["kind"] == "MTS" else run["kind"]
    if "thermostat" in run:
        kind = "SVR" if run["thermostat"] == "svr" else "Langevin"
        name += f", {kind} {run['tau_fs']:g} fs"
    return name


def direct_asymmetry(model: str, structures: Path) -> Dict[str, Any]:
    """Asymmetry of a model's direct force on the last of some structures."""
    atoms = ase.io.read(structures, index=-1)
    return dataclasses.asdict(exact_asymmetry(load_forces(model), "direct", atoms))


def draw_pairs(axes: Axes, results: Results) -> None:
    """Asymmetry of pairs against distance, of each model with a style of its own."""
    (own,) = (r for r in results["jacobian"] if r["kind"] == "direct")
    for asymmetry, style in zip([own, *results["others"]], STYLES, strict=False):
        for color, elements in enumerate(("H-H", "H-O", "O-O")):
            bins = [each for each in asymmetry["pairs"] if each["elements"] == elements]
            x, y = [b["distance"] for b in bins], [b["asymmetry"] for b in bins]
            name = f"{asymmetry.get('name', '')} {elements}".strip()
            axes.plot(x, y, style, color=f"C{color}", label=name, lw=1)
    axes.set(
        xlabel="distance, Å", ylabel="asymmetry of pairs", ylim=(0, 1), xlim=(0, None)
    )


def draw_heating(axes: Axes, results: Results) -> None:
    """Temperature at constant energy."""
    styles = {2: ":", 4: "-.", 8: "-", 16: "--"}
    for run in results["nve"]:
        style = styles.get(run["candidate"]["n_inner"], "-")
        x, y = run["times"], run["temperature"]
        axes.plot(x, y, style, color=COLORS[run["kind"]], label=label_of(run), lw=1)
    axes.set(
        xlabel="time, ps", ylabel="temperature, K (constant energy)", ylim=(200, 600)
    )


def draw_temperatures(axes: Axes, results: Results) -> None:
    """Temperatures of the elements under thermostats."""
    runs = results["nvt"]
    for row, run in enumerate(runs):
        for name, marker in (("all", "|"), ("H", "o"), ("O", "s")):
            value, error = run["deviation"][name]
            color = COLORS[run["kind"]]
            axes.errorbar(value, row, xerr=error, fmt=marker, color=color, ms=6)
    axes.axvline(0.0, color="k", lw=0.5)
    axes.set_yticks(range(len(runs)), [label_of(run) for run in runs], fontsize=8)
    axes.set(xlabel="temperature − 300 K (| all, ○ H, □ O)", xscale="symlog")


def draw_diffusion(axes: Axes, results: Results) -> None:
    """Diffusion coefficient of oxygen."""
    runs = [run for run in results["nvt"] if run["diffusion"].get("O")]
    for row, run in enumerate(runs):
        value, error = run["diffusion"]["O"]
        axes.barh(row, value, xerr=error, color=COLORS[run["kind"]])
    axes.set_yticks(range(len(runs)), [label_of(run) for run in runs], fontsize=8)
    axes.set(xlabel="diffusion of O, Å²/ps")


def draw_relaxations(axes: Axes, results: Results) -> None:
    """Converged relaxations."""
    rates = results.get("relaxation", [])
    for row, rate in enumerate(rates):
        share = 100.0 * rate["converged"] / rate["n_runs"]
        axes.barh(row, share, color=COLORS[rate["kind"]])
        axes.text(
            share + 2, row, f"{rate['converged']} of {rate['n_runs']}", va="center"
        )
    names = [f"{rate['kind']}, {rate['optimizer']}" for rate in rates]
    axes.set_yticks(range(len(rates)), names, fontsize=8)
    axes.set(xlabel="relaxations converged, %", xlim=(0, 119))


PANELS: Tuple[Callable[[Axes, Results], None], ...] = (
    draw_pairs,
    draw_heating,
    draw_temperatures,
    draw_diffusion,
    draw_relaxations,
)


def picture(results: Results, path: Path) -> None:
    """All panels."""
    figure, grid = plt.subplots(2, 3, figsize=(14, 7.6), layout="constrained")
    for axes, draw in zip(grid.flat, PANELS, strict=False):
        draw(axes, results)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    grid.flat[-1].axis("off")
    figure.savefig(path, dpi=110)


def number(estimate: List[Optional[float]], form: str) -> str:
    """A value with its error, which may not be known."""
    value, error = (math.nan if x is None else x for x in estimate)
    known = f"{error:.1g}" if math.isfinite(error) else "?"
    return f"{value:{form}} ± {known}"


def rows(results: Results) -> List[str]:
    """The table: what, the paper's, ours."""
    lines = ["| figure | paper | here |", "|---|---|---|"]
    for each in results["jacobian"]:
        theirs = "0.004 to 0.032" if each["kind"] == "direct" else "0"
        value = f"{each['value']:.2g}"
        lines.append(f"| λ, {each['kind']} force | {theirs} | {value} |")
    for each in results["others"]:
        theirs = {"SOAP-BPNN": "0.032", "PET": "0.004"}.get(each["name"], "–")
        name = f"λ, direct force of {each['name']}"
        lines.append(f"| {name} | {theirs} | {each['value']:.2g} |")
    for run in results["nve"]:
        theirs = {"direct": "heats, 7 K/ps (PET)", "MTS": "no drift at M = 8"}
        shown = run["candidate"]
        ours = (
            f"{number(shown['drift'], '.3g')} meV/atom/ps, "
            f"{number(shown['heating'], '.2g')} K/ps, {shown['length_ps']:.1f} ps"
        )
        name, their = label_of(run), theirs.get(run["kind"], "no drift")
        lines.append(f"| constant energy, {name} | {their} | {ours} |")
    for run in results["nvt"]:
        values = (f"{k} {number(x, '+.1f')}" for k, x in run["deviation"].items())
        key = (run["kind"], run["thermostat"], round(run["tau_fs"]))
        their = PAPER_TEMPERATURES.get(key, "–")
        ours = f"{', '.join(values)}; {run['length_ps']:.1f} ps"
        lines.append(f"| T − 300 K, {label_of(run)} | {their} | {ours} |")
    for run in results["nvt"]:
        if run["diffusion"].get("O"):
            key = (run["kind"], run["thermostat"], round(run["tau_fs"]))
            their = PAPER_SLOWING.get(key, "–")
            ours = f"{number(run['diffusion']['O'], '.3f')} Å²/ps"
            lines.append(f"| diffusion of O, {label_of(run)} | {their} | {ours} |")
    for rate in results.get("relaxation", []):
        their = {"direct": "52 % (PET)", "conservative": "58 % (PET)"}[rate["kind"]]
        their = their if rate["optimizer"] == "LBFGS" else "–"
        ours = f"{rate['converged']} of {rate['n_runs']}"
        name = f"{rate['optimizer']}, {rate['kind']}"
        lines.append(f"| relaxations converged, {name} | {their} | {ours} |")
    return lines


PAPER_TEMPERATURES = {
    ("conservative", "svr", 10): "all +0.1, H −0.4, O +1.0",
    ("direct", "svr", 10): "all +0.3, H −4.4, O +9.9",
    ("MTS", "svr", 10): "M = 8: all 0.0, H −0.1, O +0.1",
    ("direct", "langevin", 1000): "all +12.8, H +11.2, O +16.2",
    ("direct", "langevin", 100): "all +1.4, H +1.3, O +1.6",
    ("direct", "langevin", 10): "all +0.1, H 0.0, O +0.2",
}
PAPER_SLOWING = {
    ("direct", "langevin", 100): "1.5 times slower",
    ("direct", "langevin", 10): "5 times slower",
}


def main() -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("structures", type=Path)
    parser.add_argument("--others", nargs="*", default=[], metavar="NAME=MODEL")
    arguments = parser.parse_args()
    report, results = read(arguments.report)
    results["others"] = []
    for other in arguments.others:
        name, _, model = other.partition("=")
        found = direct_asymmetry(model, arguments.structures)
        results["others"].append(found | {"name": name})
    picture(results, DOCS / "diagnostics.png")
    text = (
        (DOCS / "diagnostics.md").read_text()
        if (DOCS / "diagnostics.md").exists()
        else ""
    )
    before = text.split("\n| figure |")[0].rstrip()
    after = text.partition("\n\n## ")
    tail = f"\n\n## {after[2]}" if after[1] else "\n"
    (DOCS / "diagnostics.md").write_text(
        before + "\n\n" + "\n".join(rows(results)) + tail
    )
    print("\n".join(rows(results)))
    print(report["models"][0]["headline"]["text"])


if __name__ == "__main__":
    main()
