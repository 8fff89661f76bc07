"""Upgrades of checkpoints written by earlier versions.

An upgrade from version ``n`` of the model is a function ``model_update_vn_vn+1`` that
changes the checkpoint in place; trainers likewise.
"""

from typing import Any, Dict


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
