"""The `model` setting: which models are served, under which names, and where their folders are."""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from service.errors import FatalModelError
from service.models.catalog import CATALOG, by_hub_id
from service.models.folder import load_info
from service.models.hub import HUB_ID, fetch
from service.models.info import ModelInfo

BUNDLED = Path(__file__).parent / "bundled"
DEFAULT_MODEL = "avatars-32"

SERVED_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,100}")


class Place(msgspec.Struct, frozen=True):
    """One model of the setting: the name it is served under, and where it comes from."""

    name: str
    place: str  # bundled name, name in the catalog, local folder, or hub id with an optional @revision


def bundled_names() -> list[str]:
    """Names of the models in the package."""
    return sorted(folder.name for folder in BUNDLED.iterdir() if (folder / "model_index.json").is_file())


def parse_places(setting: str) -> list[Place]:
    """The models of a `model` setting in its order; the first is the default. `bundled` means DEFAULT_MODEL.

    Raises FatalModelError for an empty or invalid part and for a name given twice.
    """
    places: list[Place] = []
    for part in (part.strip() for part in setting.split(",")):
        given, equals, rest = part.partition("=")
        named = bool(equals) and "/" not in given
        name, place = (given.strip(), rest.strip()) if named else ("", part)
        if not place:
            raise FatalModelError("The setting `model` has an empty part; write PLACE or NAME=PLACE, comma-separated.")
        place = DEFAULT_MODEL if place == "bundled" else place
        name = name if named else _served_name(place)
        if not SERVED_NAME.fullmatch(name):
            raise FatalModelError(
                f"A served name is 1 to 100 of A-Z a-z 0-9 . _ -, and {name!r} is not; write NAME={place}."
            )
        if name in {other.name for other in places}:
            raise FatalModelError(f"Two models would be served as {name!r}; name one of them with NAME=PLACE.")
        places.append(Place(name, place))
    return places


def _served_name(place: str) -> str:
    """The last part of a path or hub id, as a slug."""
    hub = HUB_ID.fullmatch(place)
    path = Path(os.path.expanduser(hub["id"] if hub and not os.path.exists(place) else place))
    last = path.name if path.name not in ("", "..") else path.resolve().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-")


def load_infos(setting: str) -> dict[str, ModelInfo]:
    """Every model of the `model` setting, found, fetched and checked, by served name; default first."""
    return {place.name: load_place(place) for place in parse_places(setting)}


def load_place(place: Place) -> ModelInfo:
    """One model, found, fetched if it is on the hub, and checked.

    A bundled or catalog name goes before a folder of that name (`./NAME` is the folder), a folder before a
    hub id.
    """
    try:
        return _load_place(place)
    except OSError as error:  # a folder on the way that may not be read, a name too long
        raise FatalModelError(f"{error.filename or place.place}: cannot be read ({error.strerror}).") from None


def _load_place(place: Place) -> ModelInfo:
    if place.place in bundled_names():
        return load_info(BUNDLED / place.place, place.name)
    entry = CATALOG.get(place.place)
    folder = Path(os.path.expanduser(place.place))
    if entry is None and folder.exists():
        return load_info(folder, place.name)
    hub = HUB_ID.fullmatch(entry.hub_id if entry else place.place)
    if hub is None:
        known = ", ".join([*bundled_names(), *CATALOG])
        raise FatalModelError(
            f"{place.place}: is no folder, no hub id (OWNER/NAME), and none of the known models: {known}."
        )
    entry = by_hub_id(hub["id"])
    return load_info(
        fetch(hub["id"], hub["revision"]),
        place.name,
        default_names=entry.class_names if entry else (),
        default_license=entry.license if entry else None,
    )
