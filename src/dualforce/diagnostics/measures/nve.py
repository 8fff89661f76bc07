"""Runs at constant energy: with each force alone, and with multiple time steps."""

import math
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple

import ase
import numpy as np
from ase import units

from ...forces import ForceSource
from ...md.acceptance import is_drifting, judge, judge_all, largest_good
from ...md.constant_energy import MAX_DRIFT, Candidate, ConstantEnergyRun
from ...md.statistics import Estimate, difference
from ...md.thermostats import check_positive
from ..content import BAD, CAUTION, GOOD, Figure, Sentence
from ..findings import CONSERVATIVE, DIRECT, MTS, Findings
from ..measure import Case, Measure, NotApplicable, Progress, silent
from ..plotting import COLORS, dashes, panel, thin
from ..setup import Setup
from ..text import significant, with_error
from .equilibration import forces_of_run
from .speed import speed_up


INTERVAL = 10.0
"""Between evaluations of the energy in runs with direct forces, in fs."""

MAX_CHANGE = 0.5
"""In eV/atom: change of the energy (or kinetic energy) at which runs with direct forces
end. The others end as in ``dualforce tune``."""

FAST = 5.0
"""Multiple of the tolerance from which on a drift of the conservative force is too fast
for any run."""

HEAT_CAPACITY = 3.0 * units.kB * 1000.0
"""Of an atom of a classical solid or liquid, in meV/K."""


@dataclass(frozen=True)
class NVERun:
    """A run at constant energy."""

    kind: str
    """``direct``, ``conservative`` or ``MTS``."""
    candidate: Candidate
    """What the run has shown, as in ``dualforce tune``."""
    times: List[float]
    """In ps."""
    temperature: List[float]
    """In K."""
    conserved: List[float]
    """Kinetic plus conservative energy in meV/atom, from zero; empty without an
    energy."""

    @property
    def power(self) -> Estimate:
        """Drift in meV/atom/ps; without an energy, what the heating amounts to."""
        if math.isfinite(self.candidate.drift[0]):
            return self.candidate.drift
        heating, error = self.candidate.heating
        return HEAT_CAPACITY * heating, HEAT_CAPACITY * error


def run_nve(
    source: ForceSource,
    start: ase.Atoms,
    *,
    kind: str,
    n_inner: int = 1,
    timestep_fs: float,
    length_fs: float,
    progress: Progress = silent,
) -> NVERun:
    """Run at constant energy.

    The conserved quantity is kinetic plus conservative energy, also if direct forces
    move the atoms.

    :param source: source of forces.
    :param start: equilibrated structure with momenta, which is not changed.
    :param kind: ``conservative``, ``direct`` or ``MTS``.
    :param n_inner: inner steps of ``MTS``.
    :param timestep_fs: length of an inner step, in fs.
    :param length_fs: time to run, in fs.
    :param progress: told the part that is done.
    :raises ValueError: if an argument makes no sense.
    """
    check_positive(timestep_fs=timestep_fs, length_fs=length_fs)
    forces = forces_of_run(source, kind, n_inner)
    is_direct = kind == DIRECT
    run = ConstantEnergyRun(
        start,
        timestep_fs * units.fs,
        forces,
        n_inner,
        energies=source if is_direct and source.has_energy else None,
        interval=INTERVAL * units.fs if is_direct else 0.0,
        max_drift=MAX_DRIFT if forces.has_energy else MAX_CHANGE,
    )
    run.advance(length_fs * units.fs, report=progress)
    times, conserved, temperature, _ = run.series
    has_energy = np.isfinite(conserved).any()
    return NVERun(
        kind=kind,
        candidate=run.candidate(),
        times=thin(times.tolist()),
        temperature=thin(temperature.tolist()),
        conserved=thin((conserved - conserved[0]).tolist()) if has_energy else [],
    )


# ------------------------------------------------------------------------------- rules


