"""Public functions of evaluation, with right arguments and wrong ones."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

import ppvae
from ppvae import evaluate, sampling
from tests.torture import values as v
from tests.torture.pairs import Shared, cvae, labels, normal, ssvae, vae
from tests.torture.wrong_calls import Function

FINE: dict[str, dict[str, tuple[str, ...]]] = {
    "log_marginal": {"num_samples": ("None",)},
    "anomaly_scores": {"num_samples": ("None",)},
    "explore": {"num_samples": ("None",), "labels": ("None",)},
}


def of_pair(name: str, function: Any, wrong: dict[str, v.Wrong], **options: Any) -> Function:
    """A function `f(pair, *data, ...)`."""
    return Function(
        name,
        lambda pair, data, **kwargs: function(pair, *(data if isinstance(data, tuple) else (data,)), **kwargs),
        lambda: {"pair": vae(), "data": v.x(), **options},
        {"pair": v.PAIRS, "data": v.DATA, **wrong},
        fine={"data": ("int64", "bool")} | FINE.get(name, {}),
    )


def estimators() -> list[Function]:
    """Of `ppvae.evaluate` and `ppvae.sampling`, of a pair and data."""
    estimate = {
        "batch_size": v.COUNTS,
        "seed": v.SEEDS,
        "compile": v.COMPILE,
        "given": v.NAMES,
        "progress": v.FLAGS,
    }
    optional = {name: ("None",) for name in ("batch_size", "num_simulations", "background")}
    huge = v.COUNTS | v.constants(10**15)
    found = [
        of_pair("elbo", ppvae.elbo, {"num_samples": huge, **estimate}, num_samples=2),
        of_pair(
            "log_marginal",
            ppvae.log_marginal,
            {"num_samples": huge, "method": v.CHOICES, "autocast": v.DTYPES, **estimate},
            num_samples=2,
        ),
        of_pair(
            "posterior_predictive", evaluate.posterior_predictive, {"num_samples": huge, "seed": v.SEEDS}, num_samples=2
        ),
        of_pair(
            "expected_log_likelihood",
            evaluate.expected_log_likelihood,
            {"num_samples": v.COUNTS, "seed": v.SEEDS},
        ),
        of_pair(
            "explore",
            ppvae.explore,
            {
                "limit": v.COUNTS | v.constants(1),
                "num_samples": huge,
                "method": v.CHOICES,
                "labels": v.constants("abc", 3, [1, 2], torch.zeros(8)),
                "export": {name: make for name, make in v.PATHS.items() if name != "None"},  # which serves the page
                "title": v.constants(3, ["a"]),
                "port": v.NATURALS | v.constants(65536),
                "browser": v.FLAGS,
            },
            num_samples=2,
            export=str(Path(tempfile.gettempdir()) / "ppvae_explored.html"),
        ),
        of_pair("latent_report", evaluate.latent_report, {"num_samples": huge, "seed": v.SEEDS}, num_samples=2),
        of_pair(
            "inference_gap",
            evaluate.inference_gap,
            {
                "num_samples": v.COUNTS,
                "num_steps": v.COUNTS,
                "num_particles": v.COUNTS,
                "seed": v.SEEDS,
                "progress": v.FLAGS,
            },
            num_samples=2,
            num_steps=1,
            num_particles=1,
        ),
        of_pair(
            "anomaly_scores",
            evaluate.anomaly_scores,
            {"num_samples": v.COUNTS, "method": v.CHOICES, "seed": v.SEEDS, "background": v.PAIRS},
            num_samples=2,
        ),
        of_pair(
            "run_sbc",
            evaluate.run_sbc,
            {"num_simulations": v.COUNTS, "num_samples": v.COUNTS, "seed": v.SEEDS},
            num_samples=3,
        ),
        of_pair(
            "compare_with_nuts",
            evaluate.compare_with_nuts,
            {"num_samples": v.COUNTS, "warmup": v.COUNTS, "num_chains": v.COUNTS, "seed": v.SEEDS},
        ),
        of_pair(
            "sample_quality",
            evaluate.sample_quality,
            {
                "features": v.MODULES,
                "argument": v.constants(1, -1, 0.0, "x", None, True),
                "seed": v.SEEDS,
                "batch_size": v.COUNTS,
            },
            features=torch.nn.Identity(),
        ),
        of_pair(
            "ppc",
            evaluate.ppc,
            {
                "statistics": v.constants(3, None, {}, {"a": 3}, {3: torch.mean}),
                "num_samples": v.COUNTS,
                "site": v.constants(3, "nope", ["x"]),
                "seed": v.SEEDS,
            },
            statistics={"mean": torch.mean},
            num_samples=2,
        ),
        of_pair(
            "bidirectional",
            evaluate.bidirectional,
            {
                "method": v.constants("annealed", 3),
                "batch_size": v.COUNTS,
                "seed": v.SEEDS,
                "compile": v.COMPILE,
                "progress": v.FLAGS,
            },
            method=evaluate.Annealed(num_chains=2, num_temperatures=3),
        ),
        Function(
            "log_evidence",
            lambda pair, data, **kwargs: evaluate.log_evidence(pair, data, **kwargs),
            lambda: {"pair": Shared(), "data": v.x(), "num_samples": 2},
            {"pair": v.PAIRS, "data": v.DATA, "num_samples": v.COUNTS, "batch_size": v.COUNTS, "seed": v.SEEDS},
            fine={"data": ("int64", "bool", "float64", "float16")},
        ),
        Function(
            "importance_draws",
            lambda **kwargs: next(sampling.importance_draws(**kwargs)),
            lambda: {"pair": vae(), "data": (v.x(),), "num_samples": 2},
            {
                "pair": v.PAIRS,
                "data": v.constants(None, 3, (), (None,), ("x",), (3,)),
                "num_samples": v.COUNTS,
                "batch_size": v.COUNTS,
                "seed": v.SEEDS,
                "compile": v.COMPILE,
                "given": v.NAMES,
            },
        ),
        Function(
            "posterior_sampler",
            lambda **kwargs: sampling.posterior_sampler(**kwargs).__enter__(),
            lambda: {"pair": vae(), "data": (v.x(),)},
            {
                "pair": v.PAIRS,
                "data": v.constants(None, 3, (), (None,), ("x",), (3,)),
                "seed": v.SEEDS,
                "given": v.NAMES,
            },
        ),
        Function(
            "label_posterior",
            evaluate.label_posterior,
            lambda: {"pair": cvae(), "x": v.x(), "num_classes": 3, "num_samples": 2},
            {
                "pair": v.PAIRS,
                "x": v.DATA,
                "num_classes": v.COUNTS | v.constants(1, 4),
                "num_samples": v.COUNTS,
                "log_prior": v.NO_DENSE_TENSOR
                | {
                    "nan": lambda: torch.full((3,), float("nan")),
                    "two": lambda: torch.zeros(2),
                },
                "method": v.CHOICES,
                "batch_size": v.COUNTS,
                "seed": v.SEEDS,
                "compile": v.COMPILE,
                "progress": v.FLAGS,
            },
            fine={"x": ("int64", "bool"), "num_samples": ("None",), "batch_size": ("None",)},
            called={"x": ("data",)},
        ),
        *(
            Function(
                f"{name}, {kind}",
                lambda pair, y, function=function: function(pair, v.x(), y, num_samples=2),
                lambda pair=pair: {"pair": pair(), "y": labels()},
                {"y": v.LABELS},
                called={"y": ("data",)},
            )
            for kind, pair in {"cvae": cvae, "ssvae": ssvae}.items()
            for name, function in {"elbo": ppvae.elbo, "log_marginal": ppvae.log_marginal}.items()
        ),
    ]
    return [_with_optional(function, optional) for function in found]


def _with_optional(function: Function, optional: dict[str, tuple[str, ...]]) -> Function:
    return Function(
        function.name, function.call, function.right, function.wrong, function.called, {**optional, **function.fine}
    )


def of_arrays() -> list[Function]:
    """Of `ppvae.evaluate`, of tensors that are there."""
    probabilities = torch.tensor([[0.2, 0.5, 0.3]]).expand(20, 3)
    scored = {"probabilities": v.PROBABILITIES, "y": v.LABELS}
    features = torch.randn(20, 3)
    return [
        Function(
            "frechet_distance",
            evaluate.frechet_distance,
            lambda: {"a": features, "b": features + 1},
            {"a": v.NO_DENSE_TENSOR, "b": v.NO_DENSE_TENSOR},
            called={"a": ("samples",), "b": ("data",)},
        ),
        Function(
            "train_features",
            evaluate.train_features,
            lambda: {"x": v.x(20), "y": labels(), "num_steps": 1},
            {"x": v.NO_DENSE_TENSOR, "y": v.LABELS, "num_steps": v.COUNTS, "seed": v.SEEDS},
        ),
        Function("error_rate", evaluate.error_rate, lambda: {"probabilities": probabilities, "y": labels()}, scored),
        Function(
            "reliability",
            evaluate.reliability,
            lambda: {"probabilities": probabilities, "y": labels()},
            {**scored, "num_bins": v.COUNTS},
        ),
        Function(
            "disentanglement_of_codes",
            evaluate.disentanglement_of_codes,
            lambda: {"z": normal(200, 2), "factors": torch.arange(400).reshape(200, 2) % 3, "num_repeats": 1},
            {
                "z": v.NO_DENSE_TENSOR | {"one dim": lambda: normal(200), "fewer": lambda: normal(100, 2)},
                "factors": v.NO_DENSE_TENSOR
                | {"float": lambda: normal(200, 2), "constant": lambda: 0 * labels()[:, None]},
                "names": v.NAMES,
                "categorical": v.NAMES,
                "num_bins": v.COUNTS,
                "num_repeats": v.COUNTS,
                "seed": v.SEEDS,
            },
            called={"z": ("factors",)},
            fine={"names": ("None",), "num_bins": ("None",)},
        ),
        Function("pareto_k", evaluate.pareto_k, lambda: {"log_weight": normal(200, 3)}, {"log_weight": v.LOG_WEIGHTS}),
        Function(
            "bound_curve", evaluate.bound_curve, lambda: {"log_weight": normal(200, 3)}, {"log_weight": v.LOG_WEIGHTS}
        ),
        Function(
            "auroc",
            evaluate.auroc,
            lambda: {"scores_in": normal(20), "scores_out": normal(20)},
            {
                name: v.NO_DENSE_TENSOR
                | {"nan": lambda: torch.full((20,), float("nan")), "empty": lambda: torch.zeros(0)}
                for name in ("scores_in", "scores_out")
            },
        ),
        Function(
            "check_sbc",
            evaluate.check_sbc,
            lambda: {"ranks": evaluate.SBCRanks({"z": torch.arange(20)[:, None] % 10}, 9)},
            {"ranks": v.constants(None, 3, "r") | {"tensor": lambda: normal(3)}},
        ),
        Function(
            "ecdf_band",
            evaluate.ecdf_band,
            lambda: {"num_simulations": 20, "num_samples": 9, "level": 0.05},
            {"num_simulations": v.COUNTS, "num_samples": v.COUNTS, "level": v.FRACTIONS},
        ),
        Function(
            "compare",
            evaluate.compare,
            lambda: {"estimates": {"a": normal(20), "b": normal(20)}},
            {
                "estimates": v.constants(None, 3, "a", [1], {}, {"a": 3}, {"a": "x"})
                | {"one": lambda: {"a": normal(20)}, "lengths": lambda: {"a": normal(20), "b": normal(19)}}
                | {"2-d": lambda: {"a": normal(20, 2), "b": normal(20, 2)}}
            },
        ),
        Function(
            "to_arviz",
            evaluate.to_arviz,
            lambda: {"draws": evaluate.posterior_predictive(vae(), v.x(), num_samples=2)},
            {"draws": v.constants(None, 3, {}) | {"tensor": lambda: normal(3)}},
        ),
        Function(
            "Annealed",
            evaluate.Annealed,
            dict,
            {"num_chains": v.COUNTS, "num_temperatures": v.COUNTS, "num_leapfrog": v.COUNTS, "start": v.CHOICES},
        ),
        Function(
            "Adaptive",
            evaluate.Adaptive,
            dict,
            {"num_samples": v.COUNTS, "tolerance": v.constants(0, -1.0, float("nan"), float("inf"), "x", None, True)},
        ),
        Function(
            "Auto",
            evaluate.Auto,
            dict,
            {name: v.constants(None, 3, "x", evaluate.Auto) for name in ("importance", "adaptive", "annealed")},
        ),
        Function("Importance", evaluate.Importance, dict, {"num_samples": v.COUNTS}),
    ]
