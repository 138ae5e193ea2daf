"""What a Topology was told, before anything of it is checked. Pure records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from actors.handler import Handler, HandlerDescription, describe


@dataclass(frozen=True, slots=True)
class DeclaredWorker:
    name: Any  # as it was given: nothing is checked yet
    handlers: Mapping[str, Any]
    where: str


@dataclass(frozen=True, slots=True)
class DeclaredRoute:
    source: Any
    types: tuple[Any, ...]
    targets: tuple[Any, ...]
    where: str
    ring_bytes: Any = None  # None: it does not say


@dataclass(frozen=True, slots=True)
class DeclaredExternal:
    handler: Any
    types: tuple[Any, ...]  # none: all it handles
    where: str
    ring_bytes: Any = None


@dataclass(frozen=True, slots=True)
class DeclaredOptions:
    """Options of a worker: of its supervision, or of its process."""

    worker: Any
    options: Mapping[str, Any]  # those that were given
    where: str


@dataclass(frozen=True, slots=True)
class DeclaredGroup:
    name: Any
    members: Any  # a tuple, if it can be used
    options: Mapping[str, Any]
    where: str


@dataclass(frozen=True, slots=True)
class DeclaredCodec:
    type: Any
    codec: Any
    where: str


@dataclass(slots=True)
class Declaration:
    """What a Topology was told, unchecked, in the order in which it was told."""

    name: Any
    durability: Any
    numbers: Mapping[str, Any]
    workers: list[DeclaredWorker] = field(default_factory=list)
    routes: list[DeclaredRoute] = field(default_factory=list)
    externals: list[DeclaredExternal] = field(default_factory=list)
    supervised: list[DeclaredOptions] = field(default_factory=list)
    processes: list[DeclaredOptions] = field(default_factory=list)
    groups: list[DeclaredGroup] = field(default_factory=list)
    codecs: list[DeclaredCodec] = field(default_factory=list)
    strategy: Any = "one_for_one"  # of the root
    preload: Any = ()  # modules
    strict_message: bool = False  # max_message_bytes was given: every ring has to hold such a message
    descriptions: dict[type, HandlerDescription] = field(default_factory=dict)

    def describe(self, cls: type[Handler]) -> HandlerDescription:
        if cls not in self.descriptions:
            self.descriptions[cls] = describe(cls, self.coded)
        return self.descriptions[cls]

    @property
    def coded(self) -> frozenset[type]:
        """The classes that have a codec, by which they are messages whatever else they are."""
        return frozenset(one.type for one in self.codecs if isinstance(one.type, type))
