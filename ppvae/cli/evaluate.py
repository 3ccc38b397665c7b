"""`python -m ppvae.evaluate RUN [RUN ...] --num-samples 5000 --limit 1000`: evaluates trained runs.

Rebuilds the pair and the data of each run from its `config.json`, loads its weights, and prints the table of the test
set with its diagnostics; of several runs also the differences to the first. Into each run folder it writes
`evaluation.json`, `evaluation.safetensors` (the values per datum, for `ppvae.evaluate.compare`) and figures; of a
method that was asked for by its name `evaluation-annealed.json` and so on, with `--autocast` one of its dtype.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor

from ppvae import plot, processes
from ppvae.cli.flags import check_used, flag, in_flags
from ppvae.cli.parsing import parse
from ppvae.cli.pipes import outlives_its_reader
from ppvae.cli.posterior_checks import PosteriorChecks, check_posterior
from ppvae.cli.report import Report, both_bounds, by_class, describe, elbo_or_likelihood, first, strict_json, table
from ppvae.cli.runs import Trained, restore
from ppvae.cli.sample_checks import check_samples
from ppvae.compile import keep_freed_memory
from ppvae.evaluate.ais import Annealed, bidirectional
from ppvae.evaluate.compare import compare, comparison_table
from ppvae.evaluate.estimates import LogMarginal
from ppvae.evaluate.estimator import Estimator
from ppvae.evaluate.expected_log_likelihood import ExpectedLogLikelihood
from ppvae.evaluate.marginal import estimator_of, log_marginal
from ppvae.evaluate.psis import PARETO_SAMPLES, ParetoWarning
from ppvae.evaluate.sbc import ecdf_band
from ppvae.sampling.guide_density import PointMassError
from ppvae.storage import save_state, write_json

ELBO_SAMPLES = 100
"""The most draws for the ELBO; as many as log p(x) has, where that is of draws from the guide too and has fewer."""


DEFAULT = "auto"
"""The method whose files have no name of their own."""

GROUPS = {
    "likelihood": ("runs", "method", "num_samples", "num_temperatures", "start", "bidirectional", "autocast"),
    "checks": ("posterior", "samples", "by_class"),
    "run": ("limit", "json", "seed", "cuda", "data_root", "download", "trust"),
}
"""The groups of flags in the help."""


@dataclass(frozen=True)
class Args:
    """Evaluate trained runs: ELBO and log p(x) of their test set, and how far to trust them."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders that examples wrote, or fit with a recipe; several are compared with the first, on the same data."""
    method: str = DEFAULT
    """How log p(x) is estimated: auto, which is importance sampling and better methods for the data with k̂ > 0.7;
    importance, adaptive (proposals fitted to each datum) or annealed for all; or another name in
    ppvae.evaluate.METHODS."""
    num_samples: int | None = None
    """Importance samples per datum, by default 1000; at most so many adaptive draws, 2000; or annealed chains, 16."""
    num_temperatures: int = Annealed.num_temperatures
    """Steps of each annealed chain."""
    start: Literal["guide", "prior", "adaptive"] = Annealed.start
    """Where annealed chains start."""
    bidirectional: bool = False
    """With annealed, also bound log p(x) from both sides, on as many data drawn from the model itself."""
    autocast: Literal["bfloat16", "float16"] | None = None
    """Matrix products and convolutions of log p(x) in this dtype; the table says by how much that moved it. All else
    that is printed keeps its own."""
    limit: int | None = None
    """Evaluate only the first data of the test set."""
    posterior: bool = False
    """Also check the posterior on the same data: the inference gap, what the latents hold, calibration."""
    samples: bool = False
    """In place of log p(x), how like the test set samples of the model are: Fréchet and kernel distance, precision and
    recall, density and coverage, by features of a classifier of the training set's labels. Written to metrics.json."""
    by_class: bool = False
    """Also a row for each class of the test set."""
    json: bool = False
    """Print the figures as JSON in place of the table."""
    seed: int = 0
    """Of the draws."""
    cuda: bool = False
    """Run on a CUDA GPU."""
    data_root: Path | None = None
    """Where the data set lies, if not where the runs found it."""
    download: bool = False
    """Fetch the data set where it is missing."""
    trust: bool = False
    """Import and call the functions that a run of your own names in its config.json (fit's recipe)."""


@outlives_its_reader
def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    args = parse(Args, arguments, prog="ppvae evaluate", groups=GROUPS)
    keep_freed_memory()
    processes.join()
    try:
        return _run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {in_flags(str(error), args)}", file=sys.stderr)
        return 2


