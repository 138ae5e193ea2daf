from actors import Handler, Message, Topology, handle


class Ball(Message):
    hits: int


class Player(Handler):
    @handle
    def on_ball(self, ball: Ball) -> None:
        print(f"{self.name} {ball.hits}", flush=True)
        if ball.hits == 6:
            self.stop_system()
        else:
            self.send(Ball(ball.hits + 1))


app = Topology("quickstart")
app.worker("left", ping=Player)
app.worker("right", pong=Player)
app.route("ping", Ball, to="pong")
app.route("pong", Ball, to="ping")

if __name__ == "__main__":
    with app.start() as system:
        system.send("ping", Ball(1))
        system.join(timeout=30)
