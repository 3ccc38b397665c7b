"""What is right and wrong with a pair on a minibatch of data, in sentences: the first thing to run on a new model.

`ppvae.doctor(pair, x)` looks at a copy of the pair, which itself stays as it is, and
`ppvae doctor RUN` at the pair of a run on its test data.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ppvae._validate import check_flag
from ppvae.data import Batches
from ppvae.evaluate.latents import latent_report
from ppvae.evaluate.marginal import log_marginal
from ppvae.evaluate.psis import PARETO_GOOD, PARETO_SAMPLES, ParetoWarning
from ppvae.infer.preflight import check_fits, default_objective
from ppvae.infer.svi import SVI
from ppvae.inputs import as_batch
from ppvae.objectives.reverse import trained_model
from ppvae.pair import check_batch, check_pair, device_of
from ppvae.rng import forked_rng
from ppvae.sampling.eval_mode import evaluating
from ppvae.traces import Site, leaf, sites

Kind = Literal["wrong", "doubtful", "fine"]

STEPS = 3
"""Steps of which the gradients are looked at: in one a unit may be idle by chance."""
OURS = ("pyro", "torch", "ppvae")
"""Packages whose lines are not the user's."""
MARKS = {"wrong": "✗", "doubtful": "!", "fine": "✓"}


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: "wrong" where training or a likelihood fails or means something else than it says, "doubtful" where it
            may, and "fine".
        text: a sentence.
    """

    kind: Kind
    text: str


@dataclass(frozen=True)
class Diagnosis:
    """What `doctor` has found.

    Attributes:
        sites: a line for each statement of the guide and of the model; none where these fail.
        findings: what is wrong first, then what is doubtful, then what is fine.
    """

    sites: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return all(finding.kind != "wrong" for finding in self.findings)

    def summary(self) -> str:
        """All of it, for a person."""
        return "\n".join([*self.sites, *(f"{MARKS[finding.kind]} {finding.text}" for finding in self.findings)])

    def __str__(self) -> str:
        return self.summary()


def doctor(pair: nn.Module, *data: Any, compile: bool = False, seed: int = 0) -> Diagnosis:
    """Looks a pair over on a minibatch of data: its sites, its gradients, its latents, whether it compiles.

    Args:
        pair: any model/guide pair; a copy of it is looked at.
        data: its arguments, tensors or arrays of shape (n, ...), some hundred data of those it is for.
        compile: whether to compile its training step too, which takes seconds, and say why where that fails.
        seed: of the draws; the global random state is left alone.

    Returns:
        What was found; `print` it.

    Raises:
        TypeError: where there is no pair, or there are no data.

    Example:
        >>> from ppvae.models import PPCA
        >>> diagnosis = doctor(PPCA(8, 2, guide="amortized"), torch.randn(100, 8))
        >>> diagnosis.healthy
        True
        >>> diagnosis.sites[0]
        'guide  z  Normal, 2 numbers in (-∞, ∞), in plate data (100)'
    """
    check_pair(pair)
    check_flag("compile", compile)
    batch = as_batch(data, pair)
    check_batch(batch)
    found: list[Finding] = []
    looked_at = copy.deepcopy(pair)
    lines: list[str] = []
    with _noting(found), evaluating(looked_at, seed, attach=True):
        with contextlib.suppress(Exception):  # the checks say it better
            lines += _sites_of(looked_at, batch)
        check_fits(looked_at, Batches(*batch, batch_size=check_batch(batch), shuffle=False), name="data")
    if all(finding.kind != "wrong" for finding in found):
        for look in (_gradients, partial(_compiles, wanted=compile), _latents):
            with _noting(found), forked_rng(device_of(pair, batch), seed):
                found += look(copy.deepcopy(pair), batch, seed)
    if not found or all(finding.kind == "fine" for finding in found):
        found.insert(0, Finding("fine", "nothing is wrong"))
    return Diagnosis(tuple(lines), tuple(sorted(found, key=lambda finding: list(MARKS).index(finding.kind))))


@contextmanager
def _noting(found: list[Finding]) -> Iterator[None]:
    """Makes findings of the errors and the warnings of what runs inside."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", ParetoWarning)  # counted
        try:
            yield
        except (ValueError, TypeError, RuntimeError, NotImplementedError, KeyError) as error:
            found.append(Finding("wrong", " ".join(str(error).split())))
    texts = dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught)
    known = {finding.text for finding in found}
    found += [Finding("doubtful", text) for text in texts if text not in known]


