"""ilm_quickstart.py prints what the README says it prints."""

from __future__ import annotations

from tests.examples.scripts import run_example


def test_two_peers_exchange_numbers(tmp_path):
    assert run_example("ilm_quickstart.py", home=tmp_path) == ["alice got [4, 5, 6]", "bob got [1, 2, 3]"]
