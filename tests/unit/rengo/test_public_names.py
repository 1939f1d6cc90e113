"""The public names: lazy, complete, and those of the rooms."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

import rengo
from fl_client.models import layers


def test_import_loads_nothing() -> None:
    code = (
        "import sys; import rengo; "
        "print({'numpy', 'torch', 'pydantic', 'fl_client.tasks', 'boto3'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", [n for n in rengo.__all__ if n not in {"Site", "RunResult"}])
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(rengo, name) is not None
    assert name in dir(rengo)


@pytest.mark.skipif(
    importlib.util.find_spec("rengo.site.site") is None, reason="no rengo.site.site"
)
def test_the_site_resolves() -> None:
    assert rengo.Site.__name__ == "Site"
    assert rengo.RunResult.__name__ == "RunResult"


def test_a_layer_that_exists_is_public() -> None:
    assert {layer.__name__ for layer in layers.Layer.__args__} <= set(rengo.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Sites'"):
        _ = rengo.Sites
