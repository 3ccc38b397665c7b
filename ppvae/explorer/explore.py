"""`ppvae.explore`: a page of a trained pair, served on this machine or written into one file."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from ppvae._validate import check_count, check_flag, check_path
from ppvae.evaluate.estimator import Estimator
from ppvae.explorer.exploration import Exploration, checked_labels, look_at
from ppvae.inputs import as_batch
from ppvae.pair import check_data, check_pair, take
from ppvae.storage import write_atomically

LAST_PORT = 65_535
LIMIT = 1000
"""The data that are shown by default: of more, points lie on points, and t-SNE takes long."""


def explore(
    pair: nn.Module,
    *data: Any,
    labels: Any = None,
    export: str | os.PathLike[str] | None = None,
    limit: int = LIMIT,
    num_samples: int | None = None,
    method: str | Estimator = "importance",
    title: str = "",
    port: int = 0,
    browser: bool = True,
) -> Path | None:
    """Opens a page of a trained pair in the browser, and serves it until Ctrl-C; or writes the page into one file.

    The page shows a map of the codes, the likelihood terms of any datum, E[x|z] wherever the sliders stand, and the
    line between two data. Served, it asks this process for E[x|z]; in a file the decoder runs in the browser.

    Args:
        pair: any model/guide pair with a continuous latent for each datum.
        data: its arguments, tensors or arrays of shape (n, ...).
        labels: classes of the data, integers (n,).
        export: file that the page is written into, in place of serving it.
        limit: the most data that are shown, the first ones.
        num_samples: draws of each log p̂(x); by default 500 of importance sampling, of other methods what they say.
        method: by which log p(x) is estimated, see `ppvae.log_marginal`.
        title: of the page; by default the class of the pair.
        port: of the server, which only this machine reaches; 0 is any that is free.
        browser: whether to open the page in the browser.

    Returns:
        The file, where there is one.

    Raises:
        ImportError: where Bokeh is not installed.
        FileNotFoundError: where there is no folder to export into.
        TypeError: where an argument is of the wrong kind.
        ValueError: where no latent is continuous, the likelihood is fed the data that it is of, or the pair or the data
            break the contract; with `export` also where the decoder needs an operation that the page does not have.
        NotImplementedError: where the mean of the likelihood is not known.

    Example:
        >>> import tempfile, torch
        >>> from ppvae.models import PPCA
        >>> path = explore(PPCA(8, 2), torch.randn(50, 8), export=tempfile.mkdtemp() + "/page.html", num_samples=100)
        >>> path.name
        'page.html'
    """
    check_pair(pair)
    check_count("limit", limit, at_least=2)
    check_port(port)
    if not isinstance(title, str):
        raise TypeError(f"title must be text, got {title!r}")
    check_flag("browser", browser)
    check_installed()
    file = None if export is None else checked_file(export)
    batch = as_batch(data, pair)
    classes = checked_labels(labels, check_data(batch))
    few = take(batch, slice(0, limit))
    classes = None if classes is None else classes[:limit]
    found = look_at(pair, *few, labels=classes, num_samples=num_samples, method=method, title=title)
    return show(found, file, port=port, browser=browser)


def check_installed() -> None:
    """Checks that Bokeh is there.

    Raises:
        ImportError: with what installs it.
    """
    if find_spec("bokeh") is None:
        raise ImportError('the explorer needs Bokeh, which is not installed: pip install "ppvae[explore]"')


def check_port(port: int) -> None:
    """Checks that it can be the port of a server; 0 is any that is free.

    Raises:
        ValueError: where it is none.
    """
    if check_count("port", port, at_least=0) > LAST_PORT:
        raise ValueError(f"port must be at most {LAST_PORT}, got {port}")


def checked_file(export: str | os.PathLike[str]) -> Path:
    """The file that a page is to be written into, where its folder is there.

    Raises:
        FileNotFoundError: where it is not.
        ValueError: where the file is no .html.
    """
    file = check_path("export", export)
    if file.suffix != ".html":
        raise ValueError(f"export must be the name of an .html file, got {str(export)!r}")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"export must lie in a folder that is there, and {file.parent} is none")
    return file


def show(found: Exploration, file: Path | None, *, port: int = 0, browser: bool = True) -> Path | None:
    """Writes the page into a file, or serves it."""
    from ppvae.explorer.page import standalone
    from ppvae.explorer.serve import serve, server_of, url_of

    if file is not None:
        page = standalone(found)
        write_atomically(file, lambda path: path.write_text(page, encoding="utf-8"))
        return file
    server = server_of(found, port=port)
    print(f"{url_of(server)} shows {found.title}: {len(found.x)} data; Ctrl-C ends it", flush=True)
    serve(server, browser=browser)
    return None
