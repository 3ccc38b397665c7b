"""Checks of the data against a pair, before any training."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from pyro.infer import ELBO
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.distributions import Independent
from torch.utils.data import DataLoader

from ppvae.data import Batches, JointBatches
from ppvae.objectives.base import evaluate_objective
from ppvae.objectives.kl import same_scale, shown_scale
from ppvae.pair import Batch, check_batch, check_sites, failing_on, unequal_masks
from ppvae.traces import same_values, sample_sites

Source = Batches | JointBatches | Iterable[Any]
"""What gives minibatches, epoch after epoch."""


def minibatches(data: Source, epoch: int, device: torch.device, *, name: str) -> Iterator[Batch]:
    """The minibatches of an epoch as tuples on `device`.

    Args:
        data: `Batches`, or an iterable of minibatches. `JointBatches` give tuples of minibatches.
        epoch: its number, from 0.
        device: where the minibatches go.
        name: the argument that the errors speak of.

    Raises:
        TypeError: where an iterable gives something other than tensors, or tuples of tensors and None.
    """
    if isinstance(data, Batches | JointBatches):
        yield from data.epoch(epoch)
        return
    for item in data:
        batch = (item,) if isinstance(item, Tensor) else item
        if not isinstance(batch, tuple | list):
            raise TypeError(
                f"{name} must give minibatches that are tensors or tuples of them, got {type(item).__name__}"
            )
        yield tuple(t.to(device, non_blocking=True) if isinstance(t, Tensor) else t for t in batch)


def size_of(data: Source, batch: Batch, *, name: str) -> int:
    """The number of data that the loss of a minibatch is the sum over; of `JointBatches`, all that they hold."""
    return data.num_data if isinstance(data, JointBatches) else check_batch(batch, name=name)


def epoch_length(data: Source) -> int | None:
    """Minibatches in an epoch; None where the data do not know."""
    try:
        return len(data)  # type: ignore[arg-type]
    except TypeError:  # no length, or a DataLoader over a data set without one
        return None


def check_fits(pair: nn.Module, data: Source, device: torch.device, *, name: str) -> None:
    """Runs the pair on the first minibatch of `data`, and checks all data in memory against the supports.

    Where the last minibatch is known to be short, also on as few data; of `JointBatches`, so on each set.

    Args:
        pair: a model/guide pair.
        data: what it is to be trained or validated on.
        device: where the minibatches go.
        name: the argument that the errors speak of.

    Raises:
        TypeError: where a minibatch is no tuple of tensors, or the pair does not take it.
        ValueError: naming the data, the site or the values that do not fit.
    """
    if isinstance(data, JointBatches):
        for i, part in enumerate(data.sets):
            check_fits(pair, part, device, name=f"{name}.sets[{i}]")
        return
    batch = next(minibatches(data, 0, device, name=name), None)
    if batch is None:
        raise ValueError(f"{name} is empty: it gives no minibatch")
    check_batch(batch, name=name)
    for i, tensor in enumerate(batch):
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{name}[{i}] holds NaN or infinite values")
    model_trace, guide_trace = _check_runs(pair, batch, data, name)
    _warn_of_unequal_sites(model_trace, guide_trace)
    if isinstance(data, Batches | DataLoader) and epoch_length(data) != 1:
        _warn_of_global_latents(model_trace, guide_trace, name)
        _check_takes_minibatches(pair, batch, name)
    short = data.num_data % data.batch_size if isinstance(data, Batches) and not data.drop_last else 0
    if short and len(data) > 1:  # type: ignore[arg-type]
        _check_runs(pair, tuple(None if t is None else t[:short] for t in batch), data, name)


def _check_runs(pair: nn.Module, batch: Batch, data: Source, name: str) -> tuple[Trace, Trace]:
    """Runs the pair on a minibatch, under Pyro's validation; returns the traces of model and guide."""
    with failing_on(batch, pair, f"a minibatch of {name}", (RuntimeError, TypeError, ValueError)):
        guide_trace = poutine.trace(pair.guide).get_trace(*batch)
        model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(*batch)
    check_sites(model_trace, guide_trace)
    _check_supports(model_trace, data, batch, name)
    with failing_on(batch, pair, f"a minibatch of {name}", (RuntimeError, TypeError, ValueError)):
        guide_trace.compute_log_prob()
        model_trace.compute_log_prob()
    return model_trace, guide_trace