def _run(args: Args) -> int:
    """Evaluates the runs one after another, and prints the tables or their JSON."""
    annealed = ("annealed",)
    check_used(args, "method", num_temperatures=annealed, start=annealed, bidirectional=annealed)
    if args.samples:
        return processes.on_first(lambda: _judge_samples(args))
    method = _method(args)
    runs = _restored(args)
    figures: dict[str, Report] = {}
    estimates: dict[str, LogMarginal] = {}
    for name, run in runs.items():
        figures[name], estimates[name] = evaluate_run(run, Path(name), args, method)
        if not args.json:
            processes.show(table(figures[name]) if len(runs) == 1 else f"{name}\n{table(figures[name])}")
            processes.show(f"written to {Path(name)}/evaluation{_suffix(args)}.json")
    comparison = compare(estimates) if len(runs) > 1 else {}
    if args.json:
        result = {"runs": figures, **({"comparison": comparison} if comparison else {})}
        processes.show(json.dumps(strict_json(result), indent=2, allow_nan=False))
    elif comparison:
        processes.show(comparison_table(comparison, next(iter(runs.values())).symbol))
    return 0


def _judge_samples(args: Args) -> int:
    """Compares samples of each run with its test data, and prints what was found or its JSON."""
    for name in ("method", "num_samples", "autocast", "posterior", "by_class"):
        if getattr(args, name) != getattr(Args, name):
            raise ValueError(f"--samples stands in place of log p(x): {flag(name)} does not go with it")
    found = {name: check_samples(run, Path(name), seed=args.seed) for name, run in _restored(args).items()}
    for name, checks in found.items() if not args.json else ():
        print(checks.summary() if len(found) == 1 else f"{name}\n{checks.summary()}")
        print(f"written to {Path(name)}/metrics.json")
    if args.json:
        figures = {name: checks.figures() for name, checks in found.items()}
        print(json.dumps(strict_json({"runs": figures}), indent=2, allow_nan=False))
    return 0


def _restored(args: Args) -> dict[str, Trained]:
    """The runs by name, their test data the first that were asked for, and the same for all.

    Raises:
        ValueError: where no run is named, one is named twice, or their test data differ.
    """
    if len({path.resolve() for path in args.runs}) < max(1, len(args.runs)):
        raise ValueError(f"name at least one run folder, and none twice: got {[str(path) for path in args.runs]}")
    runs: dict[str, Trained] = {}
    device = "cuda" if args.cuda else "cpu"
    for path in args.runs:
        run = processes.in_turn(partial(_restored_one, path, args, device))
        if not run.test:
            raise ValueError(f"{path} does not say on which data it is evaluated: its recipe has no data")
        labels = None if run.labels is None else run.labels[: args.limit]
        if args.by_class and labels is None:
            raise ValueError(f"--by-class needs the classes of an example's test set, which {path} has not")
        run = replace(run, test=first(run.test, args.limit), labels=labels)
        base = next(iter(runs.values()), run)
        same = run.symbol == base.symbol and len(run.test) == len(base.test)
        if not (same and all(_equal(a, b) for a, b in zip(run.test, base.test, strict=True))):
            raise ValueError(
                f"{path} has other test data than {args.runs[0]}, or conditions on other data: no comparison"
            )
        runs[str(path)] = run
    return runs


def _restored_one(path: Path, args: Args, device: str) -> Trained:
    return restore(path, device=device, data_root=args.data_root, download=args.download, trust=args.trust)


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def _method(args: Args) -> Estimator:
    """The estimator that the flags describe."""
    return _annealed(args) if args.method == "annealed" else estimator_of(args.method, args.num_samples)


def _annealed(args: Args) -> Annealed:
    """The chains that the flags describe."""
    chains = Annealed(num_temperatures=args.num_temperatures, start=args.start)
    return chains if args.num_samples is None else replace(chains, num_chains=args.num_samples)


def _suffix(args: Args) -> str:
    """What file names end with, so that one method's, or one precision's, do not overwrite another's."""
    return "".join(f"-{name}" for name in (args.method, args.autocast) if name not in (DEFAULT, None))


