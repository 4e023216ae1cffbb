"""No regular expression takes longer than in proportion to its text: what users send must not hold up a process.

Each expression of the packages is read as its parser sees it, and asked about texts that are made to hurt it: what
stands before a repetition, then what is repeated, very often, then something that fits nothing. One that goes back over
the same text again and again is found by its time: the texts are so long that in proportion they take milliseconds.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from re import _constants as op
from re import _parser as parser
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("poolkit", "poolkit_django", "poolkit_flask", "poolkit_fastapi")
METHODS = ("search", "match", "fullmatch", "sub", "subn", "split", "findall", "finditer")
MANY = 10  # times; a repetition that may be more often is one that can be pumped
LONGEST = 40_000  # characters
LIMIT = 0.1  # seconds of CPU time; in proportion it is a few milliseconds, by the square from here to several seconds
ENDS = ("\x00", "")
ALPHABET = "a1_ \n\t'\"/*-;:.,=<>()[]{}@#%&|!?+$^~`\\AZz09\x00é"

Expressions = dict[str, tuple[re.Pattern[Any], set[str]]]


# -- finding them ----------------------------------------------------------------------------------------------------

# In a process of its own: whoever imports everything changes what the other tests find.
LIST = """
import importlib, json, pkgutil, re, sys
from types import BuiltinMethodType
from django.conf import settings
import django
settings.configure(INSTALLED_APPS=["poolkit_django"], DATABASES={})
django.setup()
for package in sys.argv[1:]:
    root = importlib.import_module(package)
    names = [package, *(found.name for found in pkgutil.walk_packages(root.__path__, package + ".", lambda _: None))]
    for name in names:
        if ".bench" in name or ".testing" in name or name.endswith("__main__"):
            continue
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            print(name, error, file=sys.stderr)
            continue
        for own, value in vars(module).items():
            bound = type(value) is BuiltinMethodType and type(value.__self__) is re.Pattern
            pattern = value.__self__ if bound else value
            if type(pattern) is re.Pattern:
                text = pattern.pattern
                as_bytes = isinstance(text, bytes)
                use = value.__name__ if bound else None
                print(json.dumps([name, own, text.decode() if as_bytes else text, as_bytes, pattern.flags, use]))
