"""Options of the architecture, where metatrain looks for them."""

from dualforce.training.options import ModelHypers, TrainerHypers


__all__ = ["ModelHypers", "TrainerHypers"]
