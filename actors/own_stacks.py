"""The Python stacks of all threads of this very process, as text."""

from __future__ import annotations

import sys
import threading
import traceback


def own_stacks() -> str:
    """The main thread first, the thread that asks last."""
    frames = sys._current_frames()
    here, main = threading.get_ident(), threading.main_thread().ident
    threads = {thread.ident: thread for thread in threading.enumerate()}

    def rank(ident: int) -> tuple[bool, bool, int]:
        return ident != main, ident == here, ident

    parts = []
    for ident in sorted(frames, key=rank):
        thread = threads.get(ident)
        name = thread.name if thread is not None else "not started by Python"
        asks = ", which asks" if ident == here else ""
        stack = "".join(traceback.format_stack(frames[ident])).rstrip()
        parts.append(f"thread {name}{asks} (most recent call last):\n{stack}\n")
    return "\n".join(parts)
