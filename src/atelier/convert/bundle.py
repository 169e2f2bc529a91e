"""Writes a class and all of ours that it needs as one Python file, which runs where Atelier is not installed.

Only definitions that the class reaches are taken; imports of other packages stay. The class's modules must import
names of ours at their top, unaliased (``from atelier.x import name``), or bundling fails.
"""

import ast
import importlib.util
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

PACKAGE = "atelier"


@dataclass
class _Module:
    """A parsed module: what its top-level names are bound to."""

    name: str
    definitions: dict[str, ast.stmt] = field(default_factory=dict)
    own: dict[str, str] = field(default_factory=dict)
    foreign: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def text(self, node: ast.stmt) -> str:
        first = min((d.lineno for d in getattr(node, "decorator_list", [])), default=node.lineno)
        return "\n".join(self.lines[first - 1 : node.end_lineno])


def bundle(module: str, name: str, about: str) -> str:
    """The source of one file that defines ``name`` as ``module`` does.

    Args:
        about: the file's docstring.

    Raises:
        ValueError: a module uses a form of import that cannot be followed, or two of them define the same name.
    """
    imports: dict[str, str] = {}
    definitions: dict[str, tuple[str, str]] = {}
    visited: set[tuple[str, str]] = set()

    def visit(where: str, what: str) -> None:
        if (where, what) in visited:
            return
        visited.add((where, what))
        parsed = _parse(where)
        if what not in parsed.definitions:
            raise ValueError(f"{where} does not define {what}: import it from where it is defined")
        node = parsed.definitions[what]
        for used in _names_in(node, where):
            if used in parsed.definitions:
                visit(where, used)
            elif used in parsed.own:
                visit(parsed.own[used], used)
            elif used in parsed.foreign and imports.setdefault(used, parsed.foreign[used]) != parsed.foreign[used]:
                raise ValueError(f"{used} is imported from two places: {imports[used]}, {parsed.foreign[used]}")
        if definitions.setdefault(what, (where, parsed.text(node)))[0] != where:
            raise ValueError(f"{what} is defined in {definitions[what][0]} and in {where}")

    visit(module, name)
    parts = [f'"""{about}"""', "\n".join(sorted(set(imports.values())))]
    return "\n\n\n".join([*parts, *(text for _, text in definitions.values())]) + "\n"


@cache
def _parse(name: str) -> _Module:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ValueError(f"there is no module {name}")
    source = Path(spec.origin).read_text(encoding="utf-8")
    module = _Module(name, lines=source.splitlines())
    for node in ast.parse(source).body:
        match node:
            case ast.Import():
                for alias in node.names:
                    _refuse_own(alias.name, name)
                    module.foreign[alias.asname or alias.name] = f"import {_aliased(alias)}"
            case ast.ImportFrom(module=str(origin), level=0) if _is_own(origin):
                for alias in node.names:
                    if alias.asname not in (None, alias.name):
                        raise ValueError(f"{name} imports {origin}.{alias.name} as {alias.asname}")
                    module.own[alias.name] = origin
            case ast.ImportFrom(module=str(origin), level=0):
                for alias in node.names:
                    module.foreign[alias.asname or alias.name] = f"from {origin} import {_aliased(alias)}"
            case ast.FunctionDef() | ast.ClassDef():
                module.definitions[node.name] = node
            case ast.Assign(targets=[ast.Name(id=target)]) | ast.AnnAssign(target=ast.Name(id=target)):
                module.definitions[target] = node
            case ast.Expr(value=ast.Constant()):
                pass  # a docstring
            case _:
                raise ValueError(f"{name}, line {node.lineno}: {type(node).__name__} cannot be bundled")
    return module


def _aliased(alias: ast.alias) -> str:
    return f"{alias.name} as {alias.asname}" if alias.asname else alias.name


def _is_own(module: str) -> bool:
    return module.partition(".")[0] == PACKAGE


def _refuse_own(module: str, where: str) -> None:
    if _is_own(module):
        raise ValueError(f"{where} imports {module} in a form that cannot be bundled")


def _names_in(node: ast.stmt, where: str) -> list[str]:
    """Every plain name in a definition, each once, in order; a local variable's name does no harm."""
    names: dict[str, None] = {}
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            names[inner.id] = None
        elif isinstance(inner, ast.Attribute) and (dotted := _dotted(inner)):
            names[dotted] = None
        elif isinstance(inner, ast.Import):
            for alias in inner.names:
                _refuse_own(alias.name, where)
        elif isinstance(inner, ast.ImportFrom):
            _refuse_own(inner.module or "", where)
    return list(names)


def _dotted(node: ast.expr) -> str:
    """``os.path`` of an attribute: what ``import os.path`` binds, for our purposes."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (inner := _dotted(node.value)):
        return f"{inner}.{node.attr}"
    return ""
