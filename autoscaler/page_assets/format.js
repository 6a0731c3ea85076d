// Numbers and instants for people, and two helpers for making elements.

const NONE = "–";

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    else if (name === "style") for (const [key, item] of Object.entries(value)) node.style.setProperty(key, item);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function number(value) {
  if (value == null || Number.isNaN(value)) return NONE;
  if (typeof value === "string") return value;
  if (!Number.isFinite(value)) return "never";
  const size = Math.abs(value);
  if (Number.isInteger(value) || size >= 1000) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(3)));
}

function percent(value, digits = 1) {
  return value == null || Number.isNaN(value) ? NONE : `${(100 * value).toFixed(digits)} %`;
}

// Never rounded up to a hundred: 0.99999 is not everything.
function attainment(value) {
  if (value == null) return NONE;
  for (const digits of [2, 3, 4, 5]) {
    const text = (100 * value).toFixed(digits);
    if (value === 1 || Number(text) < 100) return `${text} %`;
  }
  return "< 100 %";
}

// A latency: milliseconds below one second.
function latency(seconds) {
  if (seconds == null || Number.isNaN(seconds)) return NONE;
  if (seconds === Infinity || seconds === "never") return "never";
  if (seconds === 0) return "0";
  if (seconds < 1) return `${Number((1000 * seconds).toPrecision(3))} ms`;
  return seconds < 100 ? `${Number(seconds.toPrecision(3))} s` : `${Math.round(seconds).toLocaleString("en-US")} s`;
}

function duration(seconds) {
  if (seconds < 0) return `-${duration(-seconds)}`;
  if (seconds < 60) return `${Number(seconds.toPrecision(3))} s`;
  let whole = Math.round(seconds);
  const parts = [];
  for (const [size, name] of [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]]) {
    if (whole >= size) parts.push(`${Math.floor(whole / size)} ${name}`);
    whole %= size;
  }
  return parts.slice(0, 2).join(" ");
}

const DAYS = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const two = (value) => String(value).padStart(2, "0");

// An instant: UTC where second 0 has a date, else time since the start.
function instant(seconds, origin) {
  if (origin == null) {
    const day = Math.floor(seconds / 86400), rest = Math.floor(seconds - 86400 * day);
    const clock = `${two(Math.floor(rest / 3600))}:${two(Math.floor(rest / 60) % 60)}:${two(rest % 60)}`;
    return `day ${day + 1}, ${clock}`;
  }
  const date = new Date(1000 * (origin + seconds));
  const clock = `${two(date.getUTCHours())}:${two(date.getUTCMinutes())}:${two(date.getUTCSeconds())}`;
  return `${DAYS[date.getUTCDay()]} ${date.getUTCDate()} ${MONTHS[date.getUTCMonth()]} ${clock} UTC`;
}

function tickLabel(seconds, step, origin) {
  const offset = origin == null ? 0 : origin;
  const date = new Date(1000 * (offset + seconds));
  const midnight = (offset + seconds) % 86400 === 0;
  if (step >= 86400 || midnight) {
    return origin == null ? `day ${Math.round(seconds / 86400) + 1}` : `${date.getUTCDate()} ${MONTHS[date.getUTCMonth()]}`;
  }
  const clock = `${two(date.getUTCHours())}:${two(date.getUTCMinutes())}`;
  return step >= 60 ? clock : `${clock}:${two(date.getUTCSeconds())}`;
}

// The unit of an input by the end of its name.
function input(name, value) {
  if (typeof value === "string") return value;
  if (/_seconds$/.test(name)) return duration(value);
  if (/_fraction$/.test(name) || name === "quantile") return `${Number((100 * value).toPrecision(4))} %`;
  return number(value);
}
