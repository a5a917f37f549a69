"""The wheel holds one package, whole, and works without the checkout."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import lightning_kd
from source_tree import FOLDERS, ROOT, modules

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built in a copy: a build folder left from earlier would add files long deleted."""
    source = tmp_path_factory.mktemp("source")
    for folder in FOLDERS.values():
        shutil.copytree(folder, source / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    no_torch = tmp_path_factory.mktemp("no_torch")
    (no_torch / "torch.py").write_text("raise ImportError('building the package must not import torch')\n")
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", source / "dist", source, path=no_torch, cwd=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


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


def test_the_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = f"lightning_kd-{lightning_kd.__version__}.dist-info"
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        assert "lightning-kd = lightning_kd.start:main" in archive.read(f"{info}/entry_points.txt").decode()
        assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
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
