"""The VAE of data of which a part is missing: what is not there has no likelihood, and the encoder knows where it is.

Mattei & Frellsen 2019, "MIWAE: deep generative modelling and imputation of incomplete data sets", arXiv 1812.02633,
which trains it with `IWAE(num_particles)`; mixed tables as in Nazábal et al. 2020, arXiv 1807.03653.

    z ~ p(z)              x_j ~ p(x_j|z) for the observed j              guide: z ~ q(z | x observed, which)

    log p(x observed) ≥ E_q[Σ_{j observed} log p(x_j|z)] − KL(q ‖ p(z))

That is the likelihood of what was observed where values are missing at random.
"""

from __future__ import annotations

import pyro
import torch
from torch import Tensor, nn

from ppvae._validate import check_number
from ppvae.models.base import check_pieces
from ppvae.observed import of_observed
from ppvae.pair import KLWeight


class MaskedVAE(nn.Module):
    """A generative model of x with one latent z, given which elements of each x were observed.

    Args:
        p_z: prior, a module `() -> p(z)`.
        p_x_given_z: likelihood of independent elements, a module `z -> p(x|z)`: `ConditionalColumns` for a table.
        q_z_given_x: posterior, a module `(x, observed) -> q(z|x)`, given zeros where nothing was observed:
            `ConditionalNormal(ColumnEncoder(...))`, or of a `nn.ConcatInputs`.
        beta: weight of the KL term while training; evaluation ignores it.

    Raises:
        ValueError: where `beta` is no number >= 0.
        TypeError: where a piece is no module.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.data import Column, split_missing
        >>> from ppvae.distributions import ColumnEncoder, ConditionalColumns, num_params
        >>> from ppvae.distributions import ConditionalNormal, StandardNormal
        >>> from ppvae.nn import MLP
        >>> columns = [Column("a"), Column("b"), Column("c")]
        >>> pair = MaskedVAE(
        ...     p_z=StandardNormal(2),
        ...     p_x_given_z=ConditionalColumns(MLP(2, (16,), num_params(columns)), columns),
        ...     q_z_given_x=ConditionalNormal(ColumnEncoder(columns, (16,), (2, 2))),
        ... )
        >>> table = torch.where(torch.rand(100, 3) < 0.2, torch.nan, torch.randn(100, 3))
        >>> x, observed = split_missing(table)
        >>> run = ppvae.fit(pair, (x, observed), epochs=1, progress=False)
        >>> ppvae.log_marginal(pair, x, observed, num_samples=20).values.shape
        torch.Size([100])
    """

    def __init__(self, p_z: nn.Module, p_x_given_z: nn.Module, q_z_given_x: nn.Module, *, beta: float = 1.0) -> None:
        super().__init__()
        check_number("beta", beta, at_least=0)
        check_pieces(p_z=p_z, p_x_given_z=p_x_given_z, q_z_given_x=q_z_given_x)
        self.p_z = p_z
        self.p_x_given_z = p_x_given_z
        self.q_z_given_x = q_z_given_x
        self.beta = beta

    def model(self, x: Tensor, observed: Tensor) -> None:
        """Z ~ p(z), x ~ p(x|z) where it was observed."""
        with pyro.plate("data", len(x)), KLWeight(self.beta):
            z = pyro.sample("z", self.p_z())
            pyro.sample("x", of_observed(self.p_x_given_z(z), observed), obs=x)

    def guide(self, x: Tensor, observed: Tensor) -> None:
        """Z ~ q(z | x observed, which)."""
        with pyro.plate("data", len(x)), KLWeight(self.beta):
            pyro.sample("z", self.q_z_given_x(torch.where(observed, x, 0), observed))
