"""How the time of ``dualforce accelerate`` is spent, and the student it trains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Dict, List, Optional

import ase
import numpy as np

from ..forces import pairs_within
from ..md.constant_energy import MIN_LENGTH_PS
from ..md.timesteps import propose_timestep
from ..md.tuning import FEW_STEPS
from .sampling import FRAMES_PER_RUN, STUDENT_INNER


EXPLORING_INNER = 16
"""Inner steps of runs of the pair that meet structures. Each evaluation of the teacher
labels one, and from structures that are farther apart the student learns more. Friction
takes up the energy that such long outer steps bring."""


CHECKING = (0.2, 0.45)
"""Shares of the time for the inner steps, least and most: as much as is needed for
:data:`TESTS` of them."""

TESTS = 3
"""Numbers of inner steps to try: the first may be bad, and so may the second."""

SAMPLING = 3.0 / 8.0
"""Share of the rest; what is left is for training."""

MARGIN = 1.5
"""Runs go up to this multiple of the highest temperature."""

MAX_FRAMES = 1200
"""New structures of all rounds: more take longer to learn than they are worth."""

OVERSAMPLING = 2
"""Structures that are visited where the teacher is cheap, for one that is kept."""

SPACING = 10.0
"""Between structures of a run, in fs; an outer step where that is longer."""

NEIGHBORS, CUTOFFS = 38, (4.5, 6.0)
"""The cutoff of the student has so many neighbours, within limits in Å."""

NETWORK = {"n_layers": 2, "n_channels": 32, "l_max": 2}
"""Of the student: more accurate than one layer of 64 channels, which costs as much."""

STUDENT_SECONDS = 0.01
"""Of an evaluation of the student, about."""

BATCH = 400
"""Atoms in a batch of the training."""


@dataclass(frozen=True)
class Round:
    """Sampling and training."""

    frames: int
    """New structures, at most."""
    calls: int
    """Evaluations of the teacher."""
    minutes: float
    """Of training."""


@dataclass(frozen=True)
class Plan:
    """What is done, decided once."""

    teacher_seconds: float
    """Of an evaluation."""
    timestep: float
    """Of the sampling, in fs."""
    temperatures: List[float]
    """Of the runs, in K: those of the user, and one above."""
    rounds: List[Round]
    check_minutes: float
    """Time to find the inner steps for each temperature."""


def make_plan(
    frames: Sequence[ase.Atoms],
    temperatures: Sequence[float],
    minutes: float,
    n_rounds: int,
    teacher_seconds: float,
) -> Plan:
    """Divide the time.

    :param frames: structures of the user.
    :param temperatures: of the user, in K.
    :param minutes: in all.
    :param n_rounds: rounds of sampling and training. Later ones, which see more data,
        train for longer.
    :param teacher_seconds: of an evaluation.
    :raises ValueError: if there is too little time for this teacher.
    """
    timestep = min(propose_timestep(atoms) for atoms in frames)
    tests = len(temperatures) * _check_minutes(timestep, teacher_seconds)
    shortest, longest = (share * minutes for share in CHECKING)
    check_minutes = min(max(shortest, tests), longest)
    sampling = SAMPLING * (minutes - check_minutes)
    training = minutes - check_minutes - sampling
    seconds = 60.0 * sampling / n_rounds
    rounds = []
    for number in range(1, n_rounds + 1):
        n_inner = EXPLORING_INNER if number > 1 else 1
        steps = max(1, round(SPACING / (n_inner * timestep)))
        student_seconds = n_inner * STUDENT_SECONDS if number > 1 else 0.0
        affordable = int(seconds / (teacher_seconds + student_seconds))
        if affordable < FRAMES_PER_RUN * steps:
            needed = minutes * FRAMES_PER_RUN * steps / (seconds / teacher_seconds)
            raise ValueError(
                f"an evaluation of the teacher takes {teacher_seconds:.2g} s, and "
                f"{minutes:g} minutes are too few to learn from it: give --minutes "
                f"{int(np.ceil(needed))} or more"
            )
        kept = MAX_FRAMES // n_rounds
        most = kept * steps * (OVERSAMPLING if number > 1 else 1)
        share = 2.0 * number / (n_rounds * (n_rounds + 1))
        rounds.append(Round(kept, min(affordable, most), share * training))
    return Plan(
        teacher_seconds=teacher_seconds,
        timestep=timestep,
        temperatures=[*temperatures, MARGIN * max(temperatures)],
        rounds=rounds,
        check_minutes=check_minutes / len(temperatures),
    )


def _check_minutes(timestep: float, teacher_seconds: float) -> float:
    """What :func:`dualforce.tune` needs at a temperature for :data:`TESTS`.

    :param timestep: in fs.
    :param teacher_seconds: of an evaluation.
    """
    steps = MIN_LENGTH_PS * 1000.0 / timestep
    test = steps * (STUDENT_SECONDS + teacher_seconds / STUDENT_INNER)
    prediction = FEW_STEPS * (STUDENT_SECONDS + teacher_seconds)
    # A tenth is for the equilibration.
    return (prediction + TESTS * test) / 0.9 / 60.0


def student_options(
    structures: str,
    frames: Sequence[ase.Atoms],
    teacher: str,
    minutes: float,
    *,
    epochs: Optional[int] = None,
    last: Optional[str] = None,
    seed: int = 0,
) -> Dict[str, Any]:
    """Options of ``mtt train`` for a student that follows from the structures.

    :param structures: file with labelled structures.
    :param frames: what is in it.
    :param teacher: as the user named it, valid in any folder.
    :param minutes: time of the training.
    :param epochs: train for so many epochs instead.
    :param last: checkpoint of the last round.
    :param seed: of everything random.
    """
    n_atoms = float(np.mean([len(atoms) for atoms in frames]))
    training: Dict[str, Any] = {
        "num_epochs": epochs,
        "max_minutes": None if epochs else minutes,
        "batch_size": int(np.clip(round(BATCH / n_atoms), 2, 8)),
        "teacher": {
            "model": teacher,
            "labels": "labels",
            "keep_labels": True,
            "combined": "combined.pt",
            "check_minutes": 0.0,
        },
    }
    architecture: Dict[str, Any] = {
        "name": "experimental.dualforce",
        "training": training,
    }
    if last is None:
        network = {"cutoff": cutoff_for(frames), **NETWORK}
        architecture["model"] = {"backbone": "ace", "ace": network}
    else:
        training["finetune"] = {"read_from": last}
    return {
        "seed": seed,
        "base_precision": 32,
        "architecture": architecture,
        "training_set": {
            "systems": {"read_from": structures, "length_unit": "angstrom"},
            "targets": {"energy": {"unit": "eV"}},
        },
        "validation_set": 0.1,
        "test_set": 0.0,
        "final_eval": False,
    }


def cutoff_for(frames: Sequence[ase.Atoms]) -> float:
    """Cutoff within which atoms have :data:`NEIGHBORS` neighbours on average, in Å,
    rounded to 0.1 and kept within :data:`CUTOFFS`.

    :param frames: the structures.
    """
    reach = 5.0
    n_pairs = sum(len(pairs_within(atoms, reach)[0]) for atoms in frames)
    mean = n_pairs / sum(len(atoms) for atoms in frames)
    ideal = reach * (NEIGHBORS / max(mean, 1.0)) ** (1.0 / 3.0)
    return float(np.round(np.clip(ideal, *CUTOFFS), 1))


def plan_from(content: Mapping[str, Any]) -> Plan:
    """The plan that was kept as JSON."""
    rounds = [Round(**each) for each in content["rounds"]]
    return Plan(**{**content, "rounds": rounds})
