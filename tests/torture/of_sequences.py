"""Nets, distributions, data and models of sequences, with right arguments and wrong ones."""

from __future__ import annotations

import torch

from ppvae import data, distributions, models, nn
from tests.torture import values as v
from tests.torture.wrong_calls import Function

LENGTHS: v.Wrong = {
    "floats": lambda: torch.ones(20),
    "zeros": lambda: torch.zeros(20, dtype=torch.long),
    "beyond": lambda: torch.full((20,), 7),
    "fewer": lambda: torch.ones(19, dtype=torch.long),
    "0-d": lambda: torch.tensor(1),
    "bool": lambda: torch.ones(20, dtype=torch.bool),
}
TEXTS = v.constants(None, 3, "text", [3], [b"a"], [None], [], {"a"})


def likelihood() -> torch.nn.Module:
    """Of the next token given a latent."""
    net = nn.SequenceDecoder(torch.nn.Embedding(5, 4), nn.RNN(4, 4), 2, 5)
    return distributions.ConditionalCategorical(net, num_classes=5)


def pieces() -> dict[str, torch.nn.Module]:
    """Of a VAE of tokens."""
    encoder = nn.SequenceEncoder(torch.nn.Embedding(5, 4), nn.RNN(4, 4), (2, 2))
    return {
        "p_z": distributions.StandardNormal(2),
        "p_x_given_z": distributions.ConditionalSequence(likelihood()),
        "q_z_given_x": distributions.ConditionalNormal(encoder),
    }


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
        Function(
            "ConditionalSequence",
            distributions.ConditionalSequence,
            lambda: {"step": likelihood()},
            {"step": v.MODULES},
        ),
        Function(
            "SequenceVAE",
            models.SequenceVAE,
            pieces,
            {name: v.MODULES for name in pieces()} | {"beta": v.WEIGHTS},
        ),
        Function(
            "SequenceVAE.sample",
            lambda **options: models.SequenceVAE(**pieces()).sample(**options),
            lambda: {"num_samples": 2, "num_steps": 3},
            {
                "num_samples": v.COUNTS,
                "num_steps": v.COUNTS,
                "end": {name: value for name, value in v.NATURALS.items() if name != "None"},
                "temperature": v.WEIGHTS,
                "top_k": {name: value for name, value in v.COUNTS.items() if name != "None"},
            },
        ),
        Function(
            "SequenceVAE.encode",
            lambda **options: models.SequenceVAE(**pieces()).encode(**options),
            lambda: {"x": torch.zeros(20, 3, dtype=torch.long), "lengths": torch.ones(20, dtype=torch.long)},
            {"x": v.NO_TENSOR, "lengths": v.NO_TENSOR | LENGTHS},
        ),
        Function(
            "Vocabulary.of",
            data.Vocabulary.of,
            lambda: {"texts": ["so it goes"]},
            {"texts": TEXTS, "unit": v.CHOICES, "min_count": v.COUNTS | v.constants(9)},
            called={"min_count": ("times",)},
        ),
        Function(
            "Vocabulary.encode",
            data.Vocabulary.of(["so it goes"]).encode,
            lambda: {"texts": ["so it goes"]},
            {
                "texts": TEXTS,
                "num_steps": {name: value for name, value in v.COUNTS.items() if name != "None"} | v.constants(3),
            },
        ),
        Function(
            "Vocabulary.decode",
            data.Vocabulary.of(["so it goes"]).decode,
            lambda: {"x": torch.zeros(2, 3, dtype=torch.long)},
            {
                "x": v.NO_DENSE_TENSOR
                | {
                    "floats": lambda: v.x(),
                    "beyond": lambda: torch.full((2, 3), 99),
                    "1-d": lambda: torch.zeros(3).long(),
                }
            },
        ),
        Function(
            "LengthBuckets",
            data.LengthBuckets,
            lambda: {"x": v.x(), "lengths": torch.full((20,), 6), "batch_size": 4},
            {
                "x": v.NO_DENSE_TENSOR | {"1-d": lambda: torch.zeros(20), "empty": lambda: v.x(0)},
                "lengths": v.NO_TENSOR | LENGTHS,
                "batch_size": v.COUNTS,
                "num_buckets": v.COUNTS,
                "device": v.DEVICES,
                "seed": v.SEEDS,
            },
        ),
    ]
