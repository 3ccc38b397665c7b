"""A mixture of multivariate Student distributions for each datum: proposals with heavy tails, fitted elsewhere.

    q(u) = Σ_j α_j t_ν(u; m_j, S (I + U_j (Λ_j⁻¹ − I) U_jᵀ) S)

S is a diagonal scale that all components of a datum share, and U_j has r orthonormal columns: with r = k the covariance
is any, with r < k it is low-rank beside the diagonal. Geweke 1989, "Bayesian inference in econometric models using
Monte Carlo integration", Econometrica 57, has such proposals for posteriors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

DEGREES = 15.0
"""Of freedom, ν. In tens of dimensions tails that are heavier cost more draws than they save: most of a Student's mass
lies at radii that are further spread than those of the posterior."""


@dataclass(frozen=True)
class StudentMixture:
    """Proposals for n data, in k dimensions, of c components.

    Attributes:
        loc: m, shape (c, n, k).
        unit: S, (n, k).
        basis: U, (c, n, k, r), of orthonormal columns.
        precision: the diagonal of Λ, (c, n, r).
        log_share: log α, (c, n); −inf for a component that a datum lacks.
    """

    loc: Tensor
    unit: Tensor
    basis: Tensor
    precision: Tensor
    log_share: Tensor

    def draw(self, s: int) -> Tensor:
        """`s` independent draws for every datum, (s, n, k)."""
        _, n, k = self.loc.shape
        half = self.loc.new_full((n, 1), DEGREES / 2)
        radius = torch.distributions.Gamma(half, half).sample(torch.Size([s]))
        noise = torch.randn_like(self.unit.expand(s, n, k)) / radius.sqrt()
        share = self.log_share.exp().T
        component = torch.multinomial(share, s, replacement=True).T.unsqueeze(-1)
        drawn = self.moved(0, noise)
        for j in range(1, len(self.loc)):
            drawn = torch.where(component == j, self.moved(j, noise), drawn)
        return drawn

    def moved(self, component: int, noise: Tensor) -> Tensor:
        """What a component makes of noise (s, n, k) of mean zero and scale one."""
        inner = torch.einsum("snk,nkr->snr", noise, self.basis[component])
        inner = inner * (self.precision[component].rsqrt() - 1)
        shaped = noise + torch.einsum("snr,nkr->snk", inner, self.basis[component])
        return self.loc[component] + self.unit * shaped

    def standardized(self, component: int, u: Tensor) -> Tensor:
        """Coordinates of u (s, n, k) along a component's basis, (s, n, r), in units of S."""
        return torch.einsum("snk,nkr->snr", (u - self.loc[component]) / self.unit, self.basis[component])

    def log_components(self, u: Tensor) -> Tensor:
        """Log α_j t_ν(u; m_j, ...), (c, s, n), for u of shape (s, n, k)."""
        k = self.loc.shape[-1]
        constant = math.lgamma((DEGREES + k) / 2) - math.lgamma(DEGREES / 2) - k / 2 * math.log(DEGREES * math.pi)
        found = []
        for j, precision in enumerate(self.precision):
            distance = ((u - self.loc[j]) / self.unit).square().sum(-1)
            distance = distance + ((precision - 1) * self.standardized(j, u).square()).sum(-1)
            volume = precision.log().sum(-1) / 2 - self.unit.log().sum(-1) + self.log_share[j]
            found.append(constant + volume - (DEGREES + k) / 2 * torch.log1p(distance.clamp_min(0) / DEGREES))
        return torch.stack(found)

    def log_prob(self, u: Tensor) -> Tensor:
        """Log q(u), (s, n)."""
        return self.log_components(u).logsumexp(0)

    def of_data(self, index: Tensor) -> StudentMixture:
        """The proposals of some of the data, by their numbers."""
        return StudentMixture(
            self.loc[:, index],
            self.unit[index],
            self.basis[:, index],
            self.precision[:, index],
            self.log_share[:, index],
        )

    def with_data(self, index: Tensor, others: StudentMixture) -> StudentMixture:
        """The same with the proposals of some of the data, by their numbers, replaced."""
        found = {name: value.clone() for name, value in vars(self).items()}
        for name, value in vars(others).items():
            found[name][index if name == "unit" else (slice(None), index)] = value
        return StudentMixture(**found)
