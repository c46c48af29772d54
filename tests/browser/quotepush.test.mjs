// Tests of quotepush.js on a fake WebSocket, clock and random source: nothing here waits.
import assert from "node:assert/strict";
import {test} from "node:test";

import {ExactNumber, Quotepush, QuotepushError, parseExact}
  from "../../pushservice/web/client/quotepush.js";

/** A clock that moves only when told. */
class FakeClock {
  time = 0; #timers = new Map(); #next = 1;
  now = () => this.time;
  setTimeout = (fn, ms) => {
    this.#timers.set(this.#next, {at: this.time + ms, fn});
    return this.#next++;
  };
  clearTimeout = (id) => this.#timers.delete(id);
  advance(ms) {
    const end = this.time + ms;
    for (;;) {
      const due = [...this.#timers].filter(([, timer]) => timer.at <= end)
        .sort(([, a], [, b]) => a.at - b.at)[0];
      if (!due) break;
      this.#timers.delete(due[0]);
      this.time = Math.max(this.time, due[1].at);
      due[1].fn();
    }
    this.time = end;
  }
  /** Time passes, and no timer runs, as on a page that is frozen. */
  freeze(ms) { this.time += ms; }
  get size() { return this.#timers.size; }
}

/** One client with the sockets it made; `random` is what the client draws. */
function setup(options = {}, url = "wss://quotes.test/") {
  const world = {clock: new FakeClock(), random: 0.5, sockets: [], states: [], reports: []};
  class FakeSocket {
    readyState = 0; sent = []; closed = false;
    constructor(url, protocols) {
      if (world.forbidden) throw world.forbidden;
      Object.assign(this, {url, protocols});
      world.sockets.push(this);
    }
    send(text) { this.sent.push(text); }
    close() { this.readyState = 2; this.closed = true; }
    open() { this.readyState = 1; this.onopen?.({}); }
    receive(...events) { this.onmessage?.({data: JSON.stringify(events)}); }
    end(code, reason = "") { this.readyState = 3; this.onclose?.({code, reason}); }
    welcome(fields = {}) {
      this.open();
      this.receive({ev: "welcome", v: 1, conn: "c1", epoch: "e1", hb: 5000,
        limits: {symbols: 500, message: 16384}, ...fields});
    }
    /** Answers the latest auth. */
    answer(event) { this.receive({id: this.ops("auth").at(-1).id, ...event}); }
    accept(fields = {}) { this.answer({ev: "authenticated", ...fields}); }
    refuse(code = 402, msg = "the token is refused: it is bad") {
      this.answer({ev: "error", code, msg});
    }
    get tokens() { return this.ops("auth").map(({token}) => token); }
    ops(op) { return this.sent.map((text) => JSON.parse(text)).filter((sent) => sent.op === op); }
    symbols(op) { return this.ops(op).flatMap((sent) => sent.symbols); }
  }
  world.q = new Quotepush(url, {
    WebSocket: FakeSocket, timers: world.clock, random: () => world.random,
    report: (error) => world.reports.push(error), ...options,
  });
  world.q.on("state", (state) => world.states.push(state));
  Object.defineProperty(world, "socket", {get: () => world.sockets.at(-1)});
  return world;
}

/** Fields of a welcome that asks for a token. */
const REQUIRED = {auth: "required"};

/** A client that was welcomed and asked for its token. */
async function setupAsked(options) {
  const world = setup(options);
  world.socket.welcome(REQUIRED);
  await settled();
  return world;
}

/** A token function that is answered by the test: `calls` are [why, resolve, reject]. */
function oracle() {
  const calls = [];
  const token = (why) => new Promise((resolve, reject) => calls.push([why, resolve, reject]));
  return {calls, token};
}

/** A client already welcomed. */
function setupOpen(options, welcome) {
  const world = setup(options);
  world.socket.welcome(welcome);
  return world;
}

const settled = () => new Promise((resolve) => setImmediate(resolve)); // runs all microtasks
const quote = (s, n, d = {price: n}) => ({ev: "quote", s, n, t: 1000 + n, d});
const snapshot = (s, n) => ({...quote(s, n), ev: "snapshot"});
const collect = (q, event) => {
  const seen = [];
  q.on(event, (detail) => seen.push(detail));
  return seen;
};

test("it asks for the subprotocol and is open only after the welcome", () => {
  const {q, socket} = setup();
  assert.equal(socket.url, "wss://quotes.test/");
  assert.deepEqual(socket.protocols, ["quotepush.v1.json"]);
  assert.equal(q.state, "connecting");
  socket.open();
  assert.equal(q.state, "connecting");
  socket.welcome();
  assert.equal(q.state, "open");
});

test("without any WebSocket it says what to pass", () => {
  assert.throws(() => new Quotepush("wss://quotes.test/", {WebSocket: null}), /options\.WebSocket/);
});

test("an option that is undefined has its default", () => {
  const {q, socket} = setup({parse: undefined, backoff: undefined, connectTimeout: undefined});
  socket.welcome();
  assert.equal(q.state, "open");
});

for (const [given, used] of [
  ["WSS://quotes.test:8008/a?b=1", "WSS://quotes.test:8008/a?b=1"],
  ["http://quotes.test/", "ws://quotes.test/"],
  [new URL("https://quotes.test"), "wss://quotes.test/"],
]) {
  test(`the address ${given} is taken`, () => {
    const urls = [];
    new Quotepush(given, {WebSocket: class { constructor(url) { urls.push(url); } }}).close();
    assert.deepEqual(urls, [used]);
  });
}

for (const bad of ["quotes.test:8008", "ftp://quotes.test/", "wss://", "wss:///path", "wss://a b/",
  "wss://quotes.test/#part", "/quotes", "", undefined, 7]) {
  test(`the address ${JSON.stringify(bad)} is refused in words, outside of pages`, () => {
    assert.throws(() => new Quotepush(bad, {WebSocket: class {}}), ({name, message}) =>
      name === "TypeError" && message.includes("wss://"));
  });
}

for (const [page, given, used] of [
  ["https://quotes.test:8008/page.html?x=1#y", undefined, "wss://quotes.test:8008/"],
  ["http://quotes.test/a/page.html", "feed", "ws://quotes.test/a/feed"],
  ["https://quotes.test/a/page.html", "//other.test/", "wss://other.test/"],
]) {
  test(`on the page ${page} the address ${given} is ${used}`, () => {
    globalThis.location = new URL(page);
    try {
      const urls = [];
      new Quotepush(given, {WebSocket: class { constructor(url) { urls.push(url); } }}).close();
      assert.deepEqual(urls, [used]);
    } finally {
      delete globalThis.location;
    }
  });
}

/** Has the next socket's constructor throw. */
const forbid = (world) => { world.forbidden = new SyntaxError("port out of range"); };

test("what the WebSocket's constructor throws comes out of ours, and out of open", () => {
  assert.throws(() => new Quotepush("wss://quotes.test:99999/", {
    WebSocket: class { constructor() { throw new SyntaxError("port out of range"); } },
  }), SyntaxError);
  const world = setup();
  world.socket.end(1006);
  forbid(world);
  assert.throws(() => world.q.open(), SyntaxError);
  assert.deepEqual(world.states.at(-1), {state: "closed", code: 1006, reason: "port out of range"});
  assert.equal(world.clock.size, 0);
  assert.throws(() => world.q.open(), SyntaxError);
  world.forbidden = null;
  world.q.open();
  assert.equal(world.q.state, "connecting");
});

test("a constructor that throws at a reconnect is reported, and ends it", () => {
  const world = setup();
  world.socket.end(1006);
  forbid(world);
  world.clock.advance(500);
  assert.deepEqual(world.reports, [world.forbidden]);
  assert.deepEqual([world.q.state, world.clock.size], ["closed", 0]);
});

test("an error before the connection stands is its end, whether or not a close follows", () => {
  const {q, clock, sockets, socket, states} = setup();
  socket.onerror({});
  assert.deepEqual(states.at(-1), {state: "waiting", delay: 250, attempt: 1, code: 1006, reason: ""});
  socket.end(1006);
  clock.advance(250);
  assert.equal(sockets.length, 2);
  sockets[1].welcome();
  sockets[1].onerror({}); // a close follows here
  assert.equal(q.state, "open");
  sockets[1].end(1006);
  assert.equal(q.state, "waiting");
});

test("no subscribe goes out before the welcome", async () => {
  const {q, socket} = setup();
  q.subscribe("AAPL", () => {});
  await settled();
  socket.open();
  await settled();
  assert.deepEqual(socket.sent, []);
  socket.welcome();
  await settled();
  assert.deepEqual(socket.symbols("subscribe"), ["AAPL"]);
});

test("subscribes of one microtask go out as one op", async () => {
  const {q, socket} = setupOpen();
  q.subscribe(["A", "B"], () => {});
  q.subscribe("C", () => {});
  await settled();
  assert.equal(socket.sent.length, 1);
  assert.deepEqual(socket.symbols("subscribe"), ["A", "B", "C"]);
});

test("a subscribe undone in the same microtask sends nothing", async () => {
  const {q, socket} = setupOpen();
  q.subscribe("A", () => {})();
  await settled();
  assert.deepEqual(socket.sent, []);
});

test("mode, interval and snapshot ride on every subscribe", async () => {
  const {q, socket} = setupOpen({mode: "auto", interval: 250, snapshot: false});
  q.subscribe("A", () => {});
  await settled();
  const [{mode, interval, snapshot: wanted}] = socket.ops("subscribe");
  assert.deepEqual([mode, interval, wanted], ["auto", 250, false]);
});

test("every batch stays under the message limit, counted in UTF-8 bytes", async () => {
  const message = 200;
  const {q, socket} = setupOpen({interval: 100}, {limits: {symbols: 500, message}});
  const symbols = Array.from({length: 60}, (_, i) => (i % 2 ? `股票${i}` : `SYM${i}`));
  q.subscribe(symbols, () => {});
  await settled();
  assert.ok(socket.sent.length > 1);
  for (const text of socket.sent) assert.ok(Buffer.byteLength(text) < message, text);
  assert.deepEqual(socket.symbols("subscribe"), symbols);
});

test("a symbol that fits in no message is refused here instead of costing the connection", async () => {
  const {q, socket} = setupOpen({}, {limits: {message: 200}});
  const errors = collect(q, "error");
  q.subscribe(["A", "x".repeat(300)], () => {});
  await settled();
  assert.deepEqual(socket.symbols("subscribe"), ["A"]);
  assert.deepEqual(errors.map(({code, symbol}) => [code, symbol.length]), [[411, 300]]);
});

test("the server hears only of the first callback and of the end of the last", async () => {
  const {q, socket} = setupOpen();
  const seen = [];
  const stopFirst = q.subscribe("A", (update) => seen.push(["first", update.n]));
  const stopSecond = q.subscribe("A", (update) => seen.push(["second", update.n]));
  await settled();
  assert.deepEqual(socket.symbols("subscribe"), ["A"]);
  socket.receive(quote("A", 1));
  stopFirst();
  stopFirst(); // a second call changes nothing
  await settled();
  assert.deepEqual(socket.symbols("unsubscribe"), []);
  socket.receive(quote("A", 2));
  stopSecond();
  await settled();
  assert.deepEqual(socket.symbols("unsubscribe"), ["A"]);
  socket.receive(quote("A", 3)); // was on its way
  assert.deepEqual(seen, [["first", 1], ["second", 1], ["second", 2]]);
});

test("the same function subscribed twice counts twice", async () => {
  const {q, socket} = setupOpen();
  let calls = 0;
  const callback = () => { calls += 1; };
  const stop = q.subscribe("A", callback);
  q.subscribe("A", callback);
  await settled();
  socket.receive(quote("A", 1));
  assert.equal(calls, 2);
  stop();
  socket.receive(quote("A", 2));
  assert.equal(calls, 3);
});

test("a later callback gets the last known quote as a snapshot", async () => {
  const {q, socket} = setupOpen();
  q.subscribe("A", () => {});
  await settled();
  socket.receive(snapshot("A", 4), quote("A", 7));
  const seen = [];
  q.subscribe("A", (update) => seen.push(update));
  await settled();
  assert.deepEqual(seen.map((u) => [u.n, u.snapshot, u.merged]), [[7, true, 0]]);
});

test("a later callback does not get an old quote after a newer one", async () => {
  const {q, socket} = setupOpen();
  q.subscribe("A", () => {});
  await settled();
  socket.receive(quote("A", 1));
  const seen = [];
  q.subscribe("A", (update) => seen.push(update.n));
  socket.receive(quote("A", 2));
  await settled();
  assert.deepEqual(seen, [2]);
});

test("a callback stopped by an earlier one misses even the quote at hand", async () => {
  const {q, socket} = setupOpen();
  const seen = [];
  let stop = () => {};
  q.subscribe("A", () => stop());
  stop = q.subscribe("A", (update) => seen.push(update.n));
  await settled();
  socket.receive(quote("A", 1));
  q.subscribe("A", (update) => seen.push(update.n))(); // stopped before its snapshot
  await settled();
  assert.deepEqual(seen, []);
});

test("a quote is frozen and carries the payload, the count and the epoch", async () => {
  const {q, socket} = setupOpen();
  const seen = [];
  q.subscribe("A", (update) => seen.push(update));
  await settled();
  socket.receive(quote("A", 3, {price: 10.5}));
  assert.deepEqual(seen, [{symbol: "A", n: 3, t: 1003, data: {price: 10.5}, snapshot: false,
    merged: 0, gap: false, epoch: "e1"}]);
  assert.ok(Object.isFrozen(seen[0]));
});

test("merged is the jump of n less one, and 0 for snapshots and the first quote", async () => {
  const {q, socket} = setupOpen();
  const merged = [];
  q.subscribe(["A", "B"], (update) => merged.push([update.symbol, update.merged]));
  await settled();
  socket.receive(snapshot("A", 10), quote("A", 11), quote("A", 15), quote("B", 40), quote("B", 42),
    snapshot("A", 20), quote("A", 22));
  assert.deepEqual(merged,
    [["A", 0], ["A", 0], ["A", 3], ["B", 0], ["B", 1], ["A", 0], ["A", 1]]);
});

test("a value without a number starts the count at 0", async () => {
  const {q, socket} = setupOpen();
  const merged = [];
  q.subscribe("A", (update) => merged.push(update.merged));
  await settled();
  socket.receive(snapshot("A", 0), quote("A", 3));
  assert.deepEqual(merged, [0, 2]);
});

test("merged starts anew with a new connection, epoch or subscription", async () => {
  const {q, clock, sockets, socket} = setupOpen();
  const merged = [];
  q.subscribe("A", (update) => merged.push(update.merged));
  await settled();
  socket.receive(quote("A", 100));
  socket.end(1006);
  clock.advance(500);
  sockets[1].welcome({epoch: "e2"});
  await settled();
  sockets[1].receive(quote("A", 300), {ev: "subscribed", id: 99, symbols: ["A"], errors: {}},
    quote("A", 400), quote("A", 402));
  assert.deepEqual(merged, [0, 0, 0, 1]);
});

test("a client that lost its connection subscribes everything again", async () => {
  const {q, clock, sockets, socket} = setupOpen();
  q.subscribe(["A", "B"], () => {});
  const stop = q.subscribe("C", () => {});
  await settled();
  socket.end(1006);
  stop();
  q.subscribe("D", () => {});
  clock.advance(500);
  sockets[1].welcome();
  await settled();
  assert.deepEqual(sockets[1].symbols("subscribe").sort(), ["A", "B", "D"]);
});

for (const code of [1001, 1006, 1012, 4008, 4029]) {
  test(`it reconnects after close code ${code}`, () => {
    const {clock, sockets, socket, states} = setupOpen();
    socket.end(code, "why");
    assert.deepEqual(states.at(-1), {state: "waiting", delay: 250, attempt: 1, code, reason: "why"});
    clock.advance(249);
    assert.equal(sockets.length, 1);
    clock.advance(1);
    assert.equal(sockets.length, 2);
  });
}

for (const code of [1000, 1002, 1003, 1005, 1007, 1009, 4001, 4004]) {
  test(`close code ${code} is final and its reason is told`, () => {
    const {q, clock, sockets, socket, states} = setupOpen();
    socket.end(code, "why");
    assert.deepEqual(states.at(-1), {state: "closed", code, reason: "why"});
    clock.advance(120_000);
    assert.equal(sockets.length, 1);
    assert.equal(clock.size, 0);
    q.open(); // the user changed something
    assert.equal(sockets.length, 2);
  });
}

test("a connection that never opened is tried again", () => {
  const {clock, sockets, socket, states} = setup();
  socket.end(1002);
  assert.equal(states.at(-1).state, "waiting");
  clock.advance(500);
  assert.equal(sockets.length, 2);
});

test("a connection without a welcome in time is given up and tried again", () => {
  const {q, clock, socket} = setup({connectTimeout: 3000});
  socket.open();
  clock.advance(3000);
  assert.ok(socket.closed);
  assert.equal(q.state, "waiting");
});

test("the backoff doubles from half a second to a cap of thirty", () => {
  const world = setup();
  world.random = 1;
  const delays = [];
  for (let i = 0; i < 9; i += 1) {
    world.socket.end(1006);
    delays.push(world.states.at(-1).delay);
    world.clock.advance(delays.at(-1));
  }
  assert.deepEqual(delays, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
});

test("the backoff has full jitter, from nothing to its bound", () => {
  const world = setup();
  for (const [random, delay] of [[0, 0], [0.25, 250], [0.999, 1998]]) {
    world.random = random;
    world.socket.end(1006);
    assert.equal(world.states.at(-1).delay, delay);
    world.clock.advance(delay);
  }
});

test("the backoff starts anew only after a connection was stable", () => {
  const world = setup({stableAfter: 10_000});
  world.random = 1;
  const lostAfter = (ms) => {
    world.socket.welcome({hb: 60_000});
    world.clock.advance(ms);
    world.socket.end(1006);
    const {delay} = world.states.at(-1);
    world.clock.advance(delay);
    return delay;
  };
  assert.deepEqual([lostAfter(10), lostAfter(9_999), lostAfter(10), lostAfter(10_000), lostAfter(10)],
    [500, 1000, 2000, 500, 1000]);
});

test("what may have been missed between two connections is told as a gap, before the snapshot", async () => {
  const {q, clock, sockets, socket} = setupOpen();
  const seen = [];
  q.on("gap", ({symbol, reason}) => seen.push(`${reason}: ${symbol}`));
  q.subscribe(["A", "B"], ({symbol, n}) => seen.push(`${symbol} ${n}`));
  await settled();
  socket.receive({ev: "subscribed", id: 1, symbols: ["A", "B"], total: 2}, quote("A", 7));
  q.subscribe("C", () => {});
  await settled(); // C is asked for, and the connection ends before the answer
  assert.deepEqual(seen, ["A 7"], "the first connection misses nothing");
  socket.end(1006);
  clock.advance(500);
  sockets[1].welcome({epoch: "e2"});
  await settled();
  sockets[1].receive({ev: "subscribed", id: 2, symbols: ["A", "B", "C"], total: 3}, snapshot("A", 2));
  // B was watched, and its first quotes may have come meanwhile; of C nothing was promised.
  assert.deepEqual(seen, ["A 7", "link: A", "link: B", "A 2"]);
  sockets[1].receive({ev: "subscribed", id: 3, symbols: ["A"], total: 2}, quote("A", 3));
  assert.deepEqual(seen, ["A 7", "link: A", "link: B", "A 2", "A 3"], "once for each connection");
});

test("the first quote after a gap says so, to all callbacks", async () => {
  const {q, socket} = setupOpen();
  const seen = [];
  q.subscribe("A", ({n, gap}) => seen.push([n, gap]));
  q.subscribe("A", ({n, gap}) => seen.push([n, gap]));
  await settled();
  socket.receive(quote("A", 1), {ev: "gap", s: "A"}, snapshot("A", 2), quote("A", 3));
  assert.deepEqual(seen, [[1, false], [1, false], [2, true], [2, true], [3, false], [3, false]]);
  socket.receive({ev: "gap", s: "A"}, quote("A", 4));
  q.subscribe("A", ({n, gap}) => seen.push(["late", n, gap]));
  await settled();
  assert.deepEqual(seen.at(-1), ["late", 4, false], "who comes later misses nothing");
});

test("a symbol that was denied for a while has a gap when it is served again", async () => {
  const {q, socket} = await setupAsked({token: () => "some"});
  const gaps = collect(q, "gap");
  socket.accept();
  q.subscribe(["A", "B"], () => {});
  await settled();
  const no = {code: 409, msg: "not covered"};
  socket.receive({ev: "subscribed", id: 2, symbols: ["A"], total: 1, errors: {B: no}}, quote("A", 1),
    {ev: "unsubscribed", symbols: ["A"], total: 0, errors: {A: no}},
    {ev: "subscribed", id: 3, symbols: ["A", "B"], total: 2});
  assert.deepEqual(gaps, [{symbol: "A", reason: "link"}], "B was never served");
});

test("a token that nobody could look at is shown again, also where it is a string", async () => {
  const {q, clock, socket, states} = setup({token: "t0"});
  socket.welcome({auth: "required"});
  await settled();
  const {id} = socket.ops("auth")[0];
  socket.receive({ev: "error", id, code: 402, msg: "Redis does not answer", retry: 2000});
  await settled();
  assert.equal(q.state, "authenticating");
  clock.advance(1999);
  assert.equal(socket.ops("auth").length, 1);
  clock.advance(1);
  assert.equal(socket.ops("auth").length, 2);
  socket.receive({ev: "authenticated", id: socket.ops("auth")[1].id});
  assert.equal(states.at(-1).state, "open");
});

test("the retry of a bye is waited out, with some jitter on top", () => {
  const {q, clock, sockets, socket, states} = setupOpen();
  const byes = collect(q, "bye");
  socket.receive({ev: "bye", code: 1012, retry: 3500});
  socket.end(1012);
  assert.equal(byes[0].retry, 3500);
  assert.equal(states.at(-1).delay, 3750);
  clock.advance(3749);
  assert.equal(sockets.length, 1);
  clock.advance(1);
  sockets[1].end(1006); // the hint was for one reconnect: now the backoff counts
  assert.equal(states.at(-1).delay, 500);
});

test("open while waiting connects at once, and only once", () => {
  const {q, clock, sockets, socket} = setupOpen();
  socket.end(1006);
  q.open();
  assert.equal(sockets.length, 2);
  q.open();
  clock.advance(1000);
  assert.equal(sockets.length, 2);
});

test("three silent heartbeats mean a dead link, closed and replaced at once", () => {
  const {q, clock, sockets, socket} = setupOpen();
  clock.advance(14_999);
  assert.equal(sockets.length, 1);
  clock.advance(1);
  assert.ok(socket.closed);
  assert.equal(sockets.length, 2);
  assert.equal(q.state, "connecting");
  socket.end(1006); // late news of the dead socket
  assert.equal(q.state, "connecting");
  assert.equal(sockets.length, 2);
});

test("any message keeps the link alive", () => {
  const {clock, sockets, socket} = setupOpen();
  for (let i = 0; i < 10; i += 1) {
    clock.advance(14_000);
    socket.receive({ev: "something new"});
  }
  assert.equal(sockets.length, 1);
  clock.advance(15_000);
  assert.equal(sockets.length, 2);
});

test("close ends everything and open continues with the subscriptions", async () => {
  const {q, clock, sockets, socket, states} = setupOpen();
  q.subscribe("A", () => {});
  await settled();
  q.close();
  assert.ok(socket.closed);
  assert.deepEqual(states.at(-1), {state: "closed", code: 1000, reason: "closed by the client"});
  assert.equal(clock.size, 0);
  q.open();
  sockets[1].welcome();
  await settled();
  assert.deepEqual(sockets[1].symbols("subscribe"), ["A"]);
});

test("nothing is told after close, whatever was going on", async () => {
  const {q, clock, socket, sockets, states} = setupOpen();
  const told = [];
  for (const event of ["gap", "error", "denied", "feed", "fresh", "heartbeat", "bye"]) {
    q.on(event, (detail) => told.push([event, detail]));
  }
  q.subscribe(["A", "B"], () => {});
  await settled();
  socket.receive({ev: "subscribed", id: 1, symbols: ["A", "B"], total: 2}, quote("A", 1));
  socket.end(1006);
  clock.advance(500);
  const again = q.on("gap", () => q.close());
  const {length} = told;
  const next = sockets[1];
  next.welcome();
  await settled();
  next.receive({ev: "subscribed", id: 2, symbols: ["A", "B"], errors: {C: {code: 409, msg: "no"}}});
  assert.deepEqual(told.slice(length), [["gap", {symbol: "A", reason: "link"}]]);
  again();
  q.subscribe("A", (update) => told.push(["quote", update]));
  await settled();
  assert.equal(told.length, length + 1);
  assert.equal(states.filter(({state}) => state === "closed").length, 1);
});

test("a listener of stale that closes too closes once", () => {
  const {q, socket, states} = setupOpen();
  socket.receive({ev: "feed", state: "up"});
  q.on("stale", () => q.close());
  q.close();
  assert.equal(states.filter(({state}) => state === "closed").length, 1);
});

test("an event of an odd shape is reported and breaks nothing else", async () => {
  const {q, socket, reports} = setupOpen();
  const seen = [];
  q.subscribe("A", (update) => seen.push(update.n));
  await settled();
  socket.receive({ev: "subscribed", symbols: 7}, quote("A", 1));
  assert.deepEqual([seen, reports.length], [[1], 1]);
});

test("an event that does not exist, and what is no function, are refused in words", () => {
  const {q} = setupOpen();
  assert.throws(() => q.on("quote", () => {}), /no event is called "quote"; there are state, welcome,/);
  assert.throws(() => q.on("state"), /function/);
  assert.throws(() => q.subscribe("A"), /function/);
});

test("a listener that one before it ended is not called any more", () => {
  const {q, socket} = setupOpen();
  const heard = [];
  q.on("heartbeat", () => { heard.push("first"); stop(); });
  const stop = q.on("heartbeat", () => heard.push("ended"));
  q.on("heartbeat", () => heard.push("last"));
  socket.receive({ev: "heartbeat", t: 1, feed: "up", age: 1, merged: 0});
  assert.deepEqual(heard, ["first", "last"]);
});

test("a listener that was added twice is removed once", () => {
  const {q, socket} = setupOpen();
  let calls = 0;
  const listener = () => { calls += 1; };
  q.on("heartbeat", listener)();
  const stop = q.on("heartbeat", listener);
  q.on("heartbeat", listener);
  stop();
  stop();
  socket.receive({ev: "heartbeat", feed: "up"});
  assert.equal(calls, 1);
});

test("fresh and last say what is known", async () => {
  const {q, socket} = setupOpen();
  assert.deepEqual([q.fresh, q.last("A")], [false, undefined]);
  const stop = q.subscribe("A", () => {});
  await settled();
  assert.equal(q.last("A"), undefined);
  socket.receive(quote("A", 7));
  assert.deepEqual([q.fresh, q.last("A").n], [true, 7]);
  socket.end(1006);
  assert.deepEqual([q.fresh, q.last("A").n], [false, 7]);
  stop();
  await settled();
  assert.equal(q.last("A"), undefined, "nothing is kept of what nobody watches");
});

test("close inside a callback stops the rest of the message", async () => {
  const {q, socket} = setupOpen();
  const seen = [];
  q.subscribe("A", (update) => {
    seen.push(update.n);
    q.close();
  });
  await settled();
  socket.receive(quote("A", 1), quote("A", 2));
  assert.deepEqual(seen, [1]);
});

test("an exception of a callback or listener is reported and breaks nothing else", async () => {
  const {q, socket, reports} = setupOpen();
  const seen = [];
  q.on("gap", () => { throw new Error("listener"); });
  q.on("gap", ({symbol}) => seen.push(symbol));
  q.subscribe("A", () => { throw new Error("callback"); });
  q.subscribe("A", (update) => seen.push(update.n));
  await settled();
  socket.receive({ev: "gap", s: "A"}, quote("A", 1), quote("A", 2));
  assert.deepEqual(seen, ["A", 1, 2]);
  assert.deepEqual(reports.map(({message}) => message), ["listener", "callback", "callback"]);
});

test("ping resolves with the round trip and list with the symbols", async () => {
  const {q, clock, socket} = setupOpen();
  const ping = q.ping();
  const list = q.list();
  const [{id: pingId}] = socket.ops("ping");
  const [{id: listId}] = socket.ops("list");
  clock.advance(42);
  socket.receive({ev: "list", id: listId, symbols: ["A"]}, {ev: "pong", id: pingId});
  assert.equal(await ping, 42);
  assert.deepEqual(await list, ["A"]);
});

test("an error event with the id of a request rejects its promise", async () => {
  const {q, socket} = setupOpen();
  const errors = collect(q, "error");
  const list = q.list();
  socket.receive({ev: "error", id: socket.ops("list")[0].id, code: 429, msg: "too many messages"});
  await assert.rejects(list, (error) =>
    error instanceof QuotepushError && error.code === 429 && error.message === "too many messages");
  assert.deepEqual(errors.map(({code}) => code), [429]);
});

test("requests fail when not connected, and when the connection ends first", async () => {
  const {q, socket} = setup();
  await assert.rejects(q.ping(), /not connected/);
  socket.welcome();
  const ping = q.ping();
  socket.end(1006);
  await assert.rejects(ping, /connection lost/);
});

test("a refused symbol is told, and not unsubscribed later", async () => {
  const {q, socket} = setupOpen();
  const errors = collect(q, "error");
  const stop = q.subscribe(["A", "a*b"], () => {});
  await settled();
  const [{id}] = socket.ops("subscribe");
  socket.receive({ev: "subscribed", id, symbols: ["A"], errors: {"a*b": {code: 411, msg: "bad"}}});
  assert.deepEqual(errors, [{symbol: "a*b", code: 411, msg: "bad", id}]);
  stop();
  await settled();
  assert.deepEqual(socket.symbols("unsubscribe"), ["A"]);
});

test("a subscribe refused for too many messages is sent again", async () => {
  const {q, clock, socket} = setupOpen();
  q.subscribe("A", () => {});
  await settled();
  const [{id}] = socket.ops("subscribe");
  socket.receive({ev: "error", id, code: 429, msg: "too many messages"});
  clock.advance(2000);
  assert.deepEqual(socket.symbols("subscribe"), ["A", "A"]);
});

test("a token goes out on the welcome that asks for one, and what was waiting once it is taken", async () => {
  const {q, socket, states} = setup({token: "secret"});
  const authenticated = collect(q, "authenticated");
  q.subscribe("A", () => {});
  assert.deepEqual(socket.protocols, ["quotepush.v1.json"]);
  assert.equal(socket.url, "wss://quotes.test/");
  socket.welcome(REQUIRED);
  assert.equal(q.state, "authenticating");
  const list = q.list();
  await settled();
  assert.deepEqual(socket.sent.map((text) => JSON.parse(text)), [{token: "secret", op: "auth", id: 1}]);
  socket.accept({user: "alice", expires: 1795342115681, delay: 900});
  assert.deepEqual(authenticated, [{user: "alice", expires: 1795342115681, delay: 900}]);
  assert.deepEqual(states.slice(-2).map(({state}) => state), ["authenticating", "open"]);
  await settled();
  const [{id}] = socket.ops("list");
  socket.receive({ev: "list", id, symbols: ["A"]});
  assert.deepEqual(await list, ["A"]);
  assert.deepEqual(socket.symbols("subscribe"), ["A"]);
});

test("what the answer to a token leaves out is undefined", async () => {
  const {q, socket} = await setupAsked({token: "secret"});
  const authenticated = collect(q, "authenticated");
  socket.accept();
  assert.deepEqual(authenticated, [{user: undefined, expires: undefined, delay: undefined}]);
});

test("numbers about the token are plain numbers whatever parses them", async () => {
  const parse = (text) => JSON.parse(text, (key, value) =>
    key === "delay" || key === "expires" ? new ExactNumber(value, `${value}.0`) : value);
  const {q, socket} = await setupAsked({token: "secret", parse});
  const authenticated = collect(q, "authenticated");
  socket.accept({expires: 7, delay: 900});
  assert.deepEqual(authenticated, [{user: undefined, expires: 7, delay: 900}]);
});

for (const auth of [undefined, "done"]) {
  test(`a token stays here where the welcome says ${auth ?? "nothing"} about it`, async () => {
    const asked = [];
    const {q, socket} = setup({token: (why) => asked.push(why)});
    const authenticated = collect(q, "authenticated");
    q.subscribe("A", () => {});
    socket.welcome({auth});
    assert.equal(q.state, "open");
    await settled();
    assert.deepEqual(socket.symbols("subscribe"), ["A"]);
    assert.deepEqual([socket.tokens, asked], [[], []]);
    if (auth === "done") socket.receive({ev: "authenticated", user: "alice"});
    assert.deepEqual(authenticated.map(({user}) => user), auth ? ["alice"] : []);
  });
}

test("without a token a server that asks for one is left, and the reason says what to pass", () => {
  const {clock, socket, sockets, states} = setup();
  socket.welcome(REQUIRED);
  assert.ok(socket.closed);
  const {state, code, reason} = states.at(-1);
  assert.deepEqual([state, code], ["closed", 4001]);
  assert.match(reason, /options\.token/);
  clock.advance(120_000);
  assert.deepEqual([sockets.length, clock.size], [1, 0]);
});

test("a ping is answered while the token is looked at", async () => {
  const {q, clock, socket} = await setupAsked({token: "secret"});
  const ping = q.ping();
  clock.advance(30);
  socket.receive({ev: "pong", id: socket.ops("ping")[0].id});
  assert.equal(await ping, 30);
});

test("requests that wait for a token fail when the connection ends first, and are not sent later", async () => {
  const {q, clock, socket, sockets} = await setupAsked({token: "secret"});
  const list = q.list();
  socket.end(1006);
  await assert.rejects(list, /connection lost/);
  clock.advance(500);
  sockets[1].welcome(REQUIRED);
  sockets[1].accept();
  assert.deepEqual(sockets[1].ops("list"), []);
});

test("a string that is refused closes with the server's words", async () => {
  const {q, clock, socket, sockets, states} = await setupAsked({token: "secret"});
  const errors = collect(q, "error");
  socket.refuse(402, "the token is refused: it expired 5 s ago");
  assert.ok(socket.closed);
  assert.deepEqual(states.at(-1),
    {state: "closed", code: 4001, reason: "the token is refused: it expired 5 s ago"});
  assert.deepEqual(errors.map(({code}) => code), [402]);
  clock.advance(120_000);
  assert.deepEqual([sockets.length, clock.size], [1, 0]);
});

test("a string is shown again after a reconnect, and is nothing new when it ends", async () => {
  const {q, clock, sockets, socket, states} = await setupAsked({token: "secret"});
  const expiring = collect(q, "expiring");
  socket.accept();
  socket.end(1006);
  clock.advance(500);
  sockets[1].welcome(REQUIRED);
  await settled();
  sockets[1].accept();
  sockets[1].receive({ev: "expiring", in: 60_000});
  await settled();
  clock.advance(100);
  assert.deepEqual(expiring, [{in: 60_000}]);
  assert.deepEqual(sockets.map(({tokens}) => tokens), [["secret"], ["secret"]]);
  sockets[1].receive({ev: "error", code: 401, msg: "the token has expired"});
  sockets[1].end(4001, "authentication failed");
  assert.deepEqual(states.at(-1), {state: "closed", code: 4001, reason: "the token has expired"});
});

test("a string that came too late closes with 4004", async () => {
  const {socket, states} = await setupAsked({token: "secret"});
  socket.receive({ev: "error", code: 404, msg: "the time to authenticate is over"});
  socket.end(4004, "authentication too late");
  assert.deepEqual(states.at(-1),
    {state: "closed", code: 4004, reason: "the time to authenticate is over"});
});

test("a function is asked once a connection, and may take its time", async () => {
  const {calls, token} = oracle();
  const {q, clock, sockets, socket} = await setupAsked({token});
  q.subscribe("A", () => {});
  await settled();
  assert.deepEqual([calls.map(([why]) => why), socket.sent], [["connect"], []]);
  calls[0][1]("one");
  await settled();
  assert.deepEqual(socket.tokens, ["one"]);
  socket.accept();
  socket.end(1006);
  clock.advance(500);
  assert.equal(calls.length, 1);
  sockets[1].welcome(REQUIRED);
  await settled();
  calls[1][1]("two");
  await settled();
  assert.equal(calls[1][0], "connect");
  assert.deepEqual(sockets[1].tokens, ["two"]);
  sockets[1].accept();
  await settled();
  assert.deepEqual(sockets[1].symbols("subscribe"), ["A"]);
});

test("a function may answer without a promise", async () => {
  const {socket} = await setupAsked({token: () => "plain"});
  assert.deepEqual(socket.tokens, ["plain"]);
});

test("a token that is still awaited when the link breaks serves the next connection", async () => {
  const {calls, token} = oracle();
  const {clock, sockets, socket} = await setupAsked({token});
  socket.end(1006);
  calls[0][1]("late");
  await settled();
  assert.equal(sockets.length, 1);
  clock.advance(500);
  sockets[1].welcome(REQUIRED);
  await settled();
  assert.deepEqual([calls.length, sockets[1].tokens], [1, ["late"]]);
});

test("a function that is slower than the server waits is not asked twice: its token connects", async () => {
  const {calls, token} = oracle();
  const {q, clock, sockets, socket, states} = await setupAsked({token});
  socket.receive({ev: "error", code: 404, msg: "the time to authenticate is over"});
  socket.end(4004, "authentication too late");
  assert.deepEqual(states.at(-1), {state: "waiting", delay: 250, attempt: 1, code: 4004,
    reason: "the time to authenticate is over"});
  clock.advance(600_000);
  await settled();
  assert.deepEqual([q.state, sockets.length, calls.length], ["waiting", 1, 1]);
  calls[0][1]("at last");
  await settled();
  sockets[1].welcome(REQUIRED);
  await settled();
  assert.deepEqual([sockets[1].tokens, calls.length], [["at last"], 1]);
});

test("a token that comes right after 4004 is shown on the next connection", async () => {
  const {calls, token} = oracle();
  const {clock, sockets, socket} = await setupAsked({token});
  socket.end(4004);
  calls[0][1]("late");
  await settled();
  assert.equal(sockets.length, 1);
  clock.advance(250);
  sockets[1].welcome(REQUIRED);
  await settled();
  assert.deepEqual([sockets[1].tokens, calls.length], [["late"], 1]);
});

test("a token that was kept for the next connection is shown on that one alone", async () => {
  const {calls, token} = oracle();
  const {clock, sockets} = await setupAsked({token});
  sockets[0].end(1006);
  calls[0][1]("kept");
  await settled();
  clock.advance(500);
  sockets[1].welcome(REQUIRED);
  sockets[1].refuse();
  sockets[1].end(1006);
  clock.advance(500);
  sockets[2].welcome(REQUIRED);
  await settled();
  assert.deepEqual([sockets[1].tokens, sockets[2].tokens, calls.at(-1)[0]], [["kept"], [], "refused"]);
});

test("who is opened by hand while a token is awaited connects once", async () => {
  const {calls, token} = oracle();
  const {q, clock, sockets} = await setupAsked({token});
  sockets[0].end(4004);
  clock.advance(250);
  q.open();
  calls[0][1]("late");
  await settled();
  assert.equal(sockets.length, 2);
  sockets[1].welcome(REQUIRED);
  assert.deepEqual(sockets[1].tokens, ["late"]);
});

test("a token that was taken ends the reasons and the backoff of the ones before", async () => {
  const asked = [];
  const world = await setupAsked({token: (why) => `token ${asked.push(why)}`});
  const {clock, sockets, states} = world;
  world.random = 1;
  sockets[0].refuse();
  clock.advance(500);
  await settled();
  sockets[0].accept();
  sockets[0].end(1006);
  clock.advance(500);
  sockets[1].welcome(REQUIRED);
  await settled();
  sockets[1].refuse();
  clock.advance(500);
  await settled();
  assert.deepEqual(asked, ["connect", "refused", "connect", "refused"]);
  sockets[1].end(1006);
  clock.advance(1000);
  sockets[2].welcome(REQUIRED);
  sockets[2].end(4004, "authentication too late");
  assert.equal(states.at(-1).reason, "authentication too late");
});

test("closing on a welcome that asks for a token asks nobody", async () => {
  const asked = [];
  const {q, socket, states} = setup({token: (why) => asked.push(why)});
  q.on("welcome", () => q.close());
  socket.welcome(REQUIRED);
  await settled();
  assert.deepEqual([asked, states.at(-1).code], [[], 1000]);
});

test("a function that fails is reported and asked again with backoff, until there is a token", async () => {
  const {calls, token} = oracle();
  const world = await setupAsked({token});
  const {clock, socket, sockets, reports} = world;
  world.random = 1;
  const outcomes = [([, , reject]) => reject(new Error("no network")), ([, resolve]) => resolve(""),
    ([, resolve]) => resolve(undefined)];
  for (const [at, outcome] of outcomes.entries()) {
    outcome(calls[at]);
    await settled();
    clock.advance(500 * 2 ** at - 1);
    assert.equal(calls.length, at + 1);
    clock.advance(1);
    assert.equal(calls.length, at + 2);
  }
  assert.deepEqual(reports.map(({message}) => message),
    ["no network", "options.token gave no token", "options.token gave no token"]);
  socket.end(4004);
  calls[3][2](new Error("still none"));
  await settled();
  clock.advance(4000);
  calls[4][1]("found");
  await settled();
  assert.equal(sockets.length, 2);
});

test("a function that throws is reported like one that rejects", async () => {
  const {reports, socket} = await setupAsked({token: () => { throw new Error("thrown"); }});
  assert.deepEqual(reports.map(({message}) => message), ["thrown"]);
  assert.ok(!socket.closed);
});

test("an expiring token is replaced in place, at some time in the first half of what is left", async () => {
  const {calls, token} = oracle();
  const world = await setupAsked({token});
  const {q, clock, socket, sockets} = world;
  calls[0][1]("one");
  q.subscribe("A", () => {});
  await settled();
  socket.accept();
  await settled();
  const beat = () => socket.receive({ev: "heartbeat", feed: "up"});
  world.random = 0.9;
  socket.receive({ev: "expiring", in: 20_000});
  clock.advance(8_999);
  assert.equal(calls.length, 1);
  clock.advance(1);
  beat();
  assert.deepEqual(calls.map(([why]) => why), ["connect", "expiring"]);
  calls[1][1]("two");
  await settled();
  assert.deepEqual(socket.tokens, ["one", "two"]);
  socket.accept({user: "alice"});
  await settled();
  assert.deepEqual([sockets.length, q.state, socket.symbols("subscribe")], [1, "open", ["A"]]);
});

test("a function that fails for an expiring token is asked again, and after the end still", async () => {
  const {calls, token} = oracle();
  const {clock, socket, sockets, reports} = await setupAsked({token});
  calls[0][1]("one");
  await settled();
  socket.accept();
  socket.receive({ev: "expiring", in: 4_000});
  clock.advance(1_000);
  for (const at of [1, 2]) {
    calls[at][2](new Error("no network"));
    await settled();
    clock.advance(500);
  }
  assert.deepEqual([calls.map(([why]) => why), reports.length],
    [["connect", "expiring", "expiring", "expiring"], 2]);
  socket.receive({ev: "error", code: 401, msg: "the token has expired"});
  socket.end(4001);
  calls[3][2](new Error("no network"));
  await settled();
  clock.advance(2_000);
  assert.equal(calls[4][0], "refused");
  calls[4][1]("two");
  await settled();
  sockets[1].welcome(REQUIRED);
  assert.deepEqual(sockets[1].tokens, ["two"]);
});

test("a refresh that is still planned when the link breaks does not hold up the next connection", async () => {
  const asked = [];
  const {clock, socket, sockets} = await setupAsked({token: (why) => `token ${asked.push(why)}`});
  socket.accept();
  socket.receive({ev: "expiring", in: 60_000});
  socket.end(1006);
  clock.advance(500);
  sockets[1].welcome(REQUIRED);
  await settled();
  sockets[1].accept();
  clock.advance(14_000);
  await settled();
  assert.deepEqual([asked, sockets[1].tokens], [["connect", "connect"], ["token 2"]]);
});

test("a refused token is followed by another on the same connection", async () => {
  const {calls, token} = oracle();
  const {clock, socket, sockets} = await setupAsked({token});
  calls[0][1]("old");
  await settled();
  socket.refuse();
  await settled();
  assert.equal(calls.length, 1);
  clock.advance(250);
  assert.equal(calls[1][0], "refused");
  calls[1][1]("new");
  await settled();
  assert.deepEqual([socket.tokens, sockets.length], [["old", "new"], 1]);
});

test("after 4001 a function is asked before the next connection is made", async () => {
  const {calls, token} = oracle();
  const {clock, socket, sockets, states} = await setupAsked({token});
  calls[0][1]("one");
  await settled();
  socket.accept();
  socket.receive({ev: "error", code: 401, msg: "the token was revoked"});
  socket.end(4001, "authentication failed");
  assert.deepEqual(states.at(-1),
    {state: "waiting", delay: 250, attempt: 1, code: 4001, reason: "the token was revoked"});
  clock.advance(250);
  assert.deepEqual([calls.at(-1)[0], sockets.length], ["refused", 1]);
  calls[1][1]("two");
  await settled();
  sockets[1].welcome(REQUIRED);
  assert.deepEqual(sockets[1].tokens, ["two"]);
});

test("who is refused three connections in a row gives up, until opened again", async () => {
  const asked = [];
  const {q, clock, sockets, states} = setup({token: (why) => { asked.push(why); return "bad"; }});
  const refused = async () => {
    const socket = sockets.at(-1);
    socket.welcome(REQUIRED);
    await settled();
    socket.refuse();
    socket.end(4001, "authentication failed");
    clock.advance(5_000);
    await settled();
  };
  for (let i = 0; i < 3; i += 1) await refused();
  assert.deepEqual(states.at(-1),
    {state: "closed", code: 4001, reason: "the token is refused: it is bad"});
  clock.advance(120_000);
  await settled();
  assert.deepEqual([sockets.length, clock.size], [3, 0]);
  assert.deepEqual(asked, ["connect", "refused", "refused"]);
  q.open();
  await refused();
  assert.deepEqual([q.state, sockets.length], ["connecting", 5]);
});

test("refused tokens that run into the server's time-out are refusals too", async () => {
  const {clock, sockets, states} = setup({token: () => "bad"});
  for (let i = 0; i < 3; i += 1) {
    const socket = sockets.at(-1);
    socket.welcome(REQUIRED);
    await settled();
    socket.refuse();
    socket.receive({ev: "error", code: 404, msg: "the time to authenticate is over"});
    socket.end(4004, "authentication too late");
    assert.equal(states.at(-1).reason, "the token is refused: it is bad");
    clock.advance(60_000);
    await settled();
  }
  assert.deepEqual([states.at(-1).state, states.at(-1).code, sockets.length], ["closed", 4004, 3]);
});

test("a refusal after a stable connection is the first again", async () => {
  const {clock, sockets, states} = setup({token: () => "short-lived", stableAfter: 10_000});
  for (let i = 0; i < 6; i += 1) {
    const socket = sockets.at(-1);
    socket.welcome(REQUIRED);
    await settled();
    socket.accept();
    clock.advance(10_000);
    socket.end(4001);
    assert.equal(states.at(-1).delay, 250);
    clock.advance(250);
    await settled();
  }
  assert.equal(sockets.length, 7);
});

test("the time that authenticating takes does not make a connection stable", async () => {
  const {clock, sockets, states} = setup({token: () => "looked at for long"});
  for (const delay of [250, 500, 1000]) {
    sockets.at(-1).welcome({...REQUIRED, hb: 60_000});
    await settled();
    clock.advance(10_000);
    sockets.at(-1).end(4004);
    assert.equal(states.at(-1).delay, delay);
    clock.advance(delay);
    await settled();
  }
});

test("a token of another user goes to a connection of its own", async () => {
  const {calls, token} = oracle();
  const {q, clock, socket, sockets} = await setupAsked({token});
  q.subscribe("A", () => {});
  calls[0][1]("alice's");
  await settled();
  socket.accept({user: "alice"});
  socket.receive({ev: "expiring", in: 2_000});
  clock.advance(500);
  calls[1][1]("bob's");
  await settled();
  socket.refuse(403, "this connection is another user's: open a new one");
  assert.ok(socket.closed);
  sockets[1].welcome(REQUIRED);
  await settled();
  assert.deepEqual([sockets[1].tokens, calls.length], [["bob's"], 2]);
  sockets[1].accept({user: "bob"});
  await settled();
  assert.deepEqual(sockets[1].symbols("subscribe"), ["A"]);
});

test("a token with a longer delay goes on with a new connection", async () => {
  const {q, clock, socket, sockets} = await setupAsked({token: () => "late"});
  q.subscribe("A", () => {});
  socket.accept();
  await settled();
  q.request("auth", {token: "late"});
  socket.accept({delay: 900});
  socket.receive({ev: "bye", code: 1012, retry: 0});
  socket.end(1012);
  clock.advance(500);
  sockets[1].welcome(REQUIRED);
  await settled();
  sockets[1].accept({delay: 900});
  await settled();
  assert.deepEqual([sockets[1].tokens, sockets[1].symbols("subscribe")], [["late"], ["A"]]);
});

test("a symbol that is not allowed is denied, and tried again with the next token", async () => {
  const {q, socket} = await setupAsked({token: () => "some"});
  const errors = collect(q, "error");
  const denied = collect(q, "denied");
  socket.accept();
  q.subscribe(["A", "B", "a*b"], () => {});
  await settled();
  const [{id}] = socket.ops("subscribe");
  socket.receive({ev: "subscribed", id, symbols: ["A"], errors: {
    B: {code: 409, msg: "not covered"}, "a*b": {code: 411, msg: "bad"}}});
  assert.deepEqual(denied, [{symbol: "B", code: 409, msg: "not covered"}]);
  assert.deepEqual(errors.map(({symbol, code}) => [symbol, code]), [["B", 409], ["a*b", 411]]);
  q.request("auth", {token: "more"});
  socket.accept();
  await settled();
  assert.deepEqual(socket.ops("subscribe")[1].symbols, ["B", "a*b"]);
});

test("a token that allows less ends subscriptions, keeps the others and their callbacks", async () => {
  const {q, socket} = await setupAsked({token: () => "some"});
  const denied = collect(q, "denied");
  const errors = collect(q, "error");
  const seen = [];
  socket.accept();
  const stop = q.subscribe(["A", "B", "C"], (update) => seen.push(update.symbol));
  await settled();
  socket.receive(quote("A", 1), quote("B", 1));
  q.request("auth", {token: "less"});
  socket.accept();
  await settled();
  socket.receive({ev: "unsubscribed", symbols: ["B", "C"], total: 1, errors: {
    B: {code: 409, msg: "not covered"}, C: {code: 405, msg: "at most 1 symbols"}}});
  assert.deepEqual(denied, [{symbol: "B", code: 409, msg: "not covered"}]);
  assert.deepEqual(errors.map(({symbol, code}) => [symbol, code]), [["B", 409], ["C", 405]]);
  q.subscribe("B", () => seen.push("old B")); // what was last known is not current any more
  q.subscribe("A", () => seen.push("old A"));
  socket.receive({ev: "unsubscribed", symbols: ["A"], total: 0,
    errors: {A: {code: 409, msg: "not covered"}}});
  await settled();
  assert.deepEqual(seen, ["A", "B"]);
  q.request("auth", {token: "more"});
  socket.accept();
  await settled();
  assert.deepEqual(socket.symbols("subscribe").slice(3).sort(), ["A", "B", "C"]);
  stop();
  await settled();
  assert.deepEqual(socket.symbols("unsubscribe"), ["C"]); // the others have callbacks
});

test("an answer to an unsubscribe denies nothing", async () => {
  const {q, socket} = setupOpen();
  const denied = collect(q, "denied");
  const answer = q.request("unsubscribe", {symbols: ["A"]});
  const [{id}] = socket.ops("unsubscribe");
  socket.receive({ev: "unsubscribed", id, symbols: [], errors: {A: {code: 409, msg: "odd"}}});
  await answer;
  assert.deepEqual(denied, []);
});

test("closing while a token is looked for is the end of it", async () => {
  const {calls, token} = oracle();
  const {q, clock, socket, sockets, reports} = await setupAsked({token});
  q.close();
  calls[0][1]("unused");
  await settled();
  assert.deepEqual([socket.tokens, sockets.length, clock.size], [[], 1, 0]);
  q.open();
  sockets[1].welcome(REQUIRED);
  await settled();
  calls[1][2](new Error("no network"));
  await settled();
  q.close();
  assert.deepEqual([clock.size, reports.length], [0, 1]);
});

test("a dead link is noticed while authenticating too", async () => {
  const {calls, token} = oracle();
  const {clock, sockets} = await setupAsked({token});
  clock.advance(15_000);
  assert.equal(sockets.length, 2);
  calls[0][1]("one");
  await settled();
  sockets[1].welcome(REQUIRED);
  assert.deepEqual(sockets[1].tokens, ["one"]);
});

test("a token is in no event, no error and no URL", async () => {
  const events = [];
  const {calls, token} = oracle();
  const {q, clock, socket, sockets, reports} = setup({token});
  for (const event of ["state", "welcome", "bye", "authenticated", "expiring", "denied", "error", "raw"]) {
    q.on(event, (detail) => events.push([event, detail]));
  }
  socket.welcome(REQUIRED);
  await settled();
  calls[0][1]("s3cret");
  await settled();
  socket.refuse();
  clock.advance(500);
  calls[1][1]({s3cret: true});
  await settled();
  clock.advance(1000);
  calls[2][1]("s3cret");
  await settled();
  socket.accept({user: "alice"});
  q.request("auth", {token: "s3cret"}).catch((error) => reports.push(error));
  socket.end(4001);
  clock.advance(500);
  await settled();
  assert.equal(socket.tokens.length, 3);
  const sentAway = events.filter(([event, {direction}]) => event === "raw" && direction === "out");
  assert.ok(sentAway.every(([, {text}]) => JSON.parse(text).token === "…"));
  assert.equal(sentAway.length, 3);
  const told = JSON.stringify([events, sockets.map(({url, protocols}) => [url, protocols])])
    + reports.map((error) => `${error.message} ${error.stack}`).join();
  assert.ok(!told.includes("s3cret"), told);
});

test("feed changes are told once, by feed events or heartbeats", () => {
  const {q, socket} = setupOpen();
  const feeds = collect(q, "feed");
  const beats = collect(q, "heartbeat");
  const beat = (feed) => ({ev: "heartbeat", t: 1, feed, age: 12, merged: 37});
  socket.receive(beat("up"), beat("up"), {ev: "feed", state: "down", t: 2}, beat("down"),
    {ev: "feed", state: "up", t: 3});
  assert.deepEqual(feeds.map(({state}) => state), ["up", "down", "up"]);
  assert.equal(beats.length, 3);
  assert.equal(beats[0].merged, 37);
});

test("stale and fresh follow the feed and the link", async () => {
  const {q, clock, sockets, socket} = setupOpen();
  const seen = [];
  q.on("stale", ({reason}) => seen.push(`stale ${reason}`));
  q.on("fresh", () => seen.push("fresh"));
  q.subscribe("A", () => {});
  await settled();
  socket.receive(snapshot("A", 1)); // may be old: proves nothing
  assert.deepEqual(seen, []);
  socket.receive(quote("A", 2));
  socket.receive({ev: "feed", state: "down"}, quote("A", 3)); // queued before the feed was lost
  assert.deepEqual(seen, ["fresh", "stale feed"]);
  socket.receive({ev: "feed", state: "up"});
  socket.end(1006);
  clock.advance(500);
  sockets[1].welcome();
  sockets[1].receive({ev: "heartbeat", feed: "up"});
  assert.deepEqual(seen, ["fresh", "stale feed", "fresh", "stale link", "fresh"]);
});

test("symbols that go quiet are named, and a quiet feed is stale while it is up", () => {
  const {q, socket} = setupOpen();
  const seen = [];
  q.on("stale", ({reason}) => seen.push(`stale ${reason}`));
  q.on("fresh", () => seen.push("fresh"));
  q.on("quiet", ({symbols}) => seen.push(`quiet ${symbols}`));
  q.on("lively", ({symbols}) => seen.push(`lively ${symbols}`));
  socket.receive({ev: "feed", state: "up"}, {ev: "stale", symbols: ["A", "B"]});
  socket.receive({ev: "stale", symbols: [], all: true}, {ev: "fresh", symbols: [], all: true});
  socket.receive({ev: "fresh", symbols: ["A"]}, {ev: "feed", state: "down"});
  socket.receive({ev: "fresh", symbols: [], all: true});
  assert.deepEqual(seen,
    ["fresh", "quiet A,B", "stale quiet", "fresh", "lively A", "stale feed"]);
});

test("a feed already down at the first connection, or no connection at all, is stale", () => {
  for (const [fail, reason] of [
    [({socket}) => { socket.welcome(); socket.receive({ev: "feed", state: "down"}); }, "feed"],
    [({socket}) => socket.end(1006), "link"],
  ]) {
    const world = setup();
    const stale = collect(world.q, "stale");
    fail(world);
    assert.deepEqual(stale, [{reason}]);
  }
});

test("unknown events are ignored and bad messages are errors, not exceptions", async () => {
  const {q, socket} = setupOpen();
  const errors = collect(q, "error");
  const seen = [];
  q.subscribe("A", (update) => seen.push(update.n));
  await settled();
  socket.receive({ev: "from the future", id: "x"}, null, 7, quote("A", 1));
  assert.deepEqual([seen, errors], [[1], []]);
  socket.onmessage({data: "not json"});
  socket.onmessage({data: "{}"});
  socket.receive(quote("A", 2));
  assert.deepEqual(seen, [1, 2]);
  assert.deepEqual(errors.map(({code}) => code), [0, 0]);
});

test("raw shows every message of both directions untouched, until turned off", async () => {
  const {q, socket} = setup();
  const raw = [];
  const off = q.on("raw", ({direction, text}) => raw.push([direction, text]));
  socket.welcome();
  q.subscribe("A", () => {});
  await settled();
  assert.equal(raw[0][0], "in");
  assert.ok(raw[0][1].startsWith('[{"ev":"welcome"'));
  assert.deepEqual(raw[1], ["out", socket.sent[0]]);
  off();
  socket.receive({ev: "gap", s: "A"});
  assert.equal(raw.length, 2);
});

test("parseExact keeps the text of numbers where the engine gives it", () => {
  const {n, price, list} = parseExact('{"n":12,"price":10.50,"list":[1e2,"x",null]}');
  assert.equal(n, 12);
  assert.equal(Number(price), 10.5);
  assert.equal(Number(list[0]), 100);
  let sourceAccess = false;
  JSON.parse("1", (key, value, context) => { sourceAccess = context !== undefined; });
  if (sourceAccess) {
    assert.ok(price instanceof ExactNumber);
    assert.equal(String(price), "10.50");
    assert.equal(JSON.stringify({price}), '{"price":10.50}');
  } else {
    assert.equal(price, 10.5);
  }
});

test("the parse option replaces JSON.parse", async () => {
  const {q, socket} = setup({parse: (text) => JSON.parse(text.replace("\uFEFF", ""))});
  socket.onmessage({data: '\uFEFF[{"ev":"welcome","epoch":"e1"}]'});
  assert.equal(q.state, "open");
});

// -- streams ------------------------------------------------------------------------------------------

/** What a stream gives, step by step: `next()` is {value, done}, or null while it waits. */
function reader(stream) {
  let waiting = null;
  return {
    async next() {
      waiting ??= stream.next();
      const step = await Promise.race([waiting, settled().then(() => null)]);
      if (step) waiting = null;
      return step;
    },
  };
}

test("a stream subscribes with its first step and ends with its loop", async () => {
  const {q, socket} = setupOpen();
  const stream = q.stream(["A", "B"]);
  await settled();
  assert.deepEqual(socket.sent, []);
  const seen = [];
  const loop = (async () => {
    for await (const {symbol, n} of stream) {
      seen.push([symbol, n]);
      if (seen.length === 3) break;
    }
  })();
  await settled();
  assert.deepEqual(socket.symbols("subscribe"), ["A", "B"]);
  socket.receive(snapshot("A", 1), quote("B", 1));
  await settled();
  assert.deepEqual(seen, [["A", 1], ["B", 1]]);
  socket.receive(quote("A", 2), quote("A", 3));
  await loop;
  await settled();
  assert.deepEqual(seen.at(-1), ["A", 3], "merged, as they came together");
  assert.deepEqual(socket.symbols("unsubscribe"), ["A", "B"]);
});

test("a slow reader gets the newest of each symbol in turn, and how many it was too slow for", async () => {
  const {q, socket} = setupOpen();
  const {next} = reader(q.stream(["A", "B"]));
  assert.equal(await next(), null);
  socket.receive(snapshot("A", 1), quote("B", 5), quote("A", 2), quote("A", 5), {ev: "gap", s: "A"},
    quote("A", 6), quote("A", 7));
  const first = (await next()).value;
  assert.deepEqual([first.symbol, first.n, first.merged, first.gap], ["A", 7, 5, true]);
  assert.ok(Object.isFrozen(first));
  socket.receive(quote("A", 8));
  const second = (await next()).value;
  assert.deepEqual([second.symbol, second.n, second.merged, second.gap], ["B", 5, 0, false]);
  const third = (await next()).value;
  assert.deepEqual([third.symbol, third.n, third.merged, third.gap], ["A", 8, 0, false]);
  assert.equal(await next(), null);
});

test("a stream outlives connections, and ends in silence when the client is closed", async () => {
  const {q, clock, socket, sockets} = setupOpen();
  const {next} = reader(q.stream("A"));
  await next();
  socket.receive({ev: "subscribed", id: 1, symbols: ["A"], total: 1}, quote("A", 1));
  assert.equal((await next()).value.n, 1);
  socket.end(1006);
  clock.advance(500);
  sockets[1].welcome();
  await settled();
  sockets[1].receive({ev: "subscribed", id: 2, symbols: ["A"], total: 1}, quote("A", 4));
  const {n, gap} = (await next()).value;
  assert.deepEqual([n, gap], [4, true]);
  assert.equal(await next(), null);
  q.close();
  q.open(); // others may go on
  assert.deepEqual(await next(), {value: undefined, done: true});
  sockets[2].welcome();
  await settled();
  assert.deepEqual(sockets[2].sent, []);
  q.close();
  assert.equal((await q.stream("A").next()).done, true, "closed already");
});

test("a stream throws where the client was closed for good by the server", async () => {
  const {q, socket} = setupOpen();
  const step = q.stream("A").next();
  await settled();
  socket.end(4001, "the token was revoked");
  const told = (error) => error instanceof QuotepushError && error.code === 4001
    && error.message === "the token was revoked";
  await assert.rejects(step, told);
  await assert.rejects(q.stream("A").next(), told);
});

test("a stream ends by its signal's reason, and leaves nothing behind", async () => {
  const {q, socket} = setupOpen();
  const reason = new Error("enough");
  const controller = new AbortController();
  const step = q.stream("A", {signal: controller.signal}).next();
  await settled();
  controller.abort(reason);
  await assert.rejects(step, reason);
  await settled();
  assert.deepEqual(socket.symbols("unsubscribe"), ["A"]);
  await assert.rejects(q.stream("A", {signal: AbortSignal.abort(reason)}).next(), reason);
  await settled();
  assert.deepEqual(socket.symbols("subscribe"), ["A"]);
});

// -- pages that are hidden, frozen, left and back, and networks that change -------------------------

/** A page, on which events happen. */
class FakePage extends EventTarget {
  document = {visibilityState: "visible"}; listeners = 0;
  addEventListener(...args) { this.listeners += 1; super.addEventListener(...args); }
  removeEventListener(...args) { this.listeners -= 1; super.removeEventListener(...args); }
  happens(type) { this.dispatchEvent(new Event(type)); }
}

function setupPage(options) {
  const page = new FakePage();
  const world = setupOpen({page, ...options});
  return {...world, page, get socket() { return world.sockets.at(-1); }};
}

test("a page that is left lets go of its connection, and has a new one when it is back", async () => {
  const {q, clock, page, sockets, states} = setupPage();
  const seen = [];
  q.on("stale", ({reason}) => seen.push(`stale ${reason}`));
  q.subscribe("A", () => {});
  await settled();
  page.happens("pagehide");
  assert.ok(sockets[0].closed);
  assert.deepEqual(states.at(-1),
    {state: "waiting", delay: Infinity, attempt: 0, code: 1001, reason: "the page was left"});
  assert.deepEqual([seen, clock.size], [["stale link"], 0]);
  page.happens("online");
  page.happens("pagehide");
  assert.equal(sockets.length, 1);
  page.happens("pageshow");
  assert.equal(sockets.length, 2);
  sockets[1].welcome();
  await settled();
  assert.deepEqual(sockets[1].symbols("subscribe"), ["A"]);
});

test("a page that was left while it waited goes on waiting", () => {
  const {clock, page, sockets} = setupPage();
  sockets[0].end(1006);
  page.happens("pagehide");
  page.happens("pageshow");
  assert.equal(sockets.length, 1);
  clock.advance(500);
  assert.equal(sockets.length, 2);
});

test("a network that is back ends the wait", () => {
  const {clock, page, sockets} = setupPage();
  sockets[0].end(1006);
  page.happens("visibilitychange");
  assert.equal(sockets.length, 1);
  page.happens("online");
  assert.equal(sockets.length, 2);
  clock.advance(1000);
  assert.equal(sockets.length, 2);
});

test("a network that is back does not end a wait that the server asked for", () => {
  const {clock, page, sockets} = setupPage();
  sockets[0].receive({ev: "bye", code: 1012, retry: 3500});
  sockets[0].end(1012);
  page.happens("online");
  assert.equal(sockets.length, 1);
  clock.advance(3750);
  assert.equal(sockets.length, 2);
});

test("a network that changed is asked for a sign of life, and replaced without one", () => {
  const {clock, page, sockets} = setupPage();
  page.happens("online");
  assert.equal(sockets[0].ops("ping").length, 1);
  clock.advance(1000);
  sockets[0].receive({ev: "pong", id: sockets[0].ops("ping")[0].id});
  clock.advance(14_999);
  assert.equal(sockets.length, 1, "it was there, and is watched as before");
  page.happens("online");
  clock.advance(4999);
  assert.equal(sockets.length, 1);
  clock.advance(1);
  assert.equal(sockets.length, 2);
});

for (const event of ["visibilitychange", "resume", "pageshow"]) {
  test(`${event} asks for a sign of life where nothing was heard for a heartbeat`, () => {
    const {clock, page, socket} = setupPage();
    clock.advance(5000);
    page.happens(event);
    assert.equal(socket.ops("ping").length, 0);
    clock.advance(1);
    page.document.visibilityState = "hidden";
    if (event === "visibilitychange") page.happens(event);
    assert.equal(socket.ops("ping").length, 0);
    page.document.visibilityState = "visible";
    page.happens(event);
    assert.equal(socket.ops("ping").length, 1);
  });
}

test("a watch that comes far too late asks before it calls the link dead", () => {
  const {clock, sockets, socket} = setupOpen();
  clock.freeze(60_000);
  clock.advance(0);
  assert.equal(socket.ops("ping").length, 1);
  socket.receive(quote("A", 1)); // it waited unread
  clock.advance(14_999);
  assert.equal(sockets.length, 1);
  clock.advance(1);
  assert.equal(sockets.length, 2);
  sockets[1].welcome();
  clock.freeze(60_000);
  clock.advance(5000);
  assert.equal(sockets.length, 3, "nothing came in a heartbeat's time");
});

test("timers of a hidden page that come a little late change nothing", () => {
  const {clock, sockets, socket} = setupOpen();
  for (let i = 0; i < 5; i += 1) {
    for (let beat = 0; beat < 12; beat += 1) {
      clock.freeze(5000);
      socket.receive({ev: "heartbeat", feed: "up"});
    }
    clock.advance(0);
  }
  assert.deepEqual([sockets.length, socket.sent], [1, []]);
});

test("a page is not listened to for a client that is closed", () => {
  const {q, page, sockets} = setupPage();
  assert.ok(page.listeners > 0);
  sockets[0].end(1006);
  page.happens("online");
  q.close();
  page.happens("pageshow");
  assert.equal(sockets.length, 2);
});

test("where there is no page, or none is to be heeded, all works", () => {
  for (const page of [null, {}]) {
    const {q} = setupOpen({page});
    q.close();
    assert.equal(q.state, "closed");
  }
});
