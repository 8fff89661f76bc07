r"""Multiple time stepping of many replicas, in the form of torch-sim's integrators.

A step is an outer step: ``n_inner`` (:math:`M`) steps of length ``dt``
(:math:`\Delta t`),

.. math::

    p &\leftarrow p + \tfrac{\Delta t}{2} [M f_C - (M - 1) f_D] \\
    x &\leftarrow x + \Delta t\, p / m, \quad
    \{ p \leftarrow p + \Delta t\, f_D, \quad
       x \leftarrow x + \Delta t\, p / m \} \times (M - 1) \\
    p &\leftarrow p + \tfrac{\Delta t}{2} [M f_C - (M - 1) f_D]

as in :mod:`dualforce.md.respa`, for all replicas together: ``n_inner - 1`` direct
passes and one of both forces.

=============================================  ==============================
Equation symbol                                Code variable
=============================================  ==============================
:math:`x`  (positions)                         ``state.positions``
:math:`p`  (momenta)                           ``state.momenta``
:math:`m`  (masses)                            ``state.masses``
:math:`f_C`  (conservative forces)             ``state.forces``
:math:`f_D`  (direct forces)                   ``state.direct_forces``
:math:`M`  (inner steps in an outer step)      ``n_inner``
:math:`\Delta t`  (inner step)                 ``dt``
=============================================  ==============================

The functions go into :func:`torch_sim.integrate` in pairs, with ``n_inner`` beside the
other arguments of the step::

    torch_sim.integrate(
        state, model, integrator=(respa_nve_init, respa_nve_step), n_inner=4,
        n_steps=1000, timestep=0.0005, temperature=300
    )

where ``timestep`` is the inner step and ``n_steps`` counts outer steps. torch-sim does
not convert other arguments for integrators that are not its own: ``gamma`` and ``tau``
are in its internal units, ``tau = 0.1 * torch_sim.units.MetalUnits.time`` is 0.1 ps.

A replica that cannot go on (an atom that moves by more than
:data:`~dualforce.md.respa.MAX_DISPLACEMENT` in one step of time, an evaluation that
fails or is not finite, a conserved quantity that changes by more than ``max_drift``)
returns to its last outer point and stays there, marked in ``state.failed``, with a
warning. The others follow the trajectories they would follow without it.
"""

from collections.abc import Callable
from typing import Any, Dict, List, Optional, Type, TypeVar

import torch
from torch import Tensor

from ..forces import MissingForceError, list_atoms
from ..md import Guard, RunFailedError
from ..md.respa import MAX_DISPLACEMENT
from .dependency import MDState, ModelInterface, SimState, initialize_momenta
from .guard import name_of, stop, watch
from .model import TwoForceModel
from .state import RespaLangevinState, RespaState, per_atom, sum_by_system


Evaluate = Callable[[SimState], Dict[str, Tensor]]

State = TypeVar("State", bound=RespaState)

FAILURES = (RuntimeError, ValueError, FloatingPointError)
"""What evaluations raise that fail on a structure."""

_KEPT_BY_FAILED = ("positions", "momenta", "forces", "direct_forces")
_KEPT_BY_FAILED_SYSTEMS = ("energy", "heat")


# ------------------------------------------------------------------------------ starts


def respa_nve_init(
    state: SimState,
    model: ModelInterface,
    *,
    kT: Any,
    dt: Any = None,
    window: int = Guard.window,
) -> RespaState:
    """Replicas at the start of a run at constant energy.

    :param state: systems. Momenta are kept where there are some, otherwise drawn by
        torch-sim at ``kT``, with ``state.rng``. A :class:`RespaState` goes on as it is.
    :param model: model; both forces are evaluated if it has them.
    :param kT: temperature of drawn momenta, in eV, scalar or of shape ``[n_systems]``.
    :param dt: not used; torch-sim passes it.
    :param window: outer points that make the usual correction of a replica.
    :raises RunFailedError: naming replicas whose forces cannot be evaluated.
    """
    return _start(RespaState, state, model, kT, window)


def respa_nvt_langevin_init(
    state: SimState,
    model: ModelInterface,
    *,
    kT: Any,
    dt: Any = None,
    window: int = Guard.window,
) -> RespaLangevinState:
    """Replicas at the start of Langevin dynamics; see :func:`respa_nve_init`."""
    return _start(RespaLangevinState, state, model, kT, window)


