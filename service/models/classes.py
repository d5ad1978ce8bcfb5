"""Class names and slugs of a model, and which class a client means."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from service.errors import FatalModelError, InvalidRequest, UnknownModel
from service.models.info import ClassInfo, ModelInfo

ANY = "any"  # in URLs: the class that the seed decides
MAX_NAME_LENGTH = 200
MAX_SLUG_LENGTH = 60
MAX_INDEX_DIGITS = 9  # more cannot be an index; Python refuses to read very long ones


def class_names(labels: object, count: int, path: Path) -> list[str]:
    """Names for `count` classes from `{"0": "name", ...}` or `["name", ...]`; `class N` where none is given.

    Raises FatalModelError that names `path` when the labels do not fit the network.
    """
    if isinstance(labels, Sequence) and not isinstance(labels, str):
        labels = {str(index): name for index, name in enumerate(labels)}
    if not isinstance(labels, Mapping):
        raise FatalModelError(f"{path}: class names must be an object from index to name, or a list.")
    names = [f"class {index}" for index in range(count)]
    for key, name in labels.items():
        if not re.fullmatch(r"0|[1-9][0-9]{0,8}", str(key)) or int(key) >= count:
            raise FatalModelError(f"{path}: names class {key!r}, but the network has classes 0 to {count - 1}.")
        if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME_LENGTH or not name.isprintable():
            raise FatalModelError(
                f"{path}: the name of class {key} must be 1 to {MAX_NAME_LENGTH} printable characters."
            )
        names[int(key)] = name.strip()
    return names


def slug_of(name: str, index: int) -> str:
    """`name` up to its first comma in lower-case ASCII; `class-<index>` if that is empty, digits or `any`."""
    plain = unicodedata.normalize("NFKD", name.split(",")[0]).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain)[:MAX_SLUG_LENGTH].strip("-")
    return f"class-{index}" if not slug or slug.isdigit() or slug == ANY else slug


def make_classes(names: Sequence[str]) -> tuple[ClassInfo, ...]:
    """One class for each name; slugs that several would share get each one's index appended."""
    slugs = [slug_of(name, index) for index, name in enumerate(names)]
    uses = Counter(slugs)
    taken = {slug for slug in slugs if uses[slug] == 1}
    for index, slug in enumerate(slugs):
        if uses[slug] > 1:
            unique = f"{slug}-{index}"
            while unique in taken:
                unique += f"-{index}"
            taken.add(unique)
            slugs[index] = unique
    return tuple(ClassInfo(index, name, slug) for index, (name, slug) in enumerate(zip(names, slugs, strict=True)))


def class_of_seed(seed: int, num_classes: int) -> int:
    """The class of an image for which none was asked: decided by its seed, evenly over the classes."""
    return int.from_bytes(sha256(b"class:%d" % seed).digest()[:8], "big") % num_classes


class ClassTable:
    """Finds the class a client means, in a body (index, name or slug) or in a URL (index, slug or `any`)."""

    def __init__(self, info: ModelInfo) -> None:
        self._count = info.num_classes
        self._classes = info.classes
        self._by_slug = {item.slug: item.index for item in info.classes}
        self._by_name: dict[str, list[int]] = {}
        for item in info.classes:
            self._by_name.setdefault(item.name.casefold(), []).append(item.index)

    def from_body(self, value: int | str, *, loc: tuple[str | int, ...]) -> int:
        """Index of a class given as an index, digits, or a name or slug in any case; else InvalidRequest."""
        if self._count is None:
            raise InvalidRequest("This model takes no class.", loc=loc, code="unconditional_model")
        if isinstance(value, int):
            index: int | None = value if 0 <= value < self._count else None
        elif value.isascii() and value.isdigit():
            index = self._index(value)
        else:
            return self._named(value.strip().casefold(), loc)
        if index is None:
            raise InvalidRequest(
                f"A class index of this model is 0 to {self._count - 1}.", loc=loc, code="class_out_of_range"
            )
        return index

    def _named(self, name: str, loc: tuple[str | int, ...]) -> int:
        if name == ANY:
            raise InvalidRequest("The seed decides the class where null is sent.", loc=loc, code="reserved_class")
        found = self._by_name.get(name, [])
        if len(found) > 1:
            candidates = ", ".join(f"{self._classes[index].slug} ({index})" for index in found)
            raise InvalidRequest(
                f"Several classes bear this name; send one of: {candidates}.", loc=loc, code="ambiguous_class"
            )
        if found:
            return found[0]
        if name in self._by_slug:
            return self._by_slug[name]
        raise InvalidRequest("This model has no class of this name.", loc=loc, code="unknown_class")

    def from_url(self, text: str) -> int | None:
        """Index of a class given as digits or slug, None for `any`; else UnknownModel."""
        if text == ANY:
            return None
        index = self._index(text) if text.isascii() and text.isdigit() else self._by_slug.get(text)
        if index is None:
            raise UnknownModel("This model has no such class.")
        return index

    def _index(self, digits: str) -> int | None:
        """The index that `digits` say, None when the model has no such class."""
        if self._count is None or len(digits) > MAX_INDEX_DIGITS or int(digits) >= self._count:
            return None
        return int(digits)
