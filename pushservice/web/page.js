/* The public page: a watchlist of live quotes, the connection's state, errors and tokens.
   Must not know: how the client connects, reconnects, or keeps its subscriptions. */
import {$, clock, make, setText, show} from "./dom.js";
import {ExactNumber, Quotepush, parseExact} from "./quotepush.js";
import {showRawFrames} from "./raw_frames.js";

const LIST_SIZE = 60, LIST_TRIES = 10, ERRORS = 5;
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

/* The token, kept in this page's memory alone: whoever reloads the page pastes it again. */
let token = "", tokenEnds = 0, complaint = "", give = () => {};
function giveToken(why) {
  if (token && why === "connect") return token;
  renderAsk(why);
  $("auth").hidden = false;
  if (why !== "expiring") $("token").focus({preventScroll: true}); // nobody is busy elsewhere
  renderLink();
  return new Promise((resolve) => { give = resolve; });
}
function renderAsk(why) {
  const words = complaint || "the token was refused";
  setText($("ask"), {
    connect: "This server asks who you are: paste a token to see quotes.",
    expiring: `Your token ends at ${clock(tokenEnds)}. Paste a newer one to go on without a break.`,
    refused: `${words[0].toUpperCase()}${words.slice(1)}. Paste another token.`,
  }[why]);
  $("ask").className = why;
}
function closeAuth() {
  $("auth").hidden = true;
  $("token").value = "";
}
$("auth").addEventListener("submit", (event) => {
  event.preventDefault();
  const pasted = $("token").value.trim();
  if (!pasted) return;
  token = pasted;
  complaint = "";
  closeAuth();
  renderLink();
  give(token);
});

// The parser keeps "10.50" as it was sent.
const q = new Quotepush(undefined, {parse: parseExact, token: giveToken});

/* Work is collected and done once per animation frame: cost follows the screen, not the market. */
const dirtyRows = new Set();
let scheduled = false, allShown = 0;
const schedule = () => {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    const everything = performance.now() - allShown > 300; // rows out of sight may lag a little
    if (everything) allShown = performance.now();
    for (const row of dirtyRows) {
      if (!everything && !visible.has(row.tr)) continue;
      dirtyRows.delete(row);
      renderRow(row);
    }
    flushErrors();
    if (dirtyRows.size) schedule();
  });
};

/* Rows. Payloads are untrusted: they reach the page as textContent only. */
const rows = new Map(); // symbol -> row
const visible = new Set(); // row elements on the screen: only these flash
const observer = new IntersectionObserver((entries) => {
  for (const {target, isIntersecting} of entries) visible[isIntersecting ? "add" : "delete"](target);
});

const COLUMNS = [["symbol"], ["last"], ["change"], ["bid", "Bid"], ["ask", "Ask"], ["volume", "Vol"],
  ["n", "n"], ["time"], ["remove"]];

function addRow(symbol, first) {
  if (rows.has(symbol)) return;
  const tr = make("tr", "quiet");
  tr.setAttribute("role", "row");
  tr.dataset.symbol = symbol;
  const cells = {};
  for (const [name, label] of COLUMNS) {
    const cell = cells[name] = tr.appendChild(make("td", name));
    cell.setAttribute("role", "cell");
    if (label) cell.dataset.label = label;
  }
  const name = make("span");
  cells.symbol.append(make("b", "", symbol), name);
  cells.last.textContent = "–";
  const button = make("button", "icon", "×");
  button.type = "button";
  button.title = `Remove ${symbol}`;
  button.setAttribute("aria-label", button.title);
  button.addEventListener("click", () => edit(() => removeRow(symbol)));
  cells.remove.append(button);
  const row = {tr, cells, name, quote: null, price: NaN, first: NaN, decimals: 0, flashed: 0, way: 0};
  rows.set(symbol, row);
  row.stop = q.subscribe(symbol, (quote) => {
    counts.quotes += 1;
    counts.merged += quote.merged;
    if (!quote.snapshot) feedSeen = performance.now();
    row.quote = quote;
    dirtyRows.add(row);
    schedule();
  });
  $("rows")[first ? "prepend" : "append"](tr);
  observer.observe(tr);
}

function removeRow(symbol) {
  const row = rows.get(symbol);
  if (!row) return;
  row.stop();
  observer.unobserve(row.tr);
  visible.delete(row.tr);
  dirtyRows.delete(row);
  row.tr.remove();
  rows.delete(symbol);
}

