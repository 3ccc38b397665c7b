"""What a model observes of its arguments, and what is said of data, or of a pair's code, that do not fit each other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from ppvae._validate import InputError
from ppvae.pair import NO_PART, Batch
from ppvae.traces import Site, same_values, sites, values_outside


def taken_as_given(trace: Trace, batch: Batch) -> Iterator[tuple[Site, int]]:
    """The sites of a model that observe an argument as it is, with the place of the argument."""
    for site in sites(trace).values():
        for i, tensor in enumerate(batch):
            if not site.is_drawn and same_values(site.value, tensor):
                yield site, i


def check_observed(
    trace: Trace, batch: Batch, whole: Batch | None, name: str = "data", *, masked: bool = False
) -> None:
    """Checks what a model observes as it is given: that it has a batch dim, is finite, and lies in the support.

    Args:
        trace: of the model.
        batch: what it was run on.
        whole: all data, of which that is a part; None where they are not known.
        name: of the argument.
        masked: whether the values of sites with a mask, which may leave out some, are checked too.

    Raises:
        ValueError: naming the argument and the site.
    """
    for site, i in taken_as_given(trace, batch):
        if site.plates and batch[i].dim() > len(site.fn.shape()):
            raise ValueError(
                f"{name}[{i}] must have the shape of what site {site.name!r} draws, {tuple(site.fn.shape())}, got "
                f"{tuple(batch[i].shape)}: more dims than these"
            )
        if site.plates and batch[i].dim() <= site.event_dim:
            raise ValueError(
                f"{name}[{i}] must have a leading batch dim: site {site.name!r} has {site.event_dim} event dims, and "
                f"got shape {tuple(batch[i].shape)}, one datum; x[None] is a batch of one"
            )
        if site.is_masked and not masked:
            continue
        values = batch[i] if whole is None else whole[i]
        if bool((bad := ~values.isfinite()).any()):
            row = int(bad.reshape(len(values), -1).any(1).nonzero()[0])
            raise ValueError(
                f"{name}[{i}] holds NaN or infinite values, first in row {row}, and the pair observes them at site "
                f"{site.name!r}"
            )
        if said := values_outside(site, values, f"{name}[{i}]"):
            raise ValueError(said)


class OnlyDistributions(Messenger):
    """Checks that what the sample statements inside are given are distributions."""

    def _pyro_sample(self, msg: Any) -> None:
        if not callable(msg["fn"]) or isinstance(msg["fn"], Tensor | nn.Module):
            raise TypeError(
                f"pyro.sample({msg['name']!r}, ...) is given a {type(msg['fn']).__name__} in place of a distribution: "
                "a piece such as p_x_given_z must return one, e.g. ConditionalNormal(net)"
            )


@contextmanager
def naming_arguments(trace: Trace, batch: Batch) -> Iterator[None]:
    """Where Pyro's validation stops on what a model observes, says which argument holds it.

    Args:
        trace: of the model, which is scored inside.
        batch: what it was run on.
    """
    try:
        yield
    except ValueError as error:
        for site, i in taken_as_given(trace, batch):
            if bool(batch[i].isfinite().all()) and (said := values_outside(site, batch[i], f"data[{i}]")):
                raise ValueError(said) from error
        raise


@contextmanager
def failing_on(
    batch: Batch, pair: nn.Module, what: str, errors: tuple[type[Exception], ...] = (RuntimeError, TypeError)
) -> Iterator[None]:
    """Says of the pair's own errors on which data they came.

    Args:
        batch: what the pair is run on inside.
        pair: a model/guide pair.
        what: what the data are called, for the message.
        errors: of what kinds.
    """
    try:
        yield
    except NotImplementedError:  # what a distribution cannot do, whatever the data
        raise
    except ValueError as error:
        if found := re.match(r"subsample_size does not match len\(subsample\), (\d+)", str(error)):
            raise ValueError(f"a plate of the pair takes {found[1]} of the data that it is given. {NO_PART}") from error
        if found := re.match(r"Shape mismatch inside plate\('.*'\) at site (\w+) dim -1, (\d+) vs (\d+)", str(error)):
            said = (
                f"site {found[1]!r} gives {' and '.join(sorted({found[2], found[3]}))} values where there is one for "
                "each datum: data are of shape (n, ...), and the dims of one datum are event dims, .to_event(...)"
            )
            raise ValueError(_failure(batch, pair, what, said)) from error
        scored = str(error).startswith("Error while computing log_prob at site")
        if not (scored or isinstance(error, (*errors, InputError))):
            raise
        raise ValueError(_failure(batch, pair, what, error)) from error
    except errors as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(_failure(batch, pair, what, error)) from error


def _failure(batch: Batch, pair: nn.Module, what: str, error: object) -> str:
    """What a pair failed on."""
    kinds = ", ".join(f"{t.dtype} {tuple(t.shape)}" for t in batch if isinstance(t, Tensor))
    dtypes = ", ".join(sorted({str(p.dtype) for p in pair.parameters()})) or "none"
    said = re.split(r"\n *Trace Shapes:", str(error))[0]  # which Pyro adds, a line for each site
    return f"the pair fails on {what} ({kinds}; its parameters are {dtypes}): {said}"
