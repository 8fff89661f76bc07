"""Checkpoints of runs: a restarted run goes on as if it had not been interrupted."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Optional, Union

import numpy as np

from .evaluation import Array, Evaluation
from .guard import Guard
from .respa import RespaVelocityVerlet


VERSION = 1


def save_run(run: RespaVelocityVerlet, path: Union[str, Path]) -> None:
    """Write a checkpoint, at the end of an outer step.

    Neighbour lists are searched anew afterwards, as they will be after a restart: their
    order decides about the last bit of a force.

    :param run: the run.
    :param path: file to write; it is replaced at once or not at all.
    """
    point = run.point
    arrays = {
        "numbers": run.atoms.numbers,
        "masses": run.atoms.get_masses(),
        "positions": run.atoms.positions,
        "momenta": run.atoms.get_momenta(),
        "cell": run.atoms.cell.array,
    }
    arrays |= _pack("conservative", point.conservative) | _pack("direct", point.direct)
    if hasattr(run, "cell_momentum"):
        arrays["cell_momentum"] = run.cell_momentum
    state: Dict[str, Any] = {
        "version": VERSION,
        "kind": type(run).__name__,
        "timestep": run.timestep,
        "n_inner": run.n_inner,
        "nsteps": run.nsteps,
        "n_inner_now": run.n_inner_now,
        "heat": run.heat,
        "start_conserved": run.start_conserved,
        "energy": point.conservative.energy,
        "guard": asdict(run.guard),
    }
    if hasattr(run, "rng"):
        state["rng"] = run.rng.bit_generator.state
    path = Path(path)
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("wb") as file:
        np.savez(file, state=np.array(json.dumps(state)), **arrays)
    os.replace(unfinished, path)
    run.forces.reset()


def restore_run(run: RespaVelocityVerlet, path: Union[str, Path]) -> None:
    """Continue from a checkpoint.

    :param run: a run made with the same arguments, for the same atoms.
    :param path: file written by :func:`save_run`.
    :raises ValueError: if the checkpoint is that of another kind of run.
    """
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    state = json.loads(str(arrays["state"]))
    _check(run, state, arrays["numbers"], path)
    run.atoms.set_masses(arrays["masses"])
    run.masses = run.atoms.get_masses()[:, None]
    run.atoms.set_cell(arrays["cell"])
    run.atoms.positions = arrays["positions"]
    run.atoms.set_momenta(arrays["momenta"], apply_constraint=False)
    if "cell_momentum" in arrays:
        run.cell_momentum = arrays["cell_momentum"]  # type: ignore[attr-defined]
    if "rng" in state:
        run.rng.bit_generator.state = state["rng"]  # type: ignore[attr-defined]
    run.nsteps = state["nsteps"]
    run.n_inner_now = state["n_inner_now"]
    run.heat = state["heat"]
    run.start_conserved = state["start_conserved"]
    run.guard = Guard(**state["guard"])
    conservative = _unpack("conservative", arrays, state["energy"])
    assert conservative is not None
    run.set_point(conservative, _unpack("direct", arrays, None))
    run.forces.reset()


def _check(
    run: RespaVelocityVerlet, state: Dict[str, Any], numbers: Array, path: Any
) -> None:
    expected = {
        "version": VERSION,
        "kind": type(run).__name__,
        "timestep": run.timestep,
        "n_inner": run.n_inner,
    }
    for name, value in expected.items():
        if state[name] != value:
            raise ValueError(
                f"{path} belongs to another run: its {name} is {state[name]}, that of "
                f"this run {value}"
            )
    if not np.array_equal(numbers, run.atoms.numbers):
        raise ValueError(f"{path} belongs to another run: its atoms are others")


def _pack(kind: str, evaluation: Optional[Evaluation]) -> Dict[str, Array]:
    if evaluation is None:
        return {}
    arrays = {f"{kind}_forces": evaluation.forces}
    if evaluation.stress is not None:
        arrays[f"{kind}_stress"] = evaluation.stress
    return arrays


def _unpack(
    kind: str, arrays: Dict[str, Array], energy: Optional[float]
) -> Optional[Evaluation]:
    if f"{kind}_forces" not in arrays:
        return None
    return Evaluation(arrays[f"{kind}_forces"], energy, arrays.get(f"{kind}_stress"))
