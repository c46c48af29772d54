"""Pending changes: no more is written than is needed, and never less."""

from __future__ import annotations

from core_doubles import FixedClock

from pushservice.registry.pending import Change, PendingChanges


class Topic:
    """A symbol's topic, with what PendingChanges reads of it."""

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
    """Connected clients, and the pending changes that are told of them."""

    def __init__(self, *, offline: bool = False) -> None:
        self.clock = FixedClock()
        self.connected: dict[str, Watcher] = {}
        self.changes = PendingChanges(self.clock, self.connected.values)
        if not offline:
            self.changes.resync()
            self.changes.reconcile([])

    def watch(self, client: str, *symbols: str) -> None:
        watcher = self.connected.setdefault(client, Watcher(client))
        for symbol in symbols:
            watcher.symbols[symbol] = Topic(symbol)
            self.changes.watch(client, symbol)

    def unwatch(self, client: str, *symbols: str) -> None:
        for symbol in symbols:
            del self.connected[client].symbols[symbol]
            self.changes.unwatch(client, symbol)

    def leave(self, client: str) -> None:
        for symbol in self.connected.pop(client).symbols:
            self.changes.unwatch(client, symbol)

    def write(self, size: int = 1000) -> list[Change]:
        """Write a batch: gives what was in it."""
        changes = self.changes.take(size)
        self.changes.confirm()
        return changes

    def fail_to_write(self, size: int = 1000) -> list[Change]:
        changes = self.changes.take(size)
        self.changes.fail()
        return changes

    @property
    def kept(self) -> int:
        """How many entries are kept."""
        kept = self.changes
        symbols = sum(1 + len(each.symbols) for each in kept._differences.values())
        return symbols + len(kept._replacements) + len(kept._in_flight)


def replacement(client: str, *symbols: str) -> Change:
    return Change(client, symbols, replaces=True)


# -- what is written -------------------------------------------------------------------------------


def test_what_is_watched_is_written_once():
    clients = Clients()
    clients.watch("1", "A", "B")
    clients.watch("2", "A")
    assert clients.write() == [Change("1", ("A", "B")), Change("2", ("A",))]
    assert clients.write() == []
    assert clients.changes.all_taken


def test_a_symbol_that_is_unwatched_is_removed():
    clients = Clients()
    clients.watch("1", "A", "B")
    clients.write()
    clients.unwatch("1", "A")
    clients.watch("1", "C")
    assert clients.write() == [Change("1", added=("C",), removed=("A",))]


def test_a_client_that_leaves_is_removed_symbol_by_symbol():
    clients = Clients()
    clients.watch("1", "A", "B")
    clients.write()
    clients.leave("1")
    assert clients.write() == [Change("1", removed=("A", "B"))]
    assert clients.kept == 0


def test_a_change_and_its_opposite_leave_nothing():
    clients = Clients()
    clients.watch("1", "A")
    clients.leave("1")
    assert (clients.kept, clients.write()) == (0, [])
    clients.watch("2", "A")
    clients.write()
    clients.unwatch("2", "A")
    clients.watch("2", "A")
    assert (clients.kept, clients.write()) == (0, [])


def test_a_change_while_a_batch_is_in_flight_is_in_the_next():
    clients = Clients()
    clients.watch("1", "A", "B")
    assert clients.changes.take(1000) == [Change("1", ("A", "B"))]
    clients.unwatch("1", "A")
    clients.watch("1", "C")
    clients.changes.confirm()
    assert clients.write() == [Change("1", added=("C",), removed=("A",))]


def test_nothing_is_kept_of_what_is_written():
    clients = Clients()
    for client in range(100):
        clients.watch(str(client), "A", "B", "C")
    while clients.write(10):
        pass
    assert clients.kept == 0


# -- batches ---------------------------------------------------------------------------------------


def test_a_batch_has_about_so_many_symbols_the_oldest_changes_first():
    clients = Clients()
    for client in "12345":
        clients.watch(client, *"ABC")
    batches = []
    while changes := clients.write(7):
        batches.append(changes)
    assert [sum(change.size for change in changes) for changes in batches] == [7, 7, 1]
    assert [change.client for changes in batches for change in changes] == list("1233455")
    assert {(c.client, s) for changes in batches for c in changes for s in c.added} == {
        (client, symbol) for client in "12345" for symbol in "ABC"
    }


def test_a_batch_that_divides_a_client_keeps_the_rest_of_it():
    clients = Clients()
    clients.watch("1", *"ABCDE")
    first = clients.changes.take(2)
    clients.unwatch("1", "A")
    clients.unwatch("1", "E")
    clients.changes.confirm()
    assert first == [Change("1", ("A", "B"))]
    (rest,) = clients.write()
    assert set(rest.added) == {"C", "D"}
    assert rest.removed == ("A",)


def test_a_replacement_is_never_divided():
    clients = Clients()
    clients.watch("1", *"ABCDE")
    clients.watch("2", *"AB")
    clients.changes.resync()
    clients.changes.reconcile([])
    assert clients.write(2) == [replacement("1", *"ABCDE")]
    assert clients.write(2) == [replacement("2", *"AB")]
    assert clients.write(2) == []


# -- failures --------------------------------------------------------------------------------------


def test_a_client_whose_batch_failed_is_replaced_by_what_it_watches_then():
    clients = Clients()
    clients.watch("1", "A", "B")
    clients.fail_to_write()
    clients.unwatch("1", "A")
    clients.watch("1", "C")
    assert clients.write() == [replacement("1", "B", "C")]
    assert clients.kept == 0


