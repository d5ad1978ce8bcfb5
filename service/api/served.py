"""The models that this service serves, by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from service.errors import UnknownModel
from service.models.classes import ClassTable
from service.models.info import ModelInfo

__all__ = ["ServedModel", "ServedModels"]


class ServedModel:
    """A model and the way its classes are found."""

    def __init__(self, info: ModelInfo) -> None:
        self.info = info
        self.classes = ClassTable(info)
        self.created = _created(info.path)


def _created(folder: Path) -> int:
    """When the model's folder was written, in seconds since 1970: OpenAI's clients expect such a field."""
    try:
        return int((folder / "model_index.json").stat().st_mtime)
    except OSError:
        return 0


class ServedModels:
    """At least one model; the first is the default."""

    def __init__(self, infos: Sequence[ModelInfo]) -> None:
        self._models = {info.name: ServedModel(info) for info in infos}
        self.default = self._models[infos[0].name]

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def find(self, name: str) -> ServedModel:
        """The model of that name. Raises `UnknownModel`."""
        try:
            return self._models[name]
        except KeyError:
            raise UnknownModel("No model of this name is served here.") from None

    def pinned(self, reference: str) -> tuple[ServedModel, bool]:
        """The model of `name` or `name@revision`, and whether the revision was pinned.

        A revision is the whole hash, with or without `sha256:` before it; an abbreviation could come to mean
        something else, and what it names may be cached for ever. Raises `UnknownModel`.
        """
        name, at, revision = reference.partition("@")
        model = self.find(name)
        if at and revision not in (model.info.revision, model.info.revision.removeprefix("sha256:")):
            raise UnknownModel("The model of this name has another revision.")
        return model, bool(at)
