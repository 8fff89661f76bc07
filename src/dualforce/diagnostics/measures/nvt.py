"""Runs with a thermostat: temperatures of the elements, structure and motion."""

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import ase
from ase import units

from ...forces import ForceSource
from ...md import Guard, RespaLangevin, RespaSVR, RespaVelocityVerlet
from ...md.preparation import fix_center_of_mass
from ...md.statistics import UNKNOWN, Estimate, difference
from ...md.thermostats import check_positive
from ..content import BAD, CAUTION, GOOD, Figure, Sentence
from ..findings import CONSERVATIVE, DIRECT, MTS, Findings
from ..measure import Case, Measure, NotApplicable, Progress, silent
from ..observables import Sampler
from ..plotting import COLORS, MARKERS, dashes, panel, rows_panel, thin
from ..setup import Setup
from ..text import NOTHING, significant, with_error
from .equilibration import forces_of_run
from .nve import evaluations_of_run, inner_steps


LANGEVIN, SVR = "langevin", "svr"
"""Thermostats: white noise on every atom, and stochastic velocity rescaling."""

KINDS = (CONSERVATIVE, MTS, DIRECT)

TITLES = {LANGEVIN: "Langevin", SVR: "SVR"}

INTERVAL = 2.0
"""Between samples, in fs: bonds with hydrogen vibrate with a period of 9 fs."""

EQUIPARTITION = 0.03
"""Error of temperatures, relative to the target, with which runs count as alike if they
do not differ."""

SIGMAS = 3.0
"""Errors by which temperatures must differ from those of the control. Several elements
are compared at once."""

EXCHANGE_PS = 5.0
"""Vibrations and translations of molecules exchange kinetic energy within about 1 ps:
in short runs temperatures of elements differ by chance, by more than their errors."""

FRICTION_TIMES = 50.0
"""With friction runs may be shorter: so many time constants."""

DIFFUSION_SIGMAS = 2.0

MIN_DIFFUSION_LENGTH = 5.0
"""In ps: atoms of a liquid need some picoseconds to begin to diffuse."""

MAX_PANELS = 6
"""Of elements or pairs."""


@dataclass(frozen=True)
class NVTRun:
    """A run with a thermostat."""

    kind: str
    """``direct``, ``conservative`` or ``MTS``."""
    n_inner: int
    thermostat: str
    """``langevin`` or ``svr``."""
    tau_fs: float
    """Inverse friction, or relaxation time of the kinetic energy."""
    target: float
    """Temperature of the thermostat, in K."""
    length_ps: float
    """Without the equilibration before."""
    failed: Optional[str]
    """Why the run ended early; what could not be measured is empty then."""
    deviation: Dict[str, Estimate]
    """Mean kinetic temperature minus the target in K, for ``all`` and each element."""
    splits: Dict[str, Estimate]
    """Differences between the mean temperatures of two elements, in K."""
    diffusion: Dict[str, Estimate]
    """Diffusion coefficient of each element in Å^2/ps, without finite-size
    correction; empty without a periodic cell, and for runs under 2 ps."""
    frequencies: List[float]
    """In 1/cm."""
    spectrum: Dict[str, List[float]]
    """Spectrum of the velocity autocorrelation of each element, of area one."""
    lags: List[float]
    """In ps."""
    autocorrelation: Dict[str, List[float]]
    """Velocity autocorrelation of each element, one at the beginning."""
    distances: List[float]
    """In Å; empty without a periodic cell."""
    rdf: Dict[str, List[float]]
    """Radial distribution function of each pair of elements, ``H-O``."""
    ms_per_step: float
    """Wall time of an inner step, in ms."""


