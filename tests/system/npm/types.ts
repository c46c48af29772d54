// What the types of the package must allow, and, after @ts-expect-error, must not.
import WebSocketOfWs from "ws";
// @ts-expect-error there is no default export
import quotepush from "quotepush";
import {ExactNumber, Quotepush, QuotepushError, parseExact} from "quotepush";
import type {
  Quote, QuotepushEvents, QuotepushOptions, State, StateEvent, TokenReason,
} from "quotepush";

interface Tick {
  last: number;
  bid?: number;
}

const controller = new AbortController();

// -- making one --------------------------------------------------------------------------------------

const quotes = new Quotepush<Tick>("wss://localhost:8008/");
new Quotepush();
new Quotepush(new URL("wss://localhost:8008/"));
new Quotepush("wss://localhost/", {WebSocket: WebSocketOfWs, parse: parseExact, interval: 250});
new Quotepush("wss://localhost/", {
  WebSocket: class extends WebSocketOfWs {
    constructor(url: string, protocols: string[]) {
      super(url, protocols, {ca: "PEM"});
    }
  },
});
new Quotepush("wss://localhost/", {WebSocket, page: null, token: "secret"});
new Quotepush("wss://localhost/", {page: window, token: (why) => `for ${why satisfies TokenReason}`});
new Quotepush("wss://localhost/", {token: async () => "later", interval: undefined});
const options: QuotepushOptions = {mode: "raw", snapshot: false, backoff: 100, backoffMax: 1000};
new Quotepush("wss://localhost/", options);
// @ts-expect-error no mode is called so
new Quotepush("wss://localhost/", {mode: "fast"});
// @ts-expect-error a number of ms
new Quotepush("wss://localhost/", {interval: "250"});
// @ts-expect-error no option is called so
new Quotepush("wss://localhost/", {intervall: 250});
// @ts-expect-error a token is text
new Quotepush("wss://localhost/", {token: () => 7});
// @ts-expect-error no address
new Quotepush(8008);
// @ts-expect-error no WebSocket
new Quotepush("wss://localhost/", {WebSocket: Map});

// -- quotes ------------------------------------------------------------------------------------------

const stop: () => void = quotes.subscribe(["AAPL", "600519.SH"], (quote) => {
  const last: number = quote.data.last;
  const {symbol, n, t, snapshot, merged, gap, epoch}: Quote<Tick> = quote;
  const texts: string[] = [symbol, epoch];
  const numbers: number[] = [n, t, merged, last];
  const flags: boolean[] = [snapshot, gap];
  console.log(texts, numbers, flags);
  // @ts-expect-error the payload has no such key
  quote.data.price;
  // @ts-expect-error a quote is frozen
  quote.n = 7;
  // @ts-expect-error it may be missing
  quote.data.bid.toFixed();
});
stop();
quotes.subscribe(new Set(["AAPL"]), () => {});
quotes.subscribe("AAPL", () => {});
// @ts-expect-error symbols are text
quotes.subscribe([7], () => {});
// @ts-expect-error a function is needed
quotes.subscribe("AAPL");
new Quotepush().subscribe("AAPL", ({data}) => {
  // @ts-expect-error what payloads are was not said
  data.last;
});
const known: Quote<Tick> | undefined = quotes.last("AAPL");
// @ts-expect-error it may be unknown
known.data;

async function read(): Promise<void> {
  for await (const {data} of quotes.stream("AAPL")) console.log(data.last);
  for await (const {data} of quotes.stream(["AAPL"], {signal: controller.signal})) {
    // @ts-expect-error the payload has no such key
    console.log(data.price);
  }
  // @ts-expect-error a stream has an end
  for (const quote of quotes.stream("AAPL")) console.log(quote);
}

// -- events ------------------------------------------------------------------------------------------

const off: () => void = quotes.on("gap", ({symbol, reason}) => {
  const known: "feed" | "link" = reason;
  console.log(symbol.toUpperCase(), known);
  // @ts-expect-error no reason of a gap
  if (reason === "quiet") return;
});
off();
quotes.on<"gap">("gap", (gap: {symbol: string}) => console.log(gap.symbol));
quotes.on("stale", ({reason}) => console.log(reason === "quiet"));
quotes.on("fresh", () => {});
quotes.on("heartbeat", ({age, merged}) => console.log((age ?? 0) + merged));
quotes.on("authenticated", ({expires}) => console.log(expires === undefined || new Date(expires)));
quotes.on("quiet", ({symbols}) => symbols.map((symbol) => symbol.length));
quotes.on("error", ({code, symbol = "all"}) => console.log(code.toFixed(), symbol.length));
quotes.on("raw", ({direction, text}) => console.log(direction === "in", text.length));
quotes.on("state", (event) => {
  if (event.state === "waiting") console.log(event.delay.toFixed(), event.attempt);
  if (event.state === "closed") console.log(event.code, event.reason);
  if (event.state === "open") console.log(event.conn, event.epoch);
  // @ts-expect-error only "waiting" has it
  console.log(event.delay);
});
// @ts-expect-error no event is called so
quotes.on("quote", () => {});
// @ts-expect-error a gap has no such key
quotes.on("gap", ({symbols}) => console.log(symbols));
// @ts-expect-error expires may be unknown
quotes.on("authenticated", ({expires}) => new Date(expires));
function listen<Name extends keyof QuotepushEvents>(name: Name): Promise<QuotepushEvents[Name]> {
  return new Promise((resolve) => quotes.on(name, resolve));
}
listen("bye").then(({retry}) => console.log(retry));

// -- all else ----------------------------------------------------------------------------------------

const state: State = quotes.state;
const told: StateEvent = {state: "connecting"};
const current: boolean = quotes.fresh;
// @ts-expect-error it is not ours to say
quotes.state = "open";
quotes.open();
quotes.close();
quotes.ping().then((ms) => ms.toFixed());
quotes.list().then((symbols) => symbols.join());
quotes.request("subscribe", {symbols: ["AAPL"], interval: 250}).then(({ev}) => ev.length);
const fault = new QuotepushError(409, "not covered");
const base: Error = fault;
console.log(fault.code.toFixed(), fault.retry ?? 0, base.message);
const exact = new ExactNumber(10.5, "10.50");
console.log(exact.value + Number(exact), `${exact}`);
console.log(quotepush, state, told, current, read);
