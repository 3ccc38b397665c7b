"""What a trained pair is worth: likelihoods, posteriors and labels, each with its evidence, for any pair."""

from ppvae.evaluate.adaptive import Adaptive, AdaptiveDiagnostics
from ppvae.evaluate.ais import Annealed, AnnealedDiagnostics, BidirectionalBounds, bidirectional
from ppvae.evaluate.arviz import to_arviz
from ppvae.evaluate.auto import Auto, AutoDiagnostics
from ppvae.evaluate.classification import Reliability, error_rate, label_posterior, reliability
from ppvae.evaluate.codes import encode, interpolate, reconstruct, traverse
from ppvae.evaluate.compare import compare, comparison_table
from ppvae.evaluate.condition import Conditional, PartOf, condition
from ppvae.evaluate.disentanglement import Disentanglement, Score, disentanglement, disentanglement_of_codes
from ppvae.evaluate.estimates import Diagnostics, Elbo, LogMarginal
from ppvae.evaluate.estimator import Estimator, EvaluationOptions
from ppvae.evaluate.evidence import LogEvidence, log_evidence
from ppvae.evaluate.expected_log_likelihood import ExpectedLogLikelihood, expected_log_likelihood
from ppvae.evaluate.features import InceptionFeatures, LabelFeatures, train_features
from ppvae.evaluate.importance import Importance, ImportanceDiagnostics, SupportWarning
from ppvae.evaluate.impute import Imputation, impute
from ppvae.evaluate.inference_gap import InferenceGap, inference_gap
from ppvae.evaluate.latents import LatentReport, LatentSite, latent_report
from ppvae.evaluate.marginal import METHODS, elbo, log_marginal
from ppvae.evaluate.nuts import NUTSComparison, compare_with_nuts
from ppvae.evaluate.ood import AnomalyScores, anomaly_scores, auroc
from ppvae.evaluate.predictive import PosteriorPredictive, PredictiveCheck, posterior_predictive, ppc
from ppvae.evaluate.psis import ParetoWarning, bound_curve, pareto_k
from ppvae.evaluate.sample_quality import (
    SampleQuality,
    compare_features,
    draw_samples,
    frechet_distance,
    kernel_distance,
    sample_quality,
)
from ppvae.evaluate.sbc import SBCRanks, SBCVerdict, check_sbc, ecdf_band, run_sbc
from ppvae.evaluate.sites import num_observed
from ppvae.evaluate.temperature import fit_temperature

__all__ = [
    "METHODS",
    "Adaptive",
    "AdaptiveDiagnostics",
    "Annealed",
    "AnnealedDiagnostics",
    "AnomalyScores",
    "Auto",
    "AutoDiagnostics",
    "BidirectionalBounds",
    "Conditional",
    "Diagnostics",
    "Disentanglement",
    "Elbo",
    "Estimator",
    "EvaluationOptions",
    "ExpectedLogLikelihood",
    "Importance",
    "ImportanceDiagnostics",
    "Imputation",
    "InceptionFeatures",
    "InferenceGap",
    "LabelFeatures",
    "LatentReport",
    "LatentSite",
    "LogEvidence",
    "LogMarginal",
    "NUTSComparison",
    "ParetoWarning",
    "PartOf",
    "PosteriorPredictive",
    "PredictiveCheck",
    "Reliability",
    "SBCRanks",
    "SBCVerdict",
    "SampleQuality",
    "Score",
    "SupportWarning",
    "anomaly_scores",
    "auroc",
    "bidirectional",
    "bound_curve",
    "check_sbc",
    "compare",
    "compare_features",
    "compare_with_nuts",
    "comparison_table",
    "condition",
    "disentanglement",
    "disentanglement_of_codes",
    "draw_samples",
    "ecdf_band",
    "elbo",
    "encode",
    "error_rate",
    "expected_log_likelihood",
    "fit_temperature",
    "frechet_distance",
    "impute",
    "inference_gap",
    "interpolate",
    "kernel_distance",
    "label_posterior",
    "latent_report",
    "log_evidence",
    "log_marginal",
    "num_observed",
    "pareto_k",
    "posterior_predictive",
    "ppc",
    "reconstruct",
    "reliability",
    "run_sbc",
    "sample_quality",
    "to_arviz",
    "train_features",
    "traverse",
]
