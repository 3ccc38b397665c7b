"""The code of the pages runs: the first page's, and the tutorials', cell by cell; the site's map has all pages."""

import json
import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"
TUTORIALS = sorted((DOCS / "tutorials").glob("*.ipynb"))


def cells(path):
    found = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    return ["".join(cell["source"]) for cell in found]


def test_the_first_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    page = (DOCS / "get-started.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    assert "epochs=100" in code
    assert "num_samples=1000" in code
    exec(compile(code.replace("epochs=100", "epochs=5").replace("[:20]", "[:1]"), "get-started.md", "exec"), {})
    assert "log p(x) = " in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"reconstructions.png", "curves.png"}


@pytest.mark.filterwarnings("ignore::ppvae.evaluate.ParetoWarning")
def test_a_model_of_ones_own_from_its_story_to_its_likelihood(capsys):
    page = (DOCS / "your-own-model.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    for full, quick in {
        "randn(5000": "randn(800",
        "x[:3600], x[3600:4000], x[4000:]": "x[:600], x[600:700], x[700:]",
        "epochs=60, lr=1e-2": "epochs=30, lr=3e-2",
        "test[:200]": "test[:20]",
        "test, method": "test[:20], method",
    }.items():
        assert full in code
        code = code.replace(full, quick)
    exec(compile(code, "your-own-model.md", "exec"), {})
    said = capsys.readouterr().out
    assert said.count("✓ a gradient reaches each of 6 parameters") == 2
    assert said.count("✓ the latent 'z' is in use") == 1
    assert re.findall(r"log p\(x\) = (-5\.\d)", said)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs_from_its_first_cell_to_its_last(path, capsys):
    names = {}
    for cell in cells(path):
        exec(compile(cell, path.name, "exec"), names)
    assert capsys.readouterr().out


def test_tutorials_show_what_they_print_and_no_errors_or_warnings():
    assert len(TUTORIALS) == 3
    for path in TUTORIALS:
        outputs = [
            output
            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
            for output in cell.get("outputs", [])
        ]
        assert any("image/png" in output.get("data", {}) for output in outputs)
        assert all(output["output_type"] != "error" and output.get("name") != "stderr" for output in outputs)


def test_every_page_is_on_the_sites_map():
    on_map = set(re.findall(r"[\w/-]+\.(?:md|ipynb)", (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")))
    there = {str(path.relative_to(DOCS)) for suffix in ("md", "ipynb") for path in DOCS.rglob(f"*.{suffix}")}
    assert there <= on_map
    scripts = {f"examples/{path.stem}.md" for path in (DOCS.parent / "examples").glob("*.py")}
    assert {page for page in on_map if page.startswith("examples/")} <= scripts
