"""The wheel holds one package, whole, and works without the checkout."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement

import lightning_kd
from source_tree import FOLDERS, ROOT, modules
from versions import lower_bounds

pytestmark = pytest.mark.slow

#: What the sdist holds beside the package, so that its tests run and its docs build.
SOURCES = ("benchmarks", "configs", "docs", "tests")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with this checkout's sdist and the wheel that is built from it.

    Built in a copy: a build folder left from earlier would add files long deleted.
    """
    source = tmp_path_factory.mktemp("source")
    for folder in (*FOLDERS.values(), *(ROOT / name for name in SOURCES)):
        shutil.copytree(folder, source / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, source)
    no_torch = tmp_path_factory.mktemp("no_torch")
    (no_torch / "torch.py").write_text("raise ImportError('building the package must not import torch')\n")
    run("-m", "build", "--no-isolation", "--outdir", source / "dist", source, path=no_torch, cwd=source)
    return source / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    run("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target, wheel, cwd=target)
    return target


def run(*args: str | Path, cwd: Path, path: Path | None = None) -> str:
    """Run Python in ``cwd`` with ``path`` before everything that is installed; what it printed."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    done = subprocess.run([sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_only_top_level_name_is_the_package(installed: Path) -> None:
    """A package called `callbacks` in site-packages would hide, or be hidden by, somebody else's."""
    names = {entry.name for entry in installed.iterdir()} - {"bin", "Scripts"}
    assert names == {"lightning_kd", f"lightning_kd-{lightning_kd.__version__}.dist-info"}


def test_the_wheel_holds_every_module(wheel: Path) -> None:
    """setuptools leaves out, without a word, a folder that pyproject.toml does not list."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    packages = {name for name, path in modules().items() if path.name == "__init__.py"}
    expected = {
        name.replace(".", "/") + ("/__init__.py" if name in packages else ".py")  # the place it is imported from
        for name in modules()
    }
    assert names == expected | {"lightning_kd/py.typed"}


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {path.parent for path in modules().values()}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_sdist_holds_the_whole_repository(built: Path) -> None:
    """By itself setuptools packs the tests at the top of tests/, and nothing that they need: no config, no pin."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if not name.endswith("__pycache__")}
    folders = [ROOT / name for name in SOURCES] + list(FOLDERS.values())
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    files = [path for path in files if not {"__pycache__", "_made"} & set(path.parts)]
    top = ["pyproject.toml", "constraints.txt", "Makefile", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"]
    assert {str(path.relative_to(ROOT)) for path in files} | {*top, "train.py"} <= names
    assert not [name for name in names if name.endswith(".pyc") or "_made" in name]


def test_pins_and_lower_bounds_agree() -> None:
    """Stops a lower bound above the version that the tests run with, and a dependency without a bound or a pin."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    needed = [Requirement(line) for line in (*project["dependencies"], *extras)]
    for requirement in needed:
        if requirement.name != "lightning-kd":
            assert str(requirement.specifier).startswith(">="), f"{requirement} has no lower bound"
            assert requirement.specifier.contains(pins[requirement.name]), f"{requirement} excludes its own pin"
    assert len(lower_bounds(project)) > len(project["dependencies"])


def test_the_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = f"lightning_kd-{lightning_kd.__version__}.dist-info"
        raw = archive.read(f"{info}/METADATA")
        metadata = email.message_from_bytes(raw)
        assert "lightning-kd = lightning_kd.start:main" in archive.read(f"{info}/entry_points.txt").decode()
        assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    Metadata.from_email(raw, validate=True)  # by the standard: an index refuses what is not
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["Name"] == "lightning-kd"
    assert metadata["Version"] == lightning_kd.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"openvino", "onnx", "torchao", "emd", "dev"} == set(metadata.get_all("Provides-Extra", []))
    assert "lightning-kd" in metadata.get_payload()  # the README


def test_it_imports_outside_of_the_checkout(installed: Path, tmp_path: Path) -> None:
    code = (
        "import lightning_kd, lightning_kd.callbacks, lightning_kd.datamodules;"
        "print(lightning_kd.__path__[0]); print(len(lightning_kd.__path__));"
        "print(lightning_kd.callbacks.__file__); print(lightning_kd.datamodules.__file__)"
    )
    package, entries, callbacks, datamodules = run("-c", code, path=installed, cwd=tmp_path).splitlines()
    assert Path(package) == installed / "lightning_kd"
    assert entries == "1"  # nothing of the checkout, and no site-packages folder, is searched for submodules
    assert Path(callbacks) == installed / "lightning_kd" / "callbacks" / "__init__.py"
    assert Path(datamodules) == installed / "lightning_kd" / "datamodules" / "__init__.py"


def test_the_command_line_runs_outside_of_the_checkout(installed: Path, tmp_path: Path) -> None:
    printed = run("-c", "from lightning_kd.cli import main; main(['fit', '--help'])", path=installed, cwd=tmp_path)
    assert "--model.temperature" in printed
    assert "--data" in printed
