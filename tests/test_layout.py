"""How the modules import each other: what import-linter's contracts do not say."""

from pathlib import Path

import grimp
import pytest

PROJECT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def imports():
    """Which modules each module imports, also for types."""
    graph = grimp.build_graph("mandrake_sessions", cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def reachable(imports, start):
    """Every module that is imported by ``start``, directly or by another one."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for module in imports[waiting.pop()] - found:
            found.add(module)
            waiting.append(module)
    return found


def test_no_modules_import_each_other_in_a_circle(imports):
    assert len(imports) > 200
    assert [module for module in sorted(imports) if module in reachable(imports, module)] == []
