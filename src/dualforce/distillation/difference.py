"""What a cheap method lacks: labels of data minus those of the method."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import List, Optional, Union

import ase
import ase.io
import numpy as np

from ..training.reading import read_labels
from ..writing import replacing
from .acceleration import read_structures
from .labelling import Label, LabelStore, label_frames, with_label
from .teacher import Teacher, load_teacher


LARGE = 0.7
"""Share of the forces of the data above which their difference is as hard to learn."""


def difference(
    teacher: str,
    structures: Union[str, Path],
    output: Union[str, Path],
    *,
    energy_key: str = "energy",
    forces_key: str = "forces",
    stress_key: str = "stress",
    virial_key: Optional[str] = None,
    device: Optional[str] = None,
) -> List[ase.Atoms]:
    """Energies, forces and stresses of data minus those of a model or method.

    A difference to a good method is smaller and smoother than what the data say, so
    that few frames determine it. The sum of both, ``TEACHER+MODEL``, then labels
    structures nearly as the method of the data does (:func:`sample`).

    :param teacher: an exported model, a checkpoint of metatrain, ``module:callable``
        for a calculator of ASE, the name of a package's model, or a sum of these
        (``gfn2-xtb+model.pt``).
    :param structures: the data, in any format of ASE, in eV and Å.
    :param output: extended XYZ file, in eV and Å. Labels of the teacher are kept beside
        it until all are there: an interrupted call goes on where it was.
    :param energy_key: where the data have energies.
    :param forces_key: where they have forces.
    :param stress_key: where they have stresses, in frames that have some.
    :param virial_key: where they have virials, in eV, in the place of stresses.
    :param device: torch device of metatomic models.
    :return: the frames with the differences, without those on which the teacher fails.
    :raises FileExistsError: if the output is there already.
    :raises ValueError: if labels are missing or not finite, a structure is unusable, or
        the teacher does not know an element or fails on all frames.
    """
    output = Path(output)
    if output.exists():
        raise FileExistsError(f"{output} exists already: choose another file with -o")
    frames = read_structures(structures)
    labels = read_labels(
        str(structures), energy_key, forces_key, stress_key, virial_key
    )
    data = [Label(*values) for values in labels]
    with tempfile.TemporaryDirectory() as exported:
        source = load_teacher(teacher, Path(exported), device)
        path = output.with_name(f"{output.stem}-{source.hash}.unfinished.xyz")
        store = LabelStore(path)
        found = label_frames(frames, source, store, f"file '{structures}'")
    differences = [
        with_label(atoms, _minus(own, other), {})
        for atoms, own, other in zip(frames, data, found.labels, strict=True)
        if other is not None
    ]
    _report(source, data, differences)
    with replacing(output) as unfinished:
        ase.io.write(unfinished, differences, format="extxyz")
    path.unlink()
    return differences


def _minus(own: Label, other: Label) -> Label:
    """Difference of two labels, with a stress where both have one."""
    both = own.stress is not None and other.stress is not None
    stress = own.stress - other.stress if both else None  # type: ignore[operator]
    return Label(own.energy - other.energy, own.forces - other.forces, stress)


def _report(
    teacher: Teacher, data: Sequence[Label], differences: Sequence[ase.Atoms]
) -> None:
    """Say how large the difference is."""
    own = np.concatenate([label.forces for label in data])
    left = np.concatenate([atoms.get_forces() for atoms in differences])
    whole, rest = (float(np.sqrt(np.mean(f**2))) for f in (own, left))
    logging.info(
        f"RMS of the forces: data {whole:.3g} eV/A, minus {teacher.name} {rest:.3g} "
        "eV/A"
    )
    if any(label.stress is not None for label in data) and not any(
        "stress" in atoms.calc.results for atoms in differences
    ):
        logging.warning(
            f"stresses of the data are left out: {teacher.name} computes none"
        )
    if rest > LARGE * whole:
        logging.warning(
            f"{teacher.name} is not close to the data; a model of the difference has "
            "as much to learn as one of the data. Check that both are in eV and A"
        )
