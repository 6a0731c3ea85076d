// Charts on canvas that share one time axis, one crosshair and one selection.

const GUTTER = 52, MARGIN = 14, TOP = 8, AXIS = 20;
const TIME_STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800, 1209600];

function theme(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function niceStep(span, count) {
  const rough = span / Math.max(1, count), power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= rough - 1e-12);
}

// The shared state: what is in view, under the pointer and selected.
class Stage {
  constructor(low, high) {
    Object.assign(this, { low, high, t0: low, t1: high, hover: null, selected: null, plots: [], listeners: [] });
  }

  show(t0, t1) {
    const span = Math.min(this.high - this.low, Math.max(t1 - t0, 30));
    const from = Math.max(this.low, Math.min((t0 + t1 - span) / 2, this.high - span));
    Object.assign(this, { t0: from, t1: from + span });
    this.changed();
  }

  zoom(factor, around = (this.t0 + this.t1) / 2) {
    this.show(around - (around - this.t0) * factor, around + (this.t1 - around) * factor);
  }

  pan(seconds) {
    const by = Math.max(this.low - this.t0, Math.min(seconds, this.high - this.t1));
    this.show(this.t0 + by, this.t1 + by);
  }

  point(t) {
    this.hover = t == null ? null : Math.max(this.t0, Math.min(this.t1, t));
    this.draw(false);
  }

  changed() {
    this.listeners.forEach((listener) => listener());
    this.draw(true);
  }

  // Once per frame: everything, or only what follows the pointer.
  draw(everything) {
    this.everything ||= everything;
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      const all = this.everything;
      this.waiting = this.everything = false;
      for (const plot of this.plots) all ? plot.draw() : plot.cursor();
    });
  }
}

// One chart.  `layers` know how to paint themselves: {label, colour, swatch, shown, extent, paint, read}.
class Plot {
  constructor(stage, { title, unit, height, layers, log = null, least = 0, ticks = number, clicked, top = TOP }) {
    Object.assign(this, { stage, unit, height, layers, log, least, ticks, clicked, top });
    this.canvas = make("canvas", { role: "img", "aria-label": title });
    this.over = make("canvas", { class: "over", "aria-hidden": "true" });
    this.legend = make("ul", { class: "legend" });
    this.tools = make("span", { class: "tools" });
    const head = make("figcaption", {}, make("span", { class: "chart-title" }, title, make("small", {}, ` ${unit}`)), this.legend, this.tools);
    this.figure = make("figure", { class: "chart" }, head, make("div", { class: "stack", style: { height: `${height}px` } }, this.canvas, this.over));
    this.rebuild();
    gestures(this);
  }

  rebuild() {
    this.legend.replaceChildren(
      ...this.layers.filter((layer) => layer.label).map((layer) => {
        layer.value = make("b");
        const button = make(
          "button", { type: "button", "aria-pressed": String(layer.shown !== false), title: "Show or hide" },
          make("i", { class: `swatch ${layer.swatch ?? "line"}`, style: { "--c": layer.colour } }), layer.label, layer.value,
        );
        button.addEventListener("click", () => {
          layer.shown = layer.shown === false;
          button.setAttribute("aria-pressed", String(layer.shown));
          this.draw();
        });
        return make("li", {}, button);
      }),
    );
  }

  x(t) {
    return GUTTER + ((t - this.stage.t0) / (this.stage.t1 - this.stage.t0)) * this.inner;
  }

  time(x) {
    return this.stage.t0 + ((x - GUTTER) / this.inner) * (this.stage.t1 - this.stage.t0);
  }

  y(value) {
    const { low, high, bottom, top } = this;
    if (value === Infinity) return this.top;
    const share = this.log ? Math.log(Math.max(value, low) / low) / Math.log(high / low) : (value - low) / (high - low);
    return bottom - Math.min(1.02, Math.max(0, share)) * (bottom - this.top);
  }

