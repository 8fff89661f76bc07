"""Files of a training: checked before it works."""

from pathlib import Path

import pytest
import torch
from train_helpers import (
    CPU,
    clusters,
    message_of,
    mtt,
    options,
    prepare,
    run_cli,
    write,
)

from dualforce.plugin.files import arguments_of_train_model, check_files


def test_missing_folder_of_the_model_is_made(tmp_path: Path) -> None:
    """Before the training, not after it."""
    path = write(tmp_path / "water.xyz", clusters(4))
    output = tmp_path / "some" / "folder" / "model.pt"
    run_cli(tmp_path, options(path), output=output)
    assert output.exists()
    assert output.with_suffix(".ckpt").exists()


@pytest.mark.parametrize(
    "output, expected",
    [
        ("water.xyz/model.pt", "is not there and cannot be made"),
        ("folder.pt", "is a folder, not a file to write"),
    ],
)
def test_output_that_cannot_be_written(
    output: str, expected: str, tmp_path: Path
) -> None:
    """Nothing is read, nothing is trained."""
    path = write(tmp_path / "water.xyz", clusters(4))
    (tmp_path / "folder.pt").mkdir()
    given = options(tmp_path / "none.xyz")
    message = message_of(lambda: run_cli(tmp_path, given, output=tmp_path / output))
    assert message.startswith("`-o`: ")
    assert expected in message
    assert path.exists()


@pytest.mark.parametrize("option", ["--restart", "finetune: read_from"])
@pytest.mark.parametrize("kind", ["missing", "text", "truncated"])
def test_checkpoint_that_cannot_be_read(option: str, kind: str, tmp_path: Path) -> None:
    """The sentence names the file and the option."""
    checkpoint = tmp_path / "model.ckpt"
    if kind == "text":
        checkpoint.write_text("energy: eV\n")
    elif kind == "truncated":
        torch.save({"weights": torch.zeros(1000)}, checkpoint)
        checkpoint.write_bytes(checkpoint.read_bytes()[:-200])
    data = tmp_path / "none.xyz"
    if option == "--restart":
        message = message_of(
            lambda: run_cli(tmp_path, options(data), restart_from=str(checkpoint))
        )
    else:
        finetune = {"finetune": {"read_from": str(checkpoint)}}
        message = message_of(lambda: run_cli(tmp_path, options(data, finetune)))
    assert message.startswith(f"`{option}`: ")
    assert str(checkpoint) in message
    expected = (
        "there is no checkpoint" if kind == "missing" else "not a whole checkpoint"
    )
    assert expected in message


def test_files_of_a_teacher(tmp_path: Path) -> None:
    """The combined model and the labels are written at the end, and checked first."""
    path = write(tmp_path / "water.xyz", clusters(4))
    teacher = {"model": "teacher.pt", "labels": str(path / "labels")}
    given = options(path, {"teacher": teacher})
    message = message_of(lambda: run_cli(tmp_path, given))
    assert message.startswith("`teacher: labels`: the folder")
    teacher["labels"] = str(tmp_path / "labels")
    teacher["combined"] = str(path / "combined.pt")
    message = message_of(lambda: run_cli(tmp_path, given))
    assert message.startswith("`teacher: combined`: the folder")


def test_arguments_of_train_model_are_known_only_within() -> None:
    """Elsewhere there is nothing to check."""
    assert arguments_of_train_model() == {}
    check_files({}, {"finetune": {}, "teacher": {}})


def test_no_checkpoint_is_named_that_is_not_there(tmp_path: Path) -> None:
    """A run that fails in its first epoch has none."""
    path = write(tmp_path / "water.xyz", clusters(4))
    model, trainer, dataset = prepare(options(path))
    load = trainer._load_frames

    def spoil(*arguments: object) -> None:
        load(*arguments)  # type: ignore[arg-type]
        trainer.train_frames[1].labels["energy"][:] = float("inf")

    trainer._load_frames = spoil  # type: ignore[method-assign]
    message = message_of(
        lambda: trainer.train(
            model, torch.float64, CPU, [dataset], [dataset], str(tmp_path)
        )
    )
    assert "no checkpoint has been written yet" in message
    assert "checkpoint.ckpt" not in message


def test_command_line_makes_the_folder(tmp_path: Path) -> None:
    """As a user runs it."""
    path = write(tmp_path / "water.xyz", clusters(4))
    (tmp_path / "options.yaml").write_text(
        f"""
seed: 0
device: cpu
architecture:
  name: experimental.dualforce
  model: {{painn: {{cutoff: 3.0, n_layers: 1, n_channels: 8}}}}
  training: {{num_epochs: 1}}
training_set:
  systems: {{read_from: {path}, length_unit: angstrom}}
  targets: {{energy: {{unit: eV}}}}
validation_set: 0.5
final_eval: false
"""
    )
    process = mtt(tmp_path, "train", "options.yaml", "-o", "new/model.pt")
    log, _ = process.communicate(timeout=120)
    assert process.returncode == 0, log
    assert (tmp_path / "new" / "model.pt").exists()
