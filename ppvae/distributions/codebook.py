"""Vector quantisation: a codebook, and the posterior over its codes that an encoder gives."""

from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppvae._validate import check_count, check_flag, check_number
from ppvae.distributions.parameters import declared_out_shape, full_precision, without_autocast
from ppvae.nn.context import check_labels


class Codebook(nn.Module):
    r"""K vectors e_1 … e_K, of which each stands for the points that are nearest to it.

    Learned by moving averages, each code is the mean of the points that it has stood for, those of t minibatches ago
    with the weight γ^t:

    .. math:: N_k \leftarrow \gamma N_k + (1 - \gamma)\, n_k, \qquad
        e_k \leftarrow e_k + (1 - \gamma)\, \frac{\sum_{i \to k} z_i - n_k e_k}{N_k}

    where the minibatch has n_k points z_i nearest to e_k. It is Lloyd's algorithm on a stream, and no gradient: the
    codes are buffers. A code that hardly anything is nearest to moves to a random point of the minibatch; so do all
    that start far from the points.

    Args:
        num_codes: K.
        code_dim: Dimensions of a code.
        learned: ``"average"``, by moving averages; ``"gradient"``, a parameter that an optimizer trains; ``"fixed"``.
        decay: γ.
        restart: A code whose average use N_k falls below this share of the mean use of all codes starts anew; 0 never.
        cosine: Whether codes and points are compared by their angle: both are divided by their length.

    Raises:
        ValueError: If a size or an option is not one of the above.

    References:
        Neural Discrete Representation Learning (van den Oord et al. 2017), arXiv 1711.00937, appendix A.1.
        Vector-quantized Image Modeling with Improved VQGAN (Yu et al. 2022), arXiv 2110.04627: the angle.

    Example:
        >>> codebook = Codebook(512, 64)
        >>> k = codebook.nearest(torch.zeros(128, 16, 64))
        >>> k.shape, codebook(k).shape
        (torch.Size([128, 16]), torch.Size([128, 16, 64]))
    """

    vectors: Tensor
    counts: Tensor

    def __init__(
        self,
        num_codes: int,
        code_dim: int,
        *,
        learned: Literal["average", "gradient", "fixed"] = "average",
        decay: float = 0.99,
        restart: float = 0.03,
        cosine: bool = False,
    ) -> None:
        super().__init__()
        self.num_codes, self.code_dim = check_count("num_codes", num_codes), check_count("code_dim", code_dim)
        if learned not in ("average", "gradient", "fixed"):
            raise ValueError(f"learned must be 'average', 'gradient' or 'fixed', got {learned!r}")
        self.learned, self.cosine = learned, check_flag("cosine", cosine)
        self.decay = check_number("decay", decay, at_least=0, below=1)
        self.restart = check_number("restart", restart, at_least=0, below=1)
        start = torch.randn(num_codes, code_dim)
        if learned == "gradient":
            self.vectors = nn.Parameter(start)
        else:
            self.register_buffer("vectors", start)
        if learned == "average":
            self.register_buffer("counts", torch.zeros(num_codes))

    def forward(self, k: Tensor) -> Tensor:
        """The codes of indices ``(...)``: ``(..., code_dim)``."""
        return F.embedding(k, self.normalised(self.vectors))

    def normalised(self, z: Tensor) -> Tensor:
        """Points as they are compared: of length one where that is by the angle."""
        return F.normalize(z, dim=-1) if self.cosine else z

    def distances(self, z: Tensor) -> Tensor:
        """The squared distances of points ``(..., code_dim)`` to all codes, but for |z|²: ``(..., K)``."""
        codes = self.normalised(self.vectors)
        with without_autocast(z):
            return codes.square().sum(-1) - 2 * self.normalised(full_precision(z)) @ codes.mT

    def nearest(self, z: Tensor) -> Tensor:
        """The indices of the codes nearest to points ``(..., code_dim)``: ``(...)``."""
        return self.distances(z).argmin(-1)

    @torch.no_grad()
    def update(self, z: Tensor, k: Tensor) -> None:
        """Takes a minibatch into the moving averages, where the codes are learned by them.

        Args:
            z: The points, ``(..., code_dim)``.
            k: The indices of the codes that stand for them, of leading dims that ``z`` broadcasts to.
        """
        if self.learned != "average":
            return
        points, k = self.normalised(full_precision(z)).expand(*k.shape, -1).reshape(-1, self.code_dim), k.reshape(-1)
        stands_for = (k.unsqueeze(-1) == torch.arange(self.num_codes, device=k.device)).to(points.dtype)
        used, weight = stands_for.sum(0), 1 - self.decay
        counts = torch.lerp(self.counts, used, weight)
        with without_autocast(z):
            change = stands_for.mT @ points - used.unsqueeze(-1) * self.vectors
        vectors = self.vectors + weight * change / counts.clamp_min(torch.finfo(counts.dtype).tiny).unsqueeze(-1)
        mean = len(points) / self.num_codes
        dead = counts < self.restart * mean
        order = torch.randperm(len(points), device=points.device)
        elsewhere = points[order[torch.arange(self.num_codes, device=points.device) % len(points)]]
        self.vectors.copy_(torch.where(dead.unsqueeze(-1), elsewhere, vectors))
        self.counts.copy_(torch.where(dead, mean, counts))

    def perplexity(self, k: Tensor) -> Tensor:
        """How many codes are in use: the exponential of the entropy of their shares among indices of any shape.

        Of a whole data set; that of a minibatch is too low, the more so the smaller it is.
        """
        check_labels(k, self.num_codes, name="k")
        shares = k.flatten().bincount(minlength=self.num_codes) / k.numel()
        return torch.special.entr(shares).sum().exp()

    def extra_repr(self) -> str:
        """Describes the sizes and options."""
        average = f", decay={self.decay:g}, restart={self.restart:g}" if self.learned == "average" else ""
        return f"{self.num_codes}, {self.code_dim}, learned={self.learned!r}, cosine={self.cosine}{average}"


