// The four charts and the strip below them: what each layer is, how it is painted and read.

const RAIL = 16;

// Lines of the overlaid policies, by `paint(ctx, plot, other, colour)`.
function overlays(context, paint, read, extent) {
  return context.others.map(({ policy, series }) => ({
    key: `over ${policy.name}`, label: policy.name, colour: policy.colour, swatch: "line",
    extent: (t0, t1) => extent(series, t0, t1),
    paint: (ctx, plot) => paint(ctx, plot, series, resolved(policy.colour)),
    read: (t) => read(series, t),
  }));
}

function replicasChart(context) {
  const { series, app, group } = context, { desired, ready, coming, starting, draining } = series.steps;
  const needed = (plot) => runs(plot, series, "need_low", "need_high", null);
  const main = () => resolved(context.colour);
  // One spike of the need must not flatten everything that answered it: beyond twice the replicas it leaves the chart.
  const needExtent = (a, b) => {
    const need = series.extent("need_high", a, b), most = Math.max(coming.extent(a, b)[1], desired.extent(a, b)[1]);
    return need && [need[0], most > 0 ? Math.min(need[1], 2 * most) : need[1]];
  };
  const plot = new Plot(app.stage, {
    title: "Replicas", unit: `× ${group.gpus} GPU`, height: 232, least: 2, top: RAIL + 6, clicked: context.clicked,
    layers: [
      { label: "need", colour: "var(--need)", swatch: "fill", extent: (a, b) => needExtent(a, b), read: (t) => number(series.at("need_high", t)),
        paint(ctx, p) {
          ctx.fillStyle = theme("need-fill");
          outline(ctx, p, needed(p), true);
          ctx.fill();
        } },
      { label: "starting", colour: context.colour, swatch: "hatch", extent: (a, b) => coming.extent(a, b), read: (t) => number(starting.at(t)),
        paint(ctx, p) {
          if (crowded(p, coming)) return;
          ctx.beginPath();
          stepPath(ctx, p, coming);
          back(ctx, p, ready);
          ctx.fillStyle = hatch(ctx, main());
          ctx.fill("evenodd");
        } },
      { key: "short", extent: () => null,
        paint(ctx, p) {
          // Need above what is ready: clip to the space over the ready line, then fill the need again in red.
          ctx.beginPath();
          stepPath(ctx, p, ready);
          ctx.lineTo(p.x(p.stage.t1), -10);
          ctx.lineTo(p.x(p.stage.t0), -10);
          ctx.closePath();
          ctx.clip();
          ctx.fillStyle = theme("short");
          outline(ctx, p, needed(p), true);
          ctx.fill();
        } },
      { key: "need line", paint: (ctx, p) => band(ctx, p, needed(p), theme("need"), 1.2) },
      ...overlays(context, (ctx, p, other, colour) => stepLine(ctx, p, other.steps.ready, colour, 1.6), (other, t) => number(other.steps.ready.at(t)), (other, a, b) => other.steps.ready.extent(a, b)),
      { label: "desired", colour: "var(--ink)", swatch: "dash", extent: (a, b) => desired.extent(a, b), read: (t) => number(desired.at(t)), paint: (ctx, p) => stepLine(ctx, p, desired, theme("ink"), 1.2, [4, 3]) },
      { label: "ready", colour: context.colour, extent: (a, b) => ready.extent(a, b), read: (t) => number(ready.at(t)), paint: (ctx, p) => stepLine(ctx, p, ready, main(), 2.2) },
      ...(draining.v.some((v) => v > 0) ? [{ label: "draining", colour: "var(--muted)", shown: false, extent: (a, b) => draining.extent(a, b), read: (t) => number(draining.at(t)), paint: (ctx, p) => stepLine(ctx, p, draining, theme("muted"), 1.3) }] : []),
      { key: "rail", paint: (ctx, p) => rail(ctx, p, context) },
    ],
  });
  plot.key = "replicas";
  plot.whole = true;
  return plot;
}

// Decisions as marks along the top: up, down, or neither (faults).
function rail(ctx, plot, { policy, colour, app }) {
  const { stage } = plot, events = policy.events.map((event, i) => [plot.x(event[0]), event, i]).filter(([x]) => x > GUTTER - 6 && x < GUTTER + plot.inner + 6);
  const dense = events.length > plot.inner / 7, middle = RAIL / 2 + 1;
  const up = resolved(colour), down = theme("muted"), bad = theme("bad");
  for (const [x, [, before, after, kind], i] of events) {
    const chosen = i === app.state.event;
    ctx.globalAlpha = dense && !chosen ? 0.5 : 1;
    ctx.fillStyle = chosen ? theme("accent") : kind ? bad : after > before ? up : down;
    ctx.beginPath();
    if (dense && !chosen) {
      ctx.rect(x - 0.5, after > before ? middle - 6 : middle, 1, 6);
    } else if (kind) {
      ctx.arc(x, middle, 4, 0, 7);
    } else {
      const r = chosen ? 6 : 4.2, s = after > before ? -1 : 1;
      ctx.moveTo(x, middle + s * r);
      ctx.lineTo(x - r, middle - s * r * 0.8);
      ctx.lineTo(x + r, middle - s * r * 0.8);
    }
    ctx.fill();
  }
  ctx.globalAlpha = 1;
}

