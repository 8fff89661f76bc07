"""The guard of replicas: is the correction of each as it usually is?"""

import logging
from typing import List

import torch
from torch import Tensor

from ..md.guard import range_end
from .state import RespaState


def name_of(state: RespaState, index: int) -> str:
    """What messages call a replica.

    :param index: of the system in the state.
    """
    return f"replica {int(state.replica[index])}"


def watch(state: RespaState, factor: float) -> None:
    """Take note of an outer point of every replica, as
    :class:`~dualforce.Guard` does of one.

    The usual correction of a replica is the median of its own first ones. Where its
    range ends a warning names the replica, and again where the correction exceeds the
    largest reported one ``factor`` times.

    :param state: replicas at an outer point, which are changed.
    :param factor: the usual range ends at this multiple of the usual correction, with
        few atoms farther out.
    """
    correction, window = state.correction, state.corrections.shape[1]
    seen = (~state.corrections.isnan()).sum(1)
    usual = state.corrections.quantile(0.5, dim=1)  # NaN until the window is full
    ends = [range_end(factor, n) for n in state.n_atoms_per_system.tolist()]
    out = (correction > usual * usual.new_tensor(ends)) & ~state.failed
    news = out & (correction > factor * state.reported)
    for index in _indices(news):
        logging.warning(
            f"{name_of(state, index)}: conservative and direct force differ by "
            f"{1000 * float(correction[index]):.0f} meV/Å (RMS), usually by "
            f"{1000 * float(usual[index]):.0f}: use fewer inner steps if this lasts"
        )
    slot = torch.arange(window, device=seen.device) == seen.unsqueeze(1)
    slot = slot & ~state.failed.unsqueeze(1)
    state.corrections = torch.where(slot, correction.unsqueeze(1), state.corrections)
    state.reported = torch.where(news, correction, state.reported)


def stop(state: RespaState, bad: Tensor, reasons: List[str]) -> None:
    """Mark replicas as failed, and say so.

    :param state: the replicas, which are changed.
    :param bad: replicas that cannot go on, shape ``[n_systems]``.
    :param reasons: one for each of these.
    """
    for index, reason in zip(_indices(bad), reasons, strict=True):
        logging.warning(
            f"{name_of(state, index)} has stopped after "
            f"{int(state.outer_steps[index])} outer steps, at its last good structure: "
            f"{reason}; the others go on"
        )
    state.failed = state.failed | bad


def _indices(chosen: Tensor) -> List[int]:
    return [int(index) for index in torch.where(chosen)[0]]
