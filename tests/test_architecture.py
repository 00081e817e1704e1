"""The layout is the architecture: folders with charters, imports that only go down, no circle, few modules on top."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

import fxprune
import passes

ROOT = Path(passes.__file__).parents[1]

# From the bottom to the top: a module imports from what stands before its own folder, and from its own folder.
FLOORS = {
    "passes": [
        "errors", "process", "nested_values", "arguments", "documents", "axes", "ops", "graph", "stream", "equality",
        "frontend", "analysis", "transform", "masked", "trial", "analyse", "apply", "verification",
        "statistics", "repair", "__init__",
    ],
    "fxprune": [
        "errors", "version", "torchvision_support", "registries", "io", "resources", "config", "training", "data",
        "criteria", "problem", "latency", "journal", "workers", "search", "api", "tinynn", "integrations",
        "report", "exporters", "__init__", "cli", "__main__",
    ],
}  # fmt: skip
BESIDE_FOLDERS = {"__init__.py", "__main__.py", "errors.py", "py.typed"}


def _modules() -> dict[str, Path]:
    found = {}
    for package in FLOORS:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _imports(path: Path) -> Iterator[str]:
    """Every module of ours that a file imports: at its top, inside functions, and for annotations alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                yield from (found for found in [whole if whole in MODULES else str(node.module)] if found in MODULES)


IMPORTS = {name: {found for found in _imports(path) if found != name} for name, path in MODULES.items()}


def _floor(module: str) -> int:
    package, *rest = module.split(".")
    return FLOORS[package].index(rest[0] if rest else "__init__")


@pytest.mark.parametrize("package", FLOORS)
def test_every_folder_and_module_on_top_has_its_floor(package: str) -> None:
    top = {path.stem for path in (ROOT / package).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert top == set(FLOORS[package])


@pytest.mark.parametrize("package", FLOORS)
def test_few_modules_stand_beside_the_folders(package: str) -> None:
    files = {path.name for path in (ROOT / package).iterdir() if path.is_file()}
    assert len(files - BESIDE_FOLDERS) <= 4


@pytest.mark.parametrize("package", FLOORS)
def test_every_folder_has_a_charter(package: str) -> None:
    for path in (ROOT / package).rglob("__init__.py"):
        charter = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert charter and len(charter.splitlines()[0]) > 20, path


def test_imports_go_down_only() -> None:
    upward = []
    for name, found in IMPORTS.items():
        for other in found:
            if name.startswith("passes") and other.startswith("fxprune"):
                upward.append((name, other))
            same_folder = name.split(".")[:2] == other.split(".")[:2]
            if name.split(".")[0] == other.split(".")[0] and not same_folder and _floor(other) >= _floor(name):
                upward.append((name, other))
    assert not upward


def test_there_is_no_circle_of_imports() -> None:
    graph = nx.DiGraph([(name, other) for name, found in IMPORTS.items() for other in found])
    circles = [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1]
    assert not circles


def test_no_module_has_the_name_of_a_public_function() -> None:
    functions = {
        name for package in (passes, fxprune) for name in package.__all__ if callable(getattr(package, name))
    }  # fmt: skip
    taken = [name for name in MODULES if name.rpartition(".")[2] in functions and name.count(".")]
    assert not taken


def test_no_module_has_the_place_of_one_in_the_other_package() -> None:
    places = [{name.partition(".")[2] for name in MODULES if name.split(".")[0] == package} for package in FLOORS]
    assert places[0] & places[1] <= {"", "errors"}


def test_tests_stand_where_what_they_test_stands() -> None:
    tests = ROOT / "tests"
    if not tests.exists():
        pytest.skip("the tests are not beside the packages")
    for path in tests.rglob("test_*.py"):
        folder = path.relative_to(tests).parent
        assert folder == Path() or (ROOT / folder).is_dir(), f"{path}: no folder {folder} holds what it tests"
    assert {path.name for path in tests.glob("test_*.py")} == {Path(__file__).name}


# The only modules that name what torch keeps for itself, or that replace something of torch; the last one torchvision.
PRIVATE = {"passes.process.torch_private", "passes.process.torch_patches", "fxprune.torchvision_support"}
# Not torch's: the interpreter's, those of named tuples, operators behind torch.ops, and notes of our own on tensors.
_PYTHONS = {"sys._getframe", "os._exit", "warnings._showwarnmsg_impl"}
_OPERATORS = {"aten", "torch.ops.aten", "_ATEN"}
_TUPLES = {"_make", "_replace", "_fields", "_asdict"}


def _private_names(text: str) -> Iterator[str]:
    """Underscored attributes of what is not the module's own, and underscored names that are imported from torch."""
    tree = ast.parse(text)
    own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            own.add(node.target.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            own |= {node.attr} if ast.unparse(node.value) in ("self", "cls") else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            of = ast.unparse(node.value)
            known = node.attr in own | _TUPLES or node.attr.startswith("_fxprune_") or of in _OPERATORS
            if not known and f"{of}.{node.attr}" not in _PYTHONS:
                yield f"{node.lineno}: {of}.{node.attr}"
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", "") or ""
            names = [f"{module}.{name.name}".strip(".") for name in node.names]
            found = (name for name in names if name.split(".")[0] in ("torch", "torchvision"))
            yield from (f"{node.lineno}: {n}" for n in found if any(p.startswith("_") for p in n.split(".")[1:]))


def test_private_names_of_torch_stand_in_one_place() -> None:
    assert list(_private_names("import torch._ops\nfrom torch.utils import _pytree\nx._schema\ntorch._C.f"))
    found = {
        f"{name}:{text}"
        for name, path in MODULES.items() if name not in PRIVATE
        for text in _private_names(path.read_text(encoding="utf-8"))
    }  # fmt: skip
    assert not found, "state it in passes/process/torch_private.py, with a test"
