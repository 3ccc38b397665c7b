"""What results look like where they are printed: words in place of tensors, lists in notebooks, tables for pandas."""

import pytest
import torch

import ppvae
from ppvae import evaluate
from ppvae.infer import Run
from ppvae.models import PPCA
from ppvae.result import Result


def pair_and_data():
    torch.manual_seed(0)
    return PPCA(6, 2), torch.randn(5, 6)


def test_whatever_has_a_summary_prints_it_in_place_of_its_fields():
    results = [value for name in evaluate.__all__ if isinstance(value := getattr(evaluate, name), type)]
    with_summary = [kind for kind in results if hasattr(kind, "summary")]
    assert len(with_summary) >= 12
    assert all(issubclass(kind, Result) and kind.__repr__ is Result.__repr__ for kind in with_summary)


def test_the_line_is_the_first_clause_and_the_list_has_all_of_them():
    pair, x = pair_and_data()
    estimate = ppvae.log_marginal(pair, x, num_samples=200)
    assert repr(estimate).startswith(f"LogMarginal: log p(x) = {estimate.mean():.3f} ± ")
    assert "\n" not in repr(estimate)
    shown = estimate._repr_html_()
    assert shown.count("<li>") == len(estimate.summary().split("; "))
    assert "k̂ &gt; 0.7" in shown or "k̂ ≤ 0.7" in shown


def test_a_table_has_a_row_a_datum_and_all_that_is_known_of_it():
    pair, x = pair_and_data()
    estimate = ppvae.log_marginal(pair, x, num_samples=200)
    table = estimate.to_dataframe()
    assert list(table)[:4] == ["values", "std_error", "ess", "pareto_k"]
    assert {"bound_1", "bound_100", "bound_200"} <= set(table)
    torch.testing.assert_close(torch.tensor(table["values"]), estimate.values)
    torch.testing.assert_close(torch.tensor(table["bound_200"]), estimate.values)
    terms = ppvae.elbo(pair, x, num_samples=2)
    assert list(terms.to_dataframe()) == ["values", "reconstruction", "kl_z", "std_error", "share_outside"]


def test_a_run_is_one_too():
    pair, x = pair_and_data()
    run = ppvae.fit(pair, x, x, epochs=3, progress=False, kl_weight=lambda t: 1.0 if t > 1 else 0.5)
    assert repr(run).startswith("Run: 3 epochs in ")
    assert run._repr_html_().count("<li>") == 4
    table = run.to_dataframe()
    assert table.to_dict("records") == run.history
    curves = {line.get_label(): line.get_ydata() for line in run.plot().axes[0].get_lines()}
    assert list(curves["valid"]) == list(table["valid_elbo"])


def test_a_value_that_an_epoch_lacks_is_a_gap():
    run = Run([{"epoch": 1.0}, {"epoch": 2.0, "kl_z": 3.0}], None, "interrupted", None, 1.0)
    assert run.to_dataframe()["kl_z"].isna().tolist() == [True, False]
    assert run.summary() == "2 epochs in 1.0 s, interrupted"


def test_what_is_of_all_data_together_has_no_table():
    pair, x = pair_and_data()
    report = evaluate.latent_report(pair, x)
    assert repr(report).startswith("LatentReport: z: KL ")
    assert "\n" not in repr(report)
    assert list(report.to_dataframe()) == ["kl"]
    evidence = evaluate.LogEvidence(-12.0, 0.1, 40.0, 0.3, -13.0, 0.1, 100, 5)
    assert repr(evidence) == "LogEvidence: log p of all 5 data = -12.000 ± 0.100 nats"
    with pytest.raises(TypeError, match="LogEvidence is of all data together"):
        evidence.to_dataframe()
