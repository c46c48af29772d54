// Tests of the operator's page's arithmetic: numbers in, numbers and texts out; nothing here waits.
import assert from "node:assert/strict";
import {readFileSync} from "node:fs";
import {test} from "node:test";

// Loaded as text: older Nodes take a .js file without a package.json for CommonJS.
const source = readFileSync(new URL("../../pushservice/web/figures.js", import.meta.url));
const {
  History, SPAN, decadeTicks, histogramIncrease, increase, linearTicks, percentile, pointOf, restarted, slowOnes,
  troubles, verdict, warnings, writeAge, writeBytes, writeClock, writeCount, writeDuration, writeLatency, writeRate,
  writeShare, writeShort, writeTick,
} = await import(`data:text/javascript;base64,${source.toString("base64")}`);

const T = 1_700_000_000_000;
const BOUNDS = [0.001, 0.01, 0.1];

const workerOf = (number, pid, uptime, counters) => ({number, pid, as_of: T + 1000 * uptime, counters});

/** An answer `seconds` after the start of a daemon whose counters grow evenly. */
function answer(seconds, {pid = 1, uptime = seconds, rate = 100, counts = [0, 0, 0, 0], ...totals} = {}) {
  return {at: T + seconds * 1000, status: {
    pid, uptime, faults: [],
    workers: [
      workerOf(1, 10 * pid, uptime, {quotes_in: rate * uptime, events_out: 30 * uptime, merged: 0}),
      workerOf(2, 10 * pid + 1, uptime, {quotes_in: rate * uptime / 2, events_out: 10 * uptime, merged: 0}),
    ],
    totals: {
      clients: 3, behind: 1,
      counters: {events_out: 40 * uptime},
      measures: {receive_to_write_seconds: {bounds: BOUNDS, counts, sum: 0}},
      ...totals,
    },
  }};
}

const near = (actual, expected) => assert.ok(Math.abs(actual - expected) < 1e-9, `${actual} is not ${expected}`);

test("a counter that shrank or is not there has no increase", () => {
  assert.equal(increase(3, 10), 7);
  assert.equal(increase(3, 3), 0);
  for (const [before, now] of [[10, 3], [undefined, 3], [3, undefined], [null, 3], [NaN, 3], [3, "4"]]) {
    assert.equal(increase(before, now), null);
  }
});

test("a histogram's increase is bucket by bucket, and none where any bucket shrank", () => {
  const of = (counts, bounds = BOUNDS) => ({bounds, counts});
  assert.deepEqual(histogramIncrease(of([1, 2, 3, 4]), of([1, 4, 3, 5])), of([0, 2, 0, 1]));
  assert.equal(histogramIncrease(of([1, 2, 3, 4]), of([9, 9, 2, 9])), null);
  assert.equal(histogramIncrease(of([1, 2, 3, 4]), of([1, 2, 3, 4], [0.001, 0.02, 0.1])), null);
  assert.equal(histogramIncrease(of([1, 2], [1]), of([1, 2, 3, 4])), null);
  assert.equal(histogramIncrease(undefined, of([1, 2, 3, 4])), null);
});

test("percentiles lie evenly between the bounds of their bucket", () => {
  const histogram = {bounds: BOUNDS, counts: [0, 100, 0, 0]};
  near(percentile(histogram, 0.5), 0.0055);
  near(percentile(histogram, 1), 0.01);
  near(percentile({bounds: BOUNDS, counts: [10, 0, 10, 0]}, 0.5), 0.001);
  near(percentile({bounds: BOUNDS, counts: [10, 0, 10, 0]}, 0.75), 0.055);
  near(percentile({bounds: BOUNDS, counts: [4, 0, 0, 0]}, 0.5), 0.0005);
});

test("a percentile beyond the last bound is that bound, and there is none without observations", () => {
  assert.equal(percentile({bounds: BOUNDS, counts: [1, 0, 0, 99]}, 0.5), 0.1);
  assert.equal(percentile({bounds: BOUNDS, counts: [0, 0, 0, 0]}, 0.5), null);
  assert.equal(percentile(null, 0.5), null);
});

test("percentiles of many observations are close to the exact ones", () => {
  const bounds = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];
  const counts = Array(bounds.length + 1).fill(0);
  for (let value = 1; value <= 1000; value++) counts[bounds.findIndex((bound) => value <= bound)] += 1;
  for (const share of [0.1, 0.5, 0.9, 0.99]) near(percentile({bounds, counts}, share), share * 1000);
});

