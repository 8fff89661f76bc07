"""Where metatrain offers no door.

Three functions of metatrain are replaced in processes that train this architecture: the
one that reads energies (see :mod:`dualforce.architecture.labels`), the one that makes a
data set, which then remembers its file for messages, and the one that ``mtt train``
opens checkpoints with, so that a PET checkpoint can become the backbone of a new model
and unusable ones are refused with the reason. Runs of other architectures in the same
process get metatrain's own functions.
"""

from types import ModuleType
from typing import Any, Dict, Literal, Optional

import metatrain.cli.train as cli_train
import metatrain.utils.data.readers.ase as ase_reader
from metatrain.utils.abc import ModelInterface

from .labels import read_energy
from .model import NAME, DualForce
from .pretrained import check_backbone, from_metatrain_checkpoint
from .trainer import Trainer


_import_architecture = cli_train.import_architecture
_model_from_checkpoint = cli_train.model_from_checkpoint
_get_dataset = cli_train.get_dataset
_read_energy = ase_reader.read_energy

_state = {"active": True}

Context = Literal["restart", "finetune", "export"]


class _Refused:
    """Stands for the model of a checkpoint that cannot be used.

    metatrain replaces an error while a checkpoint is opened by one that does not tell
    the reason, so the error is raised at the next step, ``restart``.
    """

    def __init__(self, reason: Exception) -> None:
        self.reason = reason

    def restart(self, *_: Any, **__: Any) -> None:
        raise self.reason


def _watch_architecture(name: str) -> ModuleType:
    _state["active"] = name == NAME
    return _import_architecture(name)


def _check_versions(checkpoint: Dict[str, Any], context: Context) -> None:
    current = {"model": DualForce.__checkpoint_version__}
    if context == "restart":
        current["trainer"] = Trainer.__checkpoint_version__
    for part, version in current.items():
        found: Optional[int] = checkpoint.get(f"{part}_ckpt_version")
        if found is None:
            raise ValueError(f"the checkpoint has no {part}, it cannot be used here")
        if found > version:
            raise ValueError(
                f"the checkpoint was written by a newer version of dualforce ({part} "
                f"version {found}, this one reads up to {version}); update dualforce"
            )


def _open(checkpoint: Any, context: Context) -> Any:
    if not isinstance(checkpoint, dict) or "architecture_name" not in checkpoint:
        raise ValueError(
            "this is not a checkpoint of a training; give a file that ends in `.ckpt` "
            "(exported models, `.pt`, cannot be trained)"
        )
    name = str(checkpoint["architecture_name"])
    if name == NAME:
        _check_versions(checkpoint, context)
        return _model_from_checkpoint(checkpoint, context)
    if context == "restart":
        raise ValueError(
            f"the checkpoint belongs to the architecture '{name}', not to '{NAME}'; a "
            "run can only be restarted from its own checkpoints (to start from the "
            "weights of a PET model, use `finetune: read_from`)"
        )
    check_backbone(name)
    inner = _model_from_checkpoint(checkpoint, context)
    assert isinstance(inner, ModelInterface)
    return from_metatrain_checkpoint(inner, name)


def _open_checkpoint(checkpoint: Any, context: Context) -> Any:
    if not _state["active"]:
        return _model_from_checkpoint(checkpoint, context)
    try:
        return _open(checkpoint, context)
    except Exception as error:
        return _Refused(error)


def _make_dataset(options: Any) -> Any:
    result = _get_dataset(options)
    if _state["active"]:
        result[0].read_from = options["systems"]["read_from"]
    return result


def _read(target_name: str, target: Any) -> Any:
    return (read_energy if _state["active"] else _read_energy)(target_name, target)


def install() -> None:
    """Replace the functions, once."""
    cli_train.import_architecture = _watch_architecture
    cli_train.model_from_checkpoint = _open_checkpoint
    cli_train.get_dataset = _make_dataset
    ase_reader.read_energy = _read