class _Lines(Messenger):
    """Notes in which line of the user's code each statement stands."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[str, str] = {}

    def _pyro_sample(self, msg: Any) -> None:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and str(frame.f_globals.get("__name__", "")).split(".")[0] in OURS:
            frame = (
                None
                if frame.f_globals["__name__"] == __name__ and frame.f_code.co_name == "_sites_of"
                else frame.f_back
            )
        if frame is not None:  # a statement of a model of ours has no line of the user's
            self.of.setdefault(msg["name"], f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")


def _sites_of(pair: Any, batch: Any) -> list[str]:
    """A line for each site of guide and model."""
    with _Lines() as where:
        guide = pyro.poutine.trace(pair.guide).get_trace(*batch)
        model = pyro.poutine.trace(pyro.poutine.replay(pair.model, trace=guide)).get_trace(*batch)
    both = (("guide", guide), ("model", model))
    return [
        f"{name}  {_described(site, where.of.get(site.name))}" for name, trace in both for site in sites(trace).values()
    ]


def _described(site: Site, line: str | None) -> str:
    """A site's family, the shape of one value, its support and its plates."""
    event = tuple(site.fn.event_shape)
    family = type(leaf(site.fn)).__name__
    size = f"{' x '.join(map(str, event))} numbers" if event else "one number"
    plates = ", ".join(f"{plate.name} ({plate.size})" for plate in site.plates)
    observed = " (observed)" if site.role == "observed" else ""
    masked = ", masked" if site.is_masked else ""
    inside = f", in plate {plates}" if plates else ", in no plate"
    at = f"  [{line}]" if line else ""
    return f"{site.name}{observed}  {family}, {size} in {_support(site)}{masked}{inside}{at}"


def _support(site: Site) -> str:
    """The support in a word or two."""
    try:
        support = str(leaf(site.fn).support)
    except NotImplementedError:
        return "a support that its family does not tell"
    in_words = {"Real()": "(-∞, ∞)", "Boolean()": "{0, 1}", "IntegerGreaterThan(lower_bound=0)": "0, 1, 2, …"}
    return in_words.get(support, support)


def _gradients(pair: Any, batch: Any, seed: int) -> list[Finding]:
    """Which parameters no gradient reaches, or one that is no number."""
    largest: dict[str, float] = {}
    svi = _svi(pair, batch, seed, compile=False)

    def note(parameters: Sequence[Tensor]) -> None:
        for name, p in svi.named_parameters():
            size = 0.0 if p.grad is None else float(p.grad.detach().abs().max()) if p.numel() else 0.0
            largest[name] = max(largest.get(name, 0.0), size) if size == size else size
            if p.grad is not None:
                p.grad.nan_to_num_()  # a step of no length would spread it

    svi.stepper.on_gradients = note
    for _ in range(STEPS):
        svi.step(*batch)
    found = []
    if lost := [name for name, size in largest.items() if size != size]:
        found.append(Finding("wrong", f"the gradient of {_listed(lost)} is no number"))
    if idle := [name for name, size in largest.items() if size == 0.0]:
        found.append(
            Finding("wrong", f"no gradient reaches {_listed(idle)}: neither model nor guide uses it, or it is detached")
        )
    if held := [name for name, p in pair.named_parameters() if not p.requires_grad]:
        found.append(Finding("doubtful", f"{_listed(held)} is held fixed: its requires_grad is False"))
    if not lost and not idle:
        found.append(Finding("fine", f"a gradient reaches each of {len(largest)} parameters"))
    return found


def _compiles(pair: Any, batch: Any, seed: int, *, wanted: bool) -> list[Finding]:
    """Whether the training step becomes one graph; why not is a warning of its own."""
    if not wanted:
        return []
    svi = _svi(pair, batch, seed, compile=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(STEPS):
            svi.step(*batch)
    reasons = [text for warning in caught if "compil" in (text := str(warning.message)) or "eager" in text]
    if reasons:
        return [Finding("doubtful", f"the training step {reasons[0]}")]
    return [Finding("fine", "the training step is one compiled graph")]


def _svi(pair: Any, batch: Any, seed: int, *, compile: bool) -> SVI:
    """Steps of no length, by the objective that `fit` takes where it is given none."""
    torch_optim = partial(torch.optim.SGD, lr=0.0)
    with evaluating(pair, seed, attach=True):
        loss, model = default_objective(pair, (batch,)), trained_model(pair, batch)
    return SVI(model, pair.guide, torch_optim, loss, compile=compile, owner=pair)


def _latents(pair: Any, batch: Any, seed: int) -> list[Finding]:
    """Which latents tell nothing of the data, and whether the guide is near enough for log p(x)."""
    report = latent_report(pair, *batch, seed=seed)
    found = []
    for name in report.collapsed:
        text = f"the latent {name!r} tells nothing of the data ({report.sites[name].describe()})"
        found.append(
            Finding("doubtful", f"{text}: before training that is as it should be, after it, it has collapsed")
        )
    for name, site in report.sites.items():
        if name not in report.collapsed:
            found.append(Finding("fine", f"the latent {name!r} is in use: {site.describe()}"))
    estimate = log_marginal(pair, *batch, num_samples=2 * PARETO_SAMPLES, seed=seed)
    bad = int((estimate.pareto_k > PARETO_GOOD).sum())
    share = f"k̂ > {PARETO_GOOD} for {bad} of {len(estimate.values)} data"
    if bad:
        text = f'log p(x) by importance sampling is not to be trusted yet: {share}; train on, or method="annealed"'
        found.append(Finding("doubtful", text))
    else:
        found.append(Finding("fine", f"the guide is near enough for log p(x) by importance sampling: {share}"))
    return found


def _listed(names: Sequence[str]) -> str:
    """The first few names."""
    shown = ", ".join(map(repr, names[:6]))
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"
