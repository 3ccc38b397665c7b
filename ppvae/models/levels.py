"""Models with several levels of latents: the generative story that they share, and their queries.

    zL ~ p(zL)   …   z2 ~ p(z2|z3)   z1 ~ p(z1|z2)   x ~ p(x|z1)

The levels count from the data upwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppvae._validate import check_count, check_flag, check_number
from ppvae.models.base import check_pieces, code_of, line_between, mean_of
from ppvae.pair import KLWeight


class Levels(nn.Module, ABC):
    """A generative model with latents z1 … zL, from the data upwards; what derives from it adds the guide.

    The queries run the modules as they stand: call `.eval()` first where there is dropout or batch norm.

    Args:
        p_z: the priors p(z1|z2), …, p(zL), modules that take the level above them; the last takes nothing.
        p_x_given_z: likelihood, a module `z1 -> p(x|z1)`.
        skip: whether every conditional is given all levels above its own, the nearest first.
        beta: weight of the KL terms while training; evaluation ignores it.
    """

    def __init__(self, p_z: Sequence[nn.Module], p_x_given_z: nn.Module, *, skip: bool, beta: float) -> None:
        super().__init__()
        check_number("beta", beta, at_least=0)
        if not isinstance(skip, bool):
            raise TypeError(f"skip must be a bool, got {skip!r}")
        self.p_z = modules_of_levels("p_z", p_z)
        check_pieces(p_x_given_z=p_x_given_z)
        self.p_x_given_z = p_x_given_z
        self.skip = skip
        self.beta = beta

    def model(self, x: Tensor) -> None:
        """ZL ~ p(zL), …, z1 ~ p(z1|z2), x ~ p(x|z1)."""
        with pyro.plate("data", len(x)), KLWeight(self.beta):
            z: list[Tensor] = []
            for name, p_z in self.downwards():
                z.insert(0, pyro.sample(name, p_z(*self.seen(z))))
            pyro.sample("x", self.p_x_given_z(*self.seen(z)), obs=x)

    @abstractmethod
    def guide(self, x: Tensor) -> None:
        """Draws z1 … zL, in any order."""

    @abstractmethod
    def encode(self, x: Tensor) -> dict[str, TorchDistribution]:
        """The posterior of each level by its site, z1 first, given x (..., *event) and the codes of other levels."""

    def downwards(self) -> list[tuple[str, nn.Module]]:
        """The sites and priors of all levels, zL first."""
        return [(f"z{i + 1}", self.p_z[i]) for i in reversed(range(len(self.p_z)))]

    def seen(self, context: list[Tensor]) -> list[Tensor]:
        """What of `context`, the nearest level first, a conditional is given: all of it with `skip`, else the first."""
        return context if self.skip else context[:1]

    def decode(self, z: Mapping[str, Tensor]) -> TorchDistribution:
        """p(x|z) for some of the levels; each of the others is at the mean of its prior, given those above it.

        Args:
            z: values (..., k) by their site: all levels, or `{"z3": z3}` for what the third alone says of x.

        Raises:
            ValueError: where one is no level.
        """
        names = [name for name, _ in self.downwards()]
        if not isinstance(z, Mapping) or not z.keys() <= set(names):
            found = sorted(z) if isinstance(z, Mapping) else type(z).__name__
            raise ValueError(f"z must hold values of levels by their names, of {sorted(names)}, got {found}")
        context: list[Tensor] = []
        for name, p_z in self.downwards():
            context.insert(0, z[name] if name in z else code_of(p_z(*self.seen(context))))
        return self.p_x_given_z(*self.seen(context))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x|z] at the code of x, shape (..., *event)."""
        return mean_of(self.decode({name: code_of(q_z) for name, q_z in self.encode(x).items()}))

    @torch.no_grad()
    def sample(self, num_samples: int, *, mean: bool = False) -> Tensor:
        """Draws from the model: zL ~ p(zL), …, z1 ~ p(z1|z2), x ~ p(x|z1).

        Args:
            num_samples: n, how many.
            mean: whether to return E[x|z] in place of a draw of x, as most papers' pictures do.

        Returns:
            Data of shape (n, *event).
        """
        check_count("num_samples", num_samples)
        check_flag("mean", mean)
        z: list[Tensor] = []
        for _, p_z in self.downwards():
            p = p_z(*self.seen(z))
            z.insert(0, p.sample((num_samples,)[: 1 - len(p.batch_shape)]))
        p_x = self.p_x_given_z(*self.seen(z))
        return mean_of(p_x) if mean else p_x.sample()

    @torch.no_grad()
    def interpolate(self, x_from: Tensor, x_to: Tensor, num_steps: int = 9) -> Tensor:
        """E[x|z] along the straight line between the codes of two data, at all levels at once.

        Args:
            x_from: data (..., *event).
            x_to: as many data (..., *event).
            num_steps: points on each line, both ends included.

        Returns:
            Data of shape (..., num_steps, *event).
        """
        q_from, q_to = self.encode(x_from), self.encode(x_to)
        path = {name: line_between(q_z, q_to[name], num_steps) for name, q_z in q_from.items()}
        return mean_of(self.decode(path))


def modules_of_levels(name: str, modules: Any, num_levels: int | None = None) -> nn.ModuleList:
    """The modules of all levels as one, checked.

    Args:
        name: the argument that the errors speak of.
        modules: a sequence of modules, from the data upwards.
        num_levels: L, where it is known.

    Raises:
        TypeError: where it is no sequence, or one of them is no module.
        ValueError: where there are none, or not L.
    """
    if not isinstance(modules, list | tuple | nn.ModuleList):
        raise TypeError(f"{name} must be a list of modules, from the data upwards, got {type(modules).__name__}")
    for i, module in enumerate(modules):
        if not isinstance(module, nn.Module):
            raise TypeError(f"{name}[{i}] must be a module, got {type(module).__name__}")
    if len(modules) != num_levels and (num_levels or not len(modules)):
        raise ValueError(f"{name} must hold {num_levels or 'at least one'}, one module a level, got {len(modules)}")
    return nn.ModuleList(modules)
