"""The weights of a pair on disk: parameters, also those of `pyro.param`, and buffers, as one safetensors file."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ppvae._validate import check_path, naming_path
from ppvae.late_params import give, makes_later, owner, waiting
from ppvae.loans import users_store
from ppvae.pair import Pair, check_pair, device_of, owner_of
from ppvae.params import BASELINES, HOME, PyroParams
from ppvae.storage import load_state, save_state


def save(pair: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Writes the parameters and buffers of `pair` to a safetensors file, atomically.

    Those of a `Pair` of plain functions that `SVI` has trained, ours or Pyro's, are in Pyro's store, and all that it
    holds is written.

    Args:
        pair: a model/guide pair.
        path: the file; its folder is created.

    Returns:
        The path.

    Example:
        >>> import ppvae, tempfile
        >>> from ppvae.models import PPCA
        >>> path = ppvae.save(PPCA(8, 2), tempfile.mkdtemp() + "/ppca.safetensors")
        >>> pair = ppvae.load(PPCA(8, 2), path)
    """
    check_pair(pair)
    path = check_path("path", path)
    with naming_path("path"):
        path.parent.mkdir(parents=True, exist_ok=True)
        return save_state(path, {**pair.state_dict(), **waiting(pair), **_in_store(pair)})


def load(pair: nn.Module, path: str | os.PathLike[str], *, allow_nonfinite: bool = False) -> nn.Module:
    """Reads weights that `save` wrote into `pair`, in place; a run folder stands for its `model.safetensors`.

    What the pair makes at first use (an autoguide its parameters) has the file's values from then on.

    Args:
        pair: a pair built as the saved one was.
        path: the file, or the folder that `fit` wrote.
        allow_nonfinite: whether to take weights that are NaN or infinite, to look at what became of them.

    Returns:
        The pair.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where the file is damaged, or naming what is missing, unexpected, of another shape or dtype, or not
            finite; the pair is then unchanged.

    Example:
        >>> import ppvae, tempfile
        >>> from ppvae.models import PPCA
        >>> path = ppvae.save(PPCA(8, 2), tempfile.mkdtemp() + "/ppca.safetensors")
        >>> pair = ppvae.load(PPCA(8, 2), path)
    """
    check_pair(pair)
    path = check_path("path", path)
    with naming_path("path"):
        state = load_state(path / "model.safetensors" if path.is_dir() else path)
    restore_weights(pair, state, source=str(path), allow_nonfinite=allow_nonfinite)
    return pair


def _is_finite_as(value: Tensor, own: Tensor | None) -> bool:
    """Whether values are finite, or, as those of a mask, not finite where the pair's own are not."""
    if bool(value.isfinite().all()):
        return True
    return own is not None and not is_lazy(own) and torch.equal(value, own.to(value.device))


def restore_weights(pair: nn.Module, state: dict[str, Tensor], *, source: str, allow_nonfinite: bool = True) -> None:
    """Copies the state dict `state` into `pair`, all of it or nothing.

    Raises:
        ValueError: naming what is missing, unexpected, of another shape or dtype, or not finite where that is not
            allowed; the pair is then unchanged.
    """
    if not (isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())):
        raise ValueError(f"{source} holds no weights: it must hold tensors by name")
    own = pair.state_dict()
    declared = {k: v for k, v in state.items() if k.startswith("pyro_params.") and k not in own}
    unknown = {k: v for k, v in state.items() if k not in own and k not in declared}
    late = {k: v for k, v in unknown.items() if makes_later(owner(pair, k))}
    problems = [f"missing {key}" for key in own.keys() - state.keys()]
    problems += [f"unexpected {key}" for key in unknown.keys() - late.keys()]
    problems += [
        f"{key} of shape {tuple(state[key].shape)} where the pair has {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if not is_lazy(own[key]) and state[key].shape != own[key].shape
    ]
    problems += [
        f"{key} of {state[key].dtype} where the pair has {own[key].dtype}"
        for key in own.keys() & state.keys()
        if state[key].dtype != own[key].dtype
    ]
    problems += [f"{key} of {v.dtype}, no parameter's" for key, v in declared.items() if not v.is_floating_point()]
    if not allow_nonfinite:
        problems += [
            f"{key} not finite in {int((~value.isfinite()).sum())} of {value.numel()} elements"
            for key, value in state.items()
            if value.is_floating_point() and not _is_finite_as(value, own.get(key))
        ]
    if problems:
        raise ValueError(f"{source} does not fit this pair: " + "; ".join(sorted(problems)))
    if declared:
        _attach_home(pair, {k.removeprefix("pyro_params."): v.to(device_of(pair)) for k, v in declared.items()})
    pair.load_state_dict({k: v for k, v in state.items() if k not in late})
    give(pair, late)


def _in_store(pair: nn.Module) -> dict[str, Tensor]:
    """What is trained where no module owns it: of a pair of plain functions, the values in the user's store."""
    if not isinstance(pair, Pair) or HOME in pair._modules:
        return {}
    if None not in (owner_of(pair.model_function), owner_of(pair.guide_function)):
        return {}
    own = {id(parameter) for parameter in pair.parameters()}
    with users_store() as store:
        values = {k: v for k, v in store.values.items() if id(v) not in own and not k.startswith(BASELINES)}
    return {f"{HOME}.{PyroParams.key(name)}": value.detach() for name, value in values.items()}


def _attach_home(pair: nn.Module, names: dict[str, Tensor]) -> None:
    """Gives `pair` a `pyro_params` with the registered `names`, so that a saved state has where to go."""
    home = pair._modules.get(HOME)
    if not isinstance(home, PyroParams):
        home = PyroParams()
        pair.add_module(HOME, home)
    for key, value in names.items():
        if key not in home._parameters:
            home.register_parameter(key, nn.Parameter(torch.empty_like(value)))