function arrivalsChart(context) {
  const { series, app } = context;
  const plot = new Plot(app.stage, {
    title: "Arrivals", unit: "requests per second", height: 146, least: 0.1, clicked: context.clicked,
    layers: [
      { label: "forecast band", colour: context.colour, swatch: "fill", extent: (a, b) => series.extent("forecast_high", a, b),
        read: (t) => (Number.isNaN(series.at("forecast_high", t)) ? NONE : `${number(series.at("forecast_low", t))} – ${number(series.at("forecast_high", t))}`),
        paint(ctx, p) {
          ctx.globalAlpha = 0.26;
          ctx.fillStyle = resolved(context.colour);
          outline(ctx, p, runs(p, series, "forecast_low", "forecast_high"), false);
          ctx.fill();
        } },
      { label: "arrivals", colour: "var(--ink)", extent: (a, b) => series.extent("arrivals_high", a, b), read: (t) => number(series.at("arrivals", t)),
        paint: (ctx, p) => band(ctx, p, runs(p, series, "arrivals", "arrivals_high", "arrivals"), theme("ink"), 1.1, 0.25) },
    ],
  });
  if (!series.extent("forecast_high", -Infinity, Infinity)) plot.layers.shift();
  plot.key = "arrivals";
  return plot;
}

function ttftChart(context, log) {
  const { series, app, group } = context, limit = group.slo.ttft;
  const worst = Math.max(...group.policies.map((p) => seriesOf(p).extent("ttft_high", -Infinity, Infinity)?.[1] ?? 0));
  const plot = new Plot(app.stage, {
    title: "TTFT p95", unit: "by arrival", height: 168, least: limit * 1.6, clicked: context.clicked, ticks: latency,
    log: log ?? worst > 6 * limit,
    layers: [
      { key: "zone", extent: () => [limit * 0.5, limit * 1.3],
        paint(ctx, p) {
          ctx.fillStyle = theme("bad-zone");
          ctx.fillRect(GUTTER, 0, p.inner, p.y(limit));
        } },
      ...overlays(context, (ctx, p, other, colour) => band(ctx, p, runs(p, other, "ttft_low", "ttft_high"), colour, 1.1, 0.22), (other, t) => latency(other.at("ttft_high", t)), (other, a, b) => other.extent("ttft_high", a, b)),
      { label: "TTFT p95", colour: context.colour, extent: (a, b) => both(series, "ttft_low", "ttft_high", a, b), read: (t) => latency(series.at("ttft_high", t)),
        paint: (ctx, p) => band(ctx, p, runs(p, series, "ttft_low", "ttft_high"), resolved(context.colour), 1.3, 0.45) },
      { label: `SLO ${latency(limit)}`, colour: "var(--bad)", swatch: "dash",
        paint(ctx, p) {
          ctx.strokeStyle = theme("bad");
          ctx.lineWidth = 1.5;
          ctx.setLineDash([6, 4]);
          const y = Math.round(p.y(limit)) + 0.5;
          line(ctx, GUTTER, y, GUTTER + p.inner, y);
        } },
      { label: "violations", colour: "var(--bad)", swatch: "fill", read: (t) => number(series.at("violated", t)), paint: (ctx, p) => violations(ctx, p, series) },
    ],
  });
  const toggle = make("button", { type: "button", "aria-pressed": String(plot.log), title: "Logarithmic scale" }, "log");
  toggle.addEventListener("click", () => {
    plot.log = !plot.log;
    toggle.setAttribute("aria-pressed", String(plot.log));
    plot.draw();
  });
  plot.tools.append(toggle);
  plot.key = "ttft";
  return plot;
}

function both(series, lowName, highName, t0, t1) {
  const low = series.extent(lowName, t0, t1), high = series.extent(highName, t0, t1);
  return low && high ? [low[0], high[1]] : low ?? high;
}

