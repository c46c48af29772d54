"""A reload by the manager: workers are replaced without a gap, or all stays as it was."""

from __future__ import annotations

import socket

import pytest
import pytest_twisted
from worker_doubles import LOOPBACK, NOWHERE, SOON, FakeProcess, speaking

from pushservice.limits import Limits
from pushservice.protocol.close_codes import CloseCode
from pushservice.server.ports import CannotListen
from pushservice.workers.supervisor import (
    FEED_TIMEOUT,
    MAX_RESTART_DELAY,
    STEP_TIMEOUT,
)

in_turns = pytest_twisted.ensureDeferred


# -- reload ----------------------------------------------------------------------------------------


@in_turns
async def test_a_reload_replaces_each_worker_once_its_successor_serves(make):
    managed = await make(workers=2).start()
    managed.feeding()
    for process in managed.processes:
        process.ignores.add("drain")
    reloaded = managed.reload()
    await managed.go()
    first, second, successor = managed.processes
    assert successor.told[0]["options"] == {"name": "second"}
    assert successor.asked == ["load_values", "serve"]
    assert first.told[-1] == {"do": "drain", "code": CloseCode.RESTARTING}
    assert second.asked == ["serve"], "one at a time"
    first.ends()
    await managed.go()
    assert second.asked[-1] == "drain"
    second.ends()
    await managed.go()
    assert reloaded.result is True
    assert managed.states() == [(1, "serving"), (2, "serving")]


@in_turns
@pytest.mark.parametrize("how", ["ends", "is not started", "is slow"])
async def test_a_reload_whose_first_worker_fails_leaves_all_as_it_was(
    make, logged_failures, how, tmp_path
):
    managed = await make(workers=2, redis=()).start()
    manager = managed.manager
    before = (
        manager._launcher.plan,
        dict(manager._resources.sockets),
        manager._resources.development,
    )
    if how == "is not started":
        managed.reactor.fault = ValueError("odd")
    elif how == "ends":
        managed.reactor.on_spawn = lambda process: managed.reactor.callLater(SOON, process.ends, 1)
    else:
        managed.reactor.on_spawn = lambda process: process.ignores.add("serve")
    reloaded = managed.reload(
        listen=(LOOPBACK, f"unix:{tmp_path}/new"), workers=3, demo=False, redis=(NOWHERE,)
    )
    await speaking(managed, STEP_TIMEOUT + FEED_TIMEOUT + 5)
    managed.reactor.on_spawn = lambda _process: None
    assert reloaded.result is False
    assert (
        manager._launcher.plan,
        manager._resources.sockets,
        manager._resources.development,
    ) == before
    assert [process.asked for process in managed.processes[:2]] == [["serve"]] * 2 or how != "ends"
    assert not any("drain" in process.asked for process in managed.processes[:2])
    assert managed.states() == [(1, "serving"), (2, "serving")]
    assert not (tmp_path / "new").exists(), "what was opened for it is closed"
    assert [redis.ended for redis in managed.reactor.redis] == [False]
    [port] = manager._resources.sockets.values()
    assert port.connected
    logged_failures.flush(Exception)
    managed.processes[0].ends()
    await managed.go(FEED_TIMEOUT + 1)
    assert managed.processes[-1].told[0]["options"] == {"name": "first"}


@in_turns
async def test_a_reload_whose_later_worker_fails_keeps_what_both_plans_need(
    make, logged_failures, tmp_path
):
    old, new = f"unix:{tmp_path}/old", f"unix:{tmp_path}/new"
    managed = await make(workers=2, listen=(old,), redis=()).start()
    managed.feeding()
    spawn = managed.reactor.on_spawn

    def second_fails(process: FakeProcess) -> None:
        spawn(process)
        if len(managed.processes) == 4:
            managed.reactor.callLater(SOON, process.ends, 1)

    managed.reactor.on_spawn = second_fails
    reloaded = managed.reload(listen=(new,), redis=(NOWHERE,), workers=3)
    await managed.go(1)
    assert reloaded.result is False
    assert managed.processes[0].ended
    assert managed.processes[1].asked[-1] != "drain"
    assert (tmp_path / "old").exists(), "one worker still serves there"
    assert (tmp_path / "new").exists()
    assert not managed.reactor.redis[0].ended, "one worker is still fed by it"
    logged_failures.flush(Exception)
    assert managed.states() == [(1, "serving"), (2, "serving"), (3, "serving")]
    assert managed.processes[-1].told[0]["options"] == {"name": "second"}, "the new slot is filled"
    again = managed.reload(listen=(old, new), redis=(NOWHERE,), workers=3)
    await managed.go(1)
    assert again.result is True, "what is still open is used again"
    assert (tmp_path / "old").exists()
    assert managed.reactor.redis[0].ended
    last = managed.reload(listen=(new,), redis=(NOWHERE,), workers=3)
    await managed.go(1)
    assert last.result is True
    assert not (tmp_path / "old").exists()


