"""The trainer: stages that mix direct and conservative training."""

import copy
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Callable, ClassVar, Dict, List, Literal, Optional, Tuple, Union

import numpy as np
import torch
from metatrain.utils.abc import ModelInterface, TrainerInterface
from metatrain.utils.data import Dataset
from metatrain.utils.io import check_file_extension
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Subset
from tqdm import tqdm

from ..nn import Backbone
from ..writing import replacing
from . import symmetry, upgrades
from .agreement import SHARE, Comparison, DifferenceSums, make_comparison
from .batches import (
    BatchRule,
    EpochPlan,
    StepFrames,
    check_weights,
    draw,
    in_turn,
    sizes_in_epoch,
    sizes_of,
)
from .data import Frame, collate, rotate
from .distributed import Processes, start_processes
from .domain import record_difference
from .epoch_log import EpochReport, ErrorSums
from .finetuning import freeze_all_but_direct_heads, read_direct_from
from .loss import Term, errors, predict
from .model import DualForce
from .optimizer import make_optimizer
from .options import TrainerHypers
from .preparation import Record, Start, prepare
from .reading import forget_files
from .stages import (
    Stage,
    conservative_count,
    learning_rate_factor,
    make_stages,
)
from .streams import FrameStream, load_ahead
from .terms import weight_in_stage


CHECKPOINT_SECONDS = 300.0
"""Time after which a checkpoint is written within an epoch."""

DIVERGED = 10.0
"""An epoch that makes the metric worse by this factor than that of the best model, and
some error as large as the labels, has destroyed what was learnt."""

MOST_RETURNS = 3
"""To the best model of a stage after a loss that is not finite. Where that is not
enough the cause is a frame, not the learning rate."""


@dataclass
class Progress:
    """Where a run stands; what a restart needs besides weights and optimiser."""

    stage: int = 0
    epoch: int = -1
    """Last finished epoch of the run."""
    epochs_in_stage: int = 0
    steps_in_epoch: int = 0
    """Steps of the epoch that is not finished yet."""
    steps_per_epoch: int = 0
    """All steps of that epoch."""
    loss_in_epoch: float = 0.0
    """Sum of their losses."""
    generator_state: Optional[Tensor] = None
    """Of random numbers within that epoch."""
    steps_in_stage: int = 0
    frames_in_stage: int = 0
    seconds_in_stage: float = 0.0
    rate_factor: float = 1.0
    """Of the learning rate in the stage: less than one where it has diverged."""
    seed: Optional[int] = None
    best_metric: float = float("inf")
    best_epoch: Optional[int] = None

    def begin_epoch(self) -> None:
        """Forget the steps of an epoch that is over."""
        self.steps_in_epoch, self.steps_per_epoch = 0, 0
        self.loss_in_epoch, self.generator_state = 0.0, None

    @property
    def steps_done(self) -> int:
        """Steps of the stage, if all of its epochs had as many as this one; between
        epochs, epochs."""
        return self.epochs_in_stage * max(1, self.steps_per_epoch) + self.steps_in_epoch


def _random_rotation(generator: torch.Generator) -> Tensor:
    """An orthogonal matrix, shape ``[3, 3]``."""
    noise = torch.randn(3, 3, dtype=torch.float64, generator=generator)
    q, r = torch.linalg.qr(noise)
    return q * torch.sign(torch.diagonal(r))


