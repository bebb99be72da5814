"""A server in a thread, on loopback."""

import asyncio
import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.runner.model import load

uvicorn = pytest.importorskip("uvicorn", reason="pip install 'tsconvert[server]'")
TEMPLATE = (
    "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + '\n' }}"
    "{% if m['role'] == 'nobody' %}{{ raise_exception('no nobody') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture(scope="session")
def file(sparse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny sparse model with a chat template."""
    folder = tmp_path_factory.mktemp("serve") / "model"
    shutil.copytree(sparse, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    out = folder.with_name("tiny.gguf")
    export_unverified(ExportConfig(model=folder, out=out, type_name="Q8_0"))
    return out


class Served:
    """A running server: its engine, and where it listens."""

    def __init__(self, file: Path, **options: object) -> None:
        from tsconvert.runner.serve.app import Server
        from tsconvert.runner.serve.engine import Engine

        self.model = load(file, threads=1)
        self.engine = Engine(self.model, options.get("queue", 32))
        app = Server(self.engine, name=file.stem, created=0, key=options.get("key")).app()
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.web = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=lambda: asyncio.run(self.web.serve(sockets=[self._socket])))
        self._thread.start()

    @contextmanager
    def engine_held(self) -> Iterator[None]:
        """Within, the model's thread does something else."""
        free = threading.Event()
        self.engine._thread.submit(free.wait, 60)
        try:
            yield
        finally:
            free.set()

    def close(self) -> None:
        self.web.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()
        self.engine.close()
        self.model.close()
        self._socket.close()


@pytest.fixture(scope="session")
def serving(file: Path) -> Callable:
    """`with serving(key="k", queue=2) as served`."""

    @contextmanager
    def run(path: Path = file, **options: object) -> Iterator[Served]:
        served = Served(path, **options)
        try:
            yield served
        finally:
            served.close()

    return run


@pytest.fixture(scope="module")
def served(serving: Callable) -> Iterator[Served]:
    with serving() as one:
        yield one
