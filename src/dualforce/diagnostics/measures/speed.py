"""What an evaluation costs."""

import time
from dataclasses import dataclass
from typing import Dict, List, Optional

import numpy as np

from ..content import Table
from ..findings import CONSERVATIVE, DIRECT, Findings
from ..measure import Case, Measure, Progress
from ..setup import Setup


TIMINGS = 5


@dataclass(frozen=True)
class Speed:
    """Wall time of an evaluation of the structure, in ms, by kind of force."""

    ms: Dict[str, float]


def speed_up(findings: Findings, n_inner: int) -> Optional[float]:
    """How many times faster than the conservative force alone multiple time steps are,
    by what evaluations cost; none where that is not known.

    :param findings: results of a model.
    :param n_inner: inner steps.
    """
    for speed in findings.of_type(Speed):
        both, direct = speed.ms[CONSERVATIVE], speed.ms[DIRECT]
        return n_inner * both / ((n_inner - 1) * direct + both)
    return None


class EvaluationCost(Measure):
    """Wall time of an evaluation."""

    name = "speed"
    title = "Cost of an evaluation"
    result = Speed

    def cases(self, setup: Setup) -> List[Case]:
        return [Case("evaluation", {}, dict.fromkeys(setup.source.kinds, TIMINGS))]

    def measure(self, setup: Setup, progress: Progress) -> Speed:
        setup.source.warm_up(setup.atoms)
        ms: Dict[str, float] = {}
        moved = setup.atoms.copy()
        for kind in setup.source.kinds:
            seconds = []
            for _ in range(TIMINGS):
                moved.positions = moved.positions + 1e-3
                begin = time.perf_counter()
                setup.source.evaluate(kind, moved)
                seconds.append(time.perf_counter() - begin)
            ms[kind] = float(f"{1000.0 * np.median(seconds):.2g}")
        return Speed(ms)

    def tables(self, findings: Findings) -> List[Table]:
        rows = [
            [findings.label(kind), f"{ms:g}"]
            for speed in findings.of_type(Speed)
            for kind, ms in speed.ms.items()
        ]
        return [Table(["force", "ms"], rows)] if rows else []
