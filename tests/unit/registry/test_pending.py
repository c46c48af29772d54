"""What is still to be written of who watches what: no more than is needed, and never too little."""

from __future__ import annotations

from core_doubles import FixedClock

from pushservice.registry.pending import Change, Mirror


class Topic:
    """A symbol's topic, as far as a mirror looks at it."""

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol


class Watcher:
    """A connected client."""

    def __init__(self, conn: str) -> None:
        self.conn = conn
        self.symbols: dict[str, Topic] = {}

    @property
    def topics(self) -> list[Topic]:
        return list(self.symbols.values())


class Clients:
    """Connected clients, and the mirror that is told of them."""

    def __init__(self, *, lost: bool = False) -> None:
        self.clock = FixedClock()
        self.connected: dict[str, Watcher] = {}
        self.mirror = Mirror(self.clock, self.connected.values)
        if not lost:
            self.mirror.doubt()
            self.mirror.present([])

    def watch(self, client: str, *symbols: str) -> None:
        watcher = self.connected.setdefault(client, Watcher(client))
        for symbol in symbols:
            watcher.symbols[symbol] = Topic(symbol)
            self.mirror.watch(client, symbol)

    def unwatch(self, client: str, *symbols: str) -> None:
        for symbol in symbols:
            del self.connected[client].symbols[symbol]
            self.mirror.unwatch(client, symbol)

    def leave(self, client: str) -> None:
        for symbol in self.connected.pop(client).symbols:
            self.mirror.unwatch(client, symbol)

    def written(self, size: int = 1000) -> list[Change]:
        """What a batch that succeeds writes."""
        changes = self.mirror.take(size)
        self.mirror.confirm()
        return changes

    def fails(self, size: int = 1000) -> list[Change]:
        changes = self.mirror.take(size)
        self.mirror.fail()
        return changes

    @property
    def kept(self) -> int:
        """How many entries the mirror keeps."""
        mirror = self.mirror
        pending = sum(1 + len(each.symbols) for each in mirror._pending.values())
        return pending + len(mirror._whole) + len(mirror._under_way)


def whole(client: str, *symbols: str) -> Change:
    return Change(client, symbols, whole=True)


# -- what is written -------------------------------------------------------------------------------


def test_what_is_watched_is_written_once():
    clients = Clients()
    clients.watch("1", "A", "B")
    clients.watch("2", "A")
    assert clients.written() == [Change("1", ("A", "B")), Change("2", ("A",))]
    assert clients.written() == []
    assert clients.mirror.all_taken


def test_what_is_watched_no_more_is_taken_out():
    clients = Clients()
    clients.watch("1", "A", "B")
    clients.written()
    clients.unwatch("1", "A")
    clients.watch("1", "C")
    assert clients.written() == [Change("1", more=("C",), less=("A",))]


def test_a_client_that_leaves_is_taken_out_symbol_by_symbol():
    clients = Clients()
    clients.watch("1", "A", "B")
    clients.written()
    clients.leave("1")
    assert clients.written() == [Change("1", less=("A", "B"))]
    assert clients.kept == 0


def test_a_change_and_its_opposite_leave_nothing():
    clients = Clients()
    clients.watch("1", "A")
    clients.leave("1")
    assert (clients.kept, clients.written()) == (0, [])
    clients.watch("2", "A")
    clients.written()
    clients.unwatch("2", "A")
    clients.watch("2", "A")
    assert (clients.kept, clients.written()) == (0, [])


def test_what_changes_while_a_batch_is_under_way_is_in_the_next():
    clients = Clients()
    clients.watch("1", "A", "B")
    assert clients.mirror.take(1000) == [Change("1", ("A", "B"))]
    clients.unwatch("1", "A")
    clients.watch("1", "C")
    clients.mirror.confirm()
    assert clients.written() == [Change("1", more=("C",), less=("A",))]


def test_nothing_is_kept_of_what_is_written():
    clients = Clients()
    for client in range(100):
        clients.watch(str(client), "A", "B", "C")
    while clients.written(10):
        pass
    assert clients.kept == 0


