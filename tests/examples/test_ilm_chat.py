"""ilm_chat.py kills one of its two processes, twice, and shows that it does not matter."""

from __future__ import annotations

import re

from tests.examples.scripts import run_example


def test_a_chat_goes_on_where_a_killed_process_left_it(tmp_path):
    first, *kills, last = run_example("ilm_chat.py", home=tmp_path)
    assert first == "alice says 20,000 lines to bob, who answers each with his count"
    assert last == "20,000 answers, each line counted once and in order: nothing was lost, doubled or reordered"
    killed = [re.fullmatch(r"bob was killed after ([\d,]+) answers, and started again", line) for line in kills]
    after = [int(found[1].replace(",", "")) for found in killed if found]
    assert len(after) == len(kills) == 2
    assert all(count < 20_000 for count in after), "bob was killed when there was nothing left to do"
