"""The lock files: complete, in step with one another, and free of addresses."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = ("demo", "test", "dev", "bench")


def pins(name):
    """Return {(package, marker): version} of a lock."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        pin = Requirement(line.split(" --hash")[0].strip())
        found[canonicalize_name(pin.name), str(pin.marker or "")] = str(pin.specifier)
    return found


@pytest.mark.parametrize(("smaller", "larger"), [("demo", "test"), ("test", "dev"), ("demo", "bench")])
def test_a_larger_lock_holds_the_smaller_at_the_same_versions(smaller, larger):
    """One environment serves all tasks: installing more must not change what is there."""
    assert pins(smaller).items() <= pins(larger).items()


def test_what_two_locks_hold_is_the_same_in_both():
    """The measured pools may be installed beside the tests' tools, in either order."""
    dev, bench = ({package: version for (package, _), version in pins(name).items()} for name in ("dev", "bench"))
    assert {package: bench[package] for package in bench.keys() & dev} == {p: dev[p] for p in bench.keys() & dev}


@pytest.mark.parametrize("name", LOCKS)
def test_everything_is_pinned_and_hashed(name):
    """What is installed is what was tested, wherever it comes from."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text().replace("\\\n", " ")
    for line in text.splitlines():
        assert re.fullmatch(r"[\w.-]+==\S+( ; [^#]+?)?( +--hash=sha256:[0-9a-f]{64})+", line.strip()), line


def test_no_address_is_written_down():
    """Where packages come from is for each machine's own configuration to say."""
    for path in (ROOT / "requirements").iterdir():
        assert not re.search(r"(https?|file)://|--(extra-)?index-url|--find-links", path.read_text()), path


def test_both_djangos_are_in_one_lock():
    """Python 3.11 gets the last Django that runs there, newer ones the newest."""
    djangos = {marker: version for (name, marker), version in pins("demo").items() if name == "django"}
    assert len(djangos) == 2
    for marker, version in djangos.items():
        assert version.startswith("==5.2." if "<" in marker else "==6."), (marker, version)


def test_the_extras_and_the_locks_agree():
    """Whoever installs `poolkit[test]` on his own gets what the locks were made for."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in LOCKS:
        locked = {package: version.removeprefix("==") for (package, _), version in pins(name).items()}
        for line in extras[name]:
            wanted = Requirement(line)
            if wanted.name != "poolkit":
                assert locked[canonicalize_name(wanted.name)] in wanted.specifier, line


def test_types_are_checked_alike_with_and_without_what_is_measured():
    """`run.py bench` adds libraries to the environment of `run.py lint`: mypy takes no types from any of them."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    skipped = {
        module.removesuffix(".*")
        for override in config["overrides"]
        if override.get("follow_imports") == "skip" and override.get("ignore_missing_imports")
        for module in override["module"]
    }
    dev, bench = ({package for package, _ in pins(name)} for name in ("dev", "bench"))
    found = {
        name
        for package in config["packages"]
        for path in (ROOT / package).rglob("*.py")
        for name in imported(ast.parse(path.read_text()))
        if canonicalize_name(name) in bench - dev
    }
    assert found
    assert found <= skipped


def imported(tree):
    """Return the top names of the modules that a module imports, also inside of its functions."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}
