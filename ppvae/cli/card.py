"""The model card of a run: what it is, how good it is and how far to believe that, read off its folder."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ppvae import models
from ppvae.cli.experiment import Experiment
from ppvae.cli.flags import ExperimentArgs, command_of
from ppvae.cli.report import Report, from_json, table
from ppvae.cli.runs import experiment_of
from ppvae.evaluate.psis import PARETO_GOOD
from ppvae.infer import RunFolder
from ppvae.storage import read_json

TAGS = ("variational-autoencoder", "pyro", "generative-model", "variational-inference")
"""What the hub files a model under."""
FIRST_FIGURES = ("samples.png", "reconstructions.png", "training.png")
"""What a reader wants to see first."""


def model_card(run: RunFolder, repo_id: str, *, license: str | None = None, tags: Sequence[str] = ()) -> str:
    """The card as Markdown, with the front matter that the hub reads.

    Every number in it was written into the folder by training or by `python -m ppvae.evaluate`.

    Args:
        run: a run folder.
        repo_id: the repository that the card is of, `owner/name`.
        license: its licence as the hub names it, e.g. "apache-2.0".
        tags: what it is filed under besides.

    Raises:
        FileNotFoundError: where the folder holds no run.
        ValueError: where it is damaged.
    """
    config = without_paths(run.read_config())
    made_by = _example(run, config)
    front = {"library_name": "ppvae", **({"license": license} if license else {}), "tags": [*TAGS, *tags]}
    parts = [
        "---\n" + "\n".join(f"{name}: {json.dumps(value)}" for name, value in front.items()) + "\n---",
        f"# {repo_id.rpartition('/')[2]}",
        _story(config, made_by),
        _opening(config, repo_id, made_by is not None),
        "## How good it is\n\n" + _quality(run),
        "## How it was trained\n\n" + _training(run, config, made_by),
    ]
    return "\n\n".join([*parts, *_pictures(run)]) + "\n"


def without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """The config without the paths of this machine: of folders, and of a script that a recipe names."""
    shared = json.loads(json.dumps(config))
    args = (shared.get("experiment") or {}).get("args") or {}
    if isinstance(args, dict) and args:
        args["out"] = None
        args["data_root"] = str(_relative(Path(args.get("data_root", "data"))))
    for part in (shared.get("recipe") or {}).values():
        if part:
            home, _, name = part["function"].rpartition(":")
            part["function"] = f"{_relative(Path(home))}:{name}"
    return shared


def evaluations(run: RunFolder) -> dict[str, Report]:
    """What `python -m ppvae.evaluate` found, by file; where it was never run, the final table of an example."""
    found = {path.name: from_json(read_json(path)) for path in sorted(run.path.glob("evaluation*.json"))}
    if found:
        return found
    metrics = from_json(run.read_metrics())
    return {"metrics.json": metrics} if "test" in metrics else {}


def quality_in_words(figures: Report) -> str:
    """One sentence: log p(x) with its standard error, the method, and for how many data it may be too low."""
    test = figures["test"]
    if "log_marginal" not in test:
        return str(figures.get("summary", ""))
    mean, error = test["log_marginal"]["mean"], test["log_marginal"]["std_error"]
    sentence = (
        f"{figures['symbol']} = {mean:.3f} ± {error:.3f} nats per datum, mean ± standard error over "
        f"{test['num_data']} test data; {_method(figures)}"
    )
    if "autocast" in figures:
        sentence += f", matrix products in {figures['autocast']}"
    if "k_hat" in test:
        bad = test["k_hat"][f"above_{PARETO_GOOD}"]
        sentence += f"; k̂ > {PARETO_GOOD} for {bad} of them ({100 * bad / test['num_data']:.1f} %)"
        sentence += ", whose values may be far too low" if bad else ""
    return sentence + "."


def _method(figures: Report) -> str:
    name, number = figures.get("method", "importance"), figures["num_samples"]
    if methods := figures["test"].get("methods"):
        return f"by {', '.join(f'{method} sampling for {n}' for method, n in methods.items())} (K = {number} at first)"
    return f"by {name} sampling, {number} {figures.get('draws', 'importance samples')} each"


def _example(run: RunFolder, config: dict[str, Any]) -> tuple[Experiment, ExperimentArgs] | None:
    """The example that made a run, and its flags without the paths of a machine; None for a run of one's own."""
    if not str((config.get("experiment") or {}).get("module")).startswith("ppvae.examples."):
        return None
    experiment, args, _ = experiment_of(run)
    return experiment, replace(args, data_root=_relative(args.data_root))


