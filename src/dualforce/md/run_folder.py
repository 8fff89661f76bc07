"""The folder of a run, and what identifies the run in it."""

import dataclasses
import hashlib
import itertools
import json
import logging
import platform
from pathlib import Path
from typing import Any, Dict, List, Literal, Optional, Tuple, Union

import ase
import numpy as np
import torch

from .. import __version__
from ..forces import CombinedForces, ForceSource
from ..writing import replacing
from .collection import collected_steps
from .respa import RespaVelocityVerlet
from .settings import MDSettings


GuardAction = Literal["warn", "shorten"]


class RunFolder:
    """The files of a run.

    :param path: the folder.
    """

    def __init__(self, path: Union[str, Path]) -> None:
        self.path = Path(path)
        self.description = self.path / "run.json"
        self.trajectory = self.path / "trajectory.extxyz"
        self.log = self.path / "log.csv"
        self.checkpoint = self.path / "checkpoint.npz"
        self.final = self.path / "final.extxyz"
        self.last_good = self.path / "last-good.extxyz"
        self.collected = self.path / "collected.extxyz"

    def setting(self, name: str) -> Optional[float]:
        """A number among the settings of the run in the folder; none where there is no
        run, or it is not positive."""
        if not self.description.exists():
            return None
        value = self._read_description()["run"].get(name)
        return value if isinstance(value, (int, float)) and value > 0 else None

    def check(self, description: Dict[str, Any], resume: bool) -> None:
        """See that a new run can be made in the folder, or the one in it resumed.

        :param description: of the run, as of :func:`describe`.
        :param resume: whether there is a run to go on with.
        :raises FileExistsError: if there are files already and they are not to be
            resumed.
        :raises FileNotFoundError: if there is nothing to resume.
        :raises ValueError: if the run to resume is another one; says what differs.
        """
        if resume:
            self._check_same(description)
        else:
            self._check_empty()

    def write_description(self, description: Dict[str, Any]) -> None:
        """Make the folder, with the description alone."""
        with replacing(self.description) as unfinished:
            unfinished.write_text(json.dumps(description, indent=2) + "\n")

    def _check_empty(self) -> None:
        if self.description.exists():
            raise FileExistsError(
                f"{self.path} holds a run already: add --resume to continue it, or "
                "choose another folder with -o"
            )
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise FileExistsError(
                f"{self.path} exists and is not an empty folder: choose another one "
                "with -o"
            )

    def _check_same(self, description: Dict[str, Any]) -> None:
        if not self.description.exists():
            raise FileNotFoundError(
                f"there is no run to resume in {self.path}: leave out --resume to "
                "start one"
            )
        old = self._read_description()
        differences = [
            f"{name} was {before}, now {now}"
            for name, before, now in _differences(old["run"], description["run"])
        ]
        if differences:
            raise ValueError(
                f"the run in {self.path} was started with other settings "
                f"({'; '.join(differences)}): resume it with the same ones, or start "
                "another with -o"
            )
        for name, before, now in _differences(
            old["made_with"], description["made_with"]
        ):
            logging.warning(
                f"{name} was {before}, now {now}: the continuation may differ in the "
                "last bits"
            )

    def _read_description(self) -> Dict[str, Any]:
        try:
            content = json.loads(self.description.read_text())
            return {part: dict(content[part]) for part in ("run", "made_with")}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.description} is damaged: the run cannot be resumed. Start "
                "another one with -o"
            ) from error

    def drop_after(self, run: RespaVelocityVerlet, interval: int) -> None:
        """Cut off what was written after the checkpoint that ``run`` starts from.

        :param run: the run, restored.
        :param interval: outer steps between frames.
        :raises ValueError: if the files end before.
        """
        n_lines = len(run.atoms) + 2
        n_frames = run.nsteps // interval + 1 if self.checkpoint.exists() else 0
        _keep_lines(self.trajectory, n_frames * n_lines)
        _keep_lines(self.log, n_frames + 1 if n_frames else 0)
        steps = collected_steps(self.collected, len(run.atoms))
        last = run.nsteps * run.n_inner
        _keep_lines(self.collected, sum(step <= last for step in steps) * n_lines)
        if run.nsteps == 0:  # That step is then written once more.
            for path in (self.trajectory, self.log, self.collected):
                _keep_lines(path, 0)


def _differences(
    before: Dict[str, Any], now: Dict[str, Any]
) -> List[Tuple[str, Any, Any]]:
    """Entries that differ; a run may become longer."""
    return [
        (name, before.get(name), now.get(name))
        for name in {**before, **now}
        if before.get(name) != now.get(name)
        and not (name == "steps" and now["steps"] > before["steps"])
    ]


def _keep_lines(path: Path, n_lines: int) -> None:
    if not path.exists():
        if n_lines == 0:
            return
        raise FileNotFoundError(
            f"{path} is missing, and the run cannot be resumed without it"
        )
    with path.open("rb+") as file:
        kept = list(map(len, itertools.islice(file, n_lines)))
        if len(kept) < n_lines:
            raise ValueError(
                f"{path} ends before the checkpoint of its run: it cannot be resumed"
            )
        file.truncate(sum(kept))


def describe(
    forces: ForceSource,
    atoms: ase.Atoms,
    settings: MDSettings,
    guard: GuardAction = "warn",
    structure: Optional[Path] = None,
) -> Dict[str, Any]:
    """What a run is made of (``run``) and what it is computed with (``made_with``).

    :param forces: source of the forces, known by its digest.
    :param atoms: structure it starts from.
    :param settings: settings.
    :param guard: what the guard does where forces differ more than usual.
    :param structure: file of the structure, which is then known by its contents.
    """
    parts: List[Optional[ForceSource]] = [forces, None]
    if isinstance(forces, CombinedForces):
        parts = [forces.energy_source, forces.direct_source]
    run: Dict[str, Any] = dataclasses.asdict(settings)
    run |= {
        "guard": guard,
        "model_sha256": parts[0] and parts[0].digest,
        "direct_model_sha256": parts[1] and parts[1].digest,
        "structure_sha256": _digest_of(atoms, structure),
    }
    made_with = {
        "dualforce": __version__,
        "ase": ase.__version__,
        "numpy": np.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": forces.device,
    }
    names = {"model": forces.name, "structure": str(structure or "")}
    return {"run": run, "made_with": made_with, "files": names}


def _digest_of(atoms: ase.Atoms, structure: Optional[Path]) -> str:
    if structure is not None:
        return hashlib.sha256(structure.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for array in (
        atoms.numbers,
        atoms.get_masses(),
        atoms.positions,
        atoms.get_momenta(),
        atoms.cell.array,
        atoms.pbc,
    ):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
