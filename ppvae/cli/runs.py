"""Run folders opened again: the trained pair with its data, of an example or of a run of one's own."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ppvae._validate import check_flag, usable_device
from ppvae.cli.experiment import Experiment, ExperimentData, fingerprint_of
from ppvae.cli.flags import from_json
from ppvae.infer import Recipe, RunFolder
from ppvae.infer.run_folder import Row
from ppvae.inputs import as_batch
from ppvae.pair import Batch, check_batch, check_pair
from ppvae.weights import restore_weights


class OpenedRun(NamedTuple):
    """What `open_run` returns.

    Attributes:
        pair: the trained pair, in eval mode.
        data: its arguments for the test data; none where the run does not say which they are.
        history: one row an epoch.
        metrics: the final table of an example; empty where there is none.
    """

    pair: nn.Module
    data: Batch
    history: list[Row]
    metrics: dict[str, Any]


def open_run(
    folder: str | os.PathLike[str],
    *,
    pair: nn.Module | None = None,
    trust: bool = False,
    device: str | torch.device = "cpu",
    data_root: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> OpenedRun:
    """The pair, the test data, the history and the metrics of a run.

    A run of `python -m ppvae.examples...` says itself how its pair is built. One of your own does where `fit` was given
    a `recipe`; else give the pair.

    Args:
        folder: the run folder.
        pair: a pair built as that of the run was, which takes the run's weights.
        trust: whether to import and call the functions that a run of your own names in its config.json: code that
            whoever wrote that file has chosen.
        device: where the pair goes.
        data_root: where the data set of an example lies, if not where the run found it.
        download: whether to fetch it where it is missing.

    Returns:
        The four, which unpack as `pair, data, history, metrics`.

    Raises:
        FileNotFoundError: where the folder holds no run, or the data are not found.
        ValueError: where it does not say how the pair is built, says so by functions that are not trusted, or is
            damaged.

    Example:
        >>> import tempfile, torch, ppvae
        >>> from functools import partial
        >>> from ppvae.infer import Recipe
        >>> from ppvae.models import PPCA
        >>> make, out = partial(PPCA, data_dim=8, latent_dim=2), tempfile.mkdtemp() + "/ppca"
        >>> run = ppvae.fit(make(), torch.randn(100, 8), epochs=2, out=out, recipe=Recipe(make), progress=False)
        >>> pair, data, history, metrics = ppvae.open_run(out, trust=True)
        >>> type(pair).__name__, data, len(history)
        ('PPCA', (), 2)
    """
    check_flag("trust", trust)
    root = None if data_root is None else Path(data_root)
    run = RunFolder(folder)
    if pair is None:
        opened = restore(Path(folder), device=device, data_root=root, download=download, trust=trust)
        found, data = opened.pair, opened.test
    else:
        check_pair(pair)
        run.read_config()
        restore_weights(pair, run.weights(), source=str(folder), allow_nonfinite=False)
        found, data = pair.to(usable_device(device)), ()
    return OpenedRun(found.eval(), data, run.read_history(), run.read_metrics())


@dataclass(frozen=True)
class Trained:
    """What a run folder gives back.

    Attributes:
        pair: the trained pair.
        test: its arguments for the test data; none where the run does not say which they are.
        labels: classes of an example's test images, (n,).
        symbol: what its marginal likelihood is called.
        training: of an example, gives the first argument of the pair for its training images, in the form of the test
            images, and their classes.
    """

    pair: nn.Module
    test: Batch
    labels: Tensor | None = None
    symbol: str = "log p(x)"
    training: Callable[[], tuple[Tensor, Tensor]] | None = None


def restore(
    folder: Path, *, device: str | torch.device, data_root: Path | None, download: bool = False, trust: bool = False
) -> Trained:
    """The trained pair of a run folder, and its test data: see `open_run`.

    Raises:
        FileNotFoundError: where the folder holds no run, or the data are not found.
        ValueError: where its config does not say how to build the pair, or says so by functions that are not trusted;
            or the folder is damaged.
    """
    run = RunFolder(folder)
    recipe = run.read_config().get("recipe")
    if recipe is not None:
        return _cooked(run, recipe, device, trust)
    experiment, args, noted = experiment_of(run)
    if data_root is not None:
        args = replace(args, data_root=data_root)
    weights = run.weights()
    data = experiment.load(args, download=download)
    if noted and noted != fingerprint_of(data).get("data"):
        raise ValueError(
            f"{args.data_root} has changed since {folder} was trained on it: what was read off it would be too"
        )
    try:
        _check_sizes(experiment, args, data, weights)
        pair = experiment.build(args, data)
    except RuntimeError as error:
        raise ValueError(f"{run.config} describes no pair that can be built: {error}") from error
    restore_weights(pair, weights, source=str(folder), allow_nonfinite=False)
    test = experiment.arguments(args, *data.test)
    training = None if data.labels is None else partial(_training, experiment, args, data)
    return Trained(pair.to(usable_device(device)), test, data.labels, experiment.symbol, training)


def _training(experiment: Experiment, args: Any, data: ExperimentData) -> tuple[Tensor, Tensor]:
    """The training data as the pair's first argument, in the form of the test data, and their classes."""
    of_test_form = data.training(seed=2)
    x, *_ = experiment.arguments(args, *of_test_form)
    y = of_test_form[-1]
    assert x is not None
    assert y is not None
    return x, y


