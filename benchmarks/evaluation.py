"""Time of one evaluation of exported models: direct, conservative, both in one pass.

    python benchmarks/evaluation.py [--device cpu] [--out docs/benchmarks]

Networks are untrained, which does not change their cost. Structures are copies of one
192-atom cell of liquid water at 1 g/cm3 (random molecules: the neighbours of an atom
are what counts). All models are timed side by side: in every round each model runs
once, and the table gives medians over rounds, after TorchScript has warmed up.
Neighbour lists are made before and not timed.
"""

import argparse
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from ase import Atoms  # noqa: E402
from ase.build import molecule  # noqa: E402
from metatomic.torch import (  # noqa: E402
    ModelEvaluationOptions,
    ModelOutput,
    System,
    load_atomistic_model,
    register_autograd_neighbors,
    systems_to_torch,
)
from metatrain.utils.architectures import (  # noqa: E402
    get_default_hypers,
    import_architecture,
)
from metatrain.utils.data import DatasetInfo  # noqa: E402
from metatrain.utils.data.target_info import get_energy_target_info  # noqa: E402
from metatrain.utils.neighbor_lists import get_system_with_neighbor_lists  # noqa: E402


FORCE = "non_conservative_force"
MODES = ("direct", "conservative", "both")
MODELS: Dict[str, Dict[str, Any]] = {
    "ace": {"backbone": "ace"},
    "ace, small": {
        "backbone": "ace",
        "ace": {"n_channels": 32, "n_radial": 6, "l_max": 2},
    },
    "ace, large": {"backbone": "ace", "ace": {"n_channels": 128, "n_triples": 4}},
    "painn": {"backbone": "painn"},
    "pet": {
        "backbone": "pet",
        "pet": {"d_pet": 64, "d_head": 64, "d_node": 64, "d_feedforward": 320},
    },
    "soap_bpnn": {"backbone": "soap_bpnn"},
}


def water(copies: int) -> Atoms:
    """A box of 64 molecules with random orientations, repeated along all axes.

    :param copies: how many boxes, the cube of an integer.
    """
    rng = np.random.default_rng(0)
    edge, n = 12.42, 4
    box = Atoms(cell=[edge] * 3, pbc=True)
    for x, y, z in np.ndindex(n, n, n):
        one = molecule("H2O")
        one.rotate(rng.uniform(0, 360), rng.normal(size=3))
        one.positions += (np.array([x, y, z]) + 0.5) * edge / n - one.positions[0]
        box += one
    box.positions += rng.normal(scale=0.05, size=box.positions.shape)
    return box.repeat(round(copies ** (1 / 3)))


def export(name: str, folder: Path) -> Path:
    """Build, export and save a model."""
    architecture = "experimental.dualforce"
    module = import_architecture(architecture)
    hypers = get_default_hypers(architecture)["model"]
    for key, value in MODELS[name].items():
        if isinstance(value, dict):
            hypers[key].update(value)
        else:
            hypers[key] = value
    energy = get_energy_target_info("energy", {"unit": "eV"}, True)
    info = DatasetInfo("angstrom", [1, 8], {"energy": energy})
    torch.manual_seed(0)
    path = folder / f"{name}.pt"
    module.__model__(hypers, info).export().save(str(path))
    return path


@dataclass
class Runner:
    """An exported model, ready to be timed on one structure."""

    model: Any
    system: System
    device: torch.device

    def _inputs(self, differentiate: bool) -> List[System]:
        positions = self.system.positions.detach().clone()
        positions.requires_grad_(differentiate)
        system = System(self.system.types, positions, self.system.cell, self.system.pbc)
        for options in self.model.requested_neighbor_lists():
            block = self.system.get_neighbor_list(options).copy()
            if differentiate:
                register_autograd_neighbors(system, block)
            system.add_neighbor_list(options, block)
        return [system]

    def run(self, mode: str) -> float:
        """Seconds of one evaluation."""
        outputs: Dict[str, ModelOutput] = {}
        if mode != "conservative":
            outputs[FORCE] = ModelOutput(sample_kind="atom")
        if mode != "direct":
            outputs["energy"] = ModelOutput(sample_kind="system")
        systems = self._inputs(mode != "direct")
        options = ModelEvaluationOptions("angstrom", outputs)
        self._wait()
        start = time.perf_counter()
        results = self.model(systems, options, False)
        if mode != "direct":
            results["energy"].block().values.sum().backward()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def runner(path: Path, atoms: Atoms, device: torch.device) -> Runner:
    """Load a model and prepare a structure for it."""
    model = load_atomistic_model(str(path)).to(device=device)
    system = systems_to_torch(atoms, dtype=torch.float64)
    system = get_system_with_neighbor_lists(system, model.requested_neighbor_lists())
    return Runner(model, system.to(device=device), device)


