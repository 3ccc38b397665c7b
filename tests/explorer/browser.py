"""A headless Chromium, driven by its DevTools over the websocket client of Tornado, which comes with Bokeh."""

import asyncio
import base64
import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium, to open the page in")

OPTIONS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions"]
SECONDS = 60


class Browser:
    """One tab. `errors` are the exceptions and the console errors of its page."""

    def __init__(self, folder, width=1280, height=900):
        self.loop = asyncio.new_event_loop()
        self.errors = []
        self.number = 0
        command = ["chromium", *OPTIONS, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.port = self._port(Path(folder) / "DevToolsActivePort")
        self.socket = self.loop.run_until_complete(self._connect())
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")
        self.resize(width, height)

    def _port(self, file):
        deadline = time.monotonic() + SECONDS
        while not (file.exists() and "\n" in file.read_text()):
            assert time.monotonic() < deadline, "Chromium has not started"
            assert self.process.poll() is None, "Chromium has ended"
            self.loop.run_until_complete(asyncio.sleep(0.05))
        return int(file.read_text().splitlines()[0])

    async def _connect(self):
        from tornado.httpclient import AsyncHTTPClient
        from tornado.websocket import websocket_connect

        answer = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{self.port}/json")
        (page,) = [each for each in json.loads(answer.body) if each["type"] == "page"]
        return await websocket_connect(page["webSocketDebuggerUrl"], max_message_size=1 << 28)

    def ask(self, method, **params):
        """What a method of the DevTools returns."""
        self.number += 1
        return self.loop.run_until_complete(asyncio.wait_for(self._ask(self.number, method, params), SECONDS))

    async def _ask(self, number, method, params):
        await self.socket.write_message(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(await self.socket.read_message())
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(message["params"]["exceptionDetails"]))
            if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.errors.append(str(message["params"]["entry"]))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def resize(self, width, height):
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def evaluate(self, code):
        """The value of an expression, awaited where it is a promise."""
        found = self.ask("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, code):
        """Asks until an expression is true."""
        done = f"new Promise((ok) => {{ const ask = () => ({code}) ? ok(true) : setTimeout(ask, 20); ask(); }})"
        assert self.evaluate(done)

    def open(self, url):
        self.ask("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && Number(document.body?.dataset.drawn) > 0")

    def screenshot(self, path):
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        content = self.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        Path(path).write_bytes(base64.b64decode(content))

    def click(self, x, y):
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait()
        self.loop.close()
