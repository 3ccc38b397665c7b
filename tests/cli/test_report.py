import json
import math
import warnings
from dataclasses import replace

import pytest
import torch

import ppvae
from ppvae.cli.report import by_class, describe, from_json, report, strict_json, table
from tests.reference import REFERENCES, linear_gaussian, ppca


@pytest.fixture(scope="module")
def figures():
    reference = ppca()
    x = reference.data[0]
    return report(reference.pair, {"train": (x[:4],), "test": (x,)}, num_samples=150, seed=3)


def test_numbers_equal_a_computation_by_hand(figures):
    reference = ppca()
    x = reference.data[0]
    for name, data in (("train", x[:4]), ("test", x)):
        terms = ppvae.elbo(reference.pair, data, num_samples=100, seed=3)
        expected = {"elbo": terms.values, "reconstruction": terms.reconstruction, "kl_z": terms.kl["z"]}
        if name == "test":
            estimate = ppvae.log_marginal(reference.pair, data, num_samples=150, seed=3)
            expected["log_marginal"] = estimate.values
            assert figures[name]["ess"]["median"] == pytest.approx(float(estimate.ess.median()))
            assert figures[name]["ess"]["min"] == pytest.approx(float(estimate.ess.min()))
            assert figures[name]["k_hat"] == {"above_0.7": 0, "median": float(estimate.pareto_k.median())}
            means = {str(size): float(bound.mean()) for size, bound in estimate.diagnostics.bound.items()}
            assert {size: value["mean"] for size, value in figures[name]["bound"].items()} == means
        assert figures[name]["num_data"] == len(data)
        for key, values in expected.items():
            assert figures[name][key]["mean"] == pytest.approx(float(values.mean()))
            assert figures[name][key]["std_error"] == pytest.approx(float(values.std()) / math.sqrt(len(data)))
    assert "log_marginal" not in figures["train"]
    assert (figures["num_dims"], figures["num_samples"], figures["seed"]) == (6, 150, 3)


def test_is_json(figures):
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_table_prints_every_row(figures):
    rows = table(figures).splitlines()
    assert len(rows) == 1 + 3 + 4 + 3
    for name in ("train", "test"):
        for key, label in (("elbo", "ELBO"), ("reconstruction", "reconstruction"), ("kl_z", "KL z")):
            (row,) = [r for r in rows if r.startswith(name) and label in r]
            mean, error, bits = row.replace(name, "", 1).replace(label, "", 1).replace("±", " ").split()
            value = figures[name][key]
            assert float(mean) == pytest.approx(value["mean"], abs=6e-4)
            assert float(error) == pytest.approx(value["std_error"], abs=6e-4)
            sign = 1 if key == "kl_z" else -1
            assert float(bits) == pytest.approx(sign * value["mean"] / 6 / math.log(2), abs=6e-5)
    assert any("log p(x), K=150" in r for r in rows)
    assert "11 data" in rows[-3]
    assert f"least {figures['test']['ess']['min']:.1f} of 150" in rows[-3]
    bound = figures["test"]["bound"]
    assert f"{bound['100']['mean']:.3f} (K=100), {bound['150']['mean']:.3f} (K=150)" in rows[-2]
    assert rows[-1].endswith(f"k̂, median {figures['test']['k_hat']['median']:.2f}, > 0.7 for 0 of 11 data")


def test_limit_and_several_latents():
    reference = REFERENCES["hierarchy"]()
    figures = report(reference.pair, {"test": reference.data}, num_samples=7, limit=3)
    assert figures["test"]["num_data"] == 3
    assert {"kl_z1", "kl_z2"} <= figures["test"].keys()
    assert "KL z2" in table(figures)
    masked = REFERENCES["masked_series"]()
    assert report(masked.pair, {"test": masked.data}, num_samples=7, limit=None)["test"]["num_data"] == 11


def test_one_datum_has_no_standard_error():
    reference = ppca()
    figures = report(reference.pair, {"test": reference.data}, num_samples=7, limit=1)
    assert math.isnan(figures["test"]["elbo"]["std_error"])
    assert "nan" in table(figures)


def test_nothing_to_report():
    with pytest.raises(ValueError, match="splits"):
        report(ppca().pair, {})
    with pytest.raises(ValueError, match="empty"):
        report(ppca().pair, {"test": (torch.zeros(0, 6),)})


