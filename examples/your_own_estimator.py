"""An estimator of your own: the jackknife, which takes the bias of order 1/s out of log p̂(x).

    s log p̂_s − (s − 1) mean_i log p̂_{s∖i},     p̂_{s∖i} from all of the s draws but the i-th

(Nowozin 2018, "Debiasing evidence approximations"). An estimator holds its options and makes a `LogMarginal` of a pair
and data; what goes with one of ppvae's goes with it. Diagnostics are those of importance sampling, or a class of yours.
"""

import math
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import nn

import ppvae
from ppvae.evaluate import METHODS, Estimator, EvaluationOptions, ImportanceDiagnostics, LogMarginal, num_observed
from ppvae.models import PPCA
from ppvae.pair import Batch
from ppvae.sampling import importance_draws


@dataclass(frozen=True)
class Jackknife(Estimator):
    """Importance sampling, corrected."""

    num_draws: int = 100

    @classmethod
    def from_num_samples(cls, num_samples: int) -> "Jackknife":
        """What `log_marginal(..., method="jackknife", num_samples=...)` means."""
        return cls(num_samples)

    def estimate(self, pair: nn.Module, data: Batch, options: EvaluationOptions) -> LogMarginal:
        """The draws come in blocks, first those of the first data."""
        s = self.num_draws
        draws = importance_draws(pair, data, num_samples=s, seed=options.seed, given=options.given)
        blocks = [[draw.log_weight() for draw in block] for _, block in groupby(draws, key=lambda draw: draw.start)]
        log_weight = torch.cat([torch.cat(block) for block in blocks], -1).double().cpu()  # (s, n)
        k, bound = ppvae.evaluate.pareto_k(log_weight), ppvae.evaluate.bound_curve(log_weight)
        num_dims, diagnostics = num_observed(pair, data, options.given), ImportanceDiagnostics(k, bound, s)
        plain = LogMarginal.of_weights(log_weight, num_dims=num_dims, diagnostics=diagnostics)
        left_out = log_weight.logsumexp(0) + torch.log1p(-log_weight.softmax(0)) - math.log(s - 1)
        return replace(plain, values=s * plain.values - (s - 1) * left_out.mean(0))


def main() -> None:
    """Five draws of a guide that was hardly trained, against log p(x) in closed form."""
    torch.manual_seed(0)
    pair, x = PPCA(8, 2, guide="amortized"), torch.randn(1000, 2) @ torch.randn(2, 8) + torch.randn(1000, 8)
    ppvae.fit(pair, x, epochs=5, lr=1e-2, progress=False)
    METHODS["jackknife"] = Jackknife  # a name for it
    for method in ("importance", "jackknife"):
        print(f"{method}: {ppvae.log_marginal(pair, x, method=method, num_samples=5).summary()}")
    print(f"exact: {pair.log_prob(x).mean().item():.3f}")


if __name__ == "__main__":
    main()
