/* The panel of raw frames: the last messages as they crossed the wire.
   Must not know: what the messages mean, beyond telling quotes from the rest. */
import {$, clock, make, setText} from "./dom.js";

const FRAMES = 50;
// Faster than this nobody reads.
const INTERVAL_MS = 400;

/** Fill the panel from the client `q`. */
export function showRawFrames(q) {
  // Two rings, since a busy market would push the other frames out at once.
  const all = [], control = [];
  let paused = false, scheduled = false, shownAt = 0;

  const keep = (ring, frame) => {
    ring.unshift(frame);
    if (ring.length > FRAMES) ring.pop();
  };
  const item = ({direction, text, at}) => {
    const li = make("li", direction);
    const way = make("span", "way", direction === "in" ? "↓" : "↑");
    way.title = direction === "in" ? "from the server" : "to the server";
    li.append(way, make("time", "", clock(at)), make("code", "", text));
    return li;
  };
  const render = () => {
    shownAt = performance.now();
    $("frames").replaceChildren(...($("control").checked ? control : all).map((frame) => {
      frame.item ??= item(frame);
      return frame.item;
    }));
  };
  const renderIfDue = () => {
    scheduled = false;
    if (paused || !$("panel").open) return; // what was shown at the pause stays
    if (performance.now() - shownAt < INTERVAL_MS) return schedule();
    render();
  };
  const schedule = () => {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(renderIfDue);
  };

  q.on("raw", ({direction, text}) => {
    if (paused) return;
    const frame = {direction, text, at: Date.now()};
    keep(all, frame);
    if (!/^\[\{"ev":"(quote|snapshot)"/.test(text)) keep(control, frame);
    if ($("panel").open) schedule();
  });
  $("panel").addEventListener("toggle", render);
  $("control").addEventListener("change", render);
  $("pause").addEventListener("click", () => {
    paused = !paused;
    $("pause").setAttribute("aria-pressed", String(paused));
    setText($("pause"), paused ? "Resume" : "Pause");
    render(); // at once, so that nothing changes after the pause
  });
}
