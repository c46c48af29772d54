// Clients of quotepush.js for test_reload.py, with Node's `ws`. argv is the directory that has
// node_modules, and the path of quotepush.js. The first line of standard input is
// {url, ca, clients: [[symbol, ...], ...]}; then come commands, one a line:
//
//     {"subscribe": [symbol, ...]}    the first client subscribes these too
//     {"await": {symbol: c, ...}}     until each client has these numbers of its symbols
//     {"end": true}                   close, and report
//
// Prints "open" once every client is, for each command what came of it, and at the end the report.
// Payloads are {"c": 1}, {"c": 2} and so on.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { readFileSync } from "node:fs";

const WebSocket = createRequire(`${process.argv[2]}/`)("ws");
const { Quotepush } = await import(process.argv[3]);

const say = (what) => console.log(JSON.stringify(what));
const refused = [];

class Client {
  quotes = 0; holes = 0; gaps = 0; merged = 0; connects = 0; unannounced = []; byes = []; closes = [];
  faults = []; last = new Map(); told = new Set(); slowest = 0; opened = null;

  constructor(url, ca, symbols) {
    this.symbols = symbols;
    class Socket extends WebSocket {
      constructor(to, protocols) {
        super(to, protocols, { ca });
        this.on("error", (error) => refused.push(String(error.message || error.code)));
      }
    }
    this.q = new Quotepush(url, { WebSocket: Socket, report: (error) => this.faults.push(String(error)) });
    this.q.on("gap", ({ symbol }) => { this.gaps += 1; this.told.add(symbol); });
    this.q.on("error", (error) => this.faults.push(JSON.stringify(error)));
    this.q.on("bye", (bye) => this.byes.push({ ...bye, at: performance.now() }));
    this.q.on("feed", ({ state }) => { if (state === "down") this.tellAll(); });
    this.q.on("state", ({ state, code }) => {
      if (state === "waiting" || state === "closed") this.closes.push(code);
      if (state === "open") { this.connects += 1; this.opened = performance.now(); }
    });
    // A lost link is announced by this, with no `gap` for each symbol.
    this.q.on("stale", ({ reason }) => { if (reason === "link") this.tellAll(); });
    this.q.subscribe(symbols, (quote) => this.take(quote));
  }

  tellAll() { for (const symbol of this.last.keys()) this.told.add(symbol); }

  take(quote) {
    if (this.opened !== null) {
      this.slowest = Math.max(this.slowest, performance.now() - this.opened);
      this.opened = null;
    }
    if (!quote.snapshot) this.quotes += 1;
    this.merged += quote.merged;
    const last = this.last.get(quote.symbol);
    if (last !== undefined) {
      const missing = quote.data.c - last - 1 - quote.merged;
      if (missing > 0) {
        this.holes += 1;
        if (!this.told.has(quote.symbol)) this.unannounced.push({ ...quote, last });
      }
    }
    this.told.delete(quote.symbol);
    this.last.set(quote.symbol, quote.data.c);
  }

  report() {
    const { quotes, holes, gaps, merged, connects, unannounced, byes, closes, faults, slowest } = this;
    return { quotes, holes, gaps, merged, connects, unannounced, byes, closes, faults, slowest };
  }
}

const until = async (condition) => {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 10));
};

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const next = async () => JSON.parse((await lines.next()).value);
const { url, ca, clients: wanted } = await next();
const trusted = ca && readFileSync(ca);
const clients = wanted.map((symbols) => new Client(url, trusted, symbols));
await until(() => clients.every(({ q }) => q.state === "open"));
say("open");
for (;;) {
  const command = await next();
  if (command.end) break;
  if (command.subscribe) {
    const got = {};
    clients[0].q.subscribe(command.subscribe, (quote) => { got[quote.symbol] = quote; });
    await until(() => command.subscribe.every((symbol) => symbol in got));
    say(got);
  } else {
    const newest = command.await;
    await until(() => clients.every(({ symbols, last }) =>
      symbols.every((symbol) => last.get(symbol) === newest[symbol])));
    say("current");
  }
}
for (const { q } of clients) q.close();
say({ refused, clients: clients.map((client) => client.report()) });
process.exit(0);
