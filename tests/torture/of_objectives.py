"""Objectives and figures, with right arguments and wrong ones."""

from __future__ import annotations

import torch
from pyro.infer import Trace_ELBO

from ppvae import objectives, plot
from ppvae.nn import MLP
from tests.torture import values as v
from tests.torture.pairs import histories, normal
from tests.torture.wrong_calls import Function

VALUES = torch.linspace(-3, 3, 4)


def critic() -> MLP:
    """A critic of codes of two dimensions."""
    return MLP(2, (4,), 1)


def of_objectives() -> list[Function]:
    """Of `ppvae.objectives`."""
    gradient = {"gradient": v.CHOICES}
    weight = v.constants(-1.0, "1", [1], None, 1j, True)
    return [
        Function(
            "Linear", objectives.Linear, lambda: {"epochs": 3}, {"epochs": v.POSITIVE, "start": v.REALS, "end": v.REALS}
        ),
        Function(
            "Cosine",
            objectives.Cosine,
            lambda: {"epochs": 3, "start": 1.0},
            {"epochs": v.POSITIVE, "start": v.REALS, "end": v.REALS},
        ),
        Function(
            "Cyclical",
            objectives.Cyclical,
            lambda: {"period": 3},
            {"period": v.POSITIVE, "ramp": v.POSITIVE | v.constants(1.5), "start": v.REALS, "end": v.REALS},
        ),
        Function(
            "Sigmoid",
            objectives.Sigmoid,
            lambda: {"midpoint": 3, "width": 1},
            {"midpoint": v.REALS, "width": v.POSITIVE, "end": v.REALS},
        ),
        Function(
            "Stages",
            objectives.Stages,
            lambda: {"epochs": 3, "start": 1.0},
            {"epochs": v.POSITIVE, "start": v.REALS, "num_stages": v.COUNTS, "growth": v.POSITIVE, "fall": v.POSITIVE},
        ),
        Function("IWAE", objectives.IWAE, lambda: {"num_samples": 2}, {"num_samples": v.COUNTS, **gradient}),
        Function(
            "CIWAE",
            objectives.CIWAE,
            lambda: {"num_samples": 2, "beta": 0.5},
            {"num_samples": v.COUNTS, "beta": v.FRACTIONS, **gradient},
        ),
        Function(
            "MIWAE",
            objectives.MIWAE,
            lambda: {"num_samples": 2, "num_groups": 2},
            {"num_samples": v.COUNTS, "num_groups": v.COUNTS, **gradient},
        ),
        Function(
            "PIWAE",
            objectives.PIWAE,
            lambda: {"num_samples": 2, "num_groups": 2},
            {"num_samples": v.COUNTS, "num_groups": v.COUNTS, **gradient},
        ),
        Function(
            "FreeBitsELBO",
            objectives.FreeBitsELBO,
            lambda: {"free_bits": 1.0},
            {"free_bits": weight, "num_particles": v.COUNTS},
        ),
        Function(
            "CapacityELBO",
            objectives.CapacityELBO,
            lambda: {"capacity": 1.0},
            {"capacity": weight, "gamma": weight, "num_particles": v.COUNTS},
        ),
        Function(
            "ConstrainedELBO",
            objectives.ConstrainedELBO,
            lambda: {"max_kl": 1.0},
            {"max_kl": weight, "rate": weight, "num_particles": v.COUNTS},
        ),
        Function(
            "BalancedELBO",
            objectives.BalancedELBO,
            lambda: {"weights": {"z": 1.0}},
            {"weights": v.constants(None, 3, "z", {"z": "1"}, {"z": -1.0}, [1]), "num_particles": v.COUNTS},
        ),
        Function(
            "TotalCorrelationELBO",
            objectives.TotalCorrelationELBO,
            lambda: {"beta": 4.0},
            {
                "beta": weight,
                "alpha": weight,
                "gamma": weight,
                "num_data": v.COUNTS,
                "weights": v.CHOICES,
                "num_particles": v.COUNTS,
            },
            fine={"num_data": ("None",)},
        ),
        Function(
            "AAE",
            objectives.AAE,
            lambda: {"critic": critic()},
            {
                "critic": v.MODULES,
                "weight": weight,
                "encoder_loss": v.CHOICES,
                "critic_steps": v.COUNTS,
                "num_particles": v.COUNTS,
            },
        ),
        Function(
            "FactorVAE",
            objectives.FactorVAE,
            lambda: {"critic": critic()},
            {"critic": v.MODULES, "gamma": weight, "critic_steps": v.COUNTS, "num_particles": v.COUNTS},
        ),
        Function(
            "WAE",
            objectives.WAE,
            dict,
            {"divergence": v.constants(3, "mmd", [1]), "weight": weight, "num_particles": v.COUNTS},
        ),
        Function(
            "InfoVAE",
            objectives.InfoVAE,
            dict,
            {
                "alpha": v.NOT_NUMBERS | v.constants(1.5, float("inf")),
                "lam": v.NOT_NUMBERS | v.constants(0.5, float("inf")),
                "divergence": v.constants(3, "mmd", [1]),
                "num_particles": v.COUNTS,
            },
        ),
        Function("AE", objectives.AE, dict, {"num_particles": v.COUNTS}),
        Function("RAE", objectives.RAE, dict, {"code_weight": weight, "num_particles": v.COUNTS}),
        Function(
            "MMD",
            objectives.MMD,
            dict,
            {
                "kernel": v.CHOICES,
                "scales": v.constants(None, 3, (), [1.0], "a", (0.0,), ("1",), (float("nan"),)),
                "variance": v.POSITIVE,
            },
        ),
        Function(
            "Critic",
            objectives.Critic,
            lambda: {"net": critic()},
            {"net": v.MODULES, "encoder_loss": v.CHOICES, "steps": v.COUNTS},
            called={"net": ("critic",), "steps": ("critic_steps",)},
        ),
        Function(
            "DIPELBO",
            objectives.DIPELBO,
            lambda: {"off_diagonal": 1.0, "diagonal": 1.0},
            {"off_diagonal": weight, "diagonal": weight, "kind": v.CHOICES, "num_particles": v.COUNTS},
        ),
        Function(
            "JointELBO",
            objectives.JointELBO,
            lambda: {"elbo": Trace_ELBO(), "weights": [1.0]},
            {
                "elbo": v.constants(None, 3, "elbo", Trace_ELBO),
                "weights": v.constants(None, 3, "a", [], ["1"], [-1.0], [float("nan")]),
            },
        ),
        Function(
            "beta_from_norm",
            objectives.beta_from_norm,
            lambda: {"beta_norm": 1.0, "latent_dim": 2, "data_dim": 6},
            {"beta_norm": v.WEIGHTS, "latent_dim": v.COUNTS, "data_dim": v.COUNTS},
        ),
    ]


