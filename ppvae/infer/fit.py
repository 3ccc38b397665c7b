"""`fit`: train any pair, with checkpoints, validation, schedules and a name for every NaN."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from ppvae import processes
from ppvae._validate import (
    check_autocast,
    check_count,
    check_flag,
    check_number,
    check_path,
    check_seed,
    naming_path,
    usable_device,
)
from ppvae.compile.policy import Compile
from ppvae.data import Batches, IterableSource, Source
from ppvae.infer.callbacks import Callback, check_callbacks
from ppvae.infer.optim import ParamGroups, check_groups
from ppvae.infer.recipe import Recipe
from ppvae.infer.run_config import describe, describe_groups, describe_pair, describe_source, versions
from ppvae.infer.run_folder import Run, RunFolder
from ppvae.infer.trainer import Trainer
from ppvae.inputs import SupportsArray, as_batch, is_array, loader_of
from ppvae.isolation import check_trainable, check_unhandled
from ppvae.objectives.base import networks_of
from ppvae.objectives.importance_weighted import ImportanceWeightedELBO
from ppvae.objectives.joint import JointELBO
from ppvae.objectives.schedule import Schedule, as_schedule
from ppvae.pair import check_batch, check_names, check_pair, device_of

Data = Tensor | SupportsArray | tuple[Tensor | SupportsArray | None, ...] | Source | Dataset[Any] | Iterable[Any]
"""A tensor or array, a tuple of them (or None), a `Source` such as `Batches`, a torch `Dataset`, or an iterable."""

ADAM = partial(torch.optim.Adam, fused=True)
"""The default optimizer: one fused kernel for all parameters."""

VALID_BATCH = 1000
"""Validation data checked at once before training; it does not change the validation ELBO."""


def fit(
    pair: nn.Module,
    train: Data,
    valid: Data | None = None,
    *,
    loss: ELBO | Callable[..., Tensor] | None = None,
    epochs: int = 50,
    batch_size: int = 128,
    accumulate: int = 1,
    lr: float | Schedule = 1e-3,
    optim: Callable[..., torch.optim.Optimizer] = ADAM,
    clip_norm: float | None = None,
    param_groups: ParamGroups | None = None,
    kl_weight: float | Schedule | None = None,
    kl_sites: Sequence[str] | None = None,
    patience: int | None = None,
    compile: Compile = "auto",
    autocast: torch.dtype | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    config: dict[str, Any] | None = None,
    recipe: Recipe | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> Run:
    """Trains a pair with stochastic variational inference; minimises the mean loss over each minibatch.

    Afterwards the pair holds the weights of the epoch with the best validation ELBO, or the last ones where
    there are no validation data. Where the guide gives a continuous latent one value (a deterministic encoder) there is
    no ELBO, and the best epoch is that of the least loss on the validation data. Ctrl-C, or a scheduler's SIGTERM,
    stops at the next step with a checkpoint; the `stopped` of what is returned then says "interrupted". All modules
    train in training mode, and come back in the mode that they were in.

    Under `torchrun` all processes call it alike, train one pair together, each on its rows of every minibatch, and end
    with the same weights; the first alone writes to `out` and shows progress (see `ppvae.processes`).

    Args:
        pair: any `nn.Module` with `model(*batch)` and `guide(*batch)`.
        train: the training data: a tensor (n, ...), a NumPy array or a pandas frame of numbers, or a tuple of them,
            held on the device; `Batches`; `JointBatches` of several sets, e.g. with and without labels; another
            `ppvae.data.Source`; a torch `Dataset`, or an iterable of minibatches that can be iterated once an epoch (a
            `DataLoader`). Data in memory are checked as a whole before training, others on their first minibatch.
        valid: held-out data for the validation ELBO, in the same forms, but of one set.
        loss: any Pyro ELBO object, or one of `ppvae.objectives`; by default `Trace_ELBO()`, or `TraceEnum_ELBO()`
            where a latent is marked for enumeration, by the guide or by the model alone: the run's config says which.
            Networks that it brings along (see `ppvae.objectives.Objective`) are trained and kept in checkpoints with
            the pair.
        epochs: how often the training data are passed.
        batch_size: data per minibatch, of all processes together, where `train` does not say.
        accumulate: in how many parts, one after another, a minibatch is run, where it does not fit in memory as a
            whole. Their gradients are summed before the one clipping and optimizer step.
        lr: learning rate, or a function from the time in epochs to it (see `ppvae.objectives.schedule`).
        optim: called as `optim(parameters, lr=lr)`; options by `partial`, e.g.
            `partial(torch.optim.AdamW, weight_decay=1e-2)`.
        clip_norm: the gradient is scaled down to this global norm where it is longer.
        param_groups: options of the optimizer by patterns of parameters' names, as `pair.named_parameters()` has them,
            e.g. `{"q_z_given_x.*": {"lr": 1e-4}, "*.bias": {"weight_decay": 0.0}}`; "lr" may be a schedule.
        kl_weight: β, or a function from the time in epochs to it (warm-up); None leaves the pair as it is.
        kl_sites: the latent sites that β weights; None is all of them.
        patience: stop after this many epochs without a better validation ELBO, or loss where there is none.
        compile: whether to run the step as one compiled graph, see `ppvae.compile.compiled`; "auto" compiles where
            the run is long enough to repay the seconds that it takes.
        autocast: dtype of matrix products and convolutions, e.g. `torch.bfloat16` for large nets on a GPU.
        device: where to train; by default where the pair is.
        seed: of everything random here: the order of the data, the draws, parameters created at first use.
            The same seed on the same machine gives the same run. The global random state is left as it was.
        out: run folder; without one nothing is written.
        resume: continue the run in `out`; on the CPU the result is bit for bit that of one that never stopped.
        config: anything JSON to keep in the folder's `config.json` under "experiment".
        recipe: how the pair is built, and which data it is evaluated on, for `ppvae.open_run(out)` and
            `python -m ppvae.evaluate OUT`.
        callbacks: functions called as `f(row, pair, epoch)` after every epoch, its checkpoint written: with the new
            row of the history, the pair in eval mode and without gradients, and the number of epochs finished. What
            they draw changes no number of the training. True asks to stop after this epoch; errors are not caught.
            `ppvae.infer.TensorBoard(folder)` is one.
        progress: whether to show a progress bar.

    Returns:
        The history and where the run lies.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: naming the argument, data set or site that is wrong, before any training.
        FileExistsError: where `out` holds a run and `resume` is not set.
        RuntimeError: where it runs inside of `torch.no_grad()`, or of a Pyro handler, which would do nothing in it.
        NonFiniteError: naming the first non-finite site or parameter, the epoch and the step; the pair then
            holds the weights before that step.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.models import PPCA
        >>> run = ppvae.fit(PPCA(8, 2), torch.randn(100, 8), epochs=2, progress=False)
        >>> [row["epoch"] for row in run.history]
        [1.0, 2.0]
    """
    check_trainable("fit")
    check_unhandled("fit")
    check_pair(pair)
    processes.join()
    epochs, batch_size, seed = check_count("epochs", epochs), check_count("batch_size", batch_size), check_seed(seed)
    accumulate = check_count("accumulate", accumulate)
    patience = None if patience is None else check_count("patience", patience)
    if clip_norm is not None:
        check_number("clip_norm", clip_norm, above=0)
    check_groups(param_groups)
    check_flag("resume", resume)
    check_flag("progress", progress)
    callbacks = check_callbacks(callbacks)
    _check_kinds(optim, autocast, out, config, recipe)
    if patience is not None and valid is None:
        raise ValueError("patience needs validation data: valid is None")
    lr_schedule = as_schedule(lr, name="lr")
    kl_schedule = None if kl_weight is None else as_schedule(kl_weight, name="kl_weight")
    where = device_of(pair) if device is None else usable_device(device)
    _check_kl_sites(kl_sites, kl_weight)
    train = _source("train", train, pair, batch_size, seed, where, shuffle=True)
    valid = None if valid is None else _source("valid", valid, pair, VALID_BATCH, seed, where, shuffle=False)
    loss = None if loss is None else _objective(loss, train)
    bound = loss.elbo if isinstance(loss, JointELBO) else loss
    if kl_weight is not None and isinstance(bound, ImportanceWeightedELBO):
        raise ValueError(
            f"kl_weight does not go with the loss {type(bound).__name__}: an importance-weighted bound has no KL term "
            "that could be weighted (CIWAE moves between it and the ELBO)"
        )
    if valid is not None and valid.weights is not None:
        kind = type(valid).__name__
        raise TypeError(f"valid must be one data set, got {kind}: give the one that the ELBO is to be of")
    settings = {
        "loss": None if loss is None else describe(loss),
        "epochs": epochs,
        "train": train.shapes,
        "valid": None if valid is None else valid.shapes,
        "batch_size": train.batch_size,
        "accumulate": accumulate,
        "lr": describe(lr),
        "optim": describe(optim),
        "clip_norm": clip_norm,
        "param_groups": describe_groups(param_groups),
        "kl_weight": describe(kl_weight),
        "kl_sites": None if kl_sites is None else list(kl_sites),
        "patience": patience,
        "compile": compile,
        "autocast": describe(autocast),
        "device": str(where),
        "seed": seed,
        "processes": processes.world(),
    }
    processes.check_same("what fit is given", json.dumps(settings | {"device": where.type}))
    folder = None if out is None else RunFolder(out)
    if folder is not None:
        settings |= {"train_data": describe_source(train), "valid_data": describe_source(valid)}
    with naming_path("out"):
        resume = processes.on_first(lambda: _resumes(folder, resume, settings))
    for network in networks_of(loss).values():
        network.to(where)
    trainer = Trainer(
        pair=pair.to(where),
        train=train,
        valid=valid,
        loss=loss,
        optim=partial(optim, lr=lr_schedule(0.0)),
        clip_norm=clip_norm,
        param_groups=param_groups,
        lr=lr_schedule if callable(lr) else None,
        kl_weight=kl_schedule,
        kl_sites=kl_sites,
        folder=folder,
        seed=seed,
        compile=compile,
        autocast=autocast,
        accumulate=accumulate,
        callbacks=callbacks,
    )
    with processes.quietly():
        trainer.prepare()
    if recipe is not None:
        recipe.check(pair)
    settings |= {"loss": describe(trainer.loss), "pair": describe_pair(pair)}  # with what is made at first use
    with nullcontext() if folder is None or not processes.is_first() else folder.locked():
        with naming_path("out"):
            if folder is not None and resume:
                _resume(trainer, folder, settings)
            elif folder is not None:
                kept = {} if recipe is None else {"recipe": recipe.to_json()}
                started = {**versions(), "fit": settings, "experiment": config, **kept}
                processes.on_first(lambda: folder.create(started))
        return trainer.run(epochs=epochs, patience=patience, progress=progress)


def _resumes(folder: RunFolder | None, resume: bool, settings: dict[str, Any]) -> bool:
    """Whether there is a run to go on with; it is then this one, and the folder is free otherwise."""
    if folder is None:
        if resume:
            raise ValueError("resume needs the folder of the run: out is None")
        return False
    if resume and folder.check_resumable():
        chosen_later = {"loss"} if settings["loss"] is None else set()
        folder.check_same({k: v for k, v in settings.items() if k not in chosen_later}, versions())
        return True
    folder.check_free()
    return False


def _resume(trainer: Trainer, folder: RunFolder, settings: dict[str, Any]) -> None:
    """Puts a prepared training where the run in the folder stands."""
    processes.on_first(lambda: folder.check_same(settings))  # with the loss that was chosen, and the pair
    trainer.resume()
    epochs, behind = settings["epochs"], len(trainer.progress.history)
    if epochs < behind:
        raise ValueError(f"epochs must be at least {behind}, which the run in {folder.path} has had, got {epochs}")
    processes.on_first(lambda: folder.update_config(settings))


def _check_kinds(optim: Any, autocast: Any, out: Any, config: Any, recipe: Any) -> None:
    """Checks what is used only later, or in a file."""
    if isinstance(optim, PyroOptim) or not callable(optim):
        raise TypeError(
            "optim must be called as optim(parameters, lr=lr), e.g. torch.optim.AdamW, got an object of "
            f"{type(optim).__module__}.{type(optim).__name__} (ppvae.SVI takes pyro.optim objects)"
        )
    check_autocast(autocast)
    if out is not None:
        check_path("out", out)
    if not (recipe is None or isinstance(recipe, Recipe)):
        raise TypeError(f"recipe must be a ppvae.infer.Recipe of functions, got {type(recipe).__name__}")
    if recipe is not None and out is None:
        raise ValueError("recipe is kept in the run folder: out is None")
    if not (config is None or isinstance(config, dict)):
        raise TypeError(f"config must be a dict or None, got {config!r} of type {type(config).__name__}")
    try:
        json.dumps(config, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"config must hold what JSON can: {error}") from error


def _check_kl_sites(sites: Any, weight: Any) -> None:
    if sites is None:
        return
    check_names("kl_sites", sites)
    if weight is None:
        raise ValueError("kl_sites needs kl_weight, the weight of their KL term")


def _objective(loss: Any, train: Source) -> Any:
    """The objective: that of several data sets where `train` has them."""
    if train.weights is None or isinstance(loss, JointELBO):
        return loss
    try:
        return JointELBO(loss, train.weights)
    except TypeError as error:
        raise TypeError(f"loss does not go with {type(train).__name__}: {error}") from error


def _source(
    name: str, data: Data, pair: nn.Module, batch_size: int, seed: int, device: torch.device, *, shuffle: bool
) -> Source:
    """The data as something that gives minibatches on the device, epoch after epoch."""
    expected = f"{name} must be a tensor, a tuple of tensors, Batches, or an iterable of minibatches (a DataLoader)"
    if isinstance(data, Source):
        return data if data.device == device else data.to(device)
    if isinstance(data, TensorDataset):
        data = data.tensors
    arguments = (data,) if isinstance(data, Tensor) or is_array(data) else data
    if isinstance(arguments, tuple) and any(isinstance(t, Tensor) or is_array(t) for t in arguments):
        tensors = as_batch(arguments, pair, name=name)
        # The order of a single minibatch means nothing, but to a guide with parameters for each datum.
        shuffle = shuffle and check_batch(tensors, name=name) > batch_size
        try:
            return Batches(*tensors, batch_size=batch_size, shuffle=shuffle, seed=seed, device=device)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
    if isinstance(data, Dataset):
        data = loader_of(data, batch_size, seed if shuffle else None)
    if isinstance(data, str | os.PathLike):
        of_paths = 'pictures below a path are ppvae.data.load("folder", path), or Pictures(path, batch_size=...)'
        raise TypeError(f"{expected}, got the path {os.fspath(data)!r}: {of_paths}")
    if not isinstance(data, Iterable) or isinstance(data, Mapping):
        raise TypeError(f"{expected}, got {type(data).__name__}")
    if isinstance(data, Iterator):
        raise TypeError(f"{expected}, got the iterator {type(data).__name__}: it can be passed only once")
    return IterableSource(data, name=name, device=device)
