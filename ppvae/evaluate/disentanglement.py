"""How well single dimensions of the codes stand for the known factors of the data: six published scores.

All compare the codes z of n data with the factors v that the data were made of:

| score | 1 where |
| --- | --- |
| MIG | for each factor one dimension has all of the information on it, and no second one has any |
| SAP | for each factor one dimension predicts it, and no second one does |
| disentanglement, completeness (DCI) | each dimension serves one factor; each factor is served by one dimension |
| informativeness (DCI) | the dimensions together predict every factor |
| β-VAE score | the factor that two sets of data share is told by how little the codes of the pairs differ |
| FactorVAE score | the dimension that varies least over data which share a factor tells which factor it is |
| modularity | each dimension has information on one factor alone |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ppvae._validate import check_count, check_seed, check_tensor
from ppvae.evaluate.disentanglement_scores import COLLAPSED, Codes, mutual_information
from ppvae.inputs import takes_data
from ppvae.pair import check_data
from ppvae.result import Result
from ppvae.sampling.posterior_draws import PosteriorSampler, posterior_sampler
from ppvae.traces import Site
from ppvae.traces import sites as read_sites

CodeKind = Literal["mean", "sample"]
"""What the code of a datum is: the mean of q(z|x), or a draw."""

MIN_DATA = 10
"""The fewest data of which there are scores."""


@dataclass(frozen=True)
class Score:
    """A score over several repeats: other halves of the data to learn from and to test on, and other groups.

    Attributes:
        mean: over the repeats; NaN where the score compares factors, or dimensions, and there is one.
        std_error: its standard error over the repeats. It is of the metric, on these data and codes: another training
            gives another code.
    """

    mean: float
    std_error: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.std_error:.3f}"


@dataclass(frozen=True, repr=False)
class Disentanglement(Result):
    """Scores of the codes of n data with f known factors; all are higher where the code is better, at most 1.

    Attributes:
        mig: mutual information gap (Chen et al. 2018).
        sap: separated attribute predictability (Kumar et al. 2018).
        disentanglement: of DCI (Eastwood & Williams 2018).
        completeness: of DCI.
        informativeness: of DCI: held-out R² of the ordered factors, accuracy above chance of the others.
        beta_vae: β-VAE score (Higgins et al. 2017), an accuracy; 1/f is chance.
        factor_vae: FactorVAE score (Kim & Mnih 2018), an accuracy; 1/f is chance.
        modularity: Ridgeway & Mozer 2018, over the dimensions that vary.
        gaps: what `mig` is the mean of, by factor, shape (f,).
        information: mutual information of each dimension with each factor as a share of the factor's entropy, (k, f).
        names: of the factors.
        num_active: how many of the k dimensions vary over the data, with a standard deviation of 0.05 or more.
        codes: whether codes are the means of q(z|x), or draws.
    """

    mig: Score
    sap: Score
    disentanglement: Score
    completeness: Score
    informativeness: Score
    beta_vae: Score
    factor_vae: Score
    modularity: Score
    gaps: Tensor
    information: Tensor
    names: tuple[str, ...]
    num_active: int
    codes: str

    def scores(self) -> dict[str, Score]:
        """The scores by the names that papers call them."""
        return {
            "MIG": self.mig,
            "SAP": self.sap,
            "DCI disentanglement": self.disentanglement,
            "DCI completeness": self.completeness,
            "DCI informativeness": self.informativeness,
            "β-VAE score": self.beta_vae,
            "FactorVAE score": self.factor_vae,
            "modularity": self.modularity,
        }

    def summary(self) -> str:
        """A line for each score, and one for each factor."""
        lines = [f"{name} {score}" for name, score in self.scores().items()]
        k = len(self.information)
        lines.append(f"of {k} dimensions {self.num_active} vary; codes: {self.codes}")
        for name, gap, information in zip(self.names, self.gaps.tolist(), self.information.T, strict=True):
            best = int(information.argmax())
            lines.append(f"{name}: z[{best}] has {float(information[best]):.2f} of its entropy, gap {gap:.2f}")
        return "\n".join(lines)


@takes_data
def disentanglement(
    pair: nn.Module,
    *data: Any,
    factors: Tensor,
    names: Sequence[str] | None = None,
    categorical: Sequence[str] = (),
    sites: Sequence[str] | None = None,
    codes: CodeKind = "mean",
    num_bins: int | None = None,
    num_repeats: int = 5,
    seed: int = 0,
) -> Disentanglement:
    """Scores the latents of a pair by known factors of the data.

    Args:
        pair: any model/guide pair.
        data: its arguments, tensors of shape (n, ...), on any device; a random sample of all combinations of the
            factors.
        factors: what the data were made of, integers of shape (n, f).
        names: of the factors; by default "factor 0", …
        categorical: names of the factors whose values have no order.
        sites: latents that make up the code, by default all of the model. Where q of one depends on the draw of
            another, its mean is that given the draw.
        codes: the code of a datum: the mean of q(z|x), or a draw from it, with which MIG is that of Chen et al.
        num_bins: bins of equal width for the mutual information; by default as many as the factor with the most values
            has, at least 20: with fewer even a perfect code shares bins.
        num_repeats: how often the scores are computed.
        seed: of the draws and repeats; the global random state is left alone.

    Returns:
        The scores.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the shapes do not fit, there are too few data, a value is not finite, a factor has a single
            value, or a latent has no mean.

    References:
        Isolating sources of disentanglement in variational autoencoders (Chen et al. 2018), arXiv 1802.04942: MIG.
        Variational inference of disentangled latent concepts from unlabeled observations (Kumar et al. 2018), arXiv
        1711.00848: SAP. A framework for the quantitative evaluation of disentangled representations (Eastwood &
        Williams 2018): DCI. β-VAE (Higgins et al. 2017). Disentangling by factorising (Kim & Mnih 2018), arXiv
        1802.05983. Learning deep disentangled embeddings with the F-statistic loss (Ridgeway & Mozer 2018), arXiv
        1802.05312: modularity. Challenging common assumptions in the unsupervised learning of disentangled
        representations (Locatello et al. 2019), arXiv 1811.12359, whose definitions are compared in docs/evaluation.md.

    Example:
        >>> import torch
        >>> from ppvae.models import PPCA
        >>> factors = torch.stack([torch.arange(400) % 4, torch.arange(400) // 4 % 5], 1)
        >>> x = factors.float() @ torch.randn(2, 8)
        >>> result = disentanglement(PPCA(8, 2, guide="amortized"), x, factors=factors, num_repeats=1)
        >>> 0.0 <= result.mig.mean <= 1.0
        True
    """
    if codes not in get_args(CodeKind):
        raise ValueError(f"codes must be one of {', '.join(get_args(CodeKind))}, got {codes!r}")
    n = check_data(data)
    _check_factors(factors, n)
    z = _codes(pair, data, sites, codes, seed)
    return disentanglement_of_codes(
        z,
        factors,
        names=names,
        categorical=categorical,
        num_bins=num_bins,
        num_repeats=num_repeats,
        seed=seed,
        kind="means of q(z|x)" if codes == "mean" else "draws from q(z|x)",
    )


def disentanglement_of_codes(
    z: Tensor,
    factors: Tensor,
    *,
    names: Sequence[str] | None = None,
    categorical: Sequence[str] = (),
    num_bins: int | None = None,
    num_repeats: int = 5,
    seed: int = 0,
    kind: str = "as given",
) -> Disentanglement:
    """Scores codes that are there already, of any model.

    Args:
        z: codes of shape (n, k).
        factors: integers of shape (n, f).
        names: see `disentanglement`, as for all others.
        categorical: names of the factors whose values have no order.
        num_bins: bins of the mutual information.
        num_repeats: how often the scores are computed.
        seed: of the repeats.
        kind: what the codes are, for the summary.

    Returns:
        The scores.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: as of `disentanglement`.

    Example:
        >>> import torch
        >>> v = torch.stack([torch.randint(5, (2000,)), torch.randint(8, (2000,))], 1)
        >>> result = disentanglement_of_codes(v + 0.01 * torch.randn(2000, 2), v, num_repeats=2)
        >>> result.mig.mean > 0.98, result.factor_vae.mean
        (True, 1.0)
    """
    z = check_tensor("z", z)
    if z.dim() != 2 or not z.shape[1]:
        raise ValueError(f"z must have shape (n, k), got {tuple(z.shape)}")
    if not bool(z.isfinite().all()):
        raise ValueError(f"z must be finite, got {int((~z.isfinite()).any(1).sum())} of {len(z)} codes that are not")
    v = _check_factors(factors, len(z))
    f = v.shape[1]
    names = _names(names, f)
    if unknown := [name for name in _as_names("categorical", categorical) if name not in names]:
        raise ValueError(f"categorical names {unknown}, which are none of the factors {list(names)}")
    check_count("num_repeats", num_repeats)
    check_seed(seed)
    num_values = max(len(np.unique(column)) for column in v.T)
    bins = max(20, num_values) if num_bins is None else check_count("num_bins", num_bins, at_least=2)
    codes = Codes(z.detach().double().cpu().numpy(), v, tuple(name in categorical for name in names), bins)
    rng = np.random.default_rng(seed)
    repeats = [codes.permuted(rng).scores(rng) for _ in range(num_repeats)]
    scores = {name: _score([repeat[name] for repeat in repeats]) for name in repeats[0]}
    information, gaps = mutual_information(codes.z, v, bins)
    return Disentanglement(
        **scores,
        gaps=torch.from_numpy(gaps),
        information=torch.from_numpy(information),
        names=names,
        num_active=int((codes.z.std(0) >= COLLAPSED).sum()),
        codes=kind,
    )


def _score(values: list[float]) -> Score:
    """The mean of the repeats, and its standard error; NaN of one."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Score(float(np.mean(values)), error)


def _codes(pair: nn.Module, data: Any, names: Sequence[str] | None, kind: CodeKind, seed: int) -> Tensor:
    """The codes of all data, (n, k): all dimensions of the latents one after another."""
    parts = []
    with posterior_sampler(pair, data, seed=seed) as posterior:
        latents = posterior.latents
        chosen = latents if names is None else _as_names("sites", names)
        if unknown := [name for name in chosen if name not in latents]:
            raise ValueError(f"sites names {unknown}, which are no latents of the pair: it has {list(latents)}")
        for _, part in posterior.parts(1):
            of_guide = read_sites(part.sampler.guide(part.data, 1, {}, {}))
            parts.append(torch.cat([_of_site(part, of_guide[name], kind) for name in chosen], 1))
    return torch.cat(parts).double().cpu()


def _of_site(posterior: PosteriorSampler, site: Site, kind: CodeKind) -> Tensor:
    """The code of one latent, (n, its dimensions)."""
    values = site.value if kind == "sample" else _mean(site)
    z = posterior.sampler.value(replace(site, value=values), 1)
    return z.value.movedim(z.data_dim, 0).flatten(1)


def _mean(site: Site) -> Tensor:
    """The mean of q, of the shape of the site's value.

    Raises:
        ValueError: where it is not known.
    """
    try:
        mean = site.fn.mean.expand_as(site.value)
        known = bool(mean.isfinite().all())
    except NotImplementedError:
        known = False
    if not known:
        raise ValueError(
            f'codes="mean": the mean of the latent {site.name!r}, a {type(site.fn).__name__}, is not known: take '
            'codes="sample", or leave it out of sites'
        )
    return mean


def _check_factors(factors: Any, n: int) -> np.ndarray[Any, Any]:
    """The factors as an array, checked to be integers (n, f) of n data, each of which varies."""
    factors = check_tensor("factors", factors)
    if factors.is_floating_point() or factors.dtype == torch.bool:
        raise TypeError(f"factors must be integers, got {factors.dtype}: put real values into bins")
    if factors.dim() != 2 or len(factors) != n or not factors.shape[1]:
        raise ValueError(f"factors must have shape ({n}, f), a row for each datum, got {tuple(factors.shape)}")
    if n < MIN_DATA:
        raise ValueError(f"factors must be of at least {MIN_DATA} data, got {n}")
    v = factors.detach().cpu().numpy()
    if constant := [j for j in range(v.shape[1]) if (v[:, j] == v[0, j]).all()]:
        raise ValueError(f"factors[:, {constant[0]}] has a single value: leave out what does not vary")
    return v


def _as_names(argument: str, names: Any) -> tuple[str, ...]:
    """Names as a tuple.

    Raises:
        TypeError: where they are none.
    """
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{argument} must be a list of names, got {names!r}")
    return tuple(names)


def _names(names: Sequence[str] | None, f: int) -> tuple[str, ...]:
    found = tuple(f"factor {j}" for j in range(f)) if names is None else _as_names("names", names)
    if len(found) != f or len(set(found)) != f:
        raise ValueError(f"names must be {f} different ones, one for each factor, got {list(found)}")
    return found
