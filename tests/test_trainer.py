"""The loss, its parts and what a run reports."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import pytest
import torch
from metatrain.utils.data.readers.ase import read as metatrain_read
from train_helpers import (
    CPU,
    PAINN,
    WATER,
    clusters,
    message_of,
    mtt,
    options,
    prepare,
    read_rows,
    run_cli,
    train,
    write,
)

from dualforce.training.batches import StepFrames
from dualforce.training.data import Frame, collate, make_frames
from dualforce.training.distributed import Processes
from dualforce.training.epoch_log import EpochReport, ErrorSums
from dualforce.training.fitting import fit_calibration, to_raw_units
from dualforce.training.loss import Term
from dualforce.training.model import DualForce
from dualforce.training.stages import Stage, conservative_count, make_stages
from dualforce.training.terms import HUBER_DELTA, make_terms, weight_in_stage
from dualforce.training.trainer import MOST_RETURNS, Trainer


F64 = torch.float64
FORCES, VIRIAL = "energy_positions_gradients", "energy_strain_gradients"
DIRECT, DIRECT_STRESS = "non_conservative_force", "non_conservative_stress"


def _ready(given: Dict[str, Any], directory: Path) -> Tuple[DualForce, Trainer]:
    """A trainer before its first step."""
    model, trainer, dataset = prepare(given)
    frames = make_frames([dataset], "training", model, False)
    fit_calibration(model, frames, {}, True)
    trainer.model = model
    trainer.processes = Processes(rank=0, size=1, device=CPU[0])
    trainer.train_frames = to_raw_units(model, frames)
    trainer.terms = make_terms(model, trainer.train_frames, trainer.hypers)
    trainer.checkpoint_path = directory / "checkpoint.ckpt"
    return model, trainer


def _stage(fraction: float, **weights: float) -> Stage:
    return Stage("test", 1, None, 1e-3, fraction, weights)


class _Recorder:
    """Stands for the optimiser and keeps the gradients it is given."""

    def __init__(self, model: DualForce) -> None:
        self.parameters = list(model.backbone.parameters())
        self.gradients: List[torch.Tensor] = []

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        flat = [p.grad.reshape(-1) for p in self.parameters if p.grad is not None]
        self.gradients.append(torch.cat(flat))

    def update_parameters(self, _: Any) -> None:
        """The average is of no interest."""


def _record(trainer: Trainer) -> _Recorder:
    trainer.hypers["grad_clip_norm"] = 1e9
    recorder = _Recorder(trainer.model)
    trainer.optimizer = recorder  # type: ignore[assignment]
    trainer.average = recorder  # type: ignore[assignment]
    return recorder


def _step(trainer: Trainer, frames: List[Frame], stage: Stage) -> float:
    terms = [weight_in_stage(term, stage, trainer.model) for term in trainer.terms]
    step = StepFrames.of(frames, [term.name for term in trainer.terms])
    return float(trainer._step(step, stage, [t for t in terms if t.weight > 0]))


# ---------------------------------------------------------------- reference of a loss


def _raw(model: DualForce, frame: Frame, names: List[str]) -> Dict[str, torch.Tensor]:
    batch = collate([frame], model.per_atom(), F64, CPU[0])
    with torch.no_grad():
        return model.backbone.predict(batch.graph, names)


def _energy(model: DualForce, frame: Frame, positions: Any, cell: Any) -> float:
    moved = replace(frame, positions=torch.tensor(positions), cell=torch.tensor(cell))
    return float(_raw(model, moved, ["energy"])["energy"].sum())


def _numerical_forces(model: DualForce, frame: Frame, h: float = 1e-4) -> np.ndarray:
    positions, cell = frame.positions.numpy(), frame.cell.numpy()
    forces = np.zeros_like(positions)
    for index in np.ndindex(*positions.shape):
        step = np.zeros_like(positions)
        step[index] = h
        high = _energy(model, frame, positions + step, cell)
        forces[index] = (_energy(model, frame, positions - step, cell) - high) / (2 * h)
    return forces


def _numerical_virial(model: DualForce, frame: Frame, h: float = 1e-4) -> np.ndarray:
    positions, cell = frame.positions.numpy(), frame.cell.numpy()
    virial = np.zeros((3, 3))
    for index in np.ndindex(3, 3):
        strain = np.zeros((3, 3))
        strain[index] = h
        energies = [
            _energy(model, frame, positions @ bend, cell @ bend)
            for bend in (np.eye(3) + strain, np.eye(3) - strain)
        ]
        virial[index] = (energies[0] - energies[1]) / (2 * h)
    return virial


def _predictions(model: DualForce, frame: Frame) -> Dict[str, np.ndarray]:
    """All that the loss compares, in raw units; totals divided by atoms."""
    raw = _raw(model, frame, ["energy", DIRECT, DIRECT_STRESS])
    n_atoms = len(frame)
    stress = raw[DIRECT_STRESS].sum(0)[:, :, 0].numpy() / n_atoms
    return {
        "energy": raw["energy"].sum().numpy() / n_atoms,
        FORCES: _numerical_forces(model, frame),
        VIRIAL: _numerical_virial(model, frame) / n_atoms,
        DIRECT: raw[DIRECT][:, :, 0].numpy(),
        DIRECT_STRESS: 0.5 * (stress + stress.T),
    }


def _penalty(kind: str, x: np.ndarray, delta: float) -> np.ndarray:
    if kind == "mse":
        return x**2
    if kind == "mae":
        return np.abs(x)
    inside = 0.5 * x**2 / delta
    return np.where(np.abs(x) < delta, inside, np.abs(x) - 0.5 * delta)


def _reference(trainer: Trainer, frames: List[Frame], weights: Dict[str, float],
               kind: str, delta: float) -> float:  # fmt: skip
    total = 0.0
    for name, weight in weights.items():
        labelled = [frame for frame in frames if name in frame.labels]
        residuals, labels = [], []
        per_atom = name in (FORCES, DIRECT)
        for frame in labelled:
            label = frame.labels[name].numpy().squeeze(-1)
            prediction = _predictions(trainer.model, frame)[name]
            label = label if per_atom else label[0] / len(frame)
            residuals.append(np.ravel(prediction - label))
        for frame in trainer.train_frames:
            if name in frame.labels:
                values = frame.labels[name].numpy()
                labels.append(np.ravel(values if per_atom else values / len(frame)))
        spread = np.sqrt(np.mean(np.concatenate(labels) ** 2))
        errors = np.concatenate(residuals) / spread
        total += weight * float(_penalty(kind, errors, delta).mean())
    return total


@pytest.mark.parametrize("kind", ["mse", "mae", "huber"])
def test_loss_of_a_batch(kind: str, tmp_path: Path) -> None:
    """Every term against finite differences and formulae written out here; one frame
    lacks forces, another the stress."""
    frames = clusters(3)
    del frames[0].arrays["forces"], frames[1].info["stress"]
    path = write(tmp_path / "water.xyz", frames)
    loss = {
        "energy": {
            "type": kind,
            "weight": 2.0,
            "forces": {"type": kind, "weight": 3.0},
            "stress": {"type": kind, "weight": 5.0},
        }
    }
    given = options(
        path,
        {
            "loss": loss,
            "energy_weight": 0.5,
            "stress_weight": 0.3,
            "direct_weight": 0.7,
        },
    )
    _, trainer = _ready(given, tmp_path)
    _record(trainer)
    weights = {
        "energy": 2.0 * 0.5,
        FORCES: 3.0 * 1.1,
        VIRIAL: 5.0 * 0.3,
        DIRECT: 3.0 * 0.7,
        DIRECT_STRESS: 5.0 * 0.3 * 0.7,
    }
    found = _step(trainer, trainer.train_frames, _stage(1.0, forces=1.1))
    expected = _reference(trainer, trainer.train_frames, weights, kind, HUBER_DELTA)
    assert found == pytest.approx(expected, rel=2e-6)


def test_frames_without_forces_give_no_force_gradient(tmp_path: Path) -> None:
    """The forces' share of the gradient is that of the labelled frame alone."""
    frames = clusters(3)
    for atoms in frames:
        del atoms.info["stress"]
    del frames[0].arrays["forces"], frames[2].arrays["forces"]
    path = write(tmp_path / "water.xyz", frames)
    _, trainer = _ready(options(path), tmp_path)
    recorder = _record(trainer)
    only_forces = _stage(1.0, energy=0.0)
    _step(trainer, trainer.train_frames, only_forces)
    _step(trainer, trainer.train_frames[1:2], only_forces)
    _step(trainer, trainer.train_frames[:1], only_forces)
    together, alone, without = recorder.gradients
    assert alone.norm() > 1e-3
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-13)
    assert without.abs().max() == 0.0


