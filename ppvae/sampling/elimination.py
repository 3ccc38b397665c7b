"""Long chains of discrete latents, summed over one after another: K² T terms in place of K^T joint values.

    p(x) = Σ_{y_1} p(y_1) p(x_1|y_1) Σ_{y_2} p(y_2|y_1) p(x_2|y_2) ...

Pyro lists the values of every site in a dim of its own (`pyro.markov` lets those that are far apart share one), and its
contraction sums the dims out in a good order. A density that depends on a latent otherwise than through its own dim (a
longer memory than `pyro.markov` was told of, a sum over a plate) would be read wrongly: a trial run compares all
densities with those of a plain run at the same values.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.ops.contract import contract_to_tensor
from pyro.ops.packed import pack
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ppvae._internals import enumerated_dims, enumerated_site, packed_dims
from ppvae.traces import sites

_FIRST = 192
"""The first of the letters that dims are called by in a contraction: more follow it than a chain has dims."""


class _Marks(Messenger):
    """Marks sites for enumeration side by side."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names and not msg["is_observed"]:
            msg["infer"] = {**msg["infer"], "enumerate": "parallel"}


@contextmanager
def side_by_side(names: Collection[str], first_dim: int) -> Iterator[None]:
    """Every value of these sites, in dims from `first_dim` to the left."""
    with poutine.enum(first_available_dim=first_dim), _Marks(names):
        yield


def depends_on_values(density: Tensor, dims: int) -> bool:
    """Whether a density differs among the values of a site that is summed over, to the left of so many dims."""
    return any(size > 1 for size in density.shape[:-dims])


def eliminated(trace: Trace, densities: Mapping[str, Tensor], kept: Mapping[int, int]) -> Tensor:
    """The log of the sum, over the values of all enumerated sites, of the product of these densities.

    Args:
        trace: a run with these sites `side_by_side`.
        densities: of sites of the trace, as it has them.
        kept: the dims that are kept, the outer ones first, and their sizes; further plates are multiplied out.

    Returns:
        Of the sizes that are kept.
    """
    symbols: dict[Any, str] = {}

    def symbol(key: Any) -> str:
        return symbols.setdefault(key, chr(_FIRST + len(symbols)))

    tree: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    values: set[str] = set()
    for name, density in densities.items():
        node = trace.nodes[name]
        frames = [frame for frame in node["cond_indep_stack"] if frame.vectorized and kept.get(frame.dim) != 1]
        plates = {frame.dim: symbol(frame.dim if frame.dim in kept else frame.name) for frame in frames}
        own = {dim: symbol(("value", of)) for dim, of in enumerated_dims(node["infer"]).items()}
        values |= set(own.values())
        tree.setdefault(frozenset(plates.values()), []).append(pack(density, own | plates))
    target = frozenset(symbol(dim) for dim, size in kept.items() if size > 1)  # one of size 1 is no dim when packed
    result = contract_to_tensor(tree, values, target_ordinal=target)
    found = packed_dims(result)
    order = [symbol(dim) for dim in kept if symbol(dim) in found]
    ordered = result.permute([found.index(letter) for letter in order])
    sizes = [size if symbol(dim) in order else 1 for dim, size in kept.items()]
    return ordered.reshape(sizes).expand(tuple(kept.values()))


def check_eliminated(plain: Trace, listed: Trace, names: Collection[str], dims: int) -> None:
    """Checks that the densities of a run with values side by side are, at one of them, those of a plain run there.

    Args:
        plain: a run of the model on some data, scored.
        listed: one on the same data with the values of these sites side by side, scored.
        names: of the sites.
        dims: those that the plates take.

    Raises:
        ValueError: naming a site whose density is another.
    """
    at, of_plain = {}, sites(plain)
    for name in names:
        node, site = listed.nodes[name], of_plain[name]
        support = node["fn"].enumerate_support(expand=False)
        event = site.value.shape[site.value.dim() - site.event_dim :]
        support = support.reshape(len(support), *[1] * (site.value.dim() - site.event_dim), *event)
        same = support == site.value
        index = same.reshape(*same.shape[: same.dim() - site.event_dim], -1).all(-1).int().argmax(0)
        at[enumerated_site(node["infer"])] = index
    for name, site in sites(listed).items():
        expected, density = of_plain[name].density(), site.density()
        found = _at(density, enumerated_dims(listed.nodes[name]["infer"]), at, dims)
        if found is None or found.shape != expected.shape or not _same(found, expected):
            raise ValueError(
                f"the latents {list(names)} have too many joint values to try each, and cannot be summed over one "
                f"after another: site {name!r} depends on them in a way that Pyro cannot see. Give pyro.markov the "
                "history that it needs, and let no site depend on those in a plate that it does not lie in"
            )


def _at(density: Tensor, ids: Mapping[int, int], at: Mapping[int, Tensor], dims: int) -> Tensor | None:
    """A density at certain values of the sites that it depends on; None where these do not fit its plates."""
    plates = density.shape[max(0, density.dim() - dims) :]
    index: list[Tensor] = []
    for dim in range(-density.dim(), 0):
        if dim >= -len(plates):
            index.append(torch.arange(density.shape[dim], device=density.device).reshape(-1, *[1] * (-1 - dim)))
        elif density.shape[dim] == 1:
            index.append(torch.zeros((), dtype=torch.long, device=density.device))
        elif ids.get(dim) in at:
            index.append(at[ids[dim]])
        else:
            return None
    try:
        return density[tuple(torch.broadcast_tensors(*index))]
    except RuntimeError:
        return None


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-4, equal_nan=True)