class CodePosterior(nn.Module):
    r"""The posterior over the codes of P positions, of which a net says where they lie among the codes.

    .. math:: q(k \mid x) = \prod_p \mathrm{softmax}\big(-\lVert z_p(x) - e \rVert^2 / \tau\big)_{k_p}

    At the temperature τ = 0, where it starts, and in training mode at any, that is one value: the nearest code at every
    position, a ``Delta``, with which likelihoods are bounds, and called so. Values are indices ``(..., P)``, and
    `codebook(k)` their codes.

    Args:
        net: A module from the context to the points z, ``(..., P, code_dim)``.
        codebook: The codes.

    Attributes:
        temperature: τ, a buffer of no dims. :func:`ppvae.evaluate.fit_temperature` finds the best one for held-out
            data.

    Raises:
        ValueError: If the net declares an ``out_shape`` that does not fit the codes.
        TypeError: If one is no module of its kind.

    Example:
        >>> from ppvae.nn import MLP
        >>> q_k_given_x = CodePosterior(MLP(784, (400,), (16, 64)), Codebook(512, 64))
        >>> q_k_given_x(torch.zeros(128, 784)).sample().shape
        torch.Size([128, 16])
    """

    temperature: Tensor

    def __init__(self, net: nn.Module, codebook: Codebook) -> None:
        super().__init__()
        if not isinstance(codebook, Codebook):
            raise TypeError(f"codebook must be a ppvae.distributions.Codebook, got {type(codebook).__name__}")
        if not isinstance(net, nn.Module):
            raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}")
        declared = declared_out_shape(net)
        if declared is not None and (len(declared) != 2 or declared[1] != codebook.code_dim):
            raise ValueError(f"net must declare an out_shape (positions, {codebook.code_dim}), got {declared}")
        self.net, self.codebook = net, codebook
        self.register_buffer("temperature", torch.zeros(()))

    def points(self, *context: Tensor) -> Tensor:
        """Where the context lies among the codes, ``(..., P, code_dim)``."""
        return self.codebook.normalised(full_precision(self.net(*context)))

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns q(k|x), of batch shape ``(...)`` and event shape ``(P,)``."""
        distances = self.codebook.distances(self.points(*context))
        if not self.training and bool(self.temperature > 0):
            return dist.Categorical(logits=-distances / self.temperature).to_event(1)
        return dist.Delta(distances.argmin(-1), distances.new_zeros(distances.shape[:-2]), event_dim=1)
