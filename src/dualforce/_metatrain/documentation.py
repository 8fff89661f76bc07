"""Options of the architecture, where metatrain looks for them."""

from dualforce.architecture.documentation import ModelHypers, TrainerHypers


__all__ = ["ModelHypers", "TrainerHypers"]
