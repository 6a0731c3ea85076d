// The three charts: work against its forecast, replicas, SLO burn.

const RAIL = 16, BURN_SECONDS = 300;

// Runs of points without gaps or unknowns.
function pieces(store, rows, x, ...names) {
  const result = [];
  let run = null, before = null;
  for (const row of rows) {
    const values = names.map((name) => row[COLUMN[name]]), at = x(row);
    if (at == null || values.some((value) => value == null)) {
      run = null;
      continue;
    }
    if (!run || at - before > store.gap) result.push((run = []));
    run.push([at, ...values]);
    before = at;
  }
  return result;
}

const instantOf = (row) => row[COLUMN.at];
const windowOf = (row) => (row[COLUMN.from] == null ? null : (row[COLUMN.from] + row[COLUMN.to]) / 2);

// A count holds from its row to the next, or to the end of what is known.
function held(ctx, plot, store, name, colour, width, dash = []) {
  ctx.strokeStyle = colour;
  ctx.lineWidth = width;
  ctx.lineJoin = "round";
  ctx.setLineDash(dash);
  ctx.beginPath();
  for (const run of pieces(store, store.inView(plot.stage.t0, plot.stage.t1), instantOf, name)) {
    ctx.moveTo(plot.x(run[0][0]), plot.y(run[0][1]));
    for (let i = 1; i < run.length; i++) {
      ctx.lineTo(plot.x(run[i][0]), plot.y(run[i - 1][1]));
      ctx.lineTo(plot.x(run[i][0]), plot.y(run[i][1]));
    }
    ctx.lineTo(plot.x(run[run.length - 1][0]) + 2, plot.y(run[run.length - 1][1]));
  }
  ctx.stroke();
  ctx.setLineDash([]);
}

function area(ctx, plot, run, colour, alpha) {
  ctx.fillStyle = colour;
  ctx.globalAlpha = alpha;
  ctx.beginPath();
  run.forEach(([t, , high], i) => (i ? ctx.lineTo(plot.x(t), plot.y(high)) : ctx.moveTo(plot.x(t), plot.y(high))));
  for (let i = run.length - 1; i >= 0; i--) ctx.lineTo(plot.x(run[i][0]), plot.y(run[i][1]));
  ctx.closePath();
  ctx.fill();
  ctx.globalAlpha = 1;
}

function curve(ctx, plot, points, colour, width) {
  ctx.strokeStyle = colour;
  ctx.lineWidth = width;
  ctx.lineJoin = "round";
  ctx.beginPath();
  points.forEach(([t, value], i) => (i ? ctx.lineTo(plot.x(t), plot.y(value)) : ctx.moveTo(plot.x(t), plot.y(value))));
  ctx.stroke();
}

// Where the present is: right of it everything is forecast.
const present = (store) => ({
  key: "now",
  paint(ctx, plot) {
    const at = store.value("at");
    if (at == null) return;
    ctx.fillStyle = theme("veil");
    ctx.fillRect(plot.x(at), 0, plot.width, plot.bottom);
  },
});

function workChart(stage, store) {
  const colour = "var(--p0)";
  return new Plot(stage, {
    title: "Work", unit: "Erlangs: replica-seconds per second", height: 176, least: 0.1,
    layers: [
      present(store),
      { label: "forecast, 50 to 95 %", colour, swatch: "fill", extent: (a, b) => spread(store, "low", "high", a, b),
        read(t) {
          const row = store.forecast(t);
          return row ? `${number(row[COLUMN.low])} – ${number(row[COLUMN.high])}` : NONE;
        },
        paint(ctx, plot) {
          const rows = store.inView(plot.stage.t0 - 7200, plot.stage.t1);
          for (const run of pieces(store, rows, windowOf, "low", "high")) {
            area(ctx, plot, run, resolved(colour), 0.24);
            ctx.globalAlpha = 0.7;
            curve(ctx, plot, run.map(([t, , high]) => [t, high]), resolved(colour), 1);
            ctx.globalAlpha = 1;
          }
        } },
      { label: "arrived", colour: "var(--ink)", extent: (a, b) => store.extent("work", a, b), read: (t) => number(store.value("work", store.at(t))),
        paint(ctx, plot) {
          for (const run of pieces(store, store.inView(plot.stage.t0, plot.stage.t1), instantOf, "work")) curve(ctx, plot, run, theme("ink"), 1.5);
        } },
    ],
  });
}