def respa_nvt_vrescale_init(
    state: SimState,
    model: ModelInterface,
    *,
    kT: Any,
    dt: Any = None,
    window: int = Guard.window,
) -> RespaState:
    """Replicas at the start of stochastic velocity rescaling; see
    :func:`respa_nve_init`.

    :raises ValueError: naming replicas at rest, which rescaling cannot set in motion.
    """
    started = _start(RespaState, state, model, kT, window)
    at_rest = torch.where(started.kinetic_energy <= 0.0)[0].tolist()
    if at_rest:
        raise ValueError(
            f"{name_of(started, at_rest[0])} is at rest, and rescaling cannot set it "
            "in motion: give it initial velocities"
        )
    return started


def _start(
    kind: Type[State], state: SimState, model: ModelInterface, kT: Any, window: int
) -> State:
    if window < 1:
        raise ValueError(f"the guard's window must be 1 or more, not {window}")
    _take_own_numbers(state)
    if isinstance(state, RespaState):
        continued: State = kind.from_state(state)
        return continued
    results = _first_evaluation(state, model)
    momenta = getattr(state, "momenta", None)
    if momenta is None:
        temperature = torch.as_tensor(kT, device=state.device, dtype=state.dtype)
        momenta = initialize_momenta(
            state.positions, state.masses, state.system_idx, temperature, state.rng
        )
    zeros = torch.zeros_like(results["energy"], dtype=torch.float64)
    counts = torch.zeros_like(zeros, dtype=torch.int64)
    started: State = kind.from_state(
        state,
        momenta=momenta,
        energy=results["energy"].to(torch.float64),
        forces=results["forces"],
        direct_forces=_direct_or_nan(results),
        heat=zeros,
        start_conserved=zeros,
        outer_steps=counts,
        failed=counts > 0,
        corrections=zeros.new_full((len(zeros), window), torch.nan),
        reported=zeros,
    )
    started.system_extras.setdefault("replica", torch.arange(len(counts)).to(counts))
    _keep_extras(started, results)
    started.start_conserved = started.conserved
    return started


def _take_own_numbers(state: SimState) -> None:
    """Give every batch of an autobatcher random numbers of its own.

    torch-sim gives all batches the same generator: replicas of the same system would
    get the same velocities and the same noise, and Langevin dynamics with the same
    noise runs together.
    """
    first = int(state.replica[0]) if state.has_extras("replica") else 0
    if first > 0:
        stream = torch.Generator(device=state.device)
        stream.set_state(state.rng.get_state())
        seed = torch.randint(2**62, (), generator=stream, device=state.device)
        state.rng = stream.manual_seed(int(seed) + first)


def _first_evaluation(state: SimState, model: ModelInterface) -> Dict[str, Tensor]:
    """Both forces if the model has them.

    :raises RunFailedError: naming replicas for which it fails.
    """
    two = isinstance(model, TwoForceModel) and model.has_direct
    evaluate = _both(model) if two else _conservative(model)
    try:
        results = evaluate(state)
        if _finite(results):
            return results
        cause: Optional[Exception] = None
    except FAILURES as error:
        cause = error
    failures = {
        i: reason
        for i in range(len(state.cell))
        if (reason := _failure(state, i, evaluate))
    }
    if not failures:
        raise cause or FloatingPointError("energies or forces are not finite")
    numbers = getattr(state, "replica", torch.arange(len(state.cell)))
    first = next(iter(failures))
    raise RunFailedError(
        f"{len(failures)} of {len(state.cell)} replicas cannot start; replica "
        f"{int(numbers[first])}: {failures[first]}"
    ) from cause


# ------------------------------------------------------------------------------- steps


def respa_nve_step(
    state: RespaState,
    model: ModelInterface,
    *,
    dt: Any,
    kT: Any = None,
    n_inner: int = 1,
    factor: float = Guard.factor,
    max_drift: float = Guard.max_drift,
) -> RespaState:
    """An outer step at constant energy; with ``n_inner = 1`` it is
    bitwise identical to ``torch_sim.nve_step``.

    :param state: replicas at an outer point, which are changed.
    :param model: a :class:`TwoForceModel`, or any model for ``n_inner = 1``.
    :param dt: inner step in internal units, scalar or of shape ``[n_systems]``.
    :param kT: not used; torch-sim passes it.
    :param n_inner: inner steps.
    :param factor: the guard warns where the correction of a replica exceeds the usual
        one by this factor, with few atoms by more.
    :param max_drift: in eV/atom: a replica whose conserved quantity has changed by more
        since the start has failed.
    :return: the state at the next outer point.
    :raises MissingForceError: if the model has no direct force and ``n_inner > 1``.
    :raises ValueError: if ``n_inner`` is not 1, 2, 3, ...
    """
    _OuterStep(state, model, dt, n_inner).run(factor, max_drift)
    return state


