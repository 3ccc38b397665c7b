"""What a pair's own code raises, said in terms of the data that it was given."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from ppvae._validate import InputError
from ppvae.observed import taken_as_given
from ppvae.pair import NO_PART, Batch
from ppvae.traces import values_outside

FAILURES = (RuntimeError, TypeError, IndexError, AssertionError)
"""What a pair's own code raises on data that it is not made for."""


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
    batch: Batch,
    pair: nn.Module,
    what: str,
    errors: tuple[type[Exception], ...] = FAILURES,
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
    return f"the pair fails on {what} ({kinds}; its parameters are {dtypes}): {said or type(error).__name__}"
