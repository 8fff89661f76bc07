"""Labelled structures of a cheap method, to train on before the data."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import List, Optional, Union

import ase
from tqdm import tqdm

from ..md.thermostats import check_positive
from ..md.timesteps import propose_timestep
from .acceleration import read_structures
from .labelling import DIGEST, ORIGIN, LabelStore, digest
from .sampling import FRAMES_PER_RUN, Mover, short_run, spread
from .teacher import Teacher, load_teacher


INTERVAL = 5.0
"""Between structures of a run, in fs: where labels are cheap, structures that are close
to each other still teach something."""

ATTEMPTS = 3
"""Times as many runs as are needed where none fails."""


def sample(
    teacher: str,
    structures: Union[str, Path],
    output: Union[str, Path],
    *,
    temperatures: Sequence[float] = (300.0,),
    frames: int = 1000,
    seed: int = 0,
    device: Optional[str] = None,
) -> List[ase.Atoms]:
    """Run a model or method from structures, and keep what the runs meet with energies,
    forces and, of periodic ones, stresses.

    Runs of 50 fs at constant temperature start from structures all over the file, with
    thermal velocities, in the steps of
    :func:`~dualforce.md.timesteps.propose_timestep`. What was labelled before is not
    computed again: an interrupted call goes on where it was, and a call for more frames
    adds some.

    :param teacher: an exported model, a checkpoint of metatrain, ``module:callable``
        for a calculator of ASE, the name of a package's model, or a sum of these
        (``gfn2-xtb+model.pt``).
    :param structures: file of structures, in any format of ASE; labels in it are not
        read.
    :param output: extended XYZ file, in eV and Å.
    :param temperatures: of the runs, in K; each gets its share.
    :param frames: structures to label, at least.
    :param seed: of velocities and noise.
    :param device: torch device of metatomic models.
    :return: the labelled structures.
    :raises FileExistsError: if the output is another file.
    :raises ValueError: if an argument or a structure is unusable, the teacher does not
        know an element, or fails in every run.
    """
    if not temperatures:
        raise ValueError("give at least one temperature, in K")
    check_positive(frames=frames)
    for temperature in temperatures:
        check_positive(temperature=temperature)
    starts = read_structures(structures)
    with tempfile.TemporaryDirectory() as exported:
        source = load_teacher(teacher, Path(exported), device)
        source.check_elements(starts, f"file '{structures}'")
        store = _open(Path(output), source)
        return _run_all(source, starts, store, temperatures, frames, seed)


def _open(output: Path, teacher: Teacher) -> LabelStore:
    """What was labelled before.

    :raises FileExistsError: if it was not this teacher who labelled it.
    """
    if output.exists() and output.stat().st_size:
        # Not by opening it as a store, which would cut off what looks unfinished.
        with output.open(errors="replace") as file:
            _, comment = file.readline(), file.readline()
        if not (DIGEST in comment and f'{ORIGIN}="{teacher.hash} run' in comment):
            raise FileExistsError(
                f"{output} exists and holds no structures that `dualforce sample` has "
                f"labelled with {teacher.name}: choose another file with -o"
            )
    return LabelStore(output)


def _run_all(
    teacher: Teacher,
    starts: Sequence[ase.Atoms],
    store: LabelStore,
    temperatures: Sequence[float],
    frames: int,
    seed: int,
) -> List[ase.Atoms]:
    timestep = min(propose_timestep(atoms) for atoms in starts)
    mover = Mover(teacher.forces, timestep, interval=INTERVAL)
    found: List[ase.Atoms] = []
    n_runs = max(len(temperatures), -(-frames // FRAMES_PER_RUN))
    with tqdm(total=frames, desc="runs", unit=" frames", disable=None) as bar:
        for number in range(ATTEMPTS * n_runs):
            if number >= n_runs and len(found) >= frames:
                break
            temperature = float(temperatures[number % len(temperatures)])
            start = starts[spread(number, len(starts))]
            name = (
                f"{teacher.hash} run {number} at {temperature:g} K, seed {seed}, from "
                f"{digest(start)}"
            )
            run_seed = 10_000 * seed + number
            new = short_run(start, mover, teacher, store, name, temperature, run_seed)
            found += new
            bar.update(len(new))
    if not found:
        raise ValueError(
            f"{teacher.name} fails in every run from these structures; the warnings "
            "above say how"
        )
    if len(found) < frames:
        logging.warning(
            f"{len(found)} structures were labelled of the {frames} asked for: runs "
            "ended early, as the warnings above say"
        )
    return found