def _cooked(run: RunFolder, content: Any, device: str | torch.device, trust: bool) -> Trained:
    """The pair and the data of a recipe, where its functions may be called.

    Raises:
        ValueError: where they may not, or do not fit the run.
    """
    if not trust:
        raise ValueError(
            f"{run.config} names functions that build the pair, {content!r}: they are imported and called on your word "
            "alone, open_run(folder, trust=True), python -m ppvae.evaluate --trust; or give open_run(folder, pair=pair)"
        )
    try:
        recipe = Recipe.from_json(content)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{run.config}: {error}") from error
    pair = recipe.build()
    restore_weights(pair, run.weights(), source=str(run.path), allow_nonfinite=False)
    if recipe.data is None:
        return Trained(pair.to(usable_device(device)), ())
    given = recipe.data()
    data = as_batch(given if isinstance(given, tuple) else (given,), pair, name="the recipe's data()")
    check_batch(data, name="the recipe's data()")
    return Trained(pair.to(usable_device(device)), data)


def experiment_of(run: RunFolder) -> tuple[Experiment, Any, str]:
    """The example that made a run, its flags, and the fingerprint of its data, "" where it has none.

    Raises:
        FileNotFoundError: where there is no run.
        ValueError: where there is no such example, or its flags are not those of the example.
    """
    of_run = run.read_config().get("experiment") or {}
    name = of_run.get("module", "") if isinstance(of_run, dict) else ""
    try:
        known = isinstance(name, str) and re.fullmatch(r"ppvae\.examples\.[a-z_]+", name)
        experiment = getattr(importlib.import_module(name), "EXPERIMENT", None) if known else None
    except ModuleNotFoundError:
        experiment = None
    if experiment is None:
        raise ValueError(
            f"{run.path} was made neither by an example nor with fit(recipe=...), so its config does not say how its "
            "pair is built; in Python: ppvae.open_run(folder, pair=pair), and then ppvae.log_marginal(pair, x)"
        )
    try:
        return experiment, from_json(experiment.args, of_run.get("args")), of_run.get("data", "")
    except ValueError as error:
        raise ValueError(f"{run.config}: {error}") from error


def _check_sizes(experiment: Experiment, args: Any, data: ExperimentData, weights: Mapping[str, Tensor]) -> None:
    """Checks that the pair would be of the size of its weights, before memory is taken for it."""
    with torch.device("meta"):
        try:
            shapes = {name: tuple(value.shape) for name, value in experiment.build(args, data).state_dict().items()}
        except Exception:  # what is computed of the data has no place there; the pair itself fails with better words
            return
    found = {name: tuple(value.shape) for name, value in weights.items()}
    for name in shapes.keys() & found.keys():
        if shapes[name] != found[name]:
            raise ValueError(f"config.json describes {name} of shape {shapes[name]}, the weights hold {found[name]}")
