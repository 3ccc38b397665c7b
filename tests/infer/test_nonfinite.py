import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions.transforms import AffineTransform, SigmoidTransform
from torch.utils.data import DataLoader, TensorDataset

import ppvae
from ppvae.data import Batches
from ppvae.infer import NonFiniteError, RunFolder
from ppvae.infer.nonfinite import all_finite
from ppvae.infer.trainer import Trainer
from tests.infer.pairs import same, state

N, BATCH = 24, 4  # six steps an epoch
THREE_SIGMOIDS = [SigmoidTransform(), AffineTransform(0.0, 3.0)]


class Fragile(nn.Module):
    """A pair with one fault that shows in training; `after` is the first pass with gradients that has it."""

    def __init__(self, fault=None, after=0):
        super().__init__()
        self.fault, self.after, self.passes, self.seen = fault, after, 0, []
        self.loc, self.log_scale = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(0.0))
        self.other = nn.Parameter(torch.tensor(1.0))
        self.norm = nn.BatchNorm1d(1)

    def now(self):
        return self.fault if torch.is_grad_enabled() and self.passes > self.after else None

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            scale = 1.0 + torch.zeros_like(z)
            if self.now() == "nan scale":
                scale = (x - 1e9).log()
            if self.now() == "steep":  # sqrt at 0: a finite value, and a gradient of 0 · inf
                scale = 1.0 + (0.0 * self.other).abs().sqrt()
            if self.now() == "huge":
                z = z + 1e38 * (self.other - self.other.detach())  # nothing, with a gradient that just fits
            if self.now() == "infinite likelihood":
                z = z + torch.inf
            if self.now() == "batch":
                z = self.norm((z + x.log())[:, None])[:, 0]
            pyro.sample("x", dist.Normal(z, scale * self.other.abs()), obs=x.abs())

    def guide(self, x):
        self.passes += torch.is_grad_enabled()
        if torch.is_grad_enabled():
            self.seen.append(state(self))
        with pyro.plate("data", len(x)):
            scale = self.log_scale.exp()
            if self.now() == "infinite KL":
                scale = scale * 1e30
            if self.now() == "nan value":
                scale = scale * (x - 1e9).sqrt()
            pyro.sample("z", dist.Normal(self.loc * x.abs(), scale))


def data():
    return torch.linspace(0.1, 2.0, N)


CASES = [
    ("nan scale", "log-probability of site 'x' in the model is not finite in 4 of 4"),
    ("infinite likelihood", "log-probability of site 'x' in the model is not finite in 4 of 4"),
    ("nan value", "value of site 'z' in the guide is not finite in 4 of 4"),
    ("infinite KL", "log-probability of site 'z' in the guide is not finite in 4 of 4"),
    ("steep", "gradient of parameter 'other' is not finite in 1 of 1"),
]


