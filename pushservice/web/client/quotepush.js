/**
 * quotepush: a small client for the quotepush WebSocket protocol, version 1.
 * No dependencies; runs in browsers, their workers, and Node >= 20. `quotepush.d.ts` has its types.
 *
 *     import {Quotepush} from "./quotepush.js";
 *     const q = new Quotepush("wss://quotes.example.org/");
 *     const stop = q.subscribe(["AAPL", "600519.SH"], (quote) => console.log(quote.symbol, quote.data));
 *     q.on("state", ({state}) => console.log(state));
 *     for await (const quote of q.stream("AAPL")) console.log(quote.data);
 *
 * @module quotepush
 */

const PROTOCOL = "quotepush.v1.json";
const RETRYABLE = new Set([1001, 1006, 1012, 4008, 4029]);
const LOCKED_OUT = new Set([4001, 4004]); // another token may help
const REFUSALS = 3; // connections in a row that end over a refused token before it is given up
const DEFAULT_MESSAGE_LIMIT = 16384; // bytes, until the welcome says otherwise
const WATCH_FACTOR = 3; // heartbeats missed before the link counts as dead
const EVENTS = new Set(["state", "welcome", "heartbeat", "bye", "authenticated", "expiring", "denied",
  "feed", "gap", "stale", "fresh", "quiet", "lively", "error", "raw"]);
// What a page or a worker is told of itself, and tells sooner than a timer would.
const PAGE_EVENTS = ["pagehide", "pageshow", "visibilitychange", "resume", "online"];
const BROKEN_OFF = -1; // in place of a link: it was served, and is no more
const encoder = new TextEncoder();
const byteLength = (text) => encoder.encode(text).length;

/**
 * @typedef {object} Quote One update; frozen (its `data` is shared between callbacks: do not change it).
 * @property {string} symbol
 * @property {number} n count of this symbol's updates within `epoch`, from 1
 * @property {number} t the daemon's receive time, ms since 1970
 * @property {*} data the publisher's payload
 * @property {boolean} snapshot true for the last known quote sent on subscribing
 * @property {number} merged updates merged into this one (0 for snapshots and the first update); in a
 *   `stream`, those that its reader was too slow for too
 * @property {boolean} gap true for the first quote after a "gap": updates before it may have been lost
 * @property {string} epoch names the daemon process that counted `n`
 */

/**
 * The daemon's answer to a request was an error; `code` is the protocol's error code, and `retry`, if
 * there is one, the milliseconds after which the same request may be answered otherwise.
 */
export class QuotepushError extends Error {
  constructor(code, message, retry) {
    super(message);
    this.name = "QuotepushError";
    this.code = code;
    if (retry >= 0) this.retry = Number(retry);
  }
}

