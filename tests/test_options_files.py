"""Every file in ``options/`` trains and exports, with fewer frames and epochs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from metatomic.torch import load_atomistic_model
from metatrain.cli.train import train_model
from metatrain.utils.io import load_model
from omegaconf import OmegaConf


ROOT = Path(__file__).parents[1]
TRAINING = sorted(
    path.stem for path in (ROOT / "options").glob("*.yaml") if path.stem != "eval"
)
SMALL_NETWORKS = {
    "pet": {"d_pet": 8, "d_head": 8, "d_node": 8, "d_feedforward": 8, "num_heads": 2},
    "soap_bpnn": {
        "soap": {"max_angular": 2, "max_radial": 2},
        "bpnn": {"num_neurons_per_layer": 4},
    },
    "painn": {"n_channels": 8, "n_layers": 1},
    "ace": {"n_channels": 8, "n_layers": 1},
}


def cut(name: str) -> Any:
    """The options of a file for a run of seconds."""
    options = OmegaConf.load(ROOT / "options" / f"{name}.yaml")
    architecture = options.architecture
    training = architecture.training
    training.batch_size = 2
    if "stages" in training:
        for stage in training.stages:
            stage.num_epochs = 1
    else:
        training.num_epochs = 1
        training.max_minutes = None
    if name not in ("finetune", "accelerate-head"):
        backbone = architecture.get("model", {}).get("backbone", "ace")
        small = {"model": {backbone: SMALL_NETWORKS[backbone]}}
        options.architecture = OmegaConf.merge(architecture, small)
    for split, frames in (("training_set", [0, 1, 2]), ("validation_set", [3, 4])):
        if not isinstance(options[split], float):
            options[split].indices = frames
            systems = options[split].get("systems")
            if systems is not None:
                systems.read_from = str(ROOT / systems.read_from)
        else:
            options[split] = {"indices": frames}
    options.test_set = 0.0
    options.device = "cpu"
    options.final_eval = False
    return options


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to fine-tune from."""
    folder = tmp_path_factory.mktemp("first")
    train_model(cut("hybrid"), folder / "model.pt", checkpoint_dir=folder)
    # metatrain writes the checkpoint of the final model into the working directory
    return next(folder.glob("*.ckpt"))


@pytest.mark.parametrize("name", TRAINING)
def test_trains_and_exports(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    """The exported model has the outputs that the file promises."""
    monkeypatch.chdir(tmp_path)
    options = cut(name)
    training = options.architecture.training
    if "finetune" in training:
        training.finetune.read_from = str(checkpoint)
    if "teacher" in training:
        training.teacher.model = str(checkpoint)
        training.teacher.check_minutes = 0.0
    train_model(options, "model.pt", checkpoint_dir=tmp_path)

    file = "combined.pt" if name == "accelerate-student" else "model.pt"
    outputs = set(load_atomistic_model(file).capabilities().outputs)
    direct = {"non_conservative_force", "non_conservative_stress"}
    assert "energy" in outputs
    no_direct = name in ("conservative", "short-range")
    assert not direct & outputs if no_direct else direct <= outputs
    model = load_model("model.ckpt")
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
