"""What every example shares: the flags, the data, and the way from flags to a run folder with a table and figures."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
import tyro
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from ppvae.data import Batches, Binarize, DataSet, binarize, load, quantize
from ppvae.evaluate.report import report, table
from ppvae.infer import Linear, NonFiniteError, Run, RunFolder, fit
from ppvae.infer.fit import usable_device
from ppvae.infer.importance import check_count
from ppvae.storage import restore_weights

Likelihood = Literal["bernoulli", "gaussian", "categorical", "continuous-bernoulli", "discretized-logistic"]


@dataclass(frozen=True)
class ExperimentArgs:
    """The flags of every example."""

    cuda: bool = False
    """Train on a CUDA GPU."""
    seed: int = 0
    """Of everything random: initial weights, binarization, the order of the data, the draws."""
    epochs: int | None = None
    """Passes over the training data; by default 300 on the digits, 50 on larger sets."""
    batch_size: int = 128
    """Data per minibatch."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    adam_eps: float = 1e-8
    """ε of Adam (Burda et al. 2016 use 1e-4)."""
    warmup: float = 0.0
    """Epochs over which the weight of the KL term rises linearly from 0 to its value."""
    patience: int | None = None
    """Stop after this many epochs without a better validation ELBO."""
    dataset: Literal["digits", "mnist", "fashion", "kmnist", "cifar10"] = "digits"
    """Data set: the digits are embedded; the others are downloaded where they are not in data-root."""
    data_root: Path = Path("data")
    """Folder of the data sets, as torchvision lays them out."""
    num_valid: int | None = None
    """Training data held out for validation; by default 200 of the digits, 1000 of larger sets."""
    loss: Literal["mean-field", "trace"] = "mean-field"
    """Pyro's ELBO: with KL terms in closed form where they have one, or from the samples alone."""
    likelihood: Likelihood = "bernoulli"
    """Family of p(x|z): bernoulli is of binarized pixels, categorical and discretized-logistic of grey levels."""
    binarize: Literal["dynamic", "static", "none"] | None = None
    """Bernoulli draws with the intensities as probabilities: new ones in every epoch, or one fixed draw; test data
    always one fixed draw. By default dynamic for bernoulli and none otherwise."""
    compile: Literal["auto", "always", "never"] = "auto"
    """Whether to run the training step as one compiled graph; auto does in a run that is long enough to repay it."""
    num_samples: int = 1000
    """Importance samples per datum for log p(x) in the final table."""
    num_eval: int = 1000
    """Data of each split that the final table is of."""
    out: Path | None = None
    """Run folder; by default the next free one of runs/<example>, runs/<example>-2, ..."""
    resume: bool = False
    """Continue the run in --out: the same command as before, with this flag."""
    tensorboard: bool = False
    """Also log for TensorBoard, where it is installed."""
    smoke: bool = False
    """A run of seconds on few data, to see that everything works."""

    def resolved(self) -> Self:
        """These arguments with every default that depends on another filled in."""
        check_count("--num-samples", self.num_samples)
        check_count("--num-eval", self.num_eval)
        kind = self.binarize or ("dynamic" if self.likelihood == "bernoulli" else "none")
        if (self.likelihood == "bernoulli") != (kind != "none"):
            raise ValueError(
                f"--binarize {kind} does not go with --likelihood {self.likelihood}: a Bernoulli likelihood is of "
                "binary pixels, the others of intensities (continuous-bernoulli is the one for [0, 1])"
            )
        usual = 300 if self.dataset == "digits" else 50
        epochs = 1 if self.smoke else usual if self.epochs is None else self.epochs
        num_samples = 10 if self.smoke else self.num_samples
        return replace(self, binarize=kind, epochs=epochs, num_samples=num_samples)


@dataclass(frozen=True)
class ImageData:
    """A data set as a likelihood wants it.

    Attributes:
        train: training images (n, c, h, w), before any dynamic binarization, and their labels.
        valid: held-out images and labels, as test images are.
        test: test images, binarized once where pixels are binary, and labels.
        levels: number of grey levels of a pixel.
        event_shape: (c, h, w).
    """

    train: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    levels: int
    event_shape: tuple[int, ...]


Build = Callable[[Any, ImageData], nn.Module]
"""From an example's arguments and data to its pair."""


def load_images(args: ExperimentArgs) -> ImageData:
    """The data set of `args`, in the form that its likelihood is defined on."""
    data: DataSet = load(args.dataset, args.data_root, num_valid=args.num_valid, seed=0)
    keep = 256 if args.smoke else None
    discrete = args.likelihood == "categorical"

    def prepare(x: Tensor, *, fixed: bool, seed: int) -> Tensor:
        if discrete:
            return quantize(x, data.levels)
        return binarize(x, seed=seed) if args.binarize != "none" and fixed else x

    splits = [
        (prepare(split.x[:keep], fixed=fixed, seed=seed), split.y[:keep])
        for seed, (split, fixed) in enumerate(
            [(data.test, True), (data.valid, True), (data.train, args.binarize == "static")]
        )
    ]
    return ImageData(splits[2], splits[1], splits[0], data.levels, tuple(data.event_shape))


