"""What the backends raise beside the errors of ILM and of the journal."""

from __future__ import annotations

from persist.ilm_errors import ILMError


class NotAStore(ILMError):
    """There is something else where the backend was told to keep its state. It was not touched."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where = where
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.where} is not the storage of an ILM: {self.reason}"
