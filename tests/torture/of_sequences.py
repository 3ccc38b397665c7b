"""Nets, distributions, data and models of sequences, with right arguments and wrong ones."""

from __future__ import annotations

import torch

from ppvae import nn
from tests.torture import values as v
from tests.torture.wrong_calls import Function


def of_sequences() -> list[Function]:
    """Of what takes sequences."""
    dropout = {"dropout": v.FRACTIONS | v.constants(1.0)}
    return [
        Function(
            "RNN",
            nn.RNN,
            lambda: {"in_dim": 6, "hidden_dim": 4},
            {
                "in_dim": v.COUNTS,
                "hidden_dim": v.COUNTS,
                "cell": v.CHOICES,
                "direction": v.CHOICES,
                "num_layers": v.COUNTS,
                **dropout,
            },
        ),
        Function(
            "TemporalConv",
            nn.TemporalConv,
            lambda: {"dim": 4},
            {"dim": v.COUNTS, "kernel_size": v.COUNTS, "num_blocks": v.COUNTS, "causal": v.FLAGS, **dropout},
        ),
        Function(
            "Transformer",
            nn.Transformer,
            lambda: {"dim": 4, "num_positions": 7},
            {
                "dim": v.COUNTS,
                "num_positions": v.COUNTS,
                "num_heads": v.COUNTS,
                "num_blocks": v.COUNTS,
                "causal": v.FLAGS,
                **dropout,
            },
        ),
        Function(
            "SequenceEncoder",
            nn.SequenceEncoder,
            lambda: {"embed": torch.nn.Linear(3, 4), "net": nn.RNN(4, 4), "out_shape": 2},
            {"embed": v.MODULES, "net": v.MODULES, "out_shape": v.SHAPES},
        ),
        Function(
            "SequenceDecoder",
            nn.SequenceDecoder,
            lambda: {"embed": torch.nn.Linear(3, 4), "net": nn.RNN(4, 4), "context_dim": 2, "out_shape": 2},
            {
                "embed": v.MODULES,
                "net": v.MODULES,
                "context_dim": {name: value for name, value in v.COUNTS.items() if name != "None"},
                "out_shape": v.SHAPES,
                "word_dropout": v.FRACTIONS | v.constants(1.0),
            },
        ),
        Function(
            "Patches",
            nn.Patches,
            lambda: {"in_shape": (1, 8, 8), "size": 4},
            {"in_shape": v.SHAPES, "size": v.COUNTS | v.constants(3)},
            fine={"in_shape": ()},
        ),
    ]
