"""What model and guide must agree on, looked at in every block of data, where the data are.

Trial runs on a few data say what code a pair has. Masks, and whether a density depends on a latent, are matters of the
data: they are compared for all of them, on the device, and looked at once a block of data is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ppvae.pair import Batch, masked_otherwise
from ppvae.processes import check_same, world
from ppvae.storage import digest_of

GIVEN_TOLERANCE = 1e-4
"""By how much the density of a site to condition on may differ between draws: rounding, absolute and relative."""


def check_alike(pair: nn.Module, data: Batch, options: Any) -> None:
    """Checks that all of many processes are to evaluate the same.

    Raises:
        ValueError: naming what is another in one of them.
    """
    if world() == 1:
        return
    check_same("the pair that is evaluated", digest_of(*pair.parameters(), *pair.buffers()))
    check_same("the data that it is evaluated on", digest_of(*data))
    check_same("how it is evaluated", repr(options))


@dataclass
class Agreement:
    """What was found in a block of data.

    Attributes:
        start: the index of its first datum.
        masks: by latent, the data in which masks differ, (n,).
        given: by site to condition on, its least and greatest log-density, (2, n).
    """

    start: int
    masks: dict[str, Tensor] = field(default_factory=dict)
    given: dict[str, Tensor] = field(default_factory=dict)

    def add(self, masks: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
        """Adds what was found in some draws: masks (1, n), densities (2, n)."""
        for name, flags in masks.items():
            self.masks[name] = self.masks[name] | flags[0] if name in self.masks else flags[0]
        for name, ends in given.items():
            low, high = self.given.get(name, ends)
            self.given[name] = torch.stack([torch.minimum(low, ends[0]), torch.maximum(high, ends[1])])

    def check(self) -> None:
        """Looks at it.

        Raises:
            ValueError: naming the site and the datum.
        """
        found = self.masks | {name: _apart(*ends) for name, ends in self.given.items()}
        if not found or not bool(torch.stack(list(found.values())).any()):
            return
        name, datum = next((name, int(flags.nonzero()[0])) for name, flags in found.items() if bool(flags.any()))
        raise ValueError(
            masked_otherwise([name], f" of datum {self.start + datum}")
            if name in self.masks
            else depends_on_latents(name, f", in datum {self.start + datum},")
        )


def depends_on_latents(name: str, where: str = "") -> str:
    """What is said of a site that cannot be conditioned on by leaving its density out."""
    return (
        f"given names {name!r}, whose density{where} depends on latents, so that leaving it out is not to condition on "
        "it: subtract an estimate of its own log-density instead"
    )


def _apart(low: Tensor, high: Tensor) -> Tensor:
    """Where two log-densities differ by more than rounding; not where both are infinite or NaN."""
    return high - low > GIVEN_TOLERANCE * (1 + torch.where(high.isfinite(), high.abs(), 0.0))