def check_stop(pair, error, step_of_run, message):
    epoch, step = divmod(step_of_run, N // BATCH)
    assert message in str(error.value)
    assert f"in epoch {epoch + 1}, step {step + 1}. The pair holds the weights before that step" in str(error.value)
    assert all(value.isfinite().all() for value in pair.state_dict().values())
    assert same(state(pair), pair.seen[step_of_run])  # what the failing step began with


@pytest.mark.parametrize("step", [0, 3, 5, 8])
@pytest.mark.parametrize(("fault", "message"), CASES)
def test_the_first_fault_is_named(fault, message, step, tmp_path):
    pair = Fragile(fault, after=step)
    with pytest.raises(NonFiniteError) as error:
        train(pair, out=tmp_path / "run")
    check_stop(pair, error, step, message)
    folder = RunFolder(tmp_path / "run")
    assert folder.last.exists() == folder.model.exists() == (step >= 6)
    if step >= 6:
        assert f"the last checkpoint is {folder.last}" in str(error.value)
        weights = folder.weights()
        assert same(weights, pair.seen[6])
        assert len(folder.read_history()) == 1


def train(pair, train=None, **options):
    """Trains; a replay counts the passes anew, so that it meets the fault where a fault of the data would be."""
    restore = Trainer.restore

    def rewinding(self, state, *, source):
        pair.passes = state["progress"]["epoch"] * (N // BATCH) + state["progress"]["step"]
        restore(self, state, source=source)

    train = Batches(data(), batch_size=BATCH, shuffle=False) if train is None else train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "restore", rewinding)
        ppvae.fit(pair, train, **{"epochs": 3, "progress": False, "lr": 1e-3, **options})


def test_a_parameter_that_a_finite_gradient_overflows():
    pair = Fragile("huge")
    with pytest.raises(NonFiniteError) as error:
        train(pair, optim=torch.optim.SGD, lr=100.0)
    check_stop(pair, error, 0, "the step makes parameter 'other' not finite in 1 of 1")


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_poisoned_datum_of_a_loader(shuffle):
    x = data()
    x[17] = torch.nan
    loader = DataLoader(TensorDataset(x), batch_size=BATCH, shuffle=shuffle)
    pair = Fragile()
    if shuffle:  # the order that the seed gives
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            order = [bool(batch.isnan().any()) for (batch,) in loader]
        step = order.index(True)
    else:
        step = 17 // BATCH
    with pytest.raises(NonFiniteError) as error:
        ppvae.fit(pair, loader, epochs=3, progress=False, seed=5)
    check_stop(pair, error, step, "value of site 'z' in the guide is not finite in 1 of 4")


def test_statistics_that_the_faulty_batch_spoiled_come_back():
    pair, x = Fragile("batch", after=2), data()
    x[13] = -1.0  # the log of it
    with pytest.raises(NonFiniteError, match="log-probability of site 'x'"):
        train(pair, Batches(x, batch_size=BATCH, shuffle=False))
    assert pair.norm.running_mean.isfinite().all()
    assert pair.norm.num_batches_tracked == 1


@pytest.mark.parametrize("loss", [Trace_ELBO(num_particles=2), TraceMeanField_ELBO()], ids=type)
def test_other_objectives(loss):
    x = data()
    x[13] = torch.nan
    with pytest.raises(NonFiniteError, match=r"value of site 'z' in the guide .* in epoch 1, step 4"):
        train(Fragile(), [(batch,) for batch in x.split(BATCH)], loss=loss)


def test_a_function_as_loss_is_named_by_its_terms():
    pair, calls = Fragile(), []

    def loss(model, guide, x):
        calls.append(x)
        bad = x[0] == data()[8]
        return Trace_ELBO().differentiable_loss(model, guide, x) + (torch.inf if bad else 0.0)

    with pytest.raises(NonFiniteError, match="the loss is not finite: loss = inf, in epoch 1, step 3"):
        ppvae.fit(pair, Batches(data(), batch_size=BATCH, shuffle=False), loss=loss, epochs=1, progress=False)
    assert same(state(pair), pair.seen[3])  # a look at it comes first


def test_what_a_replay_does_not_meet_again_is_said():
    class Once(Fragile):
        def now(self):
            return "nan scale" if torch.is_grad_enabled() and self.passes == 4 else None

    pair = Once()
    with pytest.raises(NonFiniteError, match="not finite in epoch 1, step 4, but all are in a replay"):
        ppvae.fit(pair, Batches(data(), batch_size=BATCH, shuffle=False), epochs=1, progress=False)
    assert all(value.isfinite().all() for value in pair.state_dict().values())


def test_a_fault_in_validation_only(tmp_path):
    class Valid(Fragile):
        def model(self, x):
            super().model(x * (1.0 if self.training or len(x) != 7 or self.passes < 12 else torch.nan))

    pair = Valid()
    with pytest.raises(NonFiniteError, match=r"validation ELBO is nan after epoch 2: log p\(x\|z\) = nan, kl_z = "):
        ppvae.fit(pair, Batches(data(), batch_size=BATCH), data()[:7], epochs=3, progress=False, out=tmp_path / "run")
    assert len(RunFolder(tmp_path / "run").read_history()) == 1


def test_all_finite():
    good = [torch.ones(3), torch.zeros(0), torch.full((2,), 1e38), torch.tensor(-2.0, dtype=torch.float64)]
    assert all_finite(good)
    assert all_finite([])
    for bad in (torch.nan, torch.inf, -torch.inf):
        assert not all_finite([*good, torch.tensor([0.0, bad])])


class Threshold(nn.Module):
    """x ~ Pareto(t, 2), whose formula goes on below the threshold t, where no x has a density, and grows with t."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(-6.0))

    def model(self, x):
        with pyro.plate("data", len(x)):
            t = pyro.sample("t", dist.Uniform(0.0, 3.0))
            pyro.sample("x", dist.Pareto(t, 2.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("t", dist.TransformedDistribution(dist.Normal(self.loc + 0 * x, 0.5), THREE_SIGMOIDS))


@pytest.mark.parametrize("compile", [False, True])
def test_a_latent_that_moves_the_support_past_the_data_stops_training(compile):
    x = torch.linspace(0.5, 1.5, 8)
    with pytest.raises(ValueError, match="log_prob at site 'x'"):
        ppvae.fit(Threshold(), x, epochs=60, batch_size=8, lr=0.5, progress=False, compile=compile)
