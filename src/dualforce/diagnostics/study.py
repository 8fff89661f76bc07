"""Studies: all measures of a model, one after the other.

Each result is stored as soon as it is there, so an interrupted study goes on where it
stopped. A measure that fails leaves its reason, and the others go on.
"""

import datetime
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import ase
import ase.io

from ..forces import CalculatorForces, ForceSource, Model, load_forces
from ..md.acceptance import TOLERANCE
from ..md.structures import check_structure
from .cache import Cache, hash_structures
from .findings import DONE, FAILED, SKIPPED, Entry, Findings
from .measure import Case, Measure, NotApplicable, Progress
from .measures import MEASURES
from .measures.speed import Speed
from .report import Report, check_folder
from .setup import N_FRAMES, Conditions, Setup, Structures, choose_structures


CACHE = "cache"
"""Folder of the results, within that of the report."""

StudyProgress = Callable[[str, float], None]
"""Receives what is being done and the part of all that is done."""


def diagnose(
    models: Union[Model, Sequence[Model]],
    structures: Union[str, Path, ase.Atoms, Sequence[ase.Atoms]],
    output: Union[None, str, Path] = None,
    *,
    direct_model: Optional[Model] = None,
    preset: str = "quick",
    temperature_K: float = 300.0,
    timestep_fs: float = 0.5,
    n_inner: Optional[int] = None,
    tolerance: float = TOLERANCE,
    index: int = -1,
    n_frames: Optional[int] = None,
    seed: int = 0,
    device: Optional[str] = None,
    variant: Optional[str] = None,
    extensions: Union[None, str, Path] = None,
    progress: Optional[StudyProgress] = None,
) -> Report:
    """Judge the forces of one or several models.

    Measures whether forces are gradients of an energy, and what they do to simulations:
    energy differences, symmetry of the Jacobian, closed loops, errors, runs at constant
    energy and temperature, relaxations.

    :param models: exported models, calculators of ASE, or sources of forces
        (:func:`~dualforce.load_forces`); one or several.
    :param structures: file in any format of ASE, or structures; energies and forces
        they hold are labels.
    :param output: folder for ``report.html``, ``report.json`` and the results, which
        are not measured again; none writes nothing.
    :param direct_model: takes the direct forces of all models from here.
    :param preset: how much to measure: ``quick`` (minutes) or ``full`` (hours). Runs
        have fixed lengths; the log tells at the start how long it will take.
    :param temperature_K: temperature, in K.
    :param timestep_fs: (inner) step, in fs.
    :param n_inner: inner steps (M); by default the largest number that works.
    :param tolerance: accepted difference in drift from the conservative force, in
        meV/atom/ps.
    :param index: index of the structure that is run.
    :param n_frames: number of structures to take errors of.
    :param seed: seed of everything random.
    :param device: torch device of exported models.
    :param variant: variant of the outputs of exported models.
    :param extensions: folder with compiled extensions of exported models.
    :param progress: told what is being done, and the part of all that is done.
    :return: results and conclusions.
    :raises ValueError: if an argument makes no sense.
    :raises FileExistsError: if the folder holds other files of these names.
    :raises FileNotFoundError, ImportError: if a model cannot be loaded.
    """
    conditions = Conditions(
        temperature_K, timestep_fs, n_inner, tolerance, seed, preset
    )
    folder = None if output is None else Path(output)
    if folder is not None:
        check_folder(folder)
    n_frames = N_FRAMES[preset] if n_frames is None else n_frames
    chosen = choose_structures(*_read(structures), n_frames, index)
    try:
        check_structure(chosen.start)
    except ValueError as error:
        raise ValueError(
            f"structure {chosen.start_index} (counted from 0) cannot be judged: {error}"
        ) from error
    sources = _load(models, direct_model, device, variant, extensions)
    cache, found = Cache(folder and folder / CACHE), []
    report = Report([], chosen, conditions, "")
    for number, (name, source) in enumerate(sources.items()):

        def tell(title: str, share: float, n: str = name, done: int = number) -> None:
            if progress is not None:
                progress(f"{n}: {title}", (done + share) / len(sources))

        found.append(study(name, source, chosen, conditions, cache, tell))
        created = datetime.datetime.now().strftime("%d %B %Y, %H:%M")
        report = Report(list(found), chosen, conditions, created)
        if folder is not None:
            # After each model, so that an interrupt leaves a report of the others.
            report.write(folder)
    return report