def respa_nvt_langevin_step(
    state: RespaLangevinState,
    model: ModelInterface,
    *,
    dt: Any,
    kT: Any,
    gamma: Any = None,
    n_inner: int = 1,
    factor: float = Guard.factor,
    max_drift: float = Guard.max_drift,
) -> RespaLangevinState:
    r"""An outer step of Langevin dynamics in the order BAOAB, with the friction acting
    in every inner step, between halves of the drift:

    .. math::

        p \leftarrow c_1 p + c_2 \sqrt{m}\, R, \qquad
        c_1 = e^{-\gamma \Delta t}, \quad c_2 = \sqrt{k_B T (1 - c_1^2)}

    With ``n_inner = 1`` it is ``torch_sim.nvt_langevin_step`` with the same random
    numbers.

    :param kT: temperature in eV, scalar or of shape ``[n_systems]``.
    :param gamma: friction :math:`\gamma` in inverse internal units of time, scalar or
        of shape ``[n_systems]``; as in torch-sim, ``1 / (100 dt)`` if not given.

    Everything else as of :func:`respa_nve_step`.
    """
    step = _LangevinStep(state, model, dt, n_inner)
    step.couple(kT, gamma)
    step.run(factor, max_drift)
    return state


def respa_nvt_vrescale_step(
    state: RespaState,
    model: ModelInterface,
    *,
    dt: Any,
    kT: Any,
    tau: Any,
    n_inner: int = 1,
    factor: float = Guard.factor,
    max_drift: float = Guard.max_drift,
) -> RespaState:
    r"""An outer step with stochastic velocity rescaling (Bussi, Donadio, Parrinello, J.
    Chem. Phys. 126, 014101 (2007), Eq. A7) at its beginning:

    .. math::

        p \leftarrow \alpha p, \qquad
        \alpha^2 = c + s \bigl(R_1^2 + \textstyle\sum_{i=2}^{N_f} R_i^2\bigr)
                   + 2 R_1 \sqrt{c s}, \quad
        c = e^{-M \Delta t / \tau}, \quad s = (1 - c) \frac{k_B T}{2 K}

    With ``n_inner = 1`` it is ``torch_sim.nvt_vrescale_step`` with the same random
    numbers.

    :param kT: temperature in eV, scalar or of shape ``[n_systems]``.
    :param tau: relaxation time :math:`\tau` of the kinetic energy :math:`K` in internal
        units, scalar or of shape ``[n_systems]``.

    Everything else as of :func:`respa_nve_step`.
    """
    step = _RescaleStep(state, model, dt, n_inner)
    step.couple(kT, tau)
    step.run(factor, max_drift)
    return state


