"""Ranges of the options, checked before any data are read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Dict, List, Optional, Tuple

from metatomic.torch import unit_conversion_factor


@dataclass(frozen=True)
class Range:
    """Numbers that an option may take.

    :param least: smallest number, or None.
    :param above: number that must be exceeded, or None.
    :param most: largest number, or None.
    :param below: number that must not be reached, or None.
    """

    least: Optional[float] = None
    above: Optional[float] = None
    most: Optional[float] = None
    below: Optional[float] = None

    def contains(self, value: float) -> bool:
        """Whether a number is in the range; NaN never is."""
        return (
            value == value
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self == FINITE:
            return "a finite number"
        if self == POSITIVE:
            return "positive"
        if self == NOT_NEGATIVE:
            return "zero or positive"
        bounds = (
            (self.least, "at least"),
            (self.above, "above"),
            (self.most, "at most"),
            (self.below, "below"),
        )
        return " and ".join(f"{word} {x:g}" for x, word in bounds if x is not None)


INFINITY = float("inf")
FINITE = Range(above=-INFINITY, below=INFINITY)
POSITIVE = Range(above=0.0, below=INFINITY)
NOT_NEGATIVE = Range(least=0.0, below=INFINITY)
COUNT = Range(least=1)
FRACTION = Range(least=0.0, most=1.0)
SHARE = Range(least=0.0, below=1.0)

RANGES: Dict[str, Range] = {
    "model.painn.cutoff": POSITIVE,
    "model.painn.n_*": COUNT,
    "model.painn.n_neighbors": POSITIVE,
    "model.ace.cutoff": POSITIVE,
    "model.ace.n_*": COUNT,
    "model.ace.n_neighbors": POSITIVE,
    "model.ace.l_max": Range(least=1, most=3),
    "model.ace.n_triples": Range(least=1, most=4),
    "model.ace.n_force_channels": Range(least=0),
    "model.ace.n_tensor_channels": Range(least=0),
    "model.pet.cutoff": POSITIVE,
    "model.pet.cutoff_width*": POSITIVE,
    "model.pet.num_neighbors_adaptive": POSITIVE,
    "model.pet.attention_temperature": POSITIVE,
    "model.pet.d_*": COUNT,
    "model.pet.num_*": COUNT,
    "model.soap_bpnn.soap.max_*": Range(least=0),
    "model.soap_bpnn.soap.cutoff.*": POSITIVE,
    "model.soap_bpnn.bpnn.num_hidden_layers": Range(least=0),
    "model.soap_bpnn.bpnn.num_neurons_per_layer": COUNT,
    "training.distributed_port": Range(least=1, most=65535),
    "training.batch_size": COUNT,
    "training.max_atoms_per_batch": COUNT,
    "training.sampling_weights.*": POSITIVE,
    "training.max_memory": NOT_NEGATIVE,
    "training.num_epochs": COUNT,
    "training.max_minutes": POSITIVE,
    "training.conservative_fraction": FRACTION,
    "training.learning_rate": POSITIVE,
    "training.warmup_fraction": SHARE,
    "training.weight_decay": NOT_NEGATIVE,
    "training.grad_clip_norm": Range(above=0.0),
    "training.ema_decay": SHARE,
    "training.energy_weight": NOT_NEGATIVE,
    "training.direct_weight": NOT_NEGATIVE,
    "training.stress_weight": NOT_NEGATIVE,
    "training.jacobian_symmetry": NOT_NEGATIVE,
    "training.force_agreement": NOT_NEGATIVE,
    "training.atomic_baseline.*": FINITE,
    "training.max_force": Range(above=0.0),
    "training.max_energy": Range(above=0.0),
    "training.max_stress": Range(above=0.0),
    "training.log_interval": COUNT,
    "training.checkpoint_interval": COUNT,
    "training.loss.*weight": NOT_NEGATIVE,
    "training.loss.*delta": POSITIVE,
    "training.stages.*.num_epochs": COUNT,
    "training.stages.*.max_minutes": POSITIVE,
    "training.stages.*.conservative_fraction": FRACTION,
    "training.stages.*.learning_rate": POSITIVE,
    "training.stages.*.jacobian_symmetry": NOT_NEGATIVE,
    "training.stages.*.force_agreement": NOT_NEGATIVE,
    "training.stages.*.weights.*": NOT_NEGATIVE,
    "training.finetune.direct_layers": COUNT,
    "training.teacher.extend.frames": Range(least=0),
    "training.teacher.extend.temperatures.*": POSITIVE,
    "training.teacher.extend.timestep": POSITIVE,
    "training.teacher.check_minutes": NOT_NEGATIVE,
    "training.teacher.check_temperature": POSITIVE,
}
"""Ranges by the place of an option in the section ``architecture``. In a place, ``*``
stands for anything, among it the number of an item of a list; where two places fit, the
one without it counts."""

CUTOFFS = {
    "painn": ("painn", "cutoff"),
    "ace": ("ace", "cutoff"),
    "pet": ("pet", "cutoff"),
    "soap_bpnn": ("soap_bpnn", "soap", "cutoff", "radius"),
}
"""Where the options of a network have its cutoff."""

CUTOFF_RANGE = Range(least=1.0, most=30.0)
"""In Å. Shorter cutoffs see no bonds; longer ones are given in another unit."""


def _numbers(options: Any, place: str) -> Iterator[Tuple[str, float]]:
    """All numbers among options, with their places."""
    if isinstance(options, Mapping):
        for key, value in options.items():
            yield from _numbers(value, f"{place}.{key}")
    elif isinstance(options, (list, tuple)):
        for index, value in enumerate(options):
            yield from _numbers(value, f"{place}.{index}")
    elif isinstance(options, (int, float)) and not isinstance(options, bool):
        yield place, float(options)


def range_of(place: str) -> Optional[Range]:
    """Range of an option, or None where any number is allowed.

    :param place: for instance ``training.stages.0.num_epochs``.
    """
    if place in RANGES:
        return RANGES[place]
    fitting = (r for pattern, r in RANGES.items() if fnmatchcase(place, pattern))
    return next(fitting, None)


def check_ranges(options: Any, section: str) -> None:
    """Check all numbers of a section of the options.

    :param options: the section, with defaults.
    :param section: ``"model"`` or ``"training"``.
    :raises ValueError: if numbers are out of range; the message lists all of them.
    """
    wrong: List[str] = []
    for place, value in _numbers(options, section):
        allowed = range_of(place)
        if allowed is not None and not allowed.contains(value):
            wrong.append(f"`{place}` is {value:g}, it must be {allowed}")
    if wrong:
        raise ValueError("options are out of range: " + "; ".join(wrong))


def check_cutoff(model: Mapping[str, Any], length_unit: str) -> None:
    """Check the cutoff of the network against lengths of bonds.

    :param model: options of the model, with defaults.
    :param length_unit: that of the data; nothing is checked where it is not given.
    :raises ValueError: if the cutoff is shorter than bonds, or so long that it must be
        meant in another unit.
    """
    if not length_unit:
        return
    path = CUTOFFS[model["backbone"]]
    cutoff: Any = model
    for key in path:
        cutoff = cutoff[key]
    angstrom = float(cutoff) * unit_conversion_factor(length_unit, "angstrom")
    if not CUTOFF_RANGE.contains(angstrom):
        raise ValueError(
            f"`model.{'.'.join(path)}` is {cutoff:g} {length_unit} ({angstrom:g} Å), "
            f"it must be {CUTOFF_RANGE} Å"
        )
