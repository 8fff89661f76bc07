# mypy: disable-error-code=misc
# TypedDicts with default values, the way metatrain declares hyperparameters, are not
# part of the typing standard.
"""Options of the architecture ``experimental.dualforce``.

A model carries two forces: the conservative force, minus the gradient of its energy,
and a direct force that the network predicts without a backward pass.
"""

from typing import TYPE_CHECKING, Literal, Optional

from metatrain.composition.documentation import FixedCompositionWeights
from metatrain.utils.architectures import preload_documentation_module
from metatrain.utils.hypers import init_with_defaults
from metatrain.utils.loss import LossSpecification
from typing_extensions import NotRequired, TypedDict

from ..nn.hypers import ACEHypers, PaiNNHypers
from .option_checks import suggest_nearest


if TYPE_CHECKING:
    from metatrain.pet.documentation import ModelHypers as PETHypers
    from metatrain.soap_bpnn.documentation import ModelHypers as SoapBpnnHypers
else:
    # Loaded without their packages, so that options can be checked, and `ace` used,
    # where the optional dependencies of these architectures are missing.
    PETHypers = preload_documentation_module("pet").ModelHypers
    SoapBpnnHypers = preload_documentation_module("soap_bpnn").ModelHypers


@suggest_nearest
class ModelHypers(TypedDict):
    """Options of the model, section ``architecture.model``."""

    backbone: Literal["ace", "painn", "pet", "soap_bpnn"] = "ace"
    """The network. ``ace`` and ``painn`` are ours and the fastest, ``ace`` the more
    accurate; ``pet`` and ``soap_bpnn`` are those of metatrain."""
    forces: Literal["hybrid", "conservative", "direct"] = "hybrid"
    """``hybrid``: energy, its gradient, and a direct force. ``conservative``: energy
    and its gradient alone. ``direct``: energy and direct force, the gradient of the
    energy is never trained."""
    zbl: bool = False
    """Add the ZBL repulsion of nuclei to the energy and to the direct force."""
    pair_potential: Optional[bool] = None
    """Fit a potential between bonded pairs of atoms to the forces before the training;
    the network learns what is left. Energy and direct force contain it alike, which
    brings conservative and direct forces closer together. ``null``: yes, except in
    batches of fewer than 200 atoms: few small molecules do not determine it where they
    have not been, and errors away from the temperature of the data get larger. With a
    teacher, only where it takes more than 40 % of the forces: those of the teacher are
    smoother than its splines, and multiple time stepping feels where those of one force
    have a kink."""
    painn: PaiNNHypers = init_with_defaults(PaiNNHypers)
    """Options of the ``painn`` network."""
    ace: ACEHypers = init_with_defaults(ACEHypers)
    """Options of the ``ace`` network."""
    pet: PETHypers = init_with_defaults(PETHypers)
    """Options of metatrain's PET."""
    soap_bpnn: SoapBpnnHypers = init_with_defaults(SoapBpnnHypers)
    """Options of metatrain's SOAP-BPNN."""


class StageWeights(TypedDict):
    """Factors on the loss terms during a stage."""

    energy: NotRequired[float]
    """On energies."""
    forces: NotRequired[float]
    """On conservative forces."""
    stress: NotRequired[float]
    """On conservative stresses."""
    non_conservative_force: NotRequired[float]
    """On direct forces."""
    non_conservative_stress: NotRequired[float]
    """On direct stresses."""


@suggest_nearest
class StageHypers(TypedDict):
    """One stage of a run. Options that are not given are those of the run."""

    name: NotRequired[str]
    """Name in the log."""
    num_epochs: NotRequired[int]
    """Epochs of this stage. Give this or ``max_minutes``."""
    max_minutes: NotRequired[float]
    """Time of this stage."""
    learning_rate: NotRequired[float]
    """Highest learning rate of this stage."""
    conservative_fraction: NotRequired[float]
    """Share of frames whose forces are also matched by backpropagation."""
    weights: NotRequired[StageWeights]
    """Factors on the loss terms."""
    jacobian_symmetry: NotRequired[float]
    """Penalty on the curl of direct forces."""
    force_agreement: NotRequired[float]
    """Penalty on the difference of both forces."""


