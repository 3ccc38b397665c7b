"""The posterior checks of `python -m ppvae.evaluate RUN --posterior`, all at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ppvae.evaluate.estimates import mean_over_data
from ppvae.evaluate.inference_gap import InferenceGap, inference_gap
from ppvae.evaluate.latents import LatentReport, latent_report
from ppvae.evaluate.sbc import SBCRanks, SBCVerdict, check_sbc, run_sbc

NUM_SIMULATIONS = 1000
"""Simulations for the calibration."""


@dataclass
class PosteriorChecks:
    """Why the ELBO is lower than log p(x), what the latents hold, and whether the guide is calibrated.

    Attributes:
        gap: the inference gap.
        latents: the collapse report.
        ranks: of the simulation-based calibration.
        verdict: on them.
        reasons: by check, why it does not apply to the pair; the check itself is then None.
    """

    gap: InferenceGap | None = None
    latents: LatentReport | None = None
    ranks: SBCRanks | None = None
    verdict: SBCVerdict | None = None
    reasons: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """What each check found, or why it was left out."""
        found = [check.summary() for check in (self.gap, self.latents, self.verdict) if check is not None]
        return "\n".join([*found, *(f"{name}: not of this pair: {why}" for name, why in self.reasons.items())])

    def figures(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        figures: dict[str, Any] = dict(self.reasons)
        if self.gap is not None:
            terms = ("log_marginal", "best_elbo", "elbo", "total", "approximation", "amortization")
            figures["inference_gap"] = {name: mean_over_data(getattr(self.gap, name)) for name in terms}
        if self.latents is not None:
            figures["latents"] = _of_latents(self.latents)
        if self.verdict is not None:
            figures["calibration"] = {"p_values": self.verdict.p_values, "findings": list(self.verdict.findings)}
        return figures


def check_posterior(pair: nn.Module, *data: Any, log_marginal: Tensor | None = None, seed: int = 0) -> PosteriorChecks:
    """Runs all checks that apply to the pair.

    Args:
        pair: any model/guide pair.
        data: its arguments, tensors of shape (n, ...).
        log_marginal: log p(x) of each datum for the inference gap, (n,), nats; by default estimated.
        seed: of the draws.
    """
    checks = PosteriorChecks()

    def ask_gap() -> None:
        checks.gap = inference_gap(pair, *data, log_marginal=log_marginal, seed=seed)

    def ask_latents() -> None:
        checks.latents = latent_report(pair, *data, seed=seed)

    def ask_calibration() -> None:
        checks.ranks = run_sbc(pair, *data, num_simulations=NUM_SIMULATIONS, seed=seed)
        checks.verdict = check_sbc(checks.ranks)

    for name, ask in (("inference_gap", ask_gap), ("latents", ask_latents), ("calibration", ask_calibration)):
        try:
            ask()
        except (NotImplementedError, ValueError) as error:  # a discrete latent, a likelihood that cannot be simulated
            checks.reasons[name] = str(error)
    return checks


def _of_latents(report: LatentReport) -> dict[str, Any]:
    sites = {}
    for name, site in report.sites.items():
        units: dict[str, Any] = {}
        if site.active is not None:
            units = {"active": site.active.flatten().nonzero().flatten().tolist(), "num_units": site.active.numel()}
        information = {"mutual_information": site.mutual_information, "marginal_kl": site.marginal_kl}
        sites[name] = {"kl": mean_over_data(site.kl), **units, **information, "collapsed": site.collapsed}
    together = {"mutual_information": report.mutual_information, "marginal_kl": report.marginal_kl}
    return {"kl": mean_over_data(report.kl), **together, "sites": sites}
