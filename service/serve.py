"""`onestep serve`: settings, models, application, server. Imported when the command runs, not before."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
import types
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import uvloop
from pydantic.fields import FieldInfo

from service.exits import ExitCode
from service.logs import configure_logging
from service.models.info import ModelInfo
from service.settings import Settings, SettingsError, flag_of, load_settings, variable_of

__all__ = ["add_flags", "run"]

log = logging.getLogger(__name__)

NUMBERS: Final = {"parse_seconds": "SECONDS", "parse_bytes": "BYTES", "parse_list": "A,B"}

EPILOG = """\
Every flag can also be given by the variable that stands beside it; a flag wins. Durations are seconds or have a
unit (90, 1.5m, 250ms), sizes are bytes or have one (10MiB), lists are separated by commas.
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for each setting, from its name, type and sentence."""
    parser.usage = "onestep serve [FLAG VALUE]..."
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for name, field in Settings.model_fields.items():
        action: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": _help(name, field)}
        if field.annotation is bool:
            parser.add_argument(flag_of(name), action=argparse.BooleanOptionalAction, **action)
        else:
            parser.add_argument(flag_of(name), metavar=_metavar(field), **action)


def _help(name: str, field: FieldInfo) -> str:
    text = f"{field.description} [{variable_of(name)}"
    default = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(default, tuple):
        default = ",".join(default)
    if isinstance(default, bool):
        default = str(default).lower()
    if default not in (None, ""):
        text += f", default {default:g}" if isinstance(default, float) else f", default {default}"
    return text.replace("%", "%%") + "]"


def _metavar(field: FieldInfo) -> str:
    for item in field.metadata:
        reader = getattr(getattr(item, "func", None), "__name__", "")
        if reader in NUMBERS:
            return NUMBERS[reader]
    kinds = [field.annotation]
    if get_origin(field.annotation) is types.UnionType:
        kinds = list(get_args(field.annotation))
    if get_origin(kinds[0]) is Literal:
        return "{" + ",".join(get_args(kinds[0])) + "}"
    if Path in kinds:
        return "FOLDER"
    return "TEXT" if str in kinds else "N"


def run(args: argparse.Namespace, environ: Mapping[str, str] | None = None) -> int:
    """Serves until it is told to stop; the exit code says how it ended."""
    flags = {name: value for name, value in vars(args).items() if name in Settings.model_fields}
    try:
        settings = load_settings(flags, os.environ if environ is None else environ)
    except SettingsError as error:
        return _refuse(str(error), ExitCode.USAGE)
    configure_logging(settings.log_format, settings.log_level)
    if not settings.api_keys and variable_of("api_keys") in (os.environ if environ is None else environ):
        log.warning("%s is set and empty: whoever reaches this service may use it", variable_of("api_keys"))
    _raise_open_files()
    return _serve(settings)


def _raise_open_files() -> None:
    """As many connections as the system allows, where the soft limit is a shell's."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS says that there is no limit, and has one
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    log.debug("open files: %d of %d", soft, hard)


def _serve(settings: Settings) -> int:
    from service.api.listening import CannotListen, listen
    from service.errors import FatalModelError
    from service.models.places import load_infos

    try:
        infos = load_infos(settings.model)
    except FatalModelError as error:
        return _refuse(str(error), ExitCode.MODEL)
    try:
        listening = listen(settings.host, settings.port)
        metrics = None if settings.metrics_port is None else listen(settings.host, settings.metrics_port)
    except CannotListen as error:
        return _refuse(str(error), ExitCode.CANNOT_LISTEN)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(_life(settings, infos, listening, metrics))
            if code is not ExitCode.OK:
                _leave_now(code)  # a thread that still works holds up the loop's end
            return code
    except Exception:
        log.exception("the service ends by a fault of ours")
        return ExitCode.FAULT


async def _life(
    settings: Settings,
    infos: Mapping[str, ModelInfo],
    listening: socket.socket,
    metrics_listening: socket.socket | None,
) -> ExitCode:
    from service.launch import make_engine_client
    from service.metrics import EngineMetrics, Metrics

    metrics = Metrics()
    engine = make_engine_client(settings, infos, EngineMetrics(metrics))
    await engine.start()
    await asyncio.sleep(0)  # spawned now, the engine imports torch while this process imports the rest
    await asyncio.to_thread(import_module, "service.api.app")
    from service.api.app import create_app, create_metrics_app
    from service.api.server import Server

    app = create_app(settings, infos, engine, metrics)
    beside = None if metrics_listening is None else (create_metrics_app(app), metrics_listening)
    return await Server(app, listening, beside).run()


def _refuse(reason: str, code: ExitCode) -> int:
    for line in reason.splitlines():
        print(f"onestep serve: {line}", file=sys.stderr)
    return code


def _leave_now(code: ExitCode) -> None:
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
