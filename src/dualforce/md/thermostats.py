"""Constant temperature, by reversible RESPA with Langevin dynamics or stochastic
velocity rescaling."""

from typing import Any, Dict, Union

import ase
import numpy as np
from ase import units

from ..forces import Array, ForceSource
from .respa import POINTWISE_CONSTRAINTS, RespaVelocityVerlet


Seed = Union[None, int, np.random.Generator]


def check_positive(**values: float) -> None:
    """
    :raises ValueError: naming the first value that is not a positive number.
    """
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0.0):
            raise ValueError(f"{name} must be positive, not {value}")


class RandomRespa(RespaVelocityVerlet):
    """A run with random numbers, which belong to its state.

    :param rng: seed or generator of the random numbers.
    """

    def __init__(self, *args: Any, rng: Seed = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rng = np.random.default_rng(rng)

    def state(self) -> Dict[str, Any]:
        return super().state() | {"rng": self.rng.bit_generator.state}

    def restore(self, state: Dict[str, Any]) -> None:
        super().restore(state)
        self.rng.bit_generator.state = state["rng"]


class RespaLangevin(RandomRespa):
    r"""Langevin dynamics in the order BAOAB (Leimkuhler and Matthews, J. Chem. Phys.
    138, 174102 (2013)), with the friction acting in every inner step:

    .. math::

        p \leftarrow e^{-\gamma \Delta t} p
          + \sqrt{m k_B T (1 - e^{-2 \gamma \Delta t})}\, R

    With more than one inner step the noise meets the correction of the direct force at
    the outer points only, and the conserved quantity walks at random besides: by about
    :math:`\Delta_{outer} |f_C - f_D| (\gamma k_B T t / 6 m)^{1/2}` in a time :math:`t`.

    :param temperature_K: temperature, in K.
    :param friction: :math:`\gamma`, in inverse units of time of ASE; one number or one
        for each atom.
    :param rng: seed or generator of the random numbers.

    Everything else as of :class:`RespaVelocityVerlet`. The centre of mass (``FixCom``)
    goes only with one friction for all atoms.
    """

    supported_constraints = POINTWISE_CONSTRAINTS | {"FixCom"}

    def __init__(
        self,
        atoms: ase.Atoms,
        timestep: float,
        forces: ForceSource,
        n_inner: int = 1,
        *,
        temperature_K: float,
        friction: Union[float, Array],
        **kwargs: Any,
    ) -> None:
        check_positive(temperature_K=temperature_K)
        gamma = _friction_of_atoms(atoms, friction)
        super().__init__(atoms, timestep, forces, n_inner, **kwargs)
        self._decay = np.exp(-gamma * self.timestep)[:, None]
        thermal = self.masses * units.kB * temperature_K
        self._noise = np.sqrt(thermal * (1.0 - self._decay**2))

    def _drift(self, time: float) -> None:
        self._move(0.5 * time)
        self._thermalise()
        self._move(0.5 * time)

    def _thermalise(self) -> None:
        atoms = self.atoms
        before = atoms.get_kinetic_energy()
        noise = self.rng.standard_normal((len(atoms), 3))
        atoms.set_momenta(self._decay * atoms.get_momenta() + self._noise * noise)
        self.heat += atoms.get_kinetic_energy() - before


def _friction_of_atoms(atoms: ase.Atoms, friction: Union[float, Array]) -> Array:
    gamma = np.asarray(friction, dtype=float)
    if gamma.shape not in ((), (len(atoms),)):
        raise ValueError(
            f"friction must be one number or one for each of {len(atoms)} atoms, not "
            f"of shape {gamma.shape}"
        )
    gamma = np.broadcast_to(gamma, len(atoms))
    if not (np.isfinite(gamma).all() and (gamma >= 0.0).all()):
        raise ValueError("friction must be a number and not negative, for any atom")
    fixed = any(
        type(constraint).__name__ == "FixCom" for constraint in atoms.constraints
    )
    if fixed and np.ptp(gamma) > 0.0:
        # Projecting the noise then cools: it no longer balances the friction.
        raise ValueError(
            "with a fixed centre of mass (FixCom) all atoms must have the same friction"
        )
    return gamma


class VelocityRescaling:
    """Stochastic velocity rescaling (Bussi, Donadio, Parrinello, J. Chem. Phys. 126,
    014101 (2007), Eq. A7).

    :param temperature_K: temperature, in K.
    :param tau: relaxation time of the kinetic energy, in ASE's unit of time.
    :param n_degrees: degrees of freedom of the kinetic energy.
    :raises ValueError: if temperature or relaxation time is not positive.
    """

    def __init__(self, temperature_K: float, tau: float, n_degrees: int) -> None:
        check_positive(temperature_K=temperature_K, tau=tau)
        self.temperature = units.kB * temperature_K
        self.tau = tau
        self.n_degrees = n_degrees

    def apply(self, atoms: ase.Atoms, time: float, rng: np.random.Generator) -> float:
        """Rescale the momenta.

        :param time: time since the last rescaling.
        :param rng: source of random numbers.
        :return: the change in kinetic energy, in eV.
        :raises ValueError: if the atoms are at rest.
        """
        kinetic = atoms.get_kinetic_energy()
        if kinetic <= 0.0:
            raise ValueError(
                "all atoms are at rest, and rescaling cannot set them in motion: give "
                "them initial velocities"
            )
        decay = float(np.exp(-time / self.tau))
        share = (1.0 - decay) * 0.5 * self.temperature / kinetic
        normal = rng.standard_normal()
        others = 2.0 * rng.standard_gamma(0.5 * (self.n_degrees - 1))
        scale = np.sqrt(
            decay + share * (others + normal**2) + 2.0 * normal * np.sqrt(decay * share)
        )
        atoms.set_momenta(scale * atoms.get_momenta())
        return float((scale**2 - 1.0) * kinetic)


class RespaSVR(RandomRespa):
    """Stochastic velocity rescaling at the outer points.

    :param temperature_K: temperature, in K.
    :param tau: relaxation time of the kinetic energy, in ASE's unit of time.
    :param rng: seed or generator of the random numbers.

    Everything else as of :class:`RespaVelocityVerlet`.
    """

    def __init__(
        self,
        atoms: ase.Atoms,
        timestep: float,
        forces: ForceSource,
        n_inner: int = 1,
        *,
        temperature_K: float,
        tau: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(atoms, timestep, forces, n_inner, **kwargs)
        self._rescaling = VelocityRescaling(temperature_K, tau, self.n_degrees)

    def _outer_step(self, n_inner: int) -> None:
        time = n_inner * self.timestep
        self.heat += self._rescaling.apply(self.atoms, time, self.rng)
        super()._outer_step(n_inner)
