"""Errors of energies and forces against labels, and of one force against the other."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

import ase
import numpy as np

from ...batches import batches
from ...forces import Array, Evaluation, ForceSource, Kind
from ..content import CAUTION, GOOD, Sentence, Table
from ..derivatives import as_predicted
from ..findings import CONSERVATIVE, DIRECT, Findings
from ..measure import Case, Measure, NotApplicable, Progress, silent
from ..setup import Setup
from ..text import NOTHING, by_element, milli


LABELS = "labels"

RANKS = 0.3
"""Error of the energy, relative to the spread of the labels, up to which energies tell
which of two such structures is the more stable (in nine of ten pairs)."""


@dataclass(frozen=True)
class ForceErrors:
    """Mean absolute and root mean square errors of one kind of force."""

    kind: str
    reference: str
    """``labels`` or a kind of force."""
    mae: float
    """In eV/Å."""
    rmse: float
    """In eV/Å."""
    per_element: Dict[str, float]
    """MAE in eV/Å."""
    n_frames: int


@dataclass(frozen=True)
class EnergyErrors:
    """Errors of the energy against labels, per atom, in eV."""

    mae: float
    rmse: float
    spread: Optional[float]
    """Standard deviation of the labels, without what the composition explains; none
    where nothing is left."""
    scatter: float
    """Standard deviation of the errors: without a common shift, which does not matter
    for differences."""
    n_frames: int


@dataclass(frozen=True)
class FrameErrors:
    """All errors on the frames."""

    energy: Optional[EnergyErrors] = None
    forces: List[ForceErrors] = field(default_factory=list)


def evaluate_frames(
    source: ForceSource,
    kind: Kind,
    frames: Sequence[ase.Atoms],
    progress: Progress = silent,
    numbers: Optional[Sequence[int]] = None,
) -> List[Evaluation]:
    """Forces as predicted (:func:`~dualforce.diagnostics.derivatives.predicted`), and
    energies where there are any, of structures, several at a time.

    :param source: source of forces.
    :param kind: kind of force.
    :param frames: structures; what their calculators hold are labels.
    :param progress: told the part that is done.
    :param numbers: numbers of the frames in their file, for messages.
    :raises ValueError, RuntimeError, FloatingPointError: as evaluations do, with the
        number of the frame.
    """
    results: List[Evaluation] = []
    for batch in batches(frames):
        end = len(results) + len(batch)
        here = (numbers or range(end))[len(results) : end]
        results += _evaluate_together(source, kind, batch, here)
        progress(len(results) / len(frames))
    return [as_predicted(*each) for each in zip(frames, results, strict=True)]


def _evaluate_together(
    source: ForceSource, kind: Kind, frames: List[ase.Atoms], numbers: Sequence[int]
) -> List[Evaluation]:
    try:
        return source.evaluate_batch(kind, frames)
    except (ValueError, RuntimeError, FloatingPointError) as error:
        if len(frames) > 1:
            # One by one, to find out which it is.
            found: List[Evaluation] = []
            for atoms, number in zip(frames, numbers, strict=True):
                found += _evaluate_together(source, kind, [atoms], [number])
            return found
        text = f"frame {numbers[0]} (counted from 0): {error}"
        raise type(error)(text) from error


def energy_errors(
    frames: Sequence[ase.Atoms], predictions: Sequence[Evaluation]
) -> Optional[EnergyErrors]:
    """Errors of energies per atom against labels.

    Energies are compared as they are: if model and labels count from different zeros
    (energies of free atoms), that difference is part of the error.

    :param frames: structures; those without an energy are left out.
    :param predictions: for each of them, with energies.
    :return: nothing if no frame has an energy.
    :raises ValueError: if a label is not finite.
    """
    labelled, labels, errors = [], [], []
    for index, (atoms, prediction) in enumerate(zip(frames, predictions, strict=True)):
        label = energy_label(atoms, index)
        if label is not None and prediction.energy is not None:
            labelled.append(atoms)
            labels.append(label / len(atoms))
            errors.append(prediction.energy / len(atoms) - labels[-1])
    if not errors:
        return None
    return EnergyErrors(
        mae=float(np.abs(errors).mean()),
        rmse=float(np.sqrt(np.square(errors).mean())),
        spread=_spread(labelled, np.array(labels)),
        scatter=float(np.std(errors)),
        n_frames=len(errors),
    )


def _spread(frames: Sequence[ase.Atoms], labels: Array) -> Optional[float]:
    """Standard deviation of energies per atom after a fit to the composition."""
    numbers = sorted({int(number) for atoms in frames for number in atoms.numbers})
    shares = np.array([[np.mean(a.numbers == n) for n in numbers] for a in frames])
    solution, _, rank, _ = np.linalg.lstsq(shares, labels, rcond=None)
    degrees = len(frames) - int(rank)
    if degrees < 1:
        return None
    return float(np.sqrt(np.square(labels - shares @ solution).sum() / degrees))


def force_errors(
    kind: str, frames: Sequence[ase.Atoms], predictions: Sequence[Evaluation]
) -> Optional[ForceErrors]:
    """Errors of forces against labels.

    :param kind: kind of force.
    :param frames: structures; those without forces are left out.
    :param predictions: for each of them.
    :return: nothing if no frame has forces.
    :raises ValueError: if a label is not finite or has another shape.
    """
    labels = [force_labels(atoms, index) for index, atoms in enumerate(frames)]
    return _compare(kind, LABELS, frames, predictions, labels)


def force_differences(
    kind: str,
    reference_kind: str,
    frames: Sequence[ase.Atoms],
    predictions: Sequence[Evaluation],
    reference: Sequence[Evaluation],
) -> Optional[ForceErrors]:
    """One kind of force against another one.

    :param kind: kind of force.
    :param reference_kind: kind of the force to compare with.
    :param frames: structures.
    :param predictions: for each of them.
    :param reference: likewise.
    :return: nothing if there are no frames.
    """
    expected = [each.forces for each in reference]
    return _compare(kind, reference_kind, frames, predictions, expected)


def energy_label(atoms: ase.Atoms, index: int) -> Optional[float]:
    """The energy a structure was read with, in eV.

    :param atoms: structure.
    :param index: number of the frame, for messages.
    :raises ValueError: if it is not finite.
    """
    label = _label(atoms, "energy", atoms.info.get("energy"))
    if label is None:
        return None
    if not np.isfinite(label):
        raise ValueError(f"frame {index} (counted from 0): the energy is {label}")
    return float(label)


def force_labels(atoms: ase.Atoms, index: int) -> Optional[Array]:
    """The forces a structure was read with, in eV/Å, shape ``[n_atoms, 3]``.

    :param atoms: structure.
    :param index: number of the frame, for messages.
    :raises ValueError: if one is not finite, or their shape is wrong.
    """
    label = _label(atoms, "forces", atoms.arrays.get("forces"))
    if label is None:
        return None
    forces = np.asarray(label, dtype=np.float64)
    if forces.shape != (len(atoms), 3) or not np.isfinite(forces).all():
        raise ValueError(
            f"frame {index} (counted from 0): the forces must be finite numbers of "
            f"shape [{len(atoms)}, 3]; correct or remove the frame"
        )
    return forces


def _label(atoms: ase.Atoms, name: str, otherwise: Any) -> Any:
    """What readers of ASE keep in a calculator, or else under its own name."""
    results = getattr(atoms.calc, "results", {})
    return results.get(name, otherwise)


def _compare(
    kind: str,
    reference: str,
    frames: Sequence[ase.Atoms],
    predictions: Sequence[Evaluation],
    expected: Sequence[Optional[Array]],
) -> Optional[ForceErrors]:
    errors, symbols = [], []
    for atoms, mine, other in zip(frames, predictions, expected, strict=True):
        if other is not None:
            errors.append(mine.forces - other)
            symbols.append(np.array(atoms.get_chemical_symbols()))
    if not errors:
        return None
    every, symbol = np.concatenate(errors), np.concatenate(symbols)
    return ForceErrors(
        kind=kind,
        reference=reference,
        mae=float(np.abs(every).mean()),
        rmse=float(np.sqrt(np.square(every).mean())),
        per_element={
            str(each): float(np.abs(every[symbol == each]).mean())
            for each in np.unique(symbol)
        },
        n_frames=len(errors),
    )


class Errors(Measure):
    """Errors on the frames."""

    name = "errors"
    title = "Errors"
    explanation = (
        "Mean absolute (MAE) and root mean square errors (RMSE) against the labels of "
        "the structures, and of the direct force against the conservative one. "
        "Energies are compared as they are; their spread is the standard deviation of "
        "the labels beyond what the composition explains."
    )
    result = FrameErrors
    needs = "frames"

    def cases(self, setup: Setup) -> List[Case]:
        n_frames = len(setup.structures.frames)
        return [Case("frames", {}, dict.fromkeys(setup.source.kinds, n_frames))]

    def measure(self, setup: Setup, progress: Progress) -> FrameErrors:
        frames, kinds = setup.structures.frames, setup.source.kinds
        predictions = {}
        for index, kind in enumerate(kinds):

            def report(share: float, before: int = index) -> None:
                progress((before + share) / len(kinds))

            predictions[kind] = evaluate_frames(
                setup.source, kind, frames, report, setup.structures.frame_indices
            )
        forces = [force_errors(kind, frames, x) for kind, x in predictions.items()]
        if len(kinds) == 2:
            pair = (predictions["direct"], predictions["conservative"])
            forces.append(force_differences(DIRECT, CONSERVATIVE, frames, *pair))
        energy = None
        if setup.source.has_energy:
            energy = energy_errors(frames, predictions["conservative"])
        found = [each for each in forces if each is not None]
        if energy is None and not found:
            raise NotApplicable("the structures carry no such labels")
        return FrameErrors(energy, found)

    def sentences(self, findings: Findings) -> List[Sentence]:
        topic = "Ranking structures"
        if not findings.has_energy:
            text = "There is no energy, so structures cannot be compared."
            return [Sentence(CAUTION, topic, text)]
        for found in findings.of_type(FrameErrors):
            energy = found.energy
            if energy is None or energy.spread is None:
                continue
            numbers = (
                f"errors scatter by {milli(energy.scatter)} meV/atom, the labelled "
                f"energies by {milli(energy.spread)} ({energy.n_frames} frames)"
            )
            if energy.scatter <= RANKS * energy.spread:
                text = f"Energies rank structures like these: {numbers}."
                return [Sentence(GOOD, topic, text)]
            text = (
                f"Energies of single structures like these cannot be ranked: {numbers}."
            )
            return [Sentence(CAUTION, topic, text)]
        return []

    def tables(self, findings: Findings) -> List[Table]:
        rows = []
        for found in findings.of_type(FrameErrors):
            energy = found.energy
            if energy is not None:
                unit = "meV/atom"
                spread = NOTHING
                if energy.spread is not None:
                    spread = f"spread of the labels {milli(energy.spread)} {unit}"
                rows.append(
                    [
                        "energy",
                        LABELS,
                        f"{milli(energy.mae)} {unit}",
                        f"{milli(energy.rmse)} {unit}",
                        spread,
                        str(energy.n_frames),
                    ]
                )
            rows += [
                [
                    findings.label(each.kind),
                    each.reference,
                    f"{1000 * each.mae:.1f} meV/Å",
                    f"{1000 * each.rmse:.1f} meV/Å",
                    by_element(each.per_element, 1000.0),
                    str(each.n_frames),
                ]
                for each in found.forces
            ]
        header = ["force", "against", "MAE", "RMSE", "MAE by element", "frames"]
        return [Table(header, rows)] if rows else []
