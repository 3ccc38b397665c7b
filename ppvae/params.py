"""Where Pyro's parameters live: on the pair, never shared through a process-wide name.

Pyro keeps what `pyro.param` and `pyro.module` declare in one global store, so two models that use the same
names share their parameters. While ppvae runs a pair, its own values stand in the store in place of what is there
(`LocalParams`). Whatever asks the store is answered by the pair, also code behind `pyro.poutine.block`, where no
handler hears of it: the run by which an ELBO guesses how plates nest, an autoguide's look at its model.

- A module's own parameters (`pyro.module`, `PyroModule`) are used where they are, on the module;
- a value declared with `pyro.param` becomes an `nn.Parameter` of the pair, under `pair.pyro_params`;
- a name that the user's Pyro store already holds is used in place: it shares its memory with the store, so
  that a pair trained with `pyro.infer.SVI` is evaluated with the values it was trained to, and trained on from there,
  with a warning, as every pair with that name shares it.

When nothing runs, the store is the user's, and never cleared. Training adds to it what `ppvae.loans` says: the pair's
values, for Pyro's own tools to find, which are no pair's but its own. And there are the running averages of
`TraceGraph_ELBO`'s baselines, which Pyro writes into it by itself.

Where model and guide are plain functions and no module owns their parameters, `SVI` trains what is in the store.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import pyro
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from ppvae._internals import StoreContents, modules_in_one_store
from ppvae.loans import lend, users_store

HOME = "pyro_params"
"""The name under which a pair holds its `PyroParams`."""

BASELINES = "__baseline_avg_downstream_cost_"
"""How the names of what `TraceGraph_ELBO` keeps in Pyro's store begin: averages, which are not trained."""


class PyroParams(nn.Module):
    """The values that a pair declares with `pyro.param`, as unconstrained `nn.Parameter`s.

    Read one by its Pyro name, in its constrained space: `pair.pyro_params["scale"]`. Iterating gives the names.
    """

    def __init__(self) -> None:
        super().__init__()
        self._constraints = _Constraints()

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: not the weak references that Pyro leaves on parameters."""
        for parameter in self.parameters():
            vars(parameter).pop("unconstrained", None)
        return vars(self)

    @staticmethod
    def key(name: str) -> str:
        """The attribute under which the parameter `name` is registered: attribute names hold no dots."""
        return "param:" + name.replace("%", "%25").replace(".", "%2E")

    def __iter__(self) -> Iterator[str]:
        """The Pyro names."""
        for key in self._parameters:
            yield _decoded(key)

    def extra_repr(self) -> str:
        """The Pyro names."""
        return ", ".join(self)

    def __contains__(self, name: str) -> bool:
        return self.key(name) in self._parameters

    def unconstrained(self, name: str) -> nn.Parameter:
        """The trained tensor behind `name`."""
        parameter = self._parameters.get(self.key(name))
        if parameter is None:
            raise KeyError(f"no pyro.param {name!r} here; the pair has declared {sorted(self)}")
        return parameter

    def __getitem__(self, name: str) -> Tensor:
        parameter = self.unconstrained(name)
        constraint = constraints.real if "$$$" in name else self._constraints.get(name)  # of a module's parameter
        if constraint is None:
            raise KeyError(
                f"pyro.param {name!r} was read from a file, which holds no constraints: run the pair once, or take "
                f"unconstrained({name!r})"
            )
        value = transform_to(constraint)(parameter)
        if value is parameter:
            value = parameter.view_as(parameter)  # a weak reference on the parameter itself could not be pickled
        value.unconstrained = weakref.ref(parameter)  # Pyro's own way back from a value to its parameter
        return value

    def set_unconstrained(self, name: str, parameter: nn.Parameter) -> None:
        """Registers `parameter` as the unconstrained value of `name`."""
        self.register_parameter(self.key(name), parameter)

    def scratch(self) -> PyroParams:
        """One that shares the parameters but is on no module: what is added to it is forgotten with it."""
        new = PyroParams()
        new._parameters.update(self._parameters)
        new._constraints = self._constraints
        return new


def pyro_name(name: str) -> str | None:
    """The name that a pair's parameter has in `pyro.param`, from the one that it has on the pair; None of others."""
    return _decoded(name.removeprefix(f"{HOME}.")) if name.startswith(f"{HOME}.param:") else None