def medians(
    runners: Dict[str, Runner], modes: Dict[str, List[str]], warm_up: int, rounds: int
) -> Dict[str, Dict[str, float]]:
    """Median seconds of every model and mode, measured in turn."""
    times: Dict[str, Dict[str, List[float]]] = {
        name: {mode: [] for mode in modes[name]} for name in runners
    }
    for number in range(warm_up + rounds):
        for name, one in runners.items():
            for mode in modes[name]:
                seconds = one.run(mode)
                if number >= warm_up:
                    times[name][mode].append(seconds)
    return {
        name: {mode: float(np.median(t)) for mode, t in table.items()}
        for name, table in times.items()
    }


def table_of_models(
    paths: Dict[str, Path], device: torch.device, rounds: int
) -> List[str]:
    """Markdown table of all models on 192 and 1,536 atoms."""
    lines = [
        "| atoms | model | parameters | direct, ms | conservative, ms | both, ms | "
        "direct and conservative, relative to painn |",
        "|---|---|---|---|---|---|---|",
    ]
    for copies in (1, 8):
        atoms = water(copies)
        runners = {name: runner(path, atoms, device) for name, path in paths.items()}
        modes = {name: list(MODES) for name in runners}
        result = medians(runners, modes, 20 if copies == 1 else 5, rounds)
        for name, times in result.items():
            size = sum(p.numel() for p in runners[name].model.parameters())
            ratios = [times[m] / result["painn"][m] for m in MODES[:2]]
            cells = " | ".join(f"{1e3 * times[mode]:.1f}" for mode in MODES)
            head = f"| {len(atoms)} | {name} | {size / 1000:.0f}k"
            lines.append(f"{head} | {cells} | {ratios[0]:.2f}, {ratios[1]:.2f} |")
    return lines


def scaling(
    path: Path, device: torch.device, rounds: int
) -> Dict[int, Dict[str, float]]:
    """Seconds of ``ace`` against the number of atoms."""
    out: Dict[int, Dict[str, float]] = {}
    for copies in (1, 8, 64):
        atoms = water(copies)
        one = {"ace": runner(path, atoms, device)}
        out[len(atoms)] = medians(
            one, {"ace": list(MODES)}, 20 if copies == 1 else 3, rounds
        )["ace"]
    return out


def plot_scaling(times: Dict[int, Dict[str, float]], path: Path) -> None:
    """Time for each atom against the number of atoms."""
    figure, axes = plt.subplots(figsize=(5, 3.5), constrained_layout=True)
    sizes = sorted(times)
    for mode, marker in zip(MODES, "os^", strict=True):
        per_atom = [1e6 * times[size][mode] / size for size in sizes]
        axes.plot(sizes, per_atom, marker=marker, label=mode)
    axes.set(
        xscale="log", xlabel="atoms", ylabel="µs for each atom", title="ace, water"
    )
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def device_name(device: torch.device) -> str:
    """What the numbers were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def main() -> None:
    """Measure, print and write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: export(name, Path(folder)) for name in MODELS}
        lines = table_of_models(paths, device, arguments.rounds)
        times = scaling(paths["ace"], device, max(3, arguments.rounds // 2))
    lines += ["", "| atoms | direct, µs/atom | conservative, µs/atom | both, µs/atom |"]
    lines.append("|---|---|---|---|")
    for size, row in times.items():
        cells = " | ".join(f"{1e6 * row[mode] / size:.1f}" for mode in MODES)
        lines.append(f"| {size} | {cells} |")
    head = [
        "# Evaluation of exported models",
        "",
        f"`python benchmarks/evaluation.py --device {device}` on "
        f"{device_name(device)}, torch {torch.__version__}, single precision. Medians "
        f"of {arguments.rounds} rounds.",
        "",
    ]
    suffix = "" if device.type == "cpu" else f"-{device.type}"
    tail = ["", f"![time for each atom](evaluation{suffix}.png)", ""]
    text = "\n".join(head + lines + tail)
    (arguments.out / f"evaluation{suffix}.md").write_text(text)
    plot_scaling(times, arguments.out / f"evaluation{suffix}.png")
    print(text)


if __name__ == "__main__":
    main()