# ------------------------------------------------------------- conservative fraction


@pytest.mark.parametrize("fraction", [0.25, 0.1, 0.3, 1.0, 0.0])
@pytest.mark.parametrize("sizes", [[4], [3, 3, 2], [1], [7, 5]])
def test_conservative_count_keeps_the_share(fraction: float, sizes: List[int]) -> None:
    """At any moment to less than a frame, whatever the batches."""
    seen = chosen = 0
    for step in range(300):
        size = sizes[step % len(sizes)]
        count = conservative_count(seen, size, fraction)
        assert math.floor(fraction * size) <= count <= math.ceil(fraction * size)
        seen, chosen = seen + size, chosen + count
        assert abs(chosen - fraction * seen) < 1.0
    assert conservative_count(0, 10, 0.1) == 1


@pytest.mark.parametrize("fraction, batch", [(0.25, 4), (0.5, 4), (0.25, 2)])
def test_conservative_fraction_is_compensated(
    fraction: float, batch: int, tmp_path: Path
) -> None:
    """The mean gradient over all choices of frames is that of fraction one."""
    path = write(tmp_path / "water.xyz", clusters(4))
    _, trainer = _ready(options(path), tmp_path)
    recorder = _record(trainer)
    _step(trainer, trainer.train_frames, _stage(1.0))
    # Each frame takes each place once; the count of conservative frames goes through
    # its whole period.
    for rotation in range(4):
        for start in range(0, 4, batch):
            order = [(start + rotation + i) % 4 for i in range(batch)]
            frames = [trainer.train_frames[i] for i in order]
            _step(trainer, frames, _stage(fraction))
            trainer.progress.frames_in_stage += batch
    mean = torch.stack(recorder.gradients[1:]).mean(0)
    torch.testing.assert_close(mean, recorder.gradients[0], rtol=1e-9, atol=1e-12)


