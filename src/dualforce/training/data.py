"""Frames and batches as plain tensors.

Everything that does not change from step to step happens once: reading labels,
neighbour lists, baselines and scales. A step then only joins tensors. (Of data that do
not fit into memory, :mod:`.streams` makes the frames of each step anew.)
"""

import logging
from dataclasses import dataclass, field, replace
from typing import (
    Any,
    Collection,
    Dict,
    FrozenSet,
    List,
    Optional,
    Sequence,
    Set,
    Tuple,
)

import numpy as np
import torch
import vesin
from ase import Atoms
from ase.neighborlist import neighbor_list
from metatomic.torch import System
from metatrain.utils.data import TargetInfo
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..nn import Graph
from ..nn.base import to_device
from ..nn.neighbors import plan_rows
from .contents import base_of
from .model import DualForce
from .structures import check_structure
from .targets import FORCES_GRADIENT, VIRIAL_GRADIENT


REPORTED = 20
"""Frames that are left out and named in the log."""

COINCIDENT = 1e-3
"""Atoms closer than this, in the length unit, are taken for duplicates."""


@dataclass(frozen=True)
class Frame:
    """A structure with its neighbours and labels, in double precision.

    ``labels`` holds, by name: energies ``[1, n_properties]``, conservative forces
    (``<energy>_positions_gradients``, with the sign of forces) ``[n_atoms, 3, 1]``,
    virials (``<energy>_strain_gradients``) ``[1, 3, 3, 1]``, direct forces ``[n_atoms,
    3, 1]`` and direct stresses times the volume ``[1, 3, 3, 1]``. Labels the data do
    not have are absent.

    ``cell`` has zeros for directions that are not periodic, as metatomic wants it;
    ``volume`` is that of the cell in the file, also where some directions are not
    periodic, and zero where the file has no three cell vectors. ``source`` is the
    number of the data set in its split.
    """

    name: str
    types: Tensor
    positions: Tensor
    cell: Tensor
    pbc: Tensor
    centers: Tensor
    neighbors: Tensor
    shifts: Tensor
    volume: float = 0.0
    labels: Dict[str, Tensor] = field(default_factory=dict)
    source: int = 0

    def __len__(self) -> int:
        return len(self.types)


@dataclass(frozen=True)
class Origin:
    """What a data set of metatrain does not tell about itself; whoever makes data sets
    attaches it to them, as the attribute ``origin``.

    :param file: file of the structures.
    :param volumes: volumes of the cells in the file, which metatomic's structures lose
        where a direction is not periodic.
    :param unused: gradients of energies that are stored and not to be learnt, as pairs
        of a target and ``"positions"`` or ``"strain"``.
    """

    file: str = ""
    volumes: Optional[Sequence[float]] = None
    unused: FrozenSet[Tuple[str, str]] = frozenset()


@dataclass(frozen=True)
class Batch:
    """Several frames.

    :param graph: the structures as one graph.
    :param n_atoms: atoms of each structure, shape ``[n_systems]``.
    :param labels: labels of those frames that have them, joined.
    :param rows: for each label, the atoms or structures it belongs to; absent where
        all have one.
    """

    graph: Graph
    n_atoms: Tensor
    labels: Dict[str, Tensor]
    rows: Dict[str, Tensor]


# ------------------------------------------------------------------- neighbour lists


def _as_atoms(system: System) -> Atoms:
    return Atoms(
        numbers=system.types.numpy(),
        positions=system.positions.detach().numpy(),
        cell=system.cell.detach().numpy(),
        pbc=system.pbc.numpy(),
    )


def neighbors_of(atoms: Atoms, cutoff: float) -> Tuple[Any, Any, Any, Any]:
    """Centers, neighbours, shifts and distances of all pairs within the cutoff, sorted
    by center."""
    periodic = atoms.pbc
    # vesin knows no mixed boundary conditions
    find = vesin.ase_neighbor_list if periodic.all() or not periodic.any() else None
    i, j, shifts, d = (find or neighbor_list)("ijSd", atoms, cutoff)
    order = np.argsort(i, kind="stable")
    return i[order], j[order], shifts[order], d[order]


def _check_distances(name: str, i: Any, j: Any, distances: Any) -> None:
    if len(distances) and distances.min() < COINCIDENT:
        pair = int(distances.argmin())
        raise ValueError(
            f"{name}: atoms {i[pair]} and {j[pair]} (counted from 0) are at the same "
            f"place, {distances[pair]:.1e} apart; remove the duplicate"
        )


