"""All public functions that the wrong calls are of."""

from __future__ import annotations

from tests.torture.of_estimators import estimators, of_arrays
from tests.torture.of_models import of_models
from tests.torture.of_objectives import of_figures, of_objectives
from tests.torture.of_pieces import of_nets
from tests.torture.of_sequences import of_sequences
from tests.torture.of_training import of_data, training
from tests.torture.wrong_calls import Function


def functions() -> list[Function]:
    """All of them."""
    groups = (training, of_data, estimators, of_arrays, of_nets, of_sequences, of_models, of_objectives, of_figures)
    return [function for group in groups for function in group()]