def _read(
    structures: Union[str, Path, ase.Atoms, Sequence[ase.Atoms]],
) -> Tuple[List[ase.Atoms], str]:
    """Structures, and where they come from."""
    if isinstance(structures, ase.Atoms):
        return [structures], "one structure"
    if not isinstance(structures, (str, Path)):
        return list(structures), "a list of structures"
    try:
        found = ase.io.read(structures, index=":")
    except Exception as error:  # readers of ASE raise whatever they like
        raise ValueError(
            f"{structures} cannot be read as structures: {error}"
        ) from error
    return list(found), str(structures)


def _load(
    models: Union[Model, Sequence[Model]],
    direct_model: Optional[Model],
    device: Optional[str],
    variant: Optional[str],
    extensions: Union[None, str, Path],
) -> Dict[str, ForceSource]:
    """Sources by names for people: files without their folder where that is enough."""
    given = list(models) if isinstance(models, (list, tuple)) else [models]
    if not given:
        raise ValueError("there are no models to judge")
    sources = [
        load_forces(
            model, direct_model, device=device, variant=variant, extensions=extensions
        )
        for model in given
    ]
    short = [
        Path(model).name if isinstance(model, (str, Path)) else source.name
        for model, source in zip(given, sources, strict=True)
    ]
    named: Dict[str, ForceSource] = {}
    for name, source in zip(short, sources, strict=True):
        name = name if short.count(name) == 1 else source.name
        same = sum(each.partition(" #")[0] == name for each in named)
        named[f"{name} #{same + 1}" if same else name] = source
    return named


def study(
    name: str,
    source: ForceSource,
    structures: Structures,
    conditions: Conditions,
    cache: Cache,
    progress: StudyProgress = lambda title, share: None,
) -> Findings:
    """Take all measures of one model, or read them from the cache.

    :param name: name of the model in the report.
    :param source: its forces.
    :param structures: what it is judged on.
    :param conditions: conditions of the runs.
    :param cache: where results are kept.
    :param progress: told how far it is.
    """
    atoms = structures.start
    findings = Findings(
        name=name,
        digest=source.digest,
        kinds=source.kinds,
        has_energy=source.has_energy,
        is_calculator=isinstance(source, CalculatorForces),
        n_atoms=len(atoms),
        periodic=bool(atoms.pbc.any()),
        n_inner=conditions.n_inner if len(source.kinds) > 1 else None,
        tolerance=conditions.tolerance,
    )
    setup = Setup(source, structures, conditions, findings)
    # What a model depends on is not always known; then nothing is kept.
    return _Study(setup, cache if source.digest else Cache(None), progress).run()