def run_nvt(
    source: ForceSource,
    start: ase.Atoms,
    *,
    kind: str,
    n_inner: int = 1,
    thermostat: str,
    tau_fs: float,
    temperature_K: float,
    timestep_fs: float,
    length_fs: float,
    equilibration_fs: float,
    seed: int = 0,
    progress: Progress = silent,
) -> NVTRun:
    """Run with a thermostat and measure temperatures and motion.

    Velocities are sampled every 2 fs, or at the outer points if those are farther
    apart: from 4 fs on, the spectrum folds back the vibrations of hydrogen.

    :param source: source of forces.
    :param start: equilibrated structure with momenta, which is not changed.
    :param kind: ``conservative``, ``direct`` or ``MTS``.
    :param n_inner: inner steps of ``MTS``.
    :param thermostat: ``langevin`` or ``svr``.
    :param tau_fs: inverse friction, or relaxation time of the kinetic energy, in fs.
    :param temperature_K: temperature of the thermostat, in K.
    :param timestep_fs: length of an inner step, in fs.
    :param length_fs: time to measure for, in fs.
    :param equilibration_fs: time to run before, in fs.
    :param seed: seed of the thermostat.
    :param progress: told the part that is done.
    :raises ValueError: if an argument makes no sense.
    """
    check_positive(tau_fs=tau_fs, timestep_fs=timestep_fs, length_fs=length_fs)
    if not equilibration_fs >= 0.0:
        raise ValueError(f"equilibration_fs must not be negative: {equilibration_fs}")
    with tempfile.TemporaryDirectory() as folder:
        run = _make_run(
            thermostat,
            tau_fs * units.fs,
            atoms=start.copy(),
            timestep=timestep_fs * units.fs,
            forces=forces_of_run(source, kind, n_inner),
            n_inner=n_inner,
            temperature_K=temperature_K,
            rng=seed,
            # Thermostats carry off whatever heat the force makes.
            guard=Guard(factor=float("inf"), max_drift=float("inf")),
            last_good=Path(folder) / "last-good.extxyz",
        )
        every = max(1, round(INTERVAL / (run.dt / units.fs)))
        interval_fs = every * run.dt / units.fs
        n_skipped = round(equilibration_fs / interval_fs)
        n_records = n_skipped + max(1, round(length_fs / interval_fs))
        n_samples = n_records - n_skipped + 1
        sampler = Sampler(run, temperature_K, interval_fs, n_skipped, n_samples, seed)
        failed, seconds = _sample(run, every, n_records, sampler.record, progress)
    distances, rdf = sampler.distributions()
    return NVTRun(
        kind=kind,
        n_inner=n_inner,
        thermostat=thermostat,
        tau_fs=tau_fs,
        target=temperature_K,
        length_ps=sampler.length_ps,
        failed=failed,
        deviation=sampler.deviations(),
        splits=sampler.splits(),
        diffusion=sampler.diffusion(),
        distances=distances,
        rdf=rdf,
        ms_per_step=1000.0 * seconds / max(1, run.nsteps * n_inner),
        **sampler.motion(),
    )


def _make_run(thermostat: str, tau: float, **arguments: Any) -> RespaVelocityVerlet:
    fix_center_of_mass(arguments["atoms"])
    if thermostat == LANGEVIN:
        return RespaLangevin(friction=1.0 / tau, **arguments)
    if thermostat == SVR:
        return RespaSVR(tau=tau, **arguments)
    raise ValueError(
        f"the thermostat must be '{LANGEVIN}' or '{SVR}', not '{thermostat}'"
    )


def _sample(
    run: RespaVelocityVerlet,
    every: int,
    n_records: int,
    record: Callable[[], None],
    progress: Progress,
) -> Tuple[Optional[str], float]:
    """Run and record every few outer steps, until the run ends or fails.

    :return: why it failed, if it did, and the wall time of the steps in s.
    """
    seconds = 0.0
    try:
        record()
        for index in range(n_records):
            begin = time.perf_counter()
            run.run(every)
            seconds += time.perf_counter() - begin
            record()
            progress((index + 1) / n_records)
    except (FloatingPointError, RuntimeError) as error:
        time_ps = run.get_time() / (1000.0 * units.fs)
        return f"after {time_ps:.3f} ps: {error.__cause__ or error}", seconds
    return None, seconds


# ------------------------------------------------------------------------------- rules


def control_of(findings: Findings, run: NVTRun) -> Optional[NVTRun]:
    """The run that another one is compared with: conservative forces, the same
    thermostat and length. None if there is none, or if ``run`` is a control itself.

    :param findings: results of a model.
    :param run: one of them.
    """

    def matches(other: NVTRun) -> bool:
        return (
            other.kind == CONSERVATIVE
            and other.failed is None
            and (other.thermostat, other.tau_fs) == (run.thermostat, run.tau_fs)
            and abs(other.length_ps - run.length_ps) <= 0.1 * run.length_ps
        )

    return None if run.kind == CONSERVATIVE else findings.find(NVTRun, matches)


def temperature_excess(run: NVTRun, control: Optional[NVTRun]) -> Dict[str, Estimate]:
    """Mean temperature (``all``) and differences between elements, less those of the
    control, in K; of a run without a control, as they are."""
    mine = _temperatures(run)
    if control is None:
        return mine
    theirs = _temperatures(control)
    return {name: difference(mine[name], theirs[name]) for name in mine}


