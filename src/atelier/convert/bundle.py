"""Writes a class and all of ours that it needs as one Python file, which runs where Atelier is not installed.

Only definitions that the class reaches are taken; imports of other packages stay. The class's modules must import
names of ours at their top, unaliased (``from atelier.x import name``), or bundling fails.
"""

import ast
import importlib.util
import re
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

    def text(self, node: ast.stmt, renamed: dict[str, str]) -> str:
        """A definition's source, with the names in ``renamed`` replaced."""
        lines = [line.encode() for line in self.lines]  # columns are counted in bytes
        places = [n for n in ast.walk(node) if isinstance(n, ast.Name) and n.id in renamed]
        for place in sorted(places, key=lambda place: place.col_offset, reverse=True):
            line, end = lines[place.lineno - 1], place.col_offset + len(place.id.encode())
            lines[place.lineno - 1] = line[: place.col_offset] + renamed[place.id].encode() + line[end:]
        first = min((d.lineno for d in getattr(node, "decorator_list", [])), default=node.lineno)
        text = b"\n".join(lines[first - 1 : node.end_lineno]).decode()
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in renamed:
            text = re.sub(rf"\b(def|class) {node.name}\b", rf"\1 {renamed[node.name]}", text, count=1)
        return text


def bundle(module: str, name: str, about: str) -> str:
    """The source of one file that defines ``name`` as ``module`` does.

    Args:
        about: the file's docstring.

    Of two modules' definitions of one name the later one found gets its module's name added.

    Raises:
        ValueError: a module uses a form of import that cannot be followed.
    """
    imports: dict[str, str] = {}
    definitions: dict[str, str] = {}
    called: dict[tuple[str, str], str] = {}

    def visit(where: str, what: str) -> None:
        if (where, what) in called:
            return
        taken = what in called.values()
        called[where, what] = f"{what}_of_{where.rpartition('.')[2]}" if taken else what
        parsed = _parse(where)
        if what not in parsed.definitions:
            raise ValueError(f"{where} does not define {what}: import it from where it is defined")
        node = parsed.definitions[what]
        renamed = {what: called[where, what]}
        for used in _names_in(node, where):
            if used in parsed.definitions or used in parsed.own:
                origin = where if used in parsed.definitions else parsed.own[used]
                visit(origin, used)
                renamed[used] = called[origin, used]
            elif used in parsed.foreign and imports.setdefault(used, parsed.foreign[used]) != parsed.foreign[used]:
                raise ValueError(f"{used} is imported from two places: {imports[used]}, {parsed.foreign[used]}")
        definitions[called[where, what]] = parsed.text(node, {n: to for n, to in renamed.items() if n != to})

    visit(module, name)
    parts = [f'"""{about}"""', "\n".join(sorted(set(imports.values())))]
    return "\n\n\n".join([*parts, *definitions.values()]) + "\n"


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