def find_run(findings: Findings, kind: str, n_inner: int = 1) -> Optional[NVERun]:
    """The run with these forces, or none."""
    return findings.find(
        NVERun, lambda x: (x.kind, x.candidate.n_inner) == (kind, n_inner)
    )


def verdict_of(findings: Findings, run: NVERun) -> str:
    """What ``dualforce tune`` says of a run, compared with that of the conservative
    force; a force that has no other one beside it is compared with conservation of
    energy.

    :param findings: results of a model.
    :param run: one of them.
    """
    control, tolerance = find_run(findings, CONSERVATIVE), findings.tolerance
    if control is not None and control is not run:
        return judge(run.candidate, control.candidate, tolerance)
    verdict = judge(run.candidate, None, tolerance)
    if run.candidate.failed is not None or run.candidate.is_short:
        return verdict
    if is_drifting(run.power, tolerance):
        return "drifts"
    if not run.conserved:
        return "good" if run.power[1] <= tolerance else "unclear"
    return verdict


def inner_steps(findings: Findings) -> Optional[int]:
    """Inner steps of runs with both forces: those the user asked for, or the largest
    number that ``dualforce tune`` would recommend from the runs at constant energy.

    :param findings: results of a model.
    :return: none if there is none.
    """
    control = find_run(findings, CONSERVATIVE)
    if findings.n_inner is not None or not findings.has_both or control is None:
        return findings.n_inner if findings.has_both else None
    others = [x.candidate for x in findings.of_type(NVERun) if x.kind == MTS]
    others.sort(key=lambda candidate: candidate.n_inner)
    best = largest_good(judge_all([control.candidate, *others], findings.tolerance))
    return best.n_inner if best is not None and best.n_inner > 1 else None


def is_undecided(findings: Findings) -> bool:
    """Whether runs were too short to find out if any number of inner steps works."""
    runs = (find_run(findings, CONSERVATIVE), _smallest(findings))
    return any(x is not None and verdict_of(findings, x) == "unclear" for x in runs)


def _smallest(findings: Findings) -> Optional[NVERun]:
    """The run with both forces and the fewest inner steps."""
    runs = [x for x in findings.of_type(NVERun) if x.kind == MTS]
    return min(runs, key=lambda x: x.candidate.n_inner, default=None)


def level_of(findings: Findings, run: NVERun) -> str:
    """Whether a force may drive dynamics, as far as a run can tell.

    :param findings: results of a model.
    :param run: one of them.
    """
    verdict = verdict_of(findings, run)
    if verdict == "unclear":
        return CAUTION
    if verdict == "good":
        return GOOD
    is_control = run.kind == CONSERVATIVE and findings.has_both
    slow = run.candidate.failed is None and (
        abs(run.power[0]) <= FAST * findings.tolerance
    )
    return CAUTION if is_control and slow else BAD


def _describe(findings: Findings, run: NVERun) -> Sentence:
    """What a force alone does at constant energy."""
    candidate, level = run.candidate, level_of(findings, run)
    verdict, name = verdict_of(findings, run), findings.phrase(run.kind)
    length = f"{significant(candidate.length_ps)} ps"
    drift = f"{with_error(run.power)} meV per atom and ps"
    relative = candidate.relative_drift
    if math.isfinite(relative[0]):
        drift += f" ({with_error(relative)} std of kinetic energy per ps)"
    if candidate.failed is not None:
        text = f"The run with {name} fails after {length}: {candidate.failed}."
    elif verdict == "good":
        text = f"Safe with {name}: energy drifts by {drift} in {length}."
    elif verdict == "unclear":
        text = (
            f"Not decided with {name}: {length} are too short to know the drift, "
            f"{drift}. The full preset runs longer."
        )
    elif level == CAUTION:
        text = (
            f"With {name} energy drifts by {drift}: shorten the timestep for long runs."
        )
    else:
        rate = significant(abs(run.power[0]) / HEAT_CAPACITY)
        text = (
            f"Not safe with {name}: {_what(verdict)}. Energy drifts by {drift}, enough "
            f"to change the temperature by {rate} K in every ps."
        )
    return Sentence(level, "Constant energy (NVE)", text)