// A strip along the bottom: how large a share of the arrivals violated the SLO.
function violations(ctx, plot, series) {
  const violated = series.get("violated"), arrivals = series.get("arrivals"), { stage } = plot;
  ctx.fillStyle = theme("bad");
  const first = Math.max(0, Math.floor((stage.t0 - series.start) / series.width));
  const last = Math.min(violated.length, Math.ceil((stage.t1 - series.start) / series.width));
  const each = Math.max(1, Math.floor((last - first) / plot.inner));
  for (let i = first - (first % each); i < last; i += each) {
    let bad = 0, all = 0;
    for (let j = i; j < Math.min(i + each, violated.length); j++) {
      bad += violated[j] || 0;
      all += (arrivals[j] || 0) * series.width;
    }
    if (!bad) continue;
    ctx.globalAlpha = Math.max(0.25, Math.min(1, bad / Math.max(all, bad)));
    ctx.fillRect(plot.x(series.start + i * series.width), plot.bottom - 7, Math.max(1, (plot.inner * each * series.width) / (stage.t1 - stage.t0)), 7);
  }
  ctx.globalAlpha = 1;
}

function queueChart(context) {
  const { series, app } = context;
  const most = (name) => series.extent(name, -Infinity, Infinity)?.[1] ?? 0;
  const plot = new Plot(app.stage, {
    title: "Queue", unit: "requests", height: 126, least: 4, clicked: context.clicked,
    layers: [
      { label: "running", colour: "var(--need)", shown: most("running") < 4 * most("waiting"), extent: (a, b) => series.extent("running", a, b), read: (t) => number(series.at("running", t)),
        paint: (ctx, p) => band(ctx, p, runs(p, series, "running", "running"), theme("need"), 1) },
      ...overlays(context, (ctx, p, other, colour) => band(ctx, p, runs(p, other, "waiting", "waiting"), colour, 1.1), (other, t) => number(other.at("waiting", t)), (other, a, b) => other.extent("waiting", a, b)),
      { label: "waiting", colour: context.colour, swatch: "fill", extent: (a, b) => series.extent("waiting", a, b), read: (t) => number(series.at("waiting", t)),
        paint(ctx, p) {
          const points = runs(p, series, "waiting", "waiting");
          ctx.globalAlpha = 0.25;
          ctx.fillStyle = resolved(context.colour);
          outline(ctx, p, points, true);
          ctx.fill();
          ctx.globalAlpha = 1;
          band(ctx, p, points, resolved(context.colour), 1.3, 0.6);
        } },
    ],
  });
  plot.key = "queue";
  return plot;
}

// The whole run in a strip, with the part in view as a window that can be dragged.
function overview(context) {
  const { series, app } = context, main = app.stage;
  const own = { low: main.low, high: main.high, t0: main.low, t1: main.high, origin: main.origin, scoreFrom: main.scoreFrom, hover: null, selected: null };
  const plot = new Plot(Object.assign(Object.create(Stage.prototype), own, { plots: [], listeners: [] }), {
    title: "Whole run", unit: "arrivals", height: 58,
    layers: [{ key: "all", extent: (a, b) => series.extent("arrivals_high", a, b), paint: (ctx, p) => band(ctx, p, runs(p, series, "arrivals", "arrivals_high", "arrivals"), theme("muted"), 1) }],
  });
  plot.key = "overview";
  plot.figure.classList.add("overview");
  plot.values = () => [];
  plot.cursor = () => {
    const ctx = plot.over.getContext("2d"), a = plot.x(main.t0), b = plot.x(main.t1);
    ctx.clearRect(0, 0, plot.width, plot.height);
    ctx.fillStyle = theme("veil");
    ctx.fillRect(GUTTER, TOP, a - GUTTER, plot.bottom - TOP);
    ctx.fillRect(b, TOP, GUTTER + plot.inner - b, plot.bottom - TOP);
    ctx.strokeStyle = theme("accent");
    ctx.lineWidth = 1.5;
    ctx.strokeRect(a, TOP, Math.max(2, b - a), plot.bottom - TOP);
  };
  const fresh = plot.over.cloneNode();
  plot.over.replaceWith(fresh);
  plot.over = fresh;
  let grip = null;
  const time = (event) => plot.time(event.clientX - fresh.getBoundingClientRect().left);
  fresh.addEventListener("pointerdown", (event) => {
    fresh.setPointerCapture(event.pointerId);
    const t = time(event), inside = t >= main.t0 && t <= main.t1 && main.t1 - main.t0 < 0.98 * (main.high - main.low);
    grip = { t, t0: main.t0, t1: main.t1, inside };
  });
  fresh.addEventListener("pointermove", (event) => {
    if (!grip) return;
    const t = time(event);
    if (grip.inside) main.show(...shifted(main, grip, t - grip.t));
    else if (Math.abs(plot.x(t) - plot.x(grip.t)) > 4) main.show(Math.min(t, grip.t), Math.max(t, grip.t));
  });
  const finish = (event) => {
    const t = time(event), half = (main.t1 - main.t0) / 2;
    if (grip && !grip.inside && Math.abs(plot.x(t) - plot.x(grip.t)) <= 4) main.show(t - half, t + half);
    grip = null;
  };
  fresh.addEventListener("pointerup", finish);
  fresh.addEventListener("dblclick", () => main.show(main.low, main.high));
  return plot;
}
