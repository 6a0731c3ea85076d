// State and wiring: the stream, which pool, what is in view, and the parts that are words.

const byId = (id) => document.getElementById(id);
const RANGES = [["15 min", 900], ["1 h", 3600], ["6 h", 21600], ["All", Infinity]];

const app = {
  pools: new Map(), chosen: new URLSearchParams(location.hash.slice(1)).get("pool"), store: null, stage: null,
  stream: null, failures: 0, heard: null, lost: null, offset: 0, started: null, restarted: false, seconds: 3600, open: new Set(),

  connect() {
    this.stream?.close();
    // A pool that the adapter does not know any more must not keep the page from the others.
    const query = this.chosen && this.failures < 3 ? `?pool=${encodeURIComponent(this.chosen)}` : "";
    const stream = (this.stream = new EventSource(`events${query}`));
    const on = (name, work) => stream.addEventListener(name, (event) => {
      if (stream !== this.stream) return;
      this.hear();
      work(JSON.parse(event.data));
      this.age();
    });
    on("state", (data) => this.begin(data));
    on("step", (data) => this.step(data));
    on("clock", (data) => this.tick(data.now, data.pool));
    stream.addEventListener("error", () => stream === this.stream && this.lose());
  },

  hear() {
    this.heard = Date.now();
    this.lost = null;
    this.failures = 0;
  },

  // Also called when nothing was heard for long: a dead connection says nothing.
  lose() {
    this.lost ??= this.heard ?? Date.now();
    this.failures += 1;
    this.stream?.close();
    this.stream = null;
    clearTimeout(this.again);
    this.again = setTimeout(() => this.connect(), Math.min(5000, 500 * 2 ** Math.min(4, this.failures - 1)));
    this.age();
  },

  begin(data) {
    this.restarted = this.started != null && this.started !== data.started ? Date.now() : this.restarted;
    this.started = data.started;
    this.pools = new Map(data.pools.map((pool) => [pool.name, pool]));
    this.chosen = data.pool.name;
    if (this.store?.name !== this.chosen) this.show(new Store(this.chosen));
    this.tick(data.now, this.pools.get(this.chosen));
    this.store.take(data.pool);
    this.draw();
  },

  step(data) {
    this.tick(data.now, data.overview);
    if (!data.pool) return;
    this.store.take(data.pool);
    this.draw();
  },

  tick(now, overview) {
    this.offset = now - Date.now() / 1000;
    this.pools.set(overview.name, overview);
    drawPools(this);
  },

  choose(name) {
    this.chosen = name;
    history.replaceState(null, "", `#pool=${encodeURIComponent(name)}`);
    this.connect();
  },

  show(store) {
    this.store = store;
    const stage = (this.stage = new Stage(0, 1));
    Object.assign(stage, { origin: 0, follows: true });
    const clicked = (t, x, plot) => this.pick(x, plot);
    stage.plots = [workChart(stage, store), replicasChart(stage, store, clicked), burnChart(stage, store)];
    const show = stage.show;
    stage.show = (t0, t1) => {
      show.call(stage, t0, t1);
      stage.follows = stage.t1 >= stage.high - 1;
      if (stage.follows) this.seconds = stage.t1 - stage.t0 >= stage.high - stage.low - 1 ? Infinity : stage.t1 - stage.t0;
      drawRanges(this);
    };
    byId("charts").replaceChildren(...stage.plots.map((plot) => plot.figure));
  },

  draw() {
    const { store, stage } = this;
    if (store.rows.length) {
      const [first, last] = [store.rows[0], store.newest];
      stage.low = first[COLUMN.at] - 60;
      stage.high = Math.max(last[COLUMN.at] + 60, last[COLUMN.to] ?? 0);
      if (stage.follows) Object.assign(stage, { t0: Math.max(stage.low, stage.high - this.seconds), t1: stage.high });
    }
    drawNow(this);
    drawDecisions(this);
    drawBurn(store);
    drawBeliefs(store);
    drawStarts(store);
    drawRanges(this);
    stage.changed();
  },

  pick(x, plot) {
    const near = this.store.changes.map((change) => [Math.abs(plot.x(change.at) - x), change.at]).sort((a, b) => a[0] - b[0])[0];
    if (!near || near[0] > 14) return;
    this.open.add(near[1]);
    this.stage.selected = near[1];
    drawDecisions(this);
    document.querySelector(`#decisions details[data-at="${near[1]}"]`)?.scrollIntoView({ block: "nearest" });
    this.stage.draw(true);
  },

  // What changes without news: how old the news is.
  age() {
    if (this.heard != null && this.lost == null && Date.now() - this.heard > 3000 * PAGE.clock_seconds) this.lose();
    const link = byId("link"), overview = this.pools.get(this.chosen);
    link.className = this.lost != null ? "lost" : this.heard != null ? "live" : "";
    const since = this.lost == null ? null : instant(Math.floor(this.lost / 1000), 0).split(" ").slice(-2).join(" ");
    const again = this.restarted && Date.now() - this.restarted < 60000 ? "live again: the adapter was restarted" : "live";
    const words = this.lost != null ? `connection lost since ${since}, trying again` : this.heard != null ? again : "connecting";
    const span = link.querySelector("span");
    if (span.textContent !== words) span.textContent = words;
    const old = overview?.at == null ? null : Math.max(0, Math.round(Date.now() / 1000 + this.offset - overview.at));
    const node = byId("age");
    if (node) node.textContent = old == null ? "no step yet" : `step ${duration(old)} old`;
    const stale = byId("stale"), text = this.lost == null && overview?.stale ? `${sentence(overview.stale)} Nothing is answered for this pool until there is a new step, and whoever asks holds.` : "";
    stale.hidden = !text;
    if (stale.textContent !== text) stale.textContent = text;
  },
};

