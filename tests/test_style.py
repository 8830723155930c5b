"""What a reader may count on in every file, beyond what the formatter and the linter check."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = [ROOT / name for name in ("recbole_llm", "tests", "bench")]
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
LONGEST = 60  # lines of a function


def hard_to_read(tree: ast.AST) -> list[str]:
    """Places of code that a reader cannot step through."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, COMPREHENSIONS):
            if len(node.generators) > 1:
                found.append(f"line {node.lineno}: a comprehension has more than one `for`")
            if any(isinstance(inner, ast.NamedExpr) for inner in ast.walk(node)):
                found.append(f"line {node.lineno}: a comprehension has an assignment (:=)")
            if any(isinstance(inner, COMPREHENSIONS) for inner in ast.walk(node) if inner != node):
                found.append(f"line {node.lineno}: a comprehension has another one inside")
        if isinstance(node, ast.IfExp) and any(
            isinstance(branch, ast.IfExp) for branch in (node.body, node.orelse)
        ):
            found.append(f"line {node.lineno}: a conditional expression has another one inside")
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= LONGEST:
            lines = node.end_lineno - node.lineno + 1
            found.append(f"line {node.lineno}: {node.name} has {lines} lines, {LONGEST} at most")
    return found


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_code_reads_step_by_step(folder):
    faults = []
    for path in sorted(folder.rglob("*.py")):
        places = hard_to_read(ast.parse(path.read_text(encoding="utf-8")))
        faults += [f"{path.relative_to(ROOT).as_posix()}, {place}" for place in places]
    assert faults == []


@pytest.mark.parametrize(
    "code, fault",
    [
        ("[a for b in c for a in b]", "more than one `for`"),
        ("[b for a in c if (b := a)]", "an assignment"),
        ("[[a for a in b] for b in c]", "another one inside"),
        ("a if b else c if d else e", "another one inside"),
        ("(a if b else c) if d else e", "another one inside"),
        ("def f():\n" + "    x = 1\n" * 60, "61 lines"),
    ],
)
def test_code_that_does_not_is_found(code, fault):
    assert any(fault in line for line in hard_to_read(ast.parse(code)))
    assert hard_to_read(ast.parse("[a if b else c for a in d]\ndef f():\n    return 1")) == []
