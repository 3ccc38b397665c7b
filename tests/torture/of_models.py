"""Models, with right arguments and wrong ones."""

from __future__ import annotations

from typing import Any

import torch

import ppvae
from ppvae import distributions, models, nn
from tests.torture import values as v
from tests.torture.of_training import ONE_RUN
from tests.torture.pairs import cvae, labels, normal, vae
from tests.torture.wrong_calls import Function


def of_models() -> list[Function]:
    """Of `ppvae.models`, with their queries."""
    pieces = {"p_z": v.MODULES, "p_x_given_z": v.MODULES, "q_z_given_x": v.MODULES}

    def parts() -> dict[str, Any]:
        built = vae()
        return {name: getattr(built, name) for name in pieces}

    def words() -> dict[str, Any]:
        return {
            "p_k": distributions.UniformCategorical(3, 2),
            "p_x_given_e": distributions.ConditionalBernoulli(nn.MLP((2, 2), (8,), 6)),
            "q_k_given_x": distributions.CodePosterior(nn.MLP(6, (8,), (2, 2)), distributions.Codebook(3, 2)),
        }

    def chain() -> dict[str, Any]:
        return {
            "p_z1": distributions.StandardNormal(2),
            "p_z_given_z": distributions.ConditionalNormal(nn.GatedTransition(2, 4)),
            "p_x_given_z": distributions.ConditionalBernoulli(nn.MLP(2, (8,), 6)),
            "q_z_given_x": distributions.MarkovPosterior(
                nn.RNN(6, 4, direction="backward"), distributions.ConditionalNormal(nn.Combiner(2, 4, (2, 2))), 2
            ),
        }

    inputs = v.NO_DENSE_TENSOR | {"narrow": lambda: v.x(20, 5), "0-d": lambda: torch.tensor(1.0)}
    return [
        Function("VAE", models.VAE, parts, {**pieces, "beta": v.WEIGHTS}),
        Function(
            "DeepMarkovModel",
            models.DeepMarkovModel,
            chain,
            {**dict.fromkeys(chain(), v.MODULES), "beta": v.WEIGHTS},
        ),
        Function(
            "DeepMarkovModel.sample",
            lambda **options: models.DeepMarkovModel(**chain()).sample(**options),
            lambda: {"num_samples": 3, "num_steps": 4},
            {"num_samples": v.COUNTS, "num_steps": v.COUNTS, "mean": v.FLAGS},
        ),
        Function(
            "PPCA",
            models.PPCA,
            lambda: {"data_dim": 6, "latent_dim": 2},
            {"data_dim": v.COUNTS, "latent_dim": v.COUNTS | v.constants((2, 3)), "guide": v.CHOICES},
        ),
        Function(
            "PPCA.of_data",
            models.PPCA.of_data,
            lambda: {"x": normal(20, 6), "latent_dim": 2},
            {
                "x": v.NO_DENSE_TENSOR
                | {"narrow": lambda: v.x(20, 2), "one": lambda: v.x(1), "nan": lambda: v.changed(float("nan"))},
                "latent_dim": v.COUNTS | v.constants((2, 3), 6),
            },
        ),
        Function(
            "fit_prior",
            models.fit_prior,
            lambda: {"model": vae(), "x": v.x()},
            {
                "model": v.MODULES | {"a net": lambda: torch.nn.Linear(6, 2)},
                "x": v.NO_DENSE_TENSOR | {"narrow": lambda: v.x(20, 5), "empty": lambda: v.x(0)},
                "num_components": v.COUNTS | v.constants(21),
                "covariance": v.CHOICES,
                "seed": v.SEEDS,
            },
            called={"x": ("input", "codes"), "num_components": ("codes",)},
        ),
        *(
            Function(
                f"{name} without a distribution",
                lambda piece, name=name: ppvae.fit(models.VAE(**parts() | {name: piece}), v.x(), **ONE_RUN),
                lambda name=name: {"piece": parts()[name]},
                {"piece": {"a net": lambda shape=shape: torch.nn.Linear(*shape), "a tuple": v.Tupled}},
                called={"piece": (name,)},
            )
            for name, shape in {"p_x_given_z": (2, 6), "q_z_given_x": (6, 2)}.items()
        ),
        Function(
            "vae.sample",
            lambda **kwargs: vae().sample(**kwargs),
            lambda: {"num_samples": 2},
            {"num_samples": v.COUNTS, "mean": v.FLAGS},
        ),
        Function(
            "vae.encode",
            lambda x: vae().encode(x),
            lambda: {"x": v.x()},
            {"x": inputs},
            fine={"x": ("sparse",)},
            called={"x": ("input",)},
        ),
        Function(
            "vae.reconstruct",
            lambda x: vae().reconstruct(x),
            lambda: {"x": v.x()},
            {"x": inputs},
            fine={"x": ("sparse",)},
            called={"x": ("input",)},
        ),
        Function(
            "vae.interpolate",
            lambda **kwargs: vae().interpolate(v.x(), v.x(), **kwargs),
            dict,
            {"num_steps": v.COUNTS | v.constants(1)},
        ),
        Function(
            "cvae.sample",
            lambda y: cvae().sample(y),
            lambda: {"y": labels()},
            {"y": v.LABELS},
            fine={"y": ("fewer", "empty", "0-d", "column")},
        ),
        Function(
            "VQVAE",
            models.VQVAE,
            words,
            {"p_k": v.MODULES, "p_x_given_e": v.MODULES, "q_k_given_x": v.MODULES, "commitment": v.WEIGHTS},
        ),
        Function(
            "vqvae.sample",
            lambda **kwargs: models.VQVAE(**words()).sample(**kwargs),
            lambda: {"num_samples": 2},
            {"num_samples": v.COUNTS, "mean": v.FLAGS},
        ),
        Function("cvae.check_batch", lambda y: cvae().check_batch(v.x(), y), lambda: {"y": labels()}, {"y": v.LABELS}),
    ]
