"""The tests metatrain has for all architectures, for every backbone."""

from pathlib import Path
from typing import Any, Dict

import pytest
from helpers import small_hypers
from metatrain.utils.architectures import get_default_hypers
from metatrain.utils.testing import (
    ArchitectureTests,
    AutogradTests,
    CheckpointTests,
    ExportedTests,
    InputTests,
    OutputTests,
    TorchscriptTests,
    TrainingTests,
)


CHECKPOINTS = Path(__file__).parent / "checkpoints"


class DualForceTests(ArchitectureTests):
    """The architecture, with a small network and a data set of our own."""

    architecture = "experimental.dualforce"
    backbone = "painn"

    @pytest.fixture
    def dataset_path(self, molecules_path: str) -> str:
        """The file of metatrain's repository is not part of its wheel."""
        return molecules_path

    @pytest.fixture
    def default_hypers(self) -> Dict[str, Any]:
        """Default options but for the choice of the network."""
        hypers = get_default_hypers(self.architecture)
        hypers["model"]["backbone"] = self.backbone
        return hypers

    @pytest.fixture
    def model_hypers(self) -> Dict[str, Any]:
        """A small network."""
        return small_hypers(self.backbone)

    @pytest.fixture
    def minimal_model_hypers(self) -> Dict[str, Any]:
        """A network whose checkpoint takes a few kB."""
        hypers = small_hypers(self.backbone)
        hypers["painn"].update(n_channels=2, n_layers=1, n_radial=2)
        hypers["ace"].update(n_channels=2, n_layers=1, n_radial=2, l_max=2)
        hypers["pet"].update(d_pet=2, d_head=2, d_node=2, d_feedforward=2)
        hypers["soap_bpnn"]["soap"].update(max_angular=1, max_radial=1)
        hypers["soap_bpnn"]["bpnn"].update(num_neurons_per_layer=2, layernorm=False)
        return hypers


class ACETests(DualForceTests):
    """The network of density products."""

    backbone = "ace"


class PETTests(DualForceTests):
    """Metatrain's PET as the network."""

    backbone = "pet"


class SoapBPNNTests(DualForceTests):
    """Metatrain's SOAP-BPNN as the network."""

    backbone = "soap_bpnn"


class _Output(OutputTests):
    # Targets are energies, scalars, Cartesian vectors, direct forces and direct
    # stresses; there is no head for spherical tensors.
    supports_spherical_outputs = False
    supports_spherical_rank2_outputs = False
    supports_spherical_atomic_basis_outputs = False
    # They serve the uncertainties of metatrain's LLPR, which are not offered.
    supports_last_layer_features = False


class _Torchscript(TorchscriptTests):
    supports_spherical_outputs = False  # as above


class _Training(TrainingTests):
    supports_atomic_basis = False  # these are spherical targets


class _Checkpoints(CheckpointTests):
    @pytest.fixture(autouse=True)
    def in_checkpoint_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Run where ``checkpoints/`` holds the references of this backbone, without
        leaving files in the repository.

        The suite writes a missing reference into the working directory, which is
        ``here`` in pytest's temporary directory; it belongs in
        ``tests/checkpoints/<backbone>/``.
        """
        here = tmp_path / "here"
        here.mkdir()
        references = CHECKPOINTS / self.backbone  # type: ignore[attr-defined]
        (here / "checkpoints").symlink_to(references)
        monkeypatch.chdir(here)


class TestInputPaiNN(InputTests, DualForceTests):
    """Options and restarts."""


class TestInputACE(InputTests, ACETests):
    """Options and restarts."""


class TestInputPET(InputTests, PETTests):
    """Options and restarts."""


class TestInputSoapBPNN(InputTests, SoapBPNNTests):
    """Options and restarts."""


class TestOutputPaiNN(_Output, DualForceTests):
    """Outputs, their metadata and symmetries."""

    @pytest.fixture
    def n_features(self, model_hypers: Dict[str, Any]) -> int:
        """Scalar features."""
        return model_hypers["painn"]["n_channels"]


class TestOutputACE(_Output, ACETests):
    """Outputs, their metadata and symmetries."""

    @pytest.fixture
    def n_features(self, model_hypers: Dict[str, Any]) -> int:
        """Scalar features."""
        return model_hypers["ace"]["n_channels"]


class TestOutputPET(_Output, PETTests):
    """Outputs and their metadata."""

    is_equivariant_rotations = False  # PET learns symmetries from rotated frames
    is_equivariant_reflections = False

    @pytest.fixture
    def n_features(self, model_hypers: Dict[str, Any]) -> int:
        """Features of the last layer's nodes and edges."""
        return model_hypers["pet"]["d_node"] + model_hypers["pet"]["d_pet"]


class TestOutputSoapBPNN(_Output, SoapBPNNTests):
    """Outputs, their metadata and symmetries."""


class TestAutogradPaiNN(AutogradTests, DualForceTests):
    """First and second derivatives of the energy."""


class TestAutogradACE(AutogradTests, ACETests):
    """First and second derivatives of the energy."""


class TestAutogradPET(AutogradTests, PETTests):
    """First and second derivatives of the energy."""


class TestAutogradSoapBPNN(AutogradTests, SoapBPNNTests):
    """First and second derivatives of the energy."""


class TestTorchscriptPaiNN(_Torchscript, DualForceTests):
    """Compilation."""

    float_hypers = ["painn.cutoff", "painn.n_neighbors"]


class TestTorchscriptACE(_Torchscript, ACETests):
    """Compilation."""

    float_hypers = ["ace.cutoff", "ace.n_neighbors"]


class TestTorchscriptPET(_Torchscript, PETTests):
    """Compilation."""

    float_hypers = ["pet.cutoff", "pet.cutoff_width"]


class TestTorchscriptSoapBPNN(_Torchscript, SoapBPNNTests):
    """Compilation."""

    float_hypers = ["soap_bpnn.soap.cutoff.radius", "soap_bpnn.soap.cutoff.width"]


class TestExportedPaiNN(ExportedTests, DualForceTests):
    """Exported models in both precisions."""


class TestExportedACE(ExportedTests, ACETests):
    """Exported models in both precisions."""


class TestExportedPET(ExportedTests, PETTests):
    """Exported models in both precisions."""


class TestExportedSoapBPNN(ExportedTests, SoapBPNNTests):
    """Exported models in both precisions."""


class TestTrainingPaiNN(_Training, DualForceTests):
    """Training and restarts."""


class TestTrainingACE(_Training, ACETests):
    """Training and restarts."""


class TestTrainingPET(_Training, PETTests):
    """Training and restarts."""


class TestTrainingSoapBPNN(_Training, SoapBPNNTests):
    """Training and restarts."""


class TestCheckpointsPaiNN(_Checkpoints, DualForceTests):
    """Checkpoints of this and of earlier versions."""


class TestCheckpointsACE(_Checkpoints, ACETests):
    """Checkpoints of this and of earlier versions."""


class TestCheckpointsPET(_Checkpoints, PETTests):
    """Checkpoints of this and of earlier versions."""


class TestCheckpointsSoapBPNN(_Checkpoints, SoapBPNNTests):
    """Checkpoints of this and of earlier versions."""
