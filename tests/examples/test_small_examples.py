"""quickstart.py, crash.py, codecs.py and ticks_fixed.py print what the README, or common sense, says they print."""

from __future__ import annotations

from tests.examples.scripts import run_example


def test_quickstart_plays_three_rounds_and_ends(tmp_path):
    assert run_example("quickstart.py", home=tmp_path) == ["ping 1", "pong 2", "ping 3", "pong 4", "ping 5", "pong 6"]


def test_quickstart_runs_again_after_a_clean_end(tmp_path):
    assert run_example("quickstart.py", home=tmp_path) == run_example("quickstart.py", home=tmp_path)


def test_poison_message_becomes_a_dead_letter_and_the_others_flow_on(tmp_path):
    assert run_example("crash.py", home=tmp_path) == [
        "press did the jobs 1, 2, 4, 5",
        "ledger did the jobs 1, 2, 3, 4, 5",
        "worker workshop: 3 restarts, killed by SIGKILL",
        "worker office: 0 restarts",
        "dead letter: a Job to press, after 3 attempts: killed its worker",
    ]


def test_protobuf_json_and_bytes_arrive(tmp_path):
    assert run_example("codecs.py", home=tmp_path) == [
        "a scan of 14 bytes, 89504e47",
        "invoice 7: 12.00 EUR",
        "invoice 8: 0.19 EUR",
    ]


def test_a_million_records_are_added_up(tmp_path):
    assert run_example("ticks_fixed.py", home=tmp_path) == ["1000000 ticks, 11250000.00 EUR"]
