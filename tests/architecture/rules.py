"""The rules of the architecture, as functions of a package, so that they can be shown to fail on a wrong one."""

from __future__ import annotations

import ast
import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import grimp

#: From the command line down; of modules on one line, none imports another.
LAYERS: Final[tuple[frozenset[str], ...]] = tuple(
    frozenset(layer.split())
    for layer in (
        "__main__",
        "cli",
        "conformance doctor",
        "opening",
        "plugins",
        "engine backends config platforms",
        "hookspecs",
        "_native",
        "memory",
        "sharing",
        "peers",
        "claims watcher windows wire",
        "types",
        "ranges",
        "_core",
        "daemons errors wording",
    )
)

#: What some layers may import of the package, where that is less than everything below them.
ONLY: Final[Mapping[str, frozenset[str]]] = {"linux": frozenset({"_core", "errors", "ranges", "wording"})}

#: Who may import which modules of the engine. The commands do what they do through the public API: not one of them.
INTO_ENGINE: Final[Mapping[str, frozenset[str]]] = {
    "": frozenset({"registry"}),  # the package itself, which re-exports
    "opening": frozenset({"compiled", "memoryfile", "placement", "prealloc"}),
    "doctor": frozenset({"placement"}),  # what the configured policy would come to, without opening a memory
}

#: Who may import an external module; for anything not listed here, everybody.
EXTERNAL: Final[Mapping[str, frozenset[str]]] = {
    "ctypes": frozenset({"linux"}),
    "click": frozenset({"cli", "conformance"}),
    "rich": frozenset({"cli", "conformance"}),
    "pytest": frozenset({"conformance"}),
    "_pytest": frozenset({"conformance"}),
    "hypothesis": frozenset({"conformance"}),
    "pluggy": frozenset({"hookspecs", "plugins"}),
    "cattrs": frozenset({"config"}),
    "tomllib": frozenset({"config"}),
    "unicorn": frozenset({"platforms"}),
    "sortedcontainers": frozenset({"engine"}),
}

#: Modules of more than 400 lines, each with its reason.
LONG_MODULES: Final[Mapping[str, str]] = {
    "engine/memoryfile.py": "the façade: one short method for each member of the contract",
    "engine/pages.py": "the state machine and the table that keeps it are one truth in one place",
}
LONGEST: Final = 400


@contextlib.contextmanager
def _importable(directory: Path) -> Iterator[None]:
    sys.path.insert(0, str(directory))
    try:
        yield
    finally:
        sys.path.remove(str(directory))
        sys.path_importer_cache.pop(str(directory), None)


def build_graph(root: Path) -> grimp.ImportGraph:
    """All imports of the package at *root*: those within functions, and those for type checkers, too."""
    with _importable(root.parent):
        return grimp.build_graph(root.name, include_external_packages=True, cache_dir=None)


def _layer(package: str, module: str) -> str:
    """The part of the package that a module belongs to: ``engine`` for ``memplat.engine.pages``."""
    return module.removeprefix(package).lstrip(".").partition(".")[0]


def _imports(graph: grimp.ImportGraph) -> Iterator[tuple[str, str]]:
    for importer in sorted(graph.modules):
        for imported in sorted(graph.find_modules_directly_imported_by(importer)):
            yield importer, imported


def _describe(dependencies: Iterable[grimp.PackageDependency]) -> list[str]:
    """The chains of imports, in which a set of modules stands for any one of them."""
    return [
        " imports ".join((_any(route.heads), *route.middle, _any(route.tails)))
        for dependency in sorted(dependencies, key=lambda found: (found.importer, found.imported))
        for route in dependency.routes
    ]


def _any(modules: Iterable[str]) -> str:
    return " or ".join(sorted(modules))


def find_arrow_violations(root: Path) -> list[str]:
    """Imports, direct or through others, that point up the layers or across one."""
    graph = build_graph(root)
    layers = [grimp.Layer(*sorted(f"{root.name}.{name}" for name in layer)) for layer in LAYERS]
    return _describe(graph.find_illegal_dependencies_for_layers(layers))


def find_sibling_violations(root: Path) -> list[str]:
    """Imports of one backend by another; the defaults (``default``) import no backend either."""
    graph = build_graph(root)
    siblings = sorted(graph.find_children(f"{root.name}.backends")) if f"{root.name}.backends" in graph.modules else []
    return _describe(graph.find_illegal_dependencies_for_layers([grimp.Layer(*siblings)])) if siblings else []


