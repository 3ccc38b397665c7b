"""Checks of the data against a pair, before any training."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceTMC_ELBO
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from ppvae._validate import check_takes
from ppvae.data import Source
from ppvae.failures import FAILURES, failing_on
from ppvae.infer.nonfinite import nonfinite_rows
from ppvae.inputs import check_number_of_arguments
from ppvae.late_params import warn_of_waiting
from ppvae.objectives.base import evaluate_objective
from ppvae.objectives.joint import JointELBO
from ppvae.objectives.kl import point_masses
from ppvae.observed import OnlyDistributions, check_observed, taken_as_given
from ppvae.pair import Batch, check_batch, check_data_plate, check_sites, device_of, take, unequal_masks
from ppvae.rng import forked_rng, kept_rng
from ppvae.sampling.eval_mode import modes_kept
from ppvae.sampling.importance import importance_draws
from ppvae.sampling.sampler import PROBE_DATA, PROBE_SAMPLES
from ppvae.sampling.support import moved_by_latents
from ppvae.traces import Site, leaf, same_scale, shown_scale, sites

NORMALISED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Layers that need several values of each channel."""

FAR = 100.0
"""Beyond how many times the unit, or below which part of it, data are of another scale."""


def check_fits(pair: nn.Module, data: Source, *, name: str) -> list[str]:
    """Runs the pair on the first minibatch of every set; checks all data in memory against the supports.

    Where the last minibatch is known to be short, also on as few data.

    Args:
        pair: a model/guide pair.
        data: what it is to be trained or validated on.
        name: the argument that the errors speak of.

    Returns:
        The continuous latents to which the guide gives one value, so that there is no ELBO.

    Raises:
        TypeError: where a minibatch is no tuple of tensors, or the pair does not take it.
        ValueError: naming the data, the site or the values that do not fit.
    """
    if not data.sets:
        return _check_set(pair, data, name)
    return [site for i, part in enumerate(data.sets) for site in _check_set(pair, part, f"{name}.sets[{i}]")]


def _check_set(pair: nn.Module, data: Source, name: str) -> list[str]:
    """Checks one data set."""
    batch = next(data.epoch(0), None)
    if batch is None:
        raise ValueError(f"{name} is empty: it gives no minibatch")
    # A bare tensor would be unpacked along its rows without a word.
    if not isinstance(batch, tuple):
        raise TypeError(f"{name} must give minibatches that are tuples of tensors, got {type(batch).__name__}")
    check_number_of_arguments(pair, batch, name)
    check_batch(batch, name=name)
    if missing := nonfinite_rows(batch, name):
        raise ValueError(missing.removesuffix(": "))
    model_trace, guide_trace = _check_runs(pair, batch, data, name)
    points = point_masses(model_trace, guide_trace)
    if name == "valid" and not points:  # an ELBO of each datum
        for where, trace in (("model", model_trace), ("guide", guide_trace)):
            check_data_plate(trace, check_batch(batch), where=where)
        next(importance_draws(pair, take(batch, slice(0, PROBE_DATA)), num_samples=1))
    _warn_of_unequal_sites(model_trace, guide_trace)
    if data.is_cut:
        _warn_of_global_latents(model_trace, guide_trace, name)
        _check_takes_minibatches(pair, batch, name)
    if data.last_rows:
        _check_runs(pair, tuple(None if t is None else t[: data.last_rows] for t in batch), data, name)
    return points


def _check_runs(pair: nn.Module, batch: Batch, data: Source, name: str) -> tuple[Trace, Trace]:
    """Runs the pair on a minibatch, under Pyro's validation; returns the traces of model and guide."""
    with failing_on(batch, pair, f"a minibatch of {name}", (*FAILURES, ValueError)), OnlyDistributions():
        guide_trace = poutine.trace(pair.guide).get_trace(*batch)
        model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(*batch)
    warn_of_waiting(pair)
    check_sites(model_trace, guide_trace)
    check_observed(model_trace, batch, data.whole, name, masked=True)
    _warn_of_scales(model_trace, batch, data.whole, name)
    with failing_on(batch, pair, f"a minibatch of {name}", (*FAILURES, ValueError)):
        guide_trace.compute_log_prob()
        model_trace.compute_log_prob()
    return model_trace, guide_trace


