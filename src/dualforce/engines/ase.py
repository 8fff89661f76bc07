"""Runs of ASE, here and now, in a folder: trajectory, log, checkpoint."""

import dataclasses
import hashlib
import itertools
import json
import logging
import os
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Union

import ase
import ase.io
import numpy as np
import torch
from ase import units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixCom
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from .. import __version__
from ..dynamics import (
    Guard,
    RespaLangevin,
    RespaNPT,
    RespaSVR,
    RespaVelocityVerlet,
    TwoForces,
    restore_run,
    save_run,
)
from ..dynamics.counting import CountedForces
from ..dynamics.guard import describe_overlap
from ..dynamics.preparation import fix_center_of_mass
from .files import ModelFiles, start_structure
from .log import RunLog, summarise
from .settings import MDSettings


CHECKPOINT_INTERVAL = 50
"""Inner steps between checkpoints, rounded up to whole outer steps. Fixed, because a
checkpoint makes neighbour lists anew, which decides about the last bits of forces: a
run that is interrupted must do so at the same steps as one that is not."""


class RunFolder:
    """The files of a run.

    :param path: the folder.
    """

    def __init__(self, path: Union[str, Path]) -> None:
        self.path = Path(path)
        self.description = self.path / "run.json"
        self.trajectory = self.path / "trajectory.extxyz"
        self.log = self.path / "log.csv"
        self.checkpoint = self.path / "checkpoint.npz"
        self.final = self.path / "final.extxyz"
        self.last_good = self.path / "last-good.extxyz"

    def check(self, description: Dict[str, Any], resume: bool) -> None:
        """See that a new run can be made in the folder, or the one in it resumed.

        :param description: of the run, as of :func:`describe`.
        :param resume: whether there is a run to go on with.
        :raises FileExistsError: if there are files already and they are not to be
            resumed.
        :raises FileNotFoundError: if there is nothing to resume.
        :raises ValueError: if the run to resume is another one; says what differs.
        """
        if resume:
            self._check_same(description)
        else:
            self._check_empty()

    def write_description(self, description: Dict[str, Any]) -> None:
        """Make the folder, with the description alone."""
        self.path.mkdir(parents=True, exist_ok=True)
        unfinished = self.description.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(description, indent=2) + "\n")
        os.replace(unfinished, self.description)

    def _check_empty(self) -> None:
        if self.description.exists():
            raise FileExistsError(
                f"{self.path} holds a run already: add --resume to continue it, or "
                "choose another folder with -o"
            )
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise FileExistsError(
                f"{self.path} exists and is not an empty folder: choose another one "
                "with -o"
            )

    def _check_same(self, description: Dict[str, Any]) -> None:
        if not self.description.exists():
            raise FileNotFoundError(
                f"there is no run to resume in {self.path}: leave out --resume to "
                "start one"
            )
        old = json.loads(self.description.read_text())
        differences = [
            f"{name} was {before}, now {now}"
            for name, before, now in _differences(old["run"], description["run"])
        ]
        if differences:
            raise ValueError(
                f"the run in {self.path} was started with other settings "
                f"({'; '.join(differences)}): resume it with the same ones, or start "
                "another with -o"
            )
        for name, before, now in _differences(
            old["made_with"], description["made_with"]
        ):
            logging.warning(
                f"{name} was {before}, now {now}: the continuation may differ in the "
                "last bits"
            )

    def drop_after(self, run: RespaVelocityVerlet, interval: int) -> None:
        """Cut off what was written after the checkpoint that ``run`` starts from.

        :param run: the run, restored.
        :param interval: outer steps between frames.
        :raises ValueError: if the files end before.
        """
        n_frames = run.nsteps // interval + 1 if self.checkpoint.exists() else 0
        _keep_lines(self.trajectory, n_frames * (len(run.atoms) + 2))
        _keep_lines(self.log, n_frames + 1 if n_frames else 0)


def _differences(
    before: Dict[str, Any], now: Dict[str, Any]
) -> List[tuple[str, Any, Any]]:
    """Entries that differ; a run may become longer."""
    return [
        (name, before.get(name), now.get(name))
        for name in {**before, **now}
        if before.get(name) != now.get(name)
        and not (name == "steps" and now["steps"] > before["steps"])
    ]


