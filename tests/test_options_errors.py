"""What users read when options or checkpoints are wrong."""

from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from train_helpers import clusters, message_of, mtt, options, run_cli, write

from dualforce.training.model import NAME, DualForce
from dualforce.training.option_checks import nearest
from dualforce.training.trainer import Trainer


@pytest.fixture()
def water(tmp_path: Path) -> Path:
    """Four frames of water in a file."""
    return write(tmp_path / "water.xyz", clusters(4))


def test_nearest() -> None:
    """A proposal where there is a near one, nothing otherwise."""
    assert nearest("forcs", ["energy", "forces"]) == " Did you mean 'forces'?"
    assert nearest("xyz", ["energy", "forces"]) == ""


@pytest.mark.parametrize(
    "place, model, training, proposal",
    [
        ("model.bakbone", {"bakbone": "painn"}, {}, "backbone"),
        ("model.painn.cutof", {"painn": {"cutof": 3.0}}, {}, "cutoff"),
        ("model.pet.d_pett", {"pet": {"d_pett": 8}}, {}, "d_pet"),
        ("model.soap_bpnn.sop", {"soap_bpnn": {"sop": {}}}, {}, "soap"),
        ("training.lerning_rate", {}, {"lerning_rate": 0.1}, "learning_rate"),
        ("training.finetune.read", {}, {"finetune": {"read": "x"}}, "read_from"),
        ("training.stages.1.epochs", {}, {"stages": [{}, {"epochs": 3}]}, "num_epochs"),
        (
            "training.stages.0.weights.force",
            {},
            {"stages": [{"weights": {"force": 1.0}}]},
            "forces",
        ),
    ],
)
def test_unknown_option(
    place: str, model: Any, training: Any, proposal: str, water: Path, tmp_path: Path
) -> None:
    """In every section, with its place and the nearest option."""
    given = options(water, training, model)
    message = message_of(lambda: run_cli(tmp_path, given))
    wrong = place.split(".")[-1]
    assert place in message
    assert f"there is no option '{wrong}'. Did you mean '{proposal}'?" in message


def test_several_unknown_options_at_once(water: Path, tmp_path: Path) -> None:
    """One message shows all of them."""
    given = options(water, {"epochs": 1}, {"force": "hybrid", "painn": {"layers": 1}})
    message = message_of(lambda: run_cli(tmp_path, given))
    for place in ("model.force", "model.painn.layers", "training.epochs"):
        assert place in message


@pytest.mark.parametrize(
    "training, expected",
    [
        ({"batch_size": 0}, "`training.batch_size` is 0, it must be at least 1"),
        ({"num_epochs": 0}, "`training.num_epochs` is 0, it must be at least 1"),
        ({"max_minutes": -2.5}, "`training.max_minutes` is -2.5, it must be positive"),
        ({"learning_rate": 0.0}, "`training.learning_rate` is 0, it must be positive"),
        ({"ema_decay": 1.0}, "`training.ema_decay` is 1, it must be at least 0 and"),
        ({"conservative_fraction": 1.5}, "it must be at least 0 and at most 1"),
        ({"max_force": float("nan")}, "`training.max_force` is nan, it must be"),
        ({"num_epochs": None}, "give `num_epochs` or `max_minutes`"),
        ({"stages": [{"num_epochs": 1}, {}]}, "`max_minutes` for stage 2"),
        ({"stages": []}, "`stages` is empty"),
        (
            {"stages": [{"num_epochs": 1, "weights": {"energy": -1.0}}]},
            "`training.stages.0.weights.energy` is -1, it must be zero or positive",
        ),
        ({"finetune": {"direct_layers": 1}}, "goes with `train: direct_head`"),
        ({"jacobian_symmetry": -0.1}, "`training.jacobian_symmetry` is -0.1"),
        ({"force_agreement": -1.0}, "`training.force_agreement` is -1,"),
        (
            {"stages": [{"num_epochs": 3}, {"num_epochs": 0}]},
            "`training.stages.1.num_epochs` is 0",
        ),
        ({"loss": "hubert"}, "choose one of mse, mae, huber"),
        ({"loss": {"energy": {"reduction": "sum"}}}, "losses are means"),
    ],
)
def test_values_without_sense(
    training: Dict[str, Any], expected: str, water: Path, tmp_path: Path
) -> None:
    """Refused before data are read."""
    water.unlink()
    message = message_of(lambda: run_cli(tmp_path, options(water, training)))
    assert expected in message