def _warn_of_unequal_sites(model_trace: Trace, guide_trace: Trace) -> None:
    """Warns of latents whose log p(z) and log q(z|x) do not count alike, so that their difference is no KL term."""
    in_model, in_guide = sites(model_trace), sites(guide_trace)
    for name in in_model.keys() & in_guide.keys():
        p, q = in_model[name].scale, in_guide[name].scale
        if in_model[name].is_drawn and not same_scale(p, q):
            warnings.warn(
                f"log p of the latent {name!r} has the scale {shown_scale(p)} in the model, and log q {shown_scale(q)} "
                "in the guide: their difference is no KL term. A plate that stands for more data than it is given "
                "(plate(name, N, subsample_size=n), plate(name, N)) and a poutine.scale belong in both"
            )
    if masked := unequal_masks(model_trace, guide_trace):
        warnings.warn(
            f"a mask leaves out other elements of the latents {masked} in the model than in the guide: what log q "
            "alone counts is trained towards the widest q, and log p(x) cannot be estimated"
        )


def _warn_of_global_latents(model_trace: Trace, guide_trace: Trace, name: str) -> None:
    """Warns where a latent lies in no plate, and the data of a minibatch are not scaled to all of them."""
    if not all(same_scale(site.scale, 1.0) for site in sites(model_trace).values()):
        return
    for site in _latents(guide_trace):
        if not site.plates:
            warnings.warn(
                f"the latent {site.name!r} lies in no plate: every minibatch of {name} counts its KL term in full. "
                "Scale the data by pyro.plate(name, their number, subsample_size=len(x)), in the model and in the "
                "guide, or train on all at once"
            )


def _check_takes_minibatches(pair: nn.Module, batch: Batch, name: str) -> None:
    """Checks that what the guide draws is of the minibatch that it is given, and not of certain data.

    Raises:
        ValueError: where it draws as many latents whatever it is given.
    """
    n = check_batch(batch)
    try:
        fewer = poutine.trace(pair.guide).get_trace(*(None if t is None else t[: n - 1] for t in batch))
    except Exception:  # a pair may be made for minibatches of one size
        return
    for site in _latents(fewer):
        if any(plate.dim == -1 and plate.size == plate.full_size == n for plate in site.plates):
            raise ValueError(
                f"the guide draws {site.name!r} for {n} data whatever it is given: its parameters are those of certain "
                f"data (an autoguide of latents of each datum), but {name} comes in shuffled minibatches. Give all "
                "data at once, batch_size >= their number, or use a guide that computes q(z|x) from x"
            )


def _latents(trace: Trace) -> list[Site]:
    """The sites that are latents, and no draws of the guide alone."""
    return [site for site in sites(trace).values() if site.role == "latent"]


def check_objective(objective: Any, pair: Any, batch: Batch, *, name: str = "train") -> None:
    """Evaluates an objective once under Pyro's validation, which is off while training.

    How the plates nest, where it guesses that, it then knows: a guess runs the pair, which would draw random numbers
    and move running averages in the first step of a run, and again in the first one after it is resumed.

    Args:
        objective: of the training.
        pair: a model/guide pair.
        batch: a minibatch, or one of each data set.
        name: of the argument that gives the minibatch.

    Raises:
        ValueError: where the objective is not for such a pair, e.g. one that needs a reparameterized guide, or two of
            its terms have one name.
    """
    given = objective
    if isinstance(objective, ELBO):
        objective = copy.copy(objective)
        objective.strict_enumeration_warning = False  # with all labels known there is nothing to enumerate
    called = type(objective).__name__
    if not isinstance(objective, ELBO):
        check_takes("loss", objective, "model", "guide", *(f"train[{i}]" for i in range(len(batch))))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found sample sites configured for enumeration|.*\\n.*TraceEnum_ELBO")
            evaluation = evaluate_objective(objective, pair.model, pair.guide, batch, {})
            if evaluation.loss.dim():
                raise ValueError(f"it must be a number, or a 0-d tensor, got shape {tuple(evaluation.loss.shape)}")
            evaluation.terms().named()
        if isinstance(objective, ELBO):
            given.max_plate_nesting = objective.max_plate_nesting
    except NotImplementedError as error:
        raise ValueError(f"loss {called} does not go with this pair: {error}") from error
    except (TypeError, ValueError, RuntimeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"loss {called} fails on a minibatch of {name}: {error}") from error


