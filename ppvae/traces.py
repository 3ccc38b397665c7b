"""Reading a trace: one typed `Site` for every statement that carries a density."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pyro.distributions import Delta, ExpandedDistribution, MaskedDistribution, Unit
from pyro.distributions.util import scale_and_mask
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Independent

from ppvae._internals import checks_support, is_subsampling, mask_of_distribution

Role = Literal["observed", "latent", "auxiliary", "training"]
"""What a site is to its pair: data or a factor, a latent of the model, a draw that is none, a term of the objective."""

Scale = float | Tensor
"""What log-probabilities are multiplied with: a number, or a tensor that a schedule updates in place."""

LOSS_TERM = "_ppvae_loss_term"
"""The mark that `ppvae.loss_term` puts on its sites."""


@dataclass(slots=True)  # not frozen, which would take ten calls to make one, and many are made at every step
class Site:
    """One `pyro.sample` statement of a model or a guide, as a trace has noted it.

    Attributes:
        name: of the statement.
        value: what was drawn or observed, shape (*batch, *event).
        fn: its distribution; `leaf(fn)` is the family without what is wrapped around it.
        role: "observed" (factors too), "latent", "auxiliary" (a draw that belongs to the guide alone), or "training": a
            term of the objective that is no part of p(x, z), from `ppvae.loss_term` or observed with
            `infer={"is_auxiliary": True}`.
        plates: the vectorized plates that it lies in, each with `name`, `dim`, `size` and `full_size`; where they were
            given none (`pyro.plate("data")`), these are what the shapes of `fn` and `value` say.
        mask: what `poutine.mask` and `obs_mask` leave of it; None is all.
        scale: what plates and `poutine.scale` multiply its log-probability with.
        infer: what the statement's `infer=` holds.
        log_prob: unscaled and unmasked, shape (*batch); None where the trace was not scored.
        log_prob_sum: scaled, masked and summed, as an ELBO counts it.
        inner_share: which part of its elements within a datum are here, where a plate inside the data plate (or a
            sequential one) gives a subsample.
        outside: where a sampler has found draws outside the support, in the shape of the draws of `leaf(fn)`; None is
            nowhere.
    """

    name: str
    value: Any
    fn: Any
    role: Role
    plates: tuple[CondIndepStackFrame, ...]
    mask: Tensor | bool | None
    scale: Scale
    infer: Mapping[str, Any]
    log_prob: Any = None
    log_prob_sum: Any = None
    inner_share: float = 1.0
    outside: Tensor | None = None

    @property
    def is_drawn(self) -> bool:
        """Whether it was drawn, and not observed."""
        return self.role in ("latent", "auxiliary")

    @property
    def is_factor(self) -> bool:
        """Whether it is a `pyro.factor`: a number that is added to the log-density, and no observation."""
        return isinstance(self.fn, Unit)

    @property
    def is_reparameterized(self) -> bool:
        """Whether its draws are differentiable."""
        return bool(getattr(self.fn, "has_rsample", False))

    @property
    def is_discrete(self) -> bool:
        """Whether its values can be listed."""
        try:
            return bool(leaf(self.fn).support.is_discrete)
        except (NotImplementedError, AttributeError):
            return not self.value.is_floating_point()

    @property
    def is_marked(self) -> bool:
        """Whether it asks to be summed over; with `num_samples` Pyro's mark asks for samples side by side."""
        return self.is_drawn and bool(self.infer.get("enumerate")) and not self.infer.get("num_samples")

    @property
    def is_enumerated(self) -> bool:
        """Whether Pyro has put every value of it side by side, in place of a draw."""
        return "_enumerate_dim" in self.infer or "_enum_total" in self.infer

    @property
    def event_dim(self) -> int:
        """How many dims on the right belong to one draw."""
        return int(self.fn.event_dim)

    @property
    def is_masked(self) -> bool:
        """Whether a mask may leave elements of it out."""
        return any(mask is not True for mask, _ in self._masks())

    def density(self) -> Tensor:
        """Its log-probability without its scale, with its mask, −inf outside the support: shape (*batch)."""
        density, outside = scale_and_mask(self.log_prob, mask=self.mask), self.is_outside()
        return density if outside is None else torch.where(outside, -torch.inf, density)

    def is_outside(self) -> Tensor | None:
        """Where an element that counts lies outside the support: shape (*batch); None is nowhere."""
        if self.outside is None:
            return None
        dims = int(leaf(self.fn).event_dim)
        outside = self.outside
        if self.is_masked:
            counted = self.counted()
            outside = outside & (counted.flatten(-dims).any(-1) if dims else counted)
        return outside.flatten(dims - self.event_dim).any(-1) if self.event_dim > dims else outside

    def density_sum(self) -> Tensor:
        """The sum of `density()`; Pyro's own where nothing scales it."""
        return self.log_prob_sum if isinstance(self.scale, float) and self.scale == 1.0 else self.density().sum()

    def counted(self) -> Tensor:
        """Which elements count in its density: true or false, of the shape of its value."""
        counts = torch.ones(self.fn.shape(), dtype=torch.bool, device=self.value.device)
        for mask, event_dim in self._masks():
            counts = counts & (mask.bool().reshape(mask.shape + (1,) * event_dim) if isinstance(mask, Tensor) else mask)
        return counts

    def _masks(self) -> list[tuple[Tensor | bool, int]]:
        """The masks around it and in its distribution, each with the number of event dims that it covers whole."""
        masks = [(self.mask, self.event_dim)]
        masks += [(mask_of_distribution(fn), fn.event_dim) for fn in _wrappers(self.fn)]
        return [(mask, event_dim) for mask, event_dim in masks if mask is not None]


