"""The repository keeps its own rules."""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from distillab.recipe import recipe_names
from distillab.stages import PLANS

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "distillab"
FILES = sorted(SOURCE.rglob("*.py"))

# A file imports from its own layer's package and from layers above it in this list, never from below.
LAYERS = [
    ["errors", "__init__"],
    ["settings", "tables", "tensors", "outside_code", "runtime.events", "runtime.files", "runtime.interruption"],
    ["data.config", "training.config"],
    ["methods.base", "models.catalog"],
    ["stages"],
    ["config", "bench.config", "compare.config"],
    ["recipe"],
    ["runtime"],
    ["data"],
    ["models"],
    ["adapters"],
    ["evaluation"],
    ["results"],
    ["guidance"],
    ["identity"],
    ["methods"],
    ["training"],
    ["checks"],
    ["preparation"],
    ["execution"],
    ["feeding"],
    ["scene"],
    ["outcome"],
    ["run", "inference"],
    ["resume"],
    ["preview", "demo", "api", "doctor", "bench", "compare", "run_files", "replay", "verify"],
    ["report"],
    ["terminal"],
    ["commands"],
    ["classic"],
    ["cli"],
    ["__main__"],
]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def layer(name: str) -> int:
    """The most specific entry that holds the module."""
    best = (-1, -1)
    for rank, entries in enumerate(LAYERS):
        for entry in entries:
            if name == entry or name.startswith(entry + "."):
                best = max(best, (len(entry), rank))
    assert best[1] >= 0, f"{name} has no layer: add it to LAYERS"
    return best[1]


def is_typing_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports_at_load(tree: ast.Module) -> set[str]:
    """Modules that importing this one imports: not those inside functions or for types only."""
    found: set[str] = set()
    todo: list[ast.AST] = [node for node in tree.body if not is_typing_only(node)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""}
        todo.extend(ast.iter_child_nodes(node))
    return found


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_one_way(path):
    name = module_name(path)
    for imported in imports_at_load(ast.parse(path.read_text())):
        if imported.startswith("distillab."):
            target = imported.removeprefix("distillab.")
            assert layer(target) <= layer(name), f"{name} imports {target}, which lies below it"


def test_no_module_imports_itself_by_way_of_others():
    known = {module_name(path) for path in FILES}
    graph = {
        module_name(path): {name.removeprefix("distillab.") for name in imports_at_load(ast.parse(path.read_text()))}
        & known
        for path in FILES
    }
    TopologicalSorter(graph).prepare()  # raises where there is a cycle


def test_a_report_waits_for_no_training_code():
    loads = "{'torch._dynamo', 'distillab.execution'} & sys.modules.keys()"
    code = f"import sys, distillab.report.write; sys.exit(bool({loads}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_file_is_named_after_nothing():
    assert not [p for p in FILES if p.stem in {"utils", "util", "common", "helpers", "helper", "misc"}]


@pytest.mark.parametrize("path", [p for p in FILES if "methods" not in p.parts], ids=module_name)
def test_nobody_outside_methods_asks_which_method_it_is(path):
    names = set(PLANS) | {"soft_target", "hint", "merit_based", "kd"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare):
            constants = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
            assert not constants & names, f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", [p for p in FILES if p.stem not in {"cli", "__main__"}], ids=module_name)
def test_only_the_command_line_prints_or_exits(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"print", "exit", "sys.exit", "os._exit", "quit"}, f"line {node.lineno}: {called}"


def test_torch_load_is_called_in_one_module_and_trusts_nobody():
    callers = [p for p in FILES if "torch.load(" in p.read_text()]
    assert [module_name(p) for p in callers] == ["models.weight_files"]
    for node in ast.walk(ast.parse(callers[0].read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert {k.arg: ast.unparse(k.value) for k in node.keywords}["weights_only"] == "True"


def test_settings_and_plans_need_no_torch():
    code = "import sys, distillab.config, distillab.cli; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_files_and_functions_stay_small():
    for path in FILES:
        text = path.read_text()
        assert len(text.splitlines()) <= 350, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                assert length <= 60, f"{path}:{node.lineno} {node.name} has {length} lines"


def test_the_readme_is_short_and_its_commands_exist():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^\s*make ([a-z-]+)", text, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"make {target}"
    for name in re.findall(r"--recipe ([a-z0-9-]+)", text):
        assert name in recipe_names()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / link).exists(), link


def test_ci_calls_only_the_makefile():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    commands = [line for line in lines if line and not line.startswith(("#", "set ", "cd "))]
    assert commands == ["make browser", "make check", "make test"]


def test_each_test_file_has_a_name_of_its_own():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))


def test_the_network_is_not_needed_to_import_or_list():
    code = (
        "import socket; socket.socket.connect = None; import distillab.cli, distillab.data.catalog, "
        "distillab.models.catalog, distillab.methods.base"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_runtime_dependency_has_a_row_and_a_purpose():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dependencies = sorted(re.split(r"[<>=~! ]", one)[0] for one in project["dependencies"])
    text = (ROOT / "docs" / "decisions" / "0001-libraries.md").read_text()
    rows = [row.split("|") for row in text.splitlines() if row.startswith("| ")][1:]
    assert sorted(row[2].split()[0] for row in rows) == dependencies
    assert f"**Decision.** {('Twelve', 'Thirteen', 'Fourteen', 'Fifteen')[len(dependencies) - 12]} runtime" in text


def test_the_changelog_names_the_version_of_the_numerics():
    from distillab.runtime.reproducibility import NUMERICS

    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"(`NUMERICS` in `runtime/reproducibility.py`) is {NUMERICS}." in changelog