"""


def compiled() -> Expressions:
    """Find the expressions that modules hold, and how each is used: it may be safe to match, and not to search with."""
    command = [sys.executable, "-c", LIST, *PACKAGES]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    sources = "\n".join(path.read_text() for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    found: Expressions = {}
    for line in listed.splitlines():
        module, name, text, as_bytes, flags, use = json.loads(line)
        used = {use} if use else set(re.findall(rf"\b{name}\.({'|'.join(METHODS)})\b", sources)) or {"match"}
        plain = text.encode() if as_bytes else text
        found[f"{module}.{name}"] = re.compile(plain, flags & ~re.UNICODE if as_bytes else flags), used
    return found


def written() -> Expressions:
    """Find the expressions that are written where they are used, as in `re.search("...", text)`."""
    found: Expressions = {}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            first = node.args[0]
            asks = getattr(node.func.value, "id", "") == "re" and node.func.attr in METHODS
            if asks and isinstance(first, ast.Constant):
                found[f"{path.relative_to(ROOT)}:{node.lineno}"] = re.compile(first.value), {node.func.attr}
    return found


# -- making texts that hurt ------------------------------------------------------------------------------------------


def samples(parsed: Any, limit: int = 4) -> list[str]:
    """Make a few short texts that a part of an expression fits."""
    texts = [""]
    for kind, value in parsed:
        texts = ["".join(pair) for pair in itertools.product(texts, _of(kind, value))][:limit]
    return texts


def _of(kind: Any, value: Any) -> list[str]:  # noqa: PLR0911  one for each kind of part
    if kind is op.LITERAL:
        return [chr(value)]
    if kind in (op.IN, op.NOT_LITERAL, op.ANY):
        return _characters(kind, value)
    if kind in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
        return [text * max(1, value[0]) for text in samples(value[2])]
    if kind is op.BRANCH:
        return [text for branch in value[1] for text in samples(branch, 1)]
    if kind is op.SUBPATTERN:
        return samples(value[3])
    if kind is op.ATOMIC_GROUP:
        return samples(value)
    return [""]  # a place, a look around


def _characters(kind: Any, value: Any) -> list[str]:
    if kind is op.ANY:
        return ["a", " "]
    if kind is op.NOT_LITERAL:
        return [next(sign for sign in ALPHABET if ord(sign) != value)]
    negated = value[0][0] is op.NEGATE
    fitting = [sign for sign in ALPHABET if any(_fits(ord(sign), item) for item in value) != negated]
    return [fitting[0], fitting[-1]] if fitting else [chr(_least(value))]


def _fits(sign: int, item: tuple[Any, Any]) -> bool:
    kind, value = item
    if kind is op.LITERAL:
        return bool(sign == value)
    if kind is op.RANGE:
        return bool(value[0] <= sign <= value[1])
    if kind is op.CATEGORY:
        name = str(value).rpartition("_")[2]
        fits = {"SPACE": str.isspace, "DIGIT": str.isdigit, "WORD": lambda c: c.isalnum() or c == "_"}[name](chr(sign))
        return fits != ("NOT" in str(value))
    return False


def _least(items: Any) -> int:
    return min(value if kind is op.LITERAL else value[0] for kind, value in items if kind in (op.LITERAL, op.RANGE))


def pumps(parsed: Any, before: str = "") -> Iterator[tuple[str, str]]:
    """Yield each place where something may be repeated: a text that leads there, and one repetition."""
    for kind, value in parsed:
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
            if value[1] > MANY:
                bodies = samples(value[2], 8)
                yield from ((before, body) for body in bodies if body)
                yield from ((before, "".join(pair)) for pair in itertools.permutations(bodies[:3], 2) if any(pair))
            yield from pumps(value[2], before)
        elif kind is op.BRANCH:
            for branch in value[1]:
                yield from pumps(branch, before)
        elif kind is op.SUBPATTERN:
            yield from pumps(value[3], before)
        elif kind is op.ATOMIC_GROUP:
            yield from pumps(value, before)
        before += _of(kind, value)[0]


def texts(pattern: re.Pattern[Any]) -> Iterator[tuple[str, str, str]]:
    """Yield beginnings, repetitions and ends, each once."""
    text = pattern.pattern.decode("latin-1") if isinstance(pattern.pattern, bytes) else pattern.pattern
    parsed = parser.parse(text, pattern.flags & ~re.UNICODE if isinstance(pattern.pattern, bytes) else pattern.flags)
    places = dict.fromkeys((start, body) for before, body in pumps(parsed) for start in {before, ""})
    yield from ((start, body, end) for start, body in places for end in ENDS)


def too_slow(pattern: re.Pattern[Any], uses: set[str]) -> str | None:
    """Say which text takes too long, or None. It grows slowly at first, for some expressions double with each."""
    as_bytes = isinstance(pattern.pattern, bytes)
    for (start, body, end), use in itertools.product(texts(pattern), sorted(uses)):
        most = LONGEST // len(body)
        for times in (*range(8, 33, 2), *(size for size in (128, 512, 2048) if size < most), most):
            text: Any = start + body * times + end
            text = text.encode("utf-8") if as_bytes else text
            began = time.thread_time()
            ask(pattern, use, text)
            if (took := time.thread_time() - began) > LIMIT:
                return f"{use}({start!r} + {body!r} * {times} + {end!r}) took {took:.2f} s"
    return None


def ask(pattern: re.Pattern[Any], use: str, text: Any) -> None:
    if use in ("sub", "subn"):
        getattr(pattern, use)(text[:0], text)
    elif use == "finditer":
        for _ in pattern.finditer(text):
            pass
    else:
        getattr(pattern, use)(text)


@pytest.mark.slow
def test_every_expression_is_linear() -> None:
    """The time of each grows with the text and not faster, whatever the text. Those in modules and those in calls."""
    held, in_calls = compiled(), written()
    assert len(held) > 30, "a rule for none of them would be no rule"
    assert len(in_calls) > 10
    assert any(name.startswith("poolkit_django.") for name in held)
    slow = {name: too_slow(*expression) for name, expression in {**held, **in_calls}.items()}
    assert {name: why for name, why in slow.items() if why} == {}


@pytest.mark.parametrize(
    ("text", "use"),
    [
        (r"(a+)+$", "match"), (r"(?:\s+|--[^\n]*|/\*(?s:.*?)\*/)*INSERT", "match"), (r"(\w+\s?)*;", "match"),
        (r"[\s(]*\s*SELECT", "match"), (r"\s*,?\s*;", "match"), (r"\s+x", "search"), (r"x*;", "search"),
        (r"(?:a|a)*b", "fullmatch"), (r"(x+x+)+y", "match"), (r"^(?:.*,)*z", "match"),
    ],
)  # fmt: skip
def test_one_that_is_not_is_seen(text: str, use: str) -> None:
    """The rule is alive: what grows by the square or doubles with each repetition is found."""
    assert too_slow(re.compile(text), {use}) is not None
