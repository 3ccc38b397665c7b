"""How like data the samples of a model are, by features of both: Fréchet and kernel distance, precision, recall.

Of features a_1 … a_m of samples and b_1 … b_n of data, with means μ and covariances Σ,

    Fréchet      |μ_a − μ_b|² + tr(Σ_a + Σ_b − 2 (Σ_a^½ Σ_b Σ_a^½)^½)     (Heusel et al. 2017, arXiv 1706.08500)
    KID          mean k(a, a′) + mean k(b, b′) − 2 mean k(a, b), k(a, b) = (a·b / d + 1)³, over pairs of different ones
                                                                         (Bińkowski et al. 2018, arXiv 1801.01401)
    precision    the share of samples within a ball around a datum that reaches its third neighbour among the data;
    recall       that of data within such a ball around a sample         (Kynkäänniemi et al. 2019, arXiv 1904.06991)
    density      how many balls around data, which reach the fifth neighbour, hold a sample, over five;
    coverage     the share of these balls that hold one                  (Naeem et al. 2020, arXiv 2002.09797)

The Fréchet distance of samples is too large by about a constant over their number: of two equal distributions with 64
features it is 4.4 at 500 each. What it tends to is estimated beside it (Chong & Forsyth 2020, arXiv 1911.07023), here
by the jackknife: with θ of all and θ_g of all but the g-th of ten groups, 10 θ − 9 mean θ_g takes a term in 1/n off,
and the spread of the θ_g gives the standard error, one that is too large rather than too small where the two
distributions are nearly equal. The KID has no such term. All computations are in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ppvae._validate import check_count, check_tensor
from ppvae.evaluate.estimates import mean_over_data
from ppvae.evaluate.features import describe_features
from ppvae.inputs import takes_data
from ppvae.pair import Batch, blocks, check_data
from ppvae.result import Result
from ppvae.sampling.eval_mode import eval_mode
from ppvae.sampling.posterior_draws import posterior_sampler, simulate

GROUPS = 10
"""Groups of the jackknife."""
MIN_DATA = 2 * GROUPS
"""The fewest samples and data that are compared."""
NEIGHBOURS, NEIGHBOURS_OF_DENSITY = 3, 5
"""Which neighbour a ball reaches, for precision and recall, and for density and coverage: those of the papers."""
BLOCK_BYTES = 2**26
"""The most memory that distances among features take at once."""


@dataclass(frozen=True)
class Quantity:
    """A number and its standard error."""

    value: float
    std_error: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ± {self.std_error:.2g}"


@dataclass(frozen=True, repr=False)
class SampleQuality(Result):
    """How like data some samples are; the standard errors are over samples and data.

    Attributes:
        features: what they are compared by; numbers of other features are on another scale.
        num_features: d.
        num_samples: m.
        num_data: n.
        frechet: the Fréchet distance of so many samples and data, which is too large.
        frechet_extrapolated: what it tends to with more of both; noise can make it negative.
        kernel: the kernel distance KID, without bias, so that noise can make it negative.
        precision, recall, density, coverage: see above; errors of the first three are over the samples or data that are
            counted, the balls given. Where samples are data, density is 1, coverage 0.97, precision and recall are
            what these features make them.
    """

    features: str
    num_features: int
    num_samples: int
    num_data: int
    frechet: Quantity
    frechet_extrapolated: Quantity
    kernel: Quantity
    precision: Quantity
    recall: Quantity
    density: Quantity
    coverage: Quantity

    def figures(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self)

    def in_numbers(self) -> str:
        """The distances and shares, without the features."""
        singular = ""
        if min(self.num_samples, self.num_data) <= self.num_features:
            singular = f" (not to be trusted: the covariances of no more than {self.num_features} are singular)"
        return (
            f"{self.num_samples} samples, {self.num_data} data: Fréchet distance {self.frechet}, extrapolated in 1/n "
            f"{self.frechet_extrapolated}{singular}; KID {self.kernel}; precision {self.precision}, recall "
            f"{self.recall}, density {self.density}, coverage {self.coverage}"
        )

    def summary(self) -> str:
        """The same, and what the numbers are of."""
        return f"{self.in_numbers()}; by {self.features}: not to be compared with numbers of other features"


@takes_data
def sample_quality(
    pair: nn.Module, *data: Any, features: nn.Module, argument: int = 0, seed: int = 0, batch_size: int = 1000
) -> SampleQuality:
    """Draws one datum from the model for each that is given, and compares the two sets.

    Arguments of the pair that it does not observe (a label that is given, a part of an image) stay as they are, so that
    samples are of the same conditions as the data.

    Args:
        pair: any model/guide pair.
        data: its arguments, tensors or arrays of shape (n, ...), which it has not been trained on.
        features: a module from data of the argument that is judged, (n, *event), to (n, d): `train_features` of the
            data set's labels, `InceptionFeatures`, or one of your own; it runs in eval mode.
        argument: which argument is judged.
        seed: of the draws; the global random state is left alone.
        batch_size: data that features are computed of at once.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the pair or the data break the contract, the model does not observe that argument, or the
            features are not finite rows of numbers, one for each datum.

    Example:
        >>> from ppvae.models import PPCA
        >>> x = torch.randn(100, 8)
        >>> found = sample_quality(PPCA(8, 2), x, features=torch.nn.Linear(8, 4))
        >>> found.num_samples, found.num_features
        (100, 4)
    """
    check_data(data)
    real = data[argument] if isinstance(argument, int) and 0 <= argument < len(data) else None
    if isinstance(argument, bool) or not isinstance(real, Tensor):
        raise ValueError(f"argument must be the number of one of the pair's {len(data)} arguments, got {argument!r}")
    drawn = draw_samples(pair, data, argument=argument, seed=seed)
    of_each = [compute_features(features, x, batch_size=batch_size) for x in (drawn, real)]
    return compare_features(*of_each, description=describe_features(features))


def draw_samples(pair: nn.Module, data: Batch, *, argument: int = 0, seed: int = 0) -> Tensor:
    """One draw x ~ p(x) for every datum, in the place of one argument of the pair; the others that it observes too.

    Args:
        pair: any model/guide pair.
        data: its arguments, tensors of shape (n, ...), or None.
        argument: which of them is wanted.
        seed: of the draws.

    Returns:
        Data like that argument, on the pair's device.

    Raises:
        ValueError: where the model does not observe it as it is, or cannot be drawn from in one pass.
    """
    with posterior_sampler(pair, data, seed=seed) as template:
        parts = [(part.data[argument], simulate(part).data[argument]) for _, part in template.parts(1)]
    if any(drawn is given for given, drawn in parts):
        raise ValueError(f"argument {argument} is a condition: the model observes no site that it is the value of")
    return torch.cat([drawn for _, drawn in parts])


@torch.no_grad()
def compute_features(features: nn.Module, x: Tensor, *, batch_size: int = 1000) -> Tensor:
    """Features of data (n, *event) by a module in eval mode, (n, d), float64 on the CPU.

    Raises:
        TypeError: where `features` is no module, or returns no tensor.
        ValueError: where they are not finite rows of numbers, one for each datum.
    """
    if not isinstance(features, nn.Module):
        raise TypeError(f"features must be a module from data to rows of numbers, got {type(features).__name__}")
    check_count("batch_size", batch_size)
    tensor = next((t for t in (*features.parameters(), *features.buffers())), x)
    with eval_mode(features):
        rows = [features(part.to(tensor.device)) for part in check_tensor("x", x).split(batch_size)]
    if not all(isinstance(part, Tensor) for part in rows):
        raise TypeError(f"features must return a tensor, got {type(rows[0]).__name__}")
    found = torch.cat(rows).double().cpu()
    if found.shape[:1] != x.shape[:1] or found.dim() != 2:
        raise ValueError(f"features must return (n, d) for {len(x)} data, got {tuple(found.shape)}")
    return _check_features("features", found)


def compare_features(generated: Tensor, real: Tensor, *, description: str = "features") -> SampleQuality:
    """Compares features of samples with features of data.

    Args:
        generated: features of samples, shape (m, d), at least 20.
        real: features of data, (n, d), at least 20.
        description: what the features are.

    Raises:
        TypeError: where one is no tensor.
        ValueError: where a shape is none of these, or a value is not finite.
    """
    a, b = _check_both(generated, real, at_least=MIN_DATA)
    frechet, extrapolated = _jackknife(_FrechetOfGroups(a, b))
    kernel, _ = _jackknife(_KernelOfGroups(a, b))
    return SampleQuality(
        description, a.shape[1], len(a), len(b), frechet, extrapolated, kernel, *_shares(a, b).values()
    )


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The Fréchet distance of two sets of features: between the normals with their moments.

    Args:
        a: features of samples, (m, d), m ≥ 2.
        b: features of data, (n, d), n ≥ 2.

    Raises:
        ValueError: where there are fewer, or their d differ.

    Example:
        >>> x = torch.randn(50, 4)
        >>> round(frechet_distance(x, x + 2.0), 3)  # four means that are two apart
        16.0
    """
    a, b = _check_both(a, b, at_least=2)
    return _frechet(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """The kernel distance KID of two sets of features: unbiased, and so at times negative.

    Args:
        a: features of samples, (m, d), m ≥ 2.
        b: features of data, (n, d), n ≥ 2.

    Raises:
        ValueError: where there are fewer, or their d differ.

    Example:
        >>> x = torch.randn(500, 4)
        >>> kernel_distance(x[:250], x[250:] + 2.0) > 10 * abs(kernel_distance(x[:250], x[250:]))
        True
    """
    a, b = _check_both(a, b, at_least=2)
    return _KernelOfGroups(a, b)(torch.ones(GROUPS, dtype=torch.float64))


def _check_both(a: Tensor, b: Tensor, *, at_least: int) -> tuple[Tensor, Tensor]:
    a, b = _check_features("features of samples", a), _check_features("features of data", b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"samples and data must have equally many features, got {a.shape[1]} and {b.shape[1]}")
    check_enough(len(a), len(b), at_least=at_least)
    return a, b


def check_enough(num_samples: int, num_data: int, *, at_least: int = MIN_DATA) -> None:
    """Checks that there are enough samples and data to compare.

    Raises:
        ValueError: where there are not.
    """
    if min(num_samples, num_data) < at_least:
        raise ValueError(
            f"there must be at least {at_least} samples and data to compare, got {num_samples} and {num_data}"
        )


def _check_features(name: str, values: Any) -> Tensor:
    found = check_tensor(name, values).detach().double().cpu()
    if found.dim() != 2 or 0 in found.shape:
        raise ValueError(f"{name} must have shape (n, d), got {tuple(found.shape)}")
    if not bool(found.isfinite().all()):
        raise ValueError(
            f"{name} must be finite, got NaN or infinite ones in {int((~found.isfinite()).any(1).sum())} rows"
        )
    return found


def _jackknife(estimate: Callable[[Tensor], float]) -> tuple[Quantity, Quantity]:
    """An estimate as it is, and without its bias of order 1/n; the standard error of both.

    Args:
        estimate: of the data of those groups that a mask (g,) of zeros and ones keeps.
    """
    every = torch.ones(GROUPS, dtype=torch.float64)
    whole = estimate(every)
    parts = torch.tensor([estimate(every - row) for row in torch.eye(GROUPS, dtype=torch.float64)], dtype=torch.float64)
    error = float(((GROUPS - 1) * parts.var(correction=0)).sqrt())
    return Quantity(whole, error), Quantity(GROUPS * whole - (GROUPS - 1) * float(parts.mean()), error)


def _group_of(n: int) -> Tensor:
    """Which group each of n data is in: neighbours, which may be alike, in different ones."""
    return torch.arange(n) % GROUPS


class _Moments:
    """The first two moments of features (n, d), group by group, about their common mean."""

    def __init__(self, x: Tensor) -> None:
        group = _group_of(len(x))
        self.centre = x.mean(0)
        parts = [x[group == g] - self.centre for g in range(GROUPS)]
        self.count = torch.tensor([len(part) for part in parts], dtype=torch.float64)
        self.sum = torch.stack([part.sum(0) for part in parts])
        self.square = torch.stack([part.T @ part for part in parts])

    def of(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (d,) and covariance (d, d) of the groups that are kept."""
        n, mean = kept @ self.count, kept @ self.sum / (kept @ self.count)
        square = (kept[:, None, None] * self.square).sum(0)
        return self.centre + mean, (square - n * mean.outer(mean)) / (n - 1)


class _FrechetOfGroups:
    """The Fréchet distance of the groups that are kept."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a, self.b = _Moments(a), _Moments(b)

    def __call__(self, kept: Tensor) -> float:
        return _frechet(*self.a.of(kept), *self.b.of(kept))


def _frechet(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Symmetric matrices alone are decomposed: of Σ_a Σ_b itself the root may be complex where the two are singular."""
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    between = root @ cov_b @ root
    overlap = torch.linalg.eigvalsh((between + between.T) / 2).clamp_min(0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * overlap)


class _KernelOfGroups:
    """The kernel distance of the groups that are kept, of sums of the kernel over each pair of groups."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.counts = [torch.bincount(_group_of(len(x)), minlength=GROUPS).double() for x in (a, b)]
        self.within = [_kernel_sums(x, x) - _diagonal_sums(x) for x in (a, b)]
        self.between = _kernel_sums(a, b)

    def __call__(self, kept: Tensor) -> float:
        m, n = (float(kept @ count) for count in self.counts)
        within_a, within_b = (float(kept @ sums @ kept) for sums in self.within)
        return within_a / (m * (m - 1)) + within_b / (n * (n - 1)) - 2 * float(kept @ self.between @ kept) / (m * n)


def _kernel(products: Tensor, d: int) -> Tensor:
    return (products / d + 1) ** 3


def _kernel_sums(x: Tensor, y: Tensor) -> Tensor:
    """The sum of the kernel over each pair of groups, (g, g)."""
    sums = torch.zeros(GROUPS, GROUPS, dtype=torch.float64)
    of_y = nn.functional.one_hot(_group_of(len(y)), GROUPS).double()
    for start, rows in _row_blocks(x, y):
        group = (torch.arange(start, start + len(rows))) % GROUPS
        sums.index_add_(0, group, _kernel(rows @ y.T, x.shape[1]) @ of_y)
    return sums


def _diagonal_sums(x: Tensor) -> Tensor:
    """The sums of the kernel of each datum with itself, on the diagonal of a (g, g)."""
    of_each = _kernel(x.square().sum(1), x.shape[1])
    return torch.zeros(GROUPS, dtype=torch.float64).index_add_(0, _group_of(len(x)), of_each).diag()


def _row_blocks(x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Rows of x, as many at a time as their distances to all of y may take memory."""
    for start, stop in blocks(len(x), max(1, BLOCK_BYTES // (8 * len(y)))):
        yield start, x[start:stop]


def _shares(a: Tensor, b: Tensor) -> dict[str, Quantity]:
    """Precision, recall, density and coverage of samples a and data b."""
    k, k_density = NEIGHBOURS, NEIGHBOURS_OF_DENSITY
    radii_a, radii_b = _radii(a), _radii(b)
    precise, count = [], []
    recalled, covered = torch.zeros(len(b), dtype=torch.bool), torch.zeros(len(b), dtype=torch.bool)
    for start, rows in _row_blocks(a, b):
        distance = _distances(rows, b)
        precise.append((distance <= radii_b[:, k - 1]).any(1))
        near = distance <= radii_b[:, k_density - 1]
        count.append(near.sum(1))
        covered |= near.any(0)
        recalled |= (distance <= radii_a[start : start + len(rows), k - 1, None]).any(0)
    values = {
        "precision": torch.cat(precise).double(),
        "recall": recalled.double(),
        "density": torch.cat(count).double() / k_density,
        "coverage": covered.double(),
    }
    found = {name: mean_over_data(of_each) for name, of_each in values.items()}
    return {name: Quantity(of["mean"], of["std_error"]) for name, of in found.items()}


def _radii(x: Tensor) -> Tensor:
    """Distances of each datum to its nearest neighbours, itself not among them, (n, 5)."""
    nearest = []
    for start, rows in _row_blocks(x, x):
        distance = _distances(rows, x)
        distance[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = torch.inf
        nearest.append(distance.topk(NEIGHBOURS_OF_DENSITY, largest=False).values)
    return torch.cat(nearest)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Distances (n, m), zero of equal rows: not by products, whose rounding would part them."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
