"""Nets and distributions, with right arguments and wrong ones."""

from __future__ import annotations

import torch

from ppvae import distributions, nn
from tests.torture import values as v
from tests.torture.pairs import labels, normal
from tests.torture.wrong_calls import Function


def of_nets() -> list[Function]:
    """Of `ppvae.nn` and `ppvae.distributions`."""
    net_options = {
        "activation": v.CHOICES,
        "norm": v.constants("nope", 3, ["x"], True),
        "dropout": v.FRACTIONS | v.constants(1.0),
    }
    sized = {"in_shape": v.SHAPES, "out_shape": v.SHAPES, **net_options}
    flags = {"spectral_norm": v.FLAGS}
    inputs = v.NO_DENSE_TENSOR | {
        "narrow": lambda: v.x(20, 5),
        "0-d": lambda: torch.tensor(1.0),
        "int": lambda: v.x().long(),
    }
    scale = {
        "scale": v.constants(0.0, -1.0, "nope", None, [1], True, float("nan"), float("inf")),
        "min_scale": v.POSITIVE,
    }
    event = {"event_dim": v.constants(-1, 2.5, "1", [1], True, 9)}
    nets = v.MODULES
    return [
        Function(
            "MLP",
            nn.MLP,
            lambda: {"in_shape": 6, "hidden_dims": (8,), "out_shape": 2},
            {**sized, "hidden_dims": v.SHAPES, **flags},
        ),
        Function(
            "ConvEncoder",
            nn.ConvEncoder,
            lambda: {"in_shape": (1, 8, 8), "channels": (4, 4), "out_shape": 2},
            {**sized, "channels": v.SHAPES, "num_residual": v.NATURALS, **flags},
            fine={"in_shape": ()},
        ),
        Function(
            "ConvDecoder",
            nn.ConvDecoder,
            lambda: {"in_shape": 2, "channels": (4, 4), "out_shape": (1, 8, 8)},
            {**sized, "channels": v.SHAPES, "num_residual": v.NATURALS, **flags},
        ),
        Function(
            "ResidualMLP",
            nn.ResidualMLP,
            lambda: {"in_shape": 6, "hidden_dim": 8, "num_blocks": 1, "out_shape": 2},
            {**sized, "hidden_dim": v.COUNTS, "num_blocks": v.COUNTS, **flags},
        ),
        Function(
            "ConditionalMLP",
            nn.ConditionalMLP,
            lambda: {"in_shape": 6, "context_shape": 3, "hidden_dims": (8,), "out_shape": 2},
            {
                **sized,
                "hidden_dims": v.SHAPES,
                "context_shape": v.SHAPES,
                "conditioning": v.CHOICES,
                "embed": v.constants(3, "net"),
            },
        ),
        Function(
            "FiLM",
            nn.FiLM,
            lambda: {"dim": 3, "context_dim": 2},
            {"dim": v.COUNTS, "context_dim": v.COUNTS, "spatial_dims": v.NATURALS},
        ),
        Function(
            "Concat",
            nn.Concat,
            lambda: {"dim": 3, "context_dim": 2, "out_dim": 2},
            {"dim": v.COUNTS, "context_dim": v.COUNTS, "out_dim": v.COUNTS},
        ),
        Function(
            "CrossAttention",
            nn.CrossAttention,
            lambda: {"in_shape": 4, "context_shape": 4},
            {"in_shape": v.SHAPES, "context_shape": v.SHAPES, "num_heads": v.COUNTS},
        ),
        Function(
            "ConcatInputs",
            nn.ConcatInputs,
            lambda: {"in_shapes": (2, 3), "net": nn.MLP(5, (4,), 2)},
            {"in_shapes": v.constants(3, None, "a", (0,), ()), "net": nets},
        ),
        Function(
            "Batched",
            nn.Batched,
            lambda: {"net": torch.nn.Linear(2, 2), "in_shape": 2, "out_shape": 2},
            {"net": nets, "in_shape": v.SHAPES, "out_shape": v.SHAPES},
            fine={
                "in_shape": ("1180591620717411303424", "(2, 9223372036854775808)"),
                "out_shape": ("1180591620717411303424", "(2, 9223372036854775808)"),
            },
        ),
        Function(
            "Reshape",
            nn.Reshape,
            lambda: {"in_shape": (2, 3), "out_shape": 6},
            {"in_shape": v.SHAPES, "out_shape": v.SHAPES},
        ),
        Function("OneHot", nn.OneHot, lambda: {"num_classes": 3}, {"num_classes": v.COUNTS}),
        Function("activation", nn.activation, lambda: {"name": "relu"}, {"name": v.CHOICES}),
        Function(
            "as_shape",
            nn.as_shape,
            lambda: {"value": 3, "name": "value"},
            {"value": v.SHAPES},
            fine={"value": ("1180591620717411303424", "(2, 9223372036854775808)")},
        ),
        Function(
            "check_labels",
            nn.check_labels,
            lambda: {"y": labels(), "num_classes": 3},
            {"y": v.LABELS, "num_classes": v.COUNTS},
            fine={"y": ("fewer", "column", "0-d", "empty")},
        ),
        Function(
            "MLP.forward",
            lambda x: nn.MLP(6, (8,), 2)(x),
            lambda: {"x": v.x()},
            {"x": inputs},
            fine={"x": ("sparse",)},
            called={"x": ("input",)},
        ),
        Function(
            "image MLP.forward",
            lambda x: nn.MLP((1, 2, 3), (8,), 2)(x),
            lambda: {"x": v.x().reshape(20, 1, 2, 3)},
            {"x": inputs},
            called={"x": ("input",)},
        ),
        Function(
            "ConvEncoder.forward",
            lambda x: nn.ConvEncoder((1, 8, 8), (4,), 2)(x),
            lambda: {"x": torch.zeros(5, 1, 8, 8)},
            {"x": inputs},
            called={"x": ("input",)},
        ),
        Function(
            "ConditionalMLP.forward",
            lambda h, c: nn.ConditionalMLP(6, 3, (8,), 2)(h, c),
            lambda: {"h": v.x(), "c": normal(20, 3)},
            {
                "h": inputs,
                "c": v.NO_DENSE_TENSOR
                | {"narrow": lambda: normal(20, 2), "fewer": lambda: normal(19, 3), "labels": labels},
            },
            fine={"h": ("sparse",)},
        ),
        Function(
            "ConditionalNormal",
            distributions.ConditionalNormal,
            lambda: {"net": nn.MLP(6, (8,), (2, 2))},
            {"net": nets, **scale, **event},
        ),
        Function(
            "ConditionalBernoulli",
            distributions.ConditionalBernoulli,
            lambda: {"net": nn.MLP(6, (8,), 2)},
            {"net": nets, **event},
        ),
        Function(
            "ConditionalCategorical",
            distributions.ConditionalCategorical,
            lambda: {"net": nn.MLP(6, (8,), 3), "num_classes": 3},
            {"net": nets, "num_classes": v.COUNTS | v.constants(4), **event},
            called={"num_classes": ("net",)},
        ),
        Function(
            "ConditionalContinuousBernoulli",
            distributions.ConditionalContinuousBernoulli,
            lambda: {"net": nn.MLP(6, (8,), 2)},
            {"net": nets, **event},
        ),
        Function(
            "ConditionalPoisson",
            distributions.ConditionalPoisson,
            lambda: {"net": nn.MLP(6, (8,), 2)},
            {"net": nets, "sized": v.FLAGS, "zero_inflated": v.FLAGS, **event},
        ),
        Function(
            "ConditionalNegativeBinomial",
            distributions.ConditionalNegativeBinomial,
            lambda: {"net": nn.MLP(6, (8,), 2)},
            {"net": nets, "inverse_dispersion": scale["scale"], "sized": v.FLAGS, "zero_inflated": v.FLAGS, **event},
        ),
        Function(
            "ConditionalStudentT",
            distributions.ConditionalStudentT,
            lambda: {"net": nn.MLP(6, (8,), (2, 2))},
            {"net": nets, "df": scale["scale"], **event},
        ),
        Function(
            "ConditionalDiscretizedLogistic",
            distributions.ConditionalDiscretizedLogistic,
            lambda: {"net": nn.MLP(6, (8,), 2)},
            {"net": nets, "num_levels": v.COUNTS | v.constants(1), **scale, **event},
        ),
        Function(
            "ConditionalMultivariateNormal",
            distributions.ConditionalMultivariateNormal,
            lambda: {"net": nn.MLP(6, (8,), 5)},
            {"net": nets, "min_scale": v.POSITIVE},
        ),
        Function(
            "StandardNormal",
            distributions.StandardNormal,
            lambda: {"event_shape": 2},
            {"event_shape": v.SHAPES},
            fine={"event_shape": ()},
        ),
        Function(
            "UniformCategorical",
            distributions.UniformCategorical,
            lambda: {"num_classes": 3, "event_shape": 2},
            {"num_classes": v.COUNTS, "event_shape": v.SHAPES},
            fine={"event_shape": ()},
        ),
        Function(
            "CategoricalPrior",
            distributions.CategoricalPrior,
            lambda: {"num_classes": 3, "event_shape": 2},
            {"num_classes": v.COUNTS, "event_shape": v.SHAPES},
            fine={"event_shape": ()},
        ),
        Function(
            "GatedTransition",
            nn.GatedTransition,
            lambda: {"latent_dim": 2, "hidden_dim": 4},
            {"latent_dim": v.COUNTS, "hidden_dim": v.COUNTS},
        ),
        Function(
            "Combiner",
            nn.Combiner,
            lambda: {"latent_dim": 2, "summary_dim": 4, "out_shape": (2, 2)},
            {"latent_dim": v.COUNTS, "summary_dim": v.COUNTS, "out_shape": v.SHAPES},
        ),
        Function(
            "MarkovPosterior",
            distributions.MarkovPosterior,
            lambda: {
                "h_given_x": nn.RNN(6, 4, direction="backward"),
                "q_z_given_zh": distributions.ConditionalNormal(nn.Combiner(2, 4, (2, 2))),
                "latent_dim": 2,
            },
            {"h_given_x": nets, "q_z_given_zh": nets, "latent_dim": v.COUNTS},
        ),
        Function(
            "CausalTransformer",
            nn.CausalTransformer,
            lambda: {"num_classes": 3, "num_positions": 2, "dim": 4},
            {
                "num_classes": v.COUNTS,
                "num_positions": v.COUNTS,
                "dim": v.COUNTS,
                "num_heads": v.COUNTS,
                "num_blocks": v.COUNTS,
                "dropout": v.FRACTIONS | v.constants(1.0),
            },
        ),
        Function(
            "AutoregressivePrior",
            distributions.AutoregressivePrior,
            lambda: {"net": nn.CausalTransformer(3, 2, dim=4)},
            {"net": nets | {"no shape": lambda: torch.nn.Linear(2, 2)}},
        ),
        Function(
            "Codebook",
            distributions.Codebook,
            lambda: {"num_codes": 3, "code_dim": 2},
            {
                "num_codes": v.COUNTS,
                "code_dim": v.COUNTS,
                "learned": v.CHOICES,
                "decay": v.FRACTIONS | v.constants(1.0),
                "restart": v.FRACTIONS | v.constants(1.0),
                "cosine": v.FLAGS,
            },
        ),
        Function(
            "CodePosterior",
            distributions.CodePosterior,
            lambda: {"net": nn.MLP(6, (8,), (2, 2)), "codebook": distributions.Codebook(3, 2)},
            {"net": nets, "codebook": nets},
        ),
        *(
            Function(
                kind.__name__,
                lambda kind=kind, **options: kind(**options).set_time(50.0),
                lambda: {"piece": distributions.UniformCategorical(3), "temperature": 0.5},
                {"piece": nets, "temperature": v.POSITIVE | v.SCHEDULES},
            )
            for kind in (distributions.Concrete, distributions.StraightThrough)
        ),
        Function(
            "MixturePrior",
            distributions.MixturePrior,
            lambda: {"num_components": 3, "event_shape": 2},
            {
                "num_components": v.COUNTS,
                "event_shape": v.SHAPES,
                "covariance": v.CHOICES,
                "min_scale": v.POSITIVE,
            },
        ),
        Function(
            "MixturePrior.fit_to",
            lambda **kwargs: distributions.MixturePrior(2, 6).fit_to(**kwargs),
            lambda: {"codes": v.x()},
            {
                "codes": v.NO_DENSE_TENSOR
                | {"narrow": lambda: v.x(20, 5), "one": lambda: v.x(1), "nan": lambda: v.changed(float("nan"))},
                "seed": v.SEEDS,
            },
        ),
        Function(
            "ConditionalDelta",
            distributions.ConditionalDelta,
            lambda: {"net": nn.MLP(6, (8,), 2)},
            {"net": nets, **event},
        ),
        Function(
            "VampPrior",
            distributions.VampPrior,
            lambda: {"q_z_given_x": distributions.ConditionalNormal(nn.MLP(6, (8,), (2, 2))), "pseudo_inputs": v.x()},
            {
                "q_z_given_x": nets,
                "pseudo_inputs": v.NO_DENSE_TENSOR
                | {
                    "narrow": lambda: v.x(20, 5),
                    "nan": lambda: v.changed(float("nan")),
                }
                | {"0-d": lambda: torch.tensor(1.0), "empty": lambda: v.x(0)},
                "bounds": v.constants(3, "a", (1.0, 0.0), (0.0,), (0.0, "1"), (float("nan"), 1.0)),
                "learned": v.FLAGS,
            },
        ),
        Function(
            "FlowPrior",
            distributions.FlowPrior,
            lambda: {"latent_dim": 2},
            {
                "latent_dim": v.COUNTS,
                "flow": v.constants("nope", 3, None, [3]),
                "num_flows": v.COUNTS,
                "hidden_dims": v.SHAPES,
            },
        ),
        Function(
            "FlowPosterior",
            distributions.FlowPosterior,
            lambda: {"net": nn.MLP(6, (8,), (3, 2))},
            {
                "net": nets,
                "flow": v.constants("nope", 3, None, [3]),
                "num_flows": v.COUNTS,
                "min_scale": v.POSITIVE,
                "hidden_dims": v.SHAPES,
            },
        ),
        Function(
            "ContinuousBernoulli",
            distributions.ContinuousBernoulli,
            lambda: {"logits": normal(3)},
            {"logits": v.constants("x", None, [1.0]) | {"nan": lambda: torch.tensor(float("nan"))}},
        ),
        Function(
            "DiscretizedLogistic",
            distributions.DiscretizedLogistic,
            lambda: {"loc": normal(3), "scale": torch.ones(3)},
            {
                "scale": {"negative": lambda: -torch.ones(3), "nan": lambda: torch.full((3,), float("nan"))},
                "num_levels": v.COUNTS,
            },
        ),
    ]
