"""Real spherical harmonics of unit vectors as polynomials."""

import itertools
import math
from typing import List

import torch
from torch import Tensor, nn


MAX_DEGREE = 3
"""Highest degree there is."""

_QUADRATIC = ("xx", "yy", "zz", "xy", "yz", "xz")
_CUBIC = ("xxx", "yyy", "zzz", "xxy", "xxz", "yyx", "yyz", "zzx", "zzy", "xyz")
_MONOMIALS = ("", "x", "y", "z", *_QUADRATIC, *_CUBIC)

# Of homogeneous polynomials, where x^2 + y^2 + z^2 = 1; each degree has `2 l + 1`.
_A, _B, _C = math.sqrt(70.0) / 4.0, math.sqrt(105.0), math.sqrt(42.0) / 4.0
_D, _E, _F = math.sqrt(7.0) / 2.0, math.sqrt(15.0), math.sqrt(5.0) / 2.0
_POLYNOMIALS = (
    {"": 1.0},
    {"x": math.sqrt(3.0)},
    {"y": math.sqrt(3.0)},
    {"z": math.sqrt(3.0)},
    {"xy": _E},
    {"yz": _E},
    {"zz": 2.0 * _F, "xx": -_F, "yy": -_F},
    {"xz": _E},
    {"xx": 0.5 * _E, "yy": -0.5 * _E},
    {"xxy": 3.0 * _A, "yyy": -_A},
    {"xyz": _B},
    {"zzy": 4.0 * _C, "xxy": -_C, "yyy": -_C},
    {"zzz": 2.0 * _D, "xxz": -3.0 * _D, "yyz": -3.0 * _D},
    {"zzx": 4.0 * _C, "xxx": -_C, "yyx": -_C},
    {"xxz": 0.5 * _B, "yyz": -0.5 * _B},
    {"xxx": _A, "yyx": -3.0 * _A},
)

_S, _H = math.sqrt(0.5), math.sqrt(1.0 / 6.0)
_TRACELESS = (
    ((0.0, _S, 0.0), (_S, 0.0, 0.0), (0.0, 0.0, 0.0)),
    ((0.0, 0.0, 0.0), (0.0, 0.0, _S), (0.0, _S, 0.0)),
    ((-_H, 0.0, 0.0), (0.0, -_H, 0.0), (0.0, 0.0, 2.0 * _H)),
    ((0.0, 0.0, _S), (0.0, 0.0, 0.0), (_S, 0.0, 0.0)),
    ((_S, 0.0, 0.0), (0.0, -_S, 0.0), (0.0, 0.0, 0.0)),
)


def degrees(l_max: int) -> List[int]:
    """Degree of each harmonic, as long as there are harmonics."""
    return [degree for degree in range(l_max + 1) for _ in range(2 * degree + 1)]


def traceless_matrices() -> Tensor:
    """Symmetric traceless matrices that harmonics of degree 2 are the components of,
    orthonormal, shape ``[5, 3, 3]``."""
    return torch.tensor(_TRACELESS, dtype=torch.float64)


def gradient_coefficients(degree: int) -> Tensor:
    """Gradients of the harmonics of a degree as polynomials of the unit vector.

    :param degree: 1 or 2.
    :return: factors of the monomials of one degree less, in the order of
        :class:`Harmonics`, shape ``[2 degree + 1, 3, n_monomials]``.
    """
    monomials = (("",), ("x", "y", "z"))[degree - 1]
    out = torch.zeros(2 * degree + 1, 3, len(monomials), dtype=torch.float64)
    for row, terms in enumerate(_POLYNOMIALS[degree**2 : (degree + 1) ** 2]):
        for name, factor in terms.items():
            for axis, letter in enumerate("xyz"):
                if letter in name:
                    column = monomials.index(name.replace(letter, "", 1))
                    out[row, axis, column] += name.count(letter) * factor
    return out


def _mean_on_sphere(name: str) -> float:
    """Mean of a monomial of unit vectors over all directions."""
    powers = [name.count(letter) for letter in "xyz"]
    if any(power % 2 for power in powers):
        return 0.0
    odd_numbers = (math.prod(range(1, power, 2)) for power in powers)
    return math.prod(odd_numbers) / math.prod(range(1, sum(powers) + 2, 2))


def coupling(first: int, second: int, third: int) -> Tensor:
    """What couples harmonics of three degrees, whose sum is even, to a scalar: the
    mean of their product over all directions, scaled to a sum of squares of one.

    :param first: the first degree, at most :data:`MAX_DEGREE`; likewise the others.
    :return: shape ``[2 first + 1, 2 second + 1, 2 third + 1]``.
    """
    rows = [_POLYNOMIALS[n**2 : (n + 1) ** 2] for n in (first, second, third)]
    out = torch.zeros([len(row) for row in rows], dtype=torch.float64)
    for place in itertools.product(*(range(len(row)) for row in rows)):
        terms = [row[index].items() for row, index in zip(rows, place, strict=True)]
        for (a, f), (b, g), (c, h) in itertools.product(*terms):
            out[place] += f * g * h * _mean_on_sphere(a + b + c)
    return out / torch.linalg.vector_norm(out)


class Harmonics(nn.Module):
    r"""Real spherical harmonics.

    Scaled such that those of a degree have :math:`\sum_m Y_{lm}^2 = 2 l + 1`: each is
    of order one. Those of degree 1 are in the order ``x, y, z``, others have ``m``
    rising from ``-l``.

    :param l_max: highest degree, at most :data:`MAX_DEGREE`.
    :raises ValueError: if there is no such degree.
    """

    coefficients: Tensor
    first: Tensor
    second: Tensor
    third: Tensor
    fourth: Tensor

    def __init__(self, l_max: int) -> None:
        super().__init__()
        if not 1 <= l_max <= MAX_DEGREE:
            raise ValueError(f"`l_max` must be 1, 2 or 3, not {l_max}")
        self.l_max = l_max
        n_monomials = (1, 4, 10, 20)[l_max]
        matrix = torch.zeros(n_monomials, (l_max + 1) ** 2, dtype=torch.float64)
        for column, terms in enumerate(_POLYNOMIALS[: (l_max + 1) ** 2]):
            for monomial, factor in terms.items():
                matrix[_MONOMIALS.index(monomial), column] = factor
        self.register_buffer("coefficients", matrix, persistent=False)
        axis = {"x": 0, "y": 1, "z": 2}
        indices = {
            "first": [axis[name[0]] for name in _QUADRATIC],
            "second": [axis[name[1]] for name in _QUADRATIC],
            "third": [_QUADRATIC.index(name[:2]) for name in _CUBIC],
            "fourth": [axis[name[2]] for name in _CUBIC],
        }
        for key, values in indices.items():
            self.register_buffer(key, torch.tensor(values), persistent=False)

    def forward(self, units: Tensor) -> Tensor:
        """
        :param units: unit vectors, shape ``[n, 3]``.
        :return: shape ``[n, (l_max + 1)^2]``.
        """
        monomials = [torch.ones_like(units[:, :1]), units]
        if self.l_max > 1:
            quadratic = units.index_select(1, self.first)
            quadratic = quadratic * units.index_select(1, self.second)
            monomials.append(quadratic)
            if self.l_max > 2:
                cubic = quadratic.index_select(1, self.third)
                monomials.append(cubic * units.index_select(1, self.fourth))
        return torch.cat(monomials, dim=1) @ self.coefficients.to(units.dtype)
