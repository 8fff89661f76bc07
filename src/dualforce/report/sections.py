"""The parts of a report."""

from collections.abc import Sequence
from typing import List

from ..diagnostics.findings import FAILED, Findings, Speed
from ..diagnostics.results import (
    CONSERVATIVE,
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
from ..diagnostics.verdict import (
    MIN_DIFFUSION_LENGTH,
    diffusion_reference,
    slowing_of,
)
from ..diagnostics.wording import significant, with_error
from . import plots, reference
from .cells import (
    NOTHING,
    asymmetry_cell,
    first_names,
    milli,
    model_name,
    name_cells,
    name_header,
    run_cell,
    table,
    title_of,
    work_cell,
)
from .content import Picture, Report, Section, Table, describe_system, versions
from .glance import FIGURES


def sections(report: Report) -> List[Section]:
    """Everything after the verdict; parts without content are left out."""
    found = [
        _glance(report),
        _gradient(report),
        _errors(report),
        _constant_energy(report),
        _constant_temperature(report),
        _motion(report),
        _relaxation(report),
        _paper(report),
        _missing(report),
        _settings(report),
    ]
    return [section for section in found if section.tables or section.figures]


def _glance(report: Report) -> Section:
    rows = [[label, *(pick(f) for f in report.findings)] for label, pick in FIGURES]
    rows = [row for row in rows if any(cell != NOTHING for cell in row[1:])]
    header = ["", *(findings.name for findings in report.findings)]
    return Section("The figures at a glance", [], [Table(header, rows)])


def _gradient(report: Report) -> Section:
    header = [
        *name_header(report),
        "λ",
        "λ by element",
        "loop in a plane / meV",
        "molecule turned once / meV",
        "how",
    ]
    rows = [
        _gradient_row(report, findings, each)
        for findings in report.findings
        for each in findings.of_type(Asymmetry)
    ]
    text = [
        "A force that conserves energy is the gradient of one. Then the derivative of "
        "the force on atom i by the position of atom j equals that of the force on j "
        "by the position of i. λ is the share of these derivatives that breaks this "
        "rule: 0 for a gradient, 1 for a force that has nothing of one. Work along a "
        "closed loop should vanish too: what is left is energy from nowhere.",
    ]
    figures = [
        picture
        for findings in report.findings
        for picture in [*_pair_plots(report, findings), *_loop_plots(report, findings)]
    ]
    return Section("Is the force a gradient?", text, table(header, rows), figures)


def _gradient_row(report: Report, findings: Findings, each: Asymmetry) -> List[str]:
    works = {w.loop: w for w in findings.of_type(LoopWork) if w.kind == each.kind}
    elements = [f"{name} {significant(x)}" for name, x in each.per_element.items()]
    size = "whole Jacobian" if each.error is None else f"{each.n_probes} directions"
    return [
        *name_cells(report, findings, each.kind),
        asymmetry_cell(each),
        ", ".join(elements) or NOTHING,
        work_cell(works.get("plane")),
        work_cell(works.get("rotation")),
        f"{each.method}, {size}",
    ]


def _pair_plots(report: Report, findings: Findings) -> List[Picture]:
    pictures, name = [], model_name(report, findings)
    for each in findings.of_type(Asymmetry):
        if not each.pairs or each.kind == CONSERVATIVE:
            continue
        title = title_of(each.kind)
        caption = f"{title}: asymmetry of pairs of atoms against their distance."
        pictures.append(Picture(plots.pair_asymmetry(each), caption, name))
        caption = f"{title}: its derivatives (solid), and their antisymmetric part."
        pictures.append(Picture(plots.pair_norm(each), caption, name))
    return pictures


def _loop_plots(report: Report, findings: Findings) -> List[Picture]:
    pictures = []
    for loop, words in (
        ("plane", "Work along a circle in a plane of two random directions"),
        ("rotation", "Work while one molecule is turned once around"),
    ):
        works = [work for work in findings.of_type(LoopWork) if work.loop == loop]
        if works:
            caption = f"{words}. Conservative forces return to zero."
            name = model_name(report, findings)
            pictures.append(Picture(plots.loops(works), caption, name))
    return pictures


def _errors(report: Report) -> Section:
    rows = []
    for findings in report.findings:
        for energy in findings.of_type(EnergyErrors):
            rows.append(
                [
                    *name_cells(report, findings, "energy"),
                    "labels",
                    f"{significant(1000 * energy.mae)} meV/atom",
                    f"{significant(1000 * energy.rmse)} meV/atom",
                    NOTHING,
                    str(energy.n_frames),
                ]
            )
        for each in findings.of_type(ForceErrors):
            elements = [
                f"{name} {1000 * value:.1f}" for name, value in each.per_element.items()
            ]
            rows.append(
                [
                    *name_cells(report, findings, each.kind),
                    each.reference,
                    f"{1000 * each.mae:.1f} meV/Å",
                    f"{1000 * each.rmse:.1f} meV/Å",
                    ", ".join(elements),
                    str(each.n_frames),
                ]
            )
    header = [
        *name_header(report),
        "against",
        "MAE",
        "RMSE",
        "MAE by element",
        "frames",
    ]
    broken = [
        [
            *name_cells(report, findings, each.kind),
            milli(each.rotation),
            milli(each.inversion),
            milli(each.net_force),
            NOTHING if each.net_torque is None else milli(each.net_torque),
        ]
        for findings in report.findings
        for each in findings.of_type(Symmetries)
    ]
    broken_header = [
        *name_header(report),
        "rotation / meV/Å",
        "inversion / meV/Å",
        "net force / meV/Å",
        "net torque / meV",
    ]
    text = [
        "Mean absolute (MAE) and root mean square errors. A force should turn with the "
        "structure (rotation, inversion), and neither push nor turn the whole system: "
        "net force and torque, per atom, are zero for a conservative force. Engines "
        "take out the net force of direct forces.",
    ]
    return Section(
        "Errors and symmetries",
        text,
        [*table(header, rows), *table(broken_header, broken)],
    )


def _constant_energy(report: Report) -> Section:
    rows, figures = [], []
    for findings in report.findings:
        runs = findings.of_type(NVERun)
        for run in runs:
            kind = f"MTS, M = {run.n_inner}" if run.forces == MTS else run.forces
            rows.append(
                [
                    *name_cells(report, findings, kind),
                    with_error(run.drift),
                    with_error(run.heating),
                    f"{run.length_ps:.3g}",
                    f"{run.ms_per_step:.1f}",
                    "broke down " + run.failed if run.failed else "went through",
                ]
            )
        if runs:
            name = model_name(report, findings)
            figures.append(
                Picture(
                    plots.temperatures(runs, findings.n_inner),
                    "Temperature at constant energy.",
                    name,
                )
            )
        if any(run.conserved for run in runs):
            figures.append(
                Picture(
                    plots.conserved(runs, findings.n_inner),
                    "Kinetic plus conservative energy, which should not change.",
                    name,
                )
            )
    header = [
        *name_header(report),
        "drift / meV/atom/ps",
        "heating / K/ps",
        "length / ps",
        "ms per step",
        "end",
    ]
    text = [
        "Without a thermostat, nothing hides what a force does: total energy should "
        "stay "
        "what it is. The drift is the power that the force injects into every atom. "
        "MTS "
        "(multiple time steps) moves atoms with the direct force and corrects it with "
        "the conservative one every M steps.",
    ]
    if any(run.length_ps < 1.0 for f in report.findings for run in f.of_type(NVERun)):
        text.append(
            "These runs are short: they show what is grossly wrong, and slopes of the "
            "temperature mix with its natural fluctuations. The full preset runs "
            "longer."
        )
    return Section("Constant energy (NVE)", text, table(header, rows), figures)


def _constant_temperature(report: Report) -> Section:
    rows, figures = [], []
    for findings in report.findings:
        runs = findings.of_type(NVTRun)
        for run in runs:
            elements = [
                f"{name} {with_error(value)}"
                for name, value in run.deviation.items()
                if name != "all"
            ]
            rows.append(
                [
                    *name_cells(report, findings, run_cell(run)),
                    with_error(run.deviation["all"]) if run.deviation else NOTHING,
                    ", ".join(elements) or NOTHING,
                    f"{run.length_ps:.3g}",
                    "broke down " + run.failed if run.failed else "went through",
                ]
            )
        measured = [run for run in runs if run.deviation]
        if measured:
            name = model_name(report, findings)
            figures.append(
                Picture(
                    plots.deviations(measured),
                    "Temperature of all atoms and of each element, minus the "
                    "target. Bars are standard errors.",
                    name,
                )
            )
    header = [
        *name_header(report),
        "all atoms / K",
        "elements / K",
        "length / ps",
        "end",
    ]
    text = [
        "In equilibrium every element has the same temperature. A thermostat that acts "
        "on the total kinetic energy (SVR, stochastic velocity rescaling) holds the "
        "mean "
        "even where a force heats some atoms and cools others: it hides the problem. A "
        "Langevin thermostat acts on every atom, but strong friction slows all motion.",
    ]
    return Section("Constant temperature (NVT)", text, table(header, rows), figures)


def _motion(report: Report) -> Section:
    rows, figures = [], []
    for findings in report.findings:
        reference_run = diffusion_reference(findings)
        diffusing = [
            run
            for run in findings.of_type(NVTRun)
            if run.diffusion and run.length_ps >= MIN_DIFFUSION_LENGTH
        ]
        for run in diffusing:
            slowing = slowing_of(run, reference_run)
            values = [
                f"{element} {with_error(value).lstrip('+')}"
                for element, value in run.diffusion.items()
            ]
            rows.append(
                [
                    *name_cells(report, findings, run_cell(run)),
                    ", ".join(values),
                    NOTHING if slowing is None else f"{slowing:.2f}",
                ]
            )
        figures += _motion_plots(report, findings, diffusing)
    header = [*name_header(report), "diffusion / Å² ps⁻¹", "times slower"]
    text = [
        "What a simulation is run for. Where curves with direct forces differ from "
        "those with conservative forces or M inner steps, results would be wrong. "
        "Diffusion is given for this box: periodic images slow it down, so compare it "
        "within the table only; an infinite box would give more (Yeh and Hummer, "
        "2004).",
    ]
    if not rows:
        text = text[:1] + [
            f"Diffusion needs runs of at least {MIN_DIFFUSION_LENGTH:g} ps in a "
            "periodic cell and is not given here; spectra of short runs are broad."
        ]
    return Section("Structure and motion", text, table(header, rows), figures)


def _motion_plots(
    report: Report, findings: Findings, diffusing: Sequence[NVTRun]
) -> List[Picture]:
    pictures, name = [], model_name(report, findings)
    runs = findings.of_type(NVTRun)
    for element in first_names(run.spectrum for run in runs):
        caption = f"Vibrational spectrum of {element}."
        pictures.append(Picture(plots.spectra(runs, element), caption, name))
        caption = f"Velocity autocorrelation of {element}."
        pictures.append(Picture(plots.autocorrelations(runs, element), caption, name))
    for pair in first_names(run.rdf for run in runs):
        caption = f"Radial distribution function, {pair}."
        pictures.append(Picture(plots.distributions(runs, pair), caption, name))
    if diffusing:
        caption = "Diffusion coefficients."
        pictures.append(Picture(plots.diffusion(diffusing), caption, name))
    return pictures


def _relaxation(report: Report) -> Section:
    rows, figures = [], []
    for findings in report.findings:
        rates = findings.of_type(RelaxationRate)
        for rate in rates:
            steps = rate.median_steps
            rows.append(
                [
                    *name_cells(report, findings, rate.forces),
                    rate.optimizer,
                    f"{rate.converged} of {rate.n_runs}",
                    NOTHING if steps is None else f"{steps:.0f}",
                    f"{significant(rate.final_forces[len(rate.final_forces) // 2])}",
                    f"{rate.fmax:g}",
                ]
            )
        if rates:
            name = model_name(report, findings)
            figures.append(
                Picture(
                    plots.relaxations(findings),
                    "Relaxations that converge, and the steps they take.",
                    name,
                )
            )
    header = [
        *name_header(report),
        "optimizer",
        "converged",
        "median steps",
        "median of largest force / eV/Å",
        "criterion / eV/Å",
    ]
    text = [
        "Perturbed structures are relaxed until the largest force falls below the "
        "criterion. A force that is no gradient need not vanish anywhere near the "
        "minimum of the energy, and optimisers that build on gradients lose their way.",
    ]
    return Section("Relaxation", text, table(header, rows), figures)


def _paper(report: Report) -> Section:
    rows = [
        [row.figure, row.theirs, *(row.ours(findings) for findings in report.findings)]
        for row in reference.ROWS
    ]
    rows = [row for row in rows if any(cell != NOTHING for cell in row[2:])]
    header = ["", "paper", *(findings.name for findings in report.findings)]
    text = [
        "Figures of arXiv:2412.11569 for liquid water at 300 K beside those found "
        "here. Only figures for the same kind of system compare well; here it is "
        f"{describe_system(report)}.",
    ]
    return Section(
        "Beside the paper", text, [Table(header, rows, wordy=True)] if rows else []
    )


def _missing(report: Report) -> Section:
    rows = [
        [
            *name_cells(report, findings, entry.title),
            "failed" if entry.status == FAILED else "left out",
            entry.reason or "",
        ]
        for findings in report.findings
        for entry in findings.missing
    ]
    header = [*name_header(report, "measure"), "", "why"]
    tables = [Table(header, rows, wordy=True)] if rows else []
    return Section("What was not measured, and why", [], tables)


def _settings(report: Report) -> Section:
    structures, conditions = report.structures, report.conditions
    inner = conditions.n_inner
    frames = ", ".join(str(index) for index in structures.frame_indices)
    rows = [
        ["structures", f"{structures.source} ({structures.n_total})"],
        [
            "run and differentiated",
            f"structure {structures.start_index}, counted from 0",
        ],
        ["errors and symmetries", f"structures {frames}"],
        ["temperature", f"{conditions.temperature_K:g} K"],
        ["timestep", f"{conditions.timestep_fs:g} fs"],
        [
            "inner steps",
            "chosen by runs at constant energy"
            if inner is None
            else f"{inner}, as asked for",
        ],
        ["seed", str(conditions.seed)],
        ["preset", report.preset.name],
    ]
    rows += [[findings.name, _provenance(findings)] for findings in report.findings]
    rows += [[name, number] for name, number in versions().items()]
    return Section("Settings and versions", [], [Table(["", ""], rows, wordy=True)])


def _provenance(findings: Findings) -> str:
    """Which model it was, and what its figures took."""
    parts = [f"SHA-256 {findings.digest[:16]}…"]
    for speed in findings.of_type(Speed):
        costs = ", ".join(f"{kind} {ms:g} ms" for kind, ms in speed.ms.items())
        parts.append(f"an evaluation takes {costs}")
    seconds = sum(entry.seconds for entry in findings.entries)
    parts.append(f"measured in {seconds:.0f} s")
    if findings.share < 1.0:
        share = f"{findings.share:.0%}"
        parts.append(f"runs shortened to {share} of the preset's, to keep its time")
    return "; ".join(parts)
