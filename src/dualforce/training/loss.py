"""Predictions, loss terms and errors of a batch."""

from dataclasses import dataclass
from typing import Any, Collection, Dict, List, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn import Backbone
from .data import Batch
from .targets import FORCES_GRADIENT, VIRIAL_GRADIENT, EnergyTarget


@dataclass(frozen=True)
class Term:
    """One term of the loss.

    :param name: what is compared: a target, or a gradient of an energy.
    :param target: target it belongs to.
    :param weight: weight in the loss.
    :param spread: spread of the labels, in raw units; errors are divided by it.
    :param scale: factor from raw to physical units, for reports.
    :param loss: ``mse``, ``mae`` or ``huber``.
    :param delta: error, in spreads, beyond which ``huber`` is linear.
    :param per_atom: whether there is one row for each atom; structures' totals are
        divided by the number of atoms.
    """

    name: str
    target: str
    weight: float
    spread: float
    scale: float
    loss: str
    delta: float
    per_atom: bool

    @property
    def conservative(self) -> bool:
        """Whether the term needs backpropagation through the network."""
        return self.name.endswith((FORCES_GRADIENT, VIRIAL_GRADIENT))

    def penalty(self, errors: Tensor) -> Tensor:
        """Sum of the loss over errors given in spreads."""
        zero = torch.zeros_like(errors)
        if self.loss == "mse":
            return F.mse_loss(errors, zero, reduction="sum")
        if self.loss == "mae":
            return F.l1_loss(errors, zero, reduction="sum")
        # divided by delta: equal to the absolute error far out, whatever delta is
        huber = F.huber_loss(errors, zero, reduction="sum", delta=self.delta)
        return huber / self.delta


LOSSES = ("mse", "mae", "huber")


def loss_kind(config: Mapping[str, Any], name: str) -> str:
    """Type of a loss in an options file.

    :raises ValueError: if there is no such loss here, or not this reduction.
    """
    if config.get("reduction", "mean") != "mean":
        raise ValueError(
            f"the reduction '{config['reduction']}' of the loss of '{name}' is not "
            "available: losses are means over the labels of a batch"
        )
    kind = config.get("type", "huber")
    if kind not in LOSSES:
        raise ValueError(
            f"the loss '{kind}' of '{name}' is not available, choose one of "
            f"{', '.join(LOSSES)}"
        )
    return str(kind)


def check_losses(loss: Any) -> None:
    """Check the option ``loss``, with whatever it says about targets and gradients.

    :param loss: the option.
    :raises ValueError: if it names a loss, or a reduction, that there is not.
    """
    if isinstance(loss, str):
        loss_kind({"type": loss}, "all targets")
        return
    for target, config in loss.items():
        parts = {} if isinstance(config, str) else config
        gradients = [parts.get(name) for name in ("forces", "stress", "virial")]
        gradients += parts.get("gradients", {}).values()
        for part in (config, *gradients):
            if part is not None:
                loss_kind({"type": part} if isinstance(part, str) else part, target)


# ------------------------------------------------------------------- predictions


def _sum_per_atom(values: Tensor, batch: Batch) -> Tensor:
    """Totals of structures, divided by their numbers of atoms."""
    shape = [len(batch.n_atoms)] + list(values.shape[1:])
    totals = values.new_zeros(shape).index_add(0, batch.graph.system, values)
    return totals / batch.n_atoms.reshape([-1] + [1] * (values.dim() - 1))


def predict(
    backbone: Backbone,
    batch: Batch,
    names: List[str],
    per_atom: Collection[str],
    differentiate: List[EnergyTarget],
    create_graph: bool,
) -> Dict[str, Tensor]:
    """Raw predictions, in the shape of labels; totals are per atom.

    :param backbone: the network.
    :param batch: the batch.
    :param names: targets to predict.
    :param per_atom: targets with one row for each atom.
    :param differentiate: energies whose forces and virials are wanted.
    :param create_graph: whether the loss of these will be differentiated in turn.
    """
    graph, inputs = batch.graph, []
    if differentiate:
        positions = graph.positions.detach().requires_grad_(True)
        strain = torch.zeros_like(graph.cells).requires_grad_(True)
        inputs = [positions, strain]
        moved = torch.bmm(positions.unsqueeze(1), strain[graph.system]).squeeze(1)
        graph = graph._replace(
            positions=positions + moved, cells=graph.cells + graph.cells @ strain
        )
    raw = backbone.predict(graph, names)
    out: Dict[str, Tensor] = {}
    for index, energy in enumerate(differentiate):
        gradients = torch.autograd.grad(
            raw[energy.name].sum(),
            inputs,
            create_graph=create_graph,
            retain_graph=create_graph or index + 1 < len(differentiate),
        )
        out[energy.name + FORCES_GRADIENT] = -gradients[0].unsqueeze(-1)
        virial = gradients[1].unsqueeze(-1)
        out[energy.name + VIRIAL_GRADIENT] = virial / batch.n_atoms.reshape(-1, 1, 1, 1)
    for name in names:
        values = raw[name]
        if values.dim() == 4:
            values = 0.5 * (values + values.transpose(1, 2))
        out[name] = values if name in per_atom else _sum_per_atom(values, batch)
    return out


def errors(term: Term, predictions: Dict[str, Tensor], batch: Batch) -> Tensor:
    """Errors of one term, in raw units; those of totals are per atom."""
    prediction = predictions[term.name]
    label = batch.labels[term.name]
    n_atoms = batch.n_atoms
    if term.name in batch.rows:
        prediction = prediction[batch.rows[term.name]]
        if not term.per_atom:
            n_atoms = n_atoms[batch.rows[term.name]]
    if not term.per_atom:
        label = label / n_atoms.reshape([-1] + [1] * (label.dim() - 1))
    return prediction - label
