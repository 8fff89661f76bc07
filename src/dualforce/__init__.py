"""Interatomic potentials with conservative and direct forces.

What users need is here: load forces, run and relax, tune, diagnose, combine. The names
are listed in ``__init__.pyi`` and imported when they are used, so that ``import
dualforce`` alone takes no time.
"""

import lazy_loader


__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
