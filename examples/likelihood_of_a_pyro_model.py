"""You have a model trained with plain Pyro, and a reviewer who asks for log p(x).

Nothing about it needs to change: `ppvae.Pair` takes the two functions, the parameters are found where Pyro left them.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

import ppvae


def model(x: Tensor) -> None:
    """Z ~ N(0, 1), x ~ N(z + shift, 1)."""
    shift = pyro.param("shift", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)


def guide(x: Tensor) -> None:
    """Z ~ N(ax + b, s²)."""
    slope, offset = pyro.param("slope", torch.tensor(1.0)), pyro.param("offset", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x + offset, scale))


def main() -> None:
    """Trains with Pyro, evaluates with ppvae, compares with the exact answer N(x; shift, 2)."""
    pyro.set_rng_seed(0)
    x = 3.0 + 2.0**0.5 * torch.randn(1000)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    for _ in range(1000):
        svi.step(x)

    estimate = ppvae.log_marginal(ppvae.Pair(model, guide), x, num_samples=1000)
    exact = dist.Normal(pyro.param("shift").detach(), 2.0**0.5).log_prob(x)
    print(estimate.summary())
    error = float((estimate.values - exact).abs().max())
    print(f"exact: {float(exact.mean()):.3f}; largest error of a datum: {error:.4f}")


if __name__ == "__main__":
    main()
