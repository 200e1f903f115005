import ast
import inspect
from pathlib import Path

import gad.objectives

SOURCES = sorted(Path(gad.objectives.__file__).parent.glob("*.py"))


def imported_modules(source: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(source.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


def test_objectives_depend_on_torch_and_on_themselves_only():
    outside = {m for source in SOURCES for m in imported_modules(source) if not m.startswith("gad.objectives")}
    assert outside == {"math", "torch", "torch.nn.functional"}


def test_every_public_function_of_a_public_module_is_exported():
    modules = [getattr(gad.objectives, p.stem) for p in SOURCES if not p.stem.startswith("_")]
    defined = {
        name
        for module in modules
        for name, value in inspect.getmembers(module, inspect.isfunction)
        if value.__module__ == module.__name__ and not name.startswith("_")
    }
    assert len(modules) == 7
    assert defined == set(gad.objectives.__all__)
