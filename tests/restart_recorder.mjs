// What a client of quotepush.js is given while its daemon is restarted, written down so that
// restarts.py can tell whether each hole was announced. Runs in Node and in Chromium.
//
// The publisher's payloads are {"c": 1}, {"c": 2} and so on for each symbol. A symbol's trail has, in
// order: ["gap", reason]; ["snapshot", c, gap]; ["quote", c, merged, gap]; and ["run", k] for k quotes
// that each come next after the one before, with nothing merged and no gap.

export class Recorder {
  constructor(Quotepush, { name, url, symbols, options }) {
    Object.assign(this, { name, symbols, trails: {}, states: [], outages: [], faults: [], told: {} });
    this.newest = new Map(); // the last number of each symbol that came live
    this.lost = null; // when the connection was, until there are quotes again
    for (const symbol of symbols) this.trails[symbol] = [];
    this.q = new Quotepush(url, { ...options, report: (error) => this.faults.push(String(error)) });
    this.q.on("gap", ({ symbol, reason }) => this.trails[symbol].push(["gap", reason]));
    this.q.on("error", (error) => this.faults.push(JSON.stringify(error)));
    for (const event of ["stale", "fresh"]) {
      this.q.on(event, ({ reason }) => {
        const what = reason ? `${event} ${reason}` : event;
        this.told[what] = (this.told[what] ?? 0) + 1;
      });
    }
    this.q.on("state", ({ state, code }) => {
      if (this.states.at(-1)?.[0] === "open") this.lost = Date.now();
      this.states.push([state, code ?? null]);
    });
    this.q.subscribe(symbols, (quote) => this.take(quote));
  }

  take({ symbol, data: { c }, merged, snapshot, gap }) {
    const trail = this.trails[symbol];
    if (snapshot) {
      trail.push(["snapshot", c, gap]);
      return;
    }
    const next = c === this.newest.get(symbol) + 1 && merged === 0 && !gap;
    const last = trail.at(-1);
    if (next && last[0] === "run") last[1] += 1;
    else if (next && last[0] === "quote") trail.push(["run", 1]);
    else trail.push(["quote", c, merged, gap]);
    this.newest.set(symbol, c);
    if (this.lost !== null) {
      this.outages.push([this.lost, Date.now()]);
      this.lost = null;
    }
  }

  /** Whether it is open and has these numbers of its symbols, or newer ones. */
  has(wanted) {
    return this.q.state === "open"
      && this.symbols.every((symbol) => this.newest.get(symbol) >= wanted[symbol]);
  }

  report() {
    this.q.close();
    const { name, trails, states, outages, faults, told } = this;
    return { name, trails, states, outages, faults, told };
  }
}
