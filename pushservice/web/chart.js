/* A line chart of the last minutes in SVG: its axes, its lines, its legend, and a cursor to read values.
 *
 * Must not know: where values come from. What it is given are points of figures.js. All text reaches
 * the document as textContent.
 */
import {SPAN, decadeTicks, linearTicks, writeClock, writeTick} from "./figures.js";

const SVG = "http://www.w3.org/2000/svg";
const TOP = 8, RIGHT = 6, BOTTOM = 20, LEFT = 52, HEIGHT = 148;
const MINUTES = [5, 4, 3, 2, 1, 0];

const setText = (element, text) => { if (element.textContent !== text) element.textContent = text; };

function html(tag, parent, className = "", text = "") {
  const element = parent.appendChild(document.createElement(tag));
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

function svg(tag, parent, attributes = {}) {
  const element = parent.appendChild(document.createElementNS(SVG, tag));
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** The moment that is read on all charts at once; null for the newest. */
export class Cursor {
  at = null;
  #changed;

  constructor(changed) { this.#changed = changed; }

  set(at) {
    if (this.at === at) return;
    this.at = at;
    this.#changed();
  }
}

/**
 * One chart in `parent`. `spec` is `{name, title, help, series: [[key, label], ...], write, log, whole}`:
 * `write` turns a value into text, `tick` one on the axis if that is otherwise, `log` asks for a
 * logarithmic axis, `whole` for ticks at whole numbers.
 */
export class Chart {
  #spec; #cursor; #svg; #grid; #lines; #dots; #cursorLine; #values; #time; #nothing;
  #history = null; #now = 0; #alive = false; #width = 0;

  constructor(parent, spec, cursor) {
    this.#spec = spec;
    this.#cursor = cursor;
    const figure = html("figure", parent, "card chart");
    figure.dataset.chart = spec.name;
    const caption = html("figcaption", figure);
    const title = html("span", caption, "title", spec.title);
    title.title = spec.help;
    this.#time = html("time", caption);
    this.#values = this.#legend(html("div", caption, "values"));
    this.#svg = svg("svg", figure, {role: "img", tabindex: "0", height: HEIGHT,
      "aria-label": `${spec.title}: ${spec.help}, over the last five minutes. Arrow keys read values.`});
    this.#grid = svg("g", this.#svg, {class: "grid", "aria-hidden": "true"});
    this.#nothing = svg("text", this.#svg, {class: "nothing", "text-anchor": "middle", y: HEIGHT / 2 - 4});
    this.#lines = spec.series.map((_, at) => ({
      area: spec.series.length === 1 ? svg("path", this.#svg, {class: "area"}) : null,
      line: svg("path", this.#svg, {class: `line series${at}`}),
    }));
    this.#cursorLine = svg("line", this.#svg, {class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM});
    this.#dots = spec.series.map((_, at) => svg("circle", this.#svg, {class: `dot series${at}`, r: 3.5}));
    this.#listen();
    new ResizeObserver(([entry]) => {
      this.#width = Math.round(entry.contentRect.width);
      this.#svg.setAttribute("viewBox", `0 0 ${this.#width} ${HEIGHT}`);
      this.render();
    }).observe(this.#svg);
  }

  /** Takes what there is to show; `now` is at the right edge. Not `alive`: nothing is true now. */
  show(history, now, alive) {
    this.#history = history;
    this.#now = now;
    this.#alive = alive;
    this.render();
  }

  /** Draws it as it stands. */
  render() {
    if (this.#history === null) return;
    this.#renderValues();
    if (this.#width <= LEFT + RIGHT) return;
    const drawn = this.#spec.series.map(([key]) => this.#history.stretches(key));
    const scale = this.#scale(drawn.flat(2).map(({value}) => value));
    this.#renderGrid(scale);
    const base = HEIGHT - BOTTOM;
    this.#lines.forEach(({area, line}, at) => {
      const runs = drawn[at].map((run) => run.map((point) => [this.#x(point.at), scale.y(point.value)]));
      line.setAttribute("d", runs.map(path).join(""));
      area?.setAttribute("d", runs.map((run) => (
        `${path(run)}L${run.at(-1)[0].toFixed(1)} ${base}L${run[0][0].toFixed(1)} ${base}Z`)).join(""));
    });
    setText(this.#nothing, drawn.flat().length ? "" : "nothing yet");
    this.#nothing.setAttribute("x", (LEFT + this.#width - RIGHT) / 2);
    this.#renderCursor(scale);
  }

  #legend(parent) {
    return this.#spec.series.map(([, label], at) => {
      const pair = html("span", parent, `value series${at}`);
      if (label) {
        svg("line", svg("svg", pair, {class: "swatch", viewBox: "0 0 18 4", "aria-hidden": "true"}),
          {class: `line series${at}`, x1: 1, x2: 17, y1: 2, y2: 2});
        html("span", pair, "label", label);
      }
      return html("b", pair, "", "–");
    });
  }

  #renderValues() {
    const {at: moment} = this.#cursor;
    const point = moment === null ? null : this.#history.near(moment);
    this.#spec.series.forEach(([key], at) => {
      const now = this.#alive ? this.#history.newest(key) : null;
      setText(this.#values[at], this.#spec.write(moment === null ? now : point?.[key] ?? null));
    });
    setText(this.#time, moment === null ? "" : writeClock(new Date(moment)));
  }

  #scale(values) {
    const {log, whole} = this.#spec;
    const most = values.reduce((a, b) => Math.max(a, b), 0);
    const height = HEIGHT - BOTTOM - TOP;
    if (!log) {
      const ticks = linearTicks(most, whole);
      return {ticks, y: (value) => TOP + height * (1 - value / ticks.at(-1))};
    }
    const least = values.reduce((a, b) => (b > 0 ? Math.min(a, b) : a), Infinity);
    const ticks = values.length && most > 0 ? decadeTicks(least, most) : decadeTicks(1e-4, 1e-2);
    const [low, high] = [Math.log10(ticks[0]), Math.log10(ticks.at(-1))];
    const share = (value) => (Math.log10(Math.max(value, ticks[0])) - low) / (high - low);
    return {ticks, y: (value) => TOP + height * (1 - share(value))};
  }

  #x(at) {
    return LEFT + (this.#width - LEFT - RIGHT) * (1 - (this.#now - at) / SPAN);
  }

  #renderGrid({ticks, y}) {
    const {write, tick: writeAxis = write} = this.#spec;
    const key = JSON.stringify([ticks, this.#width]);
    if (this.#grid.dataset.key === key) return;
    this.#grid.dataset.key = key;
    this.#grid.replaceChildren();
    for (const tick of ticks) {
      // On the pixel's middle: a line of one pixel stays one.
      const at = Math.round(y(tick)) + 0.5;
      svg("line", this.#grid, {x1: LEFT, x2: this.#width - RIGHT, y1: at, y2: at});
      const label = svg("text", this.#grid, {x: LEFT - 7, y: at + 3.5, "text-anchor": "end"});
      label.textContent = writeTick(tick, writeAxis);
    }
    const every = this.#width < 360 ? 2 : 1;
    for (const minutes of MINUTES.filter((minute) => minute % every === 0)) {
      const at = Math.round(this.#x(this.#now - minutes * 60_000)) + 0.5;
      svg("line", this.#grid, {class: "minute", x1: at, x2: at, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM + 4});
      const anchor = minutes === 0 ? "end" : "middle";
      svg("text", this.#grid, {x: minutes === 0 ? this.#width - RIGHT : at, y: HEIGHT - 4, "text-anchor": anchor})
        .textContent = minutes === 0 ? "now" : `−${minutes} min`;
    }
  }

  #renderCursor({y}) {
    const point = this.#cursor.at === null ? null : this.#history.near(this.#cursor.at);
    const x = point === null ? 0 : this.#x(point.at);
    this.#cursorLine.setAttribute("visibility", point === null ? "hidden" : "visible");
    this.#cursorLine.setAttribute("x1", x);
    this.#cursorLine.setAttribute("x2", x);
    this.#dots.forEach((dot, at) => {
      const value = point?.[this.#spec.series[at][0]] ?? null;
      dot.setAttribute("visibility", value === null ? "hidden" : "visible");
      if (value === null) return;
      dot.setAttribute("cx", x);
      dot.setAttribute("cy", y(value));
    });
  }

  #listen() {
    const read = (event) => {
      const {left} = this.#svg.getBoundingClientRect();
      const share = (event.clientX - left - LEFT) / (this.#width - LEFT - RIGHT);
      const at = this.#now - SPAN * (1 - Math.min(1, Math.max(0, share)));
      this.#cursor.set(this.#history?.near(at)?.at ?? at);
    };
    this.#svg.addEventListener("pointermove", read);
    this.#svg.addEventListener("pointerdown", read);
    this.#svg.addEventListener("pointerleave", (event) => {
      // A finger that is lifted leaves too: what it tapped stays to be read.
      if (event.pointerType !== "touch") this.#cursor.set(null);
    });
    this.#svg.addEventListener("blur", () => this.#cursor.set(null));
    this.#svg.addEventListener("keydown", (event) => {
      const step = {ArrowLeft: -1, ArrowRight: 1, PageUp: -30, PageDown: 30}[event.key];
      const points = this.#history?.points ?? [];
      if (event.key === "Escape") this.#cursor.set(null);
      if (!step || points.length === 0) return;
      event.preventDefault();
      const now = this.#cursor.at === null ? points.length - 1
        : points.indexOf(this.#history.near(this.#cursor.at));
      const next = now === -1 ? points.length - 1 : Math.min(points.length - 1, Math.max(0, now + step));
      this.#cursor.set(points[next].at);
    });
  }
}

function path(run) {
  const [[x, y]] = run;
  // A single point has no line, and is a dot by its round ends.
  if (run.length === 1) return `M${x.toFixed(1)} ${y.toFixed(1)}h.01`;
  return `M${run.map((point) => `${point[0].toFixed(1)} ${point[1].toFixed(1)}`).join("L")}`;
}