def with_neighbors(frame: Frame, cutoff: float) -> Frame:
    """The same frame with the pairs within another cutoff.

    :param frame: the frame.
    :param cutoff: in the length unit of the data.
    """
    atoms = Atoms(
        numbers=frame.types.numpy(),
        positions=frame.positions.numpy(),
        cell=frame.cell.numpy(),
        pbc=frame.pbc.numpy(),
    )
    i, j, shifts, _ = neighbors_of(atoms, cutoff)
    centers, neighbors, shifts = _as_tensors(i, j, shifts)
    return replace(frame, centers=centers, neighbors=neighbors, shifts=shifts)


def _as_tensors(i: Any, j: Any, shifts: Any) -> Tuple[Tensor, Tensor, Tensor]:
    return (
        torch.from_numpy(i.astype(np.int64)),
        torch.from_numpy(j.astype(np.int64)),
        torch.from_numpy(shifts.astype(np.float64)),
    )


# ------------------------------------------------------------------------ labels


def _finite(name: str, target: str, values: Tensor) -> Optional[Tensor]:
    """The label, or None where it is missing (all NaN)."""
    if torch.isnan(values).all():
        return None
    if not torch.isfinite(values).all():
        bad = torch.nonzero(~torch.isfinite(values))[0].tolist()
        raise ValueError(
            f"{name}: the label '{target}' is NaN or infinite at index {bad}; correct "
            "the frame or remove it (a label that is NaN throughout counts as missing)"
        )
    return values


def _read_labels(
    sample: Any,
    name: str,
    targets: Dict[str, TargetInfo],
    unused: Collection[Tuple[str, str]],
) -> Dict[str, Tensor]:
    labels: Dict[str, Optional[Tensor]] = {}
    for target in targets:
        block = sample[target].block() if target in sample._fields else None
        if block is None:
            continue
        labels[target] = _finite(name, target, block.values)
        for gradient, suffix, sign in (
            ("positions", FORCES_GRADIENT, -1.0),
            ("strain", VIRIAL_GRADIENT, 1.0),
        ):
            if gradient in block.gradients_list() and (target, gradient) not in unused:
                values = sign * block.gradient(gradient).values
                labels[target + suffix] = _finite(name, target + suffix, values)
    return {key: values for key, values in labels.items() if values is not None}


def _derive_direct_labels(
    labels: Dict[str, Tensor], model: DualForce, volume: float, name: str
) -> None:
    """Labels of direct targets, from those of energies; stresses times the volume."""
    for target, kind in model.kinds.items():
        if kind == "stress" and target in labels:
            if not volume > 0.0:
                raise ValueError(
                    f"{name}: it has a stress '{target}' but no volume; give the frame "
                    "three cell vectors (for a slab, one through the vacuum), or "
                    "remove its stress"
                )
            labels[target] = labels[target] * volume
    for energy in model.energies:
        sources = {energy.force: FORCES_GRADIENT, energy.stress: VIRIAL_GRADIENT}
        for direct, suffix in sources.items():
            if direct in energy.derived and energy.name + suffix in labels:
                labels[direct] = labels[energy.name + suffix]


def make_frame(
    sample: Any,
    name: str,
    model: DualForce,
    cutoff: float,
    volume: Optional[float] = None,
    unused: Collection[Tuple[str, str]] = (),
) -> Frame:
    """Convert one sample of a metatrain data set.

    :param sample: the sample.
    :param name: what to call the frame in messages.
    :param model: the model, which knows the targets.
    :param cutoff: cutoff of the neighbour list.
    :param volume: volume of the cell; that of the sample's cell if not given.
    :param unused: see :class:`Origin`.
    :raises ValueError: if the structure is unusable, atoms coincide, a label is not
        finite or a stress has no volume.
    """
    system: System = sample["system"]
    positions, cell = system.positions.detach(), system.cell.detach()
    check_structure(
        system.types.numpy(), positions.numpy(), cell.numpy(), system.pbc.tolist(), name
    )
    i, j, shifts, distances = neighbors_of(_as_atoms(system), cutoff)
    _check_distances(name, i, j, distances)
    if volume is None:
        volume = float(torch.abs(torch.det(cell)))
    labels = _read_labels(sample, name, model.targets, unused)
    _derive_direct_labels(labels, model, volume, name)
    centers, neighbors, shifts = _as_tensors(i, j, shifts)
    return Frame(
        name=name,
        types=system.types.to(torch.long),
        positions=positions,
        cell=cell,
        pbc=system.pbc,
        centers=centers,
        neighbors=neighbors,
        shifts=shifts,
        volume=volume,
        labels=labels,
    )


