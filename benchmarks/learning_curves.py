"""Validation errors over wall-clock time: ``ace`` and metatrain's PET.

    python benchmarks/learning_curves.py DATA [--minutes 15] [--only ace]

DATA is the folder with ``water-pbe0ts.xyz`` (320 frames of 64 H2O, PBE0+TS): frames
0-279 train, 280-319 validate. Every model gets the same time, alone on the machine, one
after the other, or with ``--side-by-side`` at the same time on a share of the cores;
``mtt train`` is called as a user would, and its log is read. Curves of earlier runs,
kept in ``learning-curves.json``, are drawn again unless they are measured anew.
"""

import argparse
import json
import os
import re
import subprocess
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Dict, List

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402


PET = {"d_pet": 64, "d_head": 64, "d_node": 64, "d_feedforward": 320}
DIRECT_TARGET = {
    "key": "forces",
    "unit": "eV/angstrom",
    "sample_kind": "atom",
    "type": {"cartesian": {"rank": 1}},
}
NAMES = ("ace", "pet-direct", "pet-conservative")
LABELS = {
    "energy": "energy, meV/atom",
    "forces": "conservative force, meV/Å",
    "non_conservative_force": "direct force, meV/Å",
}
OUR_LINE = re.compile(r"(energy|forces|non_conservative_force) ([\d.e+-]+) meV")
PET_LINE = re.compile(
    r"validation (energy|forces|non_conservative_force) MAE[^:|]*: +([\d.]+) meV"
)


def options(name: str, data: Path, minutes: float, epochs: int) -> Dict[str, Any]:
    """Options for ``mtt train``."""
    targets: Dict[str, Any] = {"energy": {"unit": "eV", "stress": False}}
    training: Dict[str, Any] = {"max_minutes": minutes, "num_epochs": None}
    architecture: Dict[str, Any] = {"name": "experimental.dualforce"}
    if name != "ace":
        architecture = {"name": "pet", "model": dict(PET)}
        training = {"batch_size": 4, "num_epochs": epochs, "learning_rate": 1e-3}
    if name == "pet-direct":
        targets["energy"]["forces"] = False
        targets["non_conservative_force"] = DIRECT_TARGET
    return {
        "seed": 0,
        "device": "cpu",
        "base_precision": 32,
        "architecture": {**architecture, "training": training},
        "training_set": {
            "systems": {"read_from": str(data), "length_unit": "angstrom"},
            "targets": targets,
            "indices": list(range(280)),
        },
        "validation_set": {"indices": list(range(280, 320))},
        "test_set": 0.0,
        "final_eval": False,
    }