def _decoded(key: str) -> str:
    return key.removeprefix("param:").replace("%2E", ".").replace("%25", "%")


class _Constraints(dict[str, constraints.Constraint]):
    """Constraints of values by name; real for what none is known of, which Pyro keeps itself."""

    def __missing__(self, name: str) -> constraints.Constraint:
        return constraints.real


class LocalParams(Messenger):
    """Puts the values of a pair in the place of Pyro's store, and keeps what the pair's own modules do not hold.

    Args:
        pair: the module whose `model` or `guide` runs inside.
        attach: whether new `pyro.param` values stay with the pair, or are forgotten with this object.
        warns: of values that the user's store holds and the pair is to share: what Pyro's users know, and others not.
    """

    def __init__(self, pair: nn.Module, *, attach: bool, warns: bool = False) -> None:
        super().__init__()
        self.warns = warns
        existing = pair._modules.get(HOME)
        self._of_pair = existing if isinstance(existing, PyroParams) else PyroParams()
        self.home = self._of_pair if attach else self._of_pair.scratch()
        self._attach_to = pair if attach and existing is None else None
        self._owned = {id(p) for p in pair.parameters()}

    @property
    def forgets(self) -> bool:
        """Whether it holds parameters that are not on the pair, and end with it."""
        return self.home is not self._of_pair and len(self.home._parameters) > len(self._of_pair._parameters)

    def __enter__(self) -> Self:
        around = StoreContents.now()
        with ExitStack() as stack:
            # inside of another pair's run the user's store is what it had there
            users = around.values.users if isinstance(around.values, _Values) else stack.enter_context(users_store())
            self._values = _Values(self, users)
            stack.callback(around.show)
            StoreContents(self._values, self._values.names, self.home._constraints).show()
            super().__enter__()
            self._on_exit = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        self._values.forget_modules()
        with self._on_exit:
            return super().__exit__(*error)

    def keep(self, name: str, parameter: nn.Parameter) -> None:
        """Makes a parameter the pair's, under its name in Pyro."""
        self.home.set_unconstrained(name, parameter)
        self._owned.add(id(parameter))
        if self._attach_to is not None:
            self._attach_to.add_module(HOME, self.home)
            self._attach_to = None

    def _pyro_param(self, msg: Any) -> None:
        """Answers `pyro.module` with the module's own tensors, whatever the store holds of that name."""
        if msg["value"] is not None or msg["fn"] != pyro.get_param_store().get_param:
            return  # answered further in, or a PyroModule's announcement of a parameter that it already holds
        name, *init = msg["args"]
        if "$$$" in name and init and isinstance(init[0], nn.Parameter):
            msg["value"] = self._module_parameter(name, init[0])

    def _module_parameter(self, name: str, parameter: nn.Parameter) -> nn.Parameter:
        """A parameter of `pyro.module(...)`: the module's own tensor."""
        if id(parameter) in self._owned:
            return parameter
        if name in self.home and self.home.unconstrained(name) is not parameter:  # loaded from a file
            parameter.data.copy_(self.home.unconstrained(name).data)
            self._of_pair.set_unconstrained(name, parameter)  # from now on the module's value counts, not the file's
        self.keep(name, parameter)
        return parameter