# -- batches ---------------------------------------------------------------------------------------


def test_a_batch_has_about_so_many_symbols_the_oldest_changes_first():
    clients = Clients()
    for client in "12345":
        clients.watch(client, *"ABC")
    batches = []
    while changes := clients.written(7):
        batches.append(changes)
    assert [sum(change.size for change in changes) for changes in batches] == [7, 7, 1]
    assert [change.client for changes in batches for change in changes] == list("1233455")
    assert {(c.client, s) for changes in batches for c in changes for s in c.more} == {
        (client, symbol) for client in "12345" for symbol in "ABC"
    }


def test_a_batch_that_cuts_a_client_keeps_the_rest_of_it():
    clients = Clients()
    clients.watch("1", *"ABCDE")
    first = clients.mirror.take(2)
    clients.unwatch("1", "A")
    clients.unwatch("1", "E")
    clients.mirror.confirm()
    assert first == [Change("1", ("A", "B"))]
    (rest,) = clients.written()
    assert set(rest.more) == {"C", "D"}
    assert rest.less == ("A",)


def test_a_whole_client_is_never_cut():
    clients = Clients()
    clients.watch("1", *"ABCDE")
    clients.watch("2", *"AB")
    clients.mirror.doubt()
    clients.mirror.present([])
    assert clients.written(2) == [whole("1", *"ABCDE")]
    assert clients.written(2) == [whole("2", *"AB")]
    assert clients.written(2) == []


# -- failures --------------------------------------------------------------------------------------


def test_a_client_whose_batch_failed_is_written_whole_as_it_is_then():
    clients = Clients()
    clients.watch("1", "A", "B")
    clients.fails()
    clients.unwatch("1", "A")
    clients.watch("1", "C")
    assert clients.written() == [whole("1", "B", "C")]
    assert clients.kept == 0


def test_what_others_have_pending_is_not_touched_by_a_failure():
    clients = Clients()
    clients.watch("1", "A")
    clients.mirror.take(1000)
    clients.watch("2", "A")
    clients.mirror.fail()
    assert clients.written() == [Change("2", ("A",)), whole("1", "A")]


def test_a_client_that_left_and_may_be_written_is_a_stray_without_a_name():
    clients = Clients()
    clients.watch("1", "A")
    clients.mirror.take(1000)
    clients.leave("1")
    clients.mirror.fail()
    assert clients.mirror.strays
    assert not clients.mirror.all_taken
    assert clients.kept == 0
    clients.mirror.present(["1"])
    assert clients.written() == [whole("1")]
    assert clients.mirror.all_taken


def test_clients_that_are_written_and_watch_are_no_strays():
    clients = Clients()
    clients.watch("1", "A")
    clients.written()
    clients.mirror.present(["1"])
    assert clients.written() == []


def test_one_that_is_written_and_watches_nothing_is_written_whole_though_it_is_connected():
    clients = Clients(lost=True)
    clients.watch("1", "A")
    clients.unwatch("1", "A")
    clients.mirror.doubt()
    clients.watch("1", "B")
    clients.mirror.present(["1"])
    assert clients.written() == [whole("1", "B")]


def test_memory_is_bounded_while_every_write_fails_and_clients_come_and_go():
    clients = Clients()
    for client in range(10):
        clients.watch(f"written-{client}", "A", "B")
    clients.written()
    for turn in range(200):
        for client in range(10):
            clients.watch(f"{turn}-{client}", "A", f"S{turn}")
        if turn:
            for client in range(10):
                clients.leave(f"{turn - 1}-{client}")
        for client in range(10):
            clients.watch(f"written-{client}", f"S{turn}")
            if turn:
                clients.unwatch(f"written-{client}", f"S{turn - 1}")
        if clients.mirror.strays:
            clients.mirror.present([f"written-{client}" for client in range(10)])
        clients.fails(7)
        assert clients.kept <= 100, f"20 clients, and 10 that left, in round {turn}"
    clients.mirror.present([])
    while clients.written():
        pass
    assert clients.kept == 0


