"""A minibatch in parts, one after another: one step, that of the whole minibatch."""

import copy
from functools import partial

import pytest
import torch
from pyro.infer import RenyiELBO

import ppvae
from ppvae.compile.compiled import Compiled
from ppvae.data import Batches, JointBatches
from ppvae.distributions import Codebook, CodePosterior, ConditionalBernoulli, UniformCategorical
from ppvae.infer import NonFiniteError, RunFolder
from ppvae.infer.optim import Stepper
from ppvae.models import VAE, VQVAE
from ppvae.nn import MLP
from ppvae.objectives import MMD, WAE, FreeBitsELBO
from tests.group import values
from tests.infer.pairs import ADAM, D, FixedNoise, binary, noise, same, small_vae, state, summary
from tests.infer.test_processes import Breaks, Counting, Shared

N = 67
"""Data of which minibatches of 16 leave three, fewer than some of the numbers of parts."""


def trained(kind, batch_size, compile, accumulate, **options):
    """A training of a kind, with noise that is given."""
    x, eps = binary(N), noise()
    options = {"epochs": 2, "optim": ADAM, "compile": compile, "progress": False, "clip_norm": 1.0} | options
    if kind == "plain":
        pair, data = FixedNoise(), Batches(x, eps, batch_size=batch_size, seed=3)
    elif kind == "joint":
        labelled = Batches(x[:17], eps[:17], x[:17, 0], batch_size=8, seed=4, drop_last=True)
        unlabelled = Batches(x[17:], eps[17:], batch_size=batch_size, seed=3, drop_last=True)
        pair, data = FixedNoise(), JointBatches(labelled, unlabelled)
    else:
        pair, data = Shared(), Batches(x, batch_size=batch_size, seed=3)
    return summary(pair, ppvae.fit(pair, data, accumulate=accumulate, **options))


def check_close(found, expected):
    (weights, history), (others, rows) = found, expected
    for name, value in others.items():
        assert torch.allclose(weights[name], value, atol=2e-5), name
    for row, own in zip(history, rows, strict=True):
        assert row.keys() == own.keys()
        assert all(row[name] == pytest.approx(own[name], rel=1e-5, abs=1e-5) for name in own)


KINDS = [
    ("plain", 16, False, 2),
    ("plain", 16, False, 5),  # parts of three and four data; of the last minibatch's three, two are empty
    ("plain", 16, True, 5),
    ("plain", 66, True, 3),  # a last minibatch of one
    ("joint", 10, False, 4),
    ("shared", 16, False, 5),  # a plate scales the data
    ("shared", 16, True, 3),
]


@pytest.mark.parametrize(("kind", "batch_size", "compile", "accumulate"), KINDS)
def test_as_the_whole_minibatch(kind, batch_size, compile, accumulate):
    check_close(trained(kind, batch_size, compile, accumulate), trained(kind, batch_size, False, 1))


@pytest.mark.parametrize(
    ("kind", "batch_size", "compile"),
    [("plain", 16, False), ("shared", 16, False), ("joint", 10, False), ("plain", 16, True)],
)
def test_by_two_processes(group, kind, batch_size, compile):
    """Processes divide a minibatch, and each its rows: eight parts, of which the last minibatch fills three."""
    accumulate = 2 if kind == "joint" else 4
    found = values(group(2, trained, kind, batch_size, compile, accumulate))
    assert same(found[0], found[1])
    check_close(found[0], trained(kind, batch_size, False, 1))


class Sizes(FixedNoise):
    """Notes on how many data it runs where a gradient will be taken."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def guide(self, x, eps, y=None):
        if torch.is_grad_enabled():
            self.seen.append(len(x))
        super().guide(x, eps, y)


def test_no_gradient_is_of_more_than_a_part(monkeypatch):
    """Of 16 and 3 data in 4 parts: all parts but the last minibatch's are of four, and never is one of more."""
    pair, steps = Sizes(), []
    take_step = Stepper._take_step
    monkeypatch.setattr(Stepper, "_take_step", lambda *args: (steps.append(1), take_step(*args)))
    data = Batches(binary(N), noise(), batch_size=16, seed=3)
    ppvae.fit(pair, data, epochs=1, accumulate=4, compile=False, progress=False)
    assert pair.seen == [4] * 16 + [1] * 4
    assert len(steps) == 5


def test_two_graphs_of_gradients_serve_the_parts(monkeypatch):
    """Sixteen data in five parts have two sizes; no graph holds the optimizer."""
    made, steps = [], []
    init, take_step = Compiled.__init__, Stepper._take_step
    monkeypatch.setattr(
        Compiled, "__init__", lambda self, *args, **options: (made.append(self), init(self, *args, **options))[1]
    )
    monkeypatch.setattr(Stepper, "_take_step", lambda *args: (steps.append(1), take_step(*args)))
    pair, data = FixedNoise(), Batches(binary(64), noise(64), batch_size=16, seed=3)
    ppvae.fit(pair, data, epochs=3, accumulate=5, compile=True, progress=False)
    (compiled,) = [c for c in made if c.num_graphs]
    assert compiled.num_graphs == 2
    assert len(steps) == 12


