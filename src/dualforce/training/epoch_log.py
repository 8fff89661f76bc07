"""Errors on the validation set, and the line that reports them."""

import logging
from typing import List

import torch
from metatrain.utils.logging import ROOT_LOGGER, CustomLogger
from torch import Tensor

from .loss import Term
from .model import DualForce
from .terms import option_name


LEAST_ERROR = 1e-4
"""Errors smaller than this, in spreads of the labels, are equal: where forces vanish by
symmetry, for instance, errors are rounding errors and choose no model."""


UNLEARNT = 0.95
"""Root mean square errors of this share of the labels' show that nothing is learnt."""


class ErrorSums:
    """Sums over a pass through the data, ready to be added over processes.

    :param terms: what is compared.
    """

    def __init__(self, terms: List[Term]) -> None:
        self.terms = terms
        # rows: absolute errors, squared errors, penalties, number of elements
        self.values = torch.zeros(4, len(terms), dtype=torch.float64)

    def add(self, index: int, errors: Tensor, term: Term) -> None:
        """Add the errors of a batch, in raw units."""
        errors = errors.to(torch.float64).cpu()
        self.values[0, index] += errors.abs().sum()
        self.values[1, index] += errors.square().sum()
        self.values[2, index] += term.penalty(errors / term.spread)
        self.values[3, index] += errors.numel()

    def _means(self) -> Tensor:
        return self.values[:3] / self.values[3].clamp(min=1.0)

    def mae(self) -> List[float]:
        """Mean absolute errors in physical units."""
        scales = torch.tensor([term.scale for term in self.terms], dtype=torch.float64)
        return (self._means()[0] * scales).tolist()

    def rmse(self) -> List[float]:
        """Root mean square errors in physical units."""
        scales = torch.tensor([term.scale for term in self.terms], dtype=torch.float64)
        return (self._means()[1].sqrt() * scales).tolist()

    def unlearnt(self, trained: List[Term]) -> List[str]:
        """Names of trained terms whose errors are no smaller than their labels.

        :param trained: terms that a stage trains.
        """
        names = {term.name for term in trained}
        rms = self._means()[1].sqrt()
        return [
            term.name
            for index, term in enumerate(self.terms)
            if term.name in names
            and self.values[3, index] > 0
            and float(rms[index]) >= UNLEARNT * term.spread
        ]

    def metric(self, kind: str, trained: List[Term], conservative: float) -> float:
        """What the best model is best in.

        :param kind: ``mae_prod``, ``rmse_prod`` or ``loss``.
        :param trained: terms that the stage trains, with their weights.
        :param conservative: share of conservative frames; without any, conservative
            terms do not count.
        """
        means = self._means()
        weights = {
            term.name: term.weight
            for term in trained
            if conservative > 0.0 or not term.conservative
        }
        metric = 0.0 if kind == "loss" else 1.0
        for index, term in enumerate(self.terms):
            if term.name not in weights or self.values[3, index] == 0:
                continue
            if kind == "loss":
                metric += weights[term.name] * float(means[2, index])
                continue
            error = means[0, index] if kind == "mae_prod" else means[1, index].sqrt()
            metric *= max(float(error), LEAST_ERROR * term.spread)
        return metric


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s"


class EpochReport:
    """Writes one line for an epoch to the log, and one to the CSV file.

    :param terms: what is compared.
    :param model: the model, which knows units.
    """

    def __init__(self, terms: List[Term], model: DualForce) -> None:
        self.labels = []
        self.units = []
        self.factors = []
        for term in terms:
            option = option_name(term.name, model.kinds)
            variant = "" if term.target == "energy" else f"[{term.target}]"
            is_direct = model.kinds[term.target] in ("force", "stress")
            self.labels.append(term.name if is_direct else option + variant)
            unit = model.targets[term.target].unit
            if option == "forces":
                unit = f"{unit}/{model.dataset_info.length_unit}"
            elif option.endswith("stress"):
                unit = unit.split("/")[0]
            if not term.per_atom:
                unit = f"{unit}/atom"
            in_ev = unit.lower().startswith("ev")
            self.factors.append(1000.0 if in_ev else 1.0)
            self.units.append(("m" if in_ev else "") + unit.replace("angstrom", "A"))

    def log(
        self,
        epoch: int,
        stage: str,
        seconds_left: float,
        learning_rate: float,
        train_loss: float,
        sums: ErrorSums,
    ) -> None:
        """Report one epoch.

        :param epoch: number of the epoch.
        :param stage: number and name of the stage.
        :param seconds_left: time until the stage ends.
        :param learning_rate: current learning rate.
        :param train_loss: mean loss of the epoch.
        :param sums: errors on the validation set.
        """
        maes = [f * v for f, v in zip(self.factors, sums.mae(), strict=True)]
        rmses = [f * v for f, v in zip(self.factors, sums.rmse(), strict=True)]
        errors = ", ".join(
            f"{label} {mae:.4g} {unit}"
            for label, mae, unit in zip(self.labels, maes, self.units, strict=True)
        )
        logging.info(
            f"Epoch {epoch} | stage {stage} | {_duration(seconds_left)} left | "
            f"loss {train_loss:.4g} | validation MAE: {errors}"
        )
        if isinstance(ROOT_LOGGER, CustomLogger):
            keys = ["Epoch", "learning rate", "training loss"]
            values = [f"{epoch}", f"{learning_rate:.3e}", f"{train_loss:.6e}"]
            units = ["", "", ""]
            for kind, numbers in (("MAE", maes), ("RMSE", rmses)):
                keys += [f"validation {label} {kind}" for label in self.labels]
                values += [f"{number:.6g}" for number in numbers]
                units += self.units
            ROOT_LOGGER.data(keys, values, units)
