"""The functions of metatrain that are replaced, and by what.

:class:`Patch` describes a replacement; :func:`install` checks that metatrain's function
is the one the replacement was written for, and replaces it.
"""

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from types import ModuleType
from typing import Any, Dict, Literal, Optional, Tuple

import metatrain.cli.train as cli_train
import metatrain.utils.data.readers.ase as ase_reader
from metatrain.utils.abc import ModelInterface

from ..distillation.training import TeacherTraining
from ..training.contents import atomic_types, for_statistics
from ..training.distributed import check_distributed
from ..training.finetuning import check_finetune
from ..training.loss import check_losses
from ..training.model import NAME, DualForce
from ..training.ranges import check_ranges
from ..training.reading import read_energy
from ..training.stages import make_stages
from ..training.trainer import Trainer
from .datasets import DataSets, has_slab_stresses
from .files import arguments_of_train_model, check_files
from .pretrained import check_backbone, from_metatrain_checkpoint


Context = Literal["restart", "finetune", "export"]


class MetatrainChangedError(RuntimeError):
    """The installed metatrain is not one that dualforce was written for."""


class Training:
    """What is known of the ``mtt train`` that runs in this process."""

    def __init__(self) -> None:
        self.is_ours = True
        """Whether it trains this architecture, as far as is known."""
        self.teacher = TeacherTraining()
        self.datasets = DataSets()

    def begin(self, name: str, options: Dict[str, Any]) -> None:
        """Take note of the architecture that is trained, and of its options."""
        self.is_ours = name == NAME
        teacher = options["training"].get("teacher") or {} if self.is_ours else {}
        self.teacher.begin(teacher)
        self.datasets = DataSets(options["model"] if self.is_ours else None)


training = Training()


# ---------------------------------------------------------------------- replacements


def _check_options(original: Callable[..., Any]) -> Callable[..., Any]:
    def check_architecture_options(name: str, options: Dict[str, Any]) -> None:
        original(name=name, options=options)
        training.begin(name, options)
        if training.is_ours:
            _check_own_options(options["model"], options["training"])

    return check_architecture_options


def _check_own_options(model: Dict[str, Any], train: Dict[str, Any]) -> None:
    """Check all that can be checked before data are read.

    :raises ValueError: if options make no sense, or files cannot be read or written.
    """
    check_ranges(model, "model")
    check_ranges(train, "training")
    check_finetune(train["finetune"])
    check_losses(train["loss"])
    make_stages(train, model)
    check_distributed(train)
    check_files(arguments_of_train_model(), train)