@in_turns
async def test_more_workers_are_added_and_fewer_drain(make):
    managed = await make(workers=1).start()
    managed.feeding()
    more = managed.reload(workers=3)
    await managed.go(1)
    assert more.result is True
    assert [number for number, _ in managed.states()] == [1, 2, 3]
    fewer = managed.reload(workers=1)
    await managed.go(1)
    assert fewer.result is True
    assert managed.states() == [(1, "serving")]
    assert len(managed.alive()) == 1
    dismissed = [each for each in managed.processes if each.told[-1].get("do") == "drain"]
    assert len(dismissed) == 4


@in_turns
async def test_a_plan_that_can_not_be_run_changes_nothing(make, tmp_path):
    managed = await make().start()
    manager = managed.manager
    before = (
        manager._launcher.plan,
        dict(manager._resources.sockets),
        manager._resources.development,
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        with pytest.raises(CannotListen, match="Address already in use"):
            await managed.reload(listen=(LOOPBACK, f"unix:{tmp_path}/new", busy))
    with pytest.raises(CannotListen, match="can't share"):
        await managed.reload(listen=("ssl:0",))
    missing = tmp_path / "missing.pem"
    with pytest.raises(ValueError, match=r"missing\.pem"):
        await managed.reload(plain=False, cert=(missing,), key=(missing,))
    with pytest.raises(ValueError, match="--workers 0 needs a new start"):
        await managed.reload(workers=0)
    await managed.go()
    assert (
        manager._launcher.plan,
        manager._resources.sockets,
        manager._resources.development,
    ) == before
    assert not (tmp_path / "new").exists()
    assert len(managed.processes) == 1
    assert managed.states() == [(1, "serving")]


@in_turns
async def test_a_private_redis_that_is_not_wanted_any_more_ends_when_all_have_left_it(make):
    managed = await make(workers=2, redis=()).start()
    managed.feeding()
    for process in managed.processes:
        process.ignores.add("drain")
    reloaded = managed.reload(redis=(NOWHERE,))
    await managed.go()
    managed.processes[0].ends()
    await managed.go()
    assert not managed.reactor.redis[0].ended
    managed.processes[1].ends()
    await managed.go()
    assert managed.reactor.redis[0].ended
    assert reloaded.result is True


@in_turns
async def test_a_send_buffer_that_has_changed_holds_for_sockets_that_were_open(make):
    managed = await make(limits=Limits(send_buffer=65_536)).start()
    [port] = managed.manager._resources.sockets.values()
    managed.feeding()
    reloaded = managed.reload(limits=Limits(send_buffer=20_000))
    await managed.go(FEED_TIMEOUT + 1)
    assert reloaded.result is True
    assert port.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 40_000


@in_turns
async def test_a_second_reload_waits_for_the_first(make):
    managed = await make().start()
    managed.feeding()
    managed.processes[0].ignores.add("drain")
    first, second = managed.reload("second"), managed.reload("third")
    await managed.go(1)
    assert len(managed.processes) == 2
    managed.processes[0].ends()
    await managed.go(1)
    assert (first.result, second.result) == (True, True)
    names = [process.told[0]["options"]["name"] for process in managed.processes]
    assert names == ["first", "second", "third"]


@in_turns
async def test_a_reload_takes_the_place_of_a_restart_that_was_to_come(make):
    managed = await make().start()
    for _ in range(6):
        managed.processes[-1].ends(code=1)
        await managed.go(3 if len(managed.processes) < 6 else SOON)
    assert managed.manager._slots.by_number[1].restart is not None
    count = len(managed.processes)
    reloaded = managed.reload()
    await managed.go()
    assert reloaded.result is True
    assert len(managed.processes) == count + 1
    await managed.go(MAX_RESTART_DELAY)
    assert len(managed.processes) == count + 1
    managed.feed()
    assert managed.manager.faults() == []


@in_turns
async def test_an_old_worker_that_ends_while_its_successor_comes_up_is_not_restarted(make):
    managed = await make().start()
    reloaded = managed.reload()
    managed.processes[0].ends(code=1)
    await managed.go(FEED_TIMEOUT + 1)
    assert reloaded.result is True
    assert len(managed.processes) == 2
    assert managed.states() == [(1, "serving")]


@in_turns
async def test_a_slot_both_of_whose_workers_end_in_a_reload_is_filled_again(make, logged_failures):
    managed = await make().start()
    reloaded = managed.reload()
    managed.processes[0].ends(code=1)
    managed.processes[1].ends(code=1)
    await managed.go(1)
    assert reloaded.result is False
    assert managed.states() == [(1, "serving")]
    logged_failures.flush(Exception)


@in_turns
async def test_a_worker_that_comes_up_while_it_is_replaced_is_not_told_to_serve(make):
    managed = await make(workers=2).start()
    managed.processes[0].ends()
    await managed.go(1)
    coming = managed.processes[2]
    coming.ignores.add("drain")
    assert coming.asked == []
    reloaded = managed.reload()
    await managed.go(SOON)
    managed.feeding()
    managed.processes[3].says("feed_up")
    await managed.go()
    assert coming.asked == ["drain"]
    coming.says("feed_up")
    await managed.go()
    assert coming.asked == ["drain"]
    coming.ends()
    await managed.go(1)
    assert reloaded.result is True
    assert managed.states() == [(1, "serving"), (2, "serving")]
