"""The flags that every example shares, and how a run folder keeps them."""

from __future__ import annotations

import re
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from ppvae._validate import check_count, check_number, check_seed
from ppvae.nn.shapes import as_sizes

OF_THE_PLACE = ("out", "resume", "tensorboard")
"""Fields that say where a run is written, not what it is."""

Likelihood = Literal["bernoulli", "gaussian", "categorical", "continuous-bernoulli", "discretized-logistic"]

GROUPS = {
    "data": (
        *("dataset", "data_root", "image_size", "binarize", "num_train", "num_valid"),
        *("families", "leave_out", "hide"),
    ),
    "training": (
        *("epochs", "batch_size", "accumulate", "lr", "lr_schedule", "adam_eps", "patience"),
        *("loss", "warmup", "warmup_from", "warmup_shape", "compile", "cuda", "seed"),
    ),
    "run": ("out", "resume", "num_samples", "num_eval", "tensorboard", "smoke"),
}
"""The groups of flags in the help of an example; all others are the model's own."""


@dataclass(frozen=True)
class ExperimentArgs:
    """The flags of every example."""

    cuda: bool = False
    """Train on a CUDA GPU."""
    seed: int = 0
    """Of everything random: initial weights, binarization, the order of the data, the draws."""
    epochs: int | None = None
    """Passes over the training data; by default as many as the example needs on its embedded data."""
    batch_size: int = 128
    """Data per minibatch."""
    accumulate: int = 1
    """In how many parts, one after another, a minibatch is run, where it does not fit in memory as a whole."""
    lr: float = 1e-3
    """Learning rate of Adam."""
    lr_schedule: Literal["constant", "cosine", "burda"] = "constant"
    """Whether the learning rate falls over the epochs: along half a cosine to a hundredth of --lr, or to a tenth in
    eight stages, each three times as long as the one before (Burda et al. 2016, who have 3280 epochs)."""
    adam_eps: float = 1e-8
    """ε of Adam (Burda et al. 2016 use 1e-4)."""
    warmup: float = 0.0
    """Epochs over which the weight of the KL term goes from --warmup-from to its value."""
    warmup_from: float = 0.0
    """Where it starts: 0, so that the latents come into use first, or above its value, so that they stay small at first
    and what needs none of them (the label of a semi-supervised model) explains the data."""
    warmup_shape: Literal["linear", "sigmoid", "cyclical"] = "linear"
    """How it goes: in a line, along a sigmoid, or again and again: over half of --warmup epochs, then constant for as
    many; the last two from 0."""
    patience: int | None = None
    """Stop after this many epochs without a better validation ELBO."""
    data_root: Path = Path("data")
    """Folder of the data sets, as torchvision lays them out."""
    num_valid: int | None = None
    """Training data held out for validation; by default 200 of the digits, a tenth of your own, 1000 of larger sets."""
    loss: Literal["mean-field", "trace"] = "mean-field"
    """Pyro's ELBO: with KL terms in closed form where they have one, or from the samples alone."""
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
        check_seed(self.seed, name="--seed")
        for name, value in vars(self).items():
            if name.endswith(("_dim", "_dims")) and value is not None:
                as_sizes(value, flag(name))
        if self.epochs is not None:
            check_count("--epochs", self.epochs)
        check_count("--accumulate", self.accumulate)
        check_count("--num-samples", self.num_samples)
        check_count("--num-eval", self.num_eval)
        for name in ("warmup", "warmup_from", "lr", "adam_eps"):
            check_number(flag(name), getattr(self, name), at_least=0)
        if self.warmup_shape != "linear" and not self.warmup:
            raise ValueError(f"--warmup-shape {self.warmup_shape} needs --warmup")
        if self.patience is not None:
            check_count("--patience", self.patience)
        if self.patience is not None and self.num_valid == 0:
            raise ValueError("--patience needs validation data, and --num-valid is 0")
        if self.warmup_from and not (self.warmup and self.warmup_shape == "linear"):
            raise ValueError("--warmup-from needs --warmup, and --warmup-shape linear")
        if self.smoke:
            return replace(self, epochs=1, num_samples=10)
        return self


