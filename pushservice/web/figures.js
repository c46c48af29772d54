/* The arithmetic of the operator's page: what two answers of /status mean, and how numbers are written.
 *
 * Must not know: the document, the network, or what time it is. Times are milliseconds unless a name
 * says seconds; null stands for what is not known, and stays null through all of it.
 */

/** How much of the past is shown. */
export const SPAN = 300_000;
/** Answers further apart than this have a gap between them: the page was hidden, or nobody answered. */
export const GAP = 3_500;
/** Without an answer for so long, what is shown is no longer true. */
export const SILENCE = 3_000;
/** Seconds without a word from a worker, which has one every second, from which on it is not counted on. */
const WORKER_SILENCE = 5;
/** Over so long a worker's share of a core is taken. */
const CPU_OVER = 4_500;
/** Days before the end of a certificate from which on it is warned of, and from which on it is urgent. */
export const DAYS_LOW = 14, DAYS_URGENT = 3;

const known = (value) => typeof value === "number" && Number.isFinite(value);
const measured = (value) => (known(value) ? value : null);

/* -- what happened between two answers ------------------------------------------------------------ */

/** By how much a counter grew; null where it is not known, or shrank because it began anew. */
export function increase(before, now) {
  return known(before) && known(now) && now >= before ? now - before : null;
}

/** What a histogram gained, `{bounds, counts}`; null where it began anew or has other buckets. */
export function histogramIncrease(before, now) {
  if (!before || !now || before.bounds.length !== now.bounds.length) return null;
  if (now.bounds.some((bound, at) => bound !== before.bounds[at])) return null;
  const counts = now.counts.map((count, at) => increase(before.counts[at], count));
  return counts.includes(null) ? null : {bounds: now.bounds, counts};
}

/**
 * The value below which `share` (0 to 1) of the observations are, evenly spread inside their bucket.
 * What is beyond the last bound counts as that bound; null without observations.
 */
export function percentile(histogram, share) {
  if (!histogram) return null;
  const {bounds, counts} = histogram;
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (total === 0) return null;
  const rank = share * total;
  let below = 0;
  for (let at = 0; at < bounds.length; at++) {
    if (below + counts[at] >= rank && counts[at] > 0) {
      const from = at === 0 ? Math.min(0, bounds[0]) : bounds[at - 1];
      return from + (bounds[at] - from) * ((rank - below) / counts[at]);
    }
    below += counts[at];
  }
  return bounds[bounds.length - 1];
}

/** Whether the answer `now` is of another run of the daemon than the one `before`. */
export function restarted(before, now) {
  return before.pid !== now.pid || increase(before.uptime, now.uptime) === null;
}

const RATES = {quotes: "quotes_in", events: "events_out", bytes: "bytes_out", merged: "merged"};
// Each worker gets all quotes: those of all together would be counted several times.
const OF_ONE = new Set(["quotes"]);
const SHARES = {p50: 0.5, p90: 0.9, p99: 0.99};
const LATENCIES = {
  receive: "receive_to_write_seconds", publish: "publish_to_write_seconds", reactor: "reactor_delay_seconds",
};

/** What a worker of the answer `before` said; null where it was not there. */
function earlierOf({number, pid}, before) {
  return before.workers?.find((each) => each.number === number && each.pid === pid) ?? null;
}

/**
 * By how much a counter of each worker grew a second, by the worker's own clock: workers say how they
 * stand once a second, each at a beat of its own. Null of one that is about to say it; none of those
 * that have just come, or that have long said nothing.
 */
function ratesOf(counter, before, now) {
  const workers = now.workers ?? [];
  const newest = Math.max(...workers.map((worker) => worker.as_of));
  const rates = [];
  for (const worker of workers) {
    const earlier = earlierOf(worker, before);
    if (earlier === null || newest - worker.as_of > GAP) continue;
    const grown = increase(earlier.counters?.[counter], worker.counters?.[counter]);
    const seconds = (worker.as_of - earlier.as_of) / 1000;
    rates.push(grown === null || !(seconds > 0) ? null : grown / seconds);
  }
  return rates;
}

