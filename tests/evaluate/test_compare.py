import json
import math

import pytest
import torch

import ppvae
from ppvae.evaluate import compare, comparison_table
from ppvae.evaluate.estimates import mean_over_runs
from tests.reference import linear_gaussian

A, B, C = (
    torch.tensor([-90.0, -110.0, -100.0]),
    torch.tensor([-88.0, -109.0, -100.0]),
    torch.tensor([-91.0, -111, -101]),
)


def test_differences_are_paired():
    rows = compare({"a": A, "b": B, "c": C})
    assert list(rows) == ["a", "b", "c"]
    assert rows["a"] == {"mean": {"mean": -100.0, "std_error": pytest.approx(10 / math.sqrt(3))}}
    assert rows["b"]["mean"] == {"mean": -99.0, "std_error": pytest.approx(math.sqrt(111 / 3))}
    assert rows["b"]["difference"] == {"mean": 1.0, "std_error": pytest.approx(1 / math.sqrt(3))}
    assert rows["c"]["difference"] == {"mean": -1.0, "std_error": 0.0}
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_estimates_and_their_values_are_compared_alike():
    reference = linear_gaussian()
    estimate = ppvae.log_marginal(reference.pair, *reference.data, num_samples=50)
    rows = compare({"exact": reference.log_prob, "estimate": estimate})
    assert rows == compare({"exact": reference.log_prob, "estimate": estimate.values})
    assert rows["estimate"]["difference"]["mean"] == pytest.approx(float((estimate.values - reference.log_prob).mean()))
    assert rows["estimate"]["difference"]["std_error"] < 0.2 * rows["estimate"]["mean"]["std_error"]


def test_runs_of_several_seeds_are_paired_by_seed_and_datum():
    effect = torch.tensor([[0.4], [0.6]]).double()  # of the seed alone: data say nothing of the difference's error
    first = torch.stack([A, A - 3]).double()
    rows = compare({"a": first, "b": first + effect})
    assert rows["b"]["difference"] == {"mean": pytest.approx(0.5), "std_error": pytest.approx(0.1)}
    assert compare({"a": A[None], "b": B[None]}) == compare({"a": A, "b": B})
    with pytest.raises(ValueError, match="got 2 × 3 of 'a', 3 of 'b'"):
        compare({"a": first, "b": B})


def test_the_error_over_runs_and_data_is_that_of_many_repetitions():
    """The mean of the squared standard errors is the variance of the mean, which is known of what is drawn."""
    s, n, of_runs, of_data, rest = 4, 30, 0.5, 2.0, 1.0
    draws = torch.randn(2000, s, 1) * of_runs + torch.randn(2000, 1, n) * of_data + torch.randn(2000, s, n) * rest
    exact = of_runs**2 / s + of_data**2 / n + rest**2 / (s * n)
    found = torch.tensor([mean_over_runs(values)["std_error"] ** 2 for values in draws.double()])
    assert float(found.mean()) == pytest.approx(exact, rel=0.05)
    assert float(draws.mean((1, 2)).var()) == pytest.approx(exact, rel=0.15)


def test_table():
    header, *rows = comparison_table(compare({"runs/a": A, "runs/b": B}), "log p(x|y)").splitlines()
    assert "log p(x|y)" in header
    assert header.endswith("to runs/a")
    assert rows[0].split() == ["runs/a", "-100.000", "±", "5.774"]
    assert rows[1].split() == ["runs/b", "-99.000", "±", "6.083", "+1.000", "±", "0.577"]


def test_errors():
    with pytest.raises(ValueError, match=r"at least two models, got \['a'\]"):
        compare({"a": A})
    with pytest.raises(ValueError, match="got 3 of 'a', 2 of 'b'"):
        compare({"a": A, "b": B[:2]})
    with pytest.raises(TypeError, match=r"estimates\['b'\] must be a LogMarginal or a tensor, got float"):
        compare({"a": A, "b": -90.0})
    with pytest.raises(ValueError, match=r"estimates\['a'\] must have shape \(n,\) or \(s, n\), got \(1, 1, 3\)"):
        compare({"a": A[None, None], "b": B})
    with pytest.raises(ValueError, match=r"estimates\['a'\] must have shape \(n,\) or \(s, n\), got \(0,\)"):
        compare({"a": A[:0], "b": B[:0]})
    for bad in (-math.inf, math.nan):
        with pytest.raises(ValueError, match=rf"log p\(x\) of datum 1 is {bad:g} by 'b'"):
            compare({"a": A, "b": B.index_fill(0, torch.tensor([1]), bad)})
