"""Values of Pyro's parameter store that a graph reads: it holds the tensors, and Pyro's users may put in others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ppvae._internals import StoreContents
from ppvae.compile.arguments import UncompilableError


class Stored:
    """The values of the user's own store that are among some tensors.

    Args:
        tensors: what a graph reads.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        read = set(map(id, tensors))
        self._values = {name: value for name, value in _values().items() if id(value) in read}

    def changed(self) -> str | None:
        """The name of one in whose place there is another tensor now, or nothing; None where there is none."""
        if not self._values:
            return None
        now = _values()
        return next((name for name, value in self._values.items() if now.get(name) is not value), None)


def check_computed() -> None:
    """Checks that no value in the user's own store was computed with a gradient, which a step then goes back through.

    It can only once: a step that is to be traced, and compared, is run more often.

    Raises:
        UncompilableError: naming one.
    """
    for name, value in _values().items():
        if not value.is_leaf:
            raise UncompilableError(f"pyro.param {name!r} has a gradient function of its own; put it there detached")


def _values() -> dict[str, Tensor]:
    store = StoreContents.now()
    return dict(store.values) if store.is_users else {}