def sites(trace: Trace) -> dict[str, Site]:
    """The sites of a trace that carry a density, in its order: no subsampling indices, no `pyro.deterministic`.

    Nor those that `poutine.reparam` has replaced by others.

    Args:
        trace: of a model or a guide; their log-probabilities are there after `trace.compute_log_prob()`.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> trace = pyro.poutine.trace(lambda: pyro.sample("z", dist.Normal(0.0, 1.0))).get_trace()
        >>> {name: site.role for name, site in sites(trace).items()}
        {'z': 'latent'}
    """
    return {name: site_of(node) for name, node in trace.nodes.items() if _carries_density(node)}


def site_of(node: Mapping[str, Any]) -> Site:
    """The site of one node of a trace, or of a handler's message."""
    fn, plates = _sized(node["fn"], node["value"], vectorized(node["cond_indep_stack"]))
    return Site(
        name=node["name"],
        value=node["value"],
        fn=fn,
        role=_role(node),
        plates=plates,
        mask=node["mask"],
        scale=node["scale"],
        infer=node["infer"],
        log_prob=node.get("unscaled_log_prob"),
        log_prob_sum=node.get("log_prob_sum"),
        inner_share=_inner_share(node["cond_indep_stack"]),
        outside=node.get("outside"),
    )


def vectorized(stack: Iterable[CondIndepStackFrame]) -> tuple[CondIndepStackFrame, ...]:
    """The vectorized ones of the plates that a statement lies in."""
    return tuple(frame for frame in stack if frame.vectorized)


def is_unsized(plate: CondIndepStackFrame) -> bool:
    """Whether a plate was given no size, `pyro.plate("data")`: it is as large as what lies in it."""
    return plate.size == -1


def leaf(fn: Any) -> Any:
    """The family of a distribution: what `to_event`, `expand`, `mask` and plates have wrapped, without them."""
    for wrapper in _wrappers(fn):
        fn = wrapper.base_dist
    return fn


def latent_of(site: str, latents: Collection[str]) -> str:
    """The latent whose posterior a site of the guide belongs to: `z` for the `z_unconstrained` of Pyro's autoguides.

    They draw z_unconstrained and make z of it by a `Delta` that holds the change of volume: log q(z|x) is their sum.
    """
    latent = site.removesuffix("_unconstrained")
    return latent if latent in latents else site


def carrying(value: Tensor, source: Tensor, reshape: Callable[[Tensor], Tensor]) -> Tensor:
    """Gives a reshaped value what the one that it is made of carries besides its numbers.

    A straight-through relaxation keeps the soft value on the hard one that it returns, and has the density of the
    former: without it log p would be of another value than log q.

    Args:
        value: what `reshape` has made of `source`.
        source: of a site; the tensors of its own shape among its attributes are carried.
        reshape: what was done to it.
    """
    if value is not source:
        for name, extra in vars(source).items():
            if isinstance(extra, Tensor) and extra.shape == source.shape:
                setattr(value, name, reshape(extra))
    return value


def carries_more(value: Tensor) -> bool:
    """Whether a value has a density that its numbers alone do not tell, see `carrying`."""
    return any(isinstance(extra, Tensor) and extra.shape == value.shape for extra in vars(value).values())


