"""Error against cost of potentials that were trained for the same time on the same
frames.

    python benchmarks/front.py DATA NAME MODEL --beside ACE.pt

MODEL is whatever ``dualforce.load_forces`` takes: an exported model, ``file.py:make``
for a calculator of ASE, ``mace:FILE``. DATA is the folder with the frames of
acetylacetone: 0-449 were trained on, 450-499 and the file at 600 K are tested. Times
are those of 27 molecules, of one core, relative to the conservative force of the model
given as ``--beside``, which takes turns with it in the same run. Results are added
under NAME to ``docs/benchmarks/front.json``, so that potentials whose packages exclude
each other are measured in environments of their own; table and plot are made of all
that it holds.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any, Dict, List

import ase
import ase.io
import matplotlib
import numpy as np
import torch

from dualforce import load_forces
from dualforce.forces import ForceSource


matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"
RESULTS = DOCS / "front.json"
HELD_OUT = slice(450, 500)
SPACING = 12.0
"""Between molecules, in Å: beyond every cutoff."""
COPIES = 3
"""Molecules along each axis."""
N_INNER = 4
WARM_UP = 25
ROUNDS = 15
MODES = {"conservative": "o", f"M = {N_INNER}": "s", "direct": "^"}
SETS = {"300 K": "frames 450-499, 300 K", "600 K": "600 K"}


def rms_errors(forces: ForceSource, frames: List[ase.Atoms]) -> Dict[str, float]:
    """Root mean square errors of the forces that there are, in meV/Å."""
    found: Dict[str, List[Any]] = {}
    for atoms in frames:
        reference = atoms.get_forces()
        found.setdefault("conservative", []).append(
            forces.conservative(atoms).forces - reference
        )
        if forces.has_direct:
            found.setdefault("direct", []).append(
                forces.direct(atoms).forces - reference
            )
    return {
        name: float(1e3 * np.sqrt(np.mean(np.square(errors))))
        for name, errors in found.items()
    }


def gas(molecule: ase.Atoms) -> ase.Atoms:
    """Molecules that do not see each other."""
    box = molecule.copy()
    box.pbc, box.cell = False, [SPACING] * 3
    box = box.repeat(COPIES)
    box.cell = None
    return box


def costs(
    forces: ForceSource, beside: ForceSource, molecule: ase.Atoms
) -> Dict[str, float]:
    """Processor time of a step of each mode, relative to the conservative force of the
    other model; and that of the conservative force in microseconds for each atom."""
    atoms, rng = gas(molecule), np.random.default_rng(0)
    start = atoms.positions.copy()
    kinds = {"unit": beside.conservative, "conservative": forces.conservative}
    if forces.has_direct:
        kinds |= {"direct": forces.direct, "both": forces.both}
    rounds: List[Dict[str, float]] = []
    for _ in range(WARM_UP + ROUNDS):
        seconds = {}
        for name, evaluate in kinds.items():
            # Calculators keep what they have found for the same positions.
            atoms.positions = start + rng.normal(0.0, 0.01, start.shape)
            begin = time.process_time()
            evaluate(atoms)
            seconds[name] = time.process_time() - begin
        unit = seconds.pop("unit")
        found = {name: value / unit for name, value in seconds.items()}
        found["microseconds"] = 1e6 * seconds["conservative"] / len(atoms)
        if forces.has_direct:
            inner = (N_INNER - 1) * found["direct"]
            found[f"M = {N_INNER}"] = (inner + found["both"]) / N_INNER
        rounds.append(found)
    measured = rounds[WARM_UP:]
    return {name: float(np.median([r[name] for r in measured])) for name in measured[0]}


def table(results: Dict[str, Any]) -> List[str]:
    """The page."""
    lines = [
        "# Error and cost",
        "",
        "Potentials trained for 15 minutes of one core on 450 frames of acetylacetone "
        "at 300 K ([how](../recipe.md#error-against-cost)), and processor time of a "
        "step of 27 molecules, relative to the conservative force of `ace` (medians, "
        "taken by turns; good to about 15 %, as `ace` against itself shows). Root mean "
        "square errors of conservative and direct force in "
        f"meV/Å; M = {N_INNER} has the error of the conservative force. "
        "`python benchmarks/front.py DATA NAME MODEL --beside ACE.pt`.",
        "",
        "| potential | 300 K, conservative | direct | 600 K, conservative | direct | "
        f"cost, conservative | M = {N_INNER} | direct | conservative, µs/atom |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        cells = [
            f"{found[at][force]:.1f}" if force in found[at] else "–"
            for at in SETS
            for force in ("conservative", "direct")
        ]
        cost = found["cost"]
        cells += [f"{cost[mode]:.2f}" if mode in cost else "–" for mode in MODES]
        cells.append(f"{cost['microseconds']:.0f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, "", "![error against cost](front.png)"]


def draw(results: Dict[str, Any], path: Path) -> None:
    """Both sets side by side, a colour for each potential."""
    figure, axes = plt.subplots(
        1, len(SETS), figsize=(11.0, 4.2), sharex=True, layout="constrained"
    )
    for ax, (at, title) in zip(axes, SETS.items(), strict=True):
        for number, (name, found) in enumerate(results.items()):
            points = [
                (found["cost"][mode], error_of(found[at], mode), marker)
                for mode, marker in MODES.items()
                if mode in found["cost"]
            ]
            color = f"C{number}"
            x, y, _ = zip(*points, strict=True)
            ax.plot(x, y, color=color, lw=0.8)
            for cost, error, marker in points:
                ax.plot(cost, error, marker, color=color)
            ax.plot([], [], "o", color=color, label=name)
        ax.set(xscale="log", yscale="log", title=title)
        ax.set_xlabel("time of a step / conservative force of ace")
        ax.set_ylabel("RMS error of the force, meV/Å")
        ax.grid(which="both", alpha=0.3)
    for mode, marker in MODES.items():
        axes[0].plot([], [], marker, color="0.4", mfc="none", label=mode)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    figure.savefig(path, dpi=150)


def error_of(errors: Dict[str, float], mode: str) -> float:
    """The error of the forces that a mode follows."""
    return errors["direct" if mode == "direct" else "conservative"]


def main() -> None:
    """Test, measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("name")
    parser.add_argument("model")
    parser.add_argument("--beside", required=True)
    parser.add_argument("--extensions", help="folder with those of an exported model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = partial(load_forces, arguments.model, extensions=arguments.extensions)
    # Some calculators keep the number of atoms they have seen first.
    forces, anew, beside = load(), load(), load_forces(arguments.beside)
    frames = ase.io.read(arguments.data / "acetylacetone-300K.xyz", ":")
    hot = ase.io.read(arguments.data / "acetylacetone-600K.xyz", ":")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[arguments.name] = {
        "300 K": rms_errors(forces, frames[HELD_OUT]),
        "600 K": rms_errors(forces, hot),
        "cost": costs(anew, beside, frames[0]),
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    (DOCS / "front.md").write_text("\n".join(table(results)) + "\n")
    draw(results, DOCS / "front.png")


if __name__ == "__main__":
    main()
