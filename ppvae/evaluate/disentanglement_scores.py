"""The scores of `ppvae.evaluate.disentanglement`, on arrays: codes z (n, k) and factors v (n, f)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

COLLAPSED = 0.05
"""The standard deviation over the data below which a dimension does not vary, as in Locatello et al. 2019."""
TELLS = 0.05
"""The share of a factor's entropy from which on a dimension has information on it."""
GROUP = 64
"""Data, or pairs of them, that share a factor, in one group of the β-VAE and FactorVAE scores."""
TRAIN_GROUPS, TEST_GROUPS = 2000, 1000
TREES = 10


def mutual_information(z: Array, v: Array, bins: int) -> tuple[Array, Array]:
    """The share that each dimension has of the entropy of each factor, (k, f), and MIG's gaps, (f,).

    Of codes in bins of equal width; less what independent variables of as many values show in so few data, which is (a
    − 1)(b − 1) / 2n nats: the share of a perfect code stays 1, and that of noise is 0 in the mean.

    Raises:
        ValueError: where there are too few data for so many values and bins.
    """
    n, share = len(z), np.zeros((z.shape[1], v.shape[1]))
    places = [np.unique(column, return_inverse=True)[1] for column in v.T]
    for i, code in enumerate(z.T):
        binned = np.digitize(code, np.linspace(code.min(), code.max(), bins + 1)[1:-1])
        for j, place in enumerate(places):
            num_values = place.max() + 1
            counts = np.bincount(binned * num_values + place, minlength=bins * num_values)
            joint = counts.reshape(bins, num_values) / n
            of_code, of_factor = joint.sum(1), joint.sum(0)
            entropy = _entropy(of_factor)
            chance = ((of_code > 0).sum() - 1) * (len(of_factor) - 1) / (2 * n)
            if chance > entropy / 2:
                raise ValueError(
                    f"factors: {n} data are too few for a mutual information of {len(of_factor)} values with "
                    f"{(of_code > 0).sum()} bins: give more, or a smaller num_bins"
                )
            mutual = entropy + _entropy(of_code) - _entropy(joint.ravel())
            share[i, j] = max(0.0, (mutual - chance) / (entropy - chance))
    return share, _gaps(share)