def narrow():
    """A pair whose guide is far too narrow, with its data."""
    reference = linear_gaussian()
    with torch.no_grad():
        reference.pair.log_t.sub_(2.0)
    return reference


def test_unreliable_data_are_counted_without_a_warning():
    reference = narrow()
    with warnings.catch_warnings(action="error"):
        figures = report(reference.pair, {"test": reference.data}, num_samples=400)
    bad = figures["test"]["k_hat"]["above_0.7"]
    assert bad > 3
    assert f"> 0.7 for {bad} of 11 data: their log p(x) may be far too low" in table(figures)
    few = report(reference.pair, {"test": reference.data}, num_samples=99)
    assert "k_hat" not in few["test"]
    assert "k̂" not in table(few)


def test_rows_by_class():
    reference, labels = ppca(), torch.tensor([3, 1, 1, 7, 3, 3, 1, 1, 1, 3, 3])
    terms = ppvae.elbo(reference.pair, *reference.data, num_samples=20)
    estimate = ppvae.log_marginal(reference.pair, *reference.data, num_samples=200)
    diagnostics = replace(estimate.diagnostics, pareto_k=torch.linspace(0.3, 1.3, 11))
    estimate = replace(estimate, diagnostics=diagnostics)
    rows = by_class(terms, estimate, labels)
    assert list(rows) == ["1", "3", "7"]
    assert [row["num_data"] for row in rows.values()] == [5, 5, 1]
    for c, row in rows.items():
        index = labels == int(c)
        assert row["log_marginal"]["mean"] == pytest.approx(float(estimate.values[index].mean()))
        assert row["elbo"]["mean"] == pytest.approx(float(terms.values[index].mean()))
        assert row["above_0.7"] == int((estimate.pareto_k[index] > 0.7).sum())
    expected = float(estimate.values[labels == 3].std()) / math.sqrt(5)
    assert rows["3"]["log_marginal"]["std_error"] == pytest.approx(expected)
    figures = {"num_dims": 6, "num_samples": 200, "symbol": "log p(x)", "test": describe(terms, estimate)}
    without = table(figures).splitlines()
    figures["test"]["by_class"] = rows
    *same, header, _, three, seven = table(figures).splitlines()
    assert same == without
    assert header.split() == ["class", "data", "ELBO", "±", "s.e.", "log", "p(x)", "±", "s.e.", "k̂", ">", "0.7"]
    assert three.split()[:2] == ["3", "5"]
    assert three.split()[5] == f"{rows['3']['log_marginal']['mean']:.3f}"
    assert three.split()[-1] == str(rows["3"]["above_0.7"])
    assert "nan" in seven
    few = ppvae.log_marginal(reference.pair, *reference.data, num_samples=99)
    assert all("above_0.7" not in row for row in by_class(terms, few, labels).values())  # k̂ is not known
    for bad in (labels[:4], labels.float(), labels[:, None]):
        with pytest.raises(ValueError, match=r"labels must be integers of shape \(11,\), one for each datum"):
            by_class(terms, estimate, bad)


def test_json_has_no_nan():
    figures = {"a": math.nan, "b": [1.5, -math.inf, {"c": (math.inf, 2)}], "d": "nan", "e": True, "f": None}
    assert strict_json(figures) == {"a": None, "b": [1.5, None, {"c": [None, 2]}], "d": "nan", "e": True, "f": None}
    reference = ppca(guide="exact")
    found = report(reference.pair, {"test": reference.data}, num_samples=200, limit=1) | {"num_dims": math.nan}
    figures = strict_json(found)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["test"]["elbo"]["std_error"] is None
    assert table(from_json(figures)) == table(found).replace("-inf", "nan")  # as a card shows a file that was written


def test_bounds_that_cross_by_noise_are_no_inequality():
    def value(mean):
        return {"mean": mean, "std_error": 0.1}

    both = {"lower": value(-26.8), "upper": value(-26.9), "gap": value(-0.1)}
    figures = {"num_dims": 6, "num_samples": 2, "symbol": "log p(x)", "sandwich": both}
    assert "≤" not in table(figures)
    assert "cross: -26.800 from below, -26.900 from above" in table(figures)
    both["upper"] = value(-26.7)
    assert "-26.800 ≤ mean log p(x) ≤ -26.700 nats" in table(figures)