def _keep_lines(path: Path, n_lines: int) -> None:
    if not path.exists() and n_lines == 0:
        return
    with path.open("rb+") as file:
        kept = list(map(len, itertools.islice(file, n_lines)))
        if len(kept) < n_lines:
            raise ValueError(
                f"{path} ends before the checkpoint of its run: it cannot be resumed"
            )
        file.truncate(sum(kept))


def describe(
    model: ModelFiles,
    structure: Union[str, Path],
    settings: MDSettings,
    shorten: bool,
    device: torch.device,
) -> Dict[str, Any]:
    """What a run is made of (``run``) and what it is computed with (``made_with``).

    :param model: model files, known by their hashes.
    :param structure: file of the structure, likewise.
    :param settings: settings.
    :param shorten: whether the guard shortens the inner loop.
    :param device: device of the model.
    """
    run: Dict[str, Any] = dataclasses.asdict(settings)
    run |= {
        "guard": "shorten" if shorten else "warn",
        "model_sha256": _sha256(model.model),
        "direct_model_sha256": model.direct_model and _sha256(model.direct_model),
        "variant": model.variant,
        "structure_sha256": _sha256(structure),
    }
    made_with = {
        "dualforce": __version__,
        "ase": ase.__version__,
        "numpy": np.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(device),
    }
    files = {"model": str(model.model), "structure": str(structure)}
    return {"run": run, "made_with": made_with, "files": files}


def _sha256(path: Union[str, Path]) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


# ------------------------------------------------------------------------------ runs


def make_run(
    atoms: ase.Atoms,
    forces: TwoForces,
    settings: MDSettings,
    *,
    shorten: bool = False,
    last_good: Union[str, Path] = "last-good.extxyz",
) -> RespaVelocityVerlet:
    """The integrator that the settings ask for.

    :param atoms: structure; a copy runs, with masses and velocities as the settings
        say and, unless friction acts on it, its centre of mass at rest.
    :param forces: the model.
    :param settings: settings.
    :param shorten: whether the guard shortens the inner loop.
    :param last_good: file for the last good structure of a run that fails.
    :raises ValueError: if the structure does not go with the settings.
    """
    overlap = describe_overlap(atoms)
    if overlap:
        raise ValueError(f"the structure cannot be run{overlap}")
    atoms = start_structure(atoms, settings)
    if settings.ensemble != "nvt-langevin":
        fix_center_of_mass(atoms)
    common: Dict[str, Any] = {
        "atoms": atoms,
        "timestep": settings.timestep * units.fs,
        "forces": forces,
        "n_inner": settings.n_inner,
        "guard": Guard(shorten=shorten),
        "last_good": last_good,
    }
    if settings.ensemble == "nve":
        return RespaVelocityVerlet(**common)
    common |= {
        "temperature_K": settings.temperature,
        # Another stream than that of the velocities.
        "rng": np.random.default_rng([settings.seed, 1]),
    }
    if settings.ensemble == "nvt-langevin":
        return RespaLangevin(**common, friction=settings.friction / (1000 * units.fs))
    common["tau"] = settings.tau * units.fs
    if settings.ensemble == "nvt-svr":
        return RespaSVR(**common)
    return RespaNPT(
        **common,
        pressure=settings.pressure * units.bar,
        tau_p=settings.tau_p * units.fs,
        cell=settings.cell,
    )


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int
    """Inner step from which it can be resumed."""
    finished: bool
    """Whether it reached its end."""
    lines: List[str]
    """Summary, for people."""


