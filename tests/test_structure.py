"""The flow of imports, the public names, their docstrings, and what importing costs."""

import ast
import inspect
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import distmf

PACKAGE = Path(distmf.__file__).parent

# Modules may import those on the lines above them, and from their own line what stands further left.
LEVELS = """
errors version choices arguments estimator clock sizes buffers progress watching cache process filesystem engine
encoding losses lanes compiled vectors pairs best kernel moves store grid stepsize langevin history threads cluster
ids moments residuals schedule ratings matrix factors lock engines diagnosis
guessing
frames text
numbering names
blocks jobs reading
tables
memory
records tiles
counting fitting tasks graph
scattering sources
merging
blocking titles
sides checkpoint normalisation run
model
heldout
trainer folding warm parameters
training
preparing trained
factorization datasets halving
loading splitting
recommending exporting
evaluation ranking tuning describe options simulation footprint drawing
charts maps
page
html_report
demo plan
rates describe_plan
plan_inputs
plan_command tune_command report_command
cli
"""
ORDER = {name: n for n, name in enumerate(LEVELS.split())}

# Packages that only some modules may import.
RESTRICTED = {
    "numba": {"compiled", "vectors", "best", "pairs"},
    "llvmlite": {"compiled", "vectors", "lanes", "best", "pairs"},
    "dask": {"heldout", "engine", "threads", "cluster", "graph", "scattering", "merging", "jobs", "trainer", "rates"},
    "distributed": {"cluster"},
    "click": {"cli", "options", "plan_command", "tune_command", "report_command"},
    "bokeh": {"drawing", "charts", "maps", "page"},
    "jinja2": {"page"},
    "rich": {"options", "watching"},
    "fsspec": {"filesystem"},
}


def imports(module: str) -> set[str]:
    """Return the dotted names that a module imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


MODULES = sorted({path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"})


def test_levels__name_every_module() -> None:
    assert sorted(ORDER) == MODULES


def test_modules__have_no_public_name() -> None:
    """Whoever imports a module binds its name in the package, and a function of that name would be gone."""
    assert set(MODULES) & set(distmf.__all__) == {"datasets", "errors"}


@pytest.mark.parametrize("module", MODULES)
def test_imports__go_one_way(module: str) -> None:
    for name in imports(module):
        package, *rest = name.split(".")
        if package == "distmf" and rest and rest[0] in ORDER:
            assert ORDER[rest[0]] < ORDER[module], f"{module} imports {name}"
        assert module in RESTRICTED.get(package, {module}), f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_imports__nothing_that_runs_code_from_a_file(module: str) -> None:
    unsafe = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}
    if module == "compiled":
        unsafe.remove("pickle")  # its files are code, and only those are read that this user has put there
    assert not {name.split(".")[0] for name in imports(module)} & unsafe
    assert not re.search(
        r"allow_pickle|np\.load\b|read_pickle|\beval\(|\bexec\(", (PACKAGE / f"{module}.py").read_text()
    )


def test_all__is_what_is_visible() -> None:
    assert dir(distmf) == distmf.__all__ == sorted(distmf.__all__)
    for_mypy = ast.parse((PACKAGE / "__init__.pyi").read_text()).body[-1]
    assert isinstance(for_mypy, ast.Assign)
    assert ast.literal_eval(for_mypy.value) == distmf.__all__
    names = {name for name, value in vars(distmf).items() if not isinstance(value, types.ModuleType)}
    assert {name for name in names if not name.startswith("_")} <= set(distmf.__all__)
    assert isinstance(distmf.evaluate, types.FunctionType)  # not the module of that name, which others have imported


def public() -> list[object]:
    found: list[object] = []
    for name in distmf.__all__:
        value = getattr(distmf, name)
        found += [value] if callable(value) else []
        if inspect.isclass(value):
            found += [method for key, method in vars(value).items() if not key.startswith("_") and callable(method)]
    return [*found, distmf.datasets.planted_ratings]


@pytest.mark.parametrize("value", public(), ids=lambda value: getattr(value, "__qualname__", str(value)))
def test_docstrings__describe_every_parameter(value: object) -> None:
    text = inspect.getdoc(value)
    assert text
    assert text.splitlines()[0].endswith(".")
    if inspect.isclass(value):
        return
    parameters = [name for name in inspect.signature(value).parameters if name not in ("self", "options")]  # type: ignore[arg-type]
    if len(parameters) > 1:
        section = text.partition("Parameters\n----------")[2]
        assert all(name in section for name in parameters), parameters


@pytest.mark.parametrize(
    ("module", "unneeded"),
    [
        # No command has begun: this is the time that the shell takes to complete a word.
        ("distmf.cli", {"numpy", "numba", "pyarrow", "dask", "fsspec", "distributed", "pandas", "rich"}),
        ("distmf.factorization", {"distributed", "pandas", "rich", "click"}),
    ],
)
def test_import__is_quick_about_what_it_needs_not(module: str, unneeded: set[str]) -> None:
    code = f"import sys, {module}; print(sorted({unneeded} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_readme__names_only_what_exists() -> None:
    root = PACKAGE.parent
    names = set(re.findall(r"(?:benchmarks|examples|deploy|tests|distmf)/[\w./]+\w", (root / "README.md").read_text()))
    assert {"benchmarks/peers.py", "benchmarks/quality.py", "examples/hidden_cells.py"} <= names
    for name in names | {"CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "deploy/README.md"}:
        assert (root / name).exists(), name