@pytest.mark.parametrize("empty", ["training", "validation"])
def test_empty_split(empty: str, water: Path, tmp_path: Path) -> None:
    """Whichever it is."""
    given = options(water, validation_set=0.0)
    if empty == "training":
        (tmp_path / "none.txt").write_text("")
        (tmp_path / "some.txt").write_text("0\n1\n")
        given["training_set"]["indices"] = str(tmp_path / "none.txt")
        given["validation_set"] = {"indices": str(tmp_path / "some.txt")}
    message = message_of(lambda: run_cli(tmp_path, given))
    expected = {
        "training": "No samples left in the training set",
        "validation": "the validation set is empty",
    }
    assert expected[empty] in message


UNUSABLE = [
    ({"architecture_name": "pet", "model_ckpt_version": 1}, "architecture 'pet', not"),
    ({"architecture_name": NAME}, "the checkpoint has no model"),
    (
        {"architecture_name": NAME, "model_ckpt_version": 99},
        f"model version 99, this one reads up to {DualForce.__checkpoint_version__}",
    ),
    (
        {
            "architecture_name": NAME,
            "model_ckpt_version": 1,
            "trainer_ckpt_version": 99,
        },
        f"trainer version 99, this one reads up to {Trainer.__checkpoint_version__}",
    ),
    ([1, 2], "this is not a checkpoint of a training"),
]


@pytest.mark.parametrize("content, expected", UNUSABLE)
def test_restart_from_something_else(
    content: Any, expected: str, water: Path, tmp_path: Path
) -> None:
    """The reason is shown, not only that it failed."""
    torch.save(content, tmp_path / "other.ckpt")
    message = message_of(
        lambda: run_cli(
            tmp_path, options(water), restart_from=str(tmp_path / "other.ckpt")
        )
    )
    assert expected in message


def test_finetune_from_an_architecture_that_is_no_backbone(
    water: Path, tmp_path: Path
) -> None:
    """The architecture is named."""
    torch.save({"architecture_name": "gap"}, tmp_path / "gap.ckpt")
    finetune = {"finetune": {"read_from": str(tmp_path / "gap.ckpt")}}
    message = message_of(lambda: run_cli(tmp_path, options(water, finetune)))
    assert "architecture 'gap', which is not a backbone" in message


def test_other_architectures_keep_the_functions_of_metatrain(
    water: Path, tmp_path: Path
) -> None:
    """A wrong forces key is an error here and a warning in metatrain."""
    given = options(water, {"num_epochs": 1}, energy={"forces": {"key": "force"}})
    training = {"num_epochs": 1, "batch_size": 2}
    given["architecture"] = {"name": "soap_bpnn", "training": training}
    run_cli(tmp_path, given)
    assert "no frame has the key" in message_of(
        lambda: run_cli(tmp_path, options(water, energy={"forces": {"key": "force"}}))
    )


def test_command_line_shows_the_message(water: Path, tmp_path: Path) -> None:
    """As a user of ``mtt train`` reads it."""
    (tmp_path / "options.yaml").write_text(
        f"""
architecture: {{name: {NAME}}}
training_set:
  systems: {{read_from: {water}, length_unit: angstrom}}
  targets: {{energy: {{unit: eV, key: enrgy}}}}
validation_set: 0.5
"""
    )
    process = mtt(tmp_path, "train", "options.yaml")
    log, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"file '{water}', frame 0 (counted from 0)" in log
    assert "Did you mean 'energy'?" in log
