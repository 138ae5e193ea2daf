"""What PICKLE pickles messages with: cloudpickle, large buffers beside it. Imported when the first one is sent."""

from __future__ import annotations

import io
import pickle
from types import FunctionType
from typing import Any

from actors.codecs import THE_CLASS
from actors.shipping import Pickler

_LEAST_BUFFER = 4096  # bytes; smaller ones are in the pickle
_by_name: dict[int, Any] = {}  # by id, classes and functions that are pickled by name
_MOST_BY_NAME = 1024


class MessagePickler(Pickler):
    def __init__(self, file: io.BytesIO, type_: type) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL, buffer_callback=self._beside)
        self._type = type_
        self.buffers: list[pickle.PickleBuffer] = []

    def _beside(self, buffer: pickle.PickleBuffer) -> bool:
        """False, which is to say that it is not in the pickle, for the large ones."""
        try:
            small = buffer.raw().nbytes < _LEAST_BUFFER
        except BufferError:  # not contiguous
            small = True
        if not small:
            self.buffers.append(buffer)
        return small

    def reducer_override(self, obj: Any) -> Any:
        """cloudpickle looks up by name, each time, every class and function that a message refers to."""
        if id(obj) in _by_name:
            return NotImplemented
        reduced = super().reducer_override(obj)
        if reduced is NotImplemented and isinstance(obj, (type, FunctionType)):
            if len(_by_name) >= _MOST_BY_NAME:
                _by_name.clear()
            _by_name[id(obj)] = obj
        return reduced

    def persistent_id(self, obj: Any) -> str | None:
        return THE_CLASS if obj is self._type else None
