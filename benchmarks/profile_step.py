"""Where the time of a training step goes.

    python benchmarks/profile_step.py water.xyz
    python benchmarks/profile_step.py water.xyz --frames 32 --steps 40 --threads 2

Trains the default network with its default options on the first frames of a file and
times the parts of each step: joining frames to a batch, the network forward and
backward, the loss and its bookkeeping, clipping and checking gradients, the optimiser,
the moving average. Prints a table of medians and writes it to
``docs/benchmarks/training-step.md``.
"""

import argparse
import platform
import statistics
import time
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable, Dict, Iterator, List, Tuple

import ase.io
import torch
from metatrain.utils.architectures import get_default_hypers, import_architecture
from metatrain.utils.data import DatasetInfo, get_atomic_types, get_dataset
from metatrain.utils.omegaconf import expand_dataset_config, expand_loss_config
from omegaconf import OmegaConf

from dualforce.training import loss as losses
from dualforce.training import trainer as training
from dualforce.training.model import NAME, DualForce
from dualforce.training.stages import make_stages


OUTPUT = Path(__file__).parents[1] / "docs" / "benchmarks" / "training-step.md"

NETWORK = "network, forward"
GRADIENT = "network, forces by backpropagation"
BACKWARD = "network, backward of the loss"
OPTIMISER = "optimiser"
COLLATE = "join frames"
AUGMENT = "count labels and rotate frames"
AVERAGE = "moving average of the weights"
CLIP = "sum, clip and check gradients"
REST = "loss and bookkeeping"
OVERHEAD = (COLLATE, AUGMENT, AVERAGE, CLIP, REST)


class Clock:
    """Adds up times by name; a part inside another counts for itself alone."""

    def __init__(self) -> None:
        self.steps: List[Dict[str, float]] = []
        self._inside: List[float] = []

    def start_step(self) -> None:
        """Begin to count anew."""
        self.steps.append(defaultdict(float))

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def run(*arguments: Any, **options: Any) -> Any:
            self._inside.append(0.0)
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                spent = time.perf_counter() - start
                self.steps[-1][name] += spent - self._inside.pop()
                if self._inside:
                    self._inside[-1] += spent

        return run