def _get_dataset(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_dataset(options: Any) -> Any:
        if not training.is_ours:
            return original(options)
        has_teacher = training.teacher.is_on
        make = training.teacher.dataset if has_teacher else original
        return training.datasets.make(options, make, not has_teacher)

    return get_dataset


def _eval_targets(original: Callable[..., Any]) -> Callable[..., Any]:
    def eval_targets(model: Any, dataset: Any, options: Any, **others: Any) -> None:
        if training.is_ours and has_slab_stresses(dataset, options):
            logging.warning(
                "This data set is not evaluated, since metatrain cannot give the model "
                "the volumes of slabs, which their direct stresses need. `dualforce "
                "diagnose` can"
            )
            return
        original(model, dataset, options, **others)

    return eval_targets


def _get_atomic_types(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_atomic_types(datasets: Any) -> Any:
        if not training.is_ours:
            return original(datasets)
        return atomic_types(datasets, original)

    return get_atomic_types


def _print_stats(original: Callable[..., Any]) -> Callable[..., Any]:
    def print_stats(name: str, datasets: Any, dataset_info: Any) -> None:
        parts = for_statistics(datasets) if training.is_ours else datasets
        original(name, parts, dataset_info)

    return print_stats


def _read_energy(original: Callable[..., Any]) -> Callable[..., Any]:
    def read(target_name: str, target: Any) -> Any:
        return (read_energy if training.is_ours else original)(target_name, target)

    return read


def _open_checkpoint(original: Callable[..., Any]) -> Callable[..., Any]:
    def model_from_checkpoint(checkpoint: Any, context: Context) -> Any:
        if not training.is_ours:
            return original(checkpoint, context)
        try:
            return _open(original, checkpoint, context)
        except Exception as error:
            return _Refused(error)

    return model_from_checkpoint


class _Refused:
    """Stands for the model of a checkpoint that cannot be used.

    metatrain replaces an error while a checkpoint is opened by one that does not tell
    the reason, so the error is raised at the next step, ``restart``.
    """

    def __init__(self, reason: Exception) -> None:
        self.reason = reason

    def restart(self, *_: Any, **__: Any) -> None:
        raise self.reason


def _open(original: Callable[..., Any], checkpoint: Any, context: Context) -> Any:
    if not isinstance(checkpoint, dict) or "architecture_name" not in checkpoint:
        raise ValueError(
            "this is not a checkpoint of a training; give a file that ends in `.ckpt` "
            "(exported models, `.pt`, cannot be trained)"
        )
    name = str(checkpoint["architecture_name"])
    if name == NAME:
        _check_versions(checkpoint, context)
        return original(checkpoint, context)
    if context == "restart":
        raise ValueError(
            f"the checkpoint belongs to the architecture '{name}', not to '{NAME}'; a "
            "run can only be restarted from its own checkpoints (to start from the "
            "weights of a PET model, use `finetune: read_from`)"
        )
    check_backbone(name)
    inner = original(checkpoint, context)
    assert isinstance(inner, ModelInterface)
    return from_metatrain_checkpoint(inner, name)


def _check_versions(checkpoint: Dict[str, Any], context: Context) -> None:
    current = {"model": DualForce.__checkpoint_version__}
    if context == "restart":
        current["trainer"] = Trainer.__checkpoint_version__
    for part, number in current.items():
        found: Optional[int] = checkpoint.get(f"{part}_ckpt_version")
        if found is None:
            raise ValueError(f"the checkpoint has no {part}, it cannot be used here")
        if found > number:
            raise ValueError(
                f"the checkpoint was written by a newer version of dualforce ({part} "
                f"version {found}, this one reads up to {number}); update dualforce"
            )


# -------------------------------------------------------------------------- installing


@dataclass(frozen=True)
class Patch:
    """A function of metatrain that is replaced."""

    module: ModuleType
    name: str
    parameters: Tuple[str, ...]
    """Of the function that the replacement was written for."""
    replace: Callable[[Callable[..., Any]], Callable[..., Any]]
    """Makes the replacement from the original."""

    @property
    def place(self) -> str:
        """Full name of the function."""
        return f"{self.module.__name__}.{self.name}"

    def check(self) -> None:
        """
        :raises MetatrainChangedError: if the function is missing, or another one.
        """
        function = getattr(self.module, self.name, None)
        if function is None:
            self._refuse("it is not there")
        found = tuple(inspect.signature(function).parameters)  # type: ignore[arg-type]
        if found != self.parameters:
            self._refuse(
                f"its parameters are ({', '.join(found)}), not "
                f"({', '.join(self.parameters)})"
            )

    def _refuse(self, reason: str) -> None:
        raise MetatrainChangedError(
            f"metatrain {version('metatrain')} changed `{self.place}`: {reason}. This "
            "version of dualforce needs another one: pip install "
            "'metatrain>=2026.4,<2026.5', or update dualforce"
        )


PATCHES = (
    Patch(cli_train, "check_architecture_options", ("name", "options"), _check_options),
    Patch(cli_train, "get_dataset", ("options",), _get_dataset),
    Patch(
        cli_train,
        "_eval_targets",
        (
            "model",
            "dataset",
            "options",
            "batch_size",
            "check_consistency",
            "writer",
            "warm_up",
        ),
        _eval_targets,
    ),
    Patch(
        cli_train, "model_from_checkpoint", ("checkpoint", "context"), _open_checkpoint
    ),
    Patch(cli_train, "get_atomic_types", ("datasets",), _get_atomic_types),
    Patch(
        cli_train, "_print_stats", ("name", "datasets", "dataset_info"), _print_stats
    ),
    Patch(ase_reader, "read_energy", ("target_name", "target"), _read_energy),
)

_installed: Dict[str, Callable[..., Any]] = {}


def install() -> None:
    """Replace the functions, once.

    :raises MetatrainChangedError: if metatrain's functions are not the expected ones;
        nothing is replaced then.
    """
    if _installed:
        return
    for patch in PATCHES:
        patch.check()
    for patch in PATCHES:
        original = getattr(patch.module, patch.name)
        _installed[patch.place] = original
        setattr(patch.module, patch.name, patch.replace(original))
    Trainer.after_training.append(training.teacher.finish)
