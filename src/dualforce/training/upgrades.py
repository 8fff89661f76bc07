"""Upgrades of checkpoints written by earlier versions.

An upgrade from version ``n`` of the model is a function ``model_update_vn_vn+1`` that
changes the checkpoint in place; trainers likewise.
"""

from typing import Any, Dict, List, Optional

import torch


def upgrade(checkpoint: Dict[str, Any], part: str, version: int) -> Dict[str, Any]:
    """Bring a checkpoint to the current version.

    :param checkpoint: the checkpoint, changed in place.
    :param part: ``"model"`` or ``"trainer"``.
    :param version: current version.
    :raises RuntimeError: if there is no way from the version of the checkpoint.
    """
    key = f"{part}_ckpt_version"
    while checkpoint[key] < version:
        current = checkpoint[key]
        globals()[f"{part}_update_v{current}_v{current + 1}"](checkpoint)
        checkpoint[key] = current + 1
    if checkpoint[key] != version:
        raise RuntimeError(
            f"Unable to upgrade the checkpoint: the checkpoint is using {part} version "
            f"{checkpoint[key]}, while the current {part} version is {version}."
        )
    return checkpoint


def model_update_v1_v2(checkpoint: Dict[str, Any]) -> None:
    """Norms in ``painn`` were not softened, and their softening not stored.

    :param checkpoint: the checkpoint, changed in place.
    """
    _add_softening(checkpoint["model_state_dict"])
    _add_softening(checkpoint["best_model_state_dict"])


def model_update_v2_v3(checkpoint: Dict[str, Any]) -> None:
    """There was no wall, and there is none now; features had no limits. There was no
    ``ace`` network.

    :param checkpoint: the checkpoint, changed in place.
    """
    types = _atomic_types(checkpoint)
    for state in ("model_state_dict", "best_model_state_dict"):
        _add_wall(checkpoint[state], "backbone.", types)
        _add_limits(checkpoint[state], "backbone.")
    _add_ace_hypers(checkpoint["model_data"]["model_hypers"])


def model_update_v3_v4(checkpoint: Dict[str, Any]) -> None:
    """Direct forces of ``ace`` were made of vectors of atoms.

    :param checkpoint: the checkpoint, changed in place.
    """
    hypers = checkpoint["model_data"]["model_hypers"]
    old = hypers["backbone"] == "ace" and hypers["forces"] != "conservative"
    hypers["ace"].setdefault("n_force_channels", 0 if old else 16)


def model_update_v4_v5(checkpoint: Dict[str, Any]) -> None:
    """There was one product of three densities in ``ace``.

    :param checkpoint: the checkpoint, changed in place.
    """
    checkpoint["model_data"]["model_hypers"]["ace"].setdefault("n_triples", 1)


def model_update_v5_v6(checkpoint: Dict[str, Any]) -> None:
    """Messages of ``ace`` were scalars.

    :param checkpoint: the checkpoint, changed in place.
    """
    checkpoint["model_data"]["model_hypers"]["ace"].setdefault("n_tensor_channels", 0)


def trainer_update_v1_v2(checkpoint: Dict[str, Any]) -> None:
    """The same in the weights that a restart goes on from.

    :param checkpoint: the checkpoint, changed in place.
    """
    _add_softening(checkpoint["average_state_dict"])
    _add_softening(checkpoint["best_model_state_dict"])


def trainer_update_v2_v3(checkpoint: Dict[str, Any]) -> None:
    """What a run was trained on was not stored.

    :param checkpoint: the checkpoint, changed in place.
    """
    checkpoint["data_record"] = None


def trainer_update_v3_v4(checkpoint: Dict[str, Any]) -> None:
    """The same in the weights that a restart goes on from.

    :param checkpoint: the checkpoint, changed in place.
    """
    types = _atomic_types(checkpoint)
    _add_wall(checkpoint["average_state_dict"], "module.", types)
    _add_limits(checkpoint["average_state_dict"], "module.")
    _add_wall(checkpoint["best_model_state_dict"], "backbone.", types)
    _add_limits(checkpoint["best_model_state_dict"], "backbone.")


def trainer_update_v4_v5(checkpoint: Dict[str, Any]) -> None:
    """Batches had a number of frames only, and all frames were held in memory.

    :param checkpoint: the checkpoint, changed in place.
    """
    checkpoint["train_hypers"].setdefault("max_atoms_per_batch", None)
    checkpoint["train_hypers"].setdefault("max_memory", 1.0)


def trainer_update_v5_v6(checkpoint: Dict[str, Any]) -> None:
    """Bad frames were always refused.

    :param checkpoint: the checkpoint, changed in place.
    """
    checkpoint["train_hypers"].setdefault("skip_bad_frames", False)


def trainer_update_v6_v7(checkpoint: Dict[str, Any]) -> None:
    """An epoch took each frame once.

    :param checkpoint: the checkpoint, changed in place.
    """
    checkpoint["train_hypers"].setdefault("sampling_weights", None)


def trainer_update_v7_v8(checkpoint: Dict[str, Any]) -> None:
    """Both forces were compared with labels only.

    :param checkpoint: the checkpoint, changed in place.
    """
    checkpoint["train_hypers"].setdefault("force_agreement", 0.0)


def trainer_update_v8_v9(checkpoint: Dict[str, Any]) -> None:
    """A training that diverged went on.

    :param checkpoint: the checkpoint, changed in place.
    """
    checkpoint["progress"].setdefault("rate_factor", 1.0)


def _atomic_types(checkpoint: Dict[str, Any]) -> List[int]:
    return list(checkpoint["model_data"]["dataset_info"].atomic_types)


def _add_wall(
    state: Optional[Dict[str, torch.Tensor]], prefix: str, types: List[int]
) -> None:
    if state is not None:
        like = state[f"{prefix}dtype_reference"]
        shape = (max(types) + 1,) * 2
        state.setdefault(f"{prefix}wall.starts", like.new_zeros(shape))


def _add_limits(state: Optional[Dict[str, torch.Tensor]], prefix: str) -> None:
    # Of the networks these versions had, only `painn` has an embedding of this name.
    if state is not None and f"{prefix}embedding.weight" in state:
        like = state[f"{prefix}embedding.weight"]
        unlimited = like.new_full((2,), float("inf"))
        state.setdefault(f"{prefix}limits", unlimited)


def _add_softening(state: Optional[Dict[str, torch.Tensor]]) -> None:
    if state is None:
        return
    # Every update has a matrix of this name, and no other network does.
    for key, weights in list(state.items()):
        if key.endswith(".mix.weight"):
            softening = key.replace("mix.weight", "softening")
            state[softening] = torch.tensor(1e-6).to(weights)


def _add_ace_hypers(hypers: Dict[str, Any]) -> None:
    # Options of a network that the checkpoint does not use.
    defaults = {
        "cutoff": 4.5,
        "n_layers": 2,
        "n_channels": 64,
        "n_radial": 8,
        "l_max": 3,
        "n_neighbors": 40.0,
    }
    hypers.setdefault("ace", defaults)
