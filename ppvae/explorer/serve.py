"""The page from a server on this machine, which decodes what it asks for with the pair itself."""

from __future__ import annotations

import json
from typing import Any

from bokeh.application import Application
from bokeh.application.handlers.function import FunctionHandler
from bokeh.core.templates import get_env
from bokeh.document import Document
from bokeh.server.server import Server

from ppvae.explorer.exploration import Exploration
from ppvae.explorer.graph import packed
from ppvae.explorer.page import TEMPLATE, Wire, fill, means_of

ADDRESS = "127.0.0.1"
"""Loopback: nobody else's machine can reach it."""


def server_of(exploration: Exploration, *, port: int = 0) -> Server:
    """A server of the page, not yet started; `server.port` is its port.

    Args:
        exploration: what the page shows.
        port: on which it listens; 0 is any that is free.

    Raises:
        OSError: where the port is in use.
    """

    def make(document: Document) -> None:
        document.template = get_env().from_string("{% extends base %}\n" + TEMPLATE)
        wire = fill(document, exploration)
        assert wire is not None
        wire.request.on_change("data", lambda name, old, new: _respond(exploration, wire))

    return Server({"/": Application(FunctionHandler(make))}, port=port, address=ADDRESS, num_procs=1)


def serve(server: Server, *, browser: bool = True) -> None:
    """Serves until Ctrl-C."""
    server.start()
    if browser:
        server.io_loop.add_callback(server.show, "/")
    try:
        server.io_loop.start()
    except KeyboardInterrupt:
        server.stop()


def url_of(server: Server) -> str:
    """Where the page is."""
    return f"http://localhost:{server.port}/"


def _respond(exploration: Exploration, wire: Wire) -> None:
    """Answers what the page has asked."""
    question = json.loads(wire.request.data["content"][0])
    reply: dict[str, Any] = {"number": question["number"]}
    try:
        reply["means"] = packed(means_of(exploration, question).flatten(1))["data"]
    except (ValueError, KeyError, IndexError, TypeError, RuntimeError, NotImplementedError) as error:
        reply["error"] = f"the pair could not decode this: {error}"
    wire.answer.data = {"content": [json.dumps(reply)]}
