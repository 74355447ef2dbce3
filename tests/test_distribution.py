"""What a user installs: the wheel's files, what it needs, and what it must not pull in."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import entry_points, packages_distributions, requires, version
from importlib.resources import files
from pathlib import Path

import pytest

import aaflow

ROOT = Path(__file__).parents[1]
PACKAGES = [ROOT / "aaflow", *(path.parent for path in ROOT.glob("pilots/*/__init__.py"))]
SITES = sorted(path.name for path in ROOT.glob("site_configs/*.toml"))


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _needs() -> dict[str, bool]:
    """Every distribution that aaflow names, and whether it comes without an extra."""
    needs: dict[str, bool] = {}
    for requirement in requires("aaflow") or []:
        name = _normal(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])
        needs[name] = needs.get(name, False) or "extra ==" not in requirement
    return needs


def _imports(source: Path) -> Iterator[tuple[str, bool]]:
    """Top-level names that a module imports from elsewhere, and whether importing the module imports them."""
    tree = ast.parse(source.read_bytes())
    later = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.If))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node not in later) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0], node not in later


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built from a copy, without the network."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    litter = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info", "build", "dist")
    for folder in ("aaflow", "pilots", "site_configs", "apps", "benchmarks", "tests"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=litter)
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(target)]
    subprocess.run([*build, str(source)], check=True)
    return next(target.glob("*.whl"))


def test_the_wheel_holds_every_module_and_site_and_nothing_else(wheel: Path) -> None:
    built = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {f"aaflow/site_configs/{name}" for name in SITES}
    for package in PACKAGES:
        sources = [path for path in package.rglob("*") if path.suffix == ".py" or path.name == "py.typed"]
        expected |= {str(path.relative_to(package.parent)) for path in sources}
    assert built == expected


def test_the_license_is_in_the_wheel(wheel: Path) -> None:
    assert f"aaflow-{aaflow.__version__}.dist-info/licenses/LICENSE" in zipfile.ZipFile(wheel).namelist()


def test_an_unpacked_wheel_finds_its_sites_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import aaflow;"
        "from importlib.resources import files; print(aaflow.__file__);"
        "print(sorted(path.name for path in (files('aaflow') / 'site_configs').iterdir()))"
    )
    printed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    where, names = printed.stdout.splitlines()
    assert where.startswith(str(tmp_path))
    assert names == str(SITES)


def test_a_checkout_finds_its_sites_at_the_same_place() -> None:
    assert sorted(path.name for path in (files("aaflow") / "site_configs").iterdir()) == SITES


def test_the_installed_version_is_the_package_s() -> None:
    assert version("aaflow") == aaflow.__version__


def test_every_pilot_of_the_distribution_loads() -> None:
    pilots = {entry.name: entry.load() for entry in entry_points(group="aaflow.pilots")}
    assert {"local", "parsl", "radical"} <= pilots.keys()
    assert all(callable(pilot) for pilot in pilots.values())


def test_every_import_is_a_declared_dependency() -> None:
    needs, owners = _needs(), packages_distributions()
    own = {"aaflow", *(package.name for package in PACKAGES)}
    missing = set()
    for package in PACKAGES:
        for source in package.rglob("*.py"):
            for name, at_import in _imports(source):
                if name in own or name in sys.stdlib_module_names or name == "__future__":
                    continue
                declared = [needs[owner] for owner in map(_normal, owners.get(name, [name])) if owner in needs]
                if not declared or (at_import and not any(declared)):
                    missing.add(f"{source.relative_to(ROOT)}: {name}")
    # No package index has pycylon: sites build it. The others load where there is a session of RADICAL-Pilot.
    assert missing == {
        "aaflow/dataplane/cylon.py: pycylon",
        "pilots/aaflow_radical/groups.py: radical",
        "pilots/aaflow_radical/tasks.py: radical",
    }


def test_every_dependency_is_pinned_and_no_pin_names_a_place() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.lstrip().startswith("#")]
    assert all(re.match(r"[\w.-]+==[\w.!+]+( ; .+)?$", pin) for pin in pins)
    assert "torch==2.13.0" in pins
    assert _needs().keys() - {"aaflow"} <= {_normal(pin.split("==")[0]) for pin in pins}


def test_the_core_loads_no_engine() -> None:
    code = "import sys, aaflow.cli.main; print(sorted({'parsl', 'radical', 'aaflow_parsl'} & sys.modules.keys()))"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "[]"
