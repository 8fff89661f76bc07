"""Everything there is to measure about a model, one measure after the other.

Each result is stored as soon as it is there, so an interrupted study goes on where it
stopped; a measure that fails leaves its reason, and the others go on.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Dict, List, Optional, Tuple

import ase
import numpy as np

from ..dynamics import HybridForces, TwoForces
from ..dynamics.evaluation import Evaluation
from ..dynamics.preparation import fix_center_of_mass
from .cache import Cache, hash_structures
from .conditions import Conditions, Structures
from .errors import (
    energy_errors,
    evaluate_frames,
    force_differences,
    force_errors,
    symmetries,
)
from .findings import DONE, FAILED, SKIPPED, Entry, Findings, Speed, Start
from .heating import run_nve
from .jacobian import estimate_asymmetry, exact_asymmetry
from .loops import NoMoleculeError, plane_loop, rotation_loop
from .presets import Coupling, Preset
from .relaxing import perturb, relaxation_rate
from .results import (
    CONSERVATIVE,
    DIRECT,
    FORCES,
    MTS,
    Asymmetry,
    EnergyErrors,
    ForceErrors,
    LoopWork,
    NVERun,
    NVTRun,
    RelaxationRate,
    Symmetries,
)
from .runs import Progress, prepare
from .subject import Subject
from .thermostatted import run_nvt
from .verdict import choose_inner


StudyProgress = Callable[[str, float], None]
"""Receives what is being done and the part of all that is done."""

MIN_SHARE = 0.3
"""Of the lengths of a preset: runs that are shorter tell nothing."""

TIMINGS = 5

LOOPS = {"plane": plane_loop, "rotation": rotation_loop}

WEIGHTS = {CONSERVATIVE: 2.5, DIRECT: 1.0, FORCES: 1.0, MTS: 1.3}
"""Rough cost of a step, for the progress bar."""


class _NotPossible(Exception):
    """A measure makes no sense here, for this reason."""


@dataclasses.dataclass(frozen=True)
class _Task:
    """A measure that can be stored."""

    name: str
    title: str
    returns: Any
    """Type of the result."""
    measure: Callable[..., Any]
    """Called with progress and the settings."""
    settings: Callable[[], Dict[str, Any]]
    """All that the result depends on besides model and structures; asked for as late as
    possible, since it may follow from earlier results.

    :raises _NotPossible: if there is nothing to measure.
    """
    structures: Callable[[], Sequence[ase.Atoms]]
    weight: float
    """Cost, in direct evaluations."""
    with_labels: bool = False
    """Whether the result depends on labels."""


def study(
    subject: Subject,
    structures: Structures,
    conditions: Conditions,
    preset: Preset,
    cache: Cache,
    progress: StudyProgress = lambda title, share: None,
) -> Findings:
    """Measure all there is to measure, or read it from the cache.

    :param subject: the model.
    :param structures: what it is judged on.
    :param conditions: of the runs.
    :param preset: how much to measure.
    :param cache: where results are kept.
    :param progress: told how far it is.
    """
    return _Study(subject, structures, conditions, preset, cache, progress).run()


class _Study:
    def __init__(
        self,
        subject: Subject,
        structures: Structures,
        conditions: Conditions,
        preset: Preset,
        cache: Cache,
        progress: StudyProgress,
    ) -> None:
        self._subject, self._structures = subject, structures
        self._conditions, self._preset = conditions, preset
        self._cache, self._progress = cache, progress
        self._atoms = structures.start
        self._start: Optional[ase.Atoms] = None
        self._speed: Dict[str, float] = {}
        self._predicted: Dict[str, List[Evaluation]] = {}
        kinds = list(subject.forces)
        self._best = CONSERVATIVE if CONSERVATIVE in kinds else kinds[0]
        self.findings = Findings(
            name=subject.name,
            digest=subject.digest,
            kinds=kinds,
            has_energy=subject.has_energy,
            n_atoms=len(self._atoms),
            periodic=bool(self._atoms.pbc.any()),
            inner_was_given=conditions.n_inner is not None and subject.has_both,
        )

    # ---------------------------------------------------------------------- order

    def run(self) -> Findings:
        """Do everything."""
        tasks = self._tasks()
        total, done = sum(task.weight for task in tasks), 0.0
        for task in tasks:

            def report(share: float, task: _Task = task, before: float = done) -> None:
                self._progress(task.title, before + task.weight / total * share)

            report(0.0)
            self._do(task, report)
            done += task.weight / total
        self._progress("done", 1.0)
        return self.findings

    def _tasks(self) -> List[_Task]:
        kinds = self.findings.kinds
        return [
            *self._errors(),
            *(self._symmetries(kind) for kind in kinds),
            *(self._asymmetry(kind) for kind in kinds),
            *(self._loop(kind, loop) for kind in kinds for loop in LOOPS),
            self._speeds(),
            self._equilibration(),
            *self._nve_runs(),
            *self._nvt_runs(),
            *(
                self._relaxations(kind, optimizer)
                for optimizer in self._preset.optimizers
                for kind in kinds
            ),
        ]

    def _do(self, task: _Task, report: Progress) -> None:
        """Read or measure, and take down the result or the reason why there is none."""
        settings: Dict[str, Any] = {}
        result, seconds, reason, status = None, 0.0, None, DONE
        try:
            settings = task.settings()
            result, seconds = self._get(task, settings, report)
        except _NotPossible as error:
            status, reason = SKIPPED, str(error)
        except Exception as error:  # models of other people raise whatever they like
            status, reason = FAILED, str(error) or type(error).__name__
            logging.warning(f"{self._subject.name}, {task.title}: {reason}")
            logging.debug("raised at", exc_info=True)
        self.findings.entries.append(
            Entry(task.name, task.title, status, result, reason, seconds, settings)
        )
        self._note(result)

    def _get(
        self, task: _Task, settings: Dict[str, Any], report: Progress
    ) -> Tuple[Any, float]:
        inputs = settings | {
            "model": self._subject.digest,
            "structures": hash_structures(
                *task.structures(), with_labels=task.with_labels
            ),
        }
        stored = self._cache.load(task.name, inputs, task.returns)
        if stored is not None:
            return stored
        begin = time.perf_counter()
        result = task.measure(report, **settings)
        seconds = time.perf_counter() - begin
        self._cache.store(task.name, inputs, result, seconds)
        return result, seconds

    def _note(self, result: Any) -> None:
        """Remember what later measures depend on."""
        if isinstance(result, Speed):
            self._speed = result.ms
            self.findings.share = self._affordable_share()
        elif isinstance(result, Start):
            self._start = _restore(self._atoms, result)
        elif isinstance(result, NVERun):
            given = self._conditions.n_inner
            self.findings.n_inner = given or choose_inner(self.findings)

    # -------------------------------------------------------------------- structures

    def _static(self) -> List[ase.Atoms]:
        return [self._atoms]

    def _frames(self) -> List[ase.Atoms]:
        return self._structures.frames

    def _running(self) -> List[ase.Atoms]:
        return [self._started()]

    def _started(self) -> ase.Atoms:
        if self._start is None:
            raise _NotPossible("there is no equilibrated structure to start from")
        return self._start

    # ------------------------------------------------------------------------- errors

    def _errors(self) -> List[_Task]:
        tasks = [
            self._error(f"errors/{kind}", f"errors, {kind}", ForceErrors, kind)
            for kind in self.findings.kinds
        ]
        if self._subject.has_both:
            name = "errors/between"
            tasks.append(self._error(name, "direct - conservative", ForceErrors, None))
        if self._subject.has_energy:
            name, kind = "errors/energy", self._best
            tasks.append(self._error(name, "errors, energy", EnergyErrors, kind))
        return tasks

    def _error(self, name: str, title: str, returns: Any, kind: Optional[str]) -> _Task:
        def measure(progress: Progress) -> Any:
            frames = self._structures.frames
            if kind is None:
                pair = (DIRECT, CONSERVATIVE)
                predictions = [self._predict(each, progress) for each in pair]
                result: Any = force_differences(*pair, frames, *predictions)
            elif returns is EnergyErrors:
                result = energy_errors(frames, self._predict(kind, progress))
            else:
                result = force_errors(kind, frames, self._predict(kind, progress))
            if result is None:
                raise _NotPossible("the structures carry no such labels")
            return result

        return _Task(
            name,
            title,
            returns,
            measure,
            dict,
            self._frames,
            weight=len(self._structures.frames),
            with_labels=kind is not None,
        )

    def _predict(self, kind: str, progress: Progress) -> List[Evaluation]:
        """For the frames, once."""
        if kind not in self._predicted:
            self._predicted[kind] = evaluate_frames(
                self._subject.forces[kind],
                self._structures.frames,
                progress,
                self._structures.frame_indices,
            )
        return self._predicted[kind]

    def _symmetries(self, kind: str) -> _Task:
        def measure(progress: Progress, seed: int) -> Symmetries:
            return symmetries(
                self._subject.forces[kind],
                self._structures.frames,
                self._predict(kind, lambda share: progress(share / 3.0)),
                seed=seed,
                progress=lambda share: progress((1.0 + 2.0 * share) / 3.0),
            )

        return _Task(
            f"symmetries/{kind}",
            f"rotation, inversion, net force, {kind}",
            Symmetries,
            measure,
            lambda: {"seed": self._conditions.seed},
            self._frames,
            weight=3.0 * WEIGHTS[kind] * len(self._structures.frames),
        )

    # ------------------------------------------------------------------ closed loops

    def _loop(self, kind: str, loop: str) -> _Task:
        def measure(progress: Progress, **options: Any) -> LoopWork:
            force = self._subject.forces[kind]
            try:
                return LOOPS[loop](force, self._atoms, progress=progress, **options)
            except NoMoleculeError as error:
                raise _NotPossible(str(error)) from error

        def settings() -> Dict[str, Any]:
            return {
                "max_points": self._preset.loop_points,
                "seed": self._conditions.seed,
            }

        return _Task(
            f"loop/{loop}-{kind}",
            f"closed loop ({loop}), {kind}",
            LoopWork,
            measure,
            settings,
            self._static,
            weight=WEIGHTS[kind] * self._preset.loop_points,
        )

    # ---------------------------------------------------------------------- Jacobian

    def _asymmetry(self, kind: str) -> _Task:
        preset, n_atoms = self._preset, len(self._atoms)
        # Pairs of a conservative force have no antisymmetric part to look at.
        n_pair_atoms = 0 if kind == CONSERVATIVE else preset.n_pair_atoms

        def settings() -> Dict[str, Any]:
            if n_atoms < 2:
                raise _NotPossible("one atom alone feels no force")
            if n_atoms <= preset.max_exact:
                return {"kind": kind, "exact": True}
            return {
                "kind": kind,
                "exact": False,
                "n_probes": preset.n_probes,
                "n_pair_atoms": n_pair_atoms,
                "seed": self._conditions.seed,
            }

        return _Task(
            f"asymmetry/{kind}",
            f"symmetry of the Jacobian, {kind}",
            Asymmetry,
            self._measure_asymmetry,
            settings,
            self._static,
            weight=6.0 * WEIGHTS[kind] * (preset.n_probes + 3 * n_pair_atoms),
        )

    def _measure_asymmetry(
        self, progress: Progress, kind: str, exact: bool, **options: Any
    ) -> Asymmetry:
        force = self._subject.forces[kind]
        if exact:
            return exact_asymmetry(force, self._atoms, progress=progress)
        return estimate_asymmetry(force, self._atoms, progress=progress, **options)

    # ---------------------------------------------------------------------- dynamics

    @property
    def _forces(self) -> TwoForces:
        """Of the model, compiled."""
        forces = self._subject.two_forces
        if isinstance(forces, HybridForces):
            forces.warm_up(self._atoms)
        return forces

    def _speeds(self) -> _Task:
        return _Task(
            "speed",
            "cost of an evaluation",
            Speed,
            self._measure_speed,
            dict,
            self._static,
            weight=100.0,
        )

    def _measure_speed(self, progress: Progress) -> Speed:
        forces = self._forces
        evaluate = {DIRECT: forces.direct}
        ms = {}
        for kind in self.findings.kinds:
            seconds = []
            moved = self._atoms.copy()
            for _ in range(TIMINGS):
                moved.positions = moved.positions + 1e-3
                begin = time.perf_counter()
                evaluate.get(kind, forces.conservative)(moved)
                seconds.append(time.perf_counter() - begin)
            ms[kind] = float(f"{1000.0 * np.median(seconds):.2g}")
        return Speed(ms)

    def _affordable_share(self) -> float:
        """Of the lengths of the preset, so that runs take the time they may take."""
        preset = self._preset
        steps = {self._best: preset.equilibration_fs}
        for kind, _ in self._nve_kinds():
            steps[kind] = steps.get(kind, 0.0) + preset.nve_fs
        for coupling in self._couplings():
            length = preset.nvt_fs + preset.nvt_equilibration_fs
            steps[coupling.forces] = steps.get(coupling.forces, 0.0) + length
        seconds = sum(
            1e-3 * self._ms(kind) * length / self._conditions.timestep_fs
            for kind, length in steps.items()
        )
        share = min(1.0, preset.dynamics_seconds / max(seconds, 1e-9))
        return max(MIN_SHARE, float(f"{share:.2g}"))

    def _ms(self, kind: str) -> float:
        """Wall time of a step, in ms; between four and eight inner steps for both."""
        if kind != MTS:
            return self._speed[kind]
        direct, both = self._speed[DIRECT], self._speed[CONSERVATIVE]
        return direct + (both - direct) / 6.0

    def _equilibration(self) -> _Task:
        def settings() -> Dict[str, Any]:
            if len(self._atoms) < 2:
                raise _NotPossible("one atom alone does not move")
            if not self._speed:
                raise _NotPossible("the forces could not be evaluated")
            return {
                "kind": self._best,
                "temperature_K": self._conditions.temperature_K,
                "length_fs": self._length(self._preset.equilibration_fs),
                "timestep_fs": self._conditions.timestep_fs,
                "seed": self._conditions.seed,
            }

        return _Task(
            "start",
            "equilibration",
            Start,
            self._measure_start,
            settings,
            self._static,
            weight=self._weight(self._best, self._preset.equilibration_fs),
        )

    def _measure_start(self, progress: Progress, **options: Any) -> Start:
        start = prepare(self._forces, self._atoms, progress=progress, **options)
        return Start(start.positions.tolist(), start.get_momenta().tolist())

    def _length(self, length_fs: float) -> float:
        return float(f"{self.findings.share * length_fs:.3g}")

    def _weight(self, kind: str, length_fs: float) -> float:
        return WEIGHTS[kind] * length_fs / self._conditions.timestep_fs

    def _nve_kinds(self) -> List[Tuple[str, int]]:
        """Kinds of run and their inner steps."""
        kinds = [(kind, 1) for kind in self.findings.kinds]
        if not self._subject.has_both:
            return kinds
        given = self._conditions.n_inner
        ladder = self._preset.inner_steps if given is None else (given,)
        return kinds + [(MTS, n_inner) for n_inner in ladder]

    def _nve_runs(self) -> List[_Task]:
        return [self._nve(kind, n_inner) for kind, n_inner in self._nve_kinds()]

    def _nve(self, kind: str, n_inner: int) -> _Task:
        def settings() -> Dict[str, Any]:
            self._started()
            return {
                "kind": kind,
                "n_inner": n_inner,
                "timestep_fs": self._conditions.timestep_fs,
                "length_fs": self._length(self._preset.nve_fs),
            }

        return _Task(
            f"nve/{kind}-{n_inner}",
            f"constant energy, {_describe(kind, n_inner)}",
            NVERun,
            self._measure_nve,
            settings,
            self._running,
            weight=self._weight(kind, self._preset.nve_fs),
        )

    def _measure_nve(self, progress: Progress, **options: Any) -> NVERun:
        return run_nve(
            self._forces,
            self._started(),
            has_energy=self._subject.has_energy,
            progress=progress,
            **options,
        )

    def _couplings(self) -> List[Coupling]:
        """Runs with a thermostat, as this model can make them."""
        couplings = []
        for each in self._preset.couplings:
            forces = each.forces if self._subject.has_both else self._best
            couplings.append(dataclasses.replace(each, forces=forces))
        return list(dict.fromkeys(couplings))

    def _nvt_runs(self) -> List[_Task]:
        return [self._nvt(coupling) for coupling in self._couplings()]

    def _nvt(self, coupling: Coupling) -> _Task:
        def settings() -> Dict[str, Any]:
            self._started()
            kind, n_inner = coupling.forces, 1
            if kind == MTS:
                kind, n_inner = self._with_both(coupling)
            return {
                "kind": kind,
                "n_inner": n_inner,
                "thermostat": coupling.thermostat,
                "tau_fs": coupling.tau_fs,
                "temperature_K": self._conditions.temperature_K,
                "timestep_fs": self._conditions.timestep_fs,
                "length_fs": self._length(self._preset.nvt_fs),
                "equilibration_fs": self._length(self._preset.nvt_equilibration_fs),
                "seed": self._conditions.seed,
            }

        return _Task(
            f"nvt/{coupling.forces}-{coupling.thermostat}-{coupling.tau_fs:g}",
            f"constant temperature, {_describe(coupling.forces)}, "
            f"{coupling.thermostat} {coupling.tau_fs:g} fs",
            NVTRun,
            self._measure_nvt,
            settings,
            self._running,
            weight=self._weight(
                coupling.forces,
                self._preset.nvt_fs + self._preset.nvt_equilibration_fs,
            ),
        )

    def _with_both(self, coupling: Coupling) -> Tuple[str, int]:
        """Kind and inner steps of a run that should have several."""
        if self.findings.n_inner is not None:
            return MTS, self.findings.n_inner
        if dataclasses.replace(coupling, forces=CONSERVATIVE) in self._couplings():
            raise _NotPossible("no number of inner steps was found to work")
        return CONSERVATIVE, 1

    def _measure_nvt(self, progress: Progress, **options: Any) -> NVTRun:
        return run_nvt(self._forces, self._started(), progress=progress, **options)

    # -------------------------------------------------------------------- relaxation

    def _relaxations(self, kind: str, optimizer: str) -> _Task:
        preset = self._preset

        def settings() -> Dict[str, Any]:
            if len(self._atoms) < 2:
                raise _NotPossible("one atom alone has nothing to relax")
            if not self._speed:
                raise _NotPossible("the forces could not be evaluated")
            n_runs = self._affordable_relaxations()
            if n_runs < 1:
                raise _NotPossible(
                    f"{preset.relaxation_steps} steps of {self._speed[kind]:g} ms take "
                    f"longer than the preset '{preset.name}' allows; use a larger one"
                )
            return {
                "kind": kind,
                "optimizer": optimizer,
                "n_runs": n_runs,
                "max_steps": preset.relaxation_steps,
                "seed": self._conditions.seed,
            }

        return _Task(
            f"relaxation/{kind}-{optimizer}",
            f"relaxation, {kind}, {optimizer}",
            RelaxationRate,
            self._measure_relaxation,
            settings,
            self._static,
            weight=WEIGHTS[kind] * preset.relaxation_steps,
        )

    def _affordable_relaxations(self) -> int:
        """Perturbed structures for each kind and optimizer."""
        preset = self._preset
        ms = sum(self._speed.values()) * preset.relaxation_steps
        seconds = 1e-3 * ms * len(preset.optimizers)
        return int(min(preset.n_relaxations, preset.relaxation_seconds / seconds))

    def _measure_relaxation(
        self, progress: Progress, n_runs: int, seed: int, **options: Any
    ) -> RelaxationRate:
        structures = perturb(self._atoms, n_runs, seed=seed)
        return relaxation_rate(self._forces, structures, progress=progress, **options)


def _describe(kind: str, n_inner: int = 1) -> str:
    if kind != MTS:
        return kind
    return "both forces" + (f" (M = {n_inner})" if n_inner > 1 else "")


def _restore(atoms: ase.Atoms, start: Start) -> ase.Atoms:
    """The structure at the start of runs."""
    restored: ase.Atoms = atoms.copy()
    restored.set_positions(start.positions, apply_constraint=False)
    restored.set_momenta(start.momenta, apply_constraint=False)
    fix_center_of_mass(restored)
    return restored