def run_md(
    atoms: ase.Atoms,
    forces: TwoForces,
    settings: MDSettings,
    folder: RunFolder,
    description: Dict[str, Any],
) -> Outcome:
    """Run in a folder, from its checkpoint if it has one.

    Interrupted (Ctrl-C, SIGTERM) it goes on to the next checkpoint; interrupted again
    it ends at once. Either way it can be resumed with the identical result.

    :param atoms: structure to start from.
    :param forces: the model.
    :param settings: settings.
    :param folder: folder, which is not that of another run (:meth:`RunFolder.check`).
    :param description: of the run, as of :func:`describe`.
    :return: how it ended.
    :raises RunFailedError: if the run cannot go on; the last good structure is in the
        folder.
    :raises ValueError: if the structure does not go with the settings, or the folder is
        damaged.
    """
    counted = CountedForces(forces)
    run = make_run(
        atoms,
        counted,
        settings,
        shorten=description["run"]["guard"] == "shorten",
        last_good=folder.last_good,
    )
    folder.write_description(description)
    if folder.checkpoint.exists():
        restore_run(run, folder.checkpoint)
    folder.drop_after(run, settings.outer_interval)
    first, start = run.nsteps, time.perf_counter()
    with folder.log.open("a") as log:
        _attach(run, RunLog(run, log), folder, settings)
        stopped = _advance(run, settings)
    seconds = time.perf_counter() - start
    if stopped:
        step = _checkpoint_interval(settings) * (
            run.nsteps // _checkpoint_interval(settings)
        )
        return Outcome(step * settings.n_inner, False, [])
    ase.io.write(folder.final, _frame(run), format="extxyz")
    lines = summarise(folder.log).lines()
    lines.append(_speed(run, run.nsteps - first, seconds, counted))
    return Outcome(run.nsteps * settings.n_inner, True, lines)


def _checkpoint_interval(settings: MDSettings) -> int:
    return -(-CHECKPOINT_INTERVAL // settings.n_inner)


def _attach(
    run: RespaVelocityVerlet, log: RunLog, folder: RunFolder, settings: MDSettings
) -> None:
    """Frames and lines of the log come before the checkpoint that presumes them."""

    def write_frame() -> None:
        ase.io.write(folder.trajectory, _frame(run), format="extxyz", append=True)
        log.write()

    run.attach(write_frame, settings.outer_interval)
    run.attach(lambda: save_run(run, folder.checkpoint), _checkpoint_interval(settings))


def _frame(run: RespaVelocityVerlet) -> ase.Atoms:
    """The present structure, with nothing that its file of origin said about it."""
    atoms, point = run.atoms, run.point.conservative
    frame = ase.Atoms(
        numbers=atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell,
        pbc=atoms.pbc,
        masses=atoms.get_masses(),
        momenta=atoms.get_momenta(),
        constraint=[c for c in atoms.constraints if not isinstance(c, FixCom)],
        info={
            "step": run.nsteps * run.n_inner,
            "time_ps": run.get_time() / (1000.0 * units.fs),
        },
    )
    frame.calc = SinglePointCalculator(frame, energy=point.energy, forces=point.forces)
    return frame


def _advance(run: RespaVelocityVerlet, settings: MDSettings) -> bool:
    """Run to the end, or until interrupted; whether it was."""
    steps = max(0, settings.outer_steps - run.nsteps)
    interval = _checkpoint_interval(settings)
    bar = tqdm(
        total=settings.outer_steps * run.n_inner,
        initial=run.nsteps * run.n_inner,
        unit=" steps",
        disable=None,
    )
    done = run.nsteps
    with bar, logging_redirect_tqdm(), _interruption() as asked:
        try:
            for _ in run.irun(steps):
                bar.update((run.nsteps - done) * run.n_inner)
                done = run.nsteps
                if asked and run.nsteps % interval == 0:
                    return run.nsteps < settings.outer_steps
        except KeyboardInterrupt:
            return True
    return False


@contextmanager
def _interruption() -> Iterator[List[int]]:
    """A list that receives the first signal to end; the second one ends at once."""
    received: List[int] = []

    def note(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        logging.info("Going on to the next checkpoint; interrupt again to end at once.")

    kinds = (signal.SIGINT, signal.SIGTERM)
    previous = {kind: signal.signal(kind, note) for kind in kinds}
    try:
        yield received
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)


def _speed(
    run: RespaVelocityVerlet, outer_steps: int, seconds: float, counted: CountedForces
) -> str:
    simulated = outer_steps * run.n_inner * run.timestep / (1e6 * units.fs)
    return (
        f"{simulated / seconds * 86400.0:.3g} ns/day; evaluations: "
        f"{counted.direct_cost.calls} direct, {counted.conservative_cost.calls} with "
        "energy"
    )