def test_a_failure_does_not_touch_what_others_have_pending():
    clients = Clients()
    clients.watch("1", "A")
    clients.changes.take(1000)
    clients.watch("2", "A")
    clients.changes.fail()
    assert clients.write() == [Change("2", ("A",)), replacement("1", "A")]


def test_a_client_that_left_during_a_failed_batch_is_removed_by_reconcile():
    clients = Clients()
    clients.watch("1", "A")
    clients.changes.take(1000)
    clients.leave("1")
    clients.changes.fail()
    assert clients.changes.needs_reconcile
    assert not clients.changes.all_taken
    assert clients.kept == 0
    clients.changes.reconcile(["1"])
    assert clients.write() == [replacement("1")]
    assert clients.changes.all_taken


def test_reconcile_leaves_alone_clients_that_are_up_to_date():
    clients = Clients()
    clients.watch("1", "A")
    clients.write()
    clients.changes.reconcile(["1"])
    assert clients.write() == []


def test_reconcile_replaces_a_stored_client_that_watched_nothing_at_the_resync():
    clients = Clients(offline=True)
    clients.watch("1", "A")
    clients.unwatch("1", "A")
    clients.changes.resync()
    clients.watch("1", "B")
    clients.changes.reconcile(["1"])
    assert clients.write() == [replacement("1", "B")]


def test_memory_is_bounded_while_every_write_fails_and_clients_come_and_go():
    clients = Clients()
    for client in range(10):
        clients.watch(f"written-{client}", "A", "B")
    clients.write()
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
        if clients.changes.needs_reconcile:
            clients.changes.reconcile([f"written-{client}" for client in range(10)])
        clients.fail_to_write(7)
        assert clients.kept <= 100, f"20 clients, and 10 that left, in round {turn}"
    clients.changes.reconcile([])
    while clients.write():
        pass
    assert clients.kept == 0


def test_memory_is_bounded_while_nothing_is_written_and_clients_come_and_go():
    clients = Clients()
    for client in range(10):
        clients.watch(str(client), "A", "B")
    clients.write()
    clients.changes.take(1000)
    for turn in range(200):
        for client in range(10):
            clients.watch(str(client), f"S{turn}")
            if turn:
                clients.unwatch(str(client), f"S{turn - 1}")
        clients.watch(f"new-{turn}", "A")
        clients.leave(f"new-{turn}")
        assert clients.kept <= 20


# -- offline and resync ----------------------------------------------------------------------------


def test_nothing_is_kept_or_written_while_offline():
    clients = Clients(offline=True)
    for turn in range(100):
        clients.watch(str(turn), "A")
        if turn % 2:
            clients.leave(str(turn))
        assert clients.kept == 0
    assert not clients.changes.all_taken


def test_going_offline_drops_what_was_pending_and_in_flight():
    clients = Clients()
    clients.watch("1", "A")
    clients.changes.take(1)
    clients.watch("2", "A")
    clients.changes.go_offline()
    clients.changes.fail()
    clients.changes.go_offline()
    assert clients.kept == 0


def test_a_resync_replaces_every_client():
    clients = Clients()
    clients.watch("1", "A", "B")
    clients.watch("2", "B")
    clients.watch("3")
    clients.write()
    clients.watch("2", "C")
    clients.changes.go_offline()
    clients.leave("1")
    clients.watch("4", "A")
    clients.changes.resync()
    clients.watch("4", "D")
    assert clients.changes.needs_reconcile
    clients.changes.reconcile(["1", "2", "5"])
    assert clients.write() == [
        replacement("2", "B", "C"),
        replacement("4", "A", "D"),
        replacement("1"),
        replacement("5"),
    ]
    assert clients.kept == 0


def test_confirming_a_batch_from_before_a_resync_does_not_cancel_the_resync():
    clients = Clients()
    clients.watch("1", "A")
    clients.changes.take(1000)
    clients.changes.resync()
    clients.changes.confirm()
    clients.changes.reconcile([])
    assert clients.write() == [replacement("1", "A")]


# -- the lag ---------------------------------------------------------------------------------------


def test_the_lag_is_the_age_of_the_oldest_change_until_it_is_confirmed():
    clients = Clients()
    assert clients.changes.lag() == 0
    clients.watch("1", "A", "B")
    clients.clock.pass_time(1)
    clients.watch("2", "A")
    clients.clock.pass_time(1)
    assert round(clients.changes.lag(), 3) == 2
    clients.changes.take(1)
    clients.changes.confirm()
    assert round(clients.changes.lag(), 3) == 2
    clients.changes.take(1)
    assert round(clients.changes.lag(), 3) == 2
    clients.changes.confirm()
    assert round(clients.changes.lag(), 3) == 1
    clients.fail_to_write()
    clients.clock.pass_time(1)
    assert round(clients.changes.lag(), 3) == 2
    clients.write()
    assert clients.changes.lag() == 0


def test_the_lag_counts_from_the_first_change_that_was_not_kept():
    clients = Clients()
    clients.changes.go_offline()
    clients.clock.pass_time(5)
    assert clients.changes.lag() == 0
    clients.watch("1", "A")
    clients.clock.pass_time(5)
    clients.watch("2", "A")
    clients.clock.pass_time(1)
    assert round(clients.changes.lag(), 3) == 6
    clients.changes.resync()
    clients.changes.reconcile([])
    assert round(clients.changes.lag(), 3) == 6
    clients.write()
    assert clients.changes.lag() == 0


def test_a_batch_in_flight_when_going_offline_counts_in_the_lag():
    clients = Clients()
    clients.watch("1", "A")
    clients.changes.take(1)
    clients.clock.pass_time(3)
    clients.changes.go_offline()
    assert round(clients.changes.lag(), 3) == 3
