"""The VAE of sequences: one latent for all of a sequence, and a decoder that also sees the steps before each.

Bowman et al. 2016, "Generating sentences from a continuous space", arXiv 1511.06349.

    z ~ p(z)            x_t ~ p(x_t | z, x_1, ..., x_{t-1}), t = 1, ..., n            guide: z ~ q(z | x, n)

    log p(x) ≥ E_q[Σ_t log p(x_t | z, x_<t)] − KL(q(z|x) ‖ p(z))    trained with β times the second term

A decoder that sees much of what was before does without z, and the KL term goes to zero: `word_dropout` of
`nn.SequenceDecoder` hides steps from it in training, `objectives.FreeBits` spares z the first nats of its cost.
"""

from __future__ import annotations

from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppvae._validate import check_count, check_number
from ppvae.distributions import ConditionalSequence
from ppvae.means import code_of
from ppvae.models.base import check_pieces, line_between
from ppvae.nn import check_lengths
from ppvae.pair import KLWeight


class Sequences(NamedTuple):
    """Sequences that were generated.

    Attributes:
        x: values (..., t) or (..., t, d).
        lengths: how many steps of each count, (...): up to the end and with it; t where there is none.
    """

    x: Tensor
    lengths: Tensor


class SequenceVAE(nn.Module):
    """A generative model of sequences of any length with one latent z, and an amortized guide.

    Data are padded to one number of steps; `lengths` says how many count, and what stands after them changes no number.
    In the model and the guide lengths are checked where Pyro's validation is on, in the queries always.

    Args:
        p_z: prior, a module `() -> p(z)`.
        p_x_given_z: likelihood, a `ConditionalSequence`, from `(z, num_steps, lengths)` to p(x|z).
        q_z_given_x: posterior, a module `(x, lengths) -> q(z|x)`: `ConditionalNormal(nn.SequenceEncoder(...))`.
        beta: weight of the KL term while training; evaluation ignores it.

    Raises:
        ValueError: where `beta` is no number >= 0.
        TypeError: where a piece is no such module.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.data import Vocabulary
        >>> from ppvae.distributions import ConditionalCategorical, ConditionalNormal
        >>> from ppvae.distributions import ConditionalSequence, StandardNormal
        >>> from ppvae.nn import RNN, SequenceDecoder, SequenceEncoder
        >>> texts = ["so it goes", "so be it", "be it so"]
        >>> vocabulary = Vocabulary.of(texts, "words")
        >>> size = len(vocabulary)
        >>> decoder = SequenceDecoder(torch.nn.Embedding(size, 8), RNN(8, 16), 2, size, word_dropout=0.3)
        >>> pair = SequenceVAE(
        ...     p_z=StandardNormal(2),
        ...     p_x_given_z=ConditionalSequence(ConditionalCategorical(decoder, num_classes=size)),
        ...     q_z_given_x=ConditionalNormal(SequenceEncoder(torch.nn.Embedding(size, 8), RNN(8, 16), (2, 2))),
        ... )
        >>> x, lengths = vocabulary.encode(texts)
        >>> run = ppvae.fit(pair, (x, lengths), epochs=1, progress=False)
        >>> ppvae.log_marginal(pair, x, lengths, num_samples=10).values.shape
        torch.Size([3])
        >>> len(vocabulary.decode(*pair.eval().sample(5, 7, end=vocabulary.end)))
        5
    """

    def __init__(
        self, p_z: nn.Module, p_x_given_z: ConditionalSequence, q_z_given_x: nn.Module, *, beta: float = 1.0
    ) -> None:
        super().__init__()
        check_number("beta", beta, at_least=0)
        check_pieces(p_z=p_z, p_x_given_z=p_x_given_z, q_z_given_x=q_z_given_x)
        if not isinstance(p_x_given_z, ConditionalSequence):
            raise TypeError(f"p_x_given_z must be a ConditionalSequence, got {type(p_x_given_z).__name__}")
        self.p_z = p_z
        self.p_x_given_z = p_x_given_z
        self.q_z_given_x = q_z_given_x
        self.beta = beta

    def model(self, x: Tensor, lengths: Tensor) -> None:
        """Z ~ p(z), x ~ p(x|z), as many steps as count."""
        if dist.is_validation_enabled():
            self.check_batch(x, lengths)
        with pyro.plate("data", len(x)), KLWeight(self.beta):
            z = pyro.sample("z", self.p_z())
            pyro.sample("x", self.p_x_given_z(z, x.shape[1], lengths), obs=x)

    def guide(self, x: Tensor, lengths: Tensor) -> None:
        """Z ~ q(z|x)."""
        if dist.is_validation_enabled():
            self.check_batch(x, lengths)
        with pyro.plate("data", len(x)), KLWeight(self.beta):
            pyro.sample("z", self.q_z_given_x(x, lengths))

    def encode(self, x: Tensor, lengths: Tensor) -> TorchDistribution:
        """q(z|x) for sequences of shape (..., t) or (..., t, d): its `.mean` is the code of x."""
        self.check_batch(x, lengths)
        return self.q_z_given_x(x, lengths)

    @torch.no_grad()
    def decode(
        self,
        z: Tensor,
        num_steps: int,
        *,
        end: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Sequences:
        """Draws one sequence for every z, step by step.

        Args:
            z: latents (..., k).
            num_steps: t, the most steps of a sequence.
            end: the token after which a sequence has ended, `Vocabulary.end`; None where there is none.
            temperature: what log-probabilities of tokens are divided by; 1 draws from the model, 0 takes the most
                probable token at every step.
            top_k: of how many tokens, the most probable ones, one is drawn; None is all.

        Returns:
            The sequences, and their lengths.

        Raises:
            ValueError: where an option is out of range.
        """
        check_count("num_steps", num_steps)
        steps = self.p_x_given_z.steps((z,), (*z.shape[:-1], num_steps))
        x = steps.generate(end=end, temperature=temperature, top_k=top_k)
        if end is None:
            return Sequences(x, torch.full(z.shape[:-1], num_steps, device=x.device))
        return Sequences(x, (1 + (x != end).sum(-1)).clamp(max=num_steps))

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        num_steps: int,
        *,
        end: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Sequences:
        """Draws sequences from the model, z ~ p(z) first; see `decode`."""
        z = self.p_z().sample((check_count("num_samples", num_samples),))
        return self.decode(z, num_steps, end=end, temperature=temperature, top_k=top_k)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, lengths: Tensor, *, end: int | None = None) -> Sequences:
        """The most probable steps, one after the other, at the code of each sequence of tokens."""
        return self.decode(code_of(self.encode(x, lengths)), x.shape[lengths.dim()], end=end, temperature=0.0)

    @torch.no_grad()
    def interpolate(self, x: Tensor, lengths: Tensor, *, num_points: int = 7, end: int | None = None) -> Sequences:
        """The most probable steps along the straight line between the codes of two sequences of tokens.

        Args:
            x: the two, (2, t).
            lengths: theirs, (2,).
            num_points: points on the line, both ends included.
            end: see `decode`.

        Returns:
            Sequences (num_points, t).

        Raises:
            ValueError: where there are not two.
        """
        if len(x) != 2:
            raise ValueError(f"x must hold two sequences, got {len(x)}")
        q_from, q_to = (self.encode(x[i], lengths[i]) for i in range(2))
        return self.decode(line_between(q_from, q_to, num_points), x.shape[1], end=end, temperature=0.0)

    def check_batch(self, x: Tensor, lengths: Tensor) -> None:
        """Checks sequences and their lengths, whose values are read from the device.

        Raises:
            TypeError: where x is no tensor, or lengths are no tensor of integers.
            ValueError: where there is not one length, from 1 to t, for each of x.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor, got {type(x).__name__}")
        event_shape = self.p_x_given_z.event_shape
        lead = x.shape[: x.dim() - 1 - len(event_shape)]
        if not isinstance(lengths, Tensor) or lengths.shape != lead or x.shape[len(lead) + 1 :] != event_shape:
            got = tuple(lengths.shape) if isinstance(lengths, Tensor) else type(lengths).__name__
            sequences = f"sequences (..., t{''.join(f', {size}' for size in event_shape)})"
            raise ValueError(
                f"lengths must hold one number for each of x, {sequences}, got x of shape {tuple(x.shape)} and "
                f"lengths of {got}"
            )
        check_lengths(lengths, x.shape[len(lead)])
