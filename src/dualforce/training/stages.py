"""Stages of a run, and the learning rate within them."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Dict, List, Mapping, Optional


FEW_ATOMS = 200
"""Batches of fewer atoms are small. The time of a step is then that of starting its
operations, whatever their size, so the conservative forces of all frames cost no more
than those of a quarter. More steps fit in the same time, with noisier gradients, and a
lower learning rate gives the smaller errors at the end."""

LEARNING_RATE = 1e-2
"""Of ``painn`` and ``ace``, in batches of many atoms."""

LEARNING_RATES_FEW_ATOMS = {"painn": 4e-3, "ace": 2.5e-3}
"""In batches of fewer than :data:`FEW_ATOMS`."""

LEARNING_RATE_METATRAIN = 1e-3
"""Of the networks of metatrain, which do not learn at higher ones."""


AGREEMENT_START = 0.5
"""Share of a stage from which on both forces are compared beside the data. Before, they
are too far from the labels for their difference to tell more than these."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    :param name: name in the log.
    :param num_epochs: length in epochs, or None.
    :param max_minutes: length in time, or None.
    :param learning_rate: highest learning rate.
    :param conservative_fraction: share of frames matched by backpropagation.
    :param weights: factors on loss terms, by the name in the options.
    :param jacobian_symmetry: weight of the penalty on the curl of direct forces.
    :param force_agreement: weight of the difference of both forces beside the data.
    :raises ValueError: if the stage has no length.
    """

    name: str
    num_epochs: Optional[int]
    max_minutes: Optional[float]
    learning_rate: float
    conservative_fraction: float
    weights: Dict[str, float] = field(default_factory=dict)
    jacobian_symmetry: float = 0.0
    force_agreement: float = 0.0

    def __post_init__(self) -> None:
        if self.num_epochs is None and self.max_minutes is None:
            raise ValueError(f"give `num_epochs` or `max_minutes` for {self.name}")

    def at(self, progress: float) -> "Stage":
        """What counts when so much of the stage is over.

        :param progress: from 0 to 1.
        """
        if progress >= AGREEMENT_START:
            return self
        return replace(self, force_agreement=0.0)

    def progress(self, steps: int, steps_per_epoch: int, seconds: float) -> float:
        """How much of the stage is over, from 0 to 1; the limit met first counts."""
        shares = []
        if self.num_epochs == 0:
            return 1.0  # not from `mtt train`, but metatrain's tests ask for it
        if self.num_epochs is not None:
            shares.append(steps / (self.num_epochs * steps_per_epoch))
        if self.max_minutes is not None:
            shares.append(seconds / (60.0 * self.max_minutes))
        return min(1.0, max(shares))


def default_learning_rate(backbone: str, atoms_per_batch: float) -> float:
    """Highest learning rate where options do not say.

    :param backbone: name of the network.
    :param atoms_per_batch: atoms in a batch, on average.
    """
    if backbone not in LEARNING_RATES_FEW_ATOMS:
        return LEARNING_RATE_METATRAIN
    if atoms_per_batch < FEW_ATOMS:
        return LEARNING_RATES_FEW_ATOMS[backbone]
    return LEARNING_RATE


def make_stages(
    hypers: Mapping[str, Any],
    model: Mapping[str, Any],
    atoms_per_batch: float = math.inf,
) -> List[Stage]:
    """Stages that training options describe.

    :param hypers: training options.
    :param model: model options.
    :param atoms_per_batch: decides on learning rate and share of conservative frames
        where options do not.
    :raises ValueError: if there is no stage, or one has no length.
    """
    listed = hypers["stages"]
    if listed is None:
        length = {key: hypers[key] for key in ("num_epochs", "max_minutes")}
        listed = [{"name": "training", **length}]
    if not listed:
        raise ValueError("`stages` is empty; leave it out for a run of one stage")
    return [
        _make_stage(f"stage {number}", options, hypers, model, atoms_per_batch)
        for number, options in enumerate(listed, start=1)
    ]


def _make_stage(
    name: str,
    options: Mapping[str, Any],
    hypers: Mapping[str, Any],
    model: Mapping[str, Any],
    atoms_per_batch: float,
) -> Stage:
    chosen = {
        key: options.get(key, hypers[key])
        for key in (
            "conservative_fraction",
            "learning_rate",
            "jacobian_symmetry",
            "force_agreement",
        )
    }
    if chosen["conservative_fraction"] is None:
        chosen["conservative_fraction"] = 1.0 if atoms_per_batch < FEW_ATOMS else 0.25
    if chosen["learning_rate"] is None:
        rate = default_learning_rate(model["backbone"], atoms_per_batch)
        chosen["learning_rate"] = rate
    if chosen["force_agreement"] is None:
        # A student's direct force is to agree with its teacher.
        alone = hypers["teacher"].get("model") is None
        agrees = alone and atoms_per_batch >= FEW_ATOMS
        chosen["force_agreement"] = 1.0 if agrees else 0.0
    if model["forces"] != "hybrid":
        fraction = 1.0 if model["forces"] == "conservative" else 0.0
        chosen["conservative_fraction"] = fraction
    return Stage(
        name=options.get("name", name),
        num_epochs=options.get("num_epochs"),
        max_minutes=options.get("max_minutes"),
        weights=dict(options.get("weights", {})),
        **chosen,
    )


def learning_rate_factor(progress: float, warmup: float) -> float:
    """Linear rise from a twentieth, then a cosine to zero.

    :param progress: share of the stage that is over.
    :param warmup: share of the stage over which the rate rises.
    """
    if progress < warmup:
        return 0.05 + 0.95 * progress / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (progress - warmup) / (1.0 - warmup)))


def conservative_count(n_before: int, batch_size: int, fraction: float) -> int:
    """Conservative frames in a batch: over many batches, of whatever size, ``fraction``
    of all frames.

    :param n_before: frames in the batches before this one.
    :param batch_size: frames in the batch.
    :param fraction: share of conservative frames.
    """
    # rounded, so that 0.1 * 10 frames is one frame in spite of binary fractions
    before = math.floor(round(n_before * fraction, 6))
    return math.floor(round((n_before + batch_size) * fraction, 6)) - before