def read_options() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="frames with energy and forces")
    parser.add_argument("--frames", type=int, default=32, help="frames to read (32)")
    parser.add_argument("--batch", type=int, default=4, help="frames in a batch (4)")
    parser.add_argument("--steps", type=int, default=30, help="steps to time (30)")
    parser.add_argument("--warmup", type=int, default=5, help="steps before (5)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    parser.add_argument("--device", default="cpu", help="device (cpu)")
    parser.add_argument(
        "--fraction",
        type=float,
        nargs="+",
        default=[0.0, 0.25, 1.0],
        help="conservative fractions, a column each (0 0.25 1)",
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="table to write")
    return parser.parse_args()


def make_trainer(
    arguments: argparse.Namespace, directory: Path
) -> Tuple[training.Trainer, torch.device]:
    """A trainer after one epoch of no steps: frames and loss terms are ready."""
    frames = ase.io.read(arguments.data, f":{arguments.frames}")
    path = directory / "frames.xyz"
    ase.io.write(path, frames, format="extxyz")
    conf = OmegaConf.create(
        {
            "architecture": get_default_hypers(NAME),
            "training_set": expand_dataset_config(
                OmegaConf.create(
                    {
                        "systems": {"read_from": str(path), "length_unit": "angstrom"},
                        "targets": {"energy": {"unit": "eV"}},
                    }
                )
            ),
        }
    )
    dataset, targets, _ = get_dataset(conf["training_set"][0])
    hypers: Any = OmegaConf.to_container(
        expand_loss_config(conf)["architecture"], resolve=True
    )
    info = DatasetInfo("angstrom", get_atomic_types([dataset]), targets)
    torch.manual_seed(0)
    model = DualForce(hypers["model"], info)
    hypers["training"] |= {"batch_size": arguments.batch, "num_epochs": 0}
    trainer = training.Trainer(hypers["training"])
    device = torch.device(arguments.device)
    trainer.train(model, torch.float32, [device], [dataset], [dataset], str(directory))
    return trainer, device


def instrument(trainer: training.Trainer, clock: Clock, device: torch.device) -> None:
    """Time the parts of a step; work on an accelerator is waited for."""

    def waiting(function: Callable[..., Any]) -> Callable[..., Any]:
        if device.type != "cuda":
            return function

        def run(*arguments: Any, **options: Any) -> Any:
            torch.cuda.synchronize()
            result = function(*arguments, **options)
            torch.cuda.synchronize()
            return result

        return run

    def patch(owner: Any, name: str, part: str) -> None:
        setattr(owner, name, clock.timed(part, waiting(getattr(owner, name))))

    patch(training, "collate", COLLATE)
    patch(trainer.model.backbone, "predict", NETWORK)
    patch(losses.torch.autograd, "grad", GRADIENT)
    patch(torch.Tensor, "backward", BACKWARD)
    patch(trainer, "_frames_of_step", AUGMENT)
    patch(trainer, "_sum_gradients", CLIP)
    patch(torch.nn.utils, "clip_grad_norm_", CLIP)
    patch(trainer, "_step", REST)


def batches(trainer: training.Trainer, size: int) -> Iterator[List[int]]:
    """Indices of the frames of batches, without end."""
    generator = torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(len(trainer.train_frames), generator=generator).tolist()
        for start in range(0, len(order) - size + 1, size):
            yield order[start : start + size]


def take_steps(
    trainer: training.Trainer, fraction: float, batch: int
) -> Iterator[None]:
    """Steps without end, one for each item.

    :param fraction: share of frames with backpropagated forces.
    :param batch: frames in a batch.
    """
    hypers = {**trainer.hypers, "num_epochs": 1, "conservative_fraction": fraction}
    stage = make_stages(hypers, trainer.model.hypers)[0]
    terms = [training.weight_in_stage(t, stage, trainer.model) for t in trainer.terms]
    terms = [term for term in terms if term.weight > 0.0]
    trainer.progress = training.Progress(seed=0)
    generator = torch.Generator().manual_seed(0)
    for indices in batches(trainer, batch):
        taken = [trainer.train_frames[i] for i in indices]
        frames = trainer._frames_of_step([indices], taken, generator)
        trainer._step(frames, stage, terms)
        trainer.progress.frames_in_stage += len(frames)
        yield


def measure(
    trainer: training.Trainer, clock: Clock, fraction: float, given: argparse.Namespace
) -> Dict[str, float]:
    """Mean milliseconds of the parts of a step, over the steps after the warm-up."""
    clock.steps.clear()
    steps = take_steps(trainer, fraction, given.batch)
    for _ in range(given.warmup + given.steps):
        clock.start_step()
        next(steps)
    timed = clock.steps[given.warmup :]
    parts = dict.fromkeys(name for step in timed for name in step)
    # means: with a fraction below one, steps differ in what they do
    return {p: 1e3 * statistics.fmean(s.get(p, 0.0) for s in timed) for p in parts}


def table(columns: Dict[float, Dict[str, float]]) -> str:
    """The results in Markdown."""
    parts = [NETWORK, GRADIENT, BACKWARD, OPTIMISER, *OVERHEAD]
    head = " | ".join(f"fraction {fraction:g}" for fraction in columns)
    lines = [f"| part | {head} |", "|---|" + "---:|" * len(columns)]
    for part in parts:
        cells = []
        for column in columns.values():
            value, total = column.get(part, 0.0), sum(column.values())
            cells.append(f"{value:.2f} ms ({100 * value / total:.1f} %)")
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    totals, shares = [], []
    for column in columns.values():
        total = sum(column.values())
        overhead = sum(column.get(part, 0.0) for part in OVERHEAD)
        totals.append(f"{total:.2f} ms")
        shares.append(f"{100 * overhead / total:.1f} %")
    lines.append("| **whole step** | " + " | ".join(totals) + " |")
    lines.append("| **besides network and optimiser** | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    given = read_options()
    torch.set_num_threads(given.threads)
    import_architecture(NAME)
    clock = Clock()
    with TemporaryDirectory() as directory:
        trainer, device = make_trainer(given, Path(directory))
    instrument(trainer, clock, device)
    trainer.optimizer.step = clock.timed(  # type: ignore[method-assign]
        OPTIMISER, trainer.optimizer.step
    )
    trainer.average.update_parameters = clock.timed(  # type: ignore[method-assign]
        AVERAGE, trainer.average.update_parameters
    )
    results = {f: measure(trainer, clock, f, given) for f in given.fraction}
    sizes = sorted({len(frame) for frame in trainer.train_frames})
    atoms = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    text = (
        "# Where the time of a training step goes\n\n"
        f"`ace` with its default options, {given.batch} frames of {atoms} atoms in a "
        f"batch, float32, mean of {given.steps} steps, {given.threads} thread(s) on "
        f"{device.type}, torch {torch.__version__}, {platform.machine()}. A column for "
        "each `conservative_fraction`.\n\n"
        f"{table(results)}\n\n"
        f"Made with `python benchmarks/profile_step.py {given.data.name} --batch "
        f"{given.batch} --frames {given.frames} --steps {given.steps} --threads "
        f"{given.threads}`.\n"
    )
    print(text)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(text)


if __name__ == "__main__":
    main()