@dataclass(frozen=True)
class Codes:
    """Codes with the factors of their data.

    Attributes:
        z: codes (n, k), float64.
        v: factors (n, f), integers.
        categorical: whether the values of a factor have no order, (f,).
        bins: of the mutual information.
    """

    z: Array
    v: Array
    categorical: tuple[bool, ...]
    bins: int

    def permuted(self, rng: np.random.Generator) -> Codes:
        """The same in another order, by which they fall into halves to learn from and to test on."""
        order = rng.permutation(len(self.z))
        return replace(self, z=self.z[order], v=self.v[order])

    def scores(self, rng: np.random.Generator) -> dict[str, float]:
        """All scores by the names that `Disentanglement` has for them."""
        half = len(self.z) // 2
        share, gaps = mutual_information(self.z[:half], self.v[:half], self.bins)
        importance, informativeness = self.importance(rng)
        return {
            "mig": float(gaps.mean()),
            "sap": float(_gaps(self.predictability(rng)).mean()),
            "disentanglement": _concentration(importance),
            "completeness": _concentration(importance.T),
            "informativeness": informativeness,
            "beta_vae": self.beta_vae(rng),
            "factor_vae": self.factor_vae(rng),
            "modularity": _modularity(share),
        }

    def predictability(self, rng: np.random.Generator) -> Array:
        """How well each dimension alone predicts each factor, (k, f): R² of a line, or accuracy above chance."""
        from sklearn.tree import DecisionTreeClassifier

        half, found = len(self.z) // 2, np.zeros((self.z.shape[1], self.v.shape[1]))
        for i, code in enumerate(self.z.T):
            if code.std() < COLLAPSED:
                continue
            for j, factor in enumerate(self.v.T):
                if self.categorical[j]:
                    leaves = 4 * len(np.unique(factor))  # intervals of the code, so that it need not be monotonous
                    tree = DecisionTreeClassifier(max_leaf_nodes=leaves, class_weight="balanced", random_state=0)
                    tree.fit(code[:half, None], factor[:half])
                    found[i, j] = _above_chance(factor[half:], tree.predict(code[half:, None]))
                else:
                    found[i, j] = np.corrcoef(code[half:], factor[half:])[0, 1] ** 2
        return found

    def importance(self, rng: np.random.Generator) -> tuple[Array, float]:
        """Importances of the dimensions for each factor in bagged trees, (k, f), and how well these predict."""
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

        half, importance, informativeness = len(self.z) // 2, [], []
        for j, factor in enumerate(self.v.T):
            forest = RandomForestClassifier if self.categorical[j] else RandomForestRegressor
            # Every split looks at all dimensions, so that those without use are not taken for want of better ones.
            learner = forest(TREES, max_features=1.0, min_samples_leaf=5, random_state=int(rng.integers(2**31)))
            learner.fit(self.z[:half], factor[:half])
            importance.append(learner.feature_importances_)
            predicted, test = learner.predict(self.z[half:]), factor[half:]
            explained = 1 - ((test - predicted) ** 2).mean() / test.var() if not self.categorical[j] else None
            informativeness.append(_above_chance(test, predicted) if explained is None else max(0.0, explained))
        return np.stack(importance, 1), float(np.mean(informativeness))

    def beta_vae(self, rng: np.random.Generator) -> float:
        """The accuracy of a linear classifier of the factor that pairs share, by their mean differences."""
        from sklearn.linear_model import LogisticRegression

        scaled, num_factors = self._scaled(), self.v.shape[1]
        if num_factors == 1:
            return math.nan
        if not scaled.shape[1]:
            return 1 / num_factors
        factor = rng.integers(num_factors, size=TRAIN_GROUPS + TEST_GROUPS)
        first = rng.integers(len(scaled), size=(len(factor), GROUP))
        second = self._alike(factor, first, rng)
        difference = np.abs(scaled[first] - scaled[second]).mean(1)
        learner = LogisticRegression(max_iter=1000).fit(difference[:TRAIN_GROUPS], factor[:TRAIN_GROUPS])
        return float(learner.score(difference[TRAIN_GROUPS:], factor[TRAIN_GROUPS:]))

    def factor_vae(self, rng: np.random.Generator) -> float:
        """The accuracy of a majority vote on the factor that groups share, by the dimension that varies least."""
        scaled, num_factors = self._scaled(), self.v.shape[1]
        if num_factors == 1:
            return math.nan
        if not scaled.shape[1]:
            return 1 / num_factors
        factor = rng.integers(num_factors, size=TRAIN_GROUPS + TEST_GROUPS)
        first = rng.integers(len(scaled), size=(len(factor), 1)).repeat(GROUP, 1)
        least = scaled[self._alike(factor, first, rng)].var(1).argmin(1)
        votes = np.zeros((num_factors, scaled.shape[1]), dtype=np.int64)
        np.add.at(votes, (factor[:TRAIN_GROUPS], least[:TRAIN_GROUPS]), 1)
        return float((votes.argmax(0)[least[TRAIN_GROUPS:]] == factor[TRAIN_GROUPS:]).mean())

    def _scaled(self) -> Array:
        """The dimensions that vary, each with the standard deviation one."""
        scale = self.z.std(0)
        return self.z[:, scale >= COLLAPSED] / scale[scale >= COLLAPSED]

    def _alike(self, factor: Array, rows: Array, rng: np.random.Generator) -> Array:
        """Random rows, each with the same value of a factor, which is that of its group, as a given one."""
        found = np.empty_like(rows)
        for j in range(self.v.shape[1]):
            of_factor = factor == j
            place, count = np.unique(self.v[:, j], return_inverse=True, return_counts=True)[1:]
            by_value, start = np.argsort(place, kind="stable"), np.cumsum(count) - count
            value = place[rows[of_factor]]
            found[of_factor] = by_value[start[value] + rng.integers(count[value])]
        return found


def _entropy(p: Array) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def _gaps(of_dimensions: Array) -> Array:
    """The best dimension's value less the second best's, by factor; of one dimension the value."""
    ordered = np.sort(of_dimensions, axis=0)[::-1]
    return ordered[0] - (ordered[1] if len(ordered) > 1 else 0.0)


def _above_chance(true: Array, predicted: Array) -> float:
    """The mean accuracy over the classes, scaled so that a constant answer has 0 and a right one 1."""
    classes = np.unique(true)
    accuracy = float(np.mean([(predicted[true == c] == c).mean() for c in classes]))
    return max(0.0, (accuracy - 1 / len(classes)) / (1 - 1 / len(classes))) if len(classes) > 1 else 0.0


def _concentration(importance: Array) -> float:
    """How much of each row is in one column: 1 − its entropy by that of equal shares, weighted by the row's sum."""
    if importance.shape[1] == 1:
        return math.nan
    total = importance.sum(1)
    rows = total > 0
    if not rows.any():
        return 0.0
    entropies = np.array([_entropy(row) for row in importance[rows] / total[rows, None]])
    return float((total[rows] * (1 - entropies / math.log(importance.shape[1]))).sum() / total.sum())


def _modularity(share: Array) -> float:
    """1 − the squared information on other factors, relative to that on the best, of dimensions that have any."""
    if share.shape[1] == 1:
        return math.nan
    squared = share[share.max(1) >= TELLS] ** 2
    if not len(squared):
        return 0.0
    best = squared.max(1)
    return float((1 - (squared.sum(1) - best) / (best * (share.shape[1] - 1))).mean())
