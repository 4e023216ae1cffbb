"""Put Django's tutorial project together from the tutorial itself, which Django's source carries.

The tutorial shows its code in pieces: a file from its beginning, a class with one new method and `# ...` for the rest,
a method alone. Read in order, each piece replaces what has its name and leaves the rest, as its reader would do.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.django_suite.sources import SuiteError

__all__ = ["files", "merge_markup", "merge_python", "pieces"]

_PIECE = re.compile(
    r"^\.\. code-block:: \S+\n {4}:caption: ``(?P<path>[\w/.]+)``\n(?: {4}:[^\n]*\n)*\n(?P<text>(?: {4}[^\n]*\n|\n)+)",
    re.MULTILINE,
)
_SETTINGS = "mysite/settings.py"  # is `startproject`'s, but for INSTALLED_APPS, which a run's own settings add to


def pieces(text: str) -> Iterator[tuple[str, str]]:
    """Find the pieces of a page: the path of a file, and what is to be in it."""
    for found in _PIECE.finditer(text):
        yield found["path"], textwrap.dedent(found["text"]).strip("\n") + "\n"


def files(docs: Path) -> dict[str, str]:
    """Return the files of the project, less what `startproject` and `startapp` make. Raises SuiteError without them."""
    pages = sorted((docs / "intro").glob("tutorial0*.txt"))
    found: dict[str, str] = defaultdict(str)
    for page in pages:
        for path, piece in pieces(page.read_text(encoding="utf-8")):
            if path.endswith(".py") and path != _SETTINGS:
                found[path] = merge_python(found[path], piece)
            elif path.endswith(".html"):
                found[path] = merge_markup(found[path], piece)
    missing = {"mysite/urls.py", "polls/models.py", "polls/tests.py", "polls/views.py"} - set(found)
    if missing:
        raise SuiteError(f"the tutorial in {docs} does not show {', '.join(sorted(missing))}")
    return dict(found)


def merge_markup(old: str, new: str) -> str:
    """Return a template with a piece in it: a head comes first, one line replaces the one like it, else all is new."""
    if new.startswith("{% load"):
        return new + old
    start = new.strip()[:8]
    if len(new.splitlines()) == 1 and any(line.strip().startswith(start) for line in old.splitlines()):
        return "".join(new if line.strip().startswith(start) else line for line in old.splitlines(keepends=True))
    return new


def merge_python(old: str, new: str) -> str:
    """Return a module with a piece in it."""
    body = ast.parse(old).body
    _merge(body, ast.parse(new).body, new)
    imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    rest = [node for node in body if not isinstance(node, ast.Import | ast.ImportFrom)]
    return ast.unparse(ast.Module(body=[*imports, *rest], type_ignores=[])) + "\n"


def _merge(body: list[ast.stmt], news: list[ast.stmt], text: str) -> None:
    """Put statements where those with their names are; one that is new, before what follows it in the piece."""
    before = len(body)
    for node in reversed(news):
        name, owner = _name(node), _owner(body, node)
        if owner is not None:
            _merge(owner.body, [node], text)
            continue
        place = next((number for number, one in enumerate(body) if _name(one) == name), None)
        if not name or (place is not None and _is_reminder(node)):
            continue
        if place is None:
            body.insert(before, node)
        else:
            before = place
            body[place] = _merged(body[place], node, text)


def _merged(old: ast.stmt, node: ast.stmt, text: str) -> ast.stmt:
    """Return what takes a statement's place: of a class that is shown in part, the whole of it."""
    shown = ast.get_source_segment(text, node) or ""
    if isinstance(node, ast.ClassDef) and isinstance(old, ast.ClassDef) and "..." in shown:
        old.bases = node.bases
        _merge(old.body, node.body, text)
        return old
    return node


def _owner(body: list[ast.stmt], node: ast.stmt) -> ast.ClassDef | None:
    """Return the class that a method shown alone belongs to: the one that has it, else the last."""
    classes = [one for one in body if isinstance(one, ast.ClassDef)]
    if not classes or not isinstance(node, ast.FunctionDef) or [a.arg for a in node.args.args[:1]] != ["self"]:
        return None
    having = [one for one in classes if any(_name(member) == _name(node) for member in one.body)]
    return (having or classes)[-1]


def _is_reminder(node: ast.stmt) -> bool:
    """Whether a function is shown without its body."""
    return isinstance(node, ast.FunctionDef) and all(ast.unparse(one) == "..." for one in node.body)


def _name(node: ast.stmt) -> str:
    """Return what a statement is known by; of a call, what is called and with what first."""
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
            return name
        case ast.Assign(targets=[target]):
            return ast.unparse(target)
        case ast.Expr(value=ast.Call(func=function, args=[first, *_])):
            return f"{ast.unparse(function)}({ast.unparse(first)}"
        case ast.Import() | ast.ImportFrom():
            return ast.unparse(node)
    return ""
