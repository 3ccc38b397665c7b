"""On a GPU: the recorded step against the eager one, and what a recording must notice."""

from functools import partial

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

import ppvae
from ppvae.data import Batches, Binarize
from ppvae.evaluate import elbo, log_marginal
from ppvae.infer import SVI
from tests.compile.compiling import D, assert_same, binary, make_vae, recordings
from tests.compile.test_compiled import CASES

pytestmark = [pytest.mark.inductor, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
assert_same = partial(assert_same, device="cuda")


@pytest.mark.parametrize("case", CASES)
def test_recorded_equals_eager(case):
    make, loss = CASES[case]
    svi = assert_same(make, loss, [(binary(),)])
    assert len(recordings(svi)) == 1


def test_a_short_batch_is_another_recording():
    svi = assert_same(make_vae, Trace_ELBO, [(binary(),), (binary(seed=1),), (binary(5),)])
    assert len(recordings(svi)) == 2


@pytest.mark.parametrize(
    ("optim", "whole"),
    [
        (partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1, fused=True), True),
        (partial(torch.optim.RMSprop, lr=1e-3), True),
        (partial(torch.optim.SGD, lr=1e-3, momentum=0.9), False),
        (pyro.optim.Adam({"lr": 1e-2}), True),
        (pyro.optim.ClippedAdam({"lr": 1e-2}), False),
    ],
    ids=["adamw", "rmsprop", "sgd", "pyro adam", "pyro clipped adam"],
)
def test_optimizers(optim, whole):
    (recording,) = recordings(assert_same(make_vae, Trace_ELBO, [(binary(),)], optim=optim))
    assert (recording._held is not None) == whole


def test_clipping_is_recorded_too():
    assert len(recordings(assert_same(make_vae, Trace_ELBO, [(binary(),)], clip_norm=0.5))) == 1


def set_rate(svi, i):
    if i:
        svi.optimizer.param_groups[0]["lr"] = 1e-2 / i


def test_a_learning_rate_that_changes_at_every_step_is_recorded_once():
    found = []

    def change(svi, i):
        set_rate(svi, i)
        found.append(recordings(svi))

    svi = assert_same(make_vae, Trace_ELBO, [(binary(),)], before_step=change)
    assert found[-1] == recordings(svi)
    assert found[-1][0] is found[-10][0]


@pytest.mark.parametrize(
    "change",
    [
        lambda svi: svi.stepper.load_state_dict(svi.optimizer.state_dict()),
        lambda svi: svi.optimizer.param_groups[0].update(betas=(0.5, 0.9)),
        lambda svi: [p.data.add_(0.1) for p in svi.parameters()],
        lambda svi: [setattr(p, "data", p.data + 0.1) for p in svi.parameters()],
        lambda svi: setattr(svi.stepper, "clip_norm", 0.1),
        lambda svi: torch.manual_seed(7),
    ],
    ids=["state", "option", "values", "memory", "clipping", "seed"],
)
def test_what_changes_between_steps_counts(change):
    svi = assert_same(make_vae, Trace_ELBO, [(binary(),)], before_step=lambda svi, i: change(svi) if i == 10 else None)
    assert len(recordings(svi)) == 1


def test_fit_is_the_same_compiled_and_eager_and_resumes(tmp_path):
    x = torch.rand(200, D, generator=torch.Generator().manual_seed(0))
    options = {"epochs": 6, "lr": lambda epoch: 1e-3 * 0.5**epoch, "kl_weight": lambda epoch: min(1.0, epoch / 4)}
    histories, states = [], []
    for compile in (False, True):
        torch.manual_seed(0)
        pair, batches = make_vae(), Batches(x, batch_size=64, transform=Binarize(), seed=1)
        run = ppvae.fit(pair, batches, x.round(), compile=compile, device="cuda", progress=False, **options)
        histories.append(run.history)
        states.append(pair.state_dict())
    for eager, compiled in zip(*histories, strict=True):
        assert compiled == pytest.approx(eager, rel=1e-4)
    torch.manual_seed(0)
    pair, options["out"] = make_vae(), tmp_path / "run"
    batches = Batches(x, batch_size=64, transform=Binarize(), seed=1)
    for epochs in (2, 6):
        options |= {"epochs": epochs, "resume": epochs == 6, "compile": True, "device": "cuda", "progress": False}
        run = ppvae.fit(pair, batches, x.round(), **options)
    assert run.history[-1] == pytest.approx(histories[1][-1], rel=1e-4)
    for name, value in pair.state_dict().items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-3, atol=1e-4)


def test_likelihoods_are_the_same_compiled_and_eager_and_near_the_cpu():
    torch.manual_seed(0)
    pair, x = make_vae(), binary(40)
    on_cpu = log_marginal(pair, x, num_samples=3000, seed=1)
    pair = pair.cuda()
    eager, compiled = (log_marginal(pair, x.cuda(), num_samples=3000, seed=0, compile=c) for c in (False, True))
    torch.testing.assert_close(compiled.values, eager.values, rtol=1e-4, atol=1e-3)
    error = float((eager.std_error**2 + on_cpu.std_error**2).sum().sqrt()) / len(x)
    assert abs(eager.mean() - on_cpu.mean()) < 4 * error  # about 0.06 nats: the draws are others
    assert elbo(pair, x.cuda(), num_samples=100).mean() < eager.mean()


def test_the_global_random_state_of_the_gpu_is_left_alone():
    torch.cuda.manual_seed(3)
    before = torch.cuda.get_rng_state()
    ppvae.fit(make_vae(), binary(20), epochs=2, device="cuda", progress=False)
    log_marginal(make_vae().cuda(), binary(20).cuda(), num_samples=10)
    assert torch.equal(before, torch.cuda.get_rng_state())


def test_autocast_is_recorded():
    torch.manual_seed(0)
    pair, x = make_vae().cuda(), binary().cuda()
    optim = partial(torch.optim.Adam, lr=1e-2, fused=True)
    svi = SVI(pair.model, pair.guide, optim, Trace_ELBO(), compile=True, autocast=torch.bfloat16)
    losses = [svi.step(x) for _ in range(200)]
    assert len(recordings(svi)) == 1
    assert sum(losses[-20:]) < sum(losses[:20])
    assert {p.dtype for p in pair.parameters()} == {torch.float32}