  size() {
    const ratio = window.devicePixelRatio || 1, width = this.figure.clientWidth;
    for (const canvas of [this.canvas, this.over]) {
      if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(this.height * ratio)) {
        canvas.width = Math.round(width * ratio);
        canvas.height = Math.round(this.height * ratio);
      }
      canvas.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
    }
    this.width = width;
    this.inner = Math.max(10, width - GUTTER - MARGIN);
    this.bottom = this.height - AXIS;
  }

  scale() {
    let low = Infinity, high = -Infinity;
    for (const layer of this.layers) {
      const extent = layer.shown === false ? null : layer.extent?.(this.stage.t0, this.stage.t1);
      if (extent) [low, high] = [Math.min(low, extent[0]), Math.max(high, extent[1])];
    }
    if (!(low <= high)) [low, high] = [0, 1];
    if (this.log) {
      this.low = Math.max(1e-3, low * 0.8);
      this.high = Math.max(high * 1.4, this.low * 10);
    } else {
      this.low = 0;
      this.high = Math.max(high * 1.08, this.least, 1e-9);
    }
  }

  draw() {
    this.size();
    if (!this.width) return;
    this.scale();
    const ctx = this.canvas.getContext("2d");
    ctx.clearRect(0, 0, this.width, this.height);
    this.grid(ctx);
    ctx.save();
    ctx.beginPath();
    ctx.rect(GUTTER, 0, this.inner, this.bottom + 0.5);
    ctx.clip();
    for (const layer of this.layers) {
      if (layer.shown === false) continue;
      ctx.save();
      layer.paint?.(ctx, this);
      ctx.restore();
    }
    ctx.restore();
    this.cursor();
  }

  values() {
    if (!this.log) {
      const step = niceStep(this.high - this.low, this.height / 42), result = [];
      const whole = this.whole ? Math.max(1, step) : step;
      for (let value = 0; value <= this.high; value += whole) result.push(value);
      return result;
    }
    const result = [];
    const few = Math.log10(this.high / this.low) < 2.2;
    for (let power = Math.floor(Math.log10(this.low)); power <= Math.log10(this.high); power++)
      for (const factor of few ? [1, 2, 5] : [1]) {
        const value = factor * 10 ** power;
        if (value >= this.low && value <= this.high) result.push(value);
      }
    return result;
  }

  grid(ctx) {
    const { stage } = this;
    ctx.font = `11px ${theme("font")}`;
    ctx.fillStyle = theme("muted");
    ctx.strokeStyle = theme("grid");
    ctx.lineWidth = 1;
    ctx.textBaseline = "middle";
    ctx.textAlign = "right";
    for (const value of this.values()) {
      const y = Math.round(this.y(value)) + 0.5;
      line(ctx, GUTTER, y, GUTTER + this.inner, y);
      ctx.fillText(this.ticks(value), GUTTER - 7, y);
    }
    const step = TIME_STEPS.find((each) => ((stage.t1 - stage.t0) / each) * 68 <= this.inner) ?? 1209600;
    const offset = stage.origin ?? 0;
    ctx.textAlign = "center";
    ctx.textBaseline = "top";
    for (let t = Math.ceil((stage.t0 + offset) / step) * step - offset; t <= stage.t1; t += step) {
      const x = Math.round(this.x(t)) + 0.5;
      line(ctx, x, this.top, x, this.bottom);
      const text = tickLabel(t, step, stage.origin), half = ctx.measureText(text).width / 2;
      ctx.fillText(text, Math.max(half, Math.min(x, this.width - half)), this.bottom + 5);
    }
    const scored = stage.scoreFrom;
    if (scored > stage.t0) {
      ctx.fillStyle = theme("veil");
      ctx.fillRect(GUTTER, this.top, Math.min(this.inner, this.x(scored) - GUTTER), this.bottom - this.top);
    }
  }

  // The instant under the pointer, on the axis.
  stamp(ctx, x) {
    const text = instant(this.stage.hover, this.stage.origin);
    ctx.font = `600 11px ${theme("font")}`;
    const half = ctx.measureText(text).width / 2 + 7, at = Math.max(half, Math.min(x, this.width - half));
    ctx.fillStyle = theme("ink");
    ctx.beginPath();
    ctx.roundRect(at - half, this.bottom + 1, 2 * half, 18, 5);
    ctx.fill();
    ctx.fillStyle = theme("card");
    ctx.textAlign = "center";
    ctx.textBaseline = "middle";
    ctx.fillText(text, at, this.bottom + 10.5);
  }

  cursor() {
    if (!this.width) return;
    const { stage } = this, ctx = this.over.getContext("2d");
    ctx.clearRect(0, 0, this.width, this.height);
    if (stage.selected != null && stage.selected >= stage.t0 && stage.selected <= stage.t1) {
      ctx.strokeStyle = theme("accent");
      ctx.lineWidth = 1.5;
      line(ctx, this.x(stage.selected), this.top - 4, this.x(stage.selected), this.bottom);
    }
    if (stage.band) {
      ctx.fillStyle = theme("select");
      const [a, b] = stage.band.map((t) => Math.max(GUTTER, Math.min(GUTTER + this.inner, this.x(t))));
      ctx.fillRect(Math.min(a, b), this.top, Math.abs(b - a), this.bottom - this.top);
    }
    if (stage.hover != null) {
      ctx.strokeStyle = theme("muted");
      ctx.lineWidth = 1;
      ctx.setLineDash([3, 3]);
      const x = Math.round(this.x(stage.hover)) + 0.5;
      line(ctx, x, this.top, x, this.bottom);
      ctx.setLineDash([]);
      this.stamp(ctx, x);
    }
    const t = stage.hover ?? stage.selected;
    for (const layer of this.layers) {
      if (layer.value) layer.value.textContent = t == null || !layer.read ? "" : layer.read(t);
    }
  }
}

function line(ctx, x0, y0, x1, y1) {
  ctx.beginPath();
  ctx.moveTo(x0, y0);
  ctx.lineTo(x1, y1);
  ctx.stroke();
}