class FinetuneHypers(TypedDict):
    """Where the weights come from at the start."""

    read_from: NotRequired[Optional[str]] = None
    """A checkpoint of this architecture or of metatrain's PET."""
    train: NotRequired[Literal["everything", "direct_head"]] = "everything"
    """``direct_head``: train the head of the direct force (and stress) only. The energy
    and its gradient stay bitwise identical, and the network keeps its precision."""
    direct_layers: NotRequired[Optional[int]]
    """With ``direct_head`` and ``painn`` or ``ace``: layers below the head, the first
    ones. With half of four layers direct forces take 0.6 of the time."""


class ExtendHypers(TypedDict):
    """More structures for a teacher to label, from short runs."""

    frames: int = 0
    """How many, in all."""
    temperatures: list[float] = [300.0]
    """In K; each gets its share of the frames."""
    timestep: float = 0.5
    """In fs."""
    student: NotRequired[Optional[str]] = None
    """An exported model with both forces, to run with multiple time stepping instead of
    the teacher alone: the combined model of an earlier training then visits the
    structures it will meet."""


class TeacherHypers(TypedDict):
    """A model to learn direct forces from."""

    model: NotRequired[Optional[str]] = None
    """An exported metatomic model (``.pt``), a checkpoint of metatrain (``.ckpt``), or
    ``module:callable``, which returns a calculator of ASE. It labels all structures of
    the data, which need no labels of their own."""
    keep_labels: bool = False
    """Frames that have forces (and stresses) in their file keep them."""
    labels: str = "labels"
    """Folder for the labels. What is there is not computed again."""
    extend: ExtendHypers = init_with_defaults(ExtendHypers)
    """More structures."""
    combined: str = "combined.pt"
    """File for the model with the teacher's energy and the direct force that was
    trained."""
    check_minutes: float = 2.5
    """Time for `dualforce tune` at the end, on a structure of the validation set; 0
    leaves it out."""
    check_temperature: float = 300.0
    """Temperature of that, in K."""


