/* The operator's page: asks the daemon how it is, and shows it.
 *
 * Symbols, users and addresses are untrusted text: all of it reaches the document as textContent.
 * A hidden page asks nothing. What is out of date is shown as out of date.
 */
import {Chart, Cursor} from "./chart.js";
import {
  DAYS_LOW, DAYS_URGENT, History, NOTHING, SILENCE, silentFor, slowOnes, troubles, verdict, warnings, writeAge,
  writeBytes, writeClock, writeCount, writeDuration, writeLatency, writePercent, writeRate, writeShare, writeShort,
} from "./figures.js";

const STATUS_EVERY = 1000, LISTS_EVERY = 2000, PATIENCE = 5000, TICK = 1000;
const $ = (id) => document.getElementById(id);
const setText = (element, text) => { if (element.textContent !== text) element.textContent = text; };

function make(tag, parent, className = "", text = "") {
  const element = parent.appendChild(document.createElement(tag));
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

/* -- asking --------------------------------------------------------------------------------------- */

/** Asks a path again and again while it is started: one request at a time, none that waits for ever. */
class Poll {
  #path; #every; #answered; #failed; #timer = 0; #asking = null;

  constructor(path, every, answered, failed) {
    this.#path = path;
    this.#every = every;
    this.#answered = answered;
    this.#failed = failed;
  }

  start() {
    if (!this.#asking) this.#ask();
  }

  stop() {
    clearTimeout(this.#timer);
    this.#asking?.abort();
    this.#asking = null;
  }

  async #ask() {
    const asking = this.#asking = new AbortController();
    const begun = performance.now();
    let late = false;
    const limit = setTimeout(() => { late = true; asking.abort(); }, PATIENCE);
    try {
      const response = await fetch(this.#path, {signal: asking.signal, cache: "no-store"});
      if (!response.ok) throw new Error(`it answered with ${response.status} ${response.statusText}`);
      const answer = await response.json();
      if (this.#asking === asking) this.#answered(answer);
    } catch (error) {
      // A TypeError is fetch's word for a connection that was refused or broke.
      const why = late ? `nothing came within ${PATIENCE / 1000} seconds`
        : error instanceof TypeError ? "it can't be reached" : error.message;
      if (this.#asking === asking) this.#failed(why);
    } finally {
      clearTimeout(limit);
    }
    if (this.#asking !== asking) return;
    const rest = Math.max(100, this.#every - (performance.now() - begun));
    this.#timer = setTimeout(() => this.#ask(), rest);
  }
}

/* -- what is shown -------------------------------------------------------------------------------- */

const history = new History();
const cursor = new Cursor(() => charts.forEach((chart) => chart.render()));
const PERCENTILES = ["p50", "p90", "p99"];
const latency = (name) => PERCENTILES.map((label) => [`${name}.${label}`, label]);
const aSecond = (write) => (value) => (value === null ? NOTHING : `${write(value)}/s`);

const charts = [
  {name: "quotes", title: "Quotes in", help: "quotes received from Redis, a second; every worker gets them all",
    series: [["quotes", ""]], write: aSecond(writeShort), tick: writeShort},
  {name: "events", title: "Events out", help: "events handed to clients, a second",
    series: [["events", ""]], write: aSecond(writeShort), tick: writeShort},
  {name: "bytes", title: "Bytes out", help: "bytes handed to connections, a second",
    series: [["bytes", ""]], write: aSecond(writeBytes), tick: writeBytes, whole: true},
  {name: "merged", title: "Merged", help: "updates that a newer one replaced, a second: for paced clients, and for slow ones as they catch up",
    series: [["merged", ""]], write: aSecond(writeShort), tick: writeShort, whole: true},
  {name: "receive", title: "Receive to write", help: "from the read of a quote to the write to its clients",
    series: latency("receive"), write: writeLatency, log: true},
  {name: "publish", title: "Publish to write",
    help: "from the time a payload says it was published at to the write to clients",
    series: latency("publish"), write: writeLatency, log: true},
  {name: "reactor", title: "Reactor delay", help: "how late the daemon's timers are",
    series: latency("reactor"), write: writeLatency, log: true},
  {name: "clients", title: "Clients", help: "clients, and those that are behind",
    series: [["clients", "all"], ["behind", "behind"]], write: writeCount, whole: true},
].map((spec) => new Chart($("charts"), spec, cursor));

/** A tile: a name, a value, and a line below it. */
class Fact {
  #value; #below;

  constructor(name, title) {
    const tile = make("div", $("facts"), "card");
    tile.title = title;
    tile.dataset.fact = name;
    make("dt", tile, "", name);
    this.#value = make("dd", tile);
    const text = make("span", this.#value);
    this.#below = make("small", this.#value);
    this.text = text;
  }

  show(value, below = "", mark = "") {
    setText(this.text, value);
    setText(this.#below, below);
    if (this.#value.className !== mark) this.#value.className = mark;
  }
}

const facts = Object.fromEntries([
  ["feed", "Feed", "Whether quotes come in from Redis, and the time since the last one"],
  ["workers", "Workers", "Those that serve, of all there are"],
  ["clients", "Clients", "Clients, and connections of all kinds"],
  ["behind", "Behind", "Clients that have not taken all that was sent to them"],
  ["subscriptions", "Subscriptions", "Symbols that clients watch, each client counted"],
  ["symbols", "Symbols", "Symbols that are watched or were quoted"],
  ["registry", "Registry lag", "How long changes of interest have been waiting to be written to Redis"],
  ["uptime", "Up", "Since the daemon was started"],
].map(([key, name, title]) => [key, new Fact(name, title)]));

/**
 * A table in a card. A column is `[label, text(row), className]`; the class `wide` gives it a line of its
 * own on a phone, `mark` the colour of its row. `markOf(row)` is that: "", "warn", "bad" or "unfed".
 */
class List {
  #card; #note; #body; #empty; #columns; #markOf; #table;

  constructor(parent, name, title, columns, markOf = () => "") {
    this.#columns = columns;
    this.#markOf = markOf;
    this.#card = make("section", parent, "card list");
    this.#card.dataset.list = name;
    const heading = make("h2", this.#card, "", title);
    heading.id = `list-${name}`;
    this.#note = make("span", heading);
    const table = this.#table = make("table", this.#card);
    table.setAttribute("role", "table");
    table.setAttribute("aria-labelledby", heading.id);
    const head = make("thead", table);
    head.setAttribute("role", "rowgroup");
    const row = make("tr", head);
    row.setAttribute("role", "row");
    for (const [label, , className] of columns) {
      const cell = make("th", row, className, label);
      cell.scope = "col";
      cell.setAttribute("role", "columnheader");
    }
    this.#body = make("tbody", table);
    this.#body.setAttribute("role", "rowgroup");
    this.#empty = make("p", this.#card);
    this.show([], "nothing yet");
  }

  /** Shows these rows, or the words `empty` where there are none; `note` is beside the title. */
  show(rows, empty, note = "") {
    setText(this.#note, note);
    setText(this.#empty, rows.length ? "" : empty);
    this.#empty.hidden = rows.length > 0;
    this.#table.hidden = rows.length === 0;
    while (this.#body.children.length > rows.length) this.#body.lastChild.remove();
    rows.forEach((row, at) => {
      const line = this.#body.children[at] ?? this.#line();
      const mark = this.#markOf(row);
      if (line.className !== mark) line.className = mark;
      this.#columns.forEach(([, text], column) => {
        const cell = line.children[column], words = text(row);
        if (cell.textContent === words) return;
        cell.textContent = words;
        cell.title = words;
        cell.classList.toggle("none", words === NOTHING);
      });
    });
  }

  /** What is in it was true once: `words` say when. */
  date(words) {
    this.#card.classList.toggle("past", words !== null);
    if (words !== null) setText(this.#note, words);
  }

  #line() {
    const line = make("tr", this.#body);
    line.setAttribute("role", "row");
    for (const [label, , className] of this.#columns) {
      const cell = make("td", line, className);
      cell.dataset.label = label;
      cell.setAttribute("role", "cell");
    }
    return line;
  }
}

const text = (value) => (value === null || value === undefined || value === "" ? NOTHING : String(value));
const known = (value) => typeof value === "number";

const slow = new List($("across"), "slow", "Slow clients", [
  ["Connection", ({conn}) => text(conn), "text key wide"],
  ["Address", ({address}) => text(address), "text wide"],
  ["User", ({user}) => text(user), "text wide"],
  ["Worker", ({worker}) => text(worker), "w2"],
  ["Behind for", ({behind}) => (known(behind) ? writeDuration(behind) : NOTHING), "mark w4"],
  ["Merged", ({merged}) => writeShort(merged), "w3"],
  ["Queued", ({queued}) => writeBytes(queued), "w3"],
  ["Symbols", ({symbols: count}) => writeCount(count), "w3"],
  ["Here for", ({seconds}) => writeDuration(seconds), "w4"],
], ({behind}) => (known(behind) ? behind >= 5 ? "bad" : "warn" : ""));

const stateOf = (worker) => (
  silentFor(worker) !== null ? "silent" : worker.draining ? "draining" : text(worker.state));
const feedOf = ({feed, age}) => (feed === "up" ? `up, ${writeAge(age)}` : text(feed));

const workers = new List($("left"), "workers", "Workers", [
  ["No.", ({number}) => text(number), "text key w1"],
  ["Process", ({pid}) => text(pid), "w2"],
  ["State", stateOf, "text mark"],
  ["Feed", (worker) => (silentFor(worker) !== null ? NOTHING : feedOf(worker)), "text feed w3"],
  ["Age", ({seconds}) => writeDuration(seconds), "w3"],
  ["Clients", ({clients}) => writeCount(clients), "w2"],
  ["Behind", ({behind}) => writeCount(behind), "w2"],
  ["CPU", (worker) => writePercent(history.cpu(worker)), "w1"],
  ["Memory", ({process}) => writeBytes(process?.memory), "w2"],
  ["Restarts", ({restarts}) => writeCount(restarts), "w3"],
], (worker) => {
  const {state, feed, draining} = worker;
  if (silentFor(worker) !== null) return "bad";
  return state !== "serving" || draining ? "warn" : feed === "down" ? "unfed" : "";
});

const trouble = new List($("left"), "troubles", "Refused, dropped, failed", [
  ["What", ([name]) => name.replaceAll("_", " "), "text key wide"],
  ["Last 5 min", ([, , recent]) => writeShort(recent), "mark w3"],
  ["Since start", ([, total]) => writeCount(total), "w3"],
], ([, , recent]) => (recent > 0 ? "warn" : ""));

const certificates = new List($("left"), "certificates", "Certificates", [
  ["For", ({names, file}) => text(names?.length ? names.join(", ") : file), "text key wide"],
  ["File", ({file}) => text(file), "text wide"],
  ["Days left", ({days}) => text(days), "mark w3"],
], ({days}) => (days < DAYS_URGENT ? "bad" : days < DAYS_LOW ? "warn" : ""));

const symbols = new List($("right"), "symbols", "Top symbols", [
  ["Symbol", ({symbol}) => text(symbol), "text key wide"],
  ["Quotes/s", ({rate}) => writeRate(rate), "w2"],
  ["Watchers", ({watchers}) => writeCount(watchers), "w2"],
  ["n", ({n}) => writeShort(n), "w2"],
  ["Last", ({age, stale}) => (stale ? `stale, ${writeAge(age)}` : writeAge(age)), "mark w4"],
], ({stale}) => (stale ? "warn" : ""));

/* -- how it stands -------------------------------------------------------------------------------- */

const opened = Date.now();
let shownAt = opened, failure = null, failing = opened;
const lists = {
  clients: {list: slow, at: 0, failure: null},
  symbols: {list: symbols, at: 0, failure: null},
};

function render() {
  const now = Date.now();
  const {last} = history;
  const alive = last !== null && now - last.at <= SILENCE && failure === null;
  const quiet = now - Math.max(last?.at ?? 0, shownAt) > SILENCE;
  const silence = failure ?? (quiet ? "it says nothing" : null);
  const status = alive ? last.status : null;
  renderVerdict(now, status, silence);
  renderFacts(status);
  charts.forEach((chart) => chart.show(history, now, alive));
  const past = last === null ? "no answer" : `as of ${writeClock(new Date(last.at))}`;
  for (const list of [workers, certificates, trouble]) list.date(alive ? null : past);
  for (const {list, at, failure: why} of Object.values(lists)) {
    const fresh = alive && why === null && now - at <= 2 * SILENCE;
    const words = at === 0 ? why ?? "" : `as of ${writeClock(new Date(at))}`;
    list.date(fresh ? null : why && alive ? `${words}: ${why}` : words);
  }
}

function renderVerdict(now, status, silence) {
  const {state, words} = verdict(status, silence);
  setText($("words"), words);
  $("verdict").className = state;
  const title = `${words} · quotepush`;
  if (document.title !== title) document.title = title;
  setText($("detail"), detail(now, status, silence));
  if (status === null) setText($("who"), "");
  else setText($("who"), `version ${text(status.version)} · process ${text(status.pid)}`);
  const found = status === null ? [] : warnings(status);
  const box = $("warnings");
  while (box.children.length > found.length) box.lastChild.remove();
  found.forEach(({urgent, words: warning}, at) => {
    const item = box.children[at] ?? make("li", box);
    setText(item, warning);
    item.className = urgent ? "urgent" : "";
  });
}

function detail(now, status, silence) {
  if (silence !== null) {
    const since = history.last?.at ?? failing;
    return `Since ${writeClock(new Date(since))} (${writeDuration((now - since) / 1000)}): ${silence}. Asking on.`;
  }
  if (status === null) return "";
  const {feed, age} = status.totals ?? {};
  const last = known(age) ? `last message ${writeAge(age)} ago` : "no message yet";
  return `The feed is ${text(feed)}, ${last}.`;
}

function renderFacts(status) {
  if (status === null) {
    Object.values(facts).forEach((fact) => fact.show(NOTHING));
    return;
  }
  const {totals = {}, workers: all = []} = status;
  const serving = all.filter((worker) => stateOf(worker) === "serving").length;
  const share = totals.clients > 0 ? `${writeShare(totals.behind / totals.clients)} of clients` : "";
  const {feed, age} = totals;
  facts.feed.show(text(feed), known(age) ? `${writeAge(age)} ago` : "no message yet", feed === "down" ? "bad" : "");
  facts.workers.show(`${serving} of ${all.length}`, "serve", serving < all.length ? "warn" : "");
  facts.clients.show(writeCount(totals.clients), `${writeCount(totals.connections)} connections`);
  facts.behind.show(writeCount(totals.behind), share, totals.behind > 0 ? "warn" : "");
  facts.subscriptions.show(writeCount(totals.subscriptions));
  facts.symbols.show(writeCount(totals.symbols));
  facts.registry.show(known(totals.registry_lag) ? writeLatency(totals.registry_lag) : NOTHING,
    known(totals.registry_lag) ? "" : "no registry");
  facts.uptime.show(writeDuration(status.uptime));
}

function renderStatusLists(status) {
  workers.show(status.workers ?? [], "There is no worker.");
  const pairs = status.certificates ?? [];
  certificates.show(pairs, "This daemon serves without TLS.");
  const found = troubles(status.totals?.counters)
    .map(([name, total]) => [name, total, history.grown(name)]);
  trouble.show(found, "Nothing of that kind since the start.");
}

/* -- going on ------------------------------------------------------------------------------------- */

const failed = (why) => {
  if (failure === null) failing = Date.now();
  failure = why;
  render();
};

// Workers that did not tell in time.
const without = (missing) => (missing?.length ? `, without those of worker ${missing.join(", ")}` : "");

const polls = [
  new Poll("status", STATUS_EVERY, (status) => {
    failure = null;
    history.take({at: Date.now(), status});
    renderStatusLists(status);
    render();
  }, failed),
  new Poll("clients?slow=20", LISTS_EVERY, ({clients, total, missing}) => {
    const found = slowOnes(clients);
    const nobody = total === 0 ? "There is no client." : "Nobody: all clients take what is sent to them.";
    slow.show(found, nobody, `of ${writeCount(total)}${without(missing)}`);
    Object.assign(lists.clients, {at: Date.now(), failure: null});
  }, (why) => { lists.clients.failure = why; }),
  new Poll("symbols?top=20", LISTS_EVERY, ({symbols: found, total, missing}) => {
    symbols.show(found, "No symbol is known yet.", `of ${writeCount(total)}${without(missing)}`);
    Object.assign(lists.symbols, {at: Date.now(), failure: null});
  }, (why) => { lists.symbols.failure = why; }),
];

let ticking = 0;
function wake() {
  clearInterval(ticking);
  if (document.hidden) {
    polls.forEach((poll) => poll.stop());
    return;
  }
  shownAt = Date.now();
  failure = null;
  polls.forEach((poll) => poll.start());
  ticking = setInterval(() => { if (Date.now() - (history.last?.at ?? 0) > 1.2 * TICK) render(); }, TICK);
  render();
}
document.addEventListener("visibilitychange", wake);
wake();