function drawPools(app) {
  const nav = byId("pools");
  byId("title").textContent = app.chosen ?? "Autoscaler";
  document.title = `${app.chosen ?? "Autoscaler"} · autoscaler`;
  if (app.pools.size < 2) return void nav.replaceChildren();
  const focused = document.activeElement?.dataset?.pool;
  nav.replaceChildren(...[...app.pools.values()].map((pool) => {
    const count = pool.at == null ? NONE : pool.wanted === pool.ready ? String(pool.ready) : `${pool.ready} → ${pool.wanted}`;
    const note = pool.stale ? make("small", { class: "off" }, pool.at == null ? "not observed" : "stale") : make("small", {}, count);
    const button = make("button", { type: "button", "aria-current": String(pool.name === app.chosen), "data-pool": pool.name, on: { click: () => app.choose(pool.name) } }, pool.name, note);
    if (pool.name === focused) queueMicrotask(() => button.focus());
    return button;
  }));
}

function drawRanges(app) {
  const box = byId("zoom"), focused = document.activeElement?.dataset?.range;
  box.replaceChildren(...RANGES.map(([label, seconds]) => {
    const pressed = app.stage.follows && seconds === app.seconds;
    const button = make("button", { type: "button", "data-range": label, "aria-pressed": String(pressed) }, label);
    button.addEventListener("click", () => {
      app.seconds = seconds;
      app.stage.follows = true;
      app.stage.selected = null;
      app.draw();
    });
    if (label === focused) queueMicrotask(() => button.focus());
    return button;
  }), make("small", { id: "age", "aria-live": "off" }));
  app.age();
}

function drawNow({ store }) {
  const { last, settings, missing, coming } = store;
  if (!last) {
    byId("number").textContent = "not observed yet";
    byId("facts").replaceChildren();
    byId("reasons").replaceChildren();
    return;
  }
  const same = last.before === last.after, next = coming.filter((seconds) => seconds >= 0).sort((a, b) => a - b)[0];
  const unit = last.after === 1 ? " replica" : " replicas";
  const told = `${instant(last.at, 0)}, ${settings.strategy}, bounds ${settings.min} to ${settings.max}`;
  byId("number").replaceChildren(...(same ? [`${last.after}${unit}`] : [change(last.before, last.after), unit]), make("small", {}, told));
  const ttft = store.value("ttft"), itl = store.value("itl"), [burn] = store.burn;
  const facts = [
    ["Ready", number(last.ready)],
    ["Starting", `${number(last.starting)}${last.starting && next != null ? `, next in ${duration(next)}` : ""}`],
    ["Work", store.value("work") == null ? NONE : `${number(store.value("work"))} E`],
    ["Arriving", store.value("requests") == null ? NONE : `${number(store.value("requests"))} /s`],
    ["Waiting", number(store.value("waiting"))],
    ["Forecast 95 %", store.value("high") == null ? NONE : `${number(store.value("high"))} E`],
    ["TTFT p95", latency(ttft), ttft > settings.ttft], ["ITL p95", latency(itl), itl > settings.itl],
    ["Burn 5 min", burn?.burn ? range(...burn.burn) : NONE, burn?.burn && burn.burn[0] > 1],
    ...last.besides.map(([stage, count]) => [stage[0].toUpperCase() + stage.slice(1), number(count), stage === "unhealthy"]),
  ];
  byId("facts").replaceChildren(...facts.map(([name, value, bad]) => make("div", { class: bad ? "bad" : "" }, make("dt", {}, name), make("dd", {}, value))));
  byId("reasons").replaceChildren(...last.reasons.map(reasonItem));
  const others = last.others.length ? [make("h3", {}, "What others asked for"), make("ul", {}, ...last.others.map((reason) => make("li", { class: "quiet" }, `${ruleName(reason.rule)} ${reason.after}: ${reason.text}`)))] : [];
  const split = last.split.length ? [make("p", { class: "quiet" }, `Of these: ${last.split.map(([name, count]) => `${count} ${name}`).join(", ")}.`)] : [];
  const retries = last.closed_loop ? [make("p", { class: "quiet" }, "Much of the demand failed: retries are not taken for news.")] : [];
  const unknown = missing.length ? [make("p", { class: "quiet" }, `Not measured now: ${missing.join(", ")}.`)] : [];
  byId("others").replaceChildren(...split, ...retries, ...unknown, ...others);
}