function renderRow(row) {
  const {quote: {data, n, t}, tr, cells} = row;
  const price = data?.last ?? data?.price;
  const known = price !== undefined && price !== null
    && (typeof price !== "object" || price instanceof ExactNumber);
  tr.dataset.n = n;
  tr.classList.remove("quiet");
  if (tr.classList.contains("payload") === known) { // another shape than before
    tr.classList.toggle("payload", !known);
    cells.last.colSpan = known ? 1 : 5;
    for (const name of ["change", "bid", "ask", "volume"]) cells[name].hidden = !known;
  }
  setText(cells.n, String(n));
  setText(cells.time, clock(t));
  if (!known) {
    setText(cells.last, show(typeof data === "string" ? data : JSON.stringify(data)));
    cells.last.title = cells.last.textContent;
    return;
  }
  cells.last.removeAttribute("title");
  setText(cells.last, show(price));
  for (const name of ["bid", "ask", "volume"]) setText(cells[name], show(data[name]));
  setText(row.name, show(data.name));
  cells.symbol.title = show(data.name);
  const value = Number(price);
  if (!Number.isFinite(value)) return;
  row.decimals = Math.min(8, Math.max(row.decimals, /\.(\d+)$/.exec(String(price))?.[1].length ?? 0));
  if (Number.isNaN(row.first)) row.first = value;
  renderChange(row, value - row.first);
  if (value !== row.price && !Number.isNaN(row.price)) flash(row, value > row.price ? 1 : -1);
  row.price = value;
}

function renderChange({cells: {change}, first, decimals}, difference) {
  const sign = difference > 0 ? "+" : difference < 0 ? "−" : "";
  const percent = first ? ` (${sign}${Math.abs(difference / first * 100).toFixed(2)}%)` : "";
  setText(change, `${sign}${Math.abs(difference).toFixed(decimals)}${percent}`);
  const className = difference > 0 ? "change up" : difference < 0 ? "change down" : "change";
  if (change.className !== className) change.className = className;
}

function flash(row, way) {
  const now = performance.now();
  if (reducedMotion.matches || !visible.has(row.tr)) return;
  if (way === row.way && now - row.flashed < 250) return; // a busy row would never fade
  row.flashed = now;
  row.way = way;
  row.animation?.cancel();
  row.animation = row.cells.last.animate(
    [{backgroundColor: way > 0 ? "var(--up-bg)" : "var(--down-bg)"}, {backgroundColor: "transparent"}],
    {duration: 800, easing: "ease-out"});
}

/* The watchlist, kept in the address once the person edits it. */
let edited = false;
const fromHash = () => location.hash.slice(1).split(",").map((part) => {
  try { return decodeURIComponent(part); } catch { return part; }
}).filter(Boolean);

function edit(change) {
  edited = true;
  change();
  saveHash();
  showHint();
}

function saveHash() {
  if (!edited) return;
  const hash = [...$("rows").children].map((tr) => encodeURIComponent(tr.dataset.symbol)).join(",");
  history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
}

function loadHash() {
  edited = true;
  const wanted = new Set(fromHash());
  for (const symbol of [...rows.keys()]) if (!wanted.has(symbol)) removeRow(symbol);
  for (const symbol of wanted) addRow(symbol);
  showHint();
}

async function loadList() {
  for (let attempt = 0; attempt <= LIST_TRIES && !edited && rows.size < LIST_SIZE; attempt += 1) {
    if (attempt) await new Promise((resolve) => setTimeout(resolve, 1000));
    let symbols = [];
    try {
      const response = await fetch(`./symbols.json?limit=${LIST_SIZE}`);
      if (response.status === 404) break; // this server does not tell its symbols
      if (response.ok) symbols = await response.json();
    } catch { /* not reachable: the next try may be luckier */ }
    if (edited) return;
    for (const symbol of symbols.slice(0, LIST_SIZE - rows.size)) addRow(symbol);
    showHint("No quotes yet. They appear here as soon as something is published.");
  }
  showHint();
}

function showHint(text = "Your list is empty. Type a symbol above, such as AAPL, to watch its quotes.") {
  $("hint").hidden = rows.size > 0;
  $("table").hidden = rows.size === 0;
  setText($("hint"), text);
}

$("add").addEventListener("submit", (event) => {
  event.preventDefault();
  const symbols = $("symbols").value.split(/[\s,]+/).filter(Boolean);
  $("symbols").value = "";
  if (symbols.length) edit(() => symbols.reverse().forEach((symbol) => addRow(symbol, true)));
});
$("clear").addEventListener("click", () => {
  edit(() => [...rows.keys()].forEach(removeRow));
  $("errors").replaceChildren();
});
addEventListener("hashchange", loadHash);

/* Errors, in words; refusals of one code are told together. */
const refused = new Map(); // code -> symbols
const WORDS = {
  405: (list) => `Too many symbols for one connection. Not added: ${list}.`,
  409: (list) => `You are not entitled to ${list}.`,
  411: (list) => `Not a valid symbol: ${list}. Symbols have no spaces, none of * ? [ ] \\ " and at most 64 bytes.`,
};
function addError(text) {
  const item = make("li");
  const button = make("button", "icon", "×");
  button.type = "button";
  button.setAttribute("aria-label", "Dismiss");
  button.addEventListener("click", () => item.remove());
  item.append(make("span", "", text), button);
  $("errors").prepend(item);
  while ($("errors").children.length > ERRORS) $("errors").lastChild.remove();
}
function flushErrors() {
  for (const [code, symbols] of refused) {
    const list = symbols.slice(0, 8).join(", ") + (symbols.length > 8 ? ` and ${symbols.length - 8} more` : "");
    addError(WORDS[code](list));
  }
  refused.clear();
}
q.on("error", ({symbol, code, msg}) => {
  if (code === 401 || code === 402 || code === 404) { // told where the next token is asked for
    if (code !== 404) complaint = show(msg);
    if (code === 401) renderAsk("refused");
    return;
  }
  if (symbol === undefined || !WORDS[code]) {
    return addError(`${symbol === undefined ? "The server reports" : symbol}: ${show(msg)} (${code}).`);
  }
  removeRow(symbol);
  saveHash();
  showHint();
  refused.set(code, [...refused.get(code) ?? [], show(symbol)]);
  schedule();
});