class _Study:
    def __init__(self, setup: Setup, cache: Cache, progress: StudyProgress) -> None:
        self._setup, self._cache, self._progress = setup, cache, progress
        self._findings, self._shown = setup.findings, 0.0

    def run(self) -> Findings:
        """Take all measures."""
        # What comes first tells what evaluations cost.
        self._take(MEASURES[0], lambda title, share: self._show(title, 0.0))
        others = MEASURES[1:]
        costs = [self._cost_of(self._planned(measure)) for measure in others]
        whole, before = max(sum(costs), 1e-9), 0.0
        logging.info(f"{self._findings.name}: {_duration(whole)}")
        for measure, cost in zip(others, costs, strict=True):
            self._take(measure, self._part(before / whole, cost / whole))
            before += cost
        self._show("done", 1.0)
        return self._findings

    def _show(self, title: str, share: float) -> None:
        # Sums of parts are off by rounding errors.
        self._shown = max(self._shown, min(share, 1.0))
        self._progress(title, self._shown)

    def _part(self, before: float, own: float) -> StudyProgress:
        """Progress of a part of the study."""
        return lambda title, share: self._show(title, before + own * share)

    def _planned(self, measure: Measure) -> List[Case]:
        """Cases of a measure, as far as they are known before it is taken."""
        try:
            return self._cases(measure)
        except NotApplicable:
            return []

    def _cases(self, measure: Measure) -> List[Case]:
        if len(self._setup.atoms) < measure.min_atoms:
            raise NotApplicable("the structure has one atom: there are no forces")
        is_first, speeds = measure is MEASURES[0], self._findings.of_type(Speed)
        if not (is_first or speeds or measure.needs == "frames"):
            raise NotApplicable("the forces of the structure cannot be evaluated")
        return measure.cases(self._setup)

    def _cost_of(self, cases: Sequence[Case]) -> float:
        """Wall time in s."""
        ms = next((x.ms for x in self._findings.of_type(Speed)), {})
        numbers = [number for case in cases for number in case.evaluations.items()]
        return sum(1e-3 * ms.get(kind, 1.0) * number for kind, number in numbers)

    def _take(self, measure: Measure, report: StudyProgress) -> None:
        entries = self._findings.entries
        try:
            cases = self._cases(measure)
        except NotApplicable as error:
            entry = Entry(measure.name, measure.title, SKIPPED, reason=str(error))
            entries.append(entry)
            return
        whole = max(self._cost_of(cases), 1e-9)
        for index, case in enumerate(cases):
            title = f"{measure.title}, {case.name}"
            before = self._cost_of(cases[:index]) / whole
            own = self._cost_of([case]) / whole

            tell = _part_of(report, title, before, own)
            tell(0.0)
            entries.append(self._entry(measure, case, title, tell))

    def _entry(
        self, measure: Measure, case: Case, title: str, report: Progress
    ) -> Entry:
        """The result of a case, or the reason why there is none."""
        task = f"{measure.name}/{case.name}"
        try:
            result, seconds = self._get(measure, case, task, report)
        except NotApplicable as error:
            return Entry(task, title, SKIPPED, reason=str(error))
        except Exception as error:  # models of other people raise whatever they like
            reason = str(error) or type(error).__name__
            logging.warning(f"{self._findings.name}, {title}: {reason}")
            logging.debug("raised at", exc_info=True)
            return Entry(task, title, FAILED, reason=reason)
        return Entry(task, title, DONE, result, None, seconds, case.settings)

    def _get(
        self, measure: Measure, case: Case, task: str, report: Progress
    ) -> Tuple[Any, float]:
        inputs = case.settings | {
            "version": measure.version,
            "model": self._findings.digest,
            "structures": self._hash(measure),
        }
        stored = self._cache.load(task, inputs, measure.result)
        if stored is not None:
            return stored
        begin = time.perf_counter()
        result = measure.measure(self._setup, report, **case.settings)
        seconds = time.perf_counter() - begin
        self._cache.store(task, inputs, result, seconds)
        return result, seconds

    def _hash(self, measure: Measure) -> str:
        if measure.needs == "frames":
            return hash_structures(*self._setup.structures.frames, with_labels=True)
        atoms = self._setup.start if measure.needs == "start" else self._setup.atoms
        return hash_structures(atoms)


def _part_of(report: StudyProgress, title: str, before: float, own: float) -> Progress:
    """Progress of one case within a measure."""
    return lambda share: report(title, before + own * share)


def _duration(seconds: float) -> str:
    """What a study will take, for people."""
    if seconds < 90.0:
        time_ = f"{seconds:.0f} s"
    elif seconds < 5400.0:
        time_ = f"{seconds / 60.0:.0f} min"
    else:
        time_ = f"{seconds / 3600.0:.1f} h"
    return f"takes at most about {time_}, less what has been measured before"