@dataclass(frozen=True)
class ImageArgs(ExperimentArgs):
    """The flags of every example on images."""

    dataset: Literal[
        "digits", "mnist", "fashion", "kmnist", "cifar10", "sprites", "sprites64", "dsprites", "3dshapes", "folder"
    ] = "digits"
    """Data set: the digits are embedded, and sprites generated (32×32, or 64×64 as dSprites); mnist to cifar10 are
    downloaded where they are not in data-root, where the files of dsprites and 3dshapes must lie; folder is your own
    PNG and JPEG files in data-root, in a folder for each class or all in one."""
    image_size: int | None = None
    """Height and width that the pictures of a folder are scaled and cut to."""
    likelihood: Likelihood = "bernoulli"
    """Family of p(x|z): bernoulli is of binarized pixels, categorical and discretized-logistic of grey levels."""
    binarize: Literal["dynamic", "static", "none"] | None = None
    """Bernoulli draws with the intensities as probabilities: new ones in every epoch, or one fixed draw; test data
    always one fixed draw. By default dynamic for bernoulli and none otherwise."""

    def resolved(self) -> Self:
        """These arguments with every default that depends on another filled in."""
        check_used(self, "dataset", image_size=("folder",))
        kind = self.binarize or ("dynamic" if self.likelihood == "bernoulli" else "none")
        if (self.likelihood == "bernoulli") != (kind != "none"):
            raise ValueError(
                f"--binarize {kind} does not go with --likelihood {self.likelihood}: a Bernoulli likelihood is of "
                "binary pixels, the others of intensities (continuous-bernoulli is the one for [0, 1])"
            )
        done = super().resolved()
        usual = 300 if self.dataset == "digits" else 50
        return replace(done, binarize=kind, epochs=usual if done.epochs is None else done.epochs)


def check_used(args: Any, choice: str, **uses: tuple[str, ...]) -> None:
    """Refuses flags that the choice made by another flag has no use for, in place of ignoring them.

    Args:
        args: a dataclass of flags, before defaults that depend on another are filled in.
        choice: field of the flag that chooses.
        uses: of each further field, the choices that it goes with.

    Raises:
        ValueError: where one of these has another value than its default, and the choice is none of its own.
    """
    chosen, defaults = getattr(args, choice), {field.name: field.default for field in fields(args)}
    for name, choices in uses.items():
        assert defaults[name] is not MISSING
        if getattr(args, name) != defaults[name] and chosen not in choices:
            raise ValueError(f"{flag(name)} goes with {flag(choice)} {' or '.join(choices)}, got {chosen}")


def flag(name: str) -> str:
    """The flag of a field, as it is typed."""
    return f"--{name.replace('_', '-')}"


def in_flags(message: str, args: Any) -> str:
    """A message about arguments, `name must` or `name=value`, with the flags of these names, where there are, instead.

    What the flags are handed on to speaks of its own arguments: `batch_size must be ...`.

    Args:
        message: of an error.
        args: a dataclass of flags, or one of its instances.

    Example:
        >>> in_flags("batch_size must be a whole number >= 1, got 0", ExperimentArgs)
        '--batch-size must be a whole number >= 1, got 0'
    """
    names = "|".join(field.name for field in fields(args))
    return re.sub(rf"(?<![\w.'\"-])({names})(?= must\b|=)", lambda found: flag(found[0]), message)


def to_json(args: ExperimentArgs) -> dict[str, Any]:
    """The flags as JSON holds them."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        return list(value) if isinstance(value, tuple) else value

    return {key: plain(value) for key, value in asdict(args).items()}


def command_of(args: ExperimentArgs) -> list[str]:
    """The flags that lead to these arguments, as they are typed; those that say where it is written are left out.

    Example:
        >>> command_of(ImageArgs(epochs=3, smoke=True, out=Path("runs/vae")))
        ['--epochs', '3', '--smoke']
    """
    words: list[str] = []
    for field in fields(args):
        value = getattr(args, field.name)
        if value == field.default or field.name in OF_THE_PLACE:
            continue
        if isinstance(value, bool):
            words.append(flag(field.name) if value else f"--no-{field.name.replace('_', '-')}")
        else:
            words += [flag(field.name), *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def from_json(arguments: type[ExperimentArgs], values: Any) -> ExperimentArgs:
    """The flags that `to_json` wrote; those that a later version added have their defaults.

    Raises:
        ValueError: naming a flag whose value is of another type than the flag.
    """
    if not isinstance(values, dict):
        raise ValueError(f"the flags must be a JSON object, got {values!r:.80}")
    hints = get_type_hints(arguments)
    flags: dict[str, Any] = {}
    for name in (field.name for field in fields(arguments) if field.name in values):
        value = values[name]
        value = Path(value) if Path in (hints[name], *get_args(hints[name])) and isinstance(value, str) else value
        flags[name] = tuple(value) if isinstance(value, list) else value
        if not _is_of(flags[name], hints[name]):
            raise ValueError(f"{flag(name)} must be of type {hints[name]}, got {value!r:.80}")
    return arguments(**flags)


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of a flag's type."""
    kind, options = get_origin(hint), get_args(hint)
    if kind is Literal:
        return any(value is option or (value == option and type(value) is type(option)) for option in options)
    if kind is Annotated:
        return _is_of(value, options[0])
    if kind in (Union, UnionType):
        return any(_is_of(value, option) for option in options)
    if kind is tuple:
        of_each = options[:1] * len(value) if isinstance(value, tuple) and options[-1] is ... else options
        return isinstance(value, tuple) and len(value) == len(of_each) and all(map(_is_of, value, of_each))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint or (hint is Path and isinstance(value, Path)) or (hint is type(None) and value is None)