/** The address to connect to; throws a TypeError if it can't be one. */
function addressOf(url) {
  let address = String(url ?? "/");
  if (!/^[a-z][a-z\d+.-]*:/i.test(address)) { // relative to the page, as links are
    if (!globalThis.location) throw new TypeError("outside of a page the address is needed: wss://host/");
    address = new URL(address, location.href).href;
  }
  address = address.replace(/^http(?=s?:)/i, "ws");
  if (/^wss?:\/\/[^/\s#][^\s#]*$/i.test(address)) return address;
  throw new TypeError(`an address begins with wss:// or ws:// and has no white space and no #: ${address}`);
}

/** What a reader gets who had not taken `older` when `newer` came. */
function mergedInto(newer, older) {
  if (!older) return newer;
  const merged = newer.merged + older.merged + (older.snapshot ? 0 : 1);
  return Object.freeze({...newer, merged, gap: newer.gap || older.gap});
}

/** A number whose source text differs from JavaScript's own, such as `10.50`; see `parseExact`. */
export class ExactNumber {
  constructor(value, text) {
    this.value = value;
    this.text = text;
  }
  valueOf() { return this.value; }
  toString() { return this.text; }
  toJSON() { return JSON.rawJSON ? JSON.rawJSON(this.text) : this.value; }
}

/**
 * `JSON.parse` that keeps the source text of numbers: for the `parse` option. A number that would not
 * print as it was sent becomes an `ExactNumber`; engines without source text access give plain numbers.
 */
export function parseExact(text) {
  return JSON.parse(text, (key, value, context) =>
    typeof value === "number" && context?.source !== undefined && context.source !== String(value)
      ? new ExactNumber(value, context.source) : value);
}

/** One logical connection: reconnects by itself and keeps the subscriptions. */
export class Quotepush {
  #url; #options; #clock; #socket = null; #state = "closed"; #timer = null; #opened = false;
  #openedAt = 0; #heardAt = 0; #heartbeat = 0; #attempt = 0; #retry = null; #conn = ""; #epoch = "";
  #link = 0; // counts the connections that were welcomed
  #hasty = false; // the wait is our own choice, so that better news may end it
  #away = false; // the page was left, and may come back as it was
  #ending = null; // {code, reason} of the last "closed"
  #feed = null; #fresh = null;
  #limit = DEFAULT_MESSAGE_LIMIT; #nextId = 1; #flushing = false; #retryFlush = null;
  #why = "connect"; // what a token is needed for
  #asking = null; // marks the pending call of the token function
  #askTimer = null; #askAttempt = 0; // its next call
  #offer = ""; // a token that came while there was no connection to show it on
  #renewing = false; // the state is "waiting" for nothing but a token
  #refusals = 0; // connections in a row that ended over a refused token
  #refusedHere = false; #blame = ""; // this link's last token was; what the server found wrong with it
  #held = []; // requests made while authenticating
  #entries = new Map(); // symbol -> {subs: Set, last: Quote|null, n: number|null, link, gap}; see #entry
  #told = new Set(); // the symbols this connection asked the server for
  #dirty = new Set(); // the symbols to compare with #told at the next flush
  #pending = new Map(); // request id -> {resolve, reject}
  #listeners = new Map(); // event name -> Set of {fn}
  #onPage = (event) => this.#pageChanged(event);

  /**
   * Connects at once. Throws where that can't be: no address, or none that the WebSocket takes.
   * @param {string|URL} [url] ws: or wss: address, or one relative to the page (http: and https: stand
   *   for ws: and wss:); default: the page's own host
   * @param {object} [options]
   * @param {"auto"|"raw"} [options.mode] sent with every subscribe
   * @param {number} [options.interval] sent with every subscribe: least ms between updates of a symbol
   * @param {boolean} [options.snapshot] sent with every subscribe
   * @param {string|function(string): (string|Promise<string>)} [options.token] shown where the server
   *   asks for one, and never part of the URL or of an event. A string serves until it is refused
   *   or ends; then the state is "closed". A function is called for each token that is needed: for
   *   "connect"; for "expiring", in the first half of what is left of the last one; or, since the
   *   last one is not taken (any more), for "refused". If it throws, rejects or gives no string,
   *   that is reported, and it is called again with backoff.
   *   (Where a constructor can set headers, as that of `ws` in Node, a subclass of it passed as
   *   `WebSocket` may send `Authorization: Bearer …` instead, which then goes for every connection.)
   * @param {function(string): *} [options.parse] default `JSON.parse`; see `parseExact`
   * @param {function} [options.WebSocket] constructor to use instead of the global one
   * @param {EventTarget|null} [options.page] whose "online", "pagehide" and the like are heeded;
   *   default: the page or worker this runs in; null for nobody's
   * @param {{setTimeout, clearTimeout, now}} [options.timers] clock to use instead of the global one
   * @param {function(): number} [options.random] instead of `Math.random`
   * @param {function(*)} [options.report] receives exceptions of callbacks; default `console.error`
   * @param {number} [options.backoff=500] first bound of the reconnect delay, ms
   * @param {number} [options.backoffMax=30000] last bound of the reconnect delay, ms
   * @param {number} [options.stableAfter=10000] ms open after which the backoff starts anew
   * @param {number} [options.connectTimeout=15000] ms to wait for the welcome
   */
  constructor(url, options = {}) {
    this.#url = addressOf(url);
    this.#options = {
      parse: JSON.parse, random: Math.random, report: (error) => console.error(error),
      WebSocket: globalThis.WebSocket, page: globalThis, backoff: 500, backoffMax: 30000,
      stableAfter: 10000, connectTimeout: 15000,
      ...Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)),
    };
    if (!this.#options.WebSocket) throw new Error("no WebSocket here: pass one as options.WebSocket");
    this.#clock = options.timers ?? {
      setTimeout: (fn, ms) => setTimeout(fn, ms),
      clearTimeout: (id) => clearTimeout(id),
      now: () => performance.now(),
    };
    this.open();
  }

  /**
   * "connecting", "authenticating" (welcomed by a server that asks for a token), "open" (served),
   * "waiting" (to reconnect) or "closed".
   */
  get state() { return this.#state; }

  /** Whether quotes are current: true from "fresh" to "stale". */
  get fresh() { return this.#fresh === true; }

  /** Connects now if the state is "waiting" or "closed"; else does nothing. */
  open() {
    if (this.#state === "closed") this.#refusals = 0;
    if (this.#state === "waiting" || this.#state === "closed") this.#connect();
  }

  /** Closes for good; subscriptions are kept for a later `open()`, streams end. */
  close() {
    if (this.#state === "closed") return;
    this.#detach("closed by the client");
    if (this.#state !== "closed") this.#end(1000, "closed by the client");
  }

  /**
   * Calls `callback` with each quote of the symbols. The server hears of a symbol only with its first
   * callback; a later callback gets the last known quote at once, marked as a snapshot.
   * @param {string|string[]} symbols
   * @param {function(Quote)} callback
   * @returns {function()} unsubscribes this callback
   */
  subscribe(symbols, callback) {
    if (typeof callback !== "function") throw new TypeError("subscribe takes symbols and a function");
    const sub = {callback, seen: new Set(), live: true};
    const own = new Set(typeof symbols === "string" ? [symbols] : symbols);
    for (const symbol of own) {
      const entry = this.#entry(symbol);
      entry.subs.add(sub);
      if (entry.last) queueMicrotask(() => this.#replay(sub, entry));
    }
    this.#mark(own);
    return () => {
      sub.live = false;
      for (const symbol of own) this.#entries.get(symbol)?.subs.delete(sub);
      this.#mark(own);
    };
  }

  /**
   * The quotes of the symbols, for `for await`. Subscribed from the first step until the loop is left.
   * A reader that is slower than the quotes gets the newest of each symbol, and in `merged` how many
   * it was too slow for; so no more than one quote of each symbol is kept. Ends when the client is
   * closed: in silence by `close()`, else with a `QuotepushError`, whose `code` is the close code.
   * @param {string|string[]} symbols
   * @param {object} [options]
   * @param {AbortSignal} [options.signal] ends it too, by throwing the signal's reason
   */
  async *stream(symbols, {signal} = {}) {
    const unread = new Map(); // in the order in which the symbols' turns come
    let wake = () => {}, ending = this.#state === "closed" ? this.#ending : null;
    const stir = () => wake();
    const leave = [
      this.subscribe(symbols, (quote) => {
        unread.set(quote.symbol, mergedInto(quote, unread.get(quote.symbol)));
        stir();
      }),
      this.on("state", ({state}) => {
        if (state !== "closed") return;
        ending = this.#ending;
        stir();
      }),
      () => signal?.removeEventListener("abort", stir),
    ];
    signal?.addEventListener("abort", stir);
    try {
      for (;;) {
        signal?.throwIfAborted();
        if (ending?.code === 1000) return;
        if (ending) throw new QuotepushError(ending.code, ending.reason);
        const [next] = unread;
        if (next) {
          unread.delete(next[0]);
          yield next[1];
        } else {
          await new Promise((resolve) => { wake = resolve; });
        }
      }
    } finally {
      for (const step of leave) step();
    }
  }

  /** The last known quote of a symbol that is subscribed, or undefined. */
  last(symbol) {
    return this.#entries.get(symbol)?.last ?? undefined;
  }

  /**
   * Listens to an event; each listener gets one object:
   * - "state" {state, ...}: "waiting" has delay (ms), attempt, code, reason; "closed" has code,
   *   reason. After 4001 and 4004 it goes on "waiting" until there is a token, however long that is;
   *   on a page that was left (delay Infinity), until the page is back
   * - "welcome", "heartbeat", "bye": the server's event
   * - "authenticated" {user, expires, delay}: a token was taken. It ends at `expires`, ms since 1970,
   *   and brings quotes that are `delay` seconds late; each is undefined where there is none
   * - "expiring" {in}: the token ends in so many ms; a token function is called soon
   * - "denied" {symbol, code, msg}: the token does not allow this symbol, or no longer; told as
   *   "error" too. Its callbacks stay, and it is tried again after the next "authenticated"
   * - "feed" {state}: the daemon's source became "up" or "down" (told on change)
   * - "gap" {symbol, reason: "feed"|"link"}: updates of this symbol may have been lost, before they
   *   reached the daemon, or while there was no connection; its next quote has `gap` true, and is the
   *   last known one where there is one
   * - "stale" {reason: "link"|"feed"|"quiet"}, "fresh" {}: quotes stopped, or began again, to be
   *   current; "quiet": the feed is up, and nothing has come for longer than the daemon allows
   * - "quiet" {symbols}, "lively" {symbols}: these have had no quote for longer than the daemon
   *   allows, or have one again
   * - "error" {code, msg, symbol?, id?}: an error event, or one symbol's refusal; code 0: bad message
   * - "raw" {direction: "in"|"out", text}: every message as text, with "…" for tokens
   * @returns {function()} stops listening
   */
  on(event, fn) {
    if (!EVENTS.has(event)) {
      throw new TypeError(`no event is called "${event}"; there are ${[...EVENTS].join(", ")}`);
    }
    if (typeof fn !== "function") throw new TypeError("on takes an event's name and a function");
    if (!this.#listeners.has(event)) this.#listeners.set(event, new Set());
    const listener = {fn};
    this.#listeners.get(event).add(listener);
    return () => { this.#listeners.get(event).delete(listener); };
  }

  /** @returns {Promise<number>} the round trip in ms */
  async ping() {
    const start = this.#clock.now();
    await this.request("ping");
    return this.#clock.now() - start;
  }

  /** @returns {Promise<string[]>} the symbols the server has this connection subscribed to */
  async list() {
    return (await this.request("list")).symbols;
  }

  /**
   * Sends any op; resolves with the event that answers it. Rejects with a `QuotepushError` when that
   * is an error event, or when the connection is not open or ends first. Where the server asks for a
   * token, all but "auth" and "ping" wait until one is taken.
   * @param {string} op
   * @param {object} [fields]
   */
  request(op, fields = {}) {
    return new Promise((resolve, reject) => {
      if (!this.#welcomed) throw new QuotepushError(0, "not connected");
      this.#call(op, fields, resolve, reject);
    });
  }

  /** What is known of a symbol: `n` and `gap` of its last and its next quote, `link` that served it. */
  #entry(symbol) {
    let entry = this.#entries.get(symbol);
    if (!entry) {
      entry = {subs: new Set(), last: null, n: null, link: 0, gap: false};
      this.#entries.set(symbol, entry);
    }
    return entry;
  }

  get #welcomed() { return this.#state === "open" || this.#state === "authenticating"; }

  #call(op, fields, resolve, reject) {
    const id = this.#nextId++;
    const text = JSON.stringify({...fields, op, id});
    this.#pending.set(id, {resolve, reject});
    if (op === "auth") this.#send(text, JSON.stringify({...fields, token: "…", op, id}));
    else if (op === "ping" || this.#state === "open") this.#send(text);
    else this.#held.push(text);
  }

  #connect() {
    this.#clock.clearTimeout(this.#timer);
    let socket;
    try {
      socket = new this.#options.WebSocket(this.#url, [PROTOCOL]);
    } catch (error) { // the address, or what the page may do, can't be mended by waiting
      if (this.#state !== "closed") this.#end(1006, error.message);
      throw error;
    }
    this.#socket = socket;
    this.#heed(true);
    this.#opened = this.#renewing = this.#away = false;
    this.#openedAt = Infinity;
    this.#retry = null;
    this.#refusedHere = false;
    this.#blame = "";
    if (this.#why === "expiring") this.#why = "connect";
    this.#timer = this.#clock.setTimeout(() => this.#lost(1006, "no welcome in time"),
      this.#options.connectTimeout);
    socket.onopen = () => { this.#opened = true; };
    socket.onmessage = (message) => this.#receive(socket, message.data);
    // A close event follows; but not with every WebSocket where there never was a connection.
    socket.onerror = () => { if (!this.#opened) this.#lost(1006, ""); };
    socket.onclose = ({code, reason}) => this.#lost(this.#opened ? code : 1006, reason);
    this.#setState("connecting", {});
  }

  /** `#connect` where nobody can catch what it throws. */
  #reconnect() { this.#guard(() => this.#connect()); }

  /** Lets go of the socket; nothing it does later is heard. */
  #detach(reason) {
    const socket = this.#socket;
    this.#clock.clearTimeout(this.#timer);
    this.#clock.clearTimeout(this.#retryFlush);
    this.#socket = this.#retryFlush = null;
    if (this.#clock.now() - this.#openedAt >= this.#options.stableAfter) {
      this.#attempt = this.#refusals = 0;
    }
    this.#held = [];
    this.#told.clear();
    this.#feed = null;
    if (socket) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.onerror = () => {}; // closing while connecting reports an error where nobody listens
      if (socket.readyState < 2) socket.close();
    }
    const pending = [...this.#pending.values()];
    this.#pending.clear();
    for (const {reject} of pending) reject(new QuotepushError(0, `connection lost: ${reason}`));
    this.#setFresh(false, "link");
  }

  #lost(code, reason) {
    const socket = this.#socket;
    this.#detach(reason || `code ${code}`);
    if (this.#socket || this.#state === "closed" || !socket) return; // a listener acted already
    if (LOCKED_OUT.has(code)) reason = this.#blame || reason;
    // Who asks for another token more slowly than the server waits ends with 4004.
    if (code === 4001 || (LOCKED_OUT.has(code) && this.#refusedHere)) {
      this.#why = "refused";
      this.#refusals += 1;
    }
    const renew = LOCKED_OUT.has(code) && typeof this.#options.token === "function"
      && this.#refusals < REFUSALS;
    if (!renew && !RETRYABLE.has(code)) return this.#end(code, reason);
    const {backoff, random} = this.#options;
    // Full jitter spreads the clients of a restarted daemon; after a bye it comes on top of its `retry`.
    const delay = this.#retry !== null ? this.#retry + random() * backoff
      : this.#backoff(this.#attempt);
    this.#attempt += 1;
    this.#hasty = this.#retry === null && !renew;
    this.#timer = this.#clock.setTimeout(() => {
      if (!renew || this.#offer) return this.#reconnect();
      this.#renewing = true; // the server would not wait for the token as long
      this.#seek();
    }, delay);
    this.#setState("waiting", {delay, attempt: this.#attempt, code, reason});
  }

  #backoff(attempt) {
    const {backoff, backoffMax, random} = this.#options;
    return random() * Math.min(backoffMax, backoff * 2 ** attempt);
  }

  #end(code, reason) {
    this.#forgetTokens();
    this.#heed(false);
    this.#ending = {code, reason};
    this.#setState("closed", {code, reason});
  }

  /** Checks on a timer instead of re-arming one with every message: cheap at thousands a second. */
  #watch() {
    const limit = WATCH_FACTOR * this.#heartbeat;
    const due = this.#heardAt + limit;
    this.#timer = this.#clock.setTimeout(() => {
      const now = this.#clock.now();
      if (now - this.#heardAt < limit) return this.#watch();
      // Far too late: the page was frozen or the machine asleep. What came meanwhile is not read yet.
      if (now - due > this.#heartbeat) return this.#probe();
      this.#bury();
    }, due - this.#clock.now());
  }

  /** Asks the server for a sign of life, for which it has the time of a heartbeat. */
  #probe() {
    if (!this.#welcomed || !this.#heartbeat) return;
    this.#clock.clearTimeout(this.#timer);
    const asked = this.#clock.now();
    this.#call("ping", {}, () => {}, () => {});
    this.#timer = this.#clock.setTimeout(() => {
      if (this.#heardAt >= asked) this.#watch();
      else this.#bury();
    }, this.#heartbeat);
  }

  /** Replaces a dead link. */
  #bury() {
    this.#detach("no heartbeat");
    if (!this.#socket && this.#welcomed) this.#reconnect();
  }

  #heed(whether) {
    const how = whether ? "addEventListener" : "removeEventListener";
    for (const name of PAGE_EVENTS) this.#options.page?.[how]?.(name, this.#onPage);
  }

  #pageChanged({type}) {
    if (type === "pagehide") {
      // A page with an open connection can't be kept for the back button.
      if (!this.#socket) return;
      this.#detach("the page was left");
      if (this.#socket || this.#state === "closed") return; // a listener acted already
      this.#away = true;
      this.#setState("waiting", {delay: Infinity, attempt: 0, code: 1001, reason: "the page was left"});
    } else if (this.#state === "waiting") {
      if (this.#away ? type === "pageshow" : type === "online" && this.#hasty) this.#reconnect();
    } else if (type !== "visibilitychange" || this.#options.page.document?.visibilityState !== "hidden") {
      // Heard within a heartbeat is proof enough, but not of a network that has changed.
      if (type === "online" || this.#clock.now() - this.#heardAt > this.#heartbeat) this.#probe();
    }
  }

  #receive(socket, text) {
    this.#heardAt = this.#clock.now();
    if (this.#listeners.get("raw")?.size) this.#emit("raw", {direction: "in", text});
    if (this.#socket !== socket) return;
    let events;
    try {
      events = this.#options.parse(text);
      if (!Array.isArray(events)) throw new TypeError("not an array of events");
    } catch (error) {
      return this.#emit("error", {code: 0, msg: `bad message: ${error.message}`});
    }
    for (const event of events) {
      if (this.#socket !== socket) return; // a callback closed the connection
      if (event !== null && typeof event === "object") this.#guard(() => this.#handle(event));
    }
  }

  #handle(event) {
    switch (event.ev) { // unknown events are left alone: newer servers may send more
      case "quote": return this.#quote(event, false);
      case "snapshot": return this.#quote(event, true);
      case "welcome": return this.#welcome(event);
      case "heartbeat":
        this.#setFeed(event.feed);
        return this.#emit("heartbeat", event);
      case "feed": return this.#setFeed(event.state);
      case "gap": return this.#gap(event.s, "feed");
      case "stale":
      case "fresh": return this.#setQuiet(event.ev === "stale", event);
      case "bye":
        if (event.retry >= 0) this.#retry = Number(event.retry);
        return this.#emit("bye", event);
      case "error":
        if (event.code === 401 || event.code === 402 || (event.code === 404 && !this.#refusedHere)) {
          this.#blame = event.msg;
        }
        this.#emit("error", {code: event.code, msg: event.msg, id: event.id});
        this.#settle(event.id)?.reject(new QuotepushError(event.code, event.msg, event.retry));
        return;
      case "authenticated":
        this.#authenticated(event);
        break;
      case "expiring":
        this.#emit("expiring", {in: event.in});
        if (typeof this.#options.token !== "function") return;
        this.#why = "expiring";
        // At some time: clients whose tokens end together would all ask for new ones at once.
        return this.#seek(this.#options.random() * event.in / 2);
      case "unsubscribed":
        if (event.id === undefined) this.#refused(event); // not our wish: the token allows less now
        break;
      case "subscribed":
        this.#subscribed(event.symbols ?? []);
        this.#refused(event);
    }
    if (event.id !== undefined) this.#settle(event.id)?.resolve(event);
  }

  #subscribed(symbols) {
    const socket = this.#socket;
    for (const symbol of symbols) {
      const entry = this.#entries.get(symbol);
      if (!entry) continue;
      entry.n = null; // a new count: what came between two subscriptions was not merged
      const missed = entry.link !== 0 && entry.link !== this.#link;
      entry.link = this.#link;
      if (missed) this.#gap(symbol, "link"); // what was published meanwhile never comes
      if (this.#socket !== socket) return; // a listener acted on it
    }
  }

  #gap(symbol, reason) {
    const entry = this.#entries.get(symbol);
    if (!entry) return; // it was on its way when the last callback left
    entry.gap = true;
    this.#emit("gap", {symbol, reason});
  }

  #refused({id, errors}) {
    const socket = this.#socket;
    for (const [symbol, {code, msg}] of Object.entries(errors ?? {})) {
      if (this.#socket !== socket) return; // a listener acted on it
      this.#told.delete(symbol);
      const entry = this.#entries.get(symbol);
      if (entry) {
        entry.last = null; // nothing keeps it current
        if (entry.link) entry.link = BROKEN_OFF;
      }
      this.#emit("error", {symbol, code, msg, id});
      if (code === 409) this.#emit("denied", {symbol, code, msg});
    }
  }

  #settle(id) {
    const request = this.#pending.get(id);
    this.#pending.delete(id);
    return request;
  }

  #welcome(event) {
    this.#clock.clearTimeout(this.#timer);
    this.#conn = event.conn;
    this.#epoch = event.epoch;
    this.#link += 1;
    this.#limit = event.limits?.message ?? DEFAULT_MESSAGE_LIMIT;
    for (const entry of this.#entries.values()) entry.n = null;
    this.#heartbeat = event.hb > 0 ? event.hb : 0;
    if (this.#heartbeat) this.#watch();
    if (event.auth !== "required") {
      this.#serve();
      return this.#emit("welcome", event);
    }
    const socket = this.#socket;
    this.#setState("authenticating", {});
    this.#emit("welcome", event);
    if (this.#socket !== socket) return; // a listener closed the connection
    const {token} = this.#options;
    if (!token) return this.#giveUp("the server asks for a token: pass one as options.token");
    const offer = typeof token === "string" ? token : this.#offer;
    this.#offer = "";
    if (offer) this.#show(offer);
    else this.#seek();
  }

  /** The server takes everything from now on. */
  #serve() {
    this.#openedAt = this.#clock.now();
    this.#refusedHere = false;
    this.#forgetTokens();
    this.#setState("open", {conn: this.#conn, epoch: this.#epoch});
    for (const text of this.#held.splice(0)) this.#send(text);
    this.#mark(this.#entries.keys());
  }

  #authenticated({user, expires, delay}) {
    this.#why = "connect";
    if (this.#state === "authenticating") {
      this.#serve();
    } else {
      this.#forgetTokens();
      this.#mark(this.#entries.keys()); // what was refused before may pass now
    }
    const number = (value) => value === undefined ? undefined : Number(value);
    this.#emit("authenticated", {user, expires: number(expires), delay: number(delay)});
  }

  /** Calls the token function after `wait` ms, unless its answer is awaited already. */
  #seek(wait = 0) {
    if (this.#asking) return;
    this.#clock.clearTimeout(this.#askTimer);
    if (wait > 0) this.#askTimer = this.#clock.setTimeout(() => this.#ask(), wait);
    else this.#ask();
  }

  async #ask() {
    const asking = this.#asking = {};
    let token = null;
    try {
      token = await this.#options.token(this.#why);
      if (typeof token !== "string" || !token) throw new TypeError("options.token gave no token");
    } catch (error) {
      token = null;
      this.#options.report(error);
    }
    if (this.#asking !== asking) return; // it is not needed any more
    this.#asking = null;
    if (token === null) return this.#seek(this.#backoff(this.#askAttempt++));
    if (this.#welcomed) return this.#show(token);
    this.#offer = token;
    if (this.#renewing) this.#reconnect();
  }

  #show(token) {
    this.#call("auth", {token}, () => {}, ({code, message, retry}) => {
      if (code === 0) return; // the connection ended
      if (retry !== undefined) { // nobody could look at it just now
        this.#clock.clearTimeout(this.#askTimer);
        this.#askTimer = this.#clock.setTimeout(() => { if (this.#welcomed) this.#show(token); }, retry);
        return;
      }
      if (typeof this.#options.token === "string") return this.#giveUp(message);
      if (code === 403 && this.#state === "open") { // another user's: not on this connection
        this.#detach("another user's token");
        if (this.#socket || this.#state !== "open") return; // a listener acted already
        this.#offer = token;
        return this.#reconnect();
      }
      this.#refusedHere = true;
      this.#why = "refused";
      this.#seek(this.#backoff(this.#askAttempt++));
    });
  }

  /** Closes for want of a token, with the code that the server would close with. */
  #giveUp(reason) {
    this.#detach(reason);
    if (!this.#socket && this.#state !== "closed") this.#end(4001, reason);
  }

  #forgetTokens() {
    this.#clock.clearTimeout(this.#askTimer);
    this.#asking = null;
    this.#askAttempt = 0;
    this.#offer = "";
  }

  #quote(event, snapshot) {
    const entry = this.#entries.get(event.s);
    if (!entry) return; // it was on its way when the last callback left
    // A live quote proves the feed is up, unless the server said down: then it was queued before.
    if (!snapshot && this.#feed === null) this.#setFeed("up");
    const counted = !snapshot && entry.n !== null;
    const merged = counted ? Math.max(0, event.n - entry.n - 1) : 0;
    entry.n = event.n;
    entry.last = Object.freeze({symbol: event.s, n: event.n, t: event.t, data: event.d, snapshot,
      merged, gap: entry.gap, epoch: this.#epoch});
    entry.gap = false;
    for (const sub of [...entry.subs]) this.#deliver(sub, entry.last);
  }

  #replay(sub, entry) {
    if (this.#state === "closed") return;
    if (!entry.last || sub.seen.has(entry.last.symbol)) return; // a newer one came first
    this.#deliver(sub, Object.freeze({...entry.last, snapshot: true, merged: 0, gap: false}));
  }

  #deliver(sub, quote) {
    if (!sub.live) return;
    sub.seen.add(quote.symbol);
    this.#guard(sub.callback, quote);
  }

  #setQuiet(quiet, {symbols, all}) {
    // Of a feed that is down its clients know already.
    if (all && this.#feed !== "down") this.#setFresh(!quiet, "quiet");
    if (symbols?.length) this.#emit(quiet ? "quiet" : "lively", {symbols});
  }

  #setFeed(state) {
    if (state === undefined || state === this.#feed) return;
    this.#feed = state;
    this.#emit("feed", {state});
    if (this.#feed === state) this.#setFresh(state === "up", "feed");
  }

  #setFresh(fresh, reason) {
    if (fresh === this.#fresh) return;
    this.#fresh = fresh;
    if (fresh) this.#emit("fresh", {});
    else this.#emit("stale", {reason});
  }

  #setState(state, detail) {
    this.#state = state;
    this.#emit("state", {state, ...detail});
  }

  #mark(symbols) {
    for (const symbol of symbols) this.#dirty.add(symbol);
    if (this.#flushing) return;
    this.#flushing = true;
    queueMicrotask(() => this.#flush());
  }

  #flush() {
    this.#flushing = false;
    const add = [], drop = [];
    for (const symbol of this.#dirty) {
      const wanted = this.#entries.get(symbol)?.subs.size > 0;
      if (!wanted) this.#entries.delete(symbol);
      if (wanted !== this.#told.has(symbol)) (wanted ? add : drop).push(symbol);
    }
    this.#dirty.clear();
    if (this.#state !== "open") return; // the welcome marks everything again
    this.#sendBatches("unsubscribe", drop); // first: it makes room under limits.symbols
    this.#sendBatches("subscribe", add);
  }

  #sendBatches(op, symbols) {
    const {mode, interval, snapshot} = this.#options;
    const fields = op === "subscribe" ? {mode, interval, snapshot} : {};
    const envelope = {op, id: Number.MAX_SAFE_INTEGER, symbols: [], ...fields}; // widest id
    const room = this.#limit - byteLength(JSON.stringify(envelope));
    let batch = [], size = 0;
    const send = () => {
      if (batch.length) this.#sendSymbols(op, batch, fields);
      batch = [];
      size = 0;
    };
    for (const symbol of symbols) {
      const bytes = byteLength(JSON.stringify(symbol)) + 1; // and its comma
      if (bytes > room) { // the server would close the connection over it
        this.#emit("error", {symbol, code: 411, msg: "bad symbol: too long"});
        continue;
      }
      if (size + bytes > room) send();
      batch.push(symbol);
      size += bytes;
    }
    send();
  }

  #sendSymbols(op, symbols, fields) {
    const id = this.#nextId++;
    for (const symbol of symbols) this.#told[op === "subscribe" ? "add" : "delete"](symbol);
    this.#pending.set(id, {resolve() {}, reject: ({code}) => {
      if (code === 0) return; // the connection ended: the next welcome repeats it
      for (const symbol of symbols) this.#told[op === "subscribe" ? "delete" : "add"](symbol);
      if (code !== 429) return; // only "too many messages" passes by itself
      for (const symbol of symbols) this.#dirty.add(symbol);
      this.#retryFlush ??= this.#clock.setTimeout(() => {
        this.#retryFlush = null;
        this.#flush();
      }, 1000 * (1 + this.#options.random()));
    }});
    this.#send(JSON.stringify({op, id, symbols, ...fields}));
  }

  #send(text, shown = text) {
    if (this.#listeners.get("raw")?.size) this.#emit("raw", {direction: "out", text: shown});
    this.#socket?.send(text);
  }

  #emit(event, detail) {
    if (this.#state === "closed" && event !== "state") return; // a listener closed it half-way
    const listeners = this.#listeners.get(event);
    for (const listener of [...listeners ?? []]) {
      if (listeners.has(listener)) this.#guard(listener.fn, detail); // else one before it ended it
    }
  }

  #guard(fn, argument) {
    try {
      fn(argument);
    } catch (error) {
      this.#options.report(error);
    }
  }
}
