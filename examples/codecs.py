"""Messages that are not MessagePack: protobuf, by a codec written here; JSON; bytes as they are.

Invoice is a class that protoc has generated: see invoice.proto.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import google.protobuf.message
from invoice_pb2 import Invoice, Line

from actors import JSON, RAW, Handler, Message, Topology, handle


class ProtobufCodec:
    """Any class that protoc has generated. Workers get it by pickle; it has no state of its own."""

    name = "protobuf"

    def accepts(self, type_: type, /) -> str | None:
        if issubclass(type_, google.protobuf.message.Message):
            return None
        return "it is not a class that protoc has generated"

    def encode(self, message: Any, /) -> bytes:
        encoded: bytes = message.SerializeToString()
        return encoded

    def decode(self, data: memoryview, type_: type, /) -> Any:
        message = type_()
        message.ParseFromString(bytes(data))
        return message


class Total(Message):
    number: int
    euros: float


class GetDone(Message):
    pass


class Book(Handler):
    """Gets invoices, sends what they come to."""

    @handle
    def on_invoice(self, invoice: Invoice) -> None:
        cents = sum(line.pieces * line.cents for line in invoice.lines)
        self.send(Total(invoice.number, cents / 100))


class Desk(Handler):
    def __init__(self) -> None:
        self.shown: list[str] = []

    @handle
    def on_total(self, total: Total) -> None:
        self.shown.append(f"invoice {total.number}: {total.euros:.2f} EUR")

    @handle
    def on_scan(self, scan: bytes) -> None:
        self.shown.append(f"a scan of {len(scan)} bytes, {scan[:4].hex()}")

    @handle
    def on_get_done(self, get: GetDone) -> None:
        self.reply(Invoice(customer=" | ".join(self.shown)))


def topology(directory: Path) -> Topology:
    app = Topology("codecs", directory=directory)
    app.worker("books", book=Book)
    app.worker("office", desk=Desk)
    app.external("book")
    app.external("desk")
    app.route("book", Total, to="desk")
    app.codec(Invoice, ProtobufCodec())
    app.codec(Total, JSON)
    app.codec(bytes, RAW)
    return app


def main(directory: Path) -> None:
    with topology(directory).start() as system:
        system.send("book", Invoice(number=7, lines=[Line(article="bolt", pieces=100, cents=12)]))
        system.send("book", Invoice(number=8, lines=[Line(article="nut", pieces=1, cents=9), Line(pieces=2, cents=5)]))
        system.send("desk", b"\x89PNG and so on")
        done = system.ask("desk", GetDone(), reply=Invoice).customer.split(" | ")
        while len(done) < 3:  # the invoices go by another worker
            done = system.ask("desk", GetDone(), reply=Invoice).customer.split(" | ")
    print("\n".join(sorted(done)))


if __name__ == "__main__":
    with TemporaryDirectory(prefix="ringleader-codecs-") as temporary:
        main(Path(temporary) / "run")
