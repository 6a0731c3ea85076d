// How columns become ink: folded to pixels, as outlines, bands and steps.

// Buckets in view, or pixels where those are fewer: [x0, x1, low, high, middle] each, broken into runs without gaps.
function runs(plot, series, lowName, highName, middleName = null) {
  const low = series.get(lowName), high = series.get(highName), { stage } = plot;
  const middle = middleName && series.get(middleName);
  const first = Math.max(0, Math.floor((stage.t0 - series.start) / series.width));
  const last = Math.min(low.length, Math.ceil((stage.t1 - series.start) / series.width));
  const each = Math.max(1, Math.floor((last - first) / plot.inner));
  const result = [];
  let run = null;
  for (let i = first - (first % each); i < last; i += each) {
    let a = Infinity, b = -Infinity, sum = 0, n = 0;
    for (let j = i; j < Math.min(i + each, low.length); j++) {
      if (low[j] < a) a = low[j];
      if (high[j] > b) b = high[j];
      const value = middle ? middle[j] : (low[j] + high[j]) / 2;
      if (Number.isFinite(value)) (sum += value), (n += 1);
    }
    if (b === -Infinity) {
      run = null;
      continue;
    }
    if (!run) result.push((run = []));
    run.push([plot.x(series.start + i * series.width), plot.x(series.start + Math.min(i + each, low.length) * series.width), a, b, n ? sum / n : b]);
  }
  return result;
}

// The outline of runs as a path: along the top, and back along the bottom (or along zero).
function outline(ctx, plot, points, toZero) {
  ctx.beginPath();
  for (const run of points) {
    ctx.moveTo(run[0][0], plot.y(run[0][3]));
    for (const [x0, x1, , high] of run) {
      ctx.lineTo(x0, plot.y(high));
      ctx.lineTo(x1, plot.y(high));
    }
    for (let i = run.length - 1; i >= 0; i--) {
      const [x0, x1, low] = run[i], y = toZero ? plot.bottom : plot.y(low);
      ctx.lineTo(x1, y);
      ctx.lineTo(x0, y);
    }
    ctx.closePath();
  }
}

// From the least to the largest value lightly, and a line through the middle: peaks stay, noise does not shout.
function band(ctx, plot, points, colour, width = 1.3, light = 0.32) {
  const alpha = ctx.globalAlpha;
  ctx.fillStyle = ctx.strokeStyle = colour;
  ctx.lineJoin = "round";
  ctx.lineWidth = 0.6;
  ctx.globalAlpha = alpha * light;
  outline(ctx, plot, points, false);
  ctx.fill();
  ctx.stroke();
  ctx.globalAlpha = alpha;
  ctx.lineWidth = width;
  ctx.beginPath();
  for (const run of points) {
    const wide = run[0][1] - run[0][0] > 3;
    run.forEach(([x0, x1, , , middle], i) => {
      const y = plot.y(middle);
      if (i === 0) ctx.moveTo(x0, y);
      ctx.lineTo(wide ? x0 : (x0 + x1) / 2, y);
      if (wide || i === run.length - 1) ctx.lineTo(x1, y);
    });
  }
  ctx.stroke();
}

function stepPath(ctx, plot, steps) {
  const { t0, t1 } = plot.stage;
  let i = Math.max(0, steps.index(t0));
  if (!steps.t.length) return;
  ctx.moveTo(plot.x(Math.max(steps.t[i], t0)), plot.y(steps.v[i]));
  for (i += 1; i < steps.t.length && steps.t[i] <= t1; i++) {
    ctx.lineTo(plot.x(steps.t[i]), plot.y(steps.v[i - 1]));
    ctx.lineTo(plot.x(steps.t[i]), plot.y(steps.v[i]));
  }
  ctx.lineTo(plot.x(Math.min(t1, plot.stage.high)), plot.y(steps.v[i - 1]));
}

// A step column as runs of pixels: least, largest and mean over time in each.
function stepRuns(plot, steps) {
  const { t0, t1 } = plot.stage, each = (t1 - t0) / plot.inner, run = [];
  for (let px = Math.max(0, Math.floor((steps.t[0] - t0) / each)); px < plot.inner; px++) {
    const from = t0 + px * each, to = from + each;
    let i = Math.max(0, steps.index(from)), low = steps.v[i], high = low, at = from, sum = 0;
    for (; i + 1 < steps.t.length && steps.t[i + 1] < to; i++) {
      const next = Math.max(at, steps.t[i + 1]);
      sum += steps.v[i] * (next - at);
      at = next;
      low = Math.min(low, steps.v[i + 1]);
      high = Math.max(high, steps.v[i + 1]);
    }
    sum += steps.v[i] * (to - at);
    run.push([GUTTER + px, GUTTER + px + 1, low, high, sum / each]);
  }
  return run.length ? [run] : [];
}

function crowded(plot, steps) {
  return steps.index(plot.stage.t1) - steps.index(plot.stage.t0) > plot.inner / 3;
}

function stepLine(ctx, plot, steps, colour, width, dash = []) {
  if (!steps.t.length) return;
  if (crowded(plot, steps)) {
    if (!dash.length) band(ctx, plot, stepRuns(plot, steps), colour, width, 0.4);
    return;
  }
  ctx.strokeStyle = colour;
  ctx.lineWidth = width;
  ctx.lineJoin = "round";
  ctx.setLineDash(dash);
  ctx.beginPath();
  stepPath(ctx, plot, steps);
  ctx.stroke();
  ctx.setLineDash([]);
}

// Continues a path back along `steps`, right to left.
function back(ctx, plot, steps) {
  const { t0, t1 } = plot.stage;
  let i = steps.index(t1);
  if (i < 0) return;
  ctx.lineTo(plot.x(t1), plot.y(steps.v[i]));
  for (; i >= 0 && steps.t[i] > t0; i--) {
    ctx.lineTo(plot.x(steps.t[i]), plot.y(steps.v[i]));
    if (i > 0) ctx.lineTo(plot.x(steps.t[i]), plot.y(steps.v[i - 1]));
  }
  if (i >= 0) ctx.lineTo(plot.x(t0), plot.y(steps.v[i]));
  ctx.closePath();
}

function hatch(ctx, colour) {
  const tile = document.createElement("canvas"), size = 6;
  tile.width = tile.height = size;
  const pen = tile.getContext("2d");
  pen.globalAlpha = 0.18;
  pen.fillStyle = colour;
  pen.fillRect(0, 0, size, size);
  pen.globalAlpha = 0.75;
  pen.strokeStyle = colour;
  pen.lineWidth = 1;
  for (const shift of [-size, 0, size]) line(pen, shift, size, shift + size, 0);
  return ctx.createPattern(tile, "repeat");
}

function resolved(colour) {
  return colour.startsWith("var(") ? theme(colour.slice(6, -1)) : colour;
}
