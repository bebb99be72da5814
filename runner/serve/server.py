"""Running the application: a socket, a model, and uvicorn until a signal ends it."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from ...common.errors import TsconvertError, reason
from ...common.progress import note
from ...common.results import Result
from ..config import ServeConfig
from ..model import load

_LOOPBACK = ("127.", "::1", "localhost")


@dataclass(frozen=True, kw_only=True)
class Serving(Result):
    """What is being served, and where."""

    url: str
    model: str
    mode: str
    threads: int
    context: int

    def __str__(self) -> str:
        return (
            f"{self.model} ({self.mode}, {self.threads} threads, context {self.context}) at {self.url}; Ctrl-C ends it"
        )


def serve(config: ServeConfig, ready: Callable[[Serving], None]) -> None:
    """Answer requests until a signal comes.

    Args:
        ready: called once the server listens.

    Raises:
        TsconvertError: the file cannot be run, the address is taken, or the packages are missing.
    """
    try:
        import uvicorn

        from .app import Server
        from .engine import Engine
    except ImportError as error:
        raise TsconvertError(f"serve needs {error.name}: pip install 'tsconvert[server]'") from None
    with (
        _socket(config) as listening,
        load(config.file, threads=config.threads, mode=config.sparsity, context=config.context) as model,
    ):
        _ = model.tokenizer  # what is wrong with it shows before the first request
        if config.api_key is None and not config.host.startswith(_LOOPBACK):
            note(f"--host {config.host}: whoever reaches this machine may use the model; --api-key keeps others out")
        engine = Engine(model, config.queue)
        name = config.file.stem
        server = Server(engine, name=name, created=int(config.file.stat().st_mtime), key=config.api_key)
        host, port = listening.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        ready(
            Serving(
                url=f"http://{host}:{port}", model=name, mode=model.mode, threads=model.threads, context=model.context
            )
        )
        web = uvicorn.Server(
            uvicorn.Config(
                server.app(), log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1,
                server_header=False,
            )
        )  # fmt: skip
        try:
            web.run(sockets=[listening])
        finally:
            engine.close()


def _socket(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=1024)
    except (OSError, OverflowError, UnicodeError) as error:
        number = getattr(error, "errno", None) or 0
        why = os.strerror(number) if number > 0 else reason(error)
        raise TsconvertError(
            f"--host {config.host} --port {config.port}: cannot listen there ({why}); choose another port, or 0 for any"
        ) from None
