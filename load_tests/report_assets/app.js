// State and wiring: which group, which policy, what is overlaid, what is in view.

const app = {
  group: null,
  stage: null,
  state: { policy: null, overlay: new Set(), event: null, sort: null },

  open(group) {
    this.group = group;
    group.policies.forEach((policy, i) => (policy.colour = `var(--p${i % 8})`));
    const preferred = group.policies.find((p) => p.name === "auto") ?? group.policies.find((p) => p.met) ?? group.policies[0];
    this.state = { policy: preferred, overlay: new Set(), event: null, sort: null };
    const series = group.policies.map(seriesOf);
    const stage = new Stage(Math.min(...series.map((s) => s.start)), Math.max(...series.map((s) => s.end)));
    Object.assign(stage, { origin: group.origin, scoreFrom: group.score_from });
    stage.listeners.push(() => {
      document.documentElement.dataset.from = stage.t0.toFixed(1);
      document.documentElement.dataset.to = stage.t1.toFixed(1);
    });
    this.stage = stage;
    document.getElementById("setting").textContent = group.setting.replaceAll("<=", "≤");
    this.note();
    this.refresh();
  },

  note() {
    const several = this.group.policies.some((p) => p.seeds.length > 1);
    const coarse = seriesOf(this.group.policies[0]);
    document.getElementById("summary-note").textContent =
      "Bold: best of those that kept the SLO. “never”: that share of requests never got there." +
      (several ? " Means over seeds, ranges below; the charts show the first seed." : "");
    document.getElementById("help").textContent =
      "Drag to zoom, Shift-drag to pan, Ctrl-wheel to zoom at the pointer, double-click for all. ← → decisions, + − 0 zoom, Esc closes." +
      (coarse.width > coarse.interval ? ` One point is ${duration(coarse.width)}, drawn from its least to its largest value; replica counts are exact.` : "");
  },

  choose(policy) {
    if (policy === this.state.policy) return;
    this.state.overlay.delete(policy);
    Object.assign(this.state, { policy, event: null });
    this.stage.selected = null;
    this.refresh();
  },

  overlay(policy) {
    const { overlay } = this.state;
    overlay.has(policy) ? overlay.delete(policy) : overlay.add(policy);
    this.refresh();
  },

  refresh() {
    const choose = (policy) => this.choose(policy);
    drawTable(this.group, this.state, choose);
    drawFrontier(this.group, this.state, choose);
    drawChips(this);
    drawDecision(this);
    drawCharts(this);
    this.stage.changed();
  },

  select(index, come = false) {
    const events = this.state.policy.events;
    if (index != null && !(index >= 0 && index < events.length)) return;
    this.state.event = index;
    const { stage } = this, at = index == null ? null : events[index][0];
    stage.selected = at;
    drawDecision(this);
    if (at == null || (!come && at >= stage.t0 && at <= stage.t1)) return void stage.changed();
    const span = come ? Math.min(stage.t1 - stage.t0, 7200) : stage.t1 - stage.t0;
    stage.show(at - span / 2, at + span / 2);
  },

  step(by) {
    const { events } = this.state.policy, { event } = this.state, { t0 } = this.stage;
    if (!events.length) return;
    if (event != null) return void this.select(Math.max(0, Math.min(events.length - 1, event + by)));
    const next = events.findIndex((each) => each[0] >= t0);
    this.select(next < 0 ? events.length - 1 : next);
  },

  pick(t, x, plot) {
    let best = null, nearest = 14;
    this.state.policy.events.forEach(([at], i) => {
      const far = Math.abs(plot.x(at) - x);
      if (far < nearest) [best, nearest] = [i, far];
    });
    if (best != null) this.select(best);
  },
};

function drawChips(app) {
  const { group, state } = app;
  document.getElementById("chips").replaceChildren(...group.policies.map((policy) => {
    const main = policy === state.policy, over = state.overlay.has(policy);
    const name = make("button", { type: "button", class: "chip-name", "aria-pressed": String(main), title: "Show this run" }, make("i", { class: "dot" }), policy.name);
    name.addEventListener("click", () => app.choose(policy));
    const plus = make("button", { type: "button", class: "chip-over", "aria-pressed": String(over), disabled: main, "aria-label": `Compare with ${policy.name}`, title: "Draw over the chosen run" }, over ? "−" : "+");
    plus.addEventListener("click", () => app.overlay(policy));
    return make("span", { class: `chip${main ? " main" : ""}${over ? " over" : ""}`, style: { "--c": policy.colour } }, name, group.policies.length > 1 ? plus : null);
  }));
}

