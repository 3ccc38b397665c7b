"""The page: a Bokeh document of the map and the widgets, with the data in it; `page.js` is what they do.

The same page stands alone, with the decoders in it as graphs, or is served, and asks Python for what is decoded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bokeh.document import Document
from bokeh.embed import file_html
from bokeh.events import DocumentReady
from bokeh.models import ColumnDataSource, CustomJS, HoverTool, Model
from bokeh.models.widgets import Select, Slider
from bokeh.palettes import Viridis256
from bokeh.plotting import figure
from bokeh.resources import INLINE
from torch import Tensor

from ppvae.explorer.decoder import running
from ppvae.explorer.exploration import Exploration, Map, View, unit_names
from ppvae.explorer.graph import INTERPRETER, Graph, graph_of, packed, run
from ppvae.pair import device_of
from ppvae.plot.figure import PALETTE

HERE = Path(__file__).parent
SLIDERS = 8
"""The most units that have a slider."""
WIDEST_TABLE = 24
"""Numbers of a datum that are shown one by one."""
FEW = 16
"""Data at whose codes a graph is compared with the pair."""
TOLERANCE = 1e-4
"""How far a graph may be from the pair, in units of the largest mean: float32 sums in another order."""


TEMPLATE = (HERE / "page.html").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Wire:
    """How a page that has no decoders asks for what is decoded.

    Attributes:
        request: what it asks, as JSON in the one row of "content".
        answer: what it is told.
    """

    request: ColumnDataSource
    answer: ColumnDataSource


def graphs_of(exploration: Exploration) -> list[Graph]:
    """The decoder of each view as a graph, each compared with the pair on the data.

    Raises:
        UnknownOperationError: where one needs what the page's interpreter does not have.
        ValueError: where one is no fixed list of operations, needs the data that it decodes, or gives other numbers.
    """
    graphs = []
    for view in exploration.views:
        decoder = view.decoder
        device = device_of(decoder.pair, tuple(decoder.example().values()))
        with running(decoder.pair, device):
            graph = graph_of(decoder, {name: row.to(device) for name, row in decoder.example().items()})
        of_kind = {each.name: each.kind for each in decoder.inputs}
        if fed := [name for name in graph["inputs"] if of_kind[name] == "observed"]:
            raise ValueError(
                f"E[x|{decoder.latent}] depends on {fed[0]}, the data that it is of: it is no function of z"
            )
        _check_graph(graph, view)
        graphs.append(graph)
    return graphs


def _check_graph(graph: Graph, view: View) -> None:
    """Compares a graph with the pair, at the codes of a few data."""
    decoder = view.decoder
    means = decoder.means({each.name: each.rows[:FEW] for each in decoder.inputs}).float()
    for i, mean in enumerate(means):
        found = run(graph, {each.name: each.rows[i : i + 1] for each in decoder.inputs})[0]
        if not torch.allclose(found.float(), mean, rtol=TOLERANCE, atol=TOLERANCE * float(means.abs().max())):
            raise ValueError(
                f"the operations of E[x|{decoder.latent}] give other numbers than the pair for datum {i}: what the "
                "model does depends on values, and is no fixed list of operations"
            )


def standalone(exploration: Exploration) -> str:
    """The page as one HTML file, which loads nothing: Bokeh, data and decoders are in it."""
    document = Document()
    fill(document, exploration, graphs_of(exploration))
    variables = document.template_variables
    return file_html(document, INLINE, title=document.title, template=TEMPLATE, template_variables=variables)


def fill(document: Document, exploration: Exploration, graphs: Sequence[Graph] = ()) -> Wire | None:
    """Makes a document the page; gives its wire where the decoders are not in it.

    Args:
        document: an empty one.
        exploration: what the page shows.
        graphs: of each view, or none.
    """
    content = content_of(exploration, graphs)
    models = _models(content)
    wire = None if graphs else Wire(*(ColumnDataSource({"content": [""]}, tags=["wire"]) for _ in range(2)))
    if wire is not None:
        models |= {"request": wire.request, "answer": wire.answer}
    for model in _roots(models):
        document.add_root(model)
    names = ", ".join(models)
    read = "JSON.parse(document.getElementById('content').textContent)"
    ready = CustomJS(args=models, code=f"window.explorer = new Explorer({{{names}}}, {read})")
    document.js_on_event(DocumentReady, ready)
    script = INTERPRETER.read_text(encoding="utf-8") + (HERE / "page.js").read_text(encoding="utf-8")
    document.title = exploration.title
    document.template_variables.update(content=_in_html(content), script=script)
    return wire


def _in_html(content: dict[str, Any]) -> str:
    """The content as JSON that ends no script early."""
    return json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")


def content_of(exploration: Exploration, graphs: Sequence[Graph]) -> dict[str, Any]:
    """What the page holds besides widgets: data, terms, codes, maps, decoders."""
    x = exploration.x.float()
    kind, shape = kind_of(tuple(x.shape[1:]), bool(exploration.columns))
    known = x[x.isfinite()]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    of_view: Sequence[Graph | None] = graphs or [None] * len(exploration.views)
    views = [_view(view, graph) for view, graph in zip(exploration.views, of_view, strict=True)]
    names = [{"name": f"x[{i}]", "levels": []} for i in range(x[0].numel())] if kind == "table" else []
    columns = [{"name": each.name, "levels": [str(level) for level in each.levels]} for each in exploration.columns]
    return {
        "summary": summary_of(exploration),
        "kind": kind,
        "shape": shape,
        "range": [min(low, 0.0), high if high > 1.0 or low < 0.0 else 1.0],
        "x": packed(x),
        "labels": None if exploration.labels is None else exploration.labels.tolist(),
        "terms": {name: packed(values) for name, values in exploration.terms.items()},
        "columns": columns or names,
        "views": views,
        "palette": list(PALETTE),
        "scale": list(Viridis256),
    }


def kind_of(shape: tuple[int, ...], is_table: bool = False) -> tuple[str, list[int]]:
    """How data of an event shape are shown, and as what shape.

    Example:
        >>> kind_of((1, 28, 28)), kind_of((24, 88)), kind_of((50, 2)), kind_of((13,)), kind_of((200,))
        (('image', [1, 28, 28]), ('image', [1, 24, 88]), ('series', [2, 50]), ('table', [13]), ('series', [1, 200]))
    """
    if len(shape) == 3 and shape[0] in (1, 3):
        return "image", list(shape)
    if len(shape) == 2 and min(shape) > len(PALETTE):
        return "image", [1, *shape]
    if len(shape) == 2:
        return "series", [shape[1], shape[0]]
    size = int(np.prod(shape, dtype=int))
    return ("table", [size]) if is_table or size <= WIDEST_TABLE else ("series", [1, size])


def summary_of(exploration: Exploration) -> str:
    """A line on the data, the latents and the terms."""
    latents = [
        f"{view.decoder.latent}: {view.num_active} of {len(view.units)} units active" for view in exploration.views
    ]
    parts = [f"{len(exploration.x)} data", *latents]
    for name, values in exploration.terms.items():
        if name.startswith("log p") and name != "log p(x|z)":
            parts.append(f"mean {name} {float(values.mean()):.2f} nats")
        if name == "k̂":
            parts.append(f"k̂ > 0.7 for {int((values > 0.7).sum())}")
    return " · ".join(parts).replace("-", "−")


def _view(view: View, graph: Graph | None) -> dict[str, Any]:
    """One latent, as the page holds it."""
    codes = view.codes
    spread = 3 * codes.std(0)
    low, high = np.minimum(codes.min(0), codes.mean(0) - spread), np.maximum(codes.max(0), codes.mean(0) + spread)
    used = {each.name for each in view.decoder.inputs} if graph is None else {view.decoder.latent, *graph["inputs"]}
    inputs = [
        {"name": each.name, "kind": each.kind, "shape": list(each.rows.shape[1:]), "rows": packed(each.rows)}
        | {"choices": list(each.choices)}
        for each in view.decoder.inputs
        if each.name in used and (graph is None or each.kind != "observed")
    ]
    return {
        "latent": view.decoder.latent,
        "names": unit_names(view.decoder),
        "units": list(view.units),
        "ranges": [[a, b if b > a else a + 1.0] for a, b in zip(low.tolist(), high.tolist(), strict=True)],
        "inputs": inputs,
        "maps": [_map(each) for each in view.maps],
        "graph": graph,
    }


def _map(each: Map) -> dict[str, Any]:
    """One map, as the page holds it."""
    plane = None if each.plane is None else {"mean": each.plane[0].tolist(), "basis": each.plane[1].tolist()}
    return {
        "name": each.name,
        "points": packed(torch.as_tensor(each.points)),
        "axes": list(each.axes),
        "plane": plane,
    }


def _models(content: dict[str, Any]) -> dict[str, Any]:
    """The widgets and sources of Bokeh, by what `page.js` calls them."""
    views = content["views"]
    latents: list[Any] = [view["latent"] for view in views]
    colours: list[Any] = ([] if content["labels"] is None else ["label"]) + list(content["terms"])
    stretch: dict[str, Any] = {"sizing_mode": "stretch_width"}
    inputs = [each for view in views for each in view["inputs"] if each["choices"]]
    choices: dict[str, list[Any]] = {each["name"]: [str(value) for value in each["choices"]] for each in inputs}
    latent = Select(title="latent", options=latents, value=latents[0], tags=["choice"], **stretch)
    models: dict[str, Any] = {
        "latent": latent if len(latents) > 1 else None,
        "choice": Select(title="map", options=[], tags=["choice"], **stretch),
        "colour": Select(title="coloured by", options=colours, value=colours[0], tags=["choice"], **stretch),
        "conditions": [
            Select(title=name, name=name, options=values, tags=["condition"], **stretch)
            for name, values in choices.items()
        ],
        "sliders": [
            Slider(start=-1, end=1, value=0, step=0.01, format="0.00", tags=["slider"], **stretch)
            for _ in range(min(SLIDERS, max(len(view["units"]) for view in views)))
        ],
        "line": Slider(
            title="t, z = (1 − t) A + t B", name="line", start=0, end=1, value=0, step=0.01, tags=[""], **stretch
        ),
    }
    return models | _plots(content)


def _plots(content: dict[str, Any]) -> dict[str, Any]:
    """The map, and the lines of series."""
    n = content["x"]["shape"][0]
    labels = content["labels"] or [""] * n
    points = ColumnDataSource({"x": [0.0] * n, "y": [0.0] * n, "colour": ["#000000"] * n, "label": labels})
    here, ends = ColumnDataSource({"x": [], "y": []}), ColumnDataSource({"x": [], "y": [], "name": []})
    map_of = figure(
        name="map", tags=[""], height=440, sizing_mode="stretch_width", tools="pan,wheel_zoom,box_zoom,tap,reset"
    )
    dots = map_of.scatter(
        "x", "y", color="colour", size=6, alpha=0.8, line_width=0, nonselection_alpha=0.8, source=points
    )
    map_of.line("x", "y", color="#222222", source=ends)
    map_of.scatter("x", "y", size=12, fill_alpha=0, line_color="#222222", line_width=2, source=ends)
    map_of.text("x", "y", "name", x_offset=8, y_offset=-4, text_font_size="13px", source=ends)
    map_of.scatter("x", "y", marker="x", size=14, line_color="#bd1f01", line_width=3, source=here)
    tooltips = [("datum", "$index"), *([("label", "@label")] if content["labels"] else [])]
    map_of.add_tools(HoverTool(renderers=[dots], tooltips=tooltips))
    lines = figure(name="lines", tags=[""], height=240, sizing_mode="stretch_width", tools="pan,box_zoom,reset")
    series = ColumnDataSource({"x": [], "y": [], "name": [], "colour": []})
    lines.multi_line("x", "y", color="colour", legend_field="name", line_width=1.5, source=series)
    lines.legend[0].update(orientation="horizontal", padding=2, border_line_alpha=0)
    lines.add_layout(lines.legend[0], "above")
    for each in (map_of, lines):
        each.toolbar.logo = None
        each.grid.grid_line_color = "#eeeeee"
    plots = {"points": points, "here": here, "ends": ends, "axes": [map_of.xaxis[0], map_of.yaxis[0]], "series": series}
    return plots | {"plots": [map_of, *([lines] if content["kind"] == "series" else [])]}


def _roots(models: dict[str, Any]) -> list[Model]:
    """What stands on the page; the sources that are asked and answered by are roots that are not shown."""
    names = ("latent", "choice", "colour", "conditions", "sliders", "line", "plots", "request", "answer")
    found: list[Model] = []
    for name in names:
        each = models.get(name)
        found += each if isinstance(each, list) else [] if each is None else [each]
    return found


def means_of(exploration: Exploration, question: dict[str, Any]) -> Tensor:
    """What the page asks for: E[x|z] at rows of inputs, (rows, *event).

    Args:
        exploration: what the page shows.
        question: "view", the number of a view, and "rows", each a value of every input as a flat list.
    """
    decoder = exploration.views[question["view"]].decoder
    rows = question["rows"]
    values = {
        each.name: torch.tensor([row[each.name] for row in rows], dtype=torch.float64)
        .reshape(len(rows), *each.rows.shape[1:])
        .to(each.rows.dtype)
        for each in decoder.inputs
    }
    return decoder.means(values)
