"""Many replicas at once in torch-sim, with both forces.

Integrators and models in torch-sim's own form, for ``torch_sim.integrate`` and the
autobatcher. The names are listed in ``__init__.pyi`` and imported when they are used:
torch-sim, which needs Python 3.12 or later, is asked for only then.
"""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
