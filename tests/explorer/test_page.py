"""The page in a headless Chromium, alone and served: E[x|z] on it is that of the pair, and nothing on it fails."""

import asyncio
import re
import threading
from importlib import import_module

import pyro
import pyro.distributions as dist
import pytest
import torch

pytest.importorskip("bokeh", reason='needs Bokeh, of pip install "ppvae[explore]"')

import ppvae
from ppvae.cli.explore import main
from ppvae.explorer.exploration import look_at
from ppvae.explorer.graph import UnknownOperationError, run
from ppvae.explorer.page import graphs_of, standalone
from ppvae.explorer.serve import server_of, url_of
from ppvae.infer import Recipe
from ppvae.models import PPCA
from tests.explorer.browser import Browser, needs_chromium
from tests.explorer.pairs import SIDE, N, classes, image_cvae, image_vae, pictures
from tests.models.levels import D, hierarchical

HERE = "Array.from(explorer.means.here)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    tab = Browser(tmp_path_factory.mktemp("chromium"))
    yield tab
    tab.close()


@pytest.fixture(scope="module")
def seen():
    """A model of pictures and labels, as it is shown."""
    return look_at(image_cvae(), pictures(), classes(), labels=classes(), num_samples=100, title="of labels")


class Served:
    """A server in a thread of its own."""

    def __init__(self, exploration):
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self.run, args=(exploration,), daemon=True)
        self.thread.start()
        assert self.ready.wait(60)

    def run(self, exploration):
        asyncio.set_event_loop(asyncio.new_event_loop())
        self.server = server_of(exploration)
        self.server.start()
        self.loop = self.server.io_loop
        self.loop.add_callback(self.ready.set)
        self.loop.start()

    def stop(self):
        self.loop.add_callback(self.loop.stop)
        self.thread.join(60)


@pytest.fixture(params=["alone", "served"])
def url(request, seen, tmp_path):
    if request.param == "alone":
        file = tmp_path / "page.html"
        file.write_text(standalone(seen), encoding="utf-8")
        yield file.as_uri()
    else:
        served = Served(seen)
        yield url_of(served.server)
        served.stop()


def drawn_after(browser, code):
    """Does something on the page, and waits until it has been drawn."""
    before = browser.evaluate("Number(document.body.dataset.drawn)")
    browser.evaluate(f"(() => {{ {code} }})()")
    browser.wait_for(f"Number(document.body.dataset.drawn) > {before} && !explorer.drawing")


def check_shown(browser, decoder, **values):
    expected = decoder.means(values)[0].flatten()
    torch.testing.assert_close(torch.tensor(browser.evaluate(HERE)), expected, rtol=1e-5, atol=1e-6)


@needs_chromium
def test_what_is_done_on_the_page_shows_what_the_pair_says(browser, url, seen):
    browser.errors.clear()
    browser.open(url)
    decoder, x = seen.views[0].decoder, pictures()
    codes, y = decoder.inputs[0].rows, classes()
    check_shown(browser, decoder, z=codes[:1], x=x[:1], y=y[:1])

    drawn_after(browser, "explorer.points.selected.indices = [7]")
    assert browser.evaluate("document.getElementById('datum').textContent") == f"Datum 7, label {int(y[7])}"
    check_shown(browser, decoder, z=codes[7:8], x=x[:1], y=y[7:8])
    terms = browser.evaluate("document.getElementById('terms').textContent")
    for name, values in seen.terms.items():
        assert name in terms
        assert f"{float(values[7]):.3f}".replace("-", "−") in terms

    unit, moved = seen.views[0].units[0], codes[7:8].clone()
    moved[0, unit] = 0.25
    drawn_after(browser, "explorer.sliders[0].value = 0.25")
    check_shown(browser, decoder, z=moved, x=x[:1], y=y[7:8])
    drawn_after(browser, "explorer.conditions[0].value = '2'")
    check_shown(browser, decoder, z=moved, x=x[:1], y=torch.tensor([2]))

    drawn_after(browser, "explorer.points.selected.indices = [4]")
    drawn_after(browser, "explorer.line.value = 0.5")
    check_shown(browser, decoder, z=(codes[4:5] + codes[7:8]) / 2, x=x[:1], y=y[4:5])
    last = torch.tensor(browser.evaluate("Array.from(explorer.means.between.at(-1))"))
    torch.testing.assert_close(last, decoder.means({"z": codes[7:8], "x": x[:1], "y": y[4:5]})[0].flatten())
    assert browser.evaluate("document.querySelector('#pictures canvas').width") == SIDE
    assert browser.errors == []