test("a point has rates by the workers' own clocks and levels", () => {
  const before = answer(10), now = answer(12);
  now.at += 300; // the answer came late, which is no change of the rate
  const point = pointOf(before, now);
  near(point.events, 40);
  assert.equal(point.merged, 0);
  assert.deepEqual([point.clients, point.behind], [3, 1]);
  assert.equal(point["receive.p50"], null);
  near(pointOf(answer(10), answer(12, {counts: [0, 9, 0, 0]}))["receive.p50"], 0.0055);
});

test("quotes that every worker gets are counted once, as those of the worker that got most", () => {
  near(pointOf(answer(10), answer(12)).quotes, 100);
  const replaced = answer(12);
  replaced.status.workers[0] = workerOf(1, 99, 12, {quotes_in: 5});
  near(pointOf(answer(10), replaced).quotes, 50);
  replaced.status.workers = [];
  assert.equal(pointOf(answer(10), replaced).quotes, null);
});

test("the first point has levels and no rates", () => {
  const point = pointOf(undefined, answer(10));
  assert.deepEqual([point.clients, point.quotes, point["receive.p99"]], [3, null, null]);
});

test("nothing of a restart becomes a rate: another process, or a shorter time since the start", () => {
  for (const again of [answer(12, {pid: 2, uptime: 20}), answer(12, {uptime: 1})]) {
    assert.ok(restarted(answer(10).status, again.status));
    const point = pointOf(answer(10), again);
    assert.deepEqual([point.quotes, point.bytes, point["receive.p50"]], [null, null, null]);
  }
  assert.ok(!restarted(answer(10).status, answer(11).status));
});

test("an answer of a daemon that does not tell totals is a point without any", () => {
  const point = pointOf({at: T, status: {pid: 1, uptime: 1}}, {at: T + 2000, status: {pid: 1, uptime: 3}});
  assert.deepEqual([point.quotes, point.clients, point["publish.p90"]], [null, null, null]);
});

test("history keeps five minutes", () => {
  const history = new History();
  for (let second = 0; second <= 400; second++) history.take(answer(second));
  assert.equal(history.points.length, SPAN / 1000 + 1);
  assert.equal(history.points[0].at, T + 100_000);
  assert.equal(history.grown("events_out"), 40 * 300);
});

test("workers that say how they stand by a beat of their own make no jumps of the rate", () => {
  const history = new History();
  // They say it every 1.3 seconds, and are asked once a second.
  for (let second = 0; second <= 20; second++) {
    const told = Math.floor(second / 1.3) * 1.3;
    const at = answer(second);
    at.status.workers = [workerOf(1, 7, told, {quotes_in: 100 * told, events_out: 40 * told})];
    history.take(at);
  }
  for (const point of history.points.slice(2)) {
    near(point.quotes, 100);
    near(point.events, 40);
  }
});

test("a worker that is late makes no dip, and one that has long said nothing counts no more", () => {
  const late = answer(12);
  late.status.workers[1] = answer(10).status.workers[1];
  assert.deepEqual([pointOf(answer(10), late).events, pointOf(answer(10), late).quotes], [null, 100]);
  const before = answer(18), stuck = answer(20);
  before.status.workers[1] = stuck.status.workers[1] = answer(10).status.workers[1];
  near(pointOf(before, stuck).events, 30);
});

test("a value that is not known for a moment does not break a line", () => {
  const history = new History();
  for (let second = 0; second <= 6; second++) {
    const at = answer(second);
    if (second === 4) at.status.workers = answer(2).status.workers;
    history.take(at);
  }
  assert.equal(history.points[4].events, null);
  near(history.newest("events"), 40);
  assert.deepEqual(history.stretches("events").map((run) => run.length), [5]);
});

test("a worker that has said nothing new has no rate, and a clock that was set back gives none", () => {
  const same = answer(12);
  same.status.workers = answer(10).status.workers;
  assert.equal(pointOf(answer(10), same).quotes, null);
  const back = answer(12);
  for (const worker of back.status.workers) worker.as_of = T;
  assert.equal(pointOf(answer(10), back).events, null);
});

test("the newest value is kept for a moment, and not over a restart", () => {
  const history = new History();
  assert.equal(history.newest("events"), null);
  const silent = (second) => {
    const at = answer(second);
    for (const worker of at.status.workers) worker.as_of = T;
    return at;
  };
  for (const each of [answer(0), answer(1), answer(2), silent(3)]) history.take(each);
  near(history.newest("events"), 40);
  for (const second of [4, 5, 6]) history.take(silent(second));
  assert.equal(history.newest("events"), null);
  for (const second of [7, 8, 9]) history.take(answer(second));
  near(history.newest("events"), 40);
  history.take(answer(10, {pid: 2, uptime: 1}));
  assert.equal(history.newest("events"), null);
});