class _Values(MutableMapping[str, Tensor]):
    """The unconstrained values that Pyro's store shows while a pair runs: the pair's, and those shared with the user's.

    A module's parameters pass through for as long as the run lasts: they are the module's, and `pyro.module` has been
    answered already where a handler could hear of it.

    Args:
        local: whose pair runs.
        users: what the user's store holds.

    Attributes:
        names: of the values.

    Raises:
        ValueError: where the pair and the user's store have one name for two values.
    """

    def __init__(self, local: LocalParams, users: StoreContents) -> None:
        self._local, self._home, self.users = local, local.home, users
        self.names: dict[Tensor, str] = {self._home.unconstrained(name): name for name in self._home}
        self._undeclared = {name for name in self._home if name not in self._home._constraints}
        self._of_modules: dict[str, Tensor] = {}
        for name in self._home:
            if name in users.values and "$$$" not in name:
                self._check_shared(name)

    def __contains__(self, name: object) -> bool:
        """Whether there is a value whose constraint is known: a statement gives that of a value from a file."""
        assert isinstance(name, str)
        if name.startswith(BASELINES):
            return name in self.users.values
        self._share(name)
        return "$$$" not in name and name in self._home and name not in self._undeclared

    def __getitem__(self, name: str) -> Tensor:
        if name.startswith(BASELINES):
            return self.users.values[name]
        if name in self._of_modules:
            return self._of_modules[name]
        if name in self or ("$$$" in name and name in self._home):
            return self._home.unconstrained(name)
        raise KeyError(f"pyro.param({name!r}) is read before any statement gives it an initial value")

    def __setitem__(self, name: str, value: Tensor) -> None:
        if name.startswith(BASELINES):
            self.users.put(name, value, constraints.real)
        elif "$$$" in name:
            self._of_modules[name] = value
        elif name in self._undeclared:  # an initial value, beside the one from a file
            self._undeclared.remove(name)
            self._check_shape(name, value)
        else:
            self._keep(name, nn.Parameter(value.detach().clone()))

    def __delitem__(self, name: str) -> None:
        if name.startswith(BASELINES):
            self.users.take(name)
        else:
            del self._home._parameters[self._home.key(name)]

    def __iter__(self) -> Iterator[str]:
        yield from self._home
        yield from (name for name in self.users.values if name.startswith(BASELINES))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def forget_modules(self) -> None:
        """Takes off the parameters of modules what Pyro left on them: they could not be pickled with it."""
        for parameter in self._of_modules.values():
            vars(parameter).pop("unconstrained", None)

    def _keep(self, name: str, parameter: nn.Parameter) -> None:
        self._local.keep(name, parameter)
        self.names[parameter] = name

    def _share(self, name: str) -> None:
        """Lets a new name of the pair that the user's store holds share its memory."""
        if name not in self.users.values or name in self._home or "$$$" in name:
            return
        if self._local.warns:
            warnings.warn(
                f"pyro.param {name!r} is in Pyro's parameter store: it is trained there, from its value, by every "
                "pair that uses the name; pyro.clear_param_store() beforehand gives each pair its own",
                stacklevel=2,
            )
        self._keep(name, nn.Parameter(self.users.values[name].detach()))
        self._home._constraints[name] = self.users.constraints[name]

    def _check_shared(self, name: str) -> None:
        if self._home.unconstrained(name).data_ptr() != self.users.values[name].data_ptr():
            raise ValueError(
                f"pyro.param {name!r} has one value on the pair and another in Pyro's parameter store: "
                f"delete one of them, e.g. with `del pyro.get_param_store()[{name!r}]`"
            )

    def _check_shape(self, name: str, initial: Tensor) -> None:
        if (shape := self._home.unconstrained(name).shape) != initial.shape:
            raise ValueError(
                f"the file that the pair was loaded from has pyro.param {name!r} of unconstrained shape "
                f"{tuple(shape)}, and the pair starts it with shape {tuple(initial.shape)}"
            )


@contextmanager
def module_local() -> Iterator[None]:
    """Runs Pyro code with the parameters of every `PyroModule` on the module itself."""
    # Pyro's own check refuses a model with `pyro.param` inside a module, whose values are the pair's here.
    with pyro.settings.context(module_local_params=True, validate_poutine=False), modules_in_one_store():
        yield


def lend_params(pair: nn.Module, *, trained: bool) -> None:
    """Lends the `pyro.param` values of a pair to Pyro's store, for Pyro's own tools.

    Args:
        pair: that has run.
        trained: whether it was trained, and its values count before those of other pairs.
    """
    home = pair._modules.get(HOME)
    if isinstance(home, PyroParams):
        names = [name for name in home if name in home._constraints and "$$$" not in name]
        lend(
            home,
            {name: (home.unconstrained(name), home._constraints[name]) for name in names},
            in_place_of_others=trained,
        )


def baselines() -> dict[str, Tensor]:
    """The running averages that `TraceGraph_ELBO` keeps in Pyro's store, as they are there: each update is another."""
    store = pyro.get_param_store()
    return {name: store[name].unconstrained() for name in store if name.startswith(BASELINES)}


@contextmanager
def baselines_kept() -> Iterator[None]:
    """The running averages of `TraceGraph_ELBO` come back as they were."""
    before = {name: value.detach().clone() for name, value in baselines().items()}
    try:
        yield
    finally:
        store = pyro.get_param_store()
        for name in baselines():
            if name in before:
                store[name] = before[name]
            else:
                del store[name]
