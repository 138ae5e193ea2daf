"""A topology as a stranger would write it, after the README: checked by the tests, and by mypy as strictly as source.

Run as a script, it writes its plan to the file named, so that all classes in the plan are `__main__`'s.
"""
# mypy: disallow-untyped-defs, disallow-incomplete-defs, disallow-untyped-calls, disallow-any-generics

from actors.handler import Handler, handle
from actors.message import Message, State
from actors.table import Table
from actors.topology import Topology


class Trade(Message):
    symbol: str
    price: float


class Average(Message):
    symbol: str
    mean: float


class Totals(State):
    count: dict[str, int] = {}
    total: dict[str, float] = {}


class Line(State):
    updates: int = 0
    last: float = 0.0


class Feed(Handler):
    def __init__(self, path: str) -> None:
        self.path = path

    def on_loop(self) -> None:
        self.send(Trade("ACME", 2.5))


class Averager(Handler):
    state: Totals

    @handle
    def on_trade(self, trade: Trade) -> None:
        count, total = self.state.count, self.state.total
        count[trade.symbol] = count.get(trade.symbol, 0) + 1
        total[trade.symbol] = total.get(trade.symbol, 0.0) + trade.price
        self.send(Average(trade.symbol, total[trade.symbol] / count[trade.symbol]))


class Report(Handler):
    state: Table[str, Line]

    @handle
    def on_average(self, average: Average) -> None:
        line = self.state.setdefault(average.symbol, Line())
        line.updates += 1
        line.last = average.mean


app = Topology("trades", durability="process")
app.worker("ingest", feed=Feed.spec(path="trades.csv"))
app.worker("stats", averager=Averager, report=Report)
app.route("feed", Trade, to="averager")
app.route("averager", Average, to="report")


if __name__ == "__main__":
    import pickle
    import sys

    with open(sys.argv[1], "wb") as file:
        pickle.dump(app.compile(), file)