@needs_chromium
def test_a_click_on_the_map_picks_the_datum(browser, url, seen):
    browser.errors.clear()
    browser.open(url)
    place = browser.evaluate("""(() => {
      const plot = Bokeh.index.roots.find((view) => view.model.name === "map");
      const box = plot.el.getBoundingClientRect();
      const [x, y] = [explorer.points.data.x[9], explorer.points.data.y[9]];
      const frame = plot.frame;
      return [box.x + frame.x_scale.compute(x), box.y + frame.y_scale.compute(y)];
    })()""")
    browser.click(*place)
    browser.wait_for("explorer.datum === 9")
    assert browser.errors == []


@needs_chromium
def test_every_latent_map_and_colour_of_a_hierarchy_is_drawn(browser, tmp_path):
    pair = hierarchical().eval()
    seen = look_at(pair, torch.bernoulli(torch.full((N, D), 0.5)), num_samples=100, tsne=False)
    (tmp_path / "page.html").write_text(standalone(seen), encoding="utf-8")
    browser.errors.clear()
    browser.open((tmp_path / "page.html").as_uri())
    for i, view in enumerate(seen.views):
        if i:
            drawn_after(browser, f"explorer.latent.value = 'z{i + 1}'")
        decoder = view.decoder
        check_shown(browser, decoder, **{each.name: each.rows[:1] for each in decoder.inputs})
        maps = browser.evaluate("explorer.choice.options")
        assert maps == [each.name for each in view.maps]
        for j, name in enumerate(maps):
            browser.evaluate(f"void (explorer.choice.value = {name!r})")
            shown = browser.evaluate("[explorer.points.data.x, explorer.points.data.y].map((each) => Array.from(each))")
            torch.testing.assert_close(
                torch.tensor(shown, dtype=torch.float32).T, torch.tensor(view.maps[j].points).float()
            )
    for name in seen.terms:
        browser.evaluate(f"void (explorer.colour.value = {name!r})")
        assert len(set(browser.evaluate("explorer.points.data.colour"))) > 1
    assert browser.evaluate("document.querySelectorAll('#cells td').length") == 4 * D
    assert browser.errors == []


def test_the_file_loads_nothing_and_its_text_ends_no_script(seen):
    page = standalone(seen)
    outside = re.sub(r"(<(script|style)[^>]*>).*?</\2>", r"\1", page, flags=re.DOTALL)
    assert len(outside) < 10_000
    assert not re.findall(r"\s(?:src|href)\s*=", outside)


class Bessel(torch.nn.Module):
    """Something that the page cannot compute."""

    in_shape, out_shape = (4,), (1, SIDE, SIDE)

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, z):
        return torch.special.bessel_j0(self.net(z))


def test_a_decoder_that_the_page_cannot_run_is_said_before_anything_is_written(tmp_path):
    pair = image_vae()
    pair.p_x_given_z.net = Bessel(pair.p_x_given_z.net)
    with pytest.raises(UnknownOperationError, match="needs the operation special_bessel_j0"):
        ppvae.explore(pair, pictures(), num_samples=10, export=tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_a_pair_of_functions_in_double_precision_is_exported(tmp_path):
    decoder, encoder = (torch.nn.Linear(*dims).double() for dims in ((2, 6), (6, 2)))

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 0.1).to_event(1))

    seen = look_at(ppvae.Pair(model, guide), torch.randn(N, 6).double(), num_samples=10)
    (graph,) = graphs_of(seen)
    z = torch.randn(1, 2).double()
    torch.testing.assert_close(run(graph, {"z": z}), decoder(z).float().detach())


def make():
    return PPCA(6, 3, guide="amortized")


def load_test():
    return torch.randn(40, 6, generator=torch.Generator().manual_seed(1))


def test_the_command_writes_the_page_of_a_run(tmp_path, capsys):
    ppvae.fit(make(), load_test(), epochs=1, out=tmp_path / "run", recipe=Recipe(make, load_test), progress=False)
    options = ["--trust", "--limit", "20", "--num-samples", "50"]
    assert main([str(tmp_path / "run"), "--export", str(tmp_path / "page.html"), *options]) == 0
    assert "one file that loads nothing" in capsys.readouterr().out
    assert '"summary":"20 data · z: ' in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere"], "nowhere"),
        (["nowhere", "--limit", "1"], "--limit must be a whole number >= 2, got 1"),
        (["nowhere", "--port", "99999"], "--port must be at most 65535, got 99999"),
        (["nowhere", "--export", "page.txt"], "export must be the name of an .html file, got 'page.txt'"),
        (["nowhere", "--export", "not/there.html"], "export must lie in a folder that is there"),
    ],
)
def test_what_the_command_cannot_do_is_said(argv, message, capsys):
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_without_bokeh_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(import_module("ppvae.explorer.explore"), "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "ppvae\[explore\]"'):
        ppvae.explore(image_vae(), pictures())