def nothing(name: str) -> Frame:
    """A frame without atoms and labels, in the place of one that cannot be used.

    :param name: name of that one.
    """
    none, vectors = torch.zeros(0, dtype=torch.long), torch.zeros(0, 3).double()
    return Frame(
        name=name,
        types=none,
        positions=vectors,
        cell=torch.zeros(3, 3).double(),
        pbc=torch.zeros(3, dtype=torch.bool),
        centers=none,
        neighbors=none,
        shifts=vectors,
    )


class BadFrames:
    """Frames that cannot be used: refused, or left out, named and counted.

    :param skip: leave them out.
    """

    def __init__(self, skip: bool) -> None:
        self._skip = skip
        self._names: Set[str] = set()

    def __len__(self) -> int:
        return len(self._names)

    def handle(self, name: str, error: ValueError) -> None:
        """Refuse a frame, or report it, once.

        :param name: name of the frame.
        :param error: what is wrong, with the name.
        :raises ValueError: if bad frames are refused.
        """
        if not self._skip:
            hint = "; `skip_bad_frames: true` leaves out such frames"
            raise ValueError(f"{error}{hint}") from error
        self.leave_out(name, f"{error}; the frame is skipped")

    def leave_out(self, name: str, message: str) -> None:
        """Name a frame that is left out, once; of many the first ones.

        :param name: name of the frame.
        :param message: what to say.
        """
        if name in self._names:
            return
        self._names.add(name)
        if len(self) <= REPORTED:
            logging.warning(message)
        elif len(self) % 1_000 == 0:
            logging.warning(f"{len(self)} frames are left out so far")


@dataclass(frozen=True)
class Source:
    """A data set of metatrain, and where its frames are from.

    :param base: the whole data set.
    :param indices: frames that are taken from it, shape ``[n_frames]``.
    :param split: name of the split and the data set in it, for messages.
    :param number: that of the data set in the split.
    """

    base: Any
    indices: NDArray[np.int64]
    split: str
    number: int

    def read(self, row: int) -> Any:
        """A frame as metatrain has it."""
        return self.base[int(self.indices[row])]

    def name_of(self, row: int) -> str:
        """The name of a frame, for messages."""
        file = f", file '{self._origin.file}'" if self._origin.file else ""
        return f"{self.split}{file}, frame {self.indices[row]} (counted from 0)"

    def frame(self, row: int, sample: Any, model: DualForce, cutoff: float) -> Frame:
        """A frame as plain tensors.

        :param row: which.
        :param sample: what :meth:`read` returns for it.
        :param model: the model, which knows targets and units.
        :param cutoff: neighbours up to here.
        :raises ValueError: if it is unusable.
        """
        volumes, index = self._origin.volumes, int(self.indices[row])
        volume = None if volumes is None else volumes[index]
        unused = self._origin.unused
        name = self.name_of(row)
        frame = make_frame(sample, name, model, cutoff, volume, unused)
        return replace(frame, source=self.number)

    @property
    def _origin(self) -> Origin:
        origin: Origin = getattr(self.base, "origin", Origin())
        return origin


def sources_of(datasets: Sequence[Any], split: str) -> List[Source]:
    """Where the frames of a split are from.

    :param datasets: data sets of metatrain, possibly subsets.
    :param split: name of the split.
    """
    names = [split + " set"]
    if len(datasets) > 1:
        names = [f"{split} set {number}" for number in range(len(datasets))]
    return [
        Source(*base_of(dataset), name, number)
        for number, (dataset, name) in enumerate(zip(datasets, names, strict=True))
    ]


