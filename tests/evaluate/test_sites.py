import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

import ppvae
from ppvae.evaluate import Annealed, Importance
from ppvae.evaluate.sites import by_datum, elements, in_blocks, inner_plates, mask_of, observed_value, once
from ppvae.sampling.posterior_draws import posterior_sampler
from tests.reference import linear_gaussian, masked_series


class TwoPlates(nn.Module):
    """Two plates inside the data plate; a latent in the outer of them alone, masks of each kind."""

    keep = torch.tensor([True, False, True])

    def run(self, x, obs):
        with pyro.plate("data", x.shape[-1]):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            with pyro.plate("rows", 2, dim=-3):
                w = pyro.sample("w", dist.Normal(z.unsqueeze(-1) * torch.zeros(2), 1.0).to_event(1))
                with pyro.plate("columns", 3, dim=-2), poutine.mask(mask=self.keep.unsqueeze(-1)):
                    if obs is not None:
                        likelihood = dist.Normal(w.sum(-1), 1.0).mask(x > 0)
                        pyro.sample("x", likelihood, obs=obs)

    def model(self, x):
        x = x.permute(1, 2, 0)
        self.run(x, x)

    def guide(self, x):
        self.run(x.permute(1, 2, 0), None)


def test_values_come_by_datum_without_the_places_of_foreign_plates():
    torch.manual_seed(0)
    x = torch.randn(7, 2, 3)
    with posterior_sampler(TwoPlates(), (x,)) as c:
        plates = inner_plates(c)
        assert plates == {"z": {}, "w": {-3: "rows"}, "x": {-3: "rows", -2: "columns"}}
        latents, _ = c.draw(4)
        assert by_datum(latents["z"], plates["z"]).shape == (4, 7)
        assert by_datum(latents["w"], plates["w"]).shape == (4, 7, 2, 2)
        assert by_datum(c.predict(latents)["x"], plates["x"]).shape == (4, 7, 2, 3)
        site = once(c)["x"]
        assert torch.equal(observed_value(site, plates["x"]), x)
        assert torch.equal(mask_of(site, plates["x"]), (x > 0) & TwoPlates.keep)


def test_a_plate_of_size_one_stays():
    reference = masked_series()
    x, length = reference.data
    with posterior_sampler(reference.pair, (x[:, :1], length.clamp(max=1))) as c:
        plates = inner_plates(c)
        latents, _ = c.draw(3)
        assert by_datum(latents["w"], plates["w"]).shape == (3, len(x), 1)
        assert by_datum(latents["z"], plates["z"]).shape == (3, len(x))


def test_masks_of_a_site_with_event_dims():
    class Masked(nn.Module):
        def model(self, x):
            with pyro.plate("data", len(x)), poutine.mask(mask=x[:, 0] > 0):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                inside = dist.Normal(z, 1.0).mask(torch.tensor([True, False])).to_event(1)
                pyro.sample("x", inside, obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)), poutine.mask(mask=x[:, 0] > 0):
                pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    x = torch.tensor([[1.0, 2.0], [-1.0, 2.0], [3.0, -1.0]])
    with posterior_sampler(Masked(), (x,)) as c:
        sites = once(c)
        positive = torch.tensor([True, False, True]).unsqueeze(-1)
        assert torch.equal(mask_of(sites["z"], {}), positive.expand(3, 2))
        assert torch.equal(mask_of(sites["x"], {}), positive & torch.tensor([True, False]))


@pytest.mark.parametrize("rows", [1, 5, 30, 1000])
def test_blocks_are_all_samples_of_all_data_in_order(rows):
    reference = linear_gaussian()
    (x,) = reference.data
    with posterior_sampler(reference.pair, (x,)) as c:
        small = replace(c, sampler=replace(c.sampler, rows=rows))
        sizes = []

        def draw(part, s):
            sizes.append(s * len(part))
            return {"x": part.data[0].expand(s, -1)}

        total = torch.cat([block["x"] for block in in_blocks(small, 7, draw)])
    assert torch.equal(total, x.expand(7, -1))
    assert max(sizes) <= rows


def test_names_of_elements():
    assert elements("z", ()) == ["z"]
    assert elements("z", (2,)) == ["z[0]", "z[1]"]
    assert elements("w", (2, 2)) == ["w[0,0]", "w[0,1]", "w[1,0]", "w[1,1]"]


def test_bits_per_dimension_count_what_is_observed():
    """Not the first argument: here a context, then two observed sites; one that is given does not count."""

    def model(size, x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 1.0).expand((*z.shape, 4)).to_event(1), obs=x)
            pyro.sample("y", dist.Normal(size[:, None], 1.0).expand((len(size), 6)).to_event(1), obs=y)

    def guide(size, x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    pair, data = ppvae.Pair(model, guide), (torch.ones(7), torch.zeros(7, 4), torch.zeros(7, 6))
    for method in (Importance(num_samples=3), Annealed(num_chains=3, num_temperatures=5)):
        both = ppvae.log_marginal(pair, *data, method=method)
        assert both.num_dims == 10
        assert both.bits_per_dim() == pytest.approx(-both.mean() / (10 * math.log(2)))
        assert ppvae.log_marginal(pair, *data, method=method, given=["y"]).num_dims == 4


def test_there_are_none_where_densities_and_probabilities_are_added():
    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("y", dist.Bernoulli(0.3).expand([len(y)]), obs=y)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    both = ppvae.log_marginal(ppvae.Pair(model, guide), torch.zeros(5), torch.zeros(5), num_samples=3)
    assert math.isnan(both.num_dims)
    assert "nats (densities and probabilities together), mean" in both.summary()
    alone = ppvae.log_marginal(ppvae.Pair(model, guide), torch.zeros(5), torch.zeros(5), num_samples=3, given=["y"])
    assert alone.num_dims == 1


@pytest.mark.parametrize("where", ["poutine", "distribution"])
def test_bits_per_dimension_leave_out_what_is_masked(where):
    """Of series of other lengths, in an inner plate or in the event, the more of them the later."""

    def model(x, length):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if where == "poutine":
                with pyro.plate("time", 4, dim=-2), poutine.mask(mask=torch.arange(4)[:, None] < length):
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)
            else:
                seen = torch.arange(4) < length[:, None]
                pyro.sample("x", dist.Normal(z[..., None], 1.0).expand((*z.shape, 4)).mask(seen).to_event(1), obs=x)

    def guide(x, length):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    length = torch.cat([torch.full((200,), 4), torch.full((300,), 1)])
    estimate = ppvae.log_marginal(ppvae.Pair(model, guide), torch.zeros(500, 4), length, num_samples=3)
    assert estimate.num_dims == (200 * 4 + 300) / 500
    assert estimate.bits_per_dim() == pytest.approx(-estimate.mean() / (2.2 * math.log(2)))
