"""Draws of a pair in ArviZ's terms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ppvae.evaluate.predictive import PosteriorPredictive
from ppvae.evaluate.psis import import_arviz

if TYPE_CHECKING:
    from arviz import InferenceData


def to_arviz(draws: PosteriorPredictive) -> InferenceData:
    """Draws of `posterior_predictive` as an `arviz.InferenceData` with named dims and coordinates.

    Groups: posterior, posterior_predictive and log_likelihood, of dims (chain, draw, datum, ...); observed_data, and
    constant_data for the arguments that are no observations, of dims (datum, ...). Then follow the plates inside the
    data plate under their own names, and the event dims of a variable z: `z_dim`, or `z_dim_0`, `z_dim_1`, ...

    The draws are independent and from the guide: no Markov chain, whose R̂ they do not have. The parameters are held
    fixed and every datum has latents of its own, so that the log-density of a datum that is left out is log p(x)
    itself. `az.loo` takes a smoothed harmonic mean of p(x|z) for it, which needs the guide to be the posterior and has
    usually a high k̂; `ppvae.log_marginal` estimates the same number without either fault. Latents that all data share
    are of dims (chain, draw, ...): of such a pair `az.loo` is what it is meant for.

    Args:
        draws: of `posterior_predictive`.

    Example:
        >>> import torch
        >>> from ppvae.evaluate.predictive import posterior_predictive
        >>> from ppvae.models import PPCA
        >>> data = to_arviz(posterior_predictive(PPCA(8, 2), torch.randn(5, 8), num_samples=20))
        >>> dict(data.posterior["z"].sizes)
        {'chain': 1, 'draw': 20, 'datum': 5, 'z_dim': 2}
    """
    if not isinstance(draws, PosteriorPredictive):
        raise TypeError(f"draws must be what posterior_predictive returns, got {type(draws).__name__}")
    of_draws = ("chain", "draw", "datum")
    taken = {*draws.posterior, *draws.observed, *draws.conditions, *of_draws}
    plates = {
        site: [f"{name}_plate" if name in taken else name for name in names] for site, names in draws.plates.items()
    }

    def drawn(values: dict[str, Tensor]) -> Any:
        return _dataset({name: value.unsqueeze(0) for name, value in values.items()}, of_draws, plates)

    posterior = drawn({z: value for z, value in draws.posterior.items() if z not in draws.shared})
    shared = {z: draws.posterior[z].unsqueeze(0) for z in draws.shared}
    posterior = posterior.merge(_dataset(shared, of_draws[:2], plates)) if shared else posterior
    constant = {"constant_data": _dataset(draws.conditions, ("datum",), plates)} if draws.conditions else {}
    return import_arviz().InferenceData(
        posterior=posterior,
        posterior_predictive=drawn(draws.predictive),
        log_likelihood=_dataset({x: v.unsqueeze(0) for x, v in draws.log_likelihood.items()}, of_draws, {}),
        observed_data=_dataset(draws.observed, ("datum",), plates),
        **constant,
    )


def _dataset(values: dict[str, Tensor], leading: tuple[str, ...], plates: dict[str, list[str]]) -> Any:
    """An `xarray.Dataset` of variables whose first dims are `leading`, then plates, then event dims."""
    from xarray import Dataset

    variables = {}
    sizes: dict[str, int] = {}
    for name, value in values.items():
        dims = [*leading, *plates.get(name, [])]
        rest = value.dim() - len(dims)
        dims += [f"{name}_dim"] if rest == 1 else [f"{name}_dim_{i}" for i in range(rest)]
        wide = value.float() if value.is_floating_point() and value.itemsize < 4 else value  # numpy has no bfloat16
        variables[name] = (dims, wide.detach().numpy())
        sizes |= dict(zip(dims, value.shape, strict=True))
    coords = {dim: np.arange(size) for dim, size in sizes.items()}
    return Dataset(variables, coords=coords, attrs={"inference_library": "ppvae"})
