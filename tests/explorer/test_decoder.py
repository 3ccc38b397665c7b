"""Decoders of any pair against the model's own conditionals: what moves, what follows, what stays."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppvae.explorer.decoder import decoders_of
from ppvae.sampling.posterior_draws import posterior_sampler
from tests.explorer.pairs import CLASSES, N, classes, image_cvae, image_vae, pictures
from tests.models.levels import D, hierarchical, top_down
from tests.models.linear_gaussian import LinearGaussian


def decoders(pair, *data):
    with posterior_sampler(pair, data) as posterior:
        return decoders_of(posterior)


def binary(n):
    return torch.bernoulli(torch.full((n, D), 0.5))


def anywhere(decoder, n=5):
    """Values of the inputs that no datum has: other codes, the rest of other data."""
    values = {each.name: each.rows[-n:] for each in decoder.inputs}
    return values | {decoder.latent: torch.randn_like(values[decoder.latent])}


def kinds(decoder):
    return {each.name: each.kind for each in decoder.inputs}


def test_a_vae():
    pair, x = image_vae(), pictures()
    found = decoders(pair, x)
    (decoder,) = found.decoders
    values = anywhere(decoder)
    assert torch.equal(found.x, x)
    assert kinds(decoder) == {"z": "latent", "x": "observed"}
    torch.testing.assert_close(decoder.inputs[0].rows, pair.encode(x).mean.detach())
    torch.testing.assert_close(decoder.means(values), pair.decode(values["z"]).mean.detach())


def test_a_label_that_is_given_is_an_input():
    pair = image_cvae()
    (decoder,) = decoders(pair, pictures(), classes()).decoders
    values = anywhere(decoder) | {"y": torch.tensor([2, 0, 1, 1, 0])}
    assert kinds(decoder)["y"] == "condition"
    assert decoder.inputs[-1].choices == tuple(range(CLASSES))
    torch.testing.assert_close(decoder.means(values), pair.decode(values["z"], values["y"]).mean.detach())


def test_of_two_observed_sites_one_must_be_the_first_argument():
    class Halves(nn.Module):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                for i in range(2):
                    pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=x[:, i])

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x.mean(1), 1.0))

    with pytest.raises(ValueError, match=r"first argument as it is, and none of \['x0', 'x1'\] does"):
        decoders(Halves(), torch.randn(N, 2))


def test_a_discrete_latent_is_one_to_choose():
    pair = LinearGaussian(5, 2).pair()
    (decoder,) = decoders(pair, torch.randn(N, 5)).decoders
    assert {each.name: each.choices for each in decoder.inputs}["y"] == (0, 1, 2)
    values = anywhere(decoder) | {"y": torch.tensor([2, 0, 1, 1, 0])}
    torch.testing.assert_close(decoder.means(values), pair.decode(values["z"], values["y"]).mean.detach())


@pytest.mark.parametrize("make", [hierarchical, top_down])
@pytest.mark.parametrize("skip", [False, True])
def test_levels_below_follow_and_those_above_stay(make, skip):
    pair = make(skip=skip).eval()
    found = decoders(pair, binary(N)).decoders
    names = ["z1", "z2", "z3"]
    assert [decoder.latent for decoder in found] == names
    for i, decoder in enumerate(found):
        assert [name for name, kind in kinds(decoder).items() if kind == "latent"] == [
            names[i],
            *reversed(names[i + 1 :]),
        ]
        values = anywhere(decoder)
        at_and_above = {name: values[name] for name in names[i:]}
        torch.testing.assert_close(decoder.means(values), pair.decode(at_and_above).mean.detach())


def test_the_pair_stays_as_it_was():
    pair, x = image_vae().train(), pictures()
    (decoder,) = decoders(pair, x).decoders
    decoder.means(anywhere(decoder, 2) | {"z": torch.zeros(2, 4)})
    assert pair.training
    assert not any(weight.requires_grad is False for weight in pair.parameters())