def test_water_is_learnt(tmp_path: Path) -> None:
    """Both forces of liquid water come out better than the spread of the labels."""
    frames = metatrain_read(str(WATER), ":12")
    for atoms in frames:
        atoms.calc = None
    path = write(tmp_path / "water.xyz", frames)
    network = {"cutoff": 4.0, "n_layers": 2, "n_channels": 16}
    given = options(
        path,
        {"num_epochs": 45, "batch_size": 2, "ema_decay": 0.9, "learning_rate": 1e-2},
        {"painn": network},
    )
    _, trainer = train(given, tmp_path, torch.float32)
    errors = dict(
        zip(
            (t.name for t in trainer.terms), trainer._validate([])[0].mae(), strict=True
        )
    )
    spread = np.abs(np.concatenate([a.arrays["forces"] for a in frames])).mean()
    assert errors[FORCES] < 0.35 * spread
    assert errors[DIRECT] < 0.35 * spread
    assert errors["energy"] < 0.01


# ----------------------------------------------------------------- kinds of targets


def _first_loss(given: Dict[str, Any], directory: Path) -> Tuple[float, Trainer]:
    _, trainer = _ready(given, directory)
    _record(trainer)
    fraction = make_stages(trainer.hypers, trainer.model.hypers)[0]
    return _step(trainer, trainer.train_frames, fraction), trainer


def test_explicit_direct_force_equals_the_derived_one(tmp_path: Path) -> None:
    """Same labels, same loss."""
    frames = clusters(4)
    for atoms in frames:
        del atoms.info["stress"]
    path = write(tmp_path / "water.xyz", frames)
    derived, _ = _first_loss(options(path), tmp_path)
    given = options(path)
    given["training_set"]["targets"][DIRECT] = {
        "key": "forces",
        "sample_kind": "atom",
        "type": {"cartesian": {"rank": 1}},
        "unit": "eV/angstrom",
    }
    explicit, trainer = _first_loss(given, tmp_path)
    assert sorted(t.name for t in trainer.terms) == ["energy", FORCES, DIRECT]
    assert explicit == pytest.approx(derived, rel=1e-12)


