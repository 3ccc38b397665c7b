"""What is right and wrong with a pair on a minibatch of data, in sentences: the first thing to run on a new model.

`ppvae.doctor(pair, x)` looks at a copy of the pair, which itself stays as it is, and
`ppvae doctor RUN` at the pair of a run on its test data.
"""

from __future__ import annotations

import contextlib
import copy
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import pyro
import torch
from torch import Tensor, nn

from ppvae._validate import check_flag
from ppvae.cli.code_lines import Statements, of_error, of_parameters
from ppvae.cli.step_time import calls_of_nets, time_step
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
MARKS = {"wrong": "✗", "doubtful": "!", "fine": "✓"}


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: "wrong" where training or a likelihood fails or means something else than it says, "doubtful" where it
            may, and "fine".
        text: a sentence.
        where: lines of the code that it is about, "model.py:12", or classes of nets; none where it is about no line.
    """

    kind: Kind
    text: str
    where: tuple[str, ...] = ()

    def __str__(self) -> str:
        at = f"  [{', '.join(self.where)}]" if self.where else ""
        return f"{MARKS[self.kind]} {self.text}{at}"


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
        return "\n".join([*self.sites, *map(str, self.findings)])

    def __str__(self) -> str:
        return self.summary()


def doctor(pair: nn.Module, *data: Any, compile: bool = False, seed: int = 0) -> Diagnosis:
    """Looks a pair over on a minibatch of data: its sites, its gradients, its latents, whether it compiles, its speed.

    Args:
        pair: any model/guide pair; a copy of it is looked at.
        data: its arguments, tensors or arrays of shape (n, ...), some hundred data of those it is for.
        compile: whether to compile its training step too, which takes seconds, and say what it takes then, or why that
            fails.
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
    looked_at, statements = copy.deepcopy(pair), Statements()
    lines: list[str] = []
    with _noting(found), evaluating(looked_at, seed, attach=True):
        with contextlib.suppress(Exception):  # the checks say it better
            lines += _sites_of(looked_at, batch, statements)
        check_fits(looked_at, Batches(*batch, batch_size=check_batch(batch), shuffle=False), name="data")
    if all(finding.kind != "wrong" for finding in found):
        for look in (_gradients, partial(_speed, compile=compile), _latents):
            if look is not _latents and any(finding.kind == "wrong" for finding in found):
                continue  # what is no number would fail there too
            with _noting(found), forked_rng(device_of(pair, batch), seed):
                found += look(copy.deepcopy(pair), batch, seed)
    if not found or all(finding.kind == "fine" for finding in found):
        found.insert(0, Finding("fine", "nothing is wrong"))
    found = [_placed(finding, statements) for finding in found]
    return Diagnosis(tuple(lines), tuple(sorted(found, key=lambda finding: list(MARKS).index(finding.kind))))


def _placed(finding: Finding, statements: Statements) -> Finding:
    """A finding with the lines of the sites that it names, where it has no others."""
    if finding.where or finding.kind == "fine":
        return finding
    names = dict.fromkeys(re.findall(r"'([^']+)'", finding.text))
    return replace(finding, where=tuple(line for name in names for line in statements.of_site(name)))


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
            found.append(Finding("wrong", " ".join(str(error).split()), tuple(of_error(error))))
    texts = dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught)
    known = {finding.text for finding in found}
    found += [Finding("doubtful", text) for text in texts if text not in known]


def _sites_of(pair: Any, batch: Any, statements: Statements) -> list[str]:
    """A line for each site of guide and model; notes where in the code their statements stand."""
    with statements:
        statements.program = "guide"
        guide = pyro.poutine.trace(pair.guide).get_trace(*batch)
        statements.program = "model"
        model = pyro.poutine.trace(pyro.poutine.replay(pair.model, trace=guide)).get_trace(*batch)
    both = (("guide", guide), ("model", model))
    return [
        f"{name}  {_described(site, statements.of.get((name, site.name)))}"
        for name, trace in both
        for site in sites(trace).values()
    ]


def _described(site: Site, line: str | None) -> str:
    """A site's family, the shape of one value, its support and its plates."""
    event = tuple(site.fn.event_shape)
    family = type(leaf(site.fn)).__name__
    size = f"{' x '.join(map(str, event))} numbers" if math.prod(event) != 1 else "one number"
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

    def about(kind: Kind, text: str, names: Sequence[str]) -> Finding:
        return Finding(kind, text.format(_listed(names)), tuple(of_parameters(pair, names)[:3]))

    found = []
    if lost := [name for name, size in largest.items() if size != size]:
        found.append(about("wrong", "the gradient of {} is no number", lost))
    if idle := [name for name, size in largest.items() if size == 0.0]:
        text = "no gradient reaches {}: neither model nor guide uses it, or it is detached"
        found.append(about("wrong", text, idle))
    if held := [name for name, p in pair.named_parameters() if not p.requires_grad]:
        found.append(about("doubtful", "{} is held fixed: its requires_grad is False", held))
    if not lost and not idle:
        found.append(Finding("fine", f"a gradient reaches each of {len(largest)} parameters"))
    return found


def _speed(pair: Any, batch: Any, seed: int, *, compile: bool) -> list[Finding]:
    """What a step takes, beside its nets alone; whether it becomes one graph, and what it takes then."""
    found = []
    eager = _svi(pair, batch, seed, compile=False)
    with calls_of_nets(pair) as calls:
        eager.step(*batch)
    graph = _svi(pair, batch, seed, compile=True) if compile else None
    if graph is not None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(STEPS):
                graph.step(*batch)
        reasons = [text for warning in caught if "compil" in (text := str(warning.message)) or "eager" in text]
        if reasons:
            found.append(Finding("doubtful", f"the training step is {reasons[0]}"))
            graph = None
        else:
            found.append(Finding("fine", "the training step is one compiled graph"))
    took = time_step(
        partial(eager.step, *batch),
        None if graph is None else partial(graph.step, *batch),
        calls,
        num_data=check_batch(batch),
        device=device_of(pair, batch),
    )
    return [*found, Finding("fine", took.summary())]


def _svi(pair: Any, batch: Any, seed: int, *, compile: bool) -> SVI:
    """Steps of no length, by the objective that `fit` takes where it is given none."""
    torch_optim = partial(torch.optim.Adam, lr=0.0, fused=True)
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
        text = f'log p(x) by importance sampling is not to be trusted yet: {share}; train on, or method="auto"'
        found.append(Finding("doubtful", text))
    else:
        found.append(Finding("fine", f"the guide is near enough for log p(x) by importance sampling: {share}"))
    return found


def _listed(names: Sequence[str]) -> str:
    """The first few names."""
    shown = ", ".join(map(repr, names[:6]))
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"
