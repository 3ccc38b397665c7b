"""Variational autoencoders as Pyro model/guide pairs, judged by their marginal likelihood.

data ──► pair (models over distributions over nn) ──► objectives ──► infer (SVI, fit) ──► run folder
                                                  └─► sampling ──► evaluate ──► plot

`import ppvae` alone loads nothing: what stands here and the subpackages are imported where they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppvae.cli.doctor import doctor
    from ppvae.cli.export import export
    from ppvae.cli.exported import export_conditional
    from ppvae.cli.hub import from_hub, push_to_hub
    from ppvae.cli.runs import open_run
    from ppvae.evaluate import elbo, encode, log_marginal
    from ppvae.explorer import explore
    from ppvae.infer.fit import fit
    from ppvae.infer.svi import SVI
    from ppvae.pair import KLWeight, Pair, loss_term
    from ppvae.weights import load, save

__version__ = "0.1.0"

__all__ = [
    "SVI",
    "KLWeight",
    "Pair",
    "__version__",
    "doctor",
    "elbo",
    "encode",
    "explore",
    "export",
    "export_conditional",
    "fit",
    "from_hub",
    "load",
    "log_marginal",
    "loss_term",
    "open_run",
    "push_to_hub",
    "save",
]

_HOMES = {
    "SVI": "infer",
    "fit": "infer",
    "KLWeight": "pair",
    "Pair": "pair",
    "loss_term": "pair",
    "load": "weights",
    "save": "weights",
    "elbo": "evaluate",
    "encode": "evaluate",
    "log_marginal": "evaluate",
    "doctor": "cli.doctor",
    "export": "cli.export",
    "export_conditional": "cli.exported",
    "from_hub": "cli.hub",
    "push_to_hub": "cli.hub",
    "explore": "explorer",
    "open_run": "cli.runs",
}
"""Where each public name lives."""

_SUBPACKAGES = {
    "compile",
    "data",
    "distributions",
    "evaluate",
    "infer",
    "models",
    "nn",
    "objectives",
    "plot",
    "sampling",
}
_MODULES = {"pair", "params", "processes", "storage", "traces", "weights"}


def __getattr__(name: str) -> Any:
    """Imports a public name, or a subpackage, at its first use."""
    if name in _HOMES:
        value = getattr(import_module(f"ppvae.{_HOMES[name]}"), name)
    elif name in _SUBPACKAGES | _MODULES:
        value = import_module(f"ppvae.{name}")
    else:
        raise AttributeError(f"module 'ppvae' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names and the subpackages."""
    return sorted({*globals(), *__all__, *_SUBPACKAGES, *_MODULES})