def test_explicit_direct_force_alone(tmp_path: Path) -> None:
    """Energy without gradients, and a direct force of its own; NaN is refused."""
    frames = clusters(4)
    path = write(tmp_path / "water.xyz", frames)
    given = options(path, energy={"forces": False, "stress": False})
    given["training_set"]["targets"][DIRECT] = {
        "key": "forces",
        "sample_kind": "atom",
        "type": {"cartesian": {"rank": 1}},
        "unit": "eV/angstrom",
    }
    _, trainer = train(given, tmp_path)
    assert sorted(t.name for t in trainer.terms) == ["energy", DIRECT]
    frames[2].arrays["forces"][0, 1] = np.nan
    write(path, frames)
    message = message_of(lambda: run_cli(tmp_path, given))
    assert f"'{path}', frame 2 (counted from 0): the label '{DIRECT}' is NaN" in message


@pytest.mark.parametrize(
    "forces, names",
    [
        ("hybrid", ["energy", FORCES, VIRIAL, DIRECT, DIRECT_STRESS]),
        ("conservative", ["energy", FORCES, VIRIAL]),
        ("direct", ["energy", DIRECT, DIRECT_STRESS]),
    ],
)
def test_option_forces(forces: str, names: List[str], tmp_path: Path) -> None:
    """What is trained with each value of the option."""
    path = write(tmp_path / "water.xyz", clusters(4))
    model = {"painn": dict(PAINN), "forces": forces}
    _, trainer = train(options(path, model=model), tmp_path)
    assert [t.name for t in trainer.terms] == names
    assert np.isfinite(trainer.progress.best_metric)
    assert trainer.progress.epoch == 1


def test_energy_variant(tmp_path: Path) -> None:
    """`energy/pbe` trains as `energy` does, and names its direct force after itself."""
    path = write(tmp_path / "water.xyz", clusters(4))
    plain, _ = _first_loss(options(path), tmp_path)
    given = options(path)
    targets = given["training_set"]["targets"]
    targets["energy/pbe"] = {
        **targets.pop("energy"),
        "quantity": "energy",
        "key": "energy",
    }
    variant, trainer = _first_loss(given, tmp_path)
    assert variant == pytest.approx(plain, rel=1e-10)
    report = EpochReport(trainer.terms, trainer.model)
    assert report.labels == [
        "energy[energy/pbe]",
        "forces[energy/pbe]",
        "stress[energy/pbe]",
        "non_conservative_force/pbe",
        "non_conservative_stress/pbe",
    ]


# ------------------------------------------------------------------ stages and time


def test_stages_hand_over_the_best_model(tmp_path: Path) -> None:
    """Each stage starts from the best model of the one before."""
    path = write(tmp_path / "water.xyz", clusters(4))
    stages = [
        {"name": "direct", "num_epochs": 3, "conservative_fraction": 0.0},
        {"name": "both", "num_epochs": 2, "learning_rate": 1e-9},
    ]
    model, trainer, dataset = prepare(options(path, {"stages": stages}))
    first_best: Dict[str, torch.Tensor] = {}
    enter = trainer._enter_stage

    def keep(index: int) -> None:
        assert trainer.best_state is not None
        first_best.update({k: v.clone() for k, v in trainer.best_state.items()})
        enter(index)

    trainer._enter_stage = keep  # type: ignore[method-assign]
    trainer.train(model, F64, CPU, [dataset], [dataset], str(tmp_path))
    assert trainer.progress.stage == 1
    assert trainer.progress.epoch == 4
    assert trainer.progress.epochs_in_stage == 2
    # the learning rate of the second stage moves nothing
    for key, value in first_best.items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol=1e-7)


def test_stages_take_what_they_leave_out_from_the_run(tmp_path: Path) -> None:
    """And keep what they say."""
    path = write(tmp_path / "water.xyz", clusters(4))
    stages = [{"num_epochs": 1}, {"num_epochs": 1, "jacobian_symmetry": 0.0}]
    training = {"stages": stages, "jacobian_symmetry": 0.3, "learning_rate": 2e-3}
    given = options(path, training)
    model, trainer, _ = prepare(given)
    made = make_stages(trainer.hypers, model.hypers)
    assert [stage.jacobian_symmetry for stage in made] == [0.3, 0.0]
    assert [stage.learning_rate for stage in made] == [2e-3, 2e-3]