def test_every_part_draws_its_own_noise():
    drawn = []

    class Recording(VAE):
        def guide(self, x):
            super().guide(x)
            drawn.append(torch.randn(3) if torch.is_grad_enabled() else None)

    def run():
        drawn.clear()
        start = small_vae()
        pair = Recording(start.p_z, start.p_x_given_z, start.q_z_given_x)
        rows = ppvae.fit(pair, binary(), batch_size=10, epochs=1, accumulate=2, compile=False, progress=False).history
        return torch.stack([t for t in drawn if t is not None]), rows

    (first, history), (again, repeated) = run(), run()
    assert len(first.unique(dim=0)) == 10
    assert torch.equal(first, again)
    assert history == repeated


@pytest.mark.parametrize("compile", [False, True])
def test_one_part_sums_nothing(monkeypatch, compile):
    expected = trained("plain", 16, compile, 1)
    monkeypatch.setattr(Stepper, "_summed", None)
    assert same(trained("plain", 16, compile, 1), expected)


def test_a_nan_is_named_once():
    x = binary(64)
    x[45] = 9.0  # in the last part of the third minibatch
    pair = Breaks()
    data = Batches(x, batch_size=16, shuffle=False)
    with pytest.raises(NonFiniteError) as caught:
        ppvae.fit(pair, data, epochs=2, accumulate=4, compile=False, progress=False)
    assert "'f' in the model is not finite in 1 of 4 elements, in epoch 1, step 3." in str(caught.value)
    kept = Breaks()
    ppvae.fit(
        kept, Batches(x[:32], batch_size=16, shuffle=False), epochs=1, accumulate=4, compile=False, progress=False
    )
    assert same(state(pair), state(kept))  # two steps, and nothing of the third


def test_a_resumed_run_has_as_many_parts(tmp_path):
    fit = partial(trained, "plain", 16, False, out=tmp_path / "run")
    fit(3, epochs=1)
    assert RunFolder(tmp_path / "run").read_config()["fit"]["accumulate"] == 3
    with pytest.raises(ValueError, match="accumulate was 3, is 2"):
        fit(2, resume=True)
    assert same(fit(3, resume=True), trained("plain", 16, False, 3))


def vq(learned):
    codes = CodePosterior(MLP(D, (8,), (3, 4)), Codebook(8, 4, learned=learned))
    return VQVAE(UniformCategorical(8, 3), ConditionalBernoulli(MLP((3, 4), (8,), D)), codes)


def test_a_codebook_of_the_gradient_is_trained():
    options = {"batch_size": 16, "epochs": 1, "compile": False, "progress": False}
    torch.manual_seed(0)
    pair = vq("gradient")
    other = copy.deepcopy(pair)
    ppvae.fit(pair, binary(48), **options)
    ppvae.fit(other, binary(48), accumulate=3, **options)
    assert all(torch.allclose(other.state_dict()[name], value, atol=1e-5) for name, value in state(pair).items())


REFUSED = {
    "batch norm": (lambda: small_vae(norm="batch"), {}, "pair has batch norm, .*train with accumulate=1"),
    "mmd": (small_vae, {"loss": WAE(MMD(), weight=1.0)}, "loss WAE is no sum .* with accumulate=2 of its parts: train"),
    "free bits": (small_vae, {"loss": FreeBitsELBO(0.1)}, "loss FreeBitsELBO is no sum over the data"),
    "renyi": (small_vae, {"loss": RenyiELBO(alpha=0.5, num_particles=2)}, "loss RenyiELBO is no sum over the data"),
    "global": (lambda: Shared(scaled=False), {}, "'mean' of the .* data plate: .* or train with accumulate=1"),
    "few": (small_vae, {"accumulate": 17}, "batch_size must be at least 17 with accumulate=17, got 16"),
    "none": (small_vae, {"accumulate": 0}, "accumulate must be a whole number >= 1, got 0"),
    "counts": (Counting, {}, "mean is written from the data in training, .*or train with accumulate=1"),
    "codebook": (lambda: vq("average"), {}, "codebook.vectors is written from the data in training"),
}


@pytest.mark.filterwarnings("ignore:the latent 'mean' lies in no plate")
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_cut_is_refused(case):
    make, options, said = REFUSED[case]
    pair = make()
    before = state(pair)
    options = {"batch_size": 16, "accumulate": 2, "compile": False, "progress": False} | options
    with pytest.raises(ValueError, match=said):
        ppvae.fit(pair, binary(), **options)
    assert same(state(pair), before)


def test_a_set_with_fewer_data_than_parts_is_refused():
    data = JointBatches(Batches(binary(), batch_size=16), Batches(binary(5), batch_size=3))
    with pytest.raises(ValueError, match="at least 4 with accumulate=4, got 3"):
        ppvae.fit(small_vae(), data, accumulate=4, progress=False)
    data = JointBatches(Batches(binary(), batch_size=16), Batches(binary(5), batch_size=4))
    with pytest.raises(
        ValueError, match=r"sets.1. has a minibatch of 1 data, fewer than the 4 parts that it has with accumulate=4"
    ):
        ppvae.fit(small_vae(), data, accumulate=4, compile=False, progress=False)
