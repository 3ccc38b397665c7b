"""Whatever holds the data, training and evaluation give the numbers that they give on the same values in tensors."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import ppvae
from ppvae import evaluate
from ppvae.data import Batches, IterableSource, JointBatches
from ppvae.inputs import as_tensor
from ppvae.models import PPCA

N, D = 20, 4


def x():
    return torch.randn(N, D, generator=torch.Generator().manual_seed(0))


def ppca():
    torch.manual_seed(0)
    return PPCA(D, 2, guide="amortized")


class Rows(Dataset):
    """A data set of one's own, datum by datum."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        if i >= N:
            raise IndexError(i)
        return x()[i]


class Stream(IterableDataset):
    """One that can only be passed."""

    def __iter__(self):
        return iter(x())


def as_array(rows):
    return np.stack([row.numpy() for row in rows])


class Backwards:
    """Something that NumPy makes an array of."""

    def __array__(self, dtype=None, copy=None):
        return x().flip(0).numpy()[::-1]


def read_only():
    array = x().numpy().copy()
    array.flags.writeable = False
    return array


HOLDERS = {
    "array": lambda: x().numpy(),
    "read-only array": read_only,
    "big-endian array": lambda: x().numpy().astype(">f4"),
    "array in Fortran's order": lambda: np.asfortranarray(x().numpy()),
    "array with nothing masked": lambda: np.ma.masked_invalid(x().numpy()),
    "frame": lambda: pd.DataFrame(x().numpy(), columns=list("abcd")),
    "frame of parts": lambda: pd.DataFrame(x().numpy(), index=range(3, 3 + N)).iloc[:],
    "object with an array": Backwards,
    "data set of tensors": lambda: TensorDataset(x()),
    "data set": Rows,
    "stream": Stream,
    "loader": lambda: DataLoader(x(), batch_size=5),
    "loader of arrays": lambda: DataLoader(
        Rows(), batch_size=5, collate_fn=lambda rows: np.stack([r.numpy() for r in rows])
    ),
    "list of minibatches": lambda: [x()[:5], (x()[5:],)],
    "batches": lambda: Batches(x(), batch_size=5, shuffle=False),
    "columns of a loader": lambda: IterableSource(DataLoader(TensorDataset(torch.zeros(N), x()), 5), columns=(1,)),
    "columns of dicts": lambda: IterableSource([{"y": torch.zeros(5), "x": x()[:5]}, {"x": x()[5:]}], columns=("x",)),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_an_evaluator_gives_the_numbers_of_the_tensor(holder):
    given = ppvae.elbo(ppca(), HOLDERS[holder](), num_samples=2).values
    assert torch.equal(given, ppvae.elbo(ppca(), x(), num_samples=2).values)


EVALUATORS = {
    "elbo": lambda pair, x: ppvae.elbo(pair, x, num_samples=2),
    "log_marginal": lambda pair, x: ppvae.log_marginal(pair, x, num_samples=2),
    "annealed": lambda pair, x: ppvae.log_marginal(pair, x, method=evaluate.Annealed(num_chains=2, num_temperatures=2)),
    "adaptive": lambda pair, x: ppvae.log_marginal(pair, x, method=evaluate.Adaptive(num_samples=2)),
    "auto": lambda pair, x: ppvae.log_marginal(pair, x, method="auto", num_samples=2),
    "expected_log_likelihood": lambda pair, x: evaluate.expected_log_likelihood(pair, x),
    "anomaly_scores": lambda pair, x: evaluate.anomaly_scores(pair, x, num_samples=2),
    "posterior_predictive": lambda pair, x: evaluate.posterior_predictive(pair, x, num_samples=2),
    "ppc": lambda pair, x: evaluate.ppc(pair, x, statistics={"mean": lambda x: x.mean()}, num_samples=2),
    "latent_report": lambda pair, x: evaluate.latent_report(pair, x, num_samples=2),
    "disentanglement": lambda pair, x: evaluate.disentanglement(
        pair, x, factors=torch.stack([torch.arange(N) % 2, torch.arange(N) // 2 % 2], 1), num_bins=2, num_repeats=2
    ),
    "inference_gap": lambda pair, x: evaluate.inference_gap(pair, x, num_samples=2, num_steps=2),
    "run_sbc": lambda pair, x: evaluate.run_sbc(pair, x, num_samples=9),
    "encode": lambda pair, x: evaluate.encode(pair, x),
    "reconstruct": lambda pair, x: evaluate.reconstruct(pair, x),
    "sample_quality": lambda pair, x: evaluate.sample_quality(pair, x, features=torch.nn.Identity()),
    "label_posterior": None,  # takes its one tensor by name
}


@pytest.mark.parametrize("name", [name for name, call in EVALUATORS.items() if call])
def test_every_evaluator_takes_an_array_and_a_loader(name):
    expected = repr(EVALUATORS[name](ppca(), x()))
    for holder in ("array", "loader"):
        assert repr(EVALUATORS[name](ppca(), HOLDERS[holder]())) == expected


def test_the_tables_of_evaluators_is_complete():
    takers = {name for name in evaluate.__all__ if hasattr(getattr(evaluate, name), "__wrapped__")}
    assert takers - EVALUATORS.keys() == {"compare_with_nuts", "condition", "impute", "log_evidence"}


def losses(train, **options):
    run = ppvae.fit(ppca(), train, train, epochs=2, batch_size=5, seed=3, progress=False, **options)
    return [(row["loss"], row["valid_elbo"]) for row in run.history]


@pytest.mark.parametrize("holder", ["array", "frame", "read-only array", "data set of tensors"])
def test_training_gives_the_numbers_of_the_tensor(holder):
    assert losses(HOLDERS[holder]()) == losses(x())


def test_training_takes_a_data_set_in_an_order_of_each_epoch_that_the_seed_gives():
    assert losses(Rows()) == losses(Rows())
    assert losses(Rows()) != losses(DataLoader(Rows(), batch_size=5))


def test_arguments_of_several_kinds_go_together():
    pair = ppca()
    two = ppvae.Pair(lambda x, y: pair.model(x), lambda x, y: pair.guide(x), [pair])
    y = np.arange(N)
    assert torch.equal(ppvae.elbo(two, x(), y).values, ppvae.elbo(two, x().numpy(), torch.from_numpy(y)).values)


def test_a_cast_is_said_and_no_cast_is_not():
    with pytest.warns(UserWarning, match=r"data\[0\] holds float64 numbers, cast to torch.float32"):
        given = ppvae.elbo(ppca(), x().double().numpy()).values
    assert torch.equal(given, ppvae.elbo(ppca(), x()).values)
    with warnings.catch_warnings(action="error"):
        ppvae.elbo(ppca().double(), x().double().numpy())
        assert as_tensor("x", np.arange(3), torch.float32).dtype == torch.int64


def test_memory_is_shared_where_it_can_be():
    array = np.zeros((3, 2), np.float32)
    assert as_tensor("x", array, torch.float32).data_ptr() == array.ctypes.data


MIXED = pd.DataFrame({"age": [1.0, 2.0], "sex": ["a", "b"], "when": pd.to_datetime(["2020", "2021"])})
BAD = {
    "text columns": (
        lambda: MIXED,
        TypeError,
        r"data\[0\] is a data frame .* numbers: 'sex' \(object\), 'when' \(datetime",
    ),
    "masked": (
        lambda: np.ma.masked_greater(x().numpy(), 1),
        TypeError,
        r"data\[0\] is a masked array with \d+ values",
    ),
    "objects": (lambda: np.array([None, 1.0]), TypeError, r"data\[0\] must hold numbers, .* of dtype object"),
    "complex": (lambda: x().numpy() + 1j, TypeError, r"data\[0\] must hold numbers, got an array of dtype complex64"),
    "labels": (
        lambda: DataLoader(TensorDataset(x(), x()), 5),
        TypeError,
        r"takes 1 \(x\), got 2; .*columns=\(0,\)\)",
    ),
    "dicts": (lambda: [{"x": x()}], TypeError, r"data gives minibatches that are dicts, of \['x'\]"),
    "several sets": (lambda: JointBatches(Batches(x(), batch_size=2)), TypeError, "one data set, got JointBatches"),
    "empty": (list, ValueError, "data is empty: it gives no minibatch"),
    "two forms": (lambda: [x(), (x(), x())], ValueError, "of one form, got 1 and 2 parts"),
    "two widths": (lambda: [x(), x()[:, :2]], ValueError, r"data\[0\] has data of several shapes .*\(2,\), \(4,\)"),
    "numbers": (lambda: [1.0, 2.0], TypeError, "must give minibatches that are tensors .* got float"),
    "no column": (lambda: IterableSource([(x(),)], columns=(2,)), ValueError, r"columns: .* has no 2, it has \[0\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_none_of_these_is_an_error_that_names_it(case):
    data, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        ppvae.elbo(ppca(), data())


@pytest.mark.parametrize("columns", ["x", 0, (), (1.5,), (True,)])
def test_columns_are_places_or_names(columns):
    with pytest.raises(TypeError, match="columns must be a list of places or names"):
        IterableSource([x()], columns=columns)