def _temperatures(run: NVTRun) -> Dict[str, Estimate]:
    return {n: x for n, x in run.deviation.items() if n == "all"} | run.splits


def is_long_enough(run: NVTRun) -> bool:
    """Whether temperatures of elements mean anything."""
    needed = EXCHANGE_PS
    if run.thermostat == LANGEVIN:
        needed = min(needed, 1e-3 * FRICTION_TIMES * run.tau_fs)
    return run.length_ps >= 0.9 * needed


def compare_temperatures(run: NVTRun, control: Optional[NVTRun]) -> str:
    """The rule for temperatures.

    :param run: the run.
    :param control: run to compare with.
    :return: ``differ``, ``alike``, or ``unclear``.
    """
    excess = temperature_excess(run, control).values()
    if not (excess and is_long_enough(run)):
        return "unclear"
    if any(abs(value) > SIGMAS * error for value, error in excess):
        return "differ"
    known = all(error <= EQUIPARTITION * run.target for _, error in excess)
    return "alike" if known else "unclear"


def diffusion_reference(findings: Findings) -> Optional[NVTRun]:
    """The run whose diffusion others are compared with: conservative forces, and a
    thermostat that hardly disturbs motion."""
    return findings.find(
        NVTRun,
        lambda x: (
            x.thermostat == SVR
            and x.kind in (CONSERVATIVE, MTS)
            and x.failed is None
            and x.length_ps >= MIN_DIFFUSION_LENGTH
        ),
    )


def slowing_of(run: NVTRun, reference: Optional[NVTRun]) -> Optional[Estimate]:
    """How many times slower the element with the largest change diffuses than in the
    reference; none where that was not measured.

    :param run: the run.
    :param reference: run to compare with.
    """
    if reference is None or run is reference or run.length_ps < MIN_DIFFUSION_LENGTH:
        return None
    ratios = []
    others = _diffusion(run)
    for name, (value, error) in _diffusion(reference).items():
        mine, my_error = others.get(name, (0.0, 0.0))
        if mine > 0.0:
            ratio = value / mine
            ratios.append((ratio, ratio * math.hypot(error / value, my_error / mine)))
    finite = [ratio for ratio in ratios if math.isfinite(ratio[1])]
    return max(finite, default=None)


def _judge(findings: Findings, run: NVTRun) -> Sentence:
    """What a run with direct forces inside shows, or that of the only force."""
    name = findings.phrase(run.kind, run.n_inner)
    topic = f"{TITLES[run.thermostat]} thermostat, {run.tau_fs:g} fs"
    if run.failed is not None:
        text = f"The run with {name} fails {run.failed}."
        return Sentence(BAD, topic, text)
    control = control_of(findings, run)
    excess = temperature_excess(run, control)
    result = compare_temperatures(run, control)
    numbers = f"{_listed(excess)} K"
    length = f"{significant(run.length_ps)} ps"
    if result == "unclear":
        text = (
            f"Not decided with {name}: {length} are too short to compare temperatures "
            f"({numbers})."
        )
        return Sentence(CAUTION, topic, text)
    if result == "differ":
        text = f"With {name} temperatures differ from {_reference(control)}: {numbers}."
        if run.thermostat == SVR:
            text += (
                " Rescaling controls the mean only; elements at different temperatures "
                "are not in equilibrium."
            )
        return Sentence(BAD if control else CAUTION, topic, text)
    text = f"With {name} temperatures agree with {_reference(control)}: {numbers}"
    if run.thermostat == SVR:
        return Sentence(GOOD, topic, text + ".")
    return _add_slowing(findings, run, Sentence(GOOD, topic, text))


def _reference(control: Optional[NVTRun]) -> str:
    return "those of conservative forces" if control else "the target and each other"


def _listed(estimates: Dict[str, Estimate]) -> str:
    """Numbers with errors and names."""
    texts = (f"{name} {with_error(x)}" for name, x in estimates.items())
    return ", ".join(texts).replace("all", "mean") or NOTHING


def _less_control(findings: Findings, run: NVTRun) -> str:
    control = control_of(findings, run)
    return NOTHING if control is None else _listed(temperature_excess(run, control))


def _diffusion(run: NVTRun) -> Dict[str, Estimate]:
    """Coefficients that differ from zero; atoms of a solid only vibrate."""
    if run.length_ps < MIN_DIFFUSION_LENGTH:
        return {}
    return {n: x for n, x in run.diffusion.items() if x[0] > DIFFUSION_SIGMAS * x[1]}