def _what(verdict: str) -> str:
    """What is wrong with a run, as a sentence without an end."""
    return {
        "drifts": "it drifts",
        "drift grows": "its drift grows along the run",
        "correction grows": "the difference between both forces grows along the run",
        "heats": "it heats up",
    }.get(verdict, f"the run {verdict}")


def _judge_inner_steps(findings: Findings) -> List[Sentence]:
    topic = "Multiple time steps (M)"
    control, chosen = find_run(findings, CONSERVATIVE), inner_steps(findings)
    run = find_run(findings, MTS, chosen) if chosen else _smallest(findings)
    if control is None or control.candidate.failed is not None or run is None:
        return []
    verdict, n_inner = verdict_of(findings, run), run.candidate.n_inner
    excess = with_error(difference(run.candidate.drift, control.candidate.drift))
    number = f"difference in drift from the conservative force: {excess} meV/atom/ps"
    length = f"{significant(run.candidate.length_ps)} ps"
    if verdict == "good":
        factor = speed_up(findings, n_inner)
        speed = "" if factor is None else f" and {factor:.1f} times as fast"
        bounds = [
            f"M = {x.candidate.n_inner} {_short(findings, x)}"
            for x in findings.of_type(NVERun)
            if x.kind == MTS and x.candidate.n_inner > n_inner
        ]
        text = (
            f"M = {n_inner} is like the conservative force in {length} ({number})"
            f"{speed}." + (f" {', '.join(bounds)}." if bounds else "")
        )
        return [Sentence(GOOD, topic, text)]
    if verdict == "unclear":
        text = f"Not decided: with M = {n_inner}, {length} are too short ({number})."
        return [Sentence(CAUTION, topic, text)]
    reason = run.candidate.failed or f"{_what(verdict)} ({number})"
    text = (
        f"M = {n_inner} does not work: {reason}. The direct force differs too much "
        "from the conservative one, or the timestep is too long."
    )
    return [Sentence(BAD, topic, text)]


def _short(findings: Findings, run: NVERun) -> str:
    verdict = verdict_of(findings, run)
    return {"unclear": "is not decided", "good": "is like it too"}.get(verdict, verdict)


# ----------------------------------------------------------------------------- measure