@suggest_nearest
class TrainerHypers(TypedDict):
    """Options of the training, section ``architecture.training``."""

    distributed: NotRequired[bool]
    """Train with several processes. Default: in SLURM jobs with more than one task."""
    distributed_port: int = 39591
    """Port on which the processes meet."""
    batch_size: int = 4
    """Frames in a batch, of each process."""
    max_atoms_per_batch: Optional[int] = None
    """Atoms in a batch, of each process; ``batch_size`` then does not count. Frames of
    all sizes are packed in the order of the epoch, as long as their atoms fit. Larger
    frames are reported and excluded."""
    sampling_weights: Optional[list[float]] = None
    """Where ``training_set`` is a list: how often an epoch takes the frames of each
    set. 0.1 takes a tenth, anew in each epoch, 2 takes all twice. Default: 1."""
    max_memory: float = 1.0
    """GB for frames with their neighbour lists, in each process. Frames of metatrain's
    data sets on disk (``.zip`` files, folders of arrays) that take more are not held:
    they are read when they are needed, and what is fitted and checked before the
    training comes from a sample of 100,000 atoms."""
    skip_bad_frames: bool = False
    """Frames that cannot be used (no atoms, atoms at the same place, a cell or label
    that is not finite) are named in the log, counted and left out; by default the first
    one ends the run. Files that ASE reads are checked before, and refused."""
    num_epochs: Optional[int] = 100
    """Epochs of the run; ``null`` where ``max_minutes`` decides."""
    max_minutes: Optional[float] = None
    """Time of the run. Learning rates follow the clock, and the run ends in time
    whatever the machine; a restarted run goes on with the time it had left."""
    conservative_fraction: Optional[float] = None
    """Share of frames in each batch whose forces are also matched by backpropagation;
    the others see energy and direct force only. 0 is direct training, 1 conservative
    training. Terms that fewer frames see are weighted up in proportion. Default: 0.25,
    and 1 for batches of fewer than 200 atoms, where it takes no longer."""
    stages: Optional[list[StageHypers]] = None
    """Stages of the run, one after the other, each from the best model of the one
    before. Without stages a run is one stage."""
    learning_rate: Optional[float] = None
    """Highest learning rate, of Muon for matrices and AdamW for other weights. Default:
    1e-2 for ``painn`` and ``ace``, 4e-3 and 2.5e-3 in batches of fewer than 200 atoms,
    and 1e-3 for the networks of metatrain."""
    warmup_fraction: float = 0.02
    """Share of a stage over which the learning rate rises; it falls as a cosine."""
    weight_decay: float = 0.0
    """Weight decay, decoupled from the gradient."""
    grad_clip_norm: float = 1.0
    """Gradients longer than this are shortened."""
    ema_decay: float = 0.99
    """Decay of the moving average of the weights, for each step. The average is what is
    validated, selected and exported; 0 takes the weights themselves."""
    loss: str | dict[str, LossSpecification | str] = "huber"
    """Loss functions, as everywhere in metatrain: ``mse``, ``mae`` or ``huber``, with
    weights. Errors are divided by the spread of the labels before; direct forces take
    what is said of their energy's forces unless they are targets of their own."""
    energy_weight: float = 0.1
    """Weight of energies against forces where ``loss`` gives no weights."""
    direct_weight: float = 1.0
    """Weight of direct against conservative forces, likewise of stresses."""
    jacobian_symmetry: float = 0.0
    """Weight, against direct forces, of a penalty on the antisymmetric part of their
    Jacobian, in a quarter more time. 0.12 in a last stage makes direct forces more
    nearly conservative and no less accurate, see docs/recipe.md."""
    force_agreement: Optional[float] = None
    """Weight of the difference of conservative and direct force on copies of frames
    whose atoms are displaced at random, in the second half of each stage. Energy drifts
    less with multiple time steps, see docs/recipe.md. Default: 1, and 0 with a
    ``teacher``, and for batches of fewer than 200 atoms: a network that has seen few
    molecules is less accurate then."""
    stress_weight: float = 0.1
    """Weight of stresses against forces where ``loss`` gives no weights."""
    atomic_baseline: FixedCompositionWeights | str = {}
    """Energies of atoms to subtract, ``{"energy": {1: -13.6}}``, or a checkpoint of a
    composition model. What is not given is fitted. Fine-tuning keeps the baseline of
    the checkpoint, and moves it where the data have another zero of energy."""
    scale_targets: bool = True
    """Let the network predict in units of the spread of the labels."""
    max_force: Optional[float] = None
    """Frames with a force on an atom above this, in the unit of the data, are reported
    and excluded from the training or validation set. Default: 50 eV/Å."""
    max_energy: Optional[float] = None
    """Likewise frames whose energy per atom differs by more than this from that of
    their atoms in the training set, by least squares. An ``atomic_baseline`` must not
    leave more. Default: 20 eV."""
    max_stress: Optional[float] = None
    """Likewise frames with a component of the stress above this. Default: 3 eV/Å^3,
    which is 480 GPa."""
    augmentation: bool = True
    """Rotate frames at random where the network is not equivariant."""
    log_interval: int = 1
    """Epochs between lines in the log."""
    checkpoint_interval: int = 1
    """Epochs between checkpoints."""
    best_model_metric: Literal["mae_prod", "rmse_prod", "loss"] = "mae_prod"
    """What the best model of a stage is best in, on the validation set: product of the
    errors of all that the stage trains, or the loss."""
    finetune: FinetuneHypers = init_with_defaults(FinetuneHypers)
    """Start from trained weights."""
    teacher: TeacherHypers = init_with_defaults(TeacherHypers)
    """Learn direct forces from another model: ``options/accelerate-student.yaml``."""
