// The fan of one forecaster over what came: choose, drag to zoom, double-click to see all; tables below.

const told = JSON.parse(document.getElementById("data").textContent);
const chart = document.getElementById("fan");
const state = { trace: 0, window: 2, forecaster: null, from: 0, to: 1 };
const HIGH = 380, LEFT = 52, BOTTOM = 26, TOP = 10, RIGHT = 8;

function select(label, names, chosen, change) {
  const box = make("select", { on: { change: (event) => change(event.target.selectedIndex) } },
    ...names.map((name, i) => make("option", { selected: i === chosen }, name)));
  return make("label", {}, label, box);
}

function choices() {
  const names = Object.keys(told.traces[state.trace].fans);
  if (!names.includes(state.forecaster)) state.forecaster = names[0] ?? null;
  const place = document.getElementById("choice");
  place.replaceChildren(
    select("Trace", told.traces.map((t) => t.name), state.trace, (i) => { state.trace = i; state.from = 0; state.to = 1; choices(); draw(); }),
    select("Window ahead", told.windows, state.window, (i) => { state.window = i; draw(); }),
    select("Forecaster", names, names.indexOf(state.forecaster), (i) => { state.forecaster = names[i]; draw(); }),
  );
}

function shown() {
  const trace = told.traces[state.trace];
  const count = trace.at.length;
  const first = Math.floor(state.from * count), last = Math.max(first + 2, Math.ceil(state.to * count));
  const cut = (values) => values.slice(first, last);
  const fan = state.forecaster === null ? [] : trace.fans[state.forecaster][state.window].map(cut);
  return { zone: trace.zone, at: cut(trace.at), actual: cut(trace.actual[state.window]), fan };
}

function runs(values, point) {
  let path = "", open = false;
  values.forEach((v, i) => {
    if (v == null) { open = false; return; }
    path += `${open ? "L" : "M"}${point(i, v)}`;
    open = true;
  });
  return path;
}

function area(low, high, point) {
  let path = "", start = null;
  const close = (end) => {
    if (start === null) return;
    let up = "", down = "";
    for (let i = start; i < end; i++) up += `${up ? "L" : "M"}${point(i, high[i])}`;
    for (let i = end - 1; i >= start; i--) down += `L${point(i, low[i])}`;
    path += `${up}${down}Z`;
    start = null;
  };
  low.forEach((v, i) => { if (v == null || high[i] == null) close(i); else if (start === null) start = i; });
  close(low.length);
  return path;
}

function stamp(seconds, zone) {
  return new Intl.DateTimeFormat("en-GB", { timeZone: zone, month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" })
    .format(new Date(1000 * seconds));
}

function draw() {
  const wide = Math.max(320, chart.clientWidth || 900);
  const { zone, at, actual, fan } = shown();
  chart.setAttribute("viewBox", `0 0 ${wide} ${HIGH}`);
  chart.replaceChildren();
  if (!at.length) { chart.append(svg("text", { x: LEFT, y: 40 }, document.createTextNode("No origin was scored."))); return; }
  const seen = [...actual, ...(fan[2] ?? [])].filter((v) => v != null);
  const most = 1.05 * Math.max(1e-9, ...seen);
  const x = (i) => LEFT + (wide - LEFT - RIGHT) * i / Math.max(1, at.length - 1);
  const y = (v) => TOP + (HIGH - TOP - BOTTOM) * (1 - Math.min(v, most) / most);
  const point = (i, v) => `${x(i).toFixed(1)},${y(v).toFixed(1)}`;
  for (let k = 0; k <= 4; k++) {
    const v = most * k / 4;
    chart.append(svg("line", { class: "axis", x1: LEFT, x2: wide - RIGHT, y1: y(v), y2: y(v) }),
      svg("text", { x: LEFT - 6, y: y(v) + 4, "text-anchor": "end" }, document.createTextNode(number(v))));
  }
  const ticks = Math.max(2, Math.floor(wide / 160));
  for (let k = 0; k < ticks; k++) {
    const i = Math.round((at.length - 1) * k / (ticks - 1));
    chart.append(svg("text", { x: x(i), y: HIGH - 6, "text-anchor": k === 0 ? "start" : k === ticks - 1 ? "end" : "middle" },
      document.createTextNode(stamp(at[i], zone))));
  }
  if (fan.length) {
    [[0, 3, .14], [0, 2, .18], [0, 1, .26]].forEach(([a, b, opacity]) =>
      chart.append(svg("path", { class: "band", "fill-opacity": opacity, d: area(fan[a], fan[b], point) })));
    chart.append(svg("path", { class: "median", d: runs(fan[0], point) }));
  }
  chart.append(svg("path", { class: "actual", d: runs(actual, point) }));
  let over = 0, known = 0;
  if (fan.length) {
    actual.forEach((v, i) => {
      if (v == null || fan[3][i] == null) return;
      known += 1;
      if (v > fan[3][i]) { over += 1; chart.append(svg("circle", { class: "over", cx: x(i), cy: y(v), r: 2.4 })); }
    });
  }
  document.getElementById("fan-note").textContent =
    `Line: what came. Bands: from the median to the ${told.levels.slice(1).map((q) => `${100 * q} %`).join(", ")} quantile. ` +
    `Red: beyond the last band, ${over} of ${known}. Drag to zoom, double-click to see all. Times in ${zone}.`;
}

function gestures() {
  let begun = null;
  const share = (event) => {
    const box = chart.getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - box.left - LEFT) / Math.max(1, box.width - LEFT - RIGHT)));
  };
  chart.addEventListener("pointerdown", (event) => { begun = share(event); });
  chart.addEventListener("pointerup", (event) => {
    const end = share(event), wide = state.to - state.from;
    if (begun !== null && Math.abs(end - begun) > .01) {
      const [a, b] = [Math.min(begun, end), Math.max(begun, end)];
      [state.from, state.to] = [state.from + a * wide, state.from + b * wide];
      draw();
    }
    begun = null;
  });
  chart.addEventListener("dblclick", () => { state.from = 0; state.to = 1; draw(); });
  addEventListener("resize", draw);
}

function table({ title, rows }) {
  const [head, ...body] = rows;
  const cell = (text) => make("td", { class: text.endsWith("*") ? "best" : null }, text);
  return make("section", { class: "summary" }, make("h2", {}, title),
    make("div", { class: "table-scroll", tabindex: "0", role: "region", "aria-label": title },
      make("table", {}, make("thead", {}, make("tr", {}, ...head.map((t) => make("th", { scope: "col" }, t)))),
        make("tbody", {}, ...body.map((row) => make("tr", {}, ...row.map(cell)))))));
}

document.getElementById("tables").append(...told.tables.map(table));
document.getElementById("lost").append(...(told.lost.length ? told.lost : ["None."]).map((line) => make("li", {}, line)));
choices();
gestures();
draw();
