"""What an ETag stands for."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from service.api import etag
from service.api.planning import plan_image
from tests.api.counting_engine import model_info


def test_what_decides_the_bytes_is_in_the_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    info = model_info()

    def tag(model: Any = info) -> str:
        plan = plan_image(model, 1, 42, (0,), "png", None, client="", deadline=0.0, bound=())
        return etag.image_etag(plan, "f")

    before = tag()
    assert before == tag()
    assert before != tag(msgspec.structs.replace(info, revision="sha256:2"))
    monkeypatch.setattr(etag, "encoder_versions", lambda: "zlib=2")
    assert before != tag()
