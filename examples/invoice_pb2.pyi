from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Line(_message.Message):
    __slots__ = ("article", "pieces", "cents")
    ARTICLE_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    CENTS_FIELD_NUMBER: _ClassVar[int]
    article: str
    pieces: int
    cents: int
    def __init__(self, article: _Optional[str] = ..., pieces: _Optional[int] = ..., cents: _Optional[int] = ...) -> None: ...

class Invoice(_message.Message):
    __slots__ = ("number", "customer", "lines")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    CUSTOMER_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    number: int
    customer: str
    lines: _containers.RepeatedCompositeFieldContainer[Line]
    def __init__(self, number: _Optional[int] = ..., customer: _Optional[str] = ..., lines: _Optional[_Iterable[_Union[Line, _Mapping]]] = ...) -> None: ...
