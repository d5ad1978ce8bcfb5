"""Every setting of the service: one name, one default, one plain sentence.

The sentence feeds `onestep serve --help` and the README. Each is a flag (`--max-queue-time`) and a
variable (`ONESTEP_MAX_QUEUE_TIME`); a flag wins. Durations are in seconds (`90`, `1.5m`), sizes in bytes
(`10MiB`), lists are separated by commas. What is unknown or wrong stops the start with a sentence.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from service.cache import default_cache_dir
from service.units import parse_bytes, parse_list, parse_seconds

__all__ = ["ENV_PREFIX", "Settings", "SettingsError", "flag_of", "load_settings", "variable_of"]

ENV_PREFIX = "ONESTEP_"

Seconds = Annotated[float, BeforeValidator(parse_seconds)]
Bytes = Annotated[int, BeforeValidator(parse_bytes)]
Words = Annotated[tuple[str, ...], BeforeValidator(parse_list)]
Port = Annotated[int, Field(ge=0, le=65535)]

# What Kubernetes and `docker --link` add on their own for a service that is called "onestep".
SERVICE_LINK = re.compile(r"ONESTEP_(SERVICE_HOST|SERVICE_PORT\w*|PORT_\d+_(TCP|UDP)\w*|NAME|ENV_\w+)")
KEY = re.compile(r"[\x21-\x7e]+")


class SettingsError(Exception):
    """One or more settings are unknown or wrong; the text is a sentence for each, a line each."""


class Settings(BaseModel):
    """The settings of one service, checked, and fixed for its life. `repr` hides the keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    model: str = Field(
        "bundled",
        min_length=1,
        description="What to serve: a folder, a hub id or a name that `onestep models` lists; several separated by "
        "commas, the first is the default; name=place sets the served name.",
    )
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: Port = Field(8000, description="Port to listen on; 0 takes a free one.")
    root_path: str = Field("", description="Prefix that a proxy puts before every path, such as /images.")
    device: Words = Field(
        ("auto",),
        min_length=1,
        description="Where to compute: auto, cpu, cuda, or several such as cuda:0,cuda:1.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Number type of the network; auto is float32 on the CPU and bfloat16 on CUDA."
    )
    threads: int = Field(0, ge=0, le=1024, description="Cores an engine on the CPU uses; 0 is every usable one.")
    compile: bool = Field(
        False,
        description="Compile the network for this CPU at the first start, which takes minutes and a C++ compiler; kept "
        "in cache_dir. Quicker only where Onestep's own kernels do not run (AVX2, AVX-512, AMX); another fingerprint.",
    )
    cache_dir: Path = Field(
        default_factory=default_cache_dir,
        description="Folder for what warm-up found out, reused by the next start.",
    )
    batch_invariant: bool = Field(
        True, description="Use only batch sizes that were proven to give the same bytes for the same seed."
    )
    max_batch_size: int = Field(64, ge=1, le=4096, description="Most images in one network forward.")
    max_step_time: Seconds = Field(1.0, gt=0, description="Longest that one network forward may take.")
    max_client_batch_size: int = Field(64, ge=1, le=4096, description="Largest batch_size of a request.")
    request_timeout: Seconds = Field(
        300.0, gt=0, le=86400, description="Longest that a request may take, waiting included."
    )
    max_queue_time: Seconds = Field(
        60.0, gt=0, description="A request that would wait longer than this is refused at once with 503."
    )
    max_client_image_steps: int = Field(
        0, ge=0, description="Image-steps that one client may have outstanding, beyond it 429; 0 is no limit."
    )
    max_body_bytes: Bytes = Field(10 * 2**20, ge=1024, description="Largest request body.")
    body_timeout: Seconds = Field(30.0, gt=0, description="Longest that receiving a request body may take.")
    drain_delay: Seconds = Field(
        0.0, ge=0, description="How long requests are still accepted after SIGTERM while /readyz says 503."
    )
    drain_timeout: Seconds = Field(
        60.0, ge=0, description="Longest that accepted requests may take after the listener has closed."
    )
    engine_restarts: int = Field(
        10,
        ge=0,
        description="Replacements of an engine within 10 minutes before the service gives up and exits.",
    )
    response_cache_bytes: Bytes = Field(
        64 * 2**20, ge=0, description="Memory for recent answers to image URLs; 0 keeps none."
    )
    api_keys: Words = Field(
        (),
        repr=False,
        description="Keys that clients must send; none means no key is needed. Prefer the variable: "
        "flags can be seen by other users of the machine.",
    )
    public_images: bool = Field(False, description="With api_keys set, leave GET of image URLs open to everyone.")
    cors_origins: Words = Field(
        (),
        description="Origins whose pages may use the service, such as https://app.example; * is all.",
    )
    forwarded_allow_ips: Words = Field(
        ("127.0.0.1",),
        description="Proxies (addresses or networks, * is all) whose forwarded headers are believed.",
    )
    metrics_port: Port | None = Field(None, description="Serve /metrics on this port instead, without keys.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="json is one object a line, console is for people; auto is console on a terminal."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")

    @field_validator("root_path")
    @classmethod
    def _root_path(cls, value: str) -> str:
        value = value.rstrip("/")
        if value and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", value):
            raise ValueError("give a path that starts with / and needs no percent-encoding")
        return value

    @field_validator("cache_dir")
    @classmethod
    def _cache_dir(cls, value: Path) -> Path:
        try:
            return value.expanduser()
        except RuntimeError:
            raise ValueError("there is no home folder that ~ could stand for") from None

    @field_validator("device")
    @classmethod
    def _device(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?|auto", device) for device in value):
            raise ValueError("give auto, cpu, cuda, or cuda:N")
        if len(value) > 1 and "auto" in value:
            raise ValueError("auto cannot stand beside other devices")
        return value

    @field_validator("api_keys")
    @classmethod
    def _api_keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(KEY.fullmatch(key) for key in value):
            raise ValueError("keys are made of visible ASCII characters, without spaces")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _cors_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s?#]+", origin) for origin in value):
            raise ValueError("give origins as browsers send them: scheme://host or scheme://host:port, no path")
        return value

    @field_validator("forwarded_allow_ips")
    @classmethod
    def _forwarded_allow_ips(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "*" in value:
            return ("*",)
        try:
            return tuple(str(ipaddress.ip_network(place, strict=False)) for place in value)
        except ValueError:
            raise ValueError("give addresses, networks such as 10.0.0.0/8, or *") from None

    @model_validator(mode="after")
    def _ports(self) -> Self:
        if self.metrics_port and self.metrics_port == self.port:
            raise ValueError("metrics_port must differ from port")
        return self


def flag_of(name: str) -> str:
    """The command line flag of a setting: `--max-queue-time`."""
    return "--" + name.replace("_", "-")


def variable_of(name: str) -> str:
    """The environment variable of a setting: `ONESTEP_MAX_QUEUE_TIME`."""
    return ENV_PREFIX + name.upper()


def load_settings(flags: Mapping[str, object], environ: Mapping[str, str]) -> Settings:
    """Settings from given flags (by field name) and `ONESTEP_*` variables; an empty variable counts as unset.

    Raises `SettingsError` with a sentence for each unknown variable or wrong value; no value is repeated.
    """
    names = {variable_of(name): name for name in Settings.model_fields}
    given: dict[str, object] = {}
    wrong: list[str] = []
    for variable, text in environ.items():
        if not variable.startswith(ENV_PREFIX) or _is_service_link(variable, text):
            continue
        if variable not in names:
            near = difflib.get_close_matches(variable, names, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            wrong.append(f"{variable} is not a setting of this service{hint}")
        elif text.strip():
            given[names[variable]] = text
    try:
        settings = Settings.model_validate({**given, **flags})
    except ValidationError as error:
        wrong.extend(_sentences(error))
    if wrong:
        raise SettingsError("\n".join(wrong))
    return settings


def _is_service_link(variable: str, text: str) -> bool:
    if variable == "ONESTEP_PORT" and text.startswith(("tcp://", "udp://")):
        return True
    return SERVICE_LINK.fullmatch(variable) is not None


def _sentences(error: ValidationError) -> list[str]:
    sentences = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        message = item["msg"].removeprefix("Value error, ").rstrip(".")
        if not item["loc"]:
            sentences.append(f"{message}.")
            continue
        name = str(item["loc"][0])
        sentences.append(f"{name} ({flag_of(name)}, {variable_of(name)}) is wrong: {message}.")
    return sentences
