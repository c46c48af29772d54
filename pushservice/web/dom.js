/* Elements of the public page, and texts for them. Must not know: quotes, connections, or when
   anything is shown. */
import {ExactNumber} from "./quotepush.js";

const CELL_CHARS = 300;

export const $ = (id) => document.getElementById(id);
export const make = (tag, className = "", text = "") => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
};
// Writing equal text would still cost a layout.
export const setText = (element, text) => { if (element.textContent !== text) element.textContent = text; };
export const clock = (ms) => {
  const date = new Date(ms);
  return [date.getHours(), date.getMinutes(), date.getSeconds()]
    .map((part) => String(part).padStart(2, "0")).join(":");
};
export const show = (value) => {
  if (value === undefined || value === null) return "";
  const plain = typeof value !== "object" || value instanceof ExactNumber;
  const text = plain ? String(value) : JSON.stringify(value);
  return text.length > CELL_CHARS ? `${text.slice(0, CELL_CHARS)}…` : text;
};
