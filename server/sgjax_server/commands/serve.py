"""`sgjax serve`: the HTTP service."""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import socket
import time

from sgjax.config import EngineConfig
from sgjax.engine.info import EngineInfo
from sgjax_server.commands.loading import add_engine_flags
from sgjax_server.config import ServerConfig
from sgjax_server.flags import add_flags, from_flags
from sgjax_server.logs import set_up_logging
from sgjax_server.processes.supervisor import Supervisor
from sgjax_server.progress import ProgressLine


def add_command(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "serve", help="serve a model over HTTP", allow_abbrev=False, usage="sgjax serve [FLAGS]"
    )
    add_flags(parser, ServerConfig, "server")
    add_engine_flags(parser)
    parser.set_defaults(run=functools.partial(_run, parser))


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    server_config = from_flags(parser, ServerConfig, args)
    engine_config = from_flags(parser, EngineConfig, args)
    try:
        listener = _listen(server_config)
    except OSError as error:
        parser.error(f"cannot listen on {server_config.host}:{server_config.port}: {error.strerror or error}")
    return serve(engine_config, server_config, listener)


def serve(engine_config: EngineConfig, config: ServerConfig, listener: socket.socket) -> int:
    """Serves until a signal says stop; gives the exit status. The engine loads while the port already answers."""
    started_s = time.monotonic()
    set_up_logging(config.log_level, config.log_format)
    progress = ProgressLine()

    def on_ready(info: EngineInfo) -> None:
        progress.close()
        print(_ready_line(listener, config, info.model_name, time.monotonic() - started_s), flush=True)

    supervisor = Supervisor(engine_config, config, listener, on_progress=progress, on_ready=on_ready)
    try:
        return asyncio.run(supervisor.run())
    finally:
        progress.close()


def _listen(config: ServerConfig) -> socket.socket:
    """A bound socket. It is made before anything is loaded, so that a taken port is noticed at once."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener


def _ready_line(listener: socket.socket, config: ServerConfig, model_name: str, seconds: float) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    url = f"{'https' if config.ssl_certfile else 'http'}://{host}:{port}"
    # Greedy: at temperature 1 a model as small as the embedded one answers with noise as often as not.
    body = json.dumps({"temperature": 0, "messages": [{"role": "user", "content": "What is the capital of France?"}]})
    name = config.served_model_name or model_name
    key = " -H 'Authorization: Bearer KEY'" if config.api_key else ""
    return (
        f"sgjax serves {name} at {url} after {seconds:.1f} s. Try: "
        f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'"
    )
