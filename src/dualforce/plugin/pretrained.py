"""Models that start from checkpoints of metatrain's own architectures."""

from typing import Any, Dict, List, cast

import torch
from metatensor.torch import TensorBlock, TensorMap
from metatrain.utils.abc import ModelInterface
from metatrain.utils.architectures import get_default_hypers
from metatrain.utils.data import DatasetInfo, TargetInfo

from ..nn.metatrain import NAMES, MetatrainBackbone
from ..training.model import NAME, DualForce
from ..training.options import ModelHypers


def _inherit_calibration(model: DualForce, source: Any, name: str) -> None:
    """Take over baseline and scale of a target, so that its head predicts on."""
    calibration: Any = model.calibrations[name]
    composition = source.additive_models[0].model.weights
    if name in composition:
        calibration.baseline.copy_(composition[name].block().values.to(torch.float64))
    scales = source.scaler.model.scales
    if name in scales:
        values = scales[name].block().values.to(torch.float64)
        calibration.scale.copy_(values[:, 0].expand(len(calibration.scale)))


def check_backbone(name: str) -> None:
    """Refuse architectures that are not offered as backbones.

    :param name: name of the architecture of a checkpoint.
    :raises ValueError: if it is none of them.
    """
    if name not in NAMES:
        raise ValueError(
            f"the checkpoint belongs to the architecture '{name}', which is not a "
            f"backbone of '{NAME}'; backbones of metatrain are {', '.join(NAMES)}"
        )


def _load_weights(backbone: MetatrainBackbone, source: Any, new: List[str]) -> None:
    """Copy all weights but those of new heads."""
    own = backbone.model.state_dict()
    weights = {key: v for key, v in source.state_dict().items() if key in own}
    heads = [f".{backbone.inner_names[target]}." for target in new]
    missing = [
        key
        for key in own
        if key not in weights and not any(head in key for head in heads)
    ]
    if missing:
        raise ValueError(
            f"the {backbone.name} checkpoint lacks weights of its own network: "
            f"{', '.join(missing[:5])}"
        )
    backbone.model.load_state_dict({**own, **weights})


def _without_gradients(info: TargetInfo) -> TargetInfo:
    """A target whose gradients are not labelled: direct heads that it has not got are
    then made for the targets of the new data only."""
    block = info.layout.block()
    values = TensorBlock(
        block.values, block.samples, block.components, block.properties
    )
    layout = TensorMap(info.layout.keys, [values])
    return TargetInfo(layout, info.quantity, info.unit, info.description)


def from_metatrain_checkpoint(source: ModelInterface, name: str) -> DualForce:
    """Make the network of a metatrain model the backbone of a new model.

    Heads of targets that dualforce knows (energies and direct forces) are kept, with
    baseline and scale; other heads are dropped.

    :param source: the model.
    :param name: name of its architecture.
    :raises ValueError: if this architecture is not offered as a backbone.
    """
    check_backbone(name)
    hypers: Dict[str, Any] = get_default_hypers(NAME)["model"]
    hypers["backbone"] = name
    hypers[name] = {**source.hypers, "zbl": False}
    hypers["zbl"] = bool(source.hypers.get("zbl", False))
    kept = {
        target: _without_gradients(info)
        for target, info in source.dataset_info.targets.items()
        if info.quantity == "energy" or target.startswith("non_conservative_force")
    }
    info = DatasetInfo(
        length_unit=source.dataset_info.length_unit,
        atomic_types=source.dataset_info.atomic_types,
        targets=kept,
    )
    model = DualForce(cast(ModelHypers, hypers), info)
    backbone = model.backbone
    assert isinstance(backbone, MetatrainBackbone)
    backbone.to(next(source.parameters()).dtype)
    _load_weights(backbone, source, [t for t in model.targets if t not in kept])
    for target in kept:
        _inherit_calibration(model, source, target)
    model.fitted = list(kept)
    return model