def evaluate_run(run: Trained, folder: Path, args: Args, method: Estimator) -> tuple[Report, LogMarginal]:
    """Evaluates one run and writes what it found into its folder."""
    try:
        with warnings.catch_warnings(action="ignore", category=ParetoWarning):  # the table counts these data
            estimate = log_marginal(
                run.pair,
                *run.test,
                method=method,
                seed=args.seed,
                progress=sys.stderr.isatty(),
                autocast=args.autocast and getattr(torch, args.autocast),
            )
    except PointMassError as error:
        raise ValueError(
            f"{folder}: the encoder is deterministic and has no density, by which log p(x) could be estimated here: "
            "give --method annealed --start prior, or --method adaptive"
        ) from error
    settings, of_guide = estimate.diagnostics.settings(), args.method in ("importance", DEFAULT)
    num_draws = min(int(settings["num_samples"]), ELBO_SAMPLES) if of_guide else ELBO_SAMPLES
    terms = elbo_or_likelihood(run.pair, run.test, num_samples=num_draws, seed=args.seed)
    figures: Report = {"method": args.method, "seed": args.seed, "limit": args.limit, "symbol": run.symbol, **settings}
    figures |= {} if args.autocast is None else {"autocast": args.autocast}
    figures |= {"num_dims": estimate.num_dims, "test": describe(terms, estimate)}
    if isinstance(terms, ExpectedLogLikelihood):
        if args.by_class or args.posterior:
            raise ValueError(f"--by-class and --posterior need an ELBO: {folder}: {terms.summary()}")
        figures["summary"] = terms.summary()
    elif args.by_class and run.labels is not None:
        figures["test"]["by_class"] = by_class(terms, estimate, run.labels)
    if args.bidirectional:
        both = bidirectional(run.pair, *run.test, method=_annealed(args), seed=args.seed, progress=sys.stderr.isatty())
        figures["sandwich"] = both_bounds(both)
    if args.posterior:
        few = int(settings["num_samples"]) < PARETO_SAMPLES  # no k̂ by which data would have had a better method
        known = None if args.method == "importance" or (args.method == DEFAULT and few) else estimate.values
        checks = check_posterior(run.pair, *run.test, log_marginal=known, seed=args.seed)
        figures |= {"posterior": checks.figures(), "summary": checks.summary()}
        processes.on_first(partial(_draw_posterior, checks, folder / "figures"))
    of_datum = {"std_error": estimate.std_error, "ess": estimate.ess, **estimate.diagnostics.of_datum()}
    name = "reconstruction" if isinstance(terms, ExpectedLogLikelihood) else "elbo"
    state = {"log_marginal": estimate.values, **of_datum, name: terms.values}
    state |= {} if run.labels is None else {"labels": run.labels}
    state |= {} if estimate.rounding is None else {"rounding": estimate.rounding}

    def write() -> None:
        save_state(folder / f"evaluation{_suffix(args)}.safetensors", state)
        write_json(folder / f"evaluation{_suffix(args)}.json", strict_json(figures))  # last: it says that all is there
        _draw(estimate, folder / "figures", run.symbol, _suffix(args))

    processes.on_first(write)
    return figures, estimate


def _draw(estimate: LogMarginal, folder: Path, symbol: str, suffix: str) -> None:
    """Writes the values per datum, and where the method has them the bound against the number of samples, and k̂."""
    folder.mkdir(exist_ok=True)
    figures: dict[str, Any] = {}
    values = estimate.values[estimate.values.isfinite()]
    if len(values):
        figures["log_prob"] = plot.log_prob_histogram(values, xlabel=f"{symbol}, nats")
    bounds = estimate.diagnostics.of_datum().get("bound")
    if isinstance(bounds, dict):
        figures |= _of_bounds(bounds)
    if len(known := estimate.pareto_k[~estimate.pareto_k.isnan()]):  # what was annealed has none
        figures["pareto_k"] = plot.pareto_k(known)
    for name, figure in figures.items():
        plot.save(figure, folder / f"{name}{suffix}.png")


def _of_bounds(bounds: dict[int, Tensor]) -> dict[str, Any]:
    """The mean bound of every number of samples with which that of each datum is finite."""
    known = {size: bound for size, bound in bounds.items() if bound.isfinite().all()}
    if not known:
        return {}
    sizes, means = torch.tensor(list(known)), torch.stack(list(known.values()))
    error = (means - means[-1]).std(-1) / math.sqrt(means.shape[-1]) if means.shape[-1] > 1 else None
    return {"bound": plot.bound_curve(sizes, means.mean(-1), error)}


def _draw_posterior(checks: PosteriorChecks, folder: Path) -> None:
    """Writes the KL of each dimension, the aggregated posterior over the prior, and the ranks in their band."""
    folder.mkdir(exist_ok=True)
    figures: dict[str, Any] = {}
    for name, site in checks.latents.sites.items() if checks.latents else ():
        if site.kl_per_dim is not None and bool(site.kl_per_dim.isfinite().all()):
            figures[f"kl_{name}"] = plot.kl_per_dimension(site.kl_per_dim, site.active)
        if site.posterior.is_floating_point():
            points = [z.reshape(len(z), -1) for z in (site.posterior, site.prior)]
            figures[f"aggregated_{name}"] = plot.aggregated_posterior(*points)
    if checks.ranks and checks.verdict:
        level = checks.verdict.level / len(checks.verdict.p_values)
        for name, ranks in checks.ranks.ranks.items():
            band = ecdf_band(len(ranks), checks.ranks.num_samples, level=level)
            if bool((ranks >= 0).all()):  # none is masked
                columns = ranks.reshape(len(ranks), -1)
                units = [f"{name}[{i}]" for i in range(columns.shape[1])]
                figures[f"sbc_{name}"] = plot.sbc_ecdf(columns, *band, names=units)
    for name, figure in figures.items():
        plot.save(figure, folder / f"{name}.png")