/* Connection state and figures. */
const CLOSE_WORDS = {
  1000: "closed normally", 1001: "server going away", 1006: "connection lost", 1012: "server restarting",
  4001: "authentication failed", 4004: "authentication came too late", 4008: "too slow for the quotes",
  4029: "too many messages",
};
const why = ({code, reason}) => reason || CLOSE_WORDS[code] || `code ${code}`;
const counts = {messages: 0, quotes: 0, merged: 0};
let link = {state: q.state}, reconnectAt = 0, feed = null, feedSeen = 0, lastTick = performance.now();

function renderLink() {
  const seconds = Math.max(0, Math.ceil((reconnectAt - performance.now()) / 1000));
  const asking = !$("auth").hidden
    && (link.state === "authenticating" || link.code === 4001 || link.code === 4004);
  $("connect").hidden = asking || (link.state !== "waiting" && link.state !== "closed");
  setText($("pill"), asking ? "Waiting for a token" : {
    authenticating: "Authenticating…",
    connecting: "Connecting…", open: "Connected", waiting: `Reconnecting in ${seconds} s (${why(link)})`,
    closed: `Closed: ${why(link)}`,
  }[link.state]);
}
function renderFeed() {
  if (link.state !== "open" || feed === null) return $("feed").replaceChildren("–");
  const age = (performance.now() - feedSeen) / 1000;
  const ago = !feedSeen ? "" : age < 10 ? `${age.toFixed(1)} s ago` : `${Math.round(age)} s ago`;
  const state = make("span", feed === "up" ? "up" : "down", feed);
  $("feed").replaceChildren(state, " ", make("small", "", ago));
}
q.on("state", (detail) => {
  link = detail;
  reconnectAt = performance.now() + (detail.delay ?? 0);
  const {state} = detail;
  $("pill").className = `pill ${state}`;
  $("pill").title = state === "open" ? `connection ${detail.conn}, epoch ${detail.epoch}` : "";
  // The live region leaves the countdown out: it would be read aloud every second.
  setText($("status"), {connecting: "Connecting", open: "Connected", authenticating: "Authenticating", closed: `Closed: ${why(detail)}`,
    waiting: `Connection lost: ${why(detail)}. Reconnecting.`}[state]);
  if (state === "open" || state === "closed") closeAuth();
  if (state !== "open") {
    $("who").hidden = true;
    feed = null;
    setText($("rtt"), "–");
  }
  renderLink();
  renderFeed();
});
const duration = (seconds) => seconds < 60 ? `${seconds} s` : `${Math.round(seconds / 6) / 10} min`;
q.on("authenticated", ({user, expires, delay}) => {
  closeAuth();
  const parts = [user && show(user), delay && `quotes ${duration(delay)} late`].filter(Boolean);
  $("who").hidden = parts.length === 0;
  $("who").title = expires === undefined ? "" : `The token ends at ${new Date(expires).toLocaleString()}`;
  setText($("who"), parts.join(" · "));
  renderLink();
});
q.on("expiring", ({in: left}) => { tokenEnds = Date.now() + left; });
q.on("feed", ({state}) => {
  feed = state;
  renderFeed();
});
q.on("heartbeat", ({age}) => {
  if (age >= 0) feedSeen = performance.now() - age;
});
q.on("stale", () => $("rows").classList.add("stale"));
q.on("fresh", () => $("rows").classList.remove("stale"));
const setQuiet = (quiet) => ({symbols}) => {
  for (const symbol of symbols) rows.get(symbol)?.tr.classList.toggle("stale", quiet);
};
q.on("quiet", setQuiet(true));
q.on("lively", setQuiet(false));
$("connect").addEventListener("click", () => q.open());

let ticks = 0;
async function measure() {
  if (q.state !== "open") return;
  try {
    const ms = await q.ping();
    setText($("rtt"), `${ms.toFixed(ms < 10 ? 1 : 0)} ms`);
  } catch { /* the connection ended: its state is on the page */ }
}
setInterval(() => {
  const now = performance.now(), seconds = (now - lastTick) / 1000;
  lastTick = now;
  setText($("messages"), Math.round(counts.messages / seconds).toLocaleString("en"));
  setText($("quotes"), Math.round(counts.quotes / seconds).toLocaleString("en"));
  setText($("merged"), counts.merged.toLocaleString("en"));
  counts.messages = counts.quotes = 0;
  renderLink();
  renderFeed();
  ticks += 1;
  if (ticks % 5 === 0) measure();
}, 1000);
q.on("state", measure);
q.on("raw", ({direction}) => { if (direction === "in") counts.messages += 1; });
showRawFrames(q);

if (location.hash.length > 1) loadHash();
else loadList();
