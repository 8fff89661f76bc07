"""The optimiser: orthogonal updates for matrices, AdamW for the rest."""

import torch
from torch import nn

from dualforce.training.optimizer import make_optimizer


def _gradient(shape: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def test_matrices_move_by_the_nearest_orthogonal_matrix() -> None:
    """The update has the singular vectors of the gradient, and values near one; several
    matrices of the same sides, tall and wide, take it together."""
    shapes = ((24, 8), (8, 24), (24, 4, 2))
    weights = [nn.Parameter(torch.zeros(s, dtype=torch.float64)) for s in shapes]
    bases = []
    for each in weights:
        # Singular values that differ by a factor of a hundred.
        u, _, vh = torch.linalg.svd(
            _gradient(each.shape).flatten(1), full_matrices=False
        )
        bases.append((u, vh))
        gradient = u @ torch.diag(torch.logspace(0, -2, 8).double()) @ vh
        each.grad = gradient.reshape(each.shape)
    make_optimizer(weights, 0.01, 0.0).step()
    for each, (u, vh) in zip(weights, bases, strict=True):
        update = -each.detach().flatten(1) / (0.01 * 0.2 * 24**0.5)
        found = u.T @ update @ vh.T
        values = torch.diagonal(found)
        # Five Newton-Schulz iterations bring singular values near one, not to it.
        assert values.min() > 0.6 and values.max() < 1.3
        # They are computed in the precision of the weights.
        torch.testing.assert_close(found, torch.diag(values), atol=1e-12, rtol=0.0)


def test_vectors_move_as_with_adamw() -> None:
    """Five steps with weight decay."""
    ours = nn.Parameter(_gradient((7,)))
    theirs = nn.Parameter(ours.detach().clone())
    optimizers = (
        make_optimizer([ours], 0.01, 0.1),
        torch.optim.AdamW([theirs], 0.01, (0.9, 0.95), 1e-10, weight_decay=0.1),
    )
    for step in range(5):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = (step + 1.0) * _gradient((7,))
            optimizer.step()
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0.0)


def test_single_rows_and_columns_are_no_matrices() -> None:
    """Normalised by its only singular value, a row would keep its direction."""
    row = nn.Parameter(torch.zeros(1, 5, dtype=torch.float64))
    row.grad = _gradient((1, 5))
    make_optimizer([row], 0.01, 0.0).step()
    # The first step of AdamW follows the sign of the gradient.
    torch.testing.assert_close(
        row.detach(), -0.01 * row.grad.sign(), atol=1e-8, rtol=0.0
    )