function drawDecisions(app) {
  const { store, open } = app, list = byId("decisions"), focused = document.activeElement?.closest?.("details")?.dataset?.at;
  const newest = [...store.changes].reverse();
  if (!newest.length) return void list.replaceChildren(make("li", { class: "quiet" }, "No decision has changed the number since this page knows."));
  list.replaceChildren(...newest.map((each) => {
    const last = each.reasons[each.reasons.length - 1], direction = each.after > each.before ? "up" : "down";
    const head = make("summary", {}, change(each.before, each.after), make("span", { class: "why" }, last ? `${ruleName(last.rule)}: ${last.text}` : ""), make("time", { datetime: new Date(1000 * each.at).toISOString() }, instant(each.at, 0)));
    const others = each.others.length ? [make("p", { class: "quiet" }, `Also asked: ${each.others.map((r) => `${ruleName(r.rule)} ${r.after}`).join(", ")}.`)] : [];
    const details = make("details", { "data-at": each.at, class: direction, open: open.has(each.at) }, head, make("ol", { class: "reasons" }, ...each.reasons.map(reasonItem)), ...others);
    details.addEventListener("toggle", () => (details.open ? open.add(each.at) : open.delete(each.at)));
    if (String(each.at) === focused) queueMicrotask(() => head.focus());
    return make("li", {}, details);
  }));
}

function drawBurn({ burn, settings }) {
  byId("promise").textContent = `${percent(settings.attainment, 2)} of requests with TTFT ≤ ${latency(settings.ttft)} and mean ITL ≤ ${latency(settings.itl)}.`;
  byId("burn").replaceChildren(
    make("thead", {}, make("tr", {}, ...["Last", "Within the SLO", "Burn"].map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, ...burn.map(({ seconds, burn: bounds, attained }) => make("tr", {},
      make("th", { scope: "row" }, duration(seconds)), make("td", {}, attained ? range(...attained, attainment) : NONE),
      make("td", { class: !bounds ? "" : bounds[0] > 1 ? "bad" : bounds[1] <= 1 ? "good" : "" }, bounds ? range(...bounds) : NONE)))),
  );
}

function drawBeliefs({ beliefs }) {
  byId("beliefs").replaceChildren(...beliefs.map(([name, value, source]) => make("div", {}, make("dt", {}, name), make("dd", {}, value), source ? make("dd", { class: "fine" }, source) : null)));
}

function drawStarts({ starts }) {
  const done = starts.filter((start) => start.seconds != null).map((start) => start.seconds).sort((a, b) => a - b);
  byId("starts-note").textContent = !starts.length ? "None since this adapter was started." : done.length ? `${done.length} seen: half within ${duration(done[Math.floor((done.length - 1) / 2)])}, the longest ${duration(done[done.length - 1])}.` : "";
  if (!starts.length) return void byId("starts").replaceChildren();
  byId("starts").replaceChildren(
    make("thead", {}, make("tr", {}, ...["Ordered", "Ready after", ""].map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, ...starts.slice(0, 12).map(({ ordered, seconds, from_zero }) => make("tr", {}, make("td", {}, instant(ordered, 0)), make("td", {}, seconds == null ? "on its way" : duration(seconds)), make("td", {}, from_zero ? "from zero" : "")))),
  );
}

addEventListener("resize", () => app.stage?.changed());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => app.stage?.changed());
setInterval(() => app.age(), 1000);
app.connect();
window.fleetPage = { app, rows: () => app.store?.rows.length ?? 0 };
