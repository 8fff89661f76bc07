"""A penalty on the curl of direct forces."""

from dataclasses import replace

import torch
from torch import Tensor

from ..nn import Backbone
from .data import Frame, collate


INTERVAL = 4
"""Steps of the optimiser from one penalty to the next: it costs as much as four frames
of direct training."""

DISPLACEMENT = 0.003
"""Of central differences, in the unit of length: small against bonds, and large against
the rounding of single precision."""


def asymmetry_penalty(
    backbone: Backbone, frame: Frame, name: str, direction: Tensor
) -> Tensor:
    r"""Mean square of :math:`(J - J^T) v / 2`, with the Jacobian :math:`J` of a direct
    force and a random direction :math:`v`.

    Over random directions of unit variance it is the squared norm of the antisymmetric
    part of the Jacobian (arXiv:2412.11569, where 3N backward passes make it too dear in
    training), divided by the number of coordinates. :math:`J^T v` comes from one
    backward pass, :math:`J v` from central differences.

    :param backbone: the network.
    :param frame: structure; its labels are not used.
    :param name: the direct force, ``[n_atoms, 3, 1]``.
    :param direction: shape ``[n_atoms, 3]``.
    :return: a scalar, in raw units of the force per length, squared.
    """
    step = DISPLACEMENT * direction
    copies = [replace(frame, labels={})]
    copies += [
        replace(frame, positions=frame.positions + sign * step, labels={})
        for sign in (1.0, -1.0)
    ]
    reference = backbone.dtype_reference
    assert isinstance(reference, Tensor)
    graph = collate(copies, {name}, reference.dtype, reference.device).graph
    positions = graph.positions.detach().requires_grad_(True)
    forces = backbone.predict(graph._replace(positions=positions), [name])[name]
    here, ahead, behind = forces.squeeze(-1).split(len(frame))
    v = direction.to(here)
    backward = torch.autograd.grad((here * v).sum(), positions, create_graph=True)[0]
    forward = (ahead - behind) / (2.0 * DISPLACEMENT)
    return (0.25 * (forward - backward[: len(frame)]) ** 2).mean()