def find_only_violations(root: Path) -> list[str]:
    """Imports by a layer that may import only a few others."""
    graph = build_graph(root)
    found = []
    for importer, imported in _imports(graph):
        here, there = _layer(root.name, importer), _layer(root.name, imported)
        inside = imported == root.name or imported.startswith(f"{root.name}.")
        if inside and here in ONLY and there not in ONLY[here] | {here}:
            found.append(f"{importer} imports {imported}; {here} may import only {', '.join(sorted(ONLY[here]))}")
    return found


def find_engine_violations(root: Path) -> list[str]:
    """Imports of the engine from outside of it, other than those that are listed."""
    graph = build_graph(root)
    engine = f"{root.name}.engine"
    found = []
    for importer, imported in _imports(graph):
        here = _layer(root.name, importer)
        inside = imported == engine or imported.startswith(f"{engine}.")
        part = imported.removeprefix(engine).lstrip(".").partition(".")[0]
        if inside and here != "engine" and part not in INTO_ENGINE.get(here, frozenset()):
            found.append(f"{importer} imports {imported}")
    return found


def find_external_violations(root: Path) -> list[str]:
    """Imports of an external module outside of the layers that it is kept to."""
    graph = build_graph(root)
    return [
        f"{importer} imports {imported}, which is kept to {', '.join(sorted(EXTERNAL[imported]))}"
        for importer, imported in _imports(graph)
        if imported in EXTERNAL and _layer(root.name, importer) not in EXTERNAL[imported]
    ]


def find_unplaced_modules(root: Path) -> list[str]:
    """Modules that no rule knows: a new part of the package has to be given its layer."""
    graph = build_graph(root)
    known = frozenset().union(*LAYERS) | ONLY.keys()
    return sorted(child for child in graph.find_children(root.name) if _layer(root.name, child) not in known)


def find_long_modules(root: Path) -> list[str]:
    """Modules that are longer than 400 lines without a reason, and reasons for modules that are not."""
    lengths = {
        str(path.relative_to(root)): len(path.read_text(encoding="utf-8").splitlines()) for path in root.rglob("*.py")
    }
    long = {name for name, lines in lengths.items() if lines > LONGEST}
    return [f"{name} has {lengths[name]} lines" for name in sorted(long - LONG_MODULES.keys())] + [
        f"{name} is listed as long and is not" for name in sorted((LONG_MODULES.keys() & lengths.keys()) - long)
    ]


def _exports(tree: ast.Module) -> set[str]:
    """The names in ``__all__``; without one, the public names that the module makes itself."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            value = getattr(node, "value", None)
            if isinstance(value, (ast.List, ast.Tuple)):
                return {
                    item.value for item in value.elts if isinstance(item, ast.Constant) and isinstance(item.value, str)
                }
    return {name for name in _definitions(tree) if not name.startswith("_")}


def _definitions(tree: ast.Module) -> set[str]:
    """The names that a module makes itself, imports left out."""
    found = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        else:
            found |= {
                name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
            }
    return found


def find_homeless_names(root: Path) -> list[str]:
    """Re-exports by anything but a package's ``__init__``, and names of the façade that have no home or two."""
    facade = _exports(ast.parse((root / "__init__.py").read_text(encoding="utf-8")))
    homes: dict[str, list[str]] = {name: [] for name in facade}
    found = []
    for path in sorted(root.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        name = str(path.relative_to(root))
        exported, defined = _exports(tree), _definitions(tree)
        if path.name != "__init__.py":
            found += [f"{name} exports {stranger}, which it does not define" for stranger in sorted(exported - defined)]
        for at_home in facade & exported & defined:
            homes[at_home].append(name)
    return found + [
        f"{root.name} exports {name}, which is at home in {' and in '.join(at) or 'no module'}"
        for name, at in sorted(homes.items())
        if len(at) != 1
    ]


#: Every rule: it takes the directory of a package and returns what is wrong with it, in sentences.
RULES: Final[tuple[Callable[[Path], list[str]], ...]] = (
    find_arrow_violations,
    find_sibling_violations,
    find_only_violations,
    find_engine_violations,
    find_external_violations,
    find_unplaced_modules,
    find_long_modules,
    find_homeless_names,
)