@pytest.mark.parametrize(
    "backbone, batch_size, fraction, rate",
    [
        ("painn", 33, 1.0, 4e-3),
        ("painn", 34, 0.25, 1e-2),
        ("ace", 33, 1.0, 2.5e-3),
        ("ace", 34, 0.25, 1e-2),
    ],
)
def test_small_batches_have_defaults_of_their_own(
    backbone: str, batch_size: int, fraction: float, rate: float, tmp_path: Path
) -> None:
    """Those of fewer than 200 atoms; these frames have six."""
    path = write(tmp_path / "water.xyz", clusters(4))
    training = {"batch_size": batch_size, "conservative_fraction": None}
    _, trainer = _ready(options(path, training, {"backbone": backbone}), tmp_path)
    (stage,) = trainer._make_stages()
    assert stage.conservative_fraction == fraction
    assert stage.force_agreement == (0.0 if batch_size == 33 else 1.0)
    assert stage.learning_rate == rate


def test_students_agree_with_their_teacher_alone(tmp_path: Path) -> None:
    """Not with energies of their own, which nobody uses."""
    path = write(tmp_path / "water.xyz", clusters(4))
    model, trainer, _ = prepare(options(path))
    found = {}
    for teacher in (None, "teacher.pt"):
        hypers = {**trainer.hypers, "teacher": {"model": teacher}}
        (stage,) = make_stages(hypers, model.hypers)
        found[teacher] = stage.force_agreement
    assert found == {None: 1.0, "teacher.pt": 0.0}


def test_max_minutes_ends_in_time(tmp_path: Path) -> None:
    """And uses the time it is given."""
    path = write(tmp_path / "water.xyz", clusters(4))
    given = options(path, {"num_epochs": None, "max_minutes": 0.05})
    start = time.monotonic()
    _, trainer = train(given, tmp_path)
    assert 3.0 <= time.monotonic() - start < 9.0
    assert trainer.progress.epoch > 2
    assert 3.0 <= trainer.progress.seconds_in_stage < 9.0


def test_log_and_csv(tmp_path: Path) -> None:
    """The line of an epoch, and the same numbers in the file."""
    path = write(tmp_path / "water.xyz", clusters(4))
    (tmp_path / "options.yaml").write_text(
        f"""
seed: 1
device: cpu
base_precision: 64
architecture:
  name: experimental.dualforce
  model: {{painn: {PAINN}}}
  training:
    batch_size: 2
    stages:
      - {{name: warm, num_epochs: 2, conservative_fraction: 0.0}}
      - {{name: mixed, num_epochs: 1}}
training_set:
  systems: {{read_from: {path}, length_unit: angstrom}}
  targets: {{energy: {{unit: eV}}}}
validation_set: 0.5
final_eval: false
"""
    )
    process = mtt(tmp_path, "train", "options.yaml")
    log, _ = process.communicate(timeout=120)
    assert process.returncode == 0, log
    lines = [line for line in log.splitlines() if "| stage" in line]
    assert [line.split("Epoch ")[1].split(" |")[0] for line in lines] == ["0", "1", "2"]
    assert "stage 1/2 warm | 0 min" in lines[0] and "left | loss" in lines[0]
    assert "stage 2/2 mixed" in lines[2]
    for quantity in ("energy", "forces", "non_conservative_force"):
        assert f"{quantity} " in lines[0].split("MAE:")[1]

    rows = read_rows(next(tmp_path.glob("outputs/*/*/train.csv")))
    assert [row["Epoch"] for row in rows] == ["0", "1", "2"]
    checkpoint = torch.load(
        next(tmp_path.glob("outputs/*/*/checkpoint.ckpt")), weights_only=False
    )
    assert checkpoint["progress"]["stage"] == 1
    errors = [float(row["validation forces MAE"]) for row in rows]
    assert all(math.isfinite(error) and error > 0 for error in errors)
    assert f"forces {errors[2]:.4g} meV/A" in lines[2]


def test_errors_in_physical_units() -> None:
    """Hand-computed means, roots and products."""
    term = Term("energy", "energy", 1.0, 0.5, 2.0, "mse", 1.0, False)
    sums = ErrorSums([term])
    sums.add(0, torch.tensor([1.0, -3.0]), term)
    assert sums.mae() == [4.0]
    assert sums.rmse() == pytest.approx([2.0 * math.sqrt(5.0)])
    assert sums.metric("mae_prod", [term], 0.0) == 2.0
    assert sums.metric("loss", [term], 0.0) == pytest.approx((4.0 + 36.0) / 2)


