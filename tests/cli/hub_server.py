"""A stand-in for the Hugging Face Hub: the few endpoints by which a repository is made, committed to and downloaded."""

from __future__ import annotations

import base64
import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

import yaml  # huggingface_hub brings it


class Hub(ThreadingHTTPServer):
    """Repositories in memory, on a port of this machine.

    Attributes:
        repositories: the files of each, by name, as the last commit left them.
        private: which were made private.
        requests: what was asked for, as "METHOD path".
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.private, self.requests = {}, set(), []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def sha(self, name):
        """The name of the last commit: a hash of its files."""
        found = hashlib.sha1()
        for path, content in sorted(self.repositories[name].items()):
            found.update(path.encode() + content)
        return found.hexdigest()


@contextmanager
def serving():
    hub = Hub()
    thread = Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):
        pass

    def answer(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def parts(self):
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        return path.strip("/").split("/")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        match self.parts():
            case ["api", "repos", "create"]:
                self.create(json.loads(body))
            case ["api", "validate-yaml"]:
                self.validate(json.loads(body)["content"])
            case ["api", "models", owner, name, "preupload", "main"]:
                files = json.loads(body)["files"]
                modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
                self.answer({"files": modes} if f"{owner}/{name}" in self.server.repositories else {})
            case ["api", "models", owner, name, "commit", "main"]:
                self.commit(f"{owner}/{name}", [json.loads(line) for line in body.splitlines()])
            case _:
                self.answer({"error": f"no such endpoint {self.path}"}, 404)

    def create(self, asked):
        if self.headers.get("Authorization") != "Bearer hf_stand_in":
            self.answer({"error": "Invalid username or password."}, 401)
            return
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        if asked.get("visibility") == "private":
            self.server.private.add(name)
        known = name in self.server.repositories
        self.server.repositories.setdefault(name, {})
        self.answer({"url": f"{self.server.url}/{name}", "name": name, "id": name}, 409 if known else 200)

    def validate(self, card):
        """Front matter must be YAML with a list of tags, as the hub says."""
        front = yaml.safe_load(card.split("---\n")[1])
        right = isinstance(front, dict) and isinstance(front.get("tags"), list)
        self.answer({"errors": [] if right else [{"message": "tags must be an array"}], "warnings": []})

    def commit(self, name, lines):
        header, *operations = lines
        assert header["key"] == "header"
        for operation in operations:
            assert operation["key"] == "file"
            value = operation["value"]
            self.server.repositories[name][value["path"]] = base64.b64decode(value["content"])
        sha = self.server.sha(name)
        self.answer({"commitUrl": f"{self.server.url}/{name}/commit/{sha}", "commitOid": sha, "success": True})

    def do_GET(self):
        match self.parts():
            case ["api", "models", owner, name, *rest] if f"{owner}/{name}" in self.server.repositories:
                self.describe(f"{owner}/{name}", rest)
            case [owner, name, "resolve", _, *path] if f"{owner}/{name}" in self.server.repositories:
                self.resolve(f"{owner}/{name}", "/".join(path))
            case _:
                self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def describe(self, name, rest):
        files = self.server.repositories[name]
        if rest[:1] == ["tree"]:
            blob = [
                {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for p, c in files.items()
            ]
            self.answer(blob)
        else:
            siblings = [{"rfilename": path} for path in files]
            self.answer({"id": name, "modelId": name, "sha": self.server.sha(name), "siblings": siblings})

    def resolve(self, name, path):
        content = self.server.repositories[name].get(path)
        if content is None:
            self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
            return
        tag = f'"{hashlib.sha1(content).hexdigest()}"'
        self.answer(content, ETag=tag, X_Repo_Commit=self.server.sha(name))