def _slowing(findings: Findings, run: NVTRun) -> str:
    slowing = slowing_of(run, diffusion_reference(findings))
    return NOTHING if slowing is None else with_error(slowing).lstrip("+")


def _add_slowing(findings: Findings, run: NVTRun, sentence: Sentence) -> Sentence:
    """What the friction does to diffusion, besides."""
    slowing = slowing_of(run, diffusion_reference(findings))
    if slowing is None:
        text = (
            f"{sentence.text}. Friction slows motion; by how much was not measured (it "
            f"takes {MIN_DIFFUSION_LENGTH:g} ps in a periodic cell, and atoms that "
            "diffuse)."
        )
        return Sentence(CAUTION, sentence.topic, text)
    number = f"by a factor of {with_error(slowing).lstrip('+')}"
    # By its logarithm, since the errors of ratios are not symmetric.
    if math.log(slowing[0]) > DIFFUSION_SIGMAS * slowing[1] / slowing[0]:
        text = (
            f"{sentence.text}; but diffusion is slower {number}: for averages over "
            "structures only, not for anything that depends on time."
        )
        return Sentence(CAUTION, sentence.topic, text)
    text = f"{sentence.text}; diffusion is not seen to slow down ({number})."
    return Sentence(GOOD, sentence.topic, text)


# ----------------------------------------------------------------------------- measure


class ConstantTemperature(Measure):
    """Runs with thermostats."""

    name = "nvt"
    title = "Constant temperature (NVT)"
    explanation = (
        "In equilibrium all elements have the same temperature. A thermostat that "
        "rescales all velocities (SVR, stochastic velocity rescaling) controls the "
        "mean only, also if a force heats some atoms and cools others. A Langevin "
        "thermostat acts on every atom, and its friction slows motion. The control of "
        "a run is that with conservative forces, the same thermostat and length. "
        "Diffusion is given for this box: periodic images slow it down (Yeh and "
        "Hummer, 2004), so compare it within the table only."
    )
    result = NVTRun
    min_atoms = 2
    needs = "start"
    columns = {
        "run": lambda findings, run: _label(findings, run),
        "mean T − target / K": lambda _, run: with_error(
            run.deviation.get("all", UNKNOWN)
        ),
        "elements / K": lambda _, run: _listed(
            {name: x for name, x in run.deviation.items() if name != "all"}
        ),
        "less the control / K": lambda findings, run: _less_control(findings, run),
        "diffusion / Å² ps⁻¹": lambda _, run: _listed(_diffusion(run)),
        "times slower": lambda findings, run: _slowing(findings, run),
        "length / ps": lambda _, run: f"{run.length_ps:.3g}",
        "end": lambda _, run: f"failed {run.failed}" if run.failed else "as planned",
    }
    sizes = {
        "quick": {
            "length_fs": 1000.0,
            "equilibration_fs": 100.0,
            # Other thermostats need longer runs.
            "runs": tuple((kind, LANGEVIN, 10.0) for kind in KINDS),
        },
        "full": {
            "length_fs": 20000.0,
            "equilibration_fs": 1000.0,
            "runs": (
                *((kind, SVR, 10.0) for kind in KINDS),
                *((CONSERVATIVE, LANGEVIN, tau) for tau in (1000.0, 100.0, 10.0)),
                *((DIRECT, LANGEVIN, tau) for tau in (1000.0, 100.0, 10.0)),
            ),
        },
    }

    def cases(self, setup: Setup) -> List[Case]:
        runs = setup.size(self)["runs"]
        if not setup.findings.has_both:
            (only,) = setup.source.kinds
            runs = dict.fromkeys((only, *others) for _, *others in runs)
        return [self._case(setup, *run) for run in runs]

    def _case(self, setup: Setup, kind: str, thermostat: str, tau_fs: float) -> Case:
        conditions, size = setup.conditions, setup.size(self)
        n_inner = (inner_steps(setup.findings) or 1) if kind == MTS else 1
        settings = {
            "kind": kind,
            "n_inner": n_inner,
            "thermostat": thermostat,
            "tau_fs": tau_fs,
            "temperature_K": conditions.temperature_K,
            "timestep_fs": conditions.timestep_fs,
            "length_fs": size["length_fs"],
            "equilibration_fs": size["equilibration_fs"],
            "seed": conditions.seed,
        }
        length_fs = size["length_fs"] + size["equilibration_fs"]
        n_steps = length_fs / conditions.timestep_fs
        return Case(
            f"{kind}-{thermostat}-{tau_fs:g}",
            settings,
            # Before the number of inner steps is known, four are likely.
            evaluations_of_run(kind, max(n_inner, 4), n_steps),
        )

    def measure(
        self, setup: Setup, progress: Progress, *, kind: str, **settings: Any
    ) -> NVTRun:
        if kind == MTS and settings["n_inner"] == 1:
            raise NotApplicable("no number of inner steps was found to work")
        return run_nvt(
            setup.source, setup.start, kind=kind, progress=progress, **settings
        )

    def sentence(self, findings: Findings, run: NVTRun) -> Optional[Sentence]:
        is_control = run.kind == CONSERVATIVE and findings.has_both
        return None if is_control else _judge(findings, run)

    def figures(self, findings: Findings) -> List[Figure]:
        runs = findings.of_type(NVTRun)
        figures = []
        if any(run.deviation for run in runs):
            caption = (
                "Temperature of all atoms and of each element, minus the target. Bars "
                "are standard errors; open symbols have none, the run being too short."
            )
            figures.append(Figure(_plot_temperatures(findings), caption))
        for quantity, (_, _, label) in CURVES.items():
            what = label.partition(" /")[0]
            groups = [getattr(run, quantity) for run in runs]
            names = dict.fromkeys(name for group in groups for name in group)
            for name in list(names)[:MAX_PANELS]:
                svg = _plot_curves(findings, quantity, name)
                figures.append(Figure(svg, f"Runs with thermostats: {what}, {name}."))
        return figures


