"""The pair contract: what a `model`/`guide` pair is, and the checks that say what a pair breaks.

A pair is any `nn.Module` with `model(*batch)` and `guide(*batch)` that take the same arguments. The outermost
plate is the data plate: its size is the batch size, its dim is -1, its name is free.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import pyro
import torch
from pyro.poutine.escape_messenger import EscapeMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.replay_messenger import ReplayMessenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from ppvae._internals import handled, handlers
from ppvae._validate import check_dense, check_number
from ppvae.traces import LOSS_TERM, Site, is_unsized, sites, vectorized

Batch = tuple[Any, ...]
"""Arguments of `model` and `guide`: tensors whose leading dim is the batch, or None."""


NO_PART = (
    "The others have no log p(x) then: give the pair minibatches, with pyro.plate(name, len(x)) or "
    "pyro.plate(name, N, subsample_size=len(x)), or let the plate take all of them outside of training"
)


class Pair(nn.Module):
    """Two Pyro functions as one pair: a tutorial's model and guide, or a model and an autoguide.

    An autoguide of latents in the data plate has parameters for certain data. It trains on all of them at once; what
    scores any number of data (`log_marginal` and the other evaluators) takes it only where it is told which these are:
    `plate(name, N, subsample=index)` with the index among the arguments, and the same plate as its `create_plates`.

    Args:
        model: the generative model, a function, a bound method or a module.
        guide: the variational posterior, taking the same arguments.
        modules: networks that plain functions use but do not own, so that `.to(device)`, `.eval()` and
            saving reach them.
        reverse: r(u|z, x) of the variables u that the guide draws and the model does not have, a function
            `reverse(*batch, **latents)` that samples them given the latents by name. With it `elbo` and `log_marginal`
            are right of such a guide, and `fit` trains it with the pair (Maaløe et al. 2016, "Auxiliary deep generative
            models", arXiv 1602.05473); a pair of your own has it as a method.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     slope = pyro.param("slope", torch.tensor(0.1))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(slope * x, 1.0))
        >>> pair = Pair(model, guide)

    What `pyro.param` declares becomes a parameter of the pair when ppvae trains it, here `pair.pyro_params["slope"]`.
    Pyro's own tools find it in Pyro's store, until a pair of equal names is trained: see `ppvae.loans`.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        modules: Sequence[nn.Module] = (),
        *,
        reverse: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        for argument, function in (("model", model), ("guide", guide), ("reverse", reverse)):
            if not callable(function) and not (argument == "reverse" and function is None):
                raise TypeError(f"{argument} must be callable, got {type(function).__name__}")
        if isinstance(modules, str | nn.Module) or not isinstance(modules, Iterable):
            raise TypeError(f"modules must be a list of modules, got {modules!r}")
        if wrong := [module for module in modules if not isinstance(module, nn.Module)]:
            raise TypeError(f"modules must be a list of modules, got {wrong[0]!r} among them")
        owners = [owner_of(f) for f in (model, guide, reverse) if not isinstance(f, nn.Module)]
        used = [module for module in (*owners, *modules) if isinstance(module, nn.Module)]
        self.modules_used = nn.ModuleList(dict.fromkeys(used))
        self.model_function = model
        self.guide_function = guide
        self.reverse = reverse

    def model(self, *batch: Any) -> Any:
        """Runs the generative model."""
        return self.model_function(*batch)

    def guide(self, *batch: Any) -> Any:
        """Runs the guide."""
        return self.guide_function(*batch)


def check_names(name: str, sites: Any) -> Collection[str]:
    """The argument `name`, checked to be a collection of names of sites, and not one name.

    Raises:
        TypeError: where it is something else.
    """
    if isinstance(sites, str) or not isinstance(sites, Collection) or not all(isinstance(site, str) for site in sites):
        raise TypeError(f"{name} must be a list of names of sites, got {sites!r}")
    return sites


def owner_of(function: Any) -> nn.Module | None:
    """The module that a function is, or is a method of, also inside handlers such as `config_enumerate`.

    And inside what `functools.partial` and `functools.wraps` make of it.
    """
    owner = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    bound: Any = None
    while not isinstance(owner, nn.Module):
        if inside := handled(function):
            function, bound = inside[0], next(iter(inside[1:]), bound)
        else:
            function = function.func if isinstance(function, partial) else getattr(function, "__wrapped__", None)
        if function is None:
            return None
        owner = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
        if isinstance(bound, nn.Module) and hasattr(type(bound), getattr(function, "__name__", "")):
            owner = bound  # of a method that its class decorates
    return owner


class KLWeight(Messenger):
    """Scales the latent sites of model and guide, and so the KL term of the ELBO, by a weight (β).

    E_q[log p(x|z)] − β KL(q(z|x) ‖ p(z)); Higgins et al. 2017, "beta-VAE". Applied from outside to any pair:
    `with KLWeight(weight): svi.step(x)`. A tensor weight can be updated in place between steps.

    Args:
        weight: β, a float or a 0-d tensor; not negative.
        sites: the latent sites that it scales; None is all of them.

    Example:
        >>> import torch
        >>> from pyro.infer import Trace_ELBO
        >>> from ppvae.models import PPCA
        >>> ppca, x = PPCA(8, 2), torch.randn(10, 8)
        >>> with KLWeight(4.0):
        ...     loss = Trace_ELBO().loss(ppca.model, ppca.guide, x)
    """

    def __init__(self, weight: float | Tensor, sites: Collection[str] | None = None) -> None:
        super().__init__()
        if not isinstance(weight, Tensor):  # whose value may change, and is not read
            check_number("weight", weight, at_least=0)
        elif weight.dim():
            raise ValueError(f"weight must be a number or a 0-d tensor, got shape {tuple(weight.shape)}")
        self.weight = weight
        self.sites = None if sites is None else frozenset(check_names("sites", sites))

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and (self.sites is None or msg["name"] in self.sites):
            msg["scale"] = self.weight * msg["scale"]


def loss_term(name: str, value: Tensor) -> None:
    r"""Adds a term to the loss that training minimises, and to nothing else.

    Inside a model or a guide: as a factor would be it is counted per datum and per plate, masked and scaled. It is no
    part of p(x, z): `elbo`, `log_marginal` and every check are blind to it. The history shows it under its name, unless
    it depends on a latent that is summed over. A commitment loss, a classifier's −α log q(y|x), a penalty on
    activations.

    Works in any Pyro ELBO, with `pyro.infer.SVI` as with ours. What is no ELBO (`pyro.infer.MCMC`) sees a factor.

    Args:
        name: of the term, different from those of all sites.
        value: what is added to the loss, shape (*plates), differentiable.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         loss_term("penalty", 0.1 * z**2)
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    """
    log_factor = value if _runs_guide() else -value
    unit = pyro.distributions.Unit(log_factor, has_rsample=True)
    pyro.sample(name, unit, obs=unit.sample(), infer={"is_auxiliary": True, LOSS_TERM: True})


class Running(Messenger):
    """Says which of the two runs inside, a model or a guide, where no ELBO of Pyro's can be told by its handlers."""

    def __init__(self, which: Literal["model", "guide"]) -> None:
        super().__init__()
        self.which = which


def _runs_guide() -> bool:
    """Whether a guide is running, whose log q is subtracted: Pyro replays every model at the draws of its guide.

    Where it lists the values of a guide's latents one after another it replays the guide too, with a way to escape.
    """
    around = [None, *handlers()]
    for outer, handler in reversed(list(pairwise(around))):
        if isinstance(handler, Running):
            return handler.which == "guide"
        if isinstance(handler, ReplayMessenger) and not isinstance(outer, EscapeMessenger):
            return False
    return True


def check_pair(pair: Any, *, name: str = "pair") -> None:
    """Checks that `pair` is a module with a `model` and a `guide`.

    Args:
        pair: what was passed.
        name: of the argument, for the message.

    Raises:
        TypeError: with what is missing, and how to wrap two functions.
    """
    missing = [name for name in ("model", "guide") if not callable(getattr(pair, name, None))]
    if not isinstance(pair, nn.Module) or missing:
        lacks = f" without a method {' or '.join(missing)}" if missing else ""
        raise TypeError(
            f"{name} must be an nn.Module with methods model(*batch) and guide(*batch), got "
            f"{type(pair).__name__}{lacks}; ppvae.Pair(model, guide) makes one of two functions"
        )


def check_batch(batch: Batch, *, name: str = "data") -> int:
    """Checks that `batch` holds tensors of one length (or None) and returns that length."""
    if not isinstance(batch, tuple | list):
        raise TypeError(f"{name} must be a tuple of tensors or None, got {type(batch).__name__}")
    for i, t in enumerate(batch):
        if isinstance(t, Tensor) and t.is_nested:
            check_dense(f"{name}[{i}]", t)
    lengths = {i: len(t) for i, t in enumerate(batch) if isinstance(t, Tensor) and t.dim() > 0}
    for i, t in enumerate(batch):
        if t is not None and i not in lengths:
            raise TypeError(f"{name}[{i}] must be a tensor with a leading batch dim, or None, got {_kind(t)}")
    if not lengths:
        raise ValueError(f"{name} must hold at least one tensor, got {len(batch)} arguments without any")
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{name} must hold tensors of one length, got lengths {list(lengths.values())}")
    n = next(iter(lengths.values()))
    if n == 0:
        raise ValueError(f"{name} is empty: its tensors have length 0")
    return n


def check_data(data: Batch) -> int:
    """As `check_batch`, of data that parts are taken of."""
    for i, t in enumerate(data if isinstance(data, tuple | list) else ()):
        if isinstance(t, Tensor):
            check_dense(f"data[{i}]", t)
    return check_batch(data)


def _kind(value: Any) -> str:
    return "a 0-d tensor" if isinstance(value, Tensor) else type(value).__name__


def unequal_masks(model_trace: Trace, guide_trace: Trace) -> list[str]:
    """The latents of which a mask leaves other elements out in the model than in the guide.

    Where log p(z) of an element is left out and log q(z|x) is not, the weights p(x, z) / q(z|x) estimate nothing.
    """
    in_model = sites(model_trace)
    shared = [(in_model[name], site) for name, site in sites(guide_trace).items() if name in in_model]
    return [
        site.name
        for of_model, site in shared
        if of_model.is_drawn
        and (of_model.is_masked or site.is_masked)
        and bool((of_model.counted() != site.counted()).any())
    ]


def check_masks(model_trace: Trace, guide_trace: Trace) -> None:
    """Checks that every latent is masked alike in the model and in the guide.

    Raises:
        ValueError: naming those that are not.
    """
    if masked := unequal_masks(model_trace, guide_trace):
        raise ValueError(masked_otherwise(masked))


def masked_otherwise(names: list[str], where: str = "") -> str:
    """What is said of latents that are not masked alike."""
    return (
        f"a mask leaves out other elements of the latents {names}{where} in the model than in the guide, so that "
        "p(x, z) / q(z|x) is no importance weight: mask log q(z|x) as log p(z) is (of a site x with obs_mask=mask "
        "the model has the latent x_unobserved, with the mask ~mask)"
    )


def warn_of_factors(guide_trace: Trace) -> None:
    """Warns of the guide's factors, of which log q(z|x) knows nothing."""
    for name, site in sites(guide_trace).items():
        if site.is_factor and site.role == "observed" and site.is_reparameterized:
            warnings.warn(
                f"the guide's factor {name!r} is ignored in log q(z|x); if it is a change of volume, "
                "make it part of the site's density (TransformedDistribution, or Delta's log_density)"
            )


def check_sites(model_trace: Trace, guide_trace: Trace) -> None:
    """Checks that the guide samples every latent of the model, and nothing else but auxiliary sites.

    Raises:
        ValueError: naming the site that breaks it.
    """
    of_model, of_guide = sites(model_trace), sites(guide_trace)
    latents = [name for name, site in of_model.items() if site.is_drawn]
    for name in latents:
        if name not in of_guide and not of_model[name].infer.get("enumerate"):
            raise ValueError(
                f"the guide misses the latent site {name!r}: it samples {list(of_guide)} (or should the model have "
                f"obs= at {name!r}?)"
            )
    for name, site in of_guide.items():
        if site.role == "latent" and name not in latents:
            raise ValueError(f"the guide samples {name!r}, which is no latent of the model: it has {latents}")
    if all(site.role != "observed" for site in of_model.values()):
        raise ValueError(f"the model observes nothing: no site has obs=, its sites are {latents}")


def same_shape(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether two shapes are equal but for plates of one element on their left."""
    n = max(len(a), len(b))
    return [*[1] * (n - len(a)), *a] == [*[1] * (n - len(b)), *b]


def check_data_plate(trace: Trace, n: int, *, where: str) -> None:
    """Checks that every site lies in the data plate: of size `n`, at dim -1, whatever its name.

    A term of training alone may lie outside: a penalty on weights counts once for a batch.

    Args:
        trace: of the model or the guide.
        n: the data that it was run on.
        where: "model" or "guide", for the message.

    Raises:
        ValueError: naming the site, the plates that it lies in, and what to write instead.
    """
    for name, site in sites(trace).items():
        if site.role == "training":
            continue
        if site.inner_share < 1:
            raise ValueError(
                f"site {name!r} of the {where} lies in a plate that gives {site.inner_share:.3g} of its elements, a "
                "subsample inside each datum: there is no log p(x) of all of x. Give the plate all of them outside of "
                "training, e.g. pyro.plate(name, size, subsample_size=m if self.training else None)"
            )
        if any(plate.dim == -1 and plate.size == n for plate in site.plates):
            continue
        for plate in site.plates:
            if plate.dim == -1 and plate.full_size == n:
                raise ValueError(
                    f"the plate {plate.name!r} of the {where} takes {plate.size} of the {n} data that it is given. "
                    f"{NO_PART}"
                )
        if site.is_drawn and site.role != "auxiliary" and not trace.nodes[name]["cond_indep_stack"]:
            raise ValueError(
                f"site {name!r} of the {where} lies in no plate: it is a latent that all data share, so that no datum "
                "has a log p(x) of its own; ppvae.evaluate.log_evidence estimates that of the whole data set, "
                "posterior_predictive draws, and to_arviz takes what az.loo needs. A latent of each datum belongs into "
                "the data plate"
            )
        raise ValueError(
            "the outermost plate must be the data plate, of dim -1 and of the size of the batch: site "
            f"{name!r} of the {where} lies in {shown_plates(site.plates)}. {_instead(site, trace.nodes[name], n)}"
        )


def _instead(site: Site, node: Any, n: int) -> str:
    """What to write in place of plates that are no data plate."""
    if one_by_one := [frame.name for frame in node["cond_indep_stack"] if not frame.vectorized]:
        return (
            f"The sequential plate {one_by_one[0]!r} (for ... in pyro.plate) draws one datum after the other: draw "
            f'them side by side, with pyro.plate("{one_by_one[0]}", len(x)) around'
        )
    if unsized := [frame for frame in vectorized(node["cond_indep_stack"]) if is_unsized(frame) and frame.dim == -1]:
        size = next(plate.size for plate in site.plates if plate.dim == -1)
        return (
            f"The plate {unsized[0].name!r} is given no size and what lies in it has {size} element{'s'[: size != 1]}: "
            f'draw as many as there are data, e.g. in pyro.plate("{unsized[0].name}", len(x))'
        )
    if not site.plates and site.role == "auxiliary":
        return (
            "It draws for all data at once, as autoguides do that know the posterior of certain data together: use a "
            "guide that computes q(z|x) from x"
        )
    if not site.plates:
        return 'What each datum has of its own belongs inside of pyro.plate("data", len(x))'
    for plate in site.plates:
        if plate.size == n:
            return (
                f"The plate {plate.name!r} has dim {plate.dim}: give it dim=-1, and plates inside of it dim=-2, -3, …, "
                "with the data last in what is observed there (x.T)"
            )
    plate = min(site.plates, key=lambda plate: -(plate.dim or 0))
    if plate.full_size != plate.size:
        return (
            f"The plate {plate.name!r} takes {plate.size} of {plate.full_size} data by itself, so that there is no "
            f'value for each that it is given: use pyro.plate("{plate.name}", len(x)) here, or make the index an '
            "argument of the pair and give it as subsample=index"
        )
    return (
        f"The plate {plate.name!r} has {plate.size} elements whatever it is given, and a pair must take any number of "
        "data: a guide with parameters for certain data (an autoguide) must be told which these are, by "
        "create_plates and an argument with their index, or be one that computes q(z|x) from x"
    )


def shown_plates(plates: Sequence[CondIndepStackFrame]) -> str:
    """Plates as messages show them."""
    return ", ".join(f"{p.name!r} (size {p.size}, dim {p.dim})" for p in plates) or "no plate"


def device_of(pair: nn.Module, data: Batch = ()) -> torch.device:
    """The device of the pair's first parameter or buffer; where it has none, of `data`, else the CPU."""
    tensors = [*pair.parameters(), *pair.buffers(), *(t for t in data if isinstance(t, Tensor))]
    return tensors[0].device if tensors else torch.device("cpu")


def take(data: Batch, index: slice, device: torch.device | None = None) -> Batch:
    """Some of the data, on `device`."""
    return tuple(t if t is None else usable(t[index].to(device)) for t in data)


def usable(tensor: Tensor) -> Tensor:
    """A tensor that gradients can go through also where it was made in `torch.inference_mode`."""
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor


def blocks(n: int, size: int) -> list[tuple[int, int]]:
    """The (start, stop) of consecutive blocks of at most `size` of n data."""
    return [(start, min(start + size, n)) for start in range(0, n, size)]
