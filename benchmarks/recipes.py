"""Which way to train: validation errors over wall-clock time, side by side.

    python benchmarks/recipes.py DATA --system water --minutes 15
    python benchmarks/recipes.py DATA --system 3bpa --minutes 3 --recipes default half

DATA is the folder with ``water-pbe0ts.xyz``, ``acetylacetone-300K.xyz`` and
``3bpa-300K.xyz``. All recipes of a call run at the same time, each on an equal share of
the cores, so that they see the same machine. Results of earlier calls are kept in
``docs/benchmarks/recipes.json`` and drawn again.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, Dict, List

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from learning_curves import LABELS, PET, finish, read_log, start  # noqa: E402
from matplotlib.ticker import LogLocator, NullFormatter  # noqa: E402


DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"
FILES = {
    "water": ("water-pbe0ts.xyz", 280, 320),
    "acetylacetone": ("acetylacetone-300K.xyz", 450, 500),
    "3bpa": ("3bpa-300K.xyz", 450, 500),
}
DEFAULT, CONSERVATIVE = "default", "conservative"
RECIPES = (DEFAULT, CONSERVATIVE, "both from scratch", "two-stage", "half", "rising")
COLORS = dict(
    zip(
        RECIPES,
        ["#0072B2", "#D55E00", "#CC79A7", "#009E73", "#E69F00", "#56B4E9"],
        strict=True,
    )
)


def training(recipe: str, minutes: float) -> Dict[str, Any]:
    """Training options of a recipe."""
    stages: List[Dict[str, Any]] = []
    if recipe == "two-stage":
        stages = [
            {"max_minutes": 2 * minutes / 3, "conservative_fraction": 0.0},
            {
                "max_minutes": minutes / 3,
                "conservative_fraction": 1.0,
                "weights": {"non_conservative_force": 0.1},
            },
        ]
    options: Dict[str, Any] = {"num_epochs": None}
    if recipe == "both from scratch":
        options |= {"conservative_fraction": 1.0, "direct_weight": 0.1}
    if recipe == "half":
        options |= {"conservative_fraction": 0.5}
    if recipe == "rising":
        stages = [
            {"max_minutes": 2 * minutes / 3, "conservative_fraction": 0.25},
            {"max_minutes": minutes / 3, "conservative_fraction": 1.0},
        ]
    return options | ({"stages": stages} if stages else {"max_minutes": minutes})


def options(
    recipe: str, system: str, data: Path, minutes: float, backbone: str
) -> Dict[str, Any]:
    """Options for ``mtt train``."""
    file, n_train, n_all = FILES[system]
    forces = "conservative" if recipe == CONSERVATIVE else "hybrid"
    return {
        "seed": 0,
        "device": "cpu",
        "base_precision": 32,
        "architecture": {
            "name": "experimental.dualforce",
            "model": {"forces": forces, "backbone": backbone, "pet": PET},
            "training": training(recipe, minutes),
        },
        "training_set": {
            "systems": {"read_from": str(data / file), "length_unit": "angstrom"},
            "targets": {"energy": {"unit": "eV", "stress": False}},
            "indices": list(range(n_train)),
        },
        "validation_set": {"indices": list(range(n_train, n_all))},
        "test_set": 0.0,
        "final_eval": False,
    }


def run(arguments: argparse.Namespace) -> Dict[str, Any]:
    """Train by all recipes at the same time; curves by recipe."""
    # The program, its start and the export are part of the time.
    budget = arguments.minutes - 0.3
    cores = max(1, (os.cpu_count() or 1) // len(arguments.recipes))
    folders = {}
    for recipe in arguments.recipes:
        folder = f"{arguments.system}-{arguments.minutes:g}-{recipe}-{int(time.time())}"
        folders[recipe] = arguments.work / folder.replace(" ", "-")
    running = [
        start(
            folder,
            options(
                recipe,
                arguments.system,
                arguments.data.resolve(),
                budget,
                arguments.backbone,
            ),
            cores,
        )
        for recipe, folder in folders.items()
    ]
    deadline = time.monotonic() + 60 * (arguments.minutes + 1)
    for process in running:
        finish(process, deadline)
    return {
        recipe: {
            "system": arguments.system,
            "backbone": arguments.backbone,
            "minutes": arguments.minutes,
            "recipe": recipe,
            "cores": cores,
            "points": read_log(folder, arguments.minutes),
        }
        for recipe, folder in folders.items()
    }


def plot(runs: List[Dict[str, Any]], path: Path) -> None:
    """A row of panels for each system, one for each error."""
    systems = list(dict.fromkeys((r["system"], r["backbone"]) for r in runs))
    figure, rows = plt.subplots(
        len(systems),
        3,
        figsize=(11, 3.4 * len(systems)),
        squeeze=False,
        layout="constrained",
    )
    for (system, backbone), panels in zip(systems, rows, strict=True):
        for axes, (key, label) in zip(panels, LABELS.items(), strict=True):
            named = set()
            for result in runs:
                points = [p for p in result["points"] if key in p]
                if (result["system"], result["backbone"]) != (
                    system,
                    backbone,
                ) or not points:
                    continue
                recipe = result["recipe"]
                axes.plot(
                    [p["minutes"] for p in points],
                    [p[key] for p in points],
                    color=COLORS[recipe],
                    label=None if recipe in named else recipe,
                )
                axes.plot(
                    points[-1]["minutes"], points[-1][key], "o", color=COLORS[recipe]
                )
                named.add(recipe)
            axes.set(
                xlabel="minutes", ylabel=f"MAE: {label}", xscale="log", yscale="log"
            )
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter(NullFormatter())
            axes.set_title(f"{system}, {backbone}", fontsize=9)
            axes.grid(alpha=0.3, which="both")
        panels[1].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def table(runs: List[Dict[str, Any]]) -> List[str]:
    """Markdown table of the last errors."""
    lines = [
        "# Recipes side by side",
        "",
        "| system | backbone | minutes | cores each | recipe | epochs | "
        "energy, meV/atom | conservative force, meV/Å | direct force, meV/Å |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in runs:
        last = result["points"][-1]
        cells = [f"{last[key]:.3g}" if key in last else "–" for key in LABELS]
        named = ("system", "backbone", "minutes", "cores", "recipe")
        cells = (
            [str(result[key]) for key in named] + [f"{len(result['points'])}"] + cells
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Train, add to what is stored, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--system", choices=FILES, default="water")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--backbone", default="ace")
    parser.add_argument(
        "--recipes", choices=RECIPES, nargs="*", default=[DEFAULT, CONSERVATIVE]
    )
    parser.add_argument("--work", type=Path, default=Path("outputs/recipes"))
    parser.add_argument("--out", type=Path, default=DOCS)
    arguments = parser.parse_args()
    stored = arguments.out / "recipes.json"
    results: Dict[str, Any] = json.loads(stored.read_text()) if stored.exists() else {}
    series = f"{arguments.system}/{arguments.backbone}/{arguments.minutes:05.1f}"
    for recipe, result in run(arguments).items():
        results[f"{series}/{recipe}"] = result
    results = dict(sorted(results.items()))
    stored.write_text(json.dumps(results) + "\n")
    runs = list(results.values())
    plot(runs, arguments.out / "recipes.png")
    (arguments.out / "recipes.md").write_text("\n".join(table(runs)) + "\n")
    print("\n".join(table(runs)))


if __name__ == "__main__":
    main()