class Trainer(TrainerInterface[TrainerHypers]):
    """Trains :class:`dualforce.training.model.DualForce`.

    :param hypers: see :class:`dualforce.training.options.TrainerHypers`.
    """

    __checkpoint_version__ = 9

    after_training: ClassVar[List[Callable[["Trainer"], None]]] = []
    """Called in the main process at the end of a training. Layers above, which this one
    must not know, add what they have to do."""

    model: DualForce
    processes: Processes
    terms: List[Term]
    train_frames: Sequence[Frame]
    val_frames: Sequence[Frame]
    unlearnt: List[str]
    """Terms of the loss about which the last epoch had learnt nothing."""

    def __init__(self, hypers: TrainerHypers) -> None:
        super().__init__(hypers)
        self.progress = Progress()
        self.optimizer_state: Optional[Dict[str, Any]] = None
        self.average_state: Optional[Dict[str, Any]] = None
        self.best_state: Optional[Dict[str, Any]] = None
        self.unlearnt = []
        self.recorded: Optional[Record] = None
        """What the run is trained on, if that is known."""
        self.earlier_hypers: Optional[TrainerHypers] = None
        """Options that an interrupted run started with."""

    @property
    def epoch(self) -> int:
        """Last finished epoch, counted from 0."""
        return self.progress.epoch

    # ------------------------------------------------------------------------ a run

    def train(
        self,
        model: ModelInterface,
        dtype: torch.dtype,
        devices: List[torch.device],
        train_datasets: List[Union[Dataset, Subset[Any]]],
        val_datasets: List[Union[Dataset, Subset[Any]]],
        checkpoint_dir: str,
    ) -> None:
        """Train a model; see :class:`metatrain.utils.abc.TrainerInterface`.

        :raises ValueError: if frames, labels or options are unusable.
        """
        if not isinstance(model, DualForce):
            raise ValueError(
                f"the dualforce trainer cannot train a {type(model).__name__} model"
            )
        self._check_restart()
        self.model = model
        self.checkpoint_path = Path(checkpoint_dir) / "checkpoint.ckpt"
        self.processes = start_processes(self.hypers, devices)
        logging.info(
            f"Training with {self.processes.size} process(es) on "
            f"{self.processes.device}, {dtype}"
        )
        try:
            self._run(dtype, train_datasets, val_datasets)
        finally:
            self.processes.close()
        if self.processes.rank == 0:
            for act in self.after_training:
                act(self)

    def best_model(self) -> DualForce:
        """The model that will be exported."""
        return DualForce.load_checkpoint(self._checkpoint(self.model), "export")

    def _run(
        self,
        dtype: torch.dtype,
        train_datasets: List[Any],
        val_datasets: List[Any],
    ) -> None:
        if self.progress.seed is None:
            seed = torch.initial_seed() % 2**52
            self.progress.seed = int(self.processes.broadcast(float(seed)))
        if self.only_direct_heads:
            freeze_all_but_direct_heads(self.model)
            if (layer := self.hypers["finetune"].get("direct_layers")) is not None:
                read_direct_from(self.model, layer)
            # The energy is to stay bitwise identical.
            dtype = self.model.network_dtype()
        self._load_frames(train_datasets, val_datasets)
        forget_files()
        self.model.network_to(self.processes.device, dtype)
        self.report = EpochReport(self.terms, self.model)
        stages = self._make_stages()
        if self._has_ended(stages):
            logging.warning(
                f"This run ended after epoch {self.epoch}; nothing is left to train, "
                "and the model is exported again. To go on, raise `num_epochs` or "
                "`max_minutes`, or start a new run with `finetune: {read_from: ...}`"
            )
        for index in range(self.progress.stage, len(stages)):
            if index > self.progress.stage:
                self._enter_stage(index)
            self._run_stage(stages[index], f"{index + 1}/{len(stages)}")
        if self.unlearnt:
            logging.warning(
                f"The errors of {', '.join(self.unlearnt)} on the validation set are "
                "as large as the labels: nothing has been learnt about them. Train for "
                "longer, or see whether these labels belong to the structures"
            )

    def _check_restart(self) -> None:
        """
        :raises ValueError: if options have changed that act at the start of a run only.
        """
        if self.earlier_hypers is None:
            return
        before, now = (
            hypers.get("atomic_baseline", {})
            for hypers in (self.earlier_hypers, self.hypers)
        )
        if before != now:
            raise ValueError(
                f"`atomic_baseline` is {now}, and was {before} when the run started: "
                "it acts at the start of a run only; give it as it was, or start a new "
                "run"
            )

    def _load_frames(self, train_datasets: List[Any], val_datasets: List[Any]) -> None:
        check_weights(self.hypers["sampling_weights"], len(train_datasets))
        start: Start = "finetune" if self.model.fitted else "new"
        prepared = prepare(
            self.model,
            self.hypers,
            train_datasets,
            val_datasets,
            start if self.earlier_hypers is None else "restart",
            self.recorded,
            self.processes.size,
            self.processes.rank == 0,
        )
        self.train_frames, self.val_frames = prepared.train, prepared.val
        self.terms, self.recorded = prepared.terms, prepared.record
        sizes = sizes_in_epoch(self.train_frames, self.hypers["sampling_weights"])
        n_batches = len(self.batch_rule.pack(sizes))
        if n_batches < self.processes.size:
            raise ValueError(
                f"{self.processes.size} processes train, and an epoch has {n_batches} "
                f"batches ({len(sizes)} frames): use no more processes than that, or "
                "smaller batches"
            )

    def _has_ended(self, stages: List[Stage]) -> bool:
        """Whether a restarted run has nothing left to do."""
        progress = self.progress
        if progress.epoch < 0 or progress.stage < len(stages) - 1:
            return False
        if progress.steps_in_epoch:
            return False
        return self._progress_of(stages[-1], progress.seconds_in_stage) >= 1.0

    def _make_stages(self) -> List[Stage]:
        sizes = sizes_in_epoch(self.train_frames, self.hypers["sampling_weights"])
        per_batch = self.batch_rule.atoms_of_step(sizes, self.processes.size)
        stages = make_stages(self.hypers, self.model.hypers, per_batch)
        if any(term.conservative for term in self.terms):
            shares = ", ".join(f"{100 * s.conservative_fraction:g} %" for s in stages)
            logging.info(f"Frames with backpropagated forces: {shares}")
        rates = ", ".join(f"{stage.learning_rate:g}" for stage in stages)
        logging.info(f"Highest learning rate: {rates}")
        return stages

    # --------------------------------------------------------------------- a stage

    def _enter_stage(self, index: int) -> None:
        """Go on from the best model of the stage before, with a new optimiser."""
        if self.best_state is not None:
            self.model.load_state_dict(self.best_state)
        self.optimizer_state = None
        self.average_state = None
        self.progress = Progress(
            stage=index, epoch=self.progress.epoch, seed=self.progress.seed
        )

    def _run_stage(self, stage: Stage, position: str) -> None:
        terms = [weight_in_stage(term, stage, self.model) for term in self.terms]
        terms = [term for term in terms if term.weight > 0.0]
        self._begin_optimizer(stage)
        if self.optimizer_state is not None:
            self.optimizer.load_state_dict(self.optimizer_state)
        if self.average_state is not None:
            self.average.load_state_dict(self.average_state)
        self._stage_start = time.monotonic() - self.progress.seconds_in_stage
        self._last_written = time.monotonic()
        # An epoch is validated also where a checkpoint was written after its last step.
        while self._share_done(stage) < 1.0 or self.progress.steps_in_epoch:
            train_loss = self._train_epoch(stage, terms)
            self._finish_epoch(stage, terms, position, train_loss)
        self.progress.seconds_in_stage = self._seconds()

    def _begin_optimizer(self, stage: Stage) -> None:
        self.optimizer = make_optimizer(
            self._trained_parameters(),
            stage.learning_rate,
            self.hypers["weight_decay"],
        )
        self.average = AveragedModel(
            self.model.backbone,
            multi_avg_fn=get_ema_multi_avg_fn(self.hypers["ema_decay"]),
        )

    def _return_to_best(self, stage: Stage, where: str) -> None:
        """Go on from the best model of a stage that has diverged, more slowly.

        :param where: it has.
        """
        progress = self.progress
        progress.rate_factor *= 0.5
        assert self.best_state is not None
        self.model.load_state_dict(self.best_state)
        self._begin_optimizer(stage)
        best = progress.best_epoch
        logging.warning(
            f"The training has diverged in {where}: it goes on from the weights of "
            f"{'the stage before' if best is None else f'epoch {best}'}, with "
            f"{100.0 * progress.rate_factor:g} % of the learning rate"
        )

    @property
    def batch_rule(self) -> BatchRule:
        """How frames are put into batches."""
        return BatchRule.of(self.hypers)

    @property
    def only_direct_heads(self) -> bool:
        """Whether everything but heads of direct targets is frozen."""
        return self.hypers["finetune"].get("train") == "direct_head"

    def _trained_parameters(self) -> List[nn.Parameter]:
        return [p for p in self.model.backbone.parameters() if p.requires_grad]

    def _seconds(self) -> float:
        return time.monotonic() - self._stage_start

    def _share_done(self, stage: Stage) -> float:
        seconds = 0.0
        if stage.max_minutes is not None:
            seconds = self.processes.broadcast(self._seconds())
        return self._progress_of(stage, seconds)

    def _progress_of(self, stage: Stage, seconds: float) -> float:
        progress = self.progress
        return stage.progress(
            progress.steps_done, max(1, progress.steps_per_epoch), seconds
        )

    # --------------------------------------------------------------------- an epoch

    def _train_epoch(self, stage: Stage, terms: List[Term]) -> float:
        """One pass through the data, or until the time is up.

        :return: mean loss of the steps taken.
        """
        progress = self.progress
        seed = int(progress.seed or 0) * 1_000_003 + progress.epoch + 1
        generator = torch.Generator().manual_seed(seed % 2**63)
        processes = self.processes
        plan = self._plan_of_epoch(generator)
        self._go_on_within_epoch(len(plan), generator)
        total = torch.full((1,), progress.loss_in_epoch, device=processes.device)
        self.model.train()
        steps = range(progress.steps_in_epoch, len(plan))
        show = processes.rank == 0 and sys.stderr.isatty()
        mine = (plan.shares(number)[processes.rank] for number in steps)
        with closing(load_ahead(self.train_frames, mine)) as loaded:
            for number in tqdm(steps, desc=stage.name, leave=False, disable=not show):
                share_done = self._share_done(stage)
                if share_done >= 1.0:
                    break
                rate = learning_rate_factor(share_done, self.hypers["warmup_fraction"])
                for group in self.optimizer.param_groups:
                    group["lr"] = rate * progress.rate_factor * stage.learning_rate
                here = self._next_frames(loaded, total, generator)
                frames = self._frames_of_step(plan.shares(number), here, generator)
                total += self._step(frames, stage.at(share_done), terms)
                progress.steps_in_stage += 1
                progress.steps_in_epoch += 1
                progress.frames_in_stage += len(frames)
                if time.monotonic() - self._last_written >= CHECKPOINT_SECONDS:
                    self._write_within_epoch(total, generator)
        return float(total) / max(1, progress.steps_in_epoch)

    def _plan_of_epoch(self, generator: torch.Generator) -> EpochPlan:
        frames = self.train_frames
        order = draw(frames, self.hypers["sampling_weights"], generator)
        return EpochPlan(self.batch_rule, sizes_of(frames), order, self.processes.size)

    def _next_frames(
        self,
        loaded: Iterator[List[Frame]],
        loss: Tensor,
        generator: torch.Generator,
    ) -> List[Frame]:
        """Frames of this process for the next step.

        :raises ValueError: if one cannot be read or used; what was learnt is written
            before.
        """
        try:
            return next(loaded)
        except ValueError as error:
            self._write_within_epoch(loss, generator)
            raise ValueError(f"{error}; {self._last_checkpoint()}") from error

    def _go_on_within_epoch(self, n_steps: int, generator: torch.Generator) -> None:
        """Go on where a checkpoint was written within an epoch. With other batches the
        epoch begins anew."""
        progress = self.progress
        if progress.steps_per_epoch not in (0, n_steps):
            progress.begin_epoch()
        if progress.generator_state is not None:
            generator.set_state(progress.generator_state)
        progress.steps_per_epoch = n_steps

    def _frames_of_step(
        self, shares: List[List[int]], here: List[Frame], generator: torch.Generator
    ) -> StepFrames:
        """Frames of a step, rotated at random where the network is not equivariant.

        :param shares: indices of the frames of each process.
        :param here: those of this process.
        :param generator: random numbers of the epoch.
        """
        rotates = self.hypers["augmentation"] and not self.model.backbone.equivariant
        # Others tell what they read; what is held need not be told, and a GPU not be
        # waited for.
        are_held = not isinstance(self.train_frames, FrameStream)
        frames: List[Optional[Frame]] = []
        known: List[Optional[Frame]] = []
        for rank, place in in_turn(shares):
            # All processes draw for all frames, so that they agree on what is next.
            rotation = _random_rotation(generator) if rotates else None
            frame = here[place] if rank == self.processes.rank else None
            if frame is not None and rotation is not None:
                frame = rotate(frame, rotation)
            frames.append(frame)
            known.append(self.train_frames[shares[rank][place]] if are_held else frame)
        step = StepFrames.of(frames, [term.name for term in self.terms], known)
        if not are_held:
            self.processes.sum_([step.elements])
        return step

    def _step(self, frames: StepFrames, stage: Stage, terms: List[Term]) -> Tensor:
        """One step of the optimiser.

        :param frames: frames of the batch, of all processes.
        :return: loss of the batch.
        """
        fraction = stage.conservative_fraction
        labels = {term.name for term in terms if term.conservative}
        places = frames.with_labels_first(labels)
        count = conservative_count(self.progress.frames_in_stage, len(frames), fraction)
        compensation = 1.0
        if fraction > 0.0:
            compensation = max(1.0, 1.0 / (fraction * len(frames)))

        self.optimizer.zero_grad()
        total = torch.zeros(1, device=self.processes.device)
        for part, conservative in ((places[:count], True), (places[count:], False)):
            mine = frames.here(part)
            if not mine:
                continue
            chosen = [term for term in terms if conservative or not term.conservative]
            pools = {True: places[:count], False: places}
            counts = {
                term.name: frames.count(term.name, pools[term.conservative])
                for term in chosen
            }
            factors = {
                term.name: compensation / frames.chance(term.name, labels, count)
                for term in chosen
                if term.conservative and counts[term.name]
            }
            comparison = None
            if conservative and stage.force_agreement:
                comparison = self._comparison(frames, places, stage, chosen)
            loss = self._loss(mine, counts, chosen, factors, comparison)
            if loss.requires_grad:
                # Not those of positions: second derivatives that nobody needs.
                loss.backward(inputs=self._trained_parameters())
            total += loss.detach()
        if (
            stage.jacobian_symmetry
            and self.progress.steps_in_stage % symmetry.INTERVAL == 0
        ):
            for frame in frames.here(places[-1:]):
                total += self._penalize_asymmetry(frame, terms, stage)
        norm = torch.nn.utils.clip_grad_norm_(
            self._sum_gradients(total), self.hypers["grad_clip_norm"]
        )
        if not torch.isfinite(norm + total):
            self._overcome(stage, [frame.name for frame in frames.here(places)])
            return torch.zeros_like(total)
        self.optimizer.step()
        self.average.update_parameters(self.model.backbone)
        return total

    def _overcome(self, stage: Stage, names: List[str]) -> None:
        """Return to the best model after a loss that is not finite.

        :param names: of the frames of the step.
        :raises ValueError: if there is no such model yet, or that did not help before.
        """
        progress = self.progress
        where = f"step {progress.steps_in_stage} of stage '{stage.name}'"
        frames = "; ".join(names)
        if self.best_state is None or progress.rate_factor <= 0.5**MOST_RETURNS:
            raise ValueError(
                f"the loss or its gradient is not finite in {where} ({frames}). Lower "
                f"the learning rate or look at these frames; {self._last_checkpoint()}"
            )
        self._return_to_best(stage, f"{where} ({frames})")

    def _comparison(
        self,
        frames: StepFrames,
        places: Sequence[int],
        stage: Stage,
        terms: List[Term],
    ) -> Optional[Comparison]:
        """Frames of the step to compare both forces on, if there are any.

        :param places: of the frames of the step, the conservative ones first.
        """
        progress, fraction = self.progress, SHARE * stage.conservative_fraction
        count = conservative_count(progress.frames_in_stage, len(frames), fraction)
        weight = stage.force_agreement * max(1.0, 1.0 / (fraction * len(frames)))
        seed = int(progress.seed or 0) * 1_000_003 + progress.frames_in_stage
        return make_comparison(self.model, frames, places[:count], terms, weight, seed)

    def _penalize_asymmetry(
        self, frame: Frame, terms: List[Term], stage: Stage
    ) -> Tensor:
        """Add gradients of the penalty on the curl of direct forces.

        :return: its value.
        """
        total = torch.zeros(1, device=self.processes.device)
        seed = int(self.progress.seed or 0) + self.progress.steps_in_stage
        generator = torch.Generator().manual_seed(seed % 2**63)
        direction = torch.randn(
            frame.positions.shape, dtype=torch.float64, generator=generator
        )
        weight = symmetry.INTERVAL * stage.jacobian_symmetry
        for term in terms:
            if self.model.kinds.get(term.name) != "force":
                continue
            penalty = symmetry.asymmetry_penalty(
                self.model.backbone, frame, term.name, direction
            )
            loss = weight * term.weight * penalty / term.spread**2
            loss.backward()
            total += loss.detach()
        return total

    def _sum_gradients(self, loss: Tensor) -> List[nn.Parameter]:
        """Sum gradients over processes.

        :param loss: loss of the frames of this process, summed likewise.
        :return: all trained parameters; those that no frame touched have a gradient of
            zero, so that every process takes the same step, and one process the step
            of several.
        """
        parameters = self._trained_parameters()
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters if p.grad is not None]
        self.processes.sum_([*gradients, loss])
        return parameters

    def _loss(
        self,
        mine: List[Frame],
        counts: Mapping[str, int],
        terms: List[Term],
        factors: Mapping[str, float],
        comparison: Optional[Comparison],
    ) -> Tensor:
        """Share of the loss of a batch that some of its frames contribute.

        :param mine: the frames to evaluate.
        :param counts: numbers of each label in all frames that are compared with it, of
            all processes.
        :param terms: terms to evaluate.
        :param factors: factors on conservative terms that not all frames see.
        :param comparison: displaced copies of some of the frames.
        """
        if comparison is not None:
            mine = mine + comparison.copies
        predictions, batch = self._predict(self.model.backbone, mine, terms, True)
        total = torch.zeros(1, device=self.processes.device)
        for term in terms:
            if term.name not in batch.labels:
                continue
            difference = errors(term, predictions, batch) / term.spread
            weight = term.weight * factors.get(term.name, 1.0)
            total = total + weight * term.penalty(difference) / counts[term.name]
        if comparison is not None:
            total = total + comparison.penalty(predictions)
        return total

    def _predict(
        self,
        backbone: Backbone,
        frames: List[Frame],
        terms: List[Term],
        training: bool,
    ) -> Tuple[Dict[str, Tensor], Any]:
        per_atom = self.model.per_atom()
        reference = backbone.dtype_reference
        assert isinstance(reference, Tensor)
        batch = collate(frames, per_atom, reference.dtype, self.processes.device)
        wanted = [term for term in terms if term.name in batch.labels]
        names = list(dict.fromkeys(term.target for term in wanted))
        differentiated = {term.target for term in wanted if term.conservative}
        energies = [e for e in self.model.energies if e.name in differentiated]
        predictions = predict(backbone, batch, names, per_atom, energies, training)
        return predictions, batch

    # ------------------------------------------------------------------- validation

    def _validate(self, terms: List[Term]) -> Tuple[ErrorSums, DifferenceSums]:
        """Errors of the averaged weights on the validation set, and the difference of
        both forces there."""
        backbone = self.average.module
        assert isinstance(backbone, Backbone)
        backbone.eval()
        sums = ErrorSums(self.terms)
        differences = DifferenceSums(self.model, self.processes.device)
        mine = np.arange(len(self.val_frames))[
            self.processes.rank :: self.processes.size
        ]
        suspects: List[str] = []
        packed = self.batch_rule.pack(sizes_of(self.val_frames)[mine])
        batches = (mine[batch.start : batch.stop].tolist() for batch in packed)
        for loaded in load_ahead(self.val_frames, batches):
            frames = [frame for frame in loaded if frame.labels]
            if not frames:
                continue
            differentiate = any(term.conservative for term in self.terms)
            with torch.set_grad_enabled(differentiate):
                predictions, batch = self._predict(backbone, frames, self.terms, False)
            differences.add(predictions)
            for index, term in enumerate(self.terms):
                if term.name in batch.labels:
                    sums.add(index, errors(term, predictions, batch).detach(), term)
            if not (suspects or torch.isfinite(sums.values).all()):
                suspects = [frame.name for frame in frames]
        self.processes.sum_([sums.values])  # on the host
        self.processes.sum_([differences.values])  # on the device
        if not torch.isfinite(sums.values).all():
            raise ValueError(
                "predictions are not finite for frames of the validation set "
                f"({'; '.join(suspects) or 'seen by another process'}); "
                f"{self._last_checkpoint()}"
            )
        return sums, differences

    def _finish_epoch(
        self, stage: Stage, terms: List[Term], position: str, train_loss: float
    ) -> None:
        progress = self.progress
        progress.epoch += 1
        progress.epochs_in_stage += 1
        progress.begin_epoch()
        sums, differences = self._validate(terms)
        self.unlearnt = sums.unlearnt(terms)
        metric = sums.metric(
            self.hypers["best_model_metric"], terms, stage.conservative_fraction
        )
        if metric < progress.best_metric or self.best_state is None:
            progress.best_metric = metric
            progress.best_epoch = progress.epoch
            self.best_state = self._averaged_state()
            record_difference(self.model, differences.roots())
        progress.seconds_in_stage = self._seconds()
        is_main = self.processes.rank == 0
        if is_main and progress.epoch % self.hypers["log_interval"] == 0:
            self.report.log(
                epoch=progress.epoch,
                stage=f"{position} {stage.name}",
                seconds_left=self._seconds_left(stage),
                learning_rate=self.optimizer.param_groups[0]["lr"],
                train_loss=train_loss,
                sums=sums,
            )
        if self.unlearnt and metric > DIVERGED * progress.best_metric:
            self._return_to_best(stage, f"epoch {progress.epoch}")
        interval = self.hypers["checkpoint_interval"]
        if is_main and progress.epochs_in_stage % interval == 0:
            self._write_checkpoint()

    def _seconds_left(self, stage: Stage) -> float:
        # On the main process alone, so with its own clock.
        seconds = self._seconds()
        done = self._progress_of(stage, seconds)
        return seconds * (1.0 - done) / max(done, 1e-9)

    # ------------------------------------------------------------------ checkpoints

    def _averaged_state(self) -> Dict[str, Any]:
        averaged = {
            f"backbone.{key}": value
            for key, value in self.average.module.state_dict().items()
        }
        # SOAP-BPNN keeps more than tensors in its state
        return copy.deepcopy({**self.model.state_dict(), **averaged})

    def _last_checkpoint(self) -> str:
        """Where to go on after a failure."""
        if self.checkpoint_path.exists():
            return f"the last checkpoint is {self.checkpoint_path}"
        return "no checkpoint has been written yet"

    def _write_checkpoint(self) -> None:
        try:
            self.save_checkpoint(self.model, self.checkpoint_path)
        except OSError as error:
            raise ValueError(
                f"the checkpoint cannot be written ({error}); put this right, and go "
                f"on with `--restart`: {self._last_checkpoint()}"
            ) from error
        self._last_written = time.monotonic()

    def _write_within_epoch(self, loss: Tensor, generator: torch.Generator) -> None:
        """Write where a run goes on with the next step of this epoch."""
        if self.processes.rank != 0:
            return
        self.progress.loss_in_epoch = float(loss)
        self.progress.generator_state = generator.get_state()
        self.progress.seconds_in_stage = self._seconds()
        self._write_checkpoint()

    def save_checkpoint(self, model: ModelInterface, path: Union[str, Path]) -> None:
        """Save model and trainer; see :class:`metatrain.utils.abc.TrainerInterface`. A
        run killed at any moment leaves a whole file.

        :raises OSError: if there is no room; an older file is as it was.
        """
        path = check_file_extension(path, ".ckpt")
        # To memory first: torch's own words for a full disk are hard to read.
        content = BytesIO()
        torch.save(self._checkpoint(model), content)
        with replacing(path) as unfinished:
            unfinished.write_bytes(content.getbuffer())

    def _checkpoint(self, model: ModelInterface) -> Dict[str, Any]:
        if hasattr(self, "optimizer"):
            self.optimizer_state = self.optimizer.state_dict()
            self.average_state = self.average.state_dict()
        checkpoint = model.get_checkpoint()
        checkpoint.update(
            {
                "trainer_ckpt_version": self.__checkpoint_version__,
                "train_hypers": self.hypers,
                "epoch": self.progress.epoch,
                "best_epoch": self.progress.best_epoch,
                "best_metric": self.progress.best_metric,
                "progress": asdict(self.progress),
                "optimizer_state_dict": self.optimizer_state,
                "average_state_dict": self.average_state,
                "best_model_state_dict": self.best_state,
                "data_record": self.recorded,
            }
        )
        return checkpoint

    @classmethod
    def load_checkpoint(
        cls,
        checkpoint: Dict[str, Any],
        hypers: TrainerHypers,
        context: Literal["restart", "finetune"],
    ) -> "Trainer":
        trainer = cls(hypers)
        if context == "restart":
            trainer.progress = Progress(**checkpoint["progress"])
            trainer.optimizer_state = copy.deepcopy(checkpoint["optimizer_state_dict"])
            trainer.average_state = checkpoint["average_state_dict"]
            trainer.best_state = checkpoint["best_model_state_dict"]
            trainer.recorded = checkpoint["data_record"]
            trainer.earlier_hypers = checkpoint["train_hypers"]
        return trainer

    @classmethod
    def upgrade_checkpoint(cls, checkpoint: Dict[str, Any]) -> Dict[str, Any]:
        return upgrades.upgrade(checkpoint, "trainer", cls.__checkpoint_version__)