test("a restart breaks the lines, and never shows as a negative rate", () => {
  const history = new History();
  for (let second = 0; second <= 10; second++) history.take(answer(second));
  for (let second = 11; second <= 20; second++) history.take(answer(second, {pid: 2, uptime: second - 10}));
  assert.equal(history.stretches("quotes").length, 2);
  assert.equal(history.stretches("clients").length, 2);
  for (const {quotes} of history.points) assert.ok(quotes === null || quotes >= 0);
  assert.equal(history.grown("events_out"), 40 * 9);
});

test("time in which nothing was asked is a break, and no rate is taken over it", () => {
  const history = new History();
  for (const second of [0, 1, 2, 60, 61, 62]) history.take(answer(second));
  assert.deepEqual(history.stretches("clients").map((run) => run.length), [3, 3]);
  assert.deepEqual(history.stretches("quotes").map((run) => run.length), [2, 2]);
});

test("a clock that is set back begins anew", () => {
  const history = new History();
  for (const second of [100, 101, 102]) history.take(answer(second));
  const back = answer(103);
  back.at = T;
  history.take(back);
  assert.deepEqual(history.points.map(({at}) => at), [T]);
  assert.equal(history.last, back);
});

test("the nearest point is found, and none far away", () => {
  const history = new History();
  for (const second of [0, 1, 2]) history.take(answer(second));
  assert.equal(history.near(T + 1_400).at, T + 1_000);
  assert.equal(history.near(T + 3_400).at, T + 2_000);
  assert.equal(history.near(T + 4_000), null);
});

test("a worker's share of a core is what it used of the last seconds", () => {
  const history = new History();
  const worker = (second, pid = 7) => ({number: 1, pid, as_of: T + 1000 * second, process: {cpu: second * 0.25}});
  assert.equal(history.cpu(worker(0)), null);
  for (let second = 0; second <= 10; second++) {
    const at = answer(second);
    at.status.workers = [worker(second)];
    history.take(at);
  }
  near(history.cpu(worker(10)), 0.25);
  assert.equal(history.cpu(worker(10, 8)), null);
  assert.equal(history.cpu({number: 1, pid: 7}), null);
});

test("linear ticks are few, round, and reach the largest value", () => {
  assert.deepEqual(linearTicks(0), [0, 0.5, 1]);
  assert.deepEqual(linearTicks(0, true), [0, 1]);
  assert.deepEqual(linearTicks(0.3), [0, 0.1, 0.2, 0.3]);
  assert.deepEqual(linearTicks(1), [0, 0.5, 1]);
  assert.deepEqual(linearTicks(3, true), [0, 1, 2, 3]);
  assert.deepEqual(linearTicks(950), [0, 500, 1000]);
  assert.deepEqual(linearTicks(1001), [0, 500, 1000, 1500]);
  for (let most = 1e-6; most < 1e12; most *= 1.7) {
    const ticks = linearTicks(most);
    assert.ok(ticks.at(-1) >= most * (1 - 1e-9) && ticks.length >= 3 && ticks.length <= 5, `${most}: ${ticks}`);
    assert.ok(ticks.at(-1) <= most * 2 + 1e-9, `${most} would be flat below ${ticks.at(-1)}`);
  }
});

test("logarithmic ticks are powers of ten around all values", () => {
  assert.deepEqual(decadeTicks(0.0002, 0.03), [0.0001, 0.001, 0.01, 0.1]);
  assert.deepEqual(decadeTicks(0.001, 0.001), [0.001, 0.01]);
  assert.deepEqual(decadeTicks(0.001, 0.01), [0.001, 0.01]);
});

const plain = (text) => text.replaceAll("\u202f", " ");

