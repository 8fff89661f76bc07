"""Every option that is a number has a range, and the range is checked first."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Dict, Tuple, get_args, get_origin

import pytest
from metatrain.utils.architectures import get_default_hypers
from train_helpers import NAME, clusters, message_of, options, run_cli, write

from dualforce.nn.hypers import ACEHypers, PaiNNHypers
from dualforce.training.options import TrainerHypers
from dualforce.training.ranges import CUTOFFS, check_cutoff, check_ranges, range_of


METATRAIN = ("loss", "atomic_baseline")
"""Options whose type is that of metatrain."""


def numbers(annotation: Any, place: str) -> Iterator[str]:
    """Places of all options that are numbers, in an annotation and inside it."""
    if annotation in (int, float):
        yield place
    elif isinstance(annotation, type) and hasattr(annotation, "__annotations__"):
        for name, inner in annotation.__annotations__.items():
            if name not in METATRAIN:
                yield from numbers(inner, f"{place}.{name}")
    elif get_origin(annotation) is Annotated:
        yield from numbers(get_args(annotation)[0], place)
    elif get_origin(annotation) is list:
        yield from numbers(get_args(annotation)[0], f"{place}.0")
    else:
        for argument in get_args(annotation):
            yield from numbers(argument, place)


PLACES = [
    *numbers(PaiNNHypers, "model.painn"),
    *numbers(ACEHypers, "model.ace"),
    *numbers(TrainerHypers, "training"),
]


def test_options_are_found() -> None:
    """Also those of sections and lists."""
    assert {
        "model.painn.cutoff",
        "training.num_epochs",
        "training.stages.0.weights.energy",
        "training.teacher.extend.temperatures.0",
        "training.finetune.direct_layers",
    } <= set(PLACES)


@pytest.mark.parametrize("place", PLACES)
def test_every_number_has_a_range(place: str) -> None:
    """Nothing takes negative numbers or NaN."""
    allowed = range_of(place)
    assert allowed is not None
    assert not allowed.contains(-1.0)
    assert not allowed.contains(float("nan"))
    assert str(allowed)


def test_defaults_are_in_range() -> None:
    """Of all networks."""
    hypers = get_default_hypers(NAME)
    check_ranges(hypers["model"], "model")
    check_ranges(hypers["training"], "training")


def _with(hypers: Dict[str, Any], path: Tuple[str, ...], value: Any) -> Dict[str, Any]:
    hypers = copy.deepcopy(hypers)
    section = hypers
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    return hypers


@pytest.mark.parametrize(
    "path, value, expected",
    [
        (("painn", "n_channels"), 0, "at least 1"),
        (("painn", "n_layers"), 0, "at least 1"),
        (("painn", "n_radial"), -3, "at least 1"),
        (("painn", "cutoff"), -4.5, "positive"),
        (("painn", "n_neighbors"), 0.0, "positive"),
        (("pet", "cutoff"), 0.0, "positive"),
        (("pet", "d_pet"), 0, "at least 1"),
        (("pet", "num_heads"), 0, "at least 1"),
        (("soap_bpnn", "soap", "cutoff", "radius"), -1.0, "positive"),
        (("soap_bpnn", "bpnn", "num_neurons_per_layer"), 0, "at least 1"),
    ],
)
def test_options_of_networks(
    path: Tuple[str, ...], value: float, expected: str
) -> None:
    """They are named with place and value."""
    hypers = _with(get_default_hypers(NAME)["model"], path, value)
    message = message_of(lambda: check_ranges(hypers, "model"))
    assert f"`model.{'.'.join(path)}` is {value:g}, it must be {expected}" in message


@pytest.mark.parametrize("name", ["n_force_channels", "n_tensor_channels"])
def test_channels_that_may_be_left_out(name: str) -> None:
    """There may be none of these, but not fewer than that."""
    hypers = get_default_hypers(NAME)["model"]
    check_ranges(_with(hypers, ("ace", name), 0), "model")
    negative = _with(hypers, ("ace", name), -1)
    message = message_of(lambda: check_ranges(negative, "model"))
    assert f"`model.ace.{name}` is -1, it must be at least 0" in message


def test_several_at_once(tmp_path: Path) -> None:
    """One message has all of a section, and no data are read."""
    given = options(tmp_path / "none.xyz", {"num_epochs": -1, "batch_size": 0})
    message = message_of(lambda: run_cli(tmp_path, given))
    assert "`training.num_epochs` is -1, it must be at least 1" in message
    assert "`training.batch_size` is 0, it must be at least 1" in message


@pytest.mark.parametrize("forces", ["hybrid", "conservative", "direct"])
def test_fractions_are_checked_whatever_the_forces(forces: str, tmp_path: Path) -> None:
    """Also where the forces decide on the fraction."""
    path = write(tmp_path / "water.xyz", clusters(4))
    given = options(path, {"conservative_fraction": 1.5}, {"forces": forces})
    message = message_of(lambda: run_cli(tmp_path, given))
    assert "`training.conservative_fraction` is 1.5, it must be at least 0" in message


@pytest.mark.parametrize("backbone", list(CUTOFFS))
def test_cutoffs_in_other_units(backbone: str) -> None:
    """4.5 Å are 0.45 nm."""
    model = get_default_hypers(NAME)["model"] | {"backbone": backbone}
    short = _with(model, CUTOFFS[backbone], 0.45)
    long = _with(model, CUTOFFS[backbone], 4.5)
    check_cutoff(short, "nm")
    check_cutoff(long, "angstrom")
    check_cutoff(short, "")
    for hypers, unit in ((short, "angstrom"), (long, "nm")):
        message = message_of(lambda h=hypers, u=unit: check_cutoff(h, u))
        assert f"`model.{'.'.join(CUTOFFS[backbone])}` is" in message
