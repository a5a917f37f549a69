"""What a module offers is listed, exists and is documented."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator

import pytest

import lightning_kd
from source_tree import modules

PUBLIC = [name for name in modules() if not any(part.startswith("_") for part in name.split("."))]
PACKAGES = [name for name, path in modules().items() if path.name == "__init__.py"]


def exported_classes() -> Iterator[tuple[str, type]]:
    for name in PUBLIC:
        module = importlib.import_module(name)
        for exported in getattr(module, "__all__", ()):
            value = getattr(module, exported, None)
            if inspect.isclass(value) and value.__module__ == name:
                yield f"{name}.{exported}", value


CLASSES = dict(exported_classes())


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_module_says_what_it_is_and_what_it_offers(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__ and module.__doc__.strip()
    assert hasattr(module, "__all__"), f"{name} has no __all__"
    assert len(set(module.__all__)) == len(module.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_in_all_exists_and_is_documented(name: str) -> None:
    """`from lightning_kd.x import *` fails on a name that was renamed in the module alone."""
    module = importlib.import_module(name)
    for exported in module.__all__:
        assert hasattr(module, exported), f"{name}.__all__ lists {exported}, which {name} does not have"
        value = getattr(module, exported)
        if inspect.isclass(value) or inspect.isfunction(value):  # an alias of types has no docstring of its own
            assert _own_doc(value), f"{name}.{exported} has no docstring"


@pytest.mark.parametrize("name", CLASSES)
def test_a_public_method_is_documented_here_or_by_the_base_that_declares_it(name: str) -> None:
    cls = CLASSES[name]
    for attribute, value in vars(cls).items():
        is_method = inspect.isfunction(value) or isinstance(value, (property, classmethod, staticmethod))
        if is_method and not attribute.startswith("_"):
            assert inspect.getdoc(getattr(cls, attribute)) or inherited(cls, attribute), f"{name}.{attribute}"


def inherited(cls: type, attribute: str) -> bool:
    """Whether a base outside of this package declares the attribute: what it means is documented there."""
    return any(attribute in vars(base) and not base.__module__.startswith("lightning_kd") for base in cls.__mro__[1:])


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_offers_only_what_its_modules_offer(name: str) -> None:
    """One file's export line that names a helper would make the helper public."""
    package = importlib.import_module(name)
    for exported in package.__all__:
        home = getattr(getattr(package, exported), "__module__", None)
        if home in modules():
            assert exported in importlib.import_module(home).__all__, f"{name} exports {exported}, but {home} does not"


def test_the_version_is_one_that_can_be_ordered() -> None:
    assert [part.isdigit() for part in lightning_kd.__version__.split(".")] == [True, True, True]


def _own_doc(value: object) -> str:
    """The docstring, unless it is inherited or the signature that `dataclass` writes where there is none."""
    doc = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    if doc and inspect.isclass(value) and doc.startswith(f"{value.__name__}("):
        return ""
    return (doc or "").strip()
