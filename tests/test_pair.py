import math
from functools import partial, wraps

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch import nn

import ppvae
from ppvae.pair import check_batch, check_data_plate, check_sites, device_of, owner_of
from ppvae.traces import sites
from tests.reference import LinearGaussian, linear_gaussian


def test_two_methods_of_one_module():
    reference = linear_gaussian()
    module = reference.pair
    pair = ppvae.Pair(module.model, module.guide)
    assert list(pair.modules_used) == [module]
    assert set(map(id, pair.parameters())) == set(map(id, module.parameters()))
    expected = ppvae.log_marginal(module, *reference.data, num_samples=5).values
    assert torch.equal(ppvae.log_marginal(pair, *reference.data, num_samples=5).values, expected)
    pair.eval()
    assert not module.training


def test_functions_modules_and_partials():
    class Guide(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.tensor(0.3))

        def forward(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.loc * x, 1.0))

    def model(x, scale=1.0):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    net, x = nn.Linear(1, 1), torch.linspace(-1, 1, 5)
    pair = ppvae.Pair(partial(model, scale=2.0), Guide(), [net])
    assert {k for k, _ in pair.named_parameters()} == {
        "guide_function.loc",
        "modules_used.0.weight",
        "modules_used.0.bias",
    }
    estimate = ppvae.log_marginal(pair, x, num_samples=4000)
    assert ((estimate.values - dist.Normal(0.0, math.sqrt(5)).log_prob(x)) / estimate.std_error).abs().max() < 4


class Decorated(LinearGaussian):
    """Its class decorates a method, as Pyro's users do."""

    @config_enumerate
    @poutine.scale(scale=1.0)
    def guide(self, x):
        super().guide(x)


WRAPPED = {
    "config_enumerate": config_enumerate,
    "handlers": lambda f: poutine.scale(poutine.block(f, hide=["nothing"]), scale=1.0),
    "partial": partial,
    "handler around a partial": lambda f: poutine.scale(partial(f), scale=1.0),
    "wraps": lambda f: wraps(f)(lambda x: f(x)),
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("kind", [LinearGaussian, Decorated])
def test_a_module_is_found_in_what_its_methods_are_wrapped_in(name, kind):
    module, wrap = kind(), WRAPPED[name]
    assert owner_of(wrap(module.model)) is owner_of(wrap(module.guide)) is module
    pair = ppvae.Pair(module.model, wrap(kind().guide))
    before = [p.detach().clone() for p in pair.parameters()]
    ppvae.fit(pair, torch.randn(8), epochs=1, lr=0.1, progress=False)
    assert [not torch.equal(p, old) for p, old in zip(pair.parameters(), before, strict=True)].count(True) == 6
    assert owner_of(wrap(print)) is None


@pytest.mark.parametrize("wrap", [lambda net: poutine.scale(net, scale=2.0), partial])
def test_a_wrapped_module_is_kept(wrap):
    net = nn.Linear(1, 1)
    assert list(ppvae.Pair(wrap(net), print).modules_used) == [net]
    assert list(ppvae.Pair(net, print).modules_used) == []


@pytest.mark.parametrize(("model", "guide", "named"), [(3, print, "model"), (print, None, "guide")])
def test_not_callable(model, guide, named):
    with pytest.raises(TypeError, match=f"{named} must be callable"):
        ppvae.Pair(model, guide)


def test_kl_weight_scales_the_latents_only():
    module, x = LinearGaussian(), torch.randn(4)
    weight = torch.tensor(0.5)
    for value in (0.5, 2.0):
        weight.fill_(value)
        with ppvae.KLWeight(weight):
            trace = poutine.trace(module.model).get_trace(x)
        assert float(trace.nodes["z"]["scale"]) == value
        assert float(trace.nodes["x"]["scale"]) == 1.0
    for names, scale in ((["z"], 2.0), (["other"], 1.0), ([], 1.0)):
        with ppvae.KLWeight(2.0, names):
            assert poutine.trace(module.model).get_trace(x).nodes["z"]["scale"] == scale
    with ppvae.KLWeight(2.0), ppvae.KLWeight(3.0):
        assert poutine.trace(module.guide).get_trace(x).nodes["z"]["scale"] == 6.0
    for bad in (-1.0, math.nan):
        with pytest.raises(ValueError, match="weight must be a finite number >= 0"):
            ppvae.KLWeight(bad)


def test_check_batch():
    assert check_batch((torch.zeros(3, 2), None, torch.zeros(3))) == 3
    with pytest.raises(ValueError, match=r"train must hold tensors of one length, got lengths \[3, 2\]"):
        check_batch((torch.zeros(3), torch.zeros(2)), name="train")
    with pytest.raises(TypeError, match=r"train\[1\] must be a tensor with a leading batch dim, or None, got list"):
        check_batch((torch.zeros(3), [1]), name="train")


def test_sites_without_a_density_are_no_sites():
    def model(x):
        with pyro.plate("data", 10, subsample_size=3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.deterministic("twice", 2 * z)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    trace = poutine.trace(model).get_trace(torch.zeros(3))
    assert list(sites(trace)) == ["z", "x"]
    check_data_plate(trace, 3, where="model")
    with pytest.raises(
        ValueError, match=r"site 'z' of the model lies in 'data' \(size 3, dim -1\). .* takes 3 of 10 data"
    ):
        check_data_plate(trace, 4, where="model")


def test_check_sites():
    def model(auxiliary=False, enumerated=False):
        pyro.sample("z", dist.Bernoulli(0.5), infer={"enumerate": "parallel"} if enumerated else {})
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(()))

    def guide(z=True, u=None):
        if u is not None:
            pyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": u})
        if z:
            pyro.sample("z", dist.Bernoulli(0.5))

    def trace(function, **options):
        return poutine.trace(function).get_trace(**options)

    check_sites(trace(model), trace(guide, u=True))
    check_sites(trace(model, enumerated=True), trace(guide, z=False))
    with pytest.raises(ValueError, match="misses the latent site 'z'"):
        check_sites(trace(model), trace(guide, z=False))
    with pytest.raises(ValueError, match="samples 'u', which is no latent of the model"):
        check_sites(trace(model), trace(guide, u=False))
    with pytest.raises(ValueError, match=r"observes nothing: no site has obs=, its sites are \['z'\]"):
        check_sites(trace(guide), trace(guide))


def test_device_of():
    assert device_of(nn.Linear(1, 1)) == torch.device("cpu")
    assert device_of(nn.Module()) == torch.device("cpu")
    assert device_of(nn.Module(), (None, torch.empty(1, device="meta"))) == torch.device("meta")
    assert device_of(nn.BatchNorm1d(1, affine=False).to("meta")) == torch.device("meta")
