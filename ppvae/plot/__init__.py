"""Arrays in, a matplotlib `Figure` out: nothing here samples, trains, or changes a setting of matplotlib.

Figures are made for print, 8 point text at their natural size, and are saved with `save`.
"""

from ppvae.plot.curves import training_curves
from ppvae.plot.figure import save
from ppvae.plot.images import by_condition, interpolation, reconstructions, samples, traversal
from ppvae.plot.latent import latent_scatter

__all__ = [
    "by_condition",
    "interpolation",
    "latent_scatter",
    "reconstructions",
    "samples",
    "save",
    "training_curves",
    "traversal",
]
