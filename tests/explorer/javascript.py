"""Runs graphs in JavaScript outside a browser, where Node.js is installed."""

import json
import shutil
import subprocess

import pytest
import torch

from ppvae.explorer.graph import INTERPRETER, packed, unpacked

CODE = """
const read = ({ shape, data }) => interpreter.tensor(shape, interpreter.floats(data));
const results = JSON.parse(require("fs").readFileSync(0, "utf-8")).map(({ graph, inputs }) => {
  const given = Object.fromEntries(Object.entries(inputs).map(([name, content]) => [name, read(content)]));
  const { shape, data } = interpreter.compiled(graph)(given);
  return { shape, data: Buffer.from(data.slice().buffer).toString("base64"), dtype: "float32" };
});
console.log(JSON.stringify(results));
"""

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js, to run the page's interpreter")


def run_in_node(calls):
    """What the page's interpreter makes of graphs at inputs."""
    content = [
        {"graph": graph, "inputs": {name: packed(value) for name, value in inputs.items()}} for graph, inputs in calls
    ]
    code = INTERPRETER.read_text(encoding="utf-8") + CODE
    done = subprocess.run(["node", "-e", code], input=json.dumps(content), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [unpacked(each).to(torch.float32) for each in json.loads(done.stdout)]
