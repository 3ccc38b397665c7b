"""A Gaussian fitted to p(u|x) where its mass is: mean gradients and mean curvature at sigma points.

    Λ ← E_q[−∇² log p(x, u)],      m ← m + Λ⁻¹ E_q[∇ log p(x, u)],      q = N(m, Λ⁻¹),

the fixed point of variational inference with a Gaussian of any covariance (Opper & Archambeau 2009, "The variational
Gaussian approximation revisited", Neural Computation 21), each expectation by pairs of points m ± √k L a_i, LLᵀ = Λ⁻¹,
with the a_i a random orthonormal basis: there, and not at the mode, lies the mass in many dimensions. Differences of
gradients over these pairs give the curvature, so that first derivatives are all that is asked of a pair.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppvae.sampling.log_density import LogDensity
from ppvae.sampling.posterior_draws import PosteriorSampler
from ppvae.sampling.student_mixture import StudentMixture

RATES = (1.0, 1.0, 0.8, 0.6, 0.5, 0.4, 0.3)
"""How far each round goes from the fit of the one before to what its points say."""
LOCAL = 0.3
"""Radius of the first round, in units of a scale that may be far too wide; that of the others is √k."""
SETTLED = 0.05
"""A fit whose mean moves by less of a standard deviation, and no precision by more of itself, has settled."""
DENSE = 256
"""Up to so many dimensions every direction has a curvature of its own."""
RANK = 64
"""In more dimensions so many directions have; the scale of the guide's draws has to do for the rest."""
LEAST, MOST = 0.2, 100.0
"""What a round may multiply a precision by. A curvature of zero or less asks for a wider proposal, within reason."""


def fit(density: LogDensity, part: PosteriorSampler, loc: Tensor, unit: Tensor) -> StudentMixture:
    """Fits one component to each datum from a mode on.

    Args:
        density: of the pair.
        part: n data.
        loc: where to begin, (n, k).
        unit: the scale of each coordinate, (n, k).

    Returns:
        Mixtures of a single component.
    """
    n, k = loc.shape
    rank = k if k <= DENSE else RANK
    basis = torch.eye(k, rank, dtype=loc.dtype, device=loc.device).expand(n, k, rank)
    found = StudentMixture(loc[None], unit, basis[None], loc.new_ones(1, n, rank), loc.new_zeros(1, n))
    for i, rate in enumerate(RATES):
        found, change = _round(density, part, found, rate, math.sqrt(k) if i else LOCAL)
        if i and change < SETTLED:
            break
    return found


def _round(
    density: LogDensity, part: PosteriorSampler, q: StudentMixture, rate: float, radius: float
) -> tuple[StudentMixture, float]:
    """One round of the fit, by points at a radius, and how much it changed."""
    _, n, k, rank = q.basis.shape
    directions = torch.linalg.qr(torch.randn(n, k, rank, dtype=q.loc.dtype, device=q.loc.device))[0]
    mean, curved = _at_sigma_points(density, part, q, radius * directions)
    if rank < k:  # the directions whose curvature differs from the proposal's, by one step of subspace iteration
        directions = torch.linalg.qr(curved - directions)[0]
        mean, curved = _at_sigma_points(density, part, q, radius * directions)
    inner = directions.mT @ curved
    values, vectors = torch.linalg.eigh((inner + inner.mT).nan_to_num(0.0, 0.0, 0.0) / 2)
    values = (1 + rate * (values - 1)).clamp(LEAST, MOST)
    turned = directions @ vectors  # noise along it has that precision now
    along = torch.einsum("nk,nkr->nr", mean, turned)
    step = mean + torch.einsum("nr,nkr->nk", along * (1 / values - 1), turned)
    step = rate * step / (step.norm(dim=-1, keepdim=True) / math.sqrt(k)).clamp_min(1.0)
    loc = q.moved(0, step[None])[0]
    basis, precision = _product(q, turned, values)
    change = max(float(step.norm(dim=-1).max()), float((values - 1).abs().max()))
    return StudentMixture(loc[None], q.unit, basis[None], precision[None], q.log_share), change


def _at_sigma_points(
    density: LogDensity, part: PosteriorSampler, q: StudentMixture, directions: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean gradient (n, k), and the curvature times each direction's unit vector (n, k, r), in units of noise."""
    noise = directions.permute(2, 0, 1)  # (r, n, k)
    _, gradient = density.gradient(part, torch.cat([q.moved(0, noise), q.moved(0, -noise)]))
    ahead, behind = _pulled_back(q, gradient).unflatten(0, (2, -1))
    curved = (behind - ahead) / (2 * noise.norm(dim=-1, keepdim=True))
    return (ahead + behind).mean(0) / 2, curved.permute(1, 2, 0)


def _pulled_back(q: StudentMixture, gradient: Tensor) -> Tensor:
    """Gradients in u as gradients in the noise: Lᵀ g for L = S (I + U (Λ^−½ − I) Uᵀ)."""
    scaled = gradient * q.unit
    inner = torch.einsum("snk,nkr->snr", scaled, q.basis[0]) * (q.precision[0].rsqrt() - 1)
    return scaled + torch.einsum("snr,nkr->snk", inner, q.basis[0])


def _product(q: StudentMixture, turned: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The basis and precision of L (I + V (1/λ − 1) Vᵀ) Lᵀ, in units of S, for V `turned` and λ `values`.

    Of low rank: the directions in which it differs most from the identity, among those that either factor knows.
    """
    _, _, k, rank = q.basis.shape
    narrow = q.basis[0] * (q.precision[0].rsqrt() - 1).unsqueeze(-2)
    moved = turned + narrow @ (q.basis[0].mT @ turned)  # Lᵀ V, L being symmetric
    if rank == k:
        eigenvalues, vectors = torch.linalg.eigh((moved / values.unsqueeze(-2)) @ moved.mT)
        return vectors, 1 / eigenvalues
    span = torch.linalg.qr(torch.cat([q.basis[0], moved], -1))[0]
    within = span.mT @ q.basis[0]
    covariance = (
        torch.eye(span.shape[-1], dtype=span.dtype, device=span.device)
        + (within * (1 / q.precision[0] - 1).unsqueeze(-2)) @ within.mT
    )
    projected = span.mT @ moved
    covariance = covariance + (projected * (1 / values - 1).unsqueeze(-2)) @ projected.mT
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    most = eigenvalues.log().abs().topk(rank, -1).indices
    chosen = vectors.gather(-1, most.unsqueeze(-2).expand(-1, vectors.shape[-2], -1))
    return span @ chosen, 1 / eigenvalues.gather(-1, most)