def _label(findings: Findings, run: NVTRun, separator: str = ", ") -> str:
    """Forces and thermostat of a run."""
    thermostat = f"{TITLES[run.thermostat]} {run.tau_fs:g} fs"
    return f"{findings.label(run.kind, run.n_inner)}{separator}{thermostat}"


def _color(findings: Findings, run: NVTRun) -> str:
    return COLORS[MTS if run.kind == MTS else findings.label(run.kind)]


def _plot_temperatures(findings: Findings) -> str:
    runs = [run for run in findings.of_type(NVTRun) if run.deviation]
    names = list(dict.fromkeys(name for run in runs for name in run.deviation))

    def paint(axes: Any) -> None:
        for row, run in enumerate(runs):
            for name, (value, error) in run.deviation.items():
                index = names.index(name)
                known = math.isfinite(error)
                axes.errorbar(
                    value,
                    row + (index + 0.5) / (2.0 * len(names)) - 0.25,
                    xerr=error if known else None,
                    fmt=MARKERS[index % len(MARKERS)],
                    ms=5.0,
                    mfc=None if known else "white",
                    color=_color(findings, run),
                    lw=1.2,
                )
        axes.axvline(0.0, color="#555555", lw=0.9)
        axes.set_xscale("symlog", linthresh=10.0)
        largest = max(10.0, *map(abs, axes.get_xlim()))
        axes.set_xticks([-1000, -100, -10, 0, 10, 100, 1000])
        axes.set_xticklabels(["−1000", "−100", "−10", "0", "10", "100", "1000"])
        axes.set_xlim(-largest, largest)

    labels = [_label(findings, run, "\n") for run in runs]
    legend = ["all atoms" if name == "all" else name for name in names]
    return rows_panel(paint, labels, "temperature minus target / K", legend)


CURVES = {
    "spectrum": ("frequencies", "wavenumber / cm⁻¹", "vibrational spectrum / cm"),
    "autocorrelation": ("lags", "time / ps", "velocity autocorrelation"),
    "rdf": ("distances", "distance / Å", "radial distribution function"),
}
"""Quantities that are drawn: field of the other axis, and labels."""


def _plot_curves(findings: Findings, quantity: str, name: str) -> str:
    """Curves of all runs, for an element or a pair."""
    axis, xlabel, ylabel = CURVES[quantity]

    def paint(axes: Any) -> None:
        others = dashes()
        for run in findings.of_type(NVTRun):
            series = getattr(run, quantity).get(name)
            if series is None:
                continue
            axes.plot(
                thin(getattr(run, axis)[: len(series)]),
                thin(series),
                color=_color(findings, run),
                ls="-" if run.thermostat == SVR else next(others),
                lw=1.4,
                label=_label(findings, run),
            )
        # No bond vibrates faster; bonds within molecules are far higher than the rest.
        axes.set_xlim(0.0, 4500.0 if quantity == "spectrum" else None)
        if quantity == "rdf":
            axes.set_ylim(0.0, min(axes.get_ylim()[1], 4.5))
        axes.legend()

    return panel(paint, xlabel, f"{ylabel}, {name}")