function drawZoom() {
  const box = document.getElementById("zoom");
  const button = (label, hint, work) => {
    const node = make("button", { type: "button", title: hint, "aria-label": hint }, label);
    node.addEventListener("click", work);
    return node;
  };
  const span = (seconds) => () => {
    const { stage } = app, middle = stage.selected ?? (stage.t0 + stage.t1) / 2;
    stage.show(middle - seconds / 2, middle + seconds / 2);
  };
  const ranges = [["15 min", 900], ["1 h", 3600], ["6 h", 21600], ["1 d", 86400], ["1 w", 604800]];
  box.replaceChildren(
    ...ranges.filter(([, s]) => s < app.stage.high - app.stage.low).map(([label, s]) => button(label, `Show ${label}`, span(s))),
    button("All", "Show everything (0)", () => app.stage.show(app.stage.low, app.stage.high)),
    button("−", "Zoom out (-)", () => app.stage.zoom(2)),
    button("+", "Zoom in (+)", () => app.stage.zoom(0.5)),
  );
}

function drawCharts(app) {
  const { group, state, stage } = app, policy = state.policy, series = seriesOf(policy);
  const others = [...state.overlay].map((p) => ({ policy: p, series: seriesOf(p) }));
  const clicked = (t, x, plot) => app.pick(t, x, plot);
  const context = { app, group, policy, series, others, clicked, colour: policy.colour };
  const kept = new Map((stage.plots ?? []).flatMap((plot) => plot.layers.map((layer) => [`${plot.key}/${layer.key ?? layer.label}`, layer.shown])));
  const log = stage.plots.find((plot) => plot.key === "ttft")?.log;
  stage.plots = [replicasChart(context), arrivalsChart(context), ttftChart(context, log), queueChart(context), overview(context)];
  for (const plot of stage.plots) {
    for (const layer of plot.layers) {
      const shown = kept.get(`${plot.key}/${layer.key ?? layer.label}`);
      if (shown != null) layer.shown = shown;
    }
    if (plot.key !== "overview") plot.rebuild();
  }
  document.getElementById("charts").replaceChildren(...stage.plots.map((plot) => plot.figure));
  drawZoom();
}

function start() {
  document.getElementById("title").textContent = PAGE.title;
  const select = document.getElementById("group");
  PAGE.groups.forEach((group, i) => select.append(make("option", { value: i }, `${group.scenario} · ${group.pool}`)));
  document.getElementById("group-label").hidden = PAGE.groups.length < 2;
  select.addEventListener("change", () => app.open(PAGE.groups[Number(select.value)]));
  app.open(PAGE.groups[0]);
  new ResizeObserver(() => app.stage.draw(true)).observe(document.getElementById("charts"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => app.stage.draw(true));
  document.addEventListener("keydown", (event) => {
    if (event.target.closest?.("select, input, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    const work = {
      ArrowLeft: () => app.step(-1), ArrowRight: () => app.step(1), Escape: () => app.select(null),
      "+": () => app.stage.zoom(0.5), "=": () => app.stage.zoom(0.5), "-": () => app.stage.zoom(2),
      0: () => app.stage.show(app.stage.low, app.stage.high),
    }[event.key];
    if (!work) return;
    event.preventDefault();
    work();
  });
}

// For the console and for tests: what is in view, and where a decision's mark is on the page.
window.fleetReport = {
  view: () => ({ from: app.stage.t0, to: app.stage.t1, policy: app.state.policy.name, event: app.state.event }),
  markAt(index) {
    const plot = app.stage.plots[0], box = plot.over.getBoundingClientRect();
    return { x: box.left + plot.x(app.state.policy.events[index][0]), y: box.top + RAIL / 2 + 2 };
  },
};

start();
