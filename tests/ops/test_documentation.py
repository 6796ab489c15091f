"""docs/ops.md: its examples run, its table and README's are what was measured."""

import re
from pathlib import Path

import ops_table
import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "ops.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("number", range(2))
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_example_runs(number):
    exec(compile(EXAMPLES[number], f"docs/ops.md, example {number}", "exec"), {})


def test_every_op_has_its_row_and_all_examples_are_run():
    from histokit import ops

    assert len(EXAMPLES) == 2
    apart = {"use", "fold_context", "pearson_compute", "pearson_merge"}
    functions = [name for name in ops.__all__ if name.islower() and name not in apart]
    assert len(functions) == 6
    assert all(f"| `{name}` |" in PAGE for name in functions)


def test_tables_are_those_of_the_measurement():
    for place, sets in ops_table.PLACES.items():
        for name in sets:
            found = ops_table.pattern(name).search(place.read_text())[0]
            assert found.splitlines()[1:-1] == ops_table.measured(name).splitlines()
