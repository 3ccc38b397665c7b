"""What trained pairs lend to Pyro's parameter store, so that Pyro's own tools see the values that they were trained to.

`pyro.infer.Predictive(pair.model, guide=pair.guide)` finds a `pyro.param` by its name in Pyro's store, and takes its
initial value where there is none. After a training the store therefore lists the pair's own parameters. They are lent:
whatever ppvae runs sees a store without them (`users_store`), so that two pairs with equal names do not meet, and a
pair that is trained later lends its own in their place. Pyro sees names alone: a warning says so where both pairs are
still there. A pair that is evaluated, one loaded from a file, lends what no other has lent.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn
from torch.distributions.constraints import Constraint

from ppvae._internals import StoreContents


@dataclass(frozen=True)
class _Loan:
    """A parameter in Pyro's store, and the module that it is lent by; neither is kept alive."""

    parameter: weakref.ref[nn.Parameter]
    lender: weakref.ref[nn.Module]


_LOANS: dict[str, _Loan] = {}
"""The last loan of each name; one that the store does not hold any more has ended."""


_WARNED: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Those that took the place of another which was still there: one warning each."""


def _is_there(other: weakref.ref[nn.Module], lender: nn.Module) -> bool:
    """Whether there is another lender, also once reference cycles that nobody uses any more are gone."""
    if other() is not None and other() is not lender:
        gc.collect()
    return other() is not None and other() is not lender


def is_lent(store: StoreContents, name: str) -> bool:
    """Whether what the store holds under a name is lent by a pair."""
    return name in _LOANS and name in store.values and store.values[name] is _LOANS[name].parameter()


def lend(
    lender: nn.Module, parameters: Mapping[str, tuple[nn.Parameter, Constraint]], *, in_place_of_others: bool
) -> None:
    """Lists parameters in Pyro's store, but for names of which the user has a value there.

    Args:
        lender: the module that they are of.
        parameters: each with its constraint, by its name in Pyro.
        in_place_of_others: whether also those that another lends.
    """
    store = StoreContents.now()
    if not store.is_users:
        return
    for name, (parameter, constraint) in parameters.items():
        if in_place_of_others and is_lent(store, name):
            value, _ = store.take(name)
            if value is not parameter and lender not in _WARNED and _is_there(_LOANS[name].lender, lender):
                _WARNED.add(lender)
                warnings.warn(
                    f"pyro.param {name!r} is a value of two trained pairs: Pyro's own tools, which go by names, see "
                    "that of the pair trained last from here on; ppvae's see of each its own",
                    stacklevel=2,
                )
        if name not in store.values:
            store.put(name, parameter, constraint)
            _LOANS[name] = _Loan(weakref.ref(parameter), weakref.ref(lender))


@contextmanager
def users_store() -> Iterator[StoreContents]:
    """The user's own part of Pyro's store: loans are withdrawn, and come back but for names that are taken by then."""
    store = StoreContents.now()
    if not store.is_users:  # inside of what runs already without
        yield store
        return
    loans = {name: store.take(name) for name in list(_LOANS) if is_lent(store, name)}
    try:
        yield store
    finally:
        store = StoreContents.now()
        for name, (parameter, constraint) in loans.items():
            if name not in store.values:
                store.put(name, parameter, constraint)