def start(
    folder: Path, config: Dict[str, Any], cores: int
) -> "subprocess.Popen[bytes]":
    """Start ``mtt train`` in a new folder."""
    folder.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(config), folder / "options.yaml")
    (folder / "start").write_text(datetime.now().isoformat())
    return subprocess.Popen(
        ["mtt", "train", "options.yaml"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": str(cores)},
    )


def finish(process: "subprocess.Popen[bytes]", deadline: float) -> None:
    """Wait for a run; one that does not end by the deadline is ended."""
    try:
        process.wait(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run_all(
    folders: Dict[str, Path],
    configs: Dict[str, Dict[str, Any]],
    minutes: float,
    side_by_side: bool,
) -> int:
    """Train all models, in turn or at the same time.

    :return: cores that each of them had.
    """
    cores = os.cpu_count() or 1
    if not side_by_side:
        for name, folder in folders.items():
            process = start(folder, configs[name], cores)
            finish(process, time.monotonic() + 60 * (minutes + 1))
        return cores
    cores = max(1, cores // len(folders))
    running = [start(folders[name], configs[name], cores) for name in folders]
    deadline = time.monotonic() + 60 * (minutes + 1)
    for process in running:
        finish(process, deadline)
    return cores


def read_log(folder: Path, minutes: float) -> List[Dict[str, float]]:
    """Minutes since the start of the program and errors, for each epoch in time."""
    start = datetime.fromisoformat((folder / "start").read_text())
    (log,) = folder.glob("outputs/*/*/train.log")
    points = []
    for line in log.read_text().splitlines():
        if "validation" not in line or "Epoch" not in line:
            continue
        stamp = datetime.strptime(line[1:20], "%Y-%m-%d %H:%M:%S")
        point = {"minutes": (stamp - start).total_seconds() / 60.0}
        pattern = OUR_LINE if "validation MAE:" in line else PET_LINE
        point |= {name: float(value) for name, value in pattern.findall(line)}
        if point["minutes"] <= minutes + 0.1:
            points.append(point)
    return points


def plot(curves: Dict[str, List[Dict[str, float]]], path: Path) -> None:
    """One panel for each error."""
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.6), constrained_layout=True)
    for axes, (key, label) in zip(panels, LABELS.items(), strict=True):
        for number, name in enumerate(NAMES):
            points = [p for p in curves.get(name, []) if key in p]
            x, y = [p["minutes"] for p in points], [p[key] for p in points]
            if points:
                axes.plot(x, y, color=f"C{number}", marker=".", label=name)
        axes.set(xlabel="minutes since the start", ylabel=f"MAE: {label}", yscale="log")
        axes.grid(alpha=0.3, which="both")
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def table(curves: Dict[str, Any], cores: Dict[str, int]) -> List[str]:
    """Markdown table of the last errors."""
    lines = [
        "| model | cores | epochs | minutes | energy, meV/atom | conservative force, "
        "meV/Å | direct force, meV/Å |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, points in curves.items():
        last = points[-1]
        cells = [f"{last[key]:.3g}" if key in last else "–" for key in LABELS]
        lines.append(
            f"| {name} | {cores[name]} | {len(points)} | {last['minutes']:.1f} | "
            f"{' | '.join(cells)} |"
        )
    return lines


def main() -> None:
    """Train, read the logs, write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--epochs", type=int, nargs=2, default=[25, 12])
    parser.add_argument("--only", choices=NAMES, nargs="*", default=list(NAMES))
    parser.add_argument(
        "--side-by-side",
        action="store_true",
        help="run the models at the same time, each on an equal share of the cores",
    )
    parser.add_argument("--work", type=Path, default=Path("outputs/learning-curves"))
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    stored = arguments.out / "learning-curves.json"
    results = json.loads(stored.read_text()) if stored.exists() else {}
    data = (arguments.data / "water-pbe0ts.xyz").resolve()
    # the program, its start and the export are part of the time
    budget = arguments.minutes - 0.4
    stamp = int(time.time())
    folders = {name: arguments.work / f"{name}-{stamp}" for name in arguments.only}
    configs = {
        name: options(name, data, budget, arguments.epochs[name == "pet-conservative"])
        for name in arguments.only
    }
    cores = run_all(folders, configs, arguments.minutes, arguments.side_by_side)
    for name, folder in folders.items():
        points = read_log(folder, arguments.minutes)
        results[name] = {"cores": cores, "points": points}
    results = {name: results[name] for name in NAMES if name in results}
    stored.write_text(json.dumps(results, indent=1) + "\n")
    curves = {name: result["points"] for name, result in results.items()}
    plot(curves, arguments.out / "learning-curves.png")
    lines = [
        f"# Liquid water (PBE0+TS), {arguments.minutes:g} minutes of training",
        "",
        "Errors on frames 280-319, after training on frames 0-279. "
        f"`python benchmarks/learning_curves.py DATA --minutes {arguments.minutes:g}`. "
        "Time counts from the start of `mtt train`.",
        "",
        *table(curves, {name: result["cores"] for name, result in results.items()}),
        "",
        "![validation errors over time](learning-curves.png)",
        "",
    ]
    (arguments.out / "learning-curves.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