def short_batch(data: Source, batch: Any) -> Any:
    """A minibatch, or one of each set, cut to what the last one will hold; None where that is as large."""
    if not data.sets:
        return take(batch, slice(0, data.last_rows)) if data.last_rows else None
    if not any(part.last_rows for part in data.sets):
        return None
    return tuple(take(of, slice(0, part.last_rows or None)) for part, of in zip(data.sets, batch, strict=True))


def default_objective(pair: Any, batches: Iterable[Batch]) -> ELBO:
    """What is minimised where nothing else is asked for: with latents that are marked for enumeration, summed over."""
    return TraceEnum_ELBO(strict_enumeration_warning=False) if _marked(pair, batches) else Trace_ELBO()


def warn_of_marks(objective: Any, pair: Any, batches: Iterable[Batch]) -> None:
    """Warns where latents that are marked for enumeration would be drawn: those of the model alone from their prior."""
    bound = objective.elbo if isinstance(objective, JointELBO) else objective
    if not isinstance(bound, ELBO) or isinstance(bound, TraceEnum_ELBO | TraceTMC_ELBO):
        return
    if marked := _marked(pair, batches):
        warnings.warn(
            f"the latents {marked} are marked for enumeration, and {type(bound).__name__} draws them: sum over them "
            "with TraceEnum_ELBO (what loss=None takes), or take infer={'enumerate': ...} away"
        )


def check_summed(objective: Any, pair: Any, batches: Iterable[Batch]) -> None:
    """Checks that the values which `TraceEnum_ELBO` sums over have their probabilities as weights.

    Pyro reads them off the score function, which a family has none of where its draws are differentiable.

    Raises:
        ValueError: naming the latent whose values would all count fully.
    """
    bound = objective.elbo if isinstance(objective, JointELBO) else objective
    if not isinstance(bound, TraceEnum_ELBO):
        return
    for batch in batches:
        for name, site in sites(poutine.trace(pair.guide).get_trace(*batch)).items():
            try:
                listed = site.fn.enumerate_support(expand=False) if site.is_marked else None
            except NotImplementedError:
                continue
            if listed is not None and is_identically_zero(site.fn.score_parts(listed).score_function):
                raise ValueError(
                    f"the latent {name!r} is marked for enumeration, and draws of {type(leaf(site.fn)).__name__} are "
                    "differentiable: Pyro would sum over its values without their probabilities. Take the family "
                    "without gradients (OneHotCategorical), or ppvae.distributions.StraightThrough, which has both"
                )


def _marked(pair: Any, batches: Iterable[Batch]) -> list[str]:
    """The latents that the guide marks for enumeration, or the model where the guide does not sample them."""
    marked: dict[str, None] = {}
    for batch in batches:
        guide_trace = poutine.trace(pair.guide).get_trace(*batch)
        sampled = sites(guide_trace)
        latents = sites(poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(*batch))
        asked = {name: site for name, site in latents.items() if name not in sampled} | sampled
        marked |= {name: None for name, site in asked.items() if site.is_marked}
    return list(marked)


