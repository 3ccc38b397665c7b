"""Arrays in, a matplotlib `Figure` out: nothing here samples, trains, or changes a setting of matplotlib.

Figures are made for print, 8 point text at their natural size, and are saved with `save`.
"""

from ppvae.plot.calibration import guide_against_nuts, ppc, rank_histogram, sbc_ecdf
from ppvae.plot.curves import compare_curves, training_curves
from ppvae.plot.figure import save
from ppvae.plot.images import by_condition, interpolation, reconstructions, samples, samples_beside_data, traversal
from ppvae.plot.latent import aggregated_posterior, kl_per_dimension, latent_scatter
from ppvae.plot.likelihood import bound_curve, log_prob_histogram, pareto_k
from ppvae.plot.reliability import reliability_diagram
from ppvae.plot.rolls import rolls
from ppvae.plot.table import columns_beside_data, filled_in, spread_of_counts

__all__ = [
    "aggregated_posterior",
    "bound_curve",
    "by_condition",
    "columns_beside_data",
    "compare_curves",
    "filled_in",
    "guide_against_nuts",
    "interpolation",
    "kl_per_dimension",
    "latent_scatter",
    "log_prob_histogram",
    "pareto_k",
    "ppc",
    "rank_histogram",
    "reconstructions",
    "reliability_diagram",
    "rolls",
    "samples",
    "samples_beside_data",
    "save",
    "sbc_ecdf",
    "spread_of_counts",
    "training_curves",
    "traversal",
]
