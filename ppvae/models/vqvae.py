"""The VQ-VAE: an image as a word of discrete codes.

van den Oord et al. 2017, "Neural discrete representation learning", arXiv 1711.00937.

    k ~ p(k)                x ~ p(x|e_k)              guide: k ~ q(k|x), at first the nearest codes k(x)

    log p(x) ≥ log p(x|e_k(x)) + log p(k(x))

k is a word of P letters from an alphabet of K, and e the codebook. The nearest code has no gradient: that of log
p(x|e_k) passes straight through to the encoder's output z(x), and a commitment term, −β |z(x) − e_k|² in the objective
alone, keeps the encoder near its codes. Codes follow the encoder by moving averages, or by a term −|e_k − z(x)|² of
their own.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppvae._validate import check_count, check_flag, check_number
from ppvae.distributions import Codebook, CodePosterior
from ppvae.models.base import check_pieces, mean_of
from ppvae.pair import loss_term

MAX_WORDS = 2**20
"""The most words that `log_prob` sums over."""

SCORED = 2**22
"""Elements of data that are scored under words at once."""


class VQVAE(nn.Module):
    """A generative model with a word of codes as its latent, and the encoder's nearest codes as its guide.

    Train the codes with a `UniformCategorical` as the prior, then, with all else frozen, a prior of their words. While
    an encoder is trained it runs twice a step, in the guide for the codes and in the model for the gradient. Codes
    learned by moving averages are updated in training mode, once for each particle, as long as the encoder has a
    parameter to train.

    Args:
        p_k: prior, a module `() -> p(k)` over words (P,): `UniformCategorical(K, P)`, `CategoricalPrior(K, P)`, or an
            `AutoregressivePrior`.
        p_x_given_e: likelihood, a module `e -> p(x|e)` of the codes (P, dim) of a word.
        q_k_given_x: posterior, a `CodePosterior`, which holds encoder and codebook.
        commitment: β.

    Raises:
        ValueError: where `commitment` is no number >= 0.
        TypeError: where a piece is no module, or `q_k_given_x` no `CodePosterior`.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.distributions import AutoregressivePrior, Codebook, CodePosterior
        >>> from ppvae.distributions import ConditionalBernoulli, UniformCategorical
        >>> from ppvae.nn import MLP, CausalTransformer
        >>> vqvae = VQVAE(
        ...     p_k=UniformCategorical(8, 3),
        ...     p_x_given_e=ConditionalBernoulli(MLP((3, 4), (32,), 64)),
        ...     q_k_given_x=CodePosterior(MLP(64, (32,), (3, 4)), Codebook(8, 4)),
        ... )
        >>> x = torch.bernoulli(torch.full((100, 64), 0.5))
        >>> run = ppvae.fit(vqvae, x, epochs=1, progress=False)
        >>> frozen = vqvae.requires_grad_(False)
        >>> vqvae.p_k = AutoregressivePrior(CausalTransformer(8, 3, dim=16))
        >>> run = ppvae.fit(vqvae, x, epochs=1, progress=False)
        >>> temperature = ppvae.evaluate.fit_temperature(vqvae, vqvae.q_k_given_x.temperature, x, num_samples=10)
        >>> ppvae.log_marginal(vqvae, x, num_samples=10).values.shape, vqvae.log_prob(x).shape
        (torch.Size([100]), torch.Size([100]))
    """

    q_k_given_x: CodePosterior

    def __init__(
        self, p_k: nn.Module, p_x_given_e: nn.Module, q_k_given_x: CodePosterior, *, commitment: float = 0.25
    ) -> None:
        super().__init__()
        self.commitment = check_number("commitment", commitment, at_least=0)
        check_pieces(p_k=p_k, p_x_given_e=p_x_given_e, q_k_given_x=q_k_given_x)
        if not isinstance(q_k_given_x, CodePosterior):
            raise TypeError(f"q_k_given_x must be a CodePosterior, got {type(q_k_given_x).__name__}")
        self.p_k = p_k
        self.p_x_given_e = p_x_given_e
        self.q_k_given_x = q_k_given_x

    @property
    def codebook(self) -> Codebook:
        """The codes, which the posterior holds."""
        return self.q_k_given_x.codebook

    def model(self, x: Tensor) -> None:
        """K ~ p(k), x ~ p(x|e_k); in training the encoder's terms, and its codes are updated."""
        p_k = self.p_k()
        if dist.is_validation_enabled():
            self._check_letters(p_k)
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", p_k)
            e = self.codebook(k)
            if self._trains_encoder():
                e = self._straight_through(x, k, e)
            pyro.sample("x", self.p_x_given_e(e), obs=x)

    def guide(self, x: Tensor) -> None:
        """K ~ q(k|x), without a gradient."""
        with pyro.plate("data", len(x)), torch.no_grad():
            pyro.sample("k", self.q_k_given_x(x))

    def _check_letters(self, p_k: TorchDistribution) -> None:
        """Checks that the prior's letters are the codes: words of others would have a share of its probability."""
        last = getattr(getattr(p_k.support, "base_constraint", None), "upper_bound", None)
        if last is not None and int(last) + 1 != self.codebook.num_codes:
            raise ValueError(
                f"p_k must be of words of the {self.codebook.num_codes} codes of the codebook, "
                f"got one of {int(last) + 1}"
            )

    def _trains_encoder(self) -> bool:
        trained = any(parameter.requires_grad for parameter in self.q_k_given_x.parameters())
        return self.training and torch.is_grad_enabled() and trained

    def _straight_through(self, x: Tensor, k: Tensor, e: Tensor) -> Tensor:
        """The codes e, with the gradient of the encoder's output in the place of their own; what else trains both."""
        z = self.q_k_given_x.points(x)
        loss_term("commitment", self.commitment * (z - e.detach()).square().sum((-1, -2)))
        if self.codebook.learned == "gradient":
            loss_term("codebook", (e - z.detach()).square().sum((-1, -2)))
        self.codebook.update(z, k)
        return e.detach() + (z - z.detach())  # their very values, as nothing is added to them

    def encode(self, x: Tensor) -> TorchDistribution:
        """q(k|x) for x of shape (..., *event)."""
        return self.q_k_given_x(x)

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """The nearest codes of x, indices (..., P)."""
        return self.codebook.nearest(self.q_k_given_x.points(x))

    def decode(self, k: Tensor) -> TorchDistribution:
        """p(x|e_k) for words k of shape (..., P)."""
        return self.p_x_given_e(self.codebook(k))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x|e_k] at the nearest codes of x, shape (..., *event)."""
        return mean_of(self.decode(self.codes(x)))

    @torch.no_grad()
    def sample(self, num_samples: int, *, mean: bool = False) -> Tensor:
        """Draws from the model: k ~ p(k), then x ~ p(x|e_k).

        Args:
            num_samples: n, how many.
            mean: whether to return E[x|e_k] in place of a draw of x.

        Returns:
            Data of shape (n, *event).
        """
        check_flag("mean", mean)
        p_x = self.decode(self.p_k().sample((check_count("num_samples", num_samples),)))
        return mean_of(p_x) if mean else p_x.sample()

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """Log p(x), exactly: log Σ_k p(k) p(x|e_k) over all K^P words.

        Args:
            x: data (..., *event).

        Returns:
            Shape (...), nats, float64.

        Raises:
            ValueError: where there are more than 2^20 words.
        """
        p_k, num_codes = self.p_k(), self.codebook.num_codes
        (num_positions,) = p_k.event_shape
        if num_codes**num_positions > MAX_WORDS:
            raise ValueError(
                f"there are {num_codes}^{num_positions} words, more than the {MAX_WORDS} that can be summed over; "
                "ppvae.log_marginal estimates log p(x)"
            )
        letters = torch.arange(num_codes, device=x.device)
        words = torch.cartesian_prod(*[letters] * num_positions).reshape(-1, num_positions)
        total = torch.tensor(-torch.inf, dtype=torch.float64, device=x.device)
        for part in words.split(max(1, SCORED // x.numel())):
            p_x = self.decode(part)
            joint = p_k.log_prob(part) + p_x.log_prob(x.unsqueeze(-1 - len(p_x.event_shape)))
            total = torch.logaddexp(total, joint.double().logsumexp(-1))
        return total
