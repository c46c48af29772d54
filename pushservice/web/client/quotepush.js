/**
 * quotepush: a small client for the quotepush WebSocket protocol, version 1.
 * No dependencies; runs in browsers and in Node >= 20 (there, pass `WebSocket` where none is built in).
 *
 *     import {Quotepush} from "./quotepush.js";
 *     const q = new Quotepush("wss://quotes.example.org/");
 *     const stop = q.subscribe(["AAPL", "600519.SH"], (quote) => console.log(quote.symbol, quote.data));
 *     q.on("state", ({state}) => console.log(state));
 *
 * @module quotepush
 */

const PROTOCOL = "quotepush.v1.json";
const RETRYABLE = new Set([1001, 1006, 1012, 4008, 4029]);
const LOCKED_OUT = new Set([4001, 4004]); // another token may help
const REFUSALS = 3; // connections in a row that end with 4001 before it is given up
const DEFAULT_MESSAGE_LIMIT = 16384; // bytes, until the welcome says otherwise
const WATCH_FACTOR = 3; // heartbeats missed before the link counts as dead
const encoder = new TextEncoder();
const byteLength = (text) => encoder.encode(text).length;

/**
 * @typedef {object} Quote One update; frozen (its `data` is shared between callbacks: do not change it).
 * @property {string} symbol
 * @property {number} n count of this symbol's updates within `epoch`, from 1
 * @property {number} t the daemon's receive time, ms since 1970
 * @property {*} data the publisher's payload
 * @property {boolean} snapshot true for the last known quote sent on subscribing
 * @property {number} merged updates merged into this one (0 for snapshots and the first update)
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
  #openedAt = 0; #heardAt = 0; #attempt = 0; #retry = null; #conn = ""; #epoch = ""; #link = 0;
  #feed = null; #fresh = null;
  #limit = DEFAULT_MESSAGE_LIMIT; #nextId = 1; #flushing = false; #retryFlush = null;
  #why = "connect"; // what a token is needed for
  #asking = null; // marks the pending call of the token function
  #askTimer = null; #askAttempt = 0; // its next call
  #offer = ""; // a token that came while there was no connection to show it on
  #renewing = false; // the state is "waiting" for nothing but a token
  #refusals = 0; #blame = ""; // 4001s in a row; what the server found wrong with the last token
  #held = []; // requests made while authenticating
  #entries = new Map(); // symbol -> {subs: Set, last: Quote|null, n, link: of which connection}
  #told = new Set(); // the symbols this connection asked the server for
  #dirty = new Set(); // the symbols to compare with #told at the next flush
  #pending = new Map(); // request id -> {resolve, reject}
  #listeners = new Map(); // event name -> Set of functions

  /**
   * Connects at once.
   * @param {string} [url] ws: or wss: address; default: the page's own host
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
   * @param {{setTimeout, clearTimeout, now}} [options.timers] clock to use instead of the global one
   * @param {function(): number} [options.random] instead of `Math.random`
   * @param {function(*)} [options.report] receives exceptions of callbacks; default `console.error`
   * @param {number} [options.backoff=500] first bound of the reconnect delay, ms
   * @param {number} [options.backoffMax=30000] last bound of the reconnect delay, ms
   * @param {number} [options.stableAfter=10000] ms open after which the backoff starts anew
   * @param {number} [options.connectTimeout=15000] ms to wait for the welcome
   */
  constructor(url, options = {}) {
    this.#url = url ?? `${location.protocol === "https:" ? "wss:" : "ws:"}//${location.host}/`;
    this.#options = {
      parse: JSON.parse, random: Math.random, report: (error) => console.error(error),
      WebSocket: globalThis.WebSocket, backoff: 500, backoffMax: 30000, stableAfter: 10000,
      connectTimeout: 15000, ...options,
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

  /** Connects now if the state is "waiting" or "closed"; else does nothing. */
  open() {
    if (this.#state === "closed") this.#refusals = 0;
    if (this.#state === "waiting" || this.#state === "closed") this.#connect();
  }

  /** Closes for good; subscriptions are kept for a later `open()`. */
  close() {
    if (this.#state === "closed") return;
    this.#detach("closed by the client");
    this.#end(1000, "closed by the client");
  }

  /**
   * Calls `callback` with each quote of the symbols. The server hears of a symbol only with its first
   * callback; a later callback gets the last known quote at once, marked as a snapshot.
   * @param {string|string[]} symbols
   * @param {function(Quote)} callback
   * @returns {function()} unsubscribes this callback
   */
  subscribe(symbols, callback) {
    const sub = {callback, seen: new Set(), live: true};
    const own = new Set(typeof symbols === "string" ? [symbols] : symbols);
    for (const symbol of own) {
      let entry = this.#entries.get(symbol);
      if (!entry) this.#entries.set(symbol, entry = {subs: new Set(), last: null, n: 0, link: 0});
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
   * Listens to an event; each listener gets one object:
   * - "state" {state, ...}: "waiting" has delay (ms), attempt, code, reason; "closed" has code,
   *   reason. After 4001 and 4004 it goes on "waiting" until there is a token, however long that is
   * - "welcome", "heartbeat", "bye": the server's event
   * - "authenticated" {user, expires, delay}: a token was taken. It ends at `expires`, ms since 1970,
   *   and brings quotes that are `delay` seconds late; each is undefined where there is none
   * - "expiring" {in}: the token ends in so many ms; a token function is called soon
   * - "denied" {symbol, code, msg}: the token does not allow this symbol, or no longer; told as
   *   "error" too. Its callbacks stay, and it is tried again after the next "authenticated"
   * - "feed" {state}: the daemon's source became "up" or "down" (told on change)
   * - "gap" {symbol, reason: "feed"|"link"}: updates of this symbol may have been lost, before they
   *   reached the daemon, or while there was no connection; the last known quote follows
   * - "stale" {reason: "link"|"feed"|"quiet"}, "fresh" {}: quotes stopped, or began again, to be
   *   current; "quiet": the feed is up, and nothing has come for longer than the daemon allows
   * - "quiet" {symbols}, "lively" {symbols}: these have had no quote for longer than the daemon
   *   allows, or have one again
   * - "error" {code, msg, symbol?, id?}: an error event, or one symbol's refusal; code 0: bad message
   * - "raw" {direction: "in"|"out", text}: every message as text, with "…" for tokens
   * @returns {function()} stops listening
   */
  on(event, fn) {
    if (!this.#listeners.has(event)) this.#listeners.set(event, new Set());
    this.#listeners.get(event).add(fn);
    return () => this.#listeners.get(event).delete(fn);
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
    const socket = this.#socket = new this.#options.WebSocket(this.#url, [PROTOCOL]);
    this.#opened = this.#renewing = false;
    this.#openedAt = Infinity;
    this.#retry = null;
    this.#blame = "";
    if (this.#why === "expiring") this.#why = "connect";
    this.#timer = this.#clock.setTimeout(() => this.#lost(1006, "no welcome in time"),
      this.#options.connectTimeout);
    socket.onopen = () => { this.#opened = true; };
    socket.onmessage = (message) => this.#receive(socket, message.data);
    socket.onerror = () => {}; // a close event follows
    socket.onclose = ({code, reason}) => this.#lost(this.#opened ? code : 1006, reason);
    this.#setState("connecting", {});
  }

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
    if (code === 4001) {
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
    this.#timer = this.#clock.setTimeout(() => {
      if (!renew || this.#offer) return this.#connect();
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
    this.#setState("closed", {code, reason});
  }

  /** Checks on a timer instead of re-arming one with every message: cheap at thousands a second. */
  #watch(limit, wait = limit) {
    this.#timer = this.#clock.setTimeout(() => {
      const left = limit - (this.#clock.now() - this.#heardAt);
      if (left > 0) return this.#watch(limit, left);
      this.#detach("no heartbeat");
      if (!this.#socket && this.#welcomed) this.#connect();
    }, wait);
  }

  #receive(socket, text) {
    this.#heardAt = this.#clock.now();
    if (this.#listeners.get("raw")?.size) this.#emit("raw", {direction: "in", text});
    let events;
    try {
      events = this.#options.parse(text);
      if (!Array.isArray(events)) throw new TypeError("not an array of events");
    } catch (error) {
      return this.#emit("error", {code: 0, msg: `bad message: ${error.message}`});
    }
    for (const event of events) {
      if (this.#socket !== socket) return; // a callback closed the connection
      if (event !== null && typeof event === "object") this.#handle(event);
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
      case "gap": return this.#emit("gap", {symbol: event.s, reason: "feed"});
      case "stale":
      case "fresh": return this.#setQuiet(event.ev === "stale", event);
      case "bye":
        if (event.retry >= 0) this.#retry = Number(event.retry);
        return this.#emit("bye", event);
      case "error":
        if (event.code === 401 || event.code === 402 || event.code === 404) this.#blame = event.msg;
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
        // A new subscription starts a new count: what came between two of them was not merged.
        for (const symbol of event.symbols ?? []) {
          const entry = this.#entries.get(symbol);
          if (!entry) continue;
          entry.n = 0;
          // What was published while there was no connection never comes.
          const missed = entry.last !== null && entry.link !== this.#link;
          entry.link = this.#link;
          if (missed) this.#emit("gap", {symbol, reason: "link"});
        }
        this.#refused(event);
    }
    if (event.id !== undefined) this.#settle(event.id)?.resolve(event);
  }

  #refused({id, errors}) {
    for (const [symbol, {code, msg}] of Object.entries(errors ?? {})) {
      this.#told.delete(symbol);
      const entry = this.#entries.get(symbol);
      if (entry) entry.last = null; // nothing keeps it current
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
    for (const entry of this.#entries.values()) entry.n = 0;
    if (event.hb > 0) this.#watch(WATCH_FACTOR * event.hb);
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
    if (this.#renewing) this.#connect();
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
        return this.#connect();
      }
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
    const merged = !snapshot && entry.n > 0 ? Math.max(0, event.n - entry.n - 1) : 0;
    entry.n = event.n;
    entry.last = Object.freeze({symbol: event.s, n: event.n, t: event.t, data: event.d, snapshot,
      merged, epoch: this.#epoch});
    for (const sub of [...entry.subs]) this.#deliver(sub, entry.last);
  }

  #replay(sub, entry) {
    if (!entry.last || sub.seen.has(entry.last.symbol)) return; // a newer one came first
    this.#deliver(sub, Object.freeze({...entry.last, snapshot: true, merged: 0}));
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
    for (const fn of [...this.#listeners.get(event) ?? []]) this.#guard(fn, detail);
  }

  #guard(fn, argument) {
    try {
      fn(argument);
    } catch (error) {
      this.#options.report(error);
    }
  }
}