function spread(store, low, high, t0, t1) {
  const a = store.extent(low, t0 - 7200, t1), b = store.extent(high, t0 - 7200, t1);
  return a && b ? [a[0], b[1]] : null;
}

function replicasChart(stage, store, clicked) {
  const colour = "var(--p0)", count = (name) => ({
    extent: (a, b) => store.extent(name, a, b), read: (t) => number(store.value(name, store.at(t))),
  });
  const coming = (row) => row[COLUMN.ready] + row[COLUMN.starting];
  const plot = new Plot(stage, {
    title: "Replicas", unit: "", height: 186, least: 2, top: RAIL + 6, clicked,
    layers: [
      present(store),
      { label: "starting", colour, swatch: "hatch", read: (t) => number(store.value("starting", store.at(t))),
        extent: (a, b) => [0, Math.max(0, ...store.inView(a, b).map(coming))],
        paint(ctx, p) {
          ctx.fillStyle = hatch(ctx, resolved(colour));
          const rows = store.inView(p.stage.t0, p.stage.t1);
          rows.forEach((row, i) => {
            const from = row[COLUMN.at], next = rows[i + 1]?.[COLUMN.at] ?? from + 2;
            if (row[COLUMN.starting] > 0 && next - from <= store.gap)
              ctx.fillRect(p.x(from), p.y(coming(row)), p.x(next) - p.x(from), p.y(row[COLUMN.ready]) - p.y(coming(row)));
          });
        } },
      { label: "wanted", colour: "var(--ink)", swatch: "dash", ...count("wanted"), paint: (ctx, p) => held(ctx, p, store, "wanted", theme("ink"), 1.3, [4, 3]) },
      { label: "ready", colour, ...count("ready"), paint: (ctx, p) => held(ctx, p, store, "ready", resolved(colour), 2.2) },
      { key: "rail", paint: (ctx, p) => rail(ctx, p, store) },
    ],
  });
  plot.whole = true;
  return plot;
}

// Decisions that changed the number, as marks along the top.
function rail(ctx, plot, store) {
  const middle = RAIL / 2 + 1;
  for (const { at, before, after } of store.changes) {
    const x = plot.x(at), chosen = at === plot.stage.selected, r = chosen ? 6 : 4.2, s = after > before ? -1 : 1;
    ctx.fillStyle = chosen ? theme("accent") : after > before ? theme("p0") : theme("muted");
    ctx.beginPath();
    ctx.moveTo(x, middle + s * r);
    ctx.lineTo(x - r, middle - s * r * 0.8);
    ctx.lineTo(x + r, middle - s * r * 0.8);
    ctx.fill();
  }
}

function burnChart(stage, store) {
  const inView = (a, b) => store.burns(BURN_SECONDS).filter(([at, low]) => low != null && at >= a && at <= b);
  return new Plot(stage, {
    title: "SLO burn", unit: `last ${duration(BURN_SECONDS)}; above 1 more requests violate the SLO than the goal allows`, height: 132, least: 1.6,
    layers: [
      present(store),
      { key: "zone", extent: () => [0, 1.3],
        paint(ctx, plot) {
          ctx.fillStyle = theme("bad-zone");
          ctx.fillRect(GUTTER, 0, plot.inner, plot.y(1));
          ctx.strokeStyle = theme("bad");
          ctx.setLineDash([6, 4]);
          line(ctx, GUTTER, Math.round(plot.y(1)) + 0.5, GUTTER + plot.inner, Math.round(plot.y(1)) + 0.5);
        } },
      { label: "burn", colour: "var(--p1)",
        extent(a, b) {
          const rows = inView(a, b);
          return rows.length ? [0, Math.max(...rows.map(([, , high]) => high))] : null;
        },
        read(t) {
          const row = store.burns(BURN_SECONDS)[store.index(t)];
          return row && row[1] != null ? range(row[1], row[2]) : NONE;
        },
        paint(ctx, plot) {
          let run = [];
          const flush = () => {
            if (run.length) {
              area(ctx, plot, run, theme("p1"), 0.25);
              curve(ctx, plot, run.map(([t, low, high]) => [t, (low + high) / 2]), theme("p1"), 1.5);
            }
            run = [];
          };
          for (const row of inView(plot.stage.t0, plot.stage.t1)) {
            if (run.length && row[0] - run[run.length - 1][0] > store.gap) flush();
            run.push(row);
          }
          flush();
        } },
    ],
  });
}

// Two bounds of one number, or the number where they print alike.
function range(low, high, write = number) {
  const a = write(low), b = write(high);
  return a === b ? a : `${a} – ${b}`;
}