/**
 * A point of the charts: levels of the answer `now` and, where there is one `before` of the same run,
 * what happened in between, a second; `anew` where it is another run. Both are `{at, status}`.
 */
export function pointOf(before, now) {
  const totals = now.status.totals ?? {};
  const point = {at: now.at, clients: measured(totals.clients), behind: measured(totals.behind)};
  const anew = Boolean(before) && restarted(before.status, now.status);
  const same = before && !anew && now.at - before.at <= GAP;
  point.anew = anew;
  for (const [name, counter] of Object.entries(RATES)) {
    const rates = same ? ratesOf(counter, before.status, now.status) : [];
    const told = rates.filter(known);
    if (told.length === 0) point[name] = null;
    else if (OF_ONE.has(name)) point[name] = Math.max(...told);
    else point[name] = told.length < rates.length ? null : told.reduce((sum, rate) => sum + rate, 0);
  }
  const earlier = same ? before.status.totals ?? {} : {};
  for (const [name, measure] of Object.entries(LATENCIES)) {
    const gained = same ? histogramIncrease(earlier.measures?.[measure], totals.measures?.[measure]) : null;
    for (const [label, share] of Object.entries(SHARES)) point[`${name}.${label}`] = percentile(gained, share);
  }
  return point;
}

/** The points of the last five minutes, oldest first, and the counters as they were back then. */
export class History {
  points = [];
  #answers = [];

