"""Hub downloads: what is fetched of a repository. The hub is a server in this process."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

COMMIT = "a" * 40
CONFIG = {"model_type": "mistral"}
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = {"weight_map": {"x": SHARDS[0], "y": SHARDS[1]}}
SMALL = {"config.json": json.dumps(CONFIG), "tokenizer.model": "t", "chat_template.jinja": "c"}
OTHERS = {
    "consolidated.safetensors": "other", "consolidated.00.pth": "other", "original/model.json": "o", "README.md": "r",
    "pytorch_model.bin": "b", "model.Q4_0.gguf": "g", "sub/model.safetensors": "s",
}  # fmt: skip


class Hub(ThreadingHTTPServer):
    """The two calls of the hub that a download makes."""

    files: dict[str, str]
    fetched: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        headers = {"X-Repo-Commit": COMMIT}
        if path.startswith("/api/models/"):
            tree = [
                {"type": "file", "path": name, "size": len(text), "oid": name}
                for name, text in self.server.files.items()
            ]
            info = {"id": "some/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.server.files]}
            raw = json.dumps(tree if "/tree/" in path else info).encode()
        else:
            name = path.split(f"/resolve/{COMMIT}/")[-1]
            raw = self.server.files[name].encode()
            headers["ETag"] = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
            if body:
                self.server.fetched.append(name)
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(raw)), "Content-Type": "application/json"}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(("127.0.0.1", 0), Handler) as server:
        server.fetched = []
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("weights", [["model.safetensors"], SHARDS, ["model.safetensors", *SHARDS]])
def test_what_the_index_names_is_fetched(hub: Hub, tmp_path: Path, weights: list[str]):
    index = {"model.safetensors.index.json": json.dumps(INDEX)} if SHARDS[0] in weights else {}
    hub.files = SMALL | index | dict.fromkeys(weights, "w") | OTHERS
    folder = Path(called(hub, tmp_path, "from tsconvert.model.files.locate import find_model as get").strip())
    wanted = {*SMALL, *index, *(weights[:1] if weights[0] == "model.safetensors" else weights)}
    assert set(hub.fetched) == wanted
    assert {path.name for path in folder.iterdir()} == wanted


def test_a_model_that_is_refused_is_not_fetched(hub: Hub, tmp_path: Path):
    hub.files = SMALL | {"config.json": '{"model_type": "gpt2"}', "model.safetensors": "w"}
    said = called(hub, tmp_path, "from tsconvert.model.checkpoint import open_checkpoint as get")
    assert "config.json: model_type is 'gpt2'; tsconvert converts " in said
    assert set(hub.fetched) == set(SMALL)


def called(hub: Hub, home: Path, imported: str) -> str:
    """What is said of get("some/model") in a process that knows this hub alone."""
    ends = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    code = f"{imported}\ntry:\n    print(get('some/model'))\nexcept Exception as error:\n    print(error)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **ends},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return run.stdout