def _relative(path: Path) -> Path:
    """A path as others may see it: of an absolute one the last part."""
    return Path(path.name) if path.is_absolute() else path


def _story(config: dict[str, Any], made_by: tuple[Experiment, ExperimentArgs] | None) -> str:
    """The generative story as the model's own file tells it, or what the example says of itself; the architecture."""
    modules = str((config.get("fit") or {}).get("pair", {}).get("modules", ""))
    kind = (re.match(r"\w+", modules) or [""])[0]
    text = ""
    if isinstance(of := getattr(models, kind, None), type):
        text = sys.modules[of.__module__].__doc__ or ""
    elif made_by is not None:
        text = sys.modules[made_by[0].build.__module__].__doc__ or ""
    shown = f"<details><summary>Its modules</summary>\n\n```text\n{modules}\n```\n\n</details>" if modules else ""
    return "\n\n".join(filter(None, [text.strip(), shown])) or "A model/guide pair."


def _opening(config: dict[str, Any], repo_id: str, of_example: bool) -> str:
    """The lines that open it."""
    recipe = config.get("recipe")
    trust = ", trust=True" if recipe else ""
    note = ""
    if recipe:
        note = (
            f"\n\nIts pair is built by `{recipe['pair']['function']}`, which is not in this repository: `trust=True` "
            "imports it from where your program finds its modules, and calls it; `pair=pair` takes one of yours."
        )
    elif not of_example:
        trust, note = ", pair=pair", "\n\n`pair` is one built as the run's was: `config.json` has its modules."
    return (
        f'```python\nimport ppvae  # pip install "ppvae[hub]"\n\n'
        f'pair, data, history, metrics = ppvae.from_hub("{repo_id}"{trust})\n'
        f"ppvae.log_marginal(pair, *data)\n```\n\n"
        f"Weights are safetensors, everything else JSON, CSV and PNG: opening it runs no code from it.{note}"
    )


def _quality(run: RunFolder) -> str:
    """A sentence and the table of each evaluation."""
    found = evaluations(run)
    if not found:
        return f"Not evaluated: `ppvae evaluate {run.path.name}` writes log p(x) here."
    return "\n\n".join(
        f"{quality_in_words(figures)}\n\n```text\n{table(figures)}\n```\n\n(`{name}`)"
        for name, figures in found.items()
    )


def _training(run: RunFolder, config: dict[str, Any], made_by: tuple[Experiment, ExperimentArgs] | None) -> str:
    """Command, data, epochs and versions."""
    fit, history, metrics = config.get("fit") or {}, run.read_history(), run.read_metrics()
    lines = []
    if made_by is not None:
        experiment, args = made_by
        command = shlex.join(["ppvae", "train", experiment.name, *command_of(args)])
        lines.append(f"```bash\n{command}\n```\n")
        if hasattr(args, "dataset"):
            lines.append(f"- data: {args.dataset}; to train on {_shape(fit)}")
    else:
        lines.append(f"- data: {_shape(fit)}; loss {fit.get('loss')}; optimizer {fit.get('optim')}, lr {fit.get('lr')}")
    best = metrics.get("best_epoch")
    epochs = f"- {len(history)} epochs on {fit.get('device')}, seed {fit.get('seed')}"
    epochs += f"; the weights are those of epoch {best}, the best on validation data" if best else ""
    lines.append(epochs + (f"; {metrics['seconds']:.1f} s" if "seconds" in metrics else ""))
    versions = ", ".join(f"{name} {config[name]}" for name in ("ppvae", "torch", "pyro", "python") if name in config)
    return "\n".join([*lines, f"- {versions}"])


def _shape(fit: dict[str, Any]) -> str:
    """The shapes of the training data."""
    return " and ".join(" × ".join(map(str, shape)) for shape in fit.get("train") or [] if shape) or "an iterable"


def _pictures(run: RunFolder) -> list[str]:
    """The figures, those that a reader wants first at the top."""
    names = [path.name for path in sorted((run.path / "figures").glob("*.png"))]
    names.sort(key=lambda name: FIRST_FIGURES.index(name) if name in FIRST_FIGURES else len(FIRST_FIGURES))
    shown = "\n".join(f"![{Path(name).stem.replace('_', ' ')}](figures/{name})" for name in names)
    return [f"## Figures\n\n{shown}"] if names else []
