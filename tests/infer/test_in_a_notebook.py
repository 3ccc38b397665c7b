"""A run in a notebook: its bar is a widget that moves, it shows itself as a list, and its curves as a picture."""

import importlib.util

import pytest

CELLS = """
import torch, ppvae
from ppvae.models import PPCA
pair, x = PPCA(8, 2), torch.randn(64, 8)
run = ppvae.fit(pair, x, epochs=2)
_ = ppvae.log_marginal(pair, x, num_samples=10, progress=True)
###
run.plot()
###
run
"""


@pytest.mark.slow
def test_what_a_notebook_shows():
    if importlib.util.find_spec("ipykernel") is None:
        pytest.skip("needs ipykernel, of the docs extra")
    nbformat, nbclient = pytest.importorskip("nbformat").v4, pytest.importorskip("nbclient")
    notebook = nbformat.new_notebook(cells=[nbformat.new_code_cell(cell) for cell in CELLS.split("###")])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    training, plot, run = (cell["outputs"] for cell in notebook["cells"])
    assert not [output for output in training if output["output_type"] == "stream"]  # no text, no warning
    assert all("application/vnd.jupyter.widget-view+json" in output["data"] for output in training)
    assert "image/png" in plot[0]["data"]
    assert "<b>Run</b><ul><li>2 epochs in" in run[0]["data"]["text/html"]