class _OuterStep:
    """One outer step of replicas at constant energy.

    :param state: replicas at an outer point, which are changed.
    """

    def __init__(
        self, state: RespaState, model: ModelInterface, dt: Any, n_inner: int
    ) -> None:
        if n_inner < 1 or int(n_inner) != n_inner:
            raise ValueError(f"n_inner must be 1, 2, 3, ..., not {n_inner}")
        if n_inner > 1 and not getattr(model, "has_direct", False):
            name = getattr(model, "name", type(model).__name__)
            raise MissingForceError(
                f"{name} has no direct force for n_inner = {n_inner}: use n_inner = 1, "
                "or combine it with a model that has one "
                "(dualforce.torchsim.CombinedModel)"
            )
        self.state, self.model, self.n_inner = state, model, int(n_inner)
        self.dt = torch.as_tensor(dt, device=state.device, dtype=state.dtype)
        self.time = per_atom(self.dt, state)
        """Inner step, as a factor of vectors of atoms."""
        # Tensors of a state are replaced, never changed.
        names = _KEPT_BY_FAILED + _KEPT_BY_FAILED_SYSTEMS
        self.start = {name: getattr(state, name) for name in names}

    def run(self, factor: float, max_drift: float) -> None:
        """Take the step."""
        state = self.state
        if bool(state.failed.all()):
            return
        if self.n_inner > 1 and bool(state.direct_forces.isnan().any()):
            # the steps before this one had no use for it
            state.direct_forces = self.evaluate(_direct(self.model))["direct_forces"]
            self.start["direct_forces"] = state.direct_forces
        self.begin()
        self.kick(self.outer_forces(), 0.5 * self.time)
        self.drift()
        for _ in range(self.n_inner - 1):
            inner = self.evaluate(_direct(self.model))
            self.kick(inner["direct_forces"], self.time)
            self.drift()
        self.arrive()
        self.kick(self.outer_forces(), 0.5 * self.time)
        self.end(factor, max_drift)

    def begin(self) -> None:
        """What a thermostat does at the beginning of an outer step."""

    def outer_forces(self) -> Tensor:
        """Forces of the kicks at an outer point, in units of half a step."""
        state, n_inner = self.state, self.n_inner
        if n_inner == 1:
            forces: Tensor = state.forces
            return forces
        return n_inner * state.forces - (n_inner - 1) * state.direct_forces

    def kick(self, forces: Tensor, time: Tensor) -> None:
        """Change momenta by forces that act for some time."""
        self.state.set_constrained_momenta(self.state.momenta + forces * time)

    def drift(self) -> None:
        """Move the atoms, and with thermostats inside the step, thermalise them."""
        self.move(self.time)

    def move(self, time: Tensor) -> None:
        """Move the atoms, but for those of replicas that have failed or do so now."""
        state = self.state
        shifts = state.velocities * time
        # Written so that NaN counts as too far.
        too_far = ~((shifts**2).sum(1) < MAX_DISPLACEMENT**2)
        if bool(too_far.any()):
            self.stop_far(too_far)
        state.set_constrained_positions(state.positions + shifts)
        self.hold()

    def stop_far(self, too_far: Tensor) -> None:
        """Stop replicas with atoms that would move too far, shape ``[n_atoms]``."""
        state = self.state
        systems = sum_by_system(too_far, state.system_idx, len(state.energy)) > 0
        systems = systems & ~state.failed
        reasons = []
        for index in torch.where(systems)[0]:
            atoms = torch.where(too_far[state.system_idx == index])[0]
            reasons.append(
                f"atoms {list_atoms(atoms.cpu().numpy())} would move by more than "
                f"{MAX_DISPLACEMENT} Å in one step of time"
            )
        stop(state, systems, reasons)

    def hold(self) -> None:
        """Keep failed replicas at the structure they had at the start."""
        state = self.state
        if bool(state.failed.any()):
            failed = state.failed[state.system_idx].unsqueeze(1)
            state.positions = torch.where(
                failed, self.start["positions"], state.positions
            )

    def evaluate(self, evaluate: Evaluate) -> Dict[str, Tensor]:
        """What a function returns for the replicas, once those are stopped for which
        it fails."""
        try:
            results = evaluate(self.state)
            if _finite(results):
                return results
            cause: Optional[Exception] = None
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            cause = error
        if not self.stop_failing(evaluate):
            raise cause or FloatingPointError("energies or forces are not finite")
        self.hold()
        return evaluate(self.state)

    def stop_failing(self, evaluate: Evaluate) -> bool:
        """Stop the replicas for which a function fails when each is alone; whether
        there are any. Together one of them may spoil the results of all."""
        state = self.state
        reasons: List[str] = []
        bad = torch.zeros_like(state.failed)
        for index in torch.where(~state.failed)[0].tolist():
            reason = _failure(state, index, evaluate)
            if reason:
                bad[index] = True
                reasons.append(reason)
        stop(state, bad, reasons)
        return bool(reasons)

    def arrive(self) -> None:
        """Evaluate the forces at the next outer point."""
        outer = _conservative if self.n_inner == 1 else _both
        results = self.evaluate(outer(self.model))
        state = self.state
        state.energy = results["energy"].to(torch.float64)
        state.forces = results["forces"]
        state.direct_forces = _direct_or_nan(results)
        _keep_extras(state, results)

    def end(self, factor: float, max_drift: float) -> None:
        """Watch the correction and the conserved quantity."""
        state = self.state
        drifts = (state.conserved - state.start_conserved) / state.n_atoms_per_system
        # Written so that NaN counts as too much.
        bad = ~(drifts.abs() <= max_drift) & ~state.failed
        reasons = [
            f"its conserved quantity has changed by {float(drift):.3g} eV/atom since "
            f"the start, more than {max_drift} (`max_drift`)"
            for drift in drifts[bad]
        ]
        stop(state, bad, reasons)
        if self.n_inner > 1:
            watch(state, factor)
        state.outer_steps = state.outer_steps + (~state.failed).long()
        if bool(state.failed.any()):
            self.return_failed()

    def return_failed(self) -> None:
        """Return failed replicas to the outer point at the start."""
        state, failed = self.state, self.state.failed
        atoms = failed[state.system_idx].unsqueeze(1)
        for names, chosen in (
            (_KEPT_BY_FAILED, atoms),
            (_KEPT_BY_FAILED_SYSTEMS, failed),
        ):
            for name in names:
                now = getattr(state, name)
                setattr(state, name, torch.where(chosen, self.start[name], now))