def main(
    name: str,
    arguments: type[ExperimentArgs],
    build: Build,
    figures: Callable[..., None],
    argv: list[str] | None,
) -> int:
    """Runs an example from its command line: trains, prints the table, writes the run folder.

    Args:
        name: of the example: `ppvae.examples.<name>` defines `Args` and `build`.
        arguments: its dataclass of flags.
        build: makes its pair.
        figures: called as `figures(pair, data, run)` to write pictures.
        argv: the command line; None is `sys.argv`.

    Returns:
        The exit status: 0; 1 where training met a NaN; 2 for a wrong argument; 130 after Ctrl-C.
    """
    args = tyro.cli(arguments, args=argv, prog=f"python -m ppvae.examples.{name}")
    try:
        args = args.resolved()
        device = usable_device("cuda" if args.cuda else "cpu")
        out = _folder(name, args)
        data = load_images(args)
        torch.manual_seed(args.seed)
        pair = build(args, data)
        run = train(pair, args, data, device=device, out=out, name=name)
    except NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if run.stopped == "interrupted":
        print(f"stopped in epoch {len(run.history) + 1}; continue with --resume --out {out}", file=sys.stderr)
        return 130
    try:
        finish(pair, args, data, run, figures)
    except KeyboardInterrupt:
        print(f"interrupted after training; python -m ppvae.evaluate {out} repeats the table", file=sys.stderr)
        return 130
    return 0


def train(pair: nn.Module, args: ExperimentArgs, data: ImageData, *, device: torch.device, out: Path, name: str) -> Run:
    """Trains the pair of an example on its images."""
    transform = Binarize() if args.binarize == "dynamic" else None
    batches = Batches(data.train[0], batch_size=args.batch_size, transform=transform, seed=args.seed, device=device)
    assert args.epochs is not None
    return fit(
        pair,
        batches,
        data.valid[0] if len(data.valid[0]) else None,
        loss=TraceMeanField_ELBO() if args.loss == "mean-field" else Trace_ELBO(),
        epochs=args.epochs,
        lr=args.lr,
        optim=partial(torch.optim.Adam, eps=args.adam_eps, fused=True),
        kl_weight=Linear(args.warmup) if args.warmup else None,
        patience=args.patience,
        compile="auto" if args.compile == "auto" else args.compile == "always",
        device=device,
        seed=args.seed,
        out=out,
        resume=args.resume,
        config={"module": f"ppvae.examples.{name}", "args": _jsonable(args)},
        tensorboard=args.tensorboard,
    )


def finish(pair: nn.Module, args: ExperimentArgs, data: ImageData, run: Run, figures: Callable[..., None]) -> None:
    """Prints the table of a trained pair; writes its metrics and figures."""
    assert run.folder is not None
    seen = binarize(data.train[0][: args.num_eval]) if args.binarize == "dynamic" else data.train[0]
    result = report(
        pair,
        {"train": (seen,), "test": (data.test[0],)},
        num_samples=args.num_samples,
        limit=args.num_eval,
        seed=args.seed,
        progress=sys.stderr.isatty(),
    )
    print(table(result))
    metrics = {**result, "best_epoch": run.best_epoch, "seconds": round(run.seconds, 2)}
    RunFolder(run.folder).write_metrics(metrics)
    (run.folder / "figures").mkdir(exist_ok=True)
    figures(pair, data, run)
    print(f"trained in {run.seconds:.1f} s; weights, history, metrics and figures are in {run.folder}")


def restore(folder: Path, *, device: str, data_root: Path | None) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The trained pair of an example's run folder, and its test images.

    Raises:
        FileNotFoundError: where the folder holds no run, or the data are not found.
        ValueError: where the run was not made by an example: its config then does not say how to build the pair.
    """
    run = RunFolder(folder)
    experiment = run.read_config().get("experiment") or {}
    module = experiment.get("module", "")
    if not module.startswith("ppvae.examples."):
        raise ValueError(
            f"{folder} was not made by an example, so its pair cannot be rebuilt from its config; in Python: "
            "ppvae.load(pair, folder) and then ppvae.log_marginal(pair, x)"
        )
    example = importlib.import_module(module)
    args = _from_json(example.Args, experiment["args"])
    if data_root is not None:
        args = _from_json(example.Args, {**experiment["args"], "data_root": str(data_root)})
    data = load_images(args)
    pair = example.build(args, data)
    restore_weights(pair, run.weights(), source=str(folder))
    return pair.to(usable_device(device)), (data.test[0],)


def _folder(name: str, args: ExperimentArgs) -> Path:
    """The run folder: the one asked for, or the next free one."""
    if args.resume and args.out is None:
        raise ValueError("--resume needs --out, the folder of the run to continue")
    if args.out is not None:
        folder = RunFolder(args.out)
        if not args.resume:
            folder.check_free()
        else:
            _check_same_experiment(folder, args)
        return args.out
    number = 1
    while (out := Path("runs") / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return out


def _check_same_experiment(folder: RunFolder, args: ExperimentArgs) -> None:
    started = (folder.read_config().get("experiment") or {}).get("args", {})
    free = {"epochs", "cuda", "out", "resume", "tensorboard", "data_root", "num_samples", "num_eval"}
    changed = [
        f"--{key.replace('_', '-')} was {started.get(key)!r}, is {value!r}"
        for key, value in _jsonable(args).items()
        if key not in free and started.get(key) != value
    ]
    if changed:
        raise ValueError(f"cannot resume {folder.path} with other flags: " + "; ".join(changed))


def _jsonable(args: ExperimentArgs) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        return list(value) if isinstance(value, tuple) else value

    return {key: plain(value) for key, value in asdict(args).items()}


def _from_json(arguments: type[ExperimentArgs], values: dict[str, Any]) -> ExperimentArgs:
    def typed(name: str, value: Any) -> Any:
        if name in ("data_root", "out") and value is not None:
            return Path(value)
        return tuple(value) if isinstance(value, list) else value

    known = {field.name for field in fields(arguments)}
    flags: Any = {name: typed(name, value) for name, value in values.items() if name in known}
    return arguments(**flags)