def test_memory_is_bounded_while_nothing_is_written_and_clients_come_and_go():
    clients = Clients()
    for client in range(10):
        clients.watch(str(client), "A", "B")
    clients.written()
    clients.mirror.take(1000)
    for turn in range(200):
        for client in range(10):
            clients.watch(str(client), f"S{turn}")
            if turn:
                clients.unwatch(str(client), f"S{turn - 1}")
        clients.watch(f"new-{turn}", "A")
        clients.leave(f"new-{turn}")
        assert clients.kept <= 20


# -- a mirror that is lost, and doubt --------------------------------------------------------------


def test_nothing_is_kept_or_written_while_it_is_lost():
    clients = Clients(lost=True)
    for turn in range(100):
        clients.watch(str(turn), "A")
        if turn % 2:
            clients.leave(str(turn))
        assert clients.kept == 0
    assert not clients.mirror.all_taken


def test_losing_it_drops_what_was_pending_and_under_way():
    clients = Clients()
    clients.watch("1", "A")
    clients.mirror.take(1)
    clients.watch("2", "A")
    clients.mirror.lose()
    clients.mirror.fail()
    clients.mirror.lose()
    assert clients.kept == 0


def test_in_doubt_all_that_is_true_is_written_whole():
    clients = Clients()
    clients.watch("1", "A", "B")
    clients.watch("2", "B")
    clients.watch("3")
    clients.written()
    clients.watch("2", "C")
    clients.mirror.lose()
    clients.leave("1")
    clients.watch("4", "A")
    clients.mirror.doubt()
    clients.watch("4", "D")
    assert clients.mirror.strays
    clients.mirror.present(["1", "2", "5"])
    assert clients.written() == [whole("2", "B", "C"), whole("4", "A", "D"), whole("1"), whole("5")]
    assert clients.kept == 0


def test_doubt_while_a_batch_is_under_way_outlives_its_success():
    clients = Clients()
    clients.watch("1", "A")
    clients.mirror.take(1000)
    clients.mirror.doubt()
    clients.mirror.confirm()
    clients.mirror.present([])
    assert clients.written() == [whole("1", "A")]


# -- the lag ---------------------------------------------------------------------------------------


def test_the_lag_is_the_age_of_the_oldest_change_until_it_is_confirmed():
    clients = Clients()
    assert clients.mirror.lag() == 0
    clients.watch("1", "A", "B")
    clients.clock.pass_time(1)
    clients.watch("2", "A")
    clients.clock.pass_time(1)
    assert round(clients.mirror.lag(), 3) == 2
    clients.mirror.take(1)
    clients.mirror.confirm()
    assert round(clients.mirror.lag(), 3) == 2
    clients.mirror.take(1)
    assert round(clients.mirror.lag(), 3) == 2
    clients.mirror.confirm()
    assert round(clients.mirror.lag(), 3) == 1
    clients.fails()
    clients.clock.pass_time(1)
    assert round(clients.mirror.lag(), 3) == 2
    clients.written()
    assert clients.mirror.lag() == 0


def test_the_lag_counts_from_the_first_change_that_was_not_kept():
    clients = Clients()
    clients.mirror.lose()
    clients.clock.pass_time(5)
    assert clients.mirror.lag() == 0
    clients.watch("1", "A")
    clients.clock.pass_time(5)
    clients.watch("2", "A")
    clients.clock.pass_time(1)
    assert round(clients.mirror.lag(), 3) == 6
    clients.mirror.doubt()
    clients.mirror.present([])
    assert round(clients.mirror.lag(), 3) == 6
    clients.written()
    assert clients.mirror.lag() == 0


def test_what_was_under_way_when_it_was_lost_counts_too():
    clients = Clients()
    clients.watch("1", "A")
    clients.mirror.take(1)
    clients.clock.pass_time(3)
    clients.mirror.lose()
    assert round(clients.mirror.lag(), 3) == 3
