import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from ppvae import plot
from ppvae.plot.figure import to_numpy

IMAGES = np.linspace(0, 1, 2 * 3 * 16).reshape(2, 3, 4, 4)
HISTORY = [{"elbo": -100.0 + i, "kl_z": float(i), "kl_weight": i / 5} for i in range(5)]


def all_figures():
    return [
        plot.samples(IMAGES[0]),
        plot.reconstructions(IMAGES[0], IMAGES[1]),
        plot.interpolation(IMAGES),
        plot.traversal(IMAGES, np.array([-1.0, 0.0, 1.0])),
        plot.latent_scatter(np.arange(24.0).reshape(8, 3) ** 2, np.arange(8) % 2),
        plot.training_curves(HISTORY),
    ]


def test_the_settings_of_matplotlib_are_left_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    for i, figure in enumerate(all_figures()):
        assert isinstance(figure, Figure)
        plot.save(figure, tmp_path / f"{i}.png")
        plot.save(figure, tmp_path / f"{i}.pdf")
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_never_imported_and_matplotlib_only_when_drawing(tmp_path):
    code = (
        "import sys, torch, ppvae.plot as plot\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"plot.save(plot.samples(torch.rand(2, 4, 4)), {str(tmp_path / 'a.png')!r})\n"
        "plot.training_curves([{'elbo': 1.0}]); plot.latent_scatter(torch.rand(9, 3), torch.arange(9))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize(
    "rc", [{}, {"font.size": 20, "xtick.labelsize": 30, "figure.autolayout": True, "savefig.bbox": "tight"}]
)
def test_text_is_small_and_inside_the_figure_whatever_the_settings(rc):
    with matplotlib.rc_context(rc):
        for figure in all_figures():
            figure.draw_without_rendering()
            texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text()]
            shown = [text for text in texts if text.get_visible() and text.axes is not None]
            assert {text.get_fontsize() for text in shown} <= {7.0, 8.0}
            tight = figure.get_tightbbox()
            width, height = figure.get_size_inches()
            assert tight.x0 >= -0.01
            assert tight.y0 >= -0.01
            assert tight.x1 <= width + 0.01
            assert tight.y1 <= height + 0.01


def test_save_writes_each_format(tmp_path):
    figure = plot.samples(IMAGES[0])
    for name, magic in {"a.png": b"\x89PNG", "b.pdf": b"%PDF", "c.SVG": b"<?xml"}.items():
        plot.save(figure, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(magic)
    assert len(list(tmp_path.iterdir())) == 3


def test_save_gives_the_usual_permissions(tmp_path):
    (tmp_path / "plain").touch()
    plot.save(plot.samples(IMAGES[0]), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    figure = plot.samples(IMAGES[0])

    def half(file, **options):
        file.write(b"half a picture")
        raise RuntimeError("disk full")

    monkeypatch.setattr(figure, "savefig", half)
    with pytest.raises(RuntimeError, match="disk full"):
        plot.save(figure, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_save_refuses_other_suffixes_and_makes_no_folders(tmp_path):
    figure = plot.samples(IMAGES[0])
    with pytest.raises(ValueError, match=r"path: got .*a\.gif.*expected .*\.png"):
        plot.save(figure, tmp_path / "a.gif")
    with pytest.raises(FileNotFoundError, match="no folder"):
        plot.save(figure, tmp_path / "new" / "a.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_tensors_of_any_type_come_in(dtype):
    values = torch.tensor([0, 1, 1], dtype=dtype)
    np.testing.assert_array_equal(to_numpy("z", values), [0, 1, 1])


def test_what_is_no_finite_number_is_refused_by_name():
    with pytest.raises(ValueError, match="z: got 2 nan or infinite values of 3"):
        to_numpy("z", np.array([1.0, np.nan, np.inf]))
    with pytest.raises(ValueError, match="z: got values of type complex64, expected real"):
        to_numpy("z", torch.ones(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="z: got values of type object"):
        to_numpy("z", None)