def same_values(value: Any, tensor: Any) -> bool:
    """Whether `value` is `tensor`, or all of it in another shape."""
    return (
        isinstance(value, Tensor)
        and isinstance(tensor, Tensor)
        and (value.data_ptr(), value.numel(), value.dtype) == (tensor.data_ptr(), tensor.numel(), tensor.dtype)
    )


def values_outside(site: Site, values: Tensor, name: str) -> str | None:
    """What is said of values that a site observes as they are given, outside its support; None of others.

    Args:
        site: of the model.
        values: of the argument, any number of data.
        name: of the argument.
    """
    fn = leaf(site.fn)
    support = fn.support
    of_each_datum = any(isinstance(v, Tensor) and v.dim() > 0 for v in vars(support).values())
    if not checks_support(fn) or support.event_dim > 0 or of_each_datum:
        return None
    for rows in values.split(4096):
        outside = ~support.check(rows)
        if bool(outside.any()):
            example = rows[outside].flatten()[0].item()
            return (
                f"{name} holds values outside the support of {type(fn).__name__} at site {site.name!r}, "
                f"e.g. {example:g}: expected {support}"
            )
    return None


def same_scale(a: Scale, b: Scale) -> bool:
    """Whether two scales are equal everywhere."""
    return a is b or bool((torch.as_tensor(a) == torch.as_tensor(b)).all())


def shown_scale(scale: Scale) -> str:
    """A scale as messages show it: the number, or its shape."""
    values = torch.as_tensor(scale)
    return f"{float(values):g}" if values.numel() == 1 else f"of shape {tuple(values.shape)}"


def may_be_masked(node: Mapping[str, Any]) -> bool:
    """Whether a mask may leave elements of the statement of one node of a trace out."""
    if not _carries_density(node):
        return False
    wrappers = _wrappers(node["fn"])
    return node["mask"] is not None or any(mask_of_distribution(wrapper) is not None for wrapper in wrappers)


def _carries_density(node: Mapping[str, Any]) -> bool:
    if node["type"] != "sample" or node["infer"].get("_deterministic") or is_subsampling(node["fn"]):
        return False
    return not _is_reparameterized_away(node)


def _is_reparameterized_away(node: Mapping[str, Any]) -> bool:
    """Whether `poutine.reparam` draws another site instead: this one observes what was made of it, with no density."""
    if not node["is_observed"] or not isinstance(leaf(node["fn"]), Delta):
        return False
    return any(mask_of_distribution(wrapper) is False for wrapper in _wrappers(node["fn"]))


def _sized(fn: Any, value: Any, plates: tuple[CondIndepStackFrame, ...]) -> tuple[Any, tuple[CondIndepStackFrame, ...]]:
    """A statement's distribution and plates with the sizes that its shapes give those without one."""
    if not any(map(is_unsized, plates)):
        return fn, plates
    shape = torch.broadcast_shapes(fn.batch_shape, value.shape[: value.dim() - fn.event_dim])

    def sized(plate: CondIndepStackFrame) -> CondIndepStackFrame:
        size = shape[plate.dim] if len(shape) >= -(plate.dim or 0) else 1
        return CondIndepStackFrame(plate.name, plate.dim, size, plate.counter, size) if is_unsized(plate) else plate

    return fn if fn.batch_shape == shape else fn.expand(shape), tuple(map(sized, plates))


def _inner_share(plates: Iterable[CondIndepStackFrame]) -> float:
    share = 1.0
    for plate in plates:
        if plate.full_size not in (None, plate.size) and not (plate.vectorized and plate.dim == -1):
            share *= plate.size / plate.full_size
    return share


def _role(node: Mapping[str, Any]) -> Role:
    auxiliary = bool(node["infer"].get("is_auxiliary"))
    if not node["is_observed"]:
        return "auxiliary" if auxiliary else "latent"
    # Pyro marks its factors as auxiliary too, but those are part of the model.
    alone = node["infer"].get(LOSS_TERM) or (auxiliary and not isinstance(node["fn"], Unit))
    return "training" if alone else "observed"


def _wrappers(fn: Any) -> list[Any]:
    """What is wrapped around a family, from the outside in."""
    found = []
    while isinstance(fn, Independent | ExpandedDistribution | MaskedDistribution):
        found.append(fn)
        fn = fn.base_dist
    return found