def _warn_of_unequal_sites(model_trace: Trace, guide_trace: Trace) -> None:
    """Warns of latents whose log p(z) and log q(z|x) do not count alike, so that their difference is no KL term."""
    in_model, in_guide = dict(sample_sites(model_trace)), dict(sample_sites(guide_trace))
    for name in in_model.keys() & in_guide.keys():
        p, q = in_model[name]["scale"], in_guide[name]["scale"]
        if not in_model[name]["is_observed"] and not same_scale(p, q):
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
    if any(not isinstance(site["scale"], int | float) or site["scale"] != 1 for _, site in sample_sites(model_trace)):
        return
    for site, frames in _plates_of_latents(guide_trace):
        if not frames:
            warnings.warn(
                f"the latent {site!r} lies in no plate: every minibatch of {name} counts its KL term in full. Scale "
                "the data by pyro.plate(name, their number, subsample_size=len(x)), in the model and in the guide, or "
                "train on all at once"
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
    for site, frames in _plates_of_latents(fewer):
        if any(frame.dim == -1 and frame.size == frame.full_size == n for frame in frames):
            raise ValueError(
                f"the guide draws {site!r} for {n} data whatever it is given: its parameters are those of certain data "
                f"(an autoguide of latents of each datum), but {name} comes in shuffled minibatches. Give all data at "
                "once, batch_size >= their number, or use a guide that computes q(z|x) from x"
            )


def _plates_of_latents(trace: Trace) -> list[tuple[str, list[Any]]]:
    """The latent sites by name, each with the plates that it lies in."""
    return [
        (name, [frame for frame in site["cond_indep_stack"] if frame.vectorized])
        for name, site in sample_sites(trace)
        if not site["is_observed"] and not site["infer"].get("is_auxiliary")
    ]


def check_objective(objective: Any, pair: Any, batch: Batch) -> None:
    """Evaluates an objective once under Pyro's validation, which is off while training.

    Args:
        objective: of the training.
        pair: a model/guide pair.
        batch: a minibatch, or one of each data set.

    Raises:
        ValueError: where the objective is not for such a pair, e.g. one that needs a reparameterized guide.
    """
    if isinstance(objective, ELBO):
        objective = copy.copy(objective)
        objective.strict_enumeration_warning = False  # with all labels known there is nothing to enumerate
    try:
        evaluate_objective(objective, pair.model, pair.guide, batch, {})
    except NotImplementedError as error:
        raise ValueError(f"loss {type(objective).__name__} does not go with this pair: {error}") from error


def check_kl_sites(sites: Sequence[str] | None, pair: Any, batches: Iterable[Batch]) -> None:
    """Checks that the sites whose KL term is weighted are latents that the model has in one of these minibatches.

    Raises:
        ValueError: naming those that are not.
    """
    if sites is None:
        return
    traces = [poutine.trace(pair.model).get_trace(*batch) for batch in batches]
    latents = {name for trace in traces for name, site in sample_sites(trace) if not site["is_observed"]}
    if not latents.issuperset(sites):
        raise ValueError(f"kl_sites must be among the latents {sorted(latents)}, got {list(sites)}")


def _check_supports(model_trace: Any, data: Source, batch: Batch, name: str) -> None:
    """Checks the values that are observed as they are given: all of them in memory, else the minibatch."""
    in_memory = isinstance(data, Batches) and data.transform is None
    for site_name, site in sample_sites(model_trace):
        for i, tensor in enumerate(batch):
            if site["is_observed"] and same_values(site["value"], tensor):
                values = data.tensors[i] if in_memory and isinstance(data, Batches) else tensor
                assert values is not None
                _check_support(site_name, site["fn"], values, f"{name}[{i}]")


def _check_support(site: str, fn: Any, values: Tensor, name: str) -> None:
    while isinstance(fn, Independent | ExpandedDistribution | MaskedDistribution):
        fn = fn.base_dist
    support = fn.support
    of_each_datum = any(isinstance(v, Tensor) and v.dim() > 0 for v in vars(support).values())
    if not getattr(fn, "_validate_args", False) or support.event_dim > 0 or of_each_datum:
        return
    for rows in values.split(4096):
        outside = ~support.check(rows)
        if bool(outside.any()):
            example = rows[outside].flatten()[0].item()
            raise ValueError(
                f"{name} holds values outside the support of {type(fn).__name__} at site {site!r}, "
                f"e.g. {example:g}: expected {support}"
            )