def of_figures() -> list[Function]:
    """Of `ppvae.plot`."""
    images = torch.rand(4, 8, 8)
    arrays = v.ARRAYS
    return [
        Function(
            "plot.samples",
            plot.samples,
            lambda: {"images": images},
            {"images": arrays, "num_columns": v.COUNTS},
            fine={"num_columns": ("None",)},
        ),
        Function(
            "plot.reconstructions",
            plot.reconstructions,
            lambda: {"x": images, "x_mean": images},
            {"x": arrays, "x_mean": arrays, "num_columns": v.COUNTS},
        ),
        Function("plot.interpolation", plot.interpolation, lambda: {"rows": images[None]}, {"rows": arrays}),
        Function(
            "plot.traversal",
            plot.traversal,
            lambda: {"images": images[None], "values": VALUES},
            {"images": arrays, "values": arrays, "units": v.constants(3, "a", [1, 2, 3])},
        ),
        Function(
            "plot.by_condition",
            plot.by_condition,
            lambda: {"images": torch.rand(3, 2, 8, 8), "labels": "ab"},
            {"images": arrays, "labels": v.constants(3, None, ["a"])},
        ),
        Function(
            "plot.latent_scatter",
            plot.latent_scatter,
            lambda: {"z": normal(20, 2)},
            {"z": arrays, "labels": {name: make for name, make in arrays.items() if name != "None"}},
        ),
        Function(
            "plot.aggregated_posterior",
            plot.aggregated_posterior,
            lambda: {"z": normal(50, 2), "prior": normal(50, 2)},
            {"z": arrays, "prior": arrays},
        ),
        Function(
            "plot.kl_per_dimension",
            plot.kl_per_dimension,
            lambda: {"kl": torch.ones(3)},
            {
                "kl": {name: make for name, make in arrays.items() if name not in ("0-d", "5-d")},
                "active": v.constants("x") | {"fewer": lambda: torch.ones(2)},
            },
        ),
        Function(
            "plot.bound_curve",
            plot.bound_curve,
            lambda: {"num_samples": torch.tensor([1, 2]), "mean": torch.ones(2)},
            {"num_samples": arrays, "mean": arrays},
        ),
        Function(
            "plot.log_prob_histogram", plot.log_prob_histogram, lambda: {"values": normal(20)}, {"values": arrays}
        ),
        Function(
            "plot.pareto_k",
            plot.pareto_k,
            lambda: {"k_hat": normal(20)},
            {"k_hat": {name: make for name, make in arrays.items() if name != "nan"}},
        ),
        Function(
            "plot.rank_histogram",
            plot.rank_histogram,
            lambda: {"ranks": torch.arange(20), "num_samples": 20},
            {"ranks": arrays, "num_samples": v.COUNTS, "num_bins": v.COUNTS},
        ),
        Function(
            "plot.reliability_diagram",
            plot.reliability_diagram,
            lambda: {"confidence": torch.rand(5), "accuracy": torch.rand(5), "count": torch.ones(5)},
            {
                name: {kind: make for kind, make in arrays.items() if kind != "nan"}
                for name in ("confidence", "accuracy", "count")
            },
        ),
        Function(
            "plot.ppc",
            plot.ppc,
            lambda: {"observed": 1.0, "replicated": normal(20)},
            {"observed": {name: make for name, make in arrays.items() if name != "0-d"}, "replicated": arrays},
        ),
        Function(
            "plot.training_curves", plot.training_curves, lambda: {"history": histories()}, {"history": v.HISTORIES}
        ),
        Function(
            "plot.compare_curves",
            plot.compare_curves,
            lambda: {"histories": {"a": histories()}},
            {
                "histories": v.constants(3, None, "a", {}, [1], {"a": 3}, {"a": []}),
                "column": v.constants("nope", 3, None),
                "unit": v.constants(3, None),
            },
        ),
        Function(
            "plot.save",
            plot.save,
            lambda: {"figure": plot.samples(images), "path": "a.png"},
            {"figure": v.FIGURES, "path": v.PATHS | v.constants("a.txt", "nope/a.png", "x" * 300 + ".png")},
        ),
    ]
