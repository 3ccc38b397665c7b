"""Objectives without a prior: the autoencoder, and its codes kept small."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ppvae.objectives.drawn_codes import CodeObjective
from ppvae.objectives.scheduled import Value


class AE(CodeObjective):
    r"""The autoencoder: the reconstruction alone.

    .. math:: -E_q[\log p(x \mid z)]

    For a deterministic encoder (`ConditionalDelta`), whose codes have no density: the history then has no `elbo`, and
    `fit` validates by the loss itself. The prior of the pair is not trained; `ppvae.models.fit_prior` fits one to the
    codes afterwards. A guide with a density trains too, towards a narrow one, with its ELBO beside.

    Args:
        num_particles: draws per datum and step.

    References:
        Reducing the dimensionality of data with neural networks (Hinton & Salakhutdinov 2006).

    Example:
        >>> import torch, ppvae
        >>> from ppvae.distributions import ConditionalDelta, ConditionalNormal, StandardNormal
        >>> from ppvae.models import VAE, fit_prior
        >>> from ppvae.nn import MLP
        >>> decoder, encoder = ConditionalNormal(MLP(2, (), 8), scale="learned"), ConditionalDelta(MLP(8, (), 2))
        >>> vae, x = VAE(StandardNormal(2), decoder, encoder), torch.randn(100, 8)
        >>> run = ppvae.fit(vae, x, x[:20], loss=AE(), epochs=1, progress=False)
        >>> "valid_loss" in run.history[0], "elbo" in run.history[0]
        (True, False)
        >>> fit_prior(vae, x).sample(5).shape
        torch.Size([5, 8])
    """

    def __init__(self, *, num_particles: int = 1) -> None:
        super().__init__({}, num_particles, kl_weight=0.0)

    def _penalty(self, z: Tensor, prior: Callable[[], Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        nothing = z.new_zeros(())
        return nothing, nothing, {}


class RAE(CodeObjective):
    r"""The regularized autoencoder: codes are kept small, and the decoder smooth.

    .. math:: -E_q[\log p(x \mid z)] + \frac{\beta}{2} \|z\|^2

    The decoder's part is its weights' own: `fit(param_groups={"p_x_given_z.*": {"weight_decay": 1e-4}})`, which torch's
    `Adam` adds to the gradient (RAE-L2), or spectral norm (RAE-SN). Afterwards `ppvae.models.fit_prior` fits a normal,
    or a mixture of normals, to the codes of the training data and puts it in the place of p(z).

    The history has the mean of ‖z‖² as `code_norm`.

    Args:
        code_weight: β, a number or a schedule.
        num_particles: draws per datum and step.

    Raises:
        TypeError: where an option is of the wrong kind.
        ValueError: where a number is negative or not finite.

    References:
        From variational to deterministic autoencoders (Ghosh et al. 2020), arXiv 1903.12436.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.models import PPCA
        >>> loss, x = RAE(code_weight=0.1), torch.randn(100, 8)
        >>> decay = {"p_x_given_z.*": {"weight_decay": 1e-4}}
        >>> pair = PPCA(8, 2, guide="amortized")
        >>> run = ppvae.fit(pair, x, loss=loss, param_groups=decay, epochs=1, progress=False)
    """

    def __init__(self, code_weight: Value = 1e-2, *, num_particles: int = 1) -> None:
        super().__init__({"code_weight": code_weight}, num_particles, kl_weight=0.0)
        self.code_weight = code_weight

    def _penalty(self, z: Tensor, prior: Callable[[], Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        squares = z.square().sum(-1).mean()
        return 0.5 * self._values["code_weight"] * squares, z.new_zeros(()), {"code_norm": squares}