class ConstantEnergy(Measure):
    """Runs at constant energy."""

    name = "nve"
    title = "Constant energy (NVE)"
    explanation = (
        "Without a thermostat total energy is conserved; its drift is the power that "
        "the force injects into every atom. Beside it stands the drift over the "
        "standard deviation of the kinetic energy. MTS (multiple time steps) moves "
        "atoms with the direct force and corrects it with the conservative one every M "
        "steps. The control of every run is that of the conservative force, from the "
        "same start and of the same length; the rule is that of `dualforce tune`. "
        "Errors allow for correlations in time."
    )
    result = NVERun
    min_atoms = 2
    columns = {
        "run": lambda findings, x: findings.label(x.kind, x.candidate.n_inner),
        "drift / meV/atom/ps": lambda _, x: with_error(x.candidate.drift),
        "drift / std of kinetic energy / ps⁻¹": lambda _, x: with_error(
            x.candidate.relative_drift
        ),
        "heating / K/ps": lambda _, x: with_error(x.candidate.heating),
        "length / ps": lambda _, x: f"{x.candidate.length_ps:.3g}",
        "ms per step": lambda _, x: f"{x.candidate.ms_per_step:.1f}",
        "verdict": lambda findings, x: verdict_of(findings, x),
    }
    needs = "start"
    sizes = {
        "quick": {"length_fs": 1000.0, "inner": (2, 4, 8)},
        "full": {"length_fs": 5000.0, "inner": (2, 4, 8, 16)},
    }

    def cases(self, setup: Setup) -> List[Case]:
        size, given = setup.size(self), setup.conditions.n_inner
        runs: List[Tuple[str, int]] = [(kind, 1) for kind in setup.source.kinds]
        if setup.findings.has_both:
            ladder = size["inner"] if given is None else (given,)
            runs += [(MTS, n_inner) for n_inner in ladder]
        return [self._case(setup, *run, size["length_fs"]) for run in runs]

    def _case(self, setup: Setup, kind: str, n_inner: int, length_fs: float) -> Case:
        conditions = setup.conditions
        settings = {
            "kind": kind,
            "n_inner": n_inner,
            "timestep_fs": conditions.timestep_fs,
            "length_fs": length_fs,
        }
        n_steps = length_fs / conditions.timestep_fs
        return Case(
            f"{kind}-{n_inner}" if kind == MTS else kind,
            settings,
            evaluations_of_run(kind, n_inner, n_steps),
        )

    def measure(
        self,
        setup: Setup,
        progress: Progress,
        *,
        kind: str,
        n_inner: int,
        **settings: Any,
    ) -> NVERun:
        if kind == MTS:
            self._check_smaller(setup.findings)
        return run_nve(
            setup.source,
            setup.start,
            kind=kind,
            n_inner=n_inner,
            progress=progress,
            **settings,
        )

    def _check_smaller(self, findings: Findings) -> None:
        """Runs end with the second one that is bad, as in ``dualforce tune``."""
        runs = [x for x in findings.of_type(NVERun) if x.kind == MTS]
        if sum(verdict_of(findings, x) not in ("good", "unclear") for x in runs) > 1:
            raise NotApplicable("smaller numbers of inner steps do not work already")

    def sentences(self, findings: Findings) -> List[Sentence]:
        alone = [x for x in findings.of_type(NVERun) if x.kind != MTS]
        sentences = [_describe(findings, run) for run in alone]
        return sentences + _judge_inner_steps(findings)

    def figures(self, findings: Findings) -> List[Figure]:
        runs = findings.of_type(NVERun)
        figures = []
        if any(run.times for run in runs):
            svg = _plot(findings, "temperature", "temperature / K")
            figures.append(Figure(svg, "Temperature at constant energy."))
        if any(run.conserved for run in runs):
            svg = _plot(findings, "conserved", "total energy / meV per atom")
            caption = "Kinetic plus conservative energy, which should not change."
            figures.append(Figure(svg, caption))
        return figures


def evaluations_of_run(kind: str, n_inner: int, n_steps: float) -> Dict[str, float]:
    """Evaluations of a run, by kind of force.

    :param kind: ``conservative``, ``direct`` or ``MTS``.
    :param n_inner: inner steps of ``MTS``.
    :param n_steps: inner steps in all.
    """
    if kind != MTS:
        return {kind: n_steps}
    n_outer = n_steps / n_inner
    return {CONSERVATIVE: n_outer, DIRECT: n_steps - n_outer}


def _plot(findings: Findings, quantity: str, label: str) -> str:
    """A quantity along all runs; the chosen number of inner steps is drawn full."""
    chosen = inner_steps(findings)

    def paint(axes: Any) -> None:
        others = dashes()
        for run in findings.of_type(NVERun):
            name = findings.label(run.kind, run.candidate.n_inner)
            main = run.kind != MTS or run.candidate.n_inner == chosen
            color = COLORS[MTS if run.kind == MTS else name]
            values = getattr(run, quantity)
            if not values:
                continue
            axes.plot(
                run.times,
                values,
                color=color,
                ls="-" if main else next(others),
                lw=1.7 if main else 1.1,
                label=name,
            )
            if run.candidate.failed is not None:
                axes.plot(run.times[-1], values[-1], "x", color=color, ms=8.0)
        axes.set_xlim(left=0.0)
        axes.locator_params(axis="x", nbins=6)
        if quantity == "conserved" and max(map(abs, axes.get_ylim())) > 3.0:
            # From small drifts to runs that explode.
            axes.set_yscale("symlog", linthresh=1.0)
        axes.legend()

    return panel(paint, "time / ps", label)