  /** Takes an answer `{at, status}` in. */
  take(answer) {
    const last = this.#answers.at(-1);
    if (last && answer.at <= last.at) {
      // The clock was set back: what is kept has no place on the axis any more.
      this.points = [];
      this.#answers = [];
    }
    // Over two seconds each worker has said something new.
    const even = this.#answers.findLast((each) => answer.at - each.at >= 1_500);
    this.points.push(pointOf(even && answer.at - even.at <= GAP ? even : last, answer));
    if (this.points.at(-1).anew) this.#answers = [];
    this.#answers.push(answer);
    const from = answer.at - SPAN;
    while (this.points[0].at < from) this.points.shift();
    while (this.#answers[0].at < from) this.#answers.shift();
  }

  get last() { return this.#answers.at(-1) ?? null; }

  /** The value of a series now: the last that is known of this run, and not for long. */
  newest(name) {
    for (let at = this.points.length - 1; at >= 0; at--) {
      const point = this.points[at];
      if (this.points.at(-1).at - point.at > GAP) break;
      if (known(point[name])) return point[name];
      if (point.anew) break;
    }
    return null;
  }

  /** The point nearest to `at`; null where none is within a second and a half. */
  near(at) {
    let found = null;
    for (const point of this.points) {
      const distance = Math.abs(point.at - at);
      if (distance <= 1_500 && (found === null || distance < Math.abs(found.at - at))) found = point;
    }
    return found;
  }

  /** By how much a counter grew within what is kept of this run of the daemon. */
  grown(counter) {
    const first = this.#answers[0]?.status.totals?.counters?.[counter] ?? 0;
    return increase(first, this.last?.status.totals?.counters?.[counter]);
  }

  /** The share of a core that a worker of the last answer used over some seconds; null where not known. */
  cpu(worker) {
    const then = this.last && this.#answers.findLast((each) => this.last.at - each.at >= CPU_OVER);
    const before = then && earlierOf(worker, then.status);
    const used = increase(before?.process?.cpu, worker.process?.cpu);
    const seconds = (worker.as_of - before?.as_of) / 1000;
    return used === null || !(seconds > 0) ? null : used / seconds;
  }

  /**
   * Unbroken stretches of one series, `[[{at, value}, ...], ...]`: broken where nothing is known for a
   * while, and by another run of the daemon.
   */
  stretches(name) {
    const found = [];
    let previous = -Infinity;
    for (const {at, anew, [name]: value} of this.points) {
      if (anew) previous = -Infinity;
      if (!known(value)) continue;
      if (at - previous > GAP) found.push([]);
      found.at(-1).push({at, value});
      previous = at;
    }
    return found;
  }
}

/* -- axes ----------------------------------------------------------------------------------------- */

/** Ticks from 0 to at least `most`: up to four steps of 1, 2 or 5 times a power of ten. */
export function linearTicks(most, whole = false) {
  const reach = most > 0 ? most : 1;
  let step = 10 ** Math.floor(Math.log10(reach / 2));
  step *= [1, 2, 5].find((factor) => reach / (step * factor) <= 4);
  if (whole) step = Math.max(1, step);
  const count = Math.max(1, Math.ceil(reach / step - 1e-9));
  // Multiplied, since 0.1 added up is not 0.3.
  return Array.from({length: count + 1}, (_, at) => Number((at * step).toPrecision(12)));
}

/** Powers of ten from at most `least` to at least `most`, two of them at least. */
export function decadeTicks(least, most) {
  const first = Math.floor(Math.log10(least) + 1e-9);
  const last = Math.max(first + 1, Math.ceil(Math.log10(most) - 1e-9));
  return Array.from({length: last - first + 1}, (_, at) => Number(`1e${first + at}`));
}

/* -- how numbers are written ---------------------------------------------------------------------- */

/** What is written for what is not known. */
export const NOTHING = "–";
const THIN = "\u202f"; // a narrow space that doesn't break
const PREFIXES = ["", "k", "M", "G", "T"];

// Three digits that count; whole numbers that are written in full stay whole.
const digits = (number, full = false) => {
  const size = Math.abs(number);
  if (full && Number.isInteger(number)) return String(number);
  const places = size < 9.995 ? 2 : size < 99.95 ? 1 : 0;
  return number.toFixed(places);
};

function scaled(number, write) {
  let power = 0;
  // 999.6 would be written as 1000.
  while (Math.abs(number) >= 999.5 && power < PREFIXES.length - 1) { number /= 1000; power += 1; }
  return [write(number, power === 0), PREFIXES[power]];
}

/** A whole number in full: 1,234,567. */
export function writeCount(number) {
  return known(number) ? Math.round(number).toString().replace(/\B(?=(\d{3})+$)/g, ",") : NOTHING;
}

/** A number of any size in a few characters: 0.25, 12.3, 870, 1.23 k, 4.56 M. */
export function writeShort(number) {
  if (!known(number)) return NOTHING;
  const [text, prefix] = scaled(number, digits);
  return prefix ? `${text}${THIN}${prefix}` : text;
}

/** A rate in a column: 0.3, 80.0, 870, 1.23 k. */
export function writeRate(number) {
  return known(number) && number < 99.95 ? number.toFixed(1) : writeShort(number);
}

/** A share as a percentage: 0 %, 0.4 %, 12 %. */
export function writeShare(share) {
  if (!known(share)) return NOTHING;
  const percent = share * 100;
  return `${percent > 0 && percent < 0.95 ? Math.max(0.1, percent).toFixed(1) : Math.round(percent)}${THIN}%`;
}

/** A share as a whole percentage, for a narrow column: 0 %, 12 %. */
export function writePercent(share) {
  return known(share) ? `${Math.round(share * 100)}${THIN}%` : NOTHING;
}

/** Bytes: 512 B, 12.3 kB. */
export function writeBytes(number) {
  if (!known(number)) return NOTHING;
  const [text, prefix] = scaled(number, (few, full) => (full ? String(Math.round(few)) : digits(few)));
  return `${text}${THIN}${prefix}B`;
}

/** Seconds of a latency: 85 µs, 1.25 ms, 3.1 s. */
export function writeLatency(seconds) {
  if (!known(seconds)) return NOTHING;
  if (seconds === 0) return `0${THIN}s`;
  if (seconds < 0.0009995) return `${Math.round(seconds * 1e6)}${THIN}µs`;
  if (seconds < 0.9995) return `${digits(seconds * 1000)}${THIN}ms`;
  return `${digits(seconds)}${THIN}s`;
}

const UNITS = [[86_400, "d"], [3_600, "h"], [60, "min"], [1, "s"]];

/** Seconds that something lasts, by its two largest units: 45 s, 3 min 20 s, 5 d 3 h. */
export function writeDuration(seconds) {
  if (!known(seconds)) return NOTHING;
  const whole = Math.max(0, Math.floor(seconds));
  const largest = UNITS.findIndex(([size]) => whole >= size);
  if (largest === -1) return `0${THIN}s`;
  let rest = whole;
  const parts = [];
  for (const [size, unit] of UNITS.slice(largest, largest + 2)) {
    const count = Math.floor(rest / size);
    rest -= count * size;
    if (count) parts.push(`${count}${THIN}${unit}`);
  }
  return parts.join(" ");
}

/** Milliseconds since something: 12 ms, 3.4 s, then as a duration. */
export function writeAge(ms) {
  if (!known(ms)) return NOTHING;
  if (ms < 999.5) return `${Math.round(Math.max(0, ms))}${THIN}ms`;
  return ms < 9_950 ? `${(ms / 1000).toFixed(1)}${THIN}s` : writeDuration(ms / 1000);
}

/** A label of an axis: as short as its value lets it be. */
export function writeTick(value, write) {
  // 1.50 k and 20.0 k are exact as 1.5 k and 20 k.
  return write(value).replace(/(\.\d*?)0+(?=\D|$)/, "$1").replace(/\.(?=\D|$)/, "");
}

/** A time of day. `date` says it in the reader's zone. */
export function writeClock(date) {
  return [date.getHours(), date.getMinutes(), date.getSeconds()]
    .map((part) => String(part).padStart(2, "0")).join(":");
}

/* -- what it all comes to ------------------------------------------------------------------------- */

/**
 * The headline: `{state, words}`, the state one of waiting, ready, fault, silent.
 * `silence` says why there is no answer; null while there are answers.
 */
export function verdict(status, silence) {
  if (silence !== null) return {state: "silent", words: "No answer from the daemon"};
  if (status === null) return {state: "waiting", words: "Asking the daemon…"};
  const faults = status.faults ?? [];
  if (faults.length === 0) return {state: "ready", words: "Ready"};
  return {state: "fault", words: `Not ready: ${faults.join("; ")}`};
}

/** For how many seconds a worker has said nothing; null where it is not for long. */
export function silentFor({silent}) {
  return known(silent) && silent > WORKER_SILENCE ? silent : null;
}

/** Words beside the headline that say what needs somebody soon: `[{urgent, words}]`. */
export function warnings(status) {
  const found = [];
  for (const worker of status.workers ?? []) {
    const silent = silentFor(worker);
    if (silent !== null) {
      found.push({urgent: true, words: `worker ${worker.number} has said nothing for ${writeDuration(silent)}`});
    } else if (worker.draining) found.push({urgent: false, words: `worker ${worker.number} is draining`});
  }
  for (const {names, file, days} of status.certificates ?? []) {
    if (!known(days) || days >= DAYS_LOW) continue;
    const whom = names?.[0] ?? file;
    const words = days < 0 ? `the certificate of ${whom} has ended`
      : `the certificate of ${whom} ends in ${days} ${days === 1 ? "day" : "days"}`;
    found.push({urgent: days < DAYS_URGENT, words});
  }
  return found;
}

const TROUBLE = /refus|drop|fail|loss|lost|abort|closed_|error|shut_out|missing|too_|not_json|skipped|stall|evict/;

/** The counters that tell of trouble and are not zero: `[name, total]`, as `a_b_c`. */
export function troubles(counters) {
  return Object.entries(counters ?? {}).filter(([name, total]) => TROUBLE.test(name) && total > 0);
}

/** The clients of an answer of /clients that are behind, or were so that quotes were merged for them. */
export function slowOnes(clients) {
  return clients.filter(({behind, merged}) => known(behind) || merged > 0);
}