def check_kl_sites(names: Sequence[str] | None, pair: Any, batches: Iterable[Batch]) -> None:
    """Checks that the sites whose KL term is weighted are latents that the model has in one of these minibatches.

    Raises:
        ValueError: naming those that are not.
    """
    if names is None:
        return
    traces = [poutine.trace(pair.model).get_trace(*batch) for batch in batches]
    latents = {name for trace in traces for name, site in sites(trace).items() if site.is_drawn}
    if not latents.issuperset(names):
        raise ValueError(f"kl_sites must be among the latents {sorted(latents)}, got {list(names)}")


def _warn_of_scales(model_trace: Trace, batch: Batch, whole: Batch | None, name: str) -> None:
    """Warns of data whose scale is far from that at which nets and learned scales start."""
    for site, i in taken_as_given(model_trace, batch):
        values = batch[i] if whole is None else whole[i]
        if not (hasattr(leaf(site.fn), "loc") and values.is_floating_point() and values.numel() > 1):
            continue
        mean, std = float(values.double().mean()), float(values.double().std())
        if max(abs(mean), std) > FAR or 0 < std < 1 / FAR:
            warnings.warn(
                f"{name}[{i}] has the mean {mean:.3g} and the standard deviation {std:.3g}, and nets and scales start "
                f"at one: site {site.name!r} trains badly. Standardize.of(x) of ppvae.distributions, before the "
                "encoder's net and in Standardized(likelihood, ...), does that inside: log p(x) stays in its own units"
            )


def check_while_training(pair: nn.Module, batch: Batch) -> None:
    """Runs a pair in training mode on a minibatch under validation: what is relaxed there may lie outside a support.

    Raises:
        ValueError: naming the site whose values are not.
    """
    with _trial_of_training(pair):
        guide_trace = poutine.trace(pair.guide).get_trace(*batch)
        model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(*batch)
        guide_trace.compute_log_prob()
        model_trace.compute_log_prob()


def moved_supports(pair: nn.Module, batch: Batch) -> tuple[str, ...]:
    """The observed sites whose support depends on latents: a draw may move it past a datum at any step."""

    def run() -> Trace:
        guide_trace = poutine.trace(pair.guide).get_trace(*batch)
        return poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(*batch)

    with kept_rng(device_of(pair, batch)):
        return moved_by_latents(run(), run, PROBE_SAMPLES)


@contextmanager
def _trial_of_training(pair: nn.Module) -> Iterator[None]:
    """Training mode, without gradients; modes and buffers come back as they were."""
    buffers = {buffer: buffer.clone() for buffer in pair.buffers()}
    try:
        with modes_kept(pair), torch.no_grad():
            pair.train()
            yield
    finally:
        for buffer, before in buffers.items():
            buffer.copy_(before)


def written_from_data(pair: nn.Module, *batches: Batch) -> str | None:
    """The first buffer that a run in training mode leaves otherwise on one minibatch than on another."""
    left: list[dict[str, Tensor]] = []
    for batch in batches:
        with forked_rng(device_of(pair), 0), _trial_of_training(pair):
            with torch.enable_grad():  # as in a step
                poutine.replay(pair.model, trace=poutine.trace(pair.guide).get_trace(*batch))(*batch)
            left.append({name: buffer.clone() for name, buffer in pair.named_buffers()})
    return next((name for name in left[0] if any(not torch.equal(left[0][name], of[name]) for of in left)), None)


def check_normalised(pair: nn.Module, data: Source, batch: Batch) -> None:
    """Runs the pair in training mode on a minibatch of one datum, where there will be one, if it has batch norm.

    Raises:
        ValueError: where batch norm has no variance there.
    """
    normalised = [module for module in pair.modules() if isinstance(module, NORMALISED)]
    if not normalised or (data.last_rows != 1 and check_batch(batch) > 1):
        return
    one = take(batch, slice(0, 1))
    try:
        with _trial_of_training(pair):
            guide_trace = poutine.trace(pair.guide).get_trace(*one)
            poutine.replay(pair.model, trace=guide_trace)(*one)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            "train gives a minibatch of one datum, of which batch norm knows no variance: choose another batch_size, "
            "or leave the last one out, ppvae.data.Batches(x, batch_size=..., drop_last=True)"
        ) from error