test("numbers are written in few characters and with their units", () => {
  const cases = [
    [writeShort, [[0, "0"], [0.25, "0.25"], [7, "7"], [9.996, "10.0"], [99.96, "100"], [870.4, "870"], [999.7, "1.00 k"],
      [1000, "1.00 k"], [12_345, "12.3 k"], [4_560_000, "4.56 M"], [2e15, "2000 T"]]],
    [writeRate, [[0, "0.0"], [5, "5.0"], [99.96, "100"], [1234, "1.23 k"]]],
    [writeCount, [[0, "0"], [1234567, "1,234,567"], [999, "999"], [1000, "1,000"]]],
    [writeShare, [[0, "0 %"], [0.0001, "0.1 %"], [0.004, "0.4 %"], [0.12, "12 %"], [1, "100 %"]]],
    [writeBytes, [[0, "0 B"], [512.4, "512 B"], [999.6, "1.00 kB"], [12_345, "12.3 kB"], [5e6, "5.00 MB"]]],
    [writeLatency, [[0, "0 s"], [0.000085, "85 µs"], [0.00099996, "1.00 ms"], [0.00125, "1.25 ms"],
      [0.9996, "1.00 s"], [3.14159, "3.14 s"]]],
    [writeDuration, [[0, "0 s"], [59.9, "59 s"], [60, "1 min"], [200, "3 min 20 s"], [7_440, "2 h 4 min"],
      [86_400, "1 d"], [442_000, "5 d 2 h"], [-3, "0 s"]]],
    [writeAge, [[0, "0 ms"], [12.4, "12 ms"], [-5, "0 ms"], [3_400, "3.4 s"], [12_000, "12 s"], [200_000, "3 min 20 s"]]],
  ];
  for (const [write, pairs] of cases) {
    for (const [number, text] of pairs) assert.equal(plain(write(number)), text, `${write.name}(${number})`);
    for (const nothing of [null, undefined, NaN, Infinity, "1"]) assert.equal(write(nothing), "–", write.name);
  }
});

test("labels of axes have no zeros to no purpose", () => {
  const tick = (value, write) => plain(writeTick(value, write));
  assert.deepEqual([0, 500, 1000, 1500, 20_000, 200_000].map((value) => tick(value, writeShort)),
    ["0", "500", "1 k", "1.5 k", "20 k", "200 k"]);
  assert.deepEqual([0.0001, 0.001, 0.1, 1].map((value) => tick(value, writeLatency)),
    ["100 µs", "1 ms", "100 ms", "1 s"]);
  assert.deepEqual([0, 2_500_000].map((value) => tick(value, writeBytes)), ["0 B", "2.5 MB"]);
});

test("a time of day has two digits of each", () => {
  assert.equal(writeClock(new Date(2026, 0, 2, 3, 4, 5)), "03:04:05");
});

test("the verdict says what is wrong, and that nobody answers above all", () => {
  assert.deepEqual(verdict(null, null), {state: "waiting", words: "Asking the daemon…"});
  assert.deepEqual(verdict({faults: []}, null), {state: "ready", words: "Ready"});
  assert.deepEqual(verdict({faults: ["draining", "the feed is down"]}, null),
    {state: "fault", words: "Not ready: draining; the feed is down"});
  assert.equal(verdict({faults: []}, "it can't be reached").state, "silent");
});

test("warned is of certificates that end soon and of workers that drain", () => {
  const found = warnings({
    workers: [
      {number: 1, draining: false, silent: 1.2}, {number: 2, draining: true, silent: 5},
      {number: 3, draining: true, silent: 9.4},
    ],
    certificates: [
      {file: "a.pem", names: ["a.example"], days: 14}, {file: "b.pem", names: ["b.example"], days: 13},
      {file: "c.pem", names: [], days: 1}, {file: "d.pem", names: ["d.example"], days: -1},
    ],
  });
  assert.deepEqual(found, [
    {urgent: false, words: "worker 2 is draining"},
    {urgent: true, words: "worker 3 has said nothing for 9\u202fs"},
    {urgent: false, words: "the certificate of b.example ends in 13 days"},
    {urgent: true, words: "the certificate of c.pem ends in 1 day"},
    {urgent: true, words: "the certificate of d.example has ended"},
  ]);
  assert.deepEqual(warnings({}), []);
});

test("counters of trouble are shown once they are not zero", () => {
  const counters = {quotes_in: 5, connections_refused: 2, feed_losses: 0, closed_too_slow: 1, commands: 3};
  assert.deepEqual(troubles(counters), [["connections_refused", 2], ["closed_too_slow", 1]]);
  assert.deepEqual(troubles(undefined), []);
});

test("slow is who is behind or had quotes merged, not whose bytes are just leaving", () => {
  const client = {behind: null, merged: 0, queued: 233};
  const slow = [{...client, behind: 0}, {...client, merged: 1}];
  assert.deepEqual(slowOnes([client, ...slow]), slow);
});
