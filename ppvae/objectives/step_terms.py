"""The terms of one step, by the columns of the history: its loss, and those of the ELBO as the traces have them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppvae.traces import LOSS_TERM, Site, latent_of

SitePair = tuple[dict[str, Site], dict[str, Site]]
"""The sites of a model and of its guide."""

OWN_COLUMNS = {"epoch", "data", "loss", "elbo", "reconstruction", "valid_elbo", "valid_loss", "kl_weight", "lr"}
"""Columns of the history that no term of a user's may be called."""

_ONE_OF_SEVERAL = re.compile(r"loss_\d+")


@dataclass(frozen=True)
class StepTerms:
    """One step's loss and the unscaled terms of its ELBO, each a 0-d tensor, summed over the batch, in nats.

    Attributes:
        loss: what was minimised, with its scales (KL weight).
        reconstruction: Σ E_q[log p(x|z)] over the observed sites; None where a latent is enumerated.
        kl: for each latent site, Σ E_q[log q(z|x) − log p(z)], by the samples that the step drew; auxiliary
            sites of the guide have no log p.
        columns: what `ppvae.loss_term` and `Objective.record` named.
        losses: of an objective that is several (`ReweightedWakeSleep`: the model's, the guide's), each; `loss` is their
            sum.
    """

    loss: Tensor
    reconstruction: Tensor | None
    kl: dict[str, Tensor]
    columns: dict[str, Tensor] = field(default_factory=dict)
    losses: tuple[Tensor, ...] = ()

    def named(self) -> dict[str, Tensor]:
        """The terms by column name: `loss`, `loss_1` …, `reconstruction`, `kl_<site>`, and those of the user.

        Raises:
            ValueError: where one of these is called like a column of ours.
        """
        own = {"loss": self.loss} | {f"loss_{i}": value for i, value in enumerate(self.losses, start=1)}
        if self.reconstruction is not None:
            own["reconstruction"] = self.reconstruction
        own |= {f"kl_{site}": value for site, value in self.kl.items()}
        for name in self.columns:
            if name in OWN_COLUMNS or name in own or name.startswith("kl_") or _ONE_OF_SEVERAL.fullmatch(name):
                raise ValueError(f"a term of the loss is called {name!r}, which is a column of the history already")
        return own | self.columns

    @classmethod
    def of(cls, named: dict[str, Tensor]) -> StepTerms:
        """The terms that have these names."""
        kl = {name.removeprefix("kl_"): value for name, value in named.items() if name.startswith("kl_")}
        losses = {name: value for name, value in named.items() if _ONE_OF_SEVERAL.fullmatch(name)}
        rest = {name: value for name, value in named.items() if name not in losses and not name.startswith("kl_")}
        return cls(rest.pop("loss"), rest.pop("reconstruction", None), kl, rest, tuple(losses.values()))


@torch.no_grad()
def elbo_terms(
    read: list[SitePair], num_particles: int, num_data: int | None
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Reconstruction and KL per latent site of the drawn samples, unscaled, averaged over the particles.

    None and nothing where a latent is enumerated, or there are no traces.
    """
    reconstruction: Any = 0.0
    kl: dict[str, Any] = {}
    for of_model, of_guide in read:
        if any(site.is_enumerated for site in (*of_model.values(), *of_guide.values())):
            return None, {}
        share = _share(of_model, num_data)
        for sign, site in [*((1, site) for site in of_model.values()), *((-1, site) for site in of_guide.values())]:
            if site.is_drawn:
                name = latent_of(site.name, kl)
                part = 1.0 if any(plate.dim == -1 for plate in site.plates) else share
                kl[name] = kl.get(name, 0.0) - sign * part * _whole(site, num_data) / num_particles
            elif sign == 1 and site.role == "observed":
                reconstruction = reconstruction + _whole(site, num_data) / num_particles
    return torch.as_tensor(reconstruction) if read else None, {z: torch.as_tensor(value) for z, value in kl.items()}


@torch.no_grad()
def loss_terms(read: list[SitePair], num_particles: int, num_data: int | None) -> dict[str, Tensor]:
    """The terms of `ppvae.loss_term`, unscaled, averaged over the particles, but for those of enumerated latents."""
    terms: dict[str, Any] = {}
    for pair in read:
        for sign, of_one in zip((-1, 1), pair, strict=True):  # the model's is in log p, the guide's in log q
            for name, site in of_one.items():
                if site.infer.get(LOSS_TERM) and site.log_prob.dim() <= max((-p.dim for p in site.plates), default=0):
                    terms[name] = terms.get(name, 0.0) + sign * _whole(site, num_data) / num_particles
    return terms


def _whole(site: Site, num_data: int | None) -> Tensor:
    """The summed density of all elements that a site has on these data, estimated where plates take a part of them."""
    share = site.inner_share
    for plate in site.plates:
        if plate.dim == -1 and plate.full_size == num_data:
            share *= plate.size / num_data
    return site.density_sum() if share == 1 else site.density_sum() / share


def _share(of_model: dict[str, Site], num_data: int | None) -> float:
    """Which part of all data a minibatch is, where a subsampled data plate says so: it has that much of a global KL.

    A plate that is given all data, and takes a part of them itself, stands for all.
    """
    plates = [plate for site in of_model.values() for plate in site.plates if plate.dim == -1]
    minibatches = [plate for plate in plates if plate.full_size and plate.full_size != num_data]
    return min((plate.size / plate.full_size for plate in minibatches), default=1.0)
