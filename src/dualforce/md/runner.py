"""Runs in a folder: trajectory, log, checkpoint."""

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

import ase
import ase.io
import numpy as np
from ase import units
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..forces import CountedForces, Evaluation, ForceSource, Model, load_forces
from .barostat import RespaNPT
from .checkpoint import restore_run, save_run
from .collection import Collection
from .extrapolation import Extrapolation
from .guard import Guard
from .log import RunLog, summarise
from .preparation import fix_center_of_mass, start_structure
from .respa import RespaVelocityVerlet
from .run_folder import GuardAction, RunFolder, describe
from .settings import MDSettings
from .structures import check_structure, describe_velocities, with_results
from .thermostats import RespaLangevin, RespaSVR


CHECKPOINT_INTERVAL = 50
"""Inner steps between checkpoints, rounded up to whole outer steps. Fixed, because a
checkpoint makes neighbour lists anew, which decides about the last bits of forces: a
run that is interrupted must do so at the same steps as one that is not."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int
    """Inner step from which it can be resumed."""
    finished: bool
    """Whether it reached its end."""
    lines: List[str]
    """Summary, for people."""
    collected: int = 0
    """Structures in ``collected.extxyz``."""


def run_md(
    forces: Model,
    atoms: ase.Atoms,
    output: Union[str, Path],
    settings: Optional[MDSettings] = None,
    *,
    guard: GuardAction = "warn",
    usual_correction: Optional[float] = None,
    collect: bool = False,
    resume: bool = False,
    structure: Optional[Path] = None,
) -> Outcome:
    """Run molecular dynamics in a folder.

    The folder receives ``trajectory.extxyz``, ``log.csv``, ``final.extxyz`` and a
    checkpoint. Interrupted (Ctrl-C, SIGTERM) the run goes on to the next checkpoint;
    interrupted again it ends at once. Either way it can be resumed, with a trajectory
    that is bitwise identical to that of an unbroken run (on a CPU).

    :param forces: source of forces, or what :func:`~dualforce.load_forces` loads.
    :param atoms: structure to start from, which is not changed.
    :param output: the folder.
    :param settings: ensemble, lengths and couplings.
    :param guard: what to do while conservative and direct force differ more than usual:
        ``warn``, or ``shorten`` the inner loop.
    :param usual_correction: root mean square of their difference where the model is
        known to be good, in eV/Å. Default: that on its validation set, where the
        model knows it, else the median of the first outer points.
    :param collect: keep structures at outer points where the difference is larger than
        usual or the training data of the model are left, in ``collected.extxyz``, with
        energy (eV) and conservative forces (eV/Å) as labels: at least 50 fs apart,
        farther after each 20 of them, and 200 at most.
    :param resume: continue the run in the folder; with more steps it becomes longer.
    :param structure: file that ``atoms`` come from, to recognise the run by.
    :return: how it ended.
    :raises FileExistsError: if there are files already and they are not to be resumed.
    :raises FileNotFoundError: if there is no run to resume.
    :raises RunFailedError: if the run cannot go on; the last good structure is in the
        folder.
    :raises ValueError: if the structure does not go with the settings, or the run to
        resume is another one or damaged.
    """
    settings = settings or MDSettings()
    source = load_forces(forces)
    folder = RunFolder(output)
    description = describe(source, atoms, settings, guard, structure)
    folder.check(description, resume)
    if not resume:
        logging.info(describe_velocities(atoms, settings.temperature))
    counted = CountedForces(source)
    run = make_run(
        atoms,
        counted,
        settings,
        guard=guard,
        usual_correction=usual_correction,
        last_good=folder.last_good,
    )
    source.warm_up(atoms, stress=settings.ensemble == "npt")
    folder.write_description(description)
    if folder.checkpoint.exists():
        restore_run(run, folder.checkpoint)
    folder.drop_after(run, settings.outer_interval)
    collection = Collection(run, folder.collected) if collect else None
    return _run_in(folder, run, counted, settings, collection)


def make_run(
    atoms: ase.Atoms,
    forces: ForceSource,
    settings: MDSettings,
    *,
    guard: GuardAction = "warn",
    usual_correction: Optional[float] = None,
    last_good: Union[str, Path] = "last-good.extxyz",
) -> RespaVelocityVerlet:
    """The integrator that the settings ask for.

    :param atoms: structure; a copy runs, with masses and velocities as the settings
        say and, unless friction acts on it, its centre of mass at rest.
    :param forces: source of forces.
    :param settings: settings.
    :param guard: ``warn``, or ``shorten`` the inner loop.
    :param usual_correction: see :func:`run_md`.
    :param last_good: file for the last good structure of a run that fails.
    :raises ValueError: if the structure does not go with the settings.
    """
    check_structure(atoms)
    atoms = start_structure(atoms, settings)
    if settings.ensemble != "nvt-langevin":
        fix_center_of_mass(atoms)
    common: Dict[str, Any] = {
        "atoms": atoms,
        "timestep": settings.timestep * units.fs,
        "forces": forces,
        "n_inner": settings.n_inner,
        "guard": Guard(
            shorten=guard == "shorten",
            usual=usual_correction or forces.usual_correction,
        ),
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


def _run_in(
    folder: RunFolder,
    run: RespaVelocityVerlet,
    counted: CountedForces,
    settings: MDSettings,
    collection: Optional[Collection],
) -> Outcome:
    """Go on with a run to its end, or until interrupted."""
    first, start = run.nsteps, time.perf_counter()
    with folder.log.open("a") as log:
        _attach(run, RunLog(run, log), folder, settings, collection)
        stopped = _advance(run, settings)
    seconds = time.perf_counter() - start
    n_collected = len(collection.steps) if collection else 0
    if stopped:
        interval = _checkpoint_interval(settings)
        step = interval * (run.nsteps // interval)
        return Outcome(step * settings.n_inner, False, [], n_collected)
    ase.io.write(folder.final, _frame(run), format="extxyz")
    lines = summarise(folder.log).lines()
    lines.append(_speed(run, run.nsteps - first, seconds, counted))
    return Outcome(run.nsteps * settings.n_inner, True, lines, n_collected)


def _checkpoint_interval(settings: MDSettings) -> int:
    return -(-CHECKPOINT_INTERVAL // settings.n_inner)


def _attach(
    run: RespaVelocityVerlet,
    log: RunLog,
    folder: RunFolder,
    settings: MDSettings,
    collection: Optional[Collection],
) -> None:
    """Frames and lines of the log come before the checkpoint that presumes them."""
    extrapolation = Extrapolation(run.forces)

    def write_frame() -> None:
        ase.io.write(folder.trajectory, _frame(run), format="extxyz", append=True)
        log.write()
        extrapolation.watch(run.atoms, f"at step {run.nsteps * run.n_inner}")

    run.attach(write_frame, settings.outer_interval)
    if collection is not None:
        run.attach(collection.watch)
    run.attach(lambda: save_run(run, folder.checkpoint), _checkpoint_interval(settings))


def _frame(run: RespaVelocityVerlet) -> ase.Atoms:
    info = {
        "step": run.nsteps * run.n_inner,
        "time_ps": run.get_time() / (1000.0 * units.fs),
    }
    point = run.point.conservative
    return with_results(run.atoms, Evaluation(point.forces, point.energy), info)


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