class _LangevinStep(_OuterStep):
    def couple(self, kT: Any, gamma: Any) -> None:
        """Set temperature and friction; see :func:`respa_nvt_langevin_step`."""
        friction = 1.0 / (100.0 * self.dt) if gamma is None else gamma
        decay = torch.exp(-per_atom(friction, self.state) * self.time)
        self.c1 = decay
        self.c2 = torch.sqrt(per_atom(kT, self.state) * (1.0 - decay**2))

    def drift(self) -> None:
        """Move, thermalise, move."""
        half = 0.5 * self.time
        self.move(half)
        self.thermalise()
        self.move(half)

    def thermalise(self) -> None:
        """Friction and noise."""
        state = self.state
        before = state.kinetic_energy
        noise = torch.randn(
            state.momenta.shape,
            device=state.device,
            dtype=state.dtype,
            generator=state.rng,
        )
        widths = self.c2 * torch.sqrt(state.masses).unsqueeze(1)
        state.set_constrained_momenta(self.c1 * state.momenta + widths * noise)
        state.heat = state.heat + state.kinetic_energy - before


class _RescaleStep(_OuterStep):
    def couple(self, kT: Any, tau: Any) -> None:
        """Set temperature and relaxation time; see :func:`respa_nvt_vrescale_step`."""
        wide = {"device": self.state.device, "dtype": torch.float64}
        time = self.n_inner * self.dt.to(torch.float64)
        self.decay = torch.exp(-time / torch.as_tensor(tau, **wide))
        self.kT = torch.as_tensor(kT, **wide)

    def begin(self) -> None:
        """Rescale the momenta."""
        state, decay = self.state, self.decay
        kinetic = state.kinetic_energy
        share = (1.0 - decay) * 0.5 * self.kT / kinetic
        degrees = state.get_number_of_degrees_of_freedom().to(kinetic)
        normal = torch.randn(
            kinetic.shape,
            device=kinetic.device,
            dtype=kinetic.dtype,
            generator=state.rng,
        )
        # as torch-sim draws it, so that the generator of the state is used
        others = 2.0 * torch._standard_gamma(0.5 * (degrees - 1.0), generator=state.rng)
        square = (
            decay
            + share * (others + normal**2)
            + 2.0 * normal * torch.sqrt(decay * share)
        )
        scale = torch.sqrt(square).to(state.dtype)
        state.momenta = state.momenta * scale[state.system_idx].unsqueeze(1)
        state.heat = state.heat + (square - 1.0) * kinetic


# ------------------------------------------------------------------------- evaluations


def _conservative(model: ModelInterface) -> Evaluate:
    return model


def _direct(model: TwoForceModel) -> Evaluate:
    return lambda state: {"direct_forces": model.direct(state)}


def _both(model: TwoForceModel) -> Evaluate:
    return model.both


def _direct_or_nan(results: Dict[str, Tensor]) -> Tensor:
    missing = torch.full_like(results["forces"], torch.nan)
    return results.get("direct_forces", missing)


def _finite(results: Dict[str, Tensor]) -> bool:
    """Whether energies and forces are."""
    names = ("energy", "forces", "direct_forces")
    values = [results[name] for name in names if name in results]
    return all(bool(torch.isfinite(value).all()) for value in values)


def _failure(state: SimState, index: int, evaluate: Evaluate) -> str:
    """Why a function fails for one replica; empty if it does not."""
    try:
        results = evaluate(state[index])
    except torch.OutOfMemoryError:
        raise
    except FAILURES as error:
        return str(error)
    return "" if _finite(results) else "its energy or a force is not finite"


def _keep_extras(state: MDState, results: Dict[str, Tensor]) -> None:
    """Keep what else a model computes, as torch-sim does."""
    others = {k: v for k, v in results.items() if k != "direct_forces"}
    state.store_model_extras(others)