# ----------------------------------------------------------------------- never NaN


def test_gradients_that_are_not_finite(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From a frame that always gives them they stop the run with its name; the
    checkpoint before stays."""
    path = write(tmp_path / "water.xyz", clusters(4))
    model, trainer, dataset = prepare(options(path, {"num_epochs": 9}))
    finish = trainer._finish_epoch

    def spoil(*arguments: Any) -> None:
        finish(*arguments)
        if trainer.progress.epoch == 1:
            frame = trainer.train_frames[2]
            frame.labels["energy"][:] = float("inf")

    trainer._finish_epoch = spoil  # type: ignore[method-assign]
    message = message_of(
        lambda: trainer.train(model, F64, CPU, [dataset], [dataset], str(tmp_path))
    )
    assert "the loss or its gradient is not finite in step" in message
    assert "frame 2 (counted from 0)" in message
    assert caplog.text.count("goes on from the weights of epoch") == MOST_RETURNS
    checkpoint = torch.load(tmp_path / "checkpoint.ckpt", weights_only=False)
    assert checkpoint["epoch"] < 8
    for value in checkpoint["model_state_dict"].values():
        assert torch.isfinite(value).all()


def test_weights_that_are_not_finite(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The training goes on from the best ones."""
    path = write(tmp_path / "water.xyz", clusters(4))
    model, trainer, dataset = prepare(options(path, {"num_epochs": 5}))
    finish = trainer._finish_epoch

    def spoil(*arguments: Any) -> None:
        finish(*arguments)
        if trainer.progress.epoch == 1:
            with torch.no_grad():
                next(model.backbone.parameters()).fill_(float("nan"))

    trainer._finish_epoch = spoil  # type: ignore[method-assign]
    trainer.train(model, F64, CPU, [dataset], [dataset], str(tmp_path))
    assert "with 50 % of the learning rate" in caplog.text
    checkpoint = torch.load(tmp_path / "checkpoint.ckpt", weights_only=False)
    assert checkpoint["epoch"] == 4
    for value in checkpoint["model_state_dict"].values():
        assert torch.isfinite(value).all()


def test_validation_that_is_not_finite(tmp_path: Path) -> None:
    """It stops the run with the names of the frames."""
    path = write(tmp_path / "water.xyz", clusters(4))
    model, trainer, dataset = prepare(options(path))
    load = trainer._load_frames

    def spoil(*arguments: Any) -> None:
        load(*arguments)
        trainer.val_frames[1].labels["energy"][:] = float("nan")

    trainer._load_frames = spoil  # type: ignore[method-assign]
    message = message_of(
        lambda: trainer.train(model, F64, CPU, [dataset], [dataset], str(tmp_path))
    )
    assert "predictions are not finite for frames of the validation set" in message
    assert "frame 1 (counted from 0)" in message
    assert not (tmp_path / "checkpoint.ckpt").exists()


# -------------------------------------------------------------------- nothing is learnt


def test_what_is_not_learnt_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Forces that are drawn at random."""
    rng = np.random.default_rng(0)
    frames = clusters(16)
    for atoms in frames:
        atoms.arrays["forces"] = rng.normal(size=(len(atoms), 3))
        del atoms.info["stress"]
    paths = [
        write(tmp_path / "train.xyz", frames[:8]),
        write(tmp_path / "val.xyz", frames[8:]),
    ]
    validation_set = options(paths[1])["training_set"]
    run_cli(tmp_path, options(paths[0], validation_set=validation_set))
    (line,) = [r.message for r in caplog.records if "nothing has been" in r.message]
    assert f"{FORCES}, {DIRECT} on the validation set are as large as" in line


def test_what_is_learnt_is_not_complained_about() -> None:
    """The comparison is with the size of the labels."""
    term = Term("energy", "energy", 1.0, 0.5, 2.0, "mse", 1.0, False)
    for error, expected in ((0.4, []), (0.49, ["energy"])):
        sums = ErrorSums([term])
        sums.add(0, torch.tensor([error, -error]), term)
        assert sums.unlearnt([term]) == expected
        assert sums.unlearnt([]) == []