def make_frames(
    datasets: Sequence[Any],
    split: str,
    model: DualForce,
    show_progress: bool,
    skip_bad: bool = False,
) -> List[Frame]:
    """Convert metatrain data sets.

    :param datasets: data sets, possibly subsets.
    :param split: name of the split, for messages.
    :param model: the model, which knows targets and cutoff.
    :param show_progress: show a bar.
    :param skip_bad: leave out unusable frames.
    :raises ValueError: if the split is empty or a frame is unusable.
    """
    bad = BadFrames(skip_bad)
    cutoff = model.requested_neighbor_lists()[0].cutoff
    frames = []
    total = sum(len(dataset) for dataset in datasets)
    if total == 0:
        raise ValueError(
            f"the {split} set is empty; give it frames or a larger share of them"
        )
    bar = tqdm(
        total=total, desc=f"{split} frames", disable=not show_progress, delay=5.0
    )
    for source in sources_of(datasets, split):
        for row in range(len(source.indices)):
            sample = source.read(row)
            bar.update()
            try:
                frames.append(source.frame(row, sample, model, cutoff))
            except ValueError as error:
                bad.handle(source.name_of(row), error)
    bar.close()
    if len(bad):
        logging.warning(
            f"{len(bad)} of {total} frames of the {split} set cannot be used and are "
            "skipped"
        )
    labelled = [frame for frame in frames if frame.labels]
    if not labelled:
        raise ValueError(f"no frame of the {split} set has a label")
    if len(labelled) < len(frames):
        first = next(frame.name for frame in frames if not frame.labels)
        logging.warning(
            f"{len(frames) - len(labelled)} of {len(frames)} frames of the {split} set "
            f"have no label and are not used, the first is {first}"
        )
    return labelled


def count_labels(frames: List[Frame]) -> Dict[str, int]:
    """Number of frames that have each label."""
    counts: Dict[str, int] = {}
    for frame in frames:
        for name in frame.labels:
            counts[name] = counts.get(name, 0) + 1
    return counts


# ------------------------------------------------------------------------ batches


def rotate(frame: Frame, rotation: Tensor) -> Frame:
    """A frame and its labels, rotated.

    :param frame: the frame.
    :param rotation: orthogonal matrix, shape ``[3, 3]``; vectors become ``v @
        rotation.T``.
    """
    labels = {}
    for name, values in frame.labels.items():
        if values.dim() == 3 and values.shape[1] == 3:
            values = torch.einsum("ab,nbp->nap", rotation, values)
        elif values.dim() == 4:
            values = torch.einsum("ab,nbcp,dc->nadp", rotation, values, rotation)
        labels[name] = values
    return replace(
        frame,
        positions=frame.positions @ rotation.T,
        cell=frame.cell @ rotation.T,
        labels=labels,
    )


def _join_labels(
    frames: List[Frame], per_atom: Collection[str], dtype: torch.dtype
) -> Tuple[Dict[str, Tensor], Dict[str, Tensor]]:
    labels: Dict[str, Tensor] = {}
    rows: Dict[str, Tensor] = {}
    names = list(dict.fromkeys(name for frame in frames for name in frame.labels))
    for name in names:
        present = [name in frame.labels for frame in frames]
        labels[name] = torch.cat(
            [frame.labels[name] for frame in frames if name in frame.labels]
        ).to(dtype)
        if not all(present):
            lengths = [len(f) if name in per_atom else 1 for f in frames]
            mask = torch.repeat_interleave(torch.tensor(present), torch.tensor(lengths))
            rows[name] = torch.nonzero(mask).reshape(-1)
    return labels, rows


def collate(
    frames: List[Frame],
    per_atom: Collection[str],
    dtype: torch.dtype,
    device: torch.device,
) -> Batch:
    """Join frames.

    :param frames: at least one frame.
    :param per_atom: labels with one row for each atom.
    :param dtype: precision of the network.
    :param device: device of the network.
    """
    n_atoms = torch.tensor([len(frame) for frame in frames])
    offsets = (torch.cumsum(n_atoms, 0) - n_atoms).tolist()
    graph = Graph(
        types=torch.cat([frame.types for frame in frames]),
        positions=torch.cat([frame.positions for frame in frames]).to(dtype),
        cells=torch.stack([frame.cell for frame in frames]).to(dtype),
        pbc=torch.stack([frame.pbc for frame in frames]),
        system=torch.repeat_interleave(torch.arange(len(frames)), n_atoms),
        centers=torch.cat(
            [f.centers + o for f, o in zip(frames, offsets, strict=True)]
        ),
        neighbors=torch.cat(
            [f.neighbors + o for f, o in zip(frames, offsets, strict=True)]
        ),
        shifts=torch.cat([frame.shifts for frame in frames]).to(dtype),
    )
    plan = plan_rows(graph.centers, len(graph.types))
    labels, rows = _join_labels(frames, per_atom, dtype)
    return Batch(
        graph=graph._replace(plan=plan).to(device),
        n_atoms=to_device(n_atoms, device),
        labels={name: to_device(values, device) for name, values in labels.items()},
        rows={name: to_device(indices, device) for name, indices in rows.items()},
    )
