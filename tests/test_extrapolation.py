"""Runs that leave the training data of their model say so, once."""

from pathlib import Path
from typing import Any, List

import numpy as np
import pytest
from ase import Atoms
from helpers import make_model
from metatomic.torch import ModelMetadata
from metatrain.utils.metadata import merge_metadata
from train_helpers import cluster, clusters, options, prepare, write

from dualforce.forces import CombinedForces, CountedForces, MetatomicForces
from dualforce.forces.domain import KEY, TrainingDomain
from dualforce.md import MDSettings, run_md
from dualforce.md.extrapolation import Extrapolation
from dualforce.md.relaxation import relax
from dualforce.training import domain as recorded
from dualforce.training.data import make_frames
from dualforce.training.domain import record_domain


DATA = clusters(6)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> MetatomicForces:
    """An untrained model that knows what it was to be trained on, exported."""
    folder = tmp_path_factory.mktemp("model")
    model, _, dataset = prepare(options(write(folder / "data.xyz", DATA)))
    record_domain(model, make_frames([dataset], "training", model, False))
    model.export().save(str(folder / "model.pt"))
    return MetatomicForces(folder / "model.pt")


def warnings(caplog: Any) -> List[str]:
    """Sentences about training data."""
    return [r.message for r in caplog.records if "training data" in r.message]


def with_a_short_bond() -> Atoms:
    """Atoms 0 (O) and 1 (H) 0.61 Å apart."""
    atoms = cluster(0)
    vector = atoms.positions[1] - atoms.positions[0]
    atoms.positions[1] = atoms.positions[0] + 0.61 * vector / np.linalg.norm(vector)
    return atoms


def test_the_model_knows_its_data(source: MetatomicForces) -> None:
    """Distances, densities, neighbours and composition."""
    assert recorded.KEY == KEY
    domain = source.domain
    assert domain is not None and domain.density is not None
    bonds = [a.get_distance(o, o + h) for a in DATA for o in (0, 3) for h in (1, 2)]
    assert domain.shortest["O", "H"] == pytest.approx(min(bonds))
    assert domain.shortest["H", "O"] == domain.shortest["O", "H"]
    assert domain.density == pytest.approx((6.0 / 504.0, 6.0 / 504.0))
    assert domain.composition["O"] == pytest.approx((1 / 3, 1 / 3))
    assert domain.neighbors["O"] >= 2
    assert CountedForces(source).domain is domain
    assert CombinedForces(source, source).domain is domain


def test_earlier_data_count_too(tmp_path: Path) -> None:
    """After fine-tuning on fewer."""
    model, _, dataset = prepare(options(write(tmp_path / "data.xyz", DATA)))
    frames = make_frames([dataset], "training", model, False)
    record_domain(model, frames)
    before = TrainingDomain.from_extra(model.metadata.extra)
    record_domain(model, frames[:1])
    assert TrainingDomain.from_extra(model.metadata.extra) == before


def test_every_departure_is_named(source: MetatomicForces, caplog: Any) -> None:
    """With numbers, and once."""
    watch = Extrapolation(source)
    for atoms in DATA:
        watch.watch(atoms, "at step 1")
    assert not warnings(caplog)
    short = with_a_short_bond()
    watch.watch(short, "at step 120")
    watch.watch(short, "at step 130")
    (sentence,) = warnings(caplog)
    assert "atoms 0 (O) and 1 (H) are 0.61 Å apart at step 120; the shortest O-H" in (
        sentence.replace("atoms 1 (H) and 0 (O)", "atoms 0 (O) and 1 (H)").replace(
            "H-O", "O-H"
        )
    )
    dense = cluster(0)
    dense.set_cell([6.0, 7.0, 8.0])
    watch.watch(dense, "at step 140")
    assert "the density is 0.0179 atoms/Å^3 at step 140; that of" in caplog.text
    rich = cluster(0)
    rich.symbols[1] = "O"
    watch.watch(rich, "at step 150")
    assert "50 % of the atoms are H at step 150; in the training data 67 %" in (
        caplog.text
    )
    assert len(warnings(caplog)) == 3


def test_crowded_molecules_are_named() -> None:
    """Where there is no density."""
    domain = TrainingDomain(cutoff=3.0, neighbors={"H": 1, "O": 2})
    atoms = Atoms("OH3", [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    ((kind, sentence),) = domain.departures(atoms)
    assert kind == "crowding" and "has 3 neighbours within 3 Å" in sentence


@pytest.mark.parametrize("short", [False, True])
def test_runs_warn_once(
    source: MetatomicForces, short: bool, tmp_path: Path, caplog: Any
) -> None:
    """Molecular dynamics and relaxations."""
    atoms = with_a_short_bond() if short else cluster(1)
    settings = MDSettings(
        temperature=10.0, timestep=0.01, steps=8, n_inner=1, interval=1
    )
    run_md(source, atoms, tmp_path / "run", settings)
    assert len(warnings(caplog)) == int(short)
    caplog.clear()
    relax(source, atoms, steps=1)
    assert len(warnings(caplog)) == int(short)


@pytest.mark.parametrize("text", [None, "{}", "no JSON", '{"cutoff": "x"}'])
def test_models_that_say_nothing(text: Any, tmp_path: Path, caplog: Any) -> None:
    """Or what cannot be read."""
    model = make_model()
    if text is not None:
        extra = ModelMetadata(extra={KEY: text})
        model.metadata = merge_metadata(model.metadata, extra)
    model.export().save(str(tmp_path / "model.pt"))
    source = MetatomicForces(tmp_path / "model.pt")
    assert source.domain is None
    Extrapolation(source).watch(with_a_short_bond(), "at step 1")
    assert not warnings(caplog)
