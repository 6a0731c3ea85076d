// Policies compared at equal attainment: ratios at a glance, frontiers side by side, one case in full.

const BENCH = JSON.parse(document.getElementById("data").textContent);
const DASHES = ["", "6 3", "2 2.5"];
const MOST_MISSED = 0.3, LEAST_MISSED = 0.00005;
const state = { target: null, ours: null, chosen: 0, lit: null };

const references = [...new Set(BENCH.cases.flatMap((c) => c.references))];
state.ours = references[0] ?? null;
const rivals = [...new Set(BENCH.cases.flatMap((c) => c.contenders.filter((k) => !k.tunes_itself).map((k) => k.name)))];
const look = Object.fromEntries(rivals.map((name, i) => [name, { colour: `var(--p${1 + (i % 7)})`, dash: DASHES[Math.floor(i / 7) % 3] }]));
const targets = [...new Set(BENCH.cases.flatMap((c) => c.targets.map((t) => t.target)))].sort((a, b) => a - b);
state.target = targets.includes(0.99) ? 0.99 : targets[0];

const at = (kase) => kase.targets.find((t) => t.target === state.target && t.reference === state.ours);
const lineOf = (kase, name) => at(kase)?.lines.find((l) => l.contender === name);
// Long names may break after an underscore.
const breakable = (name) => name.replaceAll("_", "_\u200b");
const ratioText = (value) => value.toFixed(value < 9.995 ? 2 : 1);

function drawTargets() {
  const box = document.getElementById("targets");
  const pick = (field, value, text) => make("button", { type: "button", "aria-pressed": String(state[field] === value), on: { click: () => { state[field] = value; draw(); } } }, text);
  box.replaceChildren(...(references.length > 1 ? ["ours", ...references.map((name) => pick("ours", name, name))] : []), "asked for", ...targets.map((target) => pick("target", target, attainment(target))));
}

function ratioCell(line) {
  const found = line?.ratio;
  if (!found) return make("td", { class: "none" }, line ? "tunes itself" : NONE);
  if (found.value == null) {
    const never = found.missed === "above";
    return make("td", { class: "none", title: never ? "No knob of this policy attains as much" : "Even its cheapest knob attains more" }, never ? "never attains" : "attains more");
  }
  const sure = line.claim === "cheaper" || line.claim === "dearer";
  const depth = Math.min(34, 60 * Math.abs(Math.log(found.value)));
  return make("td", { class: `${found.value < 0.995 ? "less" : found.value > 1.005 ? "more" : ""}${sure ? " sure" : ""}`, style: { "--depth": depth }, title: `${line.claim}${span(found) ? `, ${span(found)}` : ""}` }, ratioText(found.value));
}

function span(found) {
  if (found.low == null) return "";
  const both = `${found.low.toFixed(3)} to ${found.high.toFixed(3)}`;
  return found.interval === "range" ? `range ${both}` : `95 % ${both}`;
}

function drawGlance() {
  const cases = BENCH.cases, some = (pick) => cases.some((c) => pick(at(c)) != null);
  const head = make("tr", {}, make("td", { class: "name" }), ...cases.map((kase, i) => make("th", { scope: "col", class: i === state.chosen ? "chosen" : "" },
    make("button", { type: "button", class: "pick", on: { click: () => choose(i) } }, breakable(kase.name)))));
  const fact = (title, hint, cell) => make("tr", { class: "fact" }, make("th", { class: "name", scope: "row", title: hint }, title), ...cases.map((kase) => cell(at(kase))));
  const facts = [fact("ours attained", "", (now) => {
    const ours = now?.ours, short = ours && ours.attainment_fraction < state.target - 0.1 * (1 - state.target);
    return make("td", { class: short ? "off" : "" }, ours ? attainment(ours.attainment_fraction) : NONE);
  })];
  if (some((now) => now?.over_oracle)) facts.push(fact("over the clairvoyant", "Our cost over that of somebody who knows the future", (now) => make("td", {}, now?.over_oracle != null ? ratioText(now.over_oracle) : NONE)));
  if (some((now) => now?.over_cheapest)) {
    facts.push(fact("over the cheapest at just the target", "Our cost over that of the cheapest peer in hindsight, at the target and not at what we attained", (now) => make("td", { class: now?.over_cheapest > 1.005 ? "more" : now?.over_cheapest < 0.995 ? "less" : "", style: { "--depth": 0 }, title: now?.cheapest_at_target ?? "" }, now?.over_cheapest != null ? ratioText(now.over_cheapest) : NONE)));
  }
  const rows = rivals.map((name) => make("tr", {}, make("th", { class: "name", scope: "row" }, name), ...cases.map((kase) => ratioCell(lineOf(kase, name)))));
  document.getElementById("glance").replaceChildren(make("thead", {}, head), make("tbody", {}, ...facts, ...rows));
  document.getElementById("glance-note").textContent = "Below 1 we are cheaper. Each peer's knob is picked afterwards on the test days, at the attainment that we realised (the target, where we met it to within a tenth of what may be violated). Bold: the 95 % interval of resampled days excludes 1, corrected over the traces of a start-up (Holm); with fewer than " + BENCH.least_days + " test days nothing is claimed. The cost at just the target is no equal comparison: it counts what we attain beyond the promise against us.";
}

const W = 320, H = 214, L = 44, R = 10, T = 10, B = 30;

function drawFrontiers() {
  const groups = new Map();
  BENCH.cases.forEach((kase, i) => groups.set(kase.family, [...(groups.get(kase.family) ?? []), [kase, i]]));
  const parts = [];
  for (const [family, members] of groups) {
    if (groups.size > 1) parts.push(make("div", { class: "family" }, family));
    parts.push(make("div", { class: "frontier-grid" }, ...members.map(([kase, i]) => card(kase, i))));
  }
  document.getElementById("frontiers").replaceChildren(...parts);
  document.getElementById("frontiers-note").textContent = "Each dot is one knob on the test days; faint ones are beaten by another knob of the same policy. Square: as shipped. Diamond: ours, untuned, once per target. Bar: the clairvoyant. Right is more attained; down is cheaper. Dear and poor points beyond the frame are left out, ours is held at its edge; the tables have them.";
}

function card(kase, index) {
  const node = make("div", { class: `frontier-card${index === state.chosen ? " chosen" : ""}`, tabindex: "0", role: "button", "aria-label": `${kase.name}: show the table`,
    on: { click: () => choose(index), keydown: (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); choose(index); } } } }, make("h3", {}, kase.name));
  node.append(picture(kase));
  return node;
}

function picture(kase) {
  const ours = kase.targets.filter((t) => t.ours).map((t) => ({ name: t.reference, target: t.target, missed: Math.max(LEAST_MISSED, 1 - t.ours.attainment_fraction), hours: t.ours.gpu_hours }));
  const inside = (m) => m <= MOST_MISSED;
  const fronts = kase.contenders.flatMap((c) => c.test.filter((p) => p.frontier && p.violated <= 0.1).map((p) => p.gpu_hours));
  const now = at(kase), shown = ours.filter((o) => o.name === state.ours).map((o) => o.hours), room = fronts.length ? 1.6 * median(fronts) : 0;
  const top = 1.12 * Math.max(...(shown.length ? shown : [0]).map((h) => (room ? Math.min(h, 2.5 * room) : h)), room, 1e-9);
  const low = 0;
  const x = (m) => L + (Math.log(MOST_MISSED / Math.max(LEAST_MISSED, m)) / Math.log(MOST_MISSED / LEAST_MISSED)) * (W - L - R);
  const y = (h) => H - B - ((h - low) / (top - low)) * (H - T - B);
  const art = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `GPU-hours against attainment, ${kase.name}` });
  const limit = svg("clipPath", { id: `clip${kase.index}` }, svg("rect", { x: L - 4, y: T - 4, width: W - L - R + 8, height: H - T - B + 8 }));
  art.append(svg("defs", {}, limit));
  for (const share of [0.7, 0.9, 0.99, 0.999, 0.9999]) {
    const px = x(1 - share);
    art.append(svg("line", { class: "gridline", x1: px, x2: px, y1: T, y2: H - B }));
    const label = svg("text", { x: px, y: H - B + 13, "text-anchor": "middle" });
    label.textContent = `${Number((100 * share).toPrecision(4))} %`;
    art.append(label);
  }
  for (const value of ticks(top)) {
    art.append(svg("line", { class: "gridline", x1: L, x2: W - R, y1: y(value), y2: y(value) }));
    const label = svg("text", { x: L - 5, y: y(value) + 3, "text-anchor": "end" });
    label.textContent = number(value);
    art.append(label);
  }
  art.append(svg("line", { class: "goal", x1: x(1 - state.target), x2: x(1 - state.target), y1: T, y2: H - B }));
  const plot = svg("g", { "clip-path": `url(#clip${kase.index})` });
  for (const contender of kase.contenders) if (!contender.tunes_itself) plot.append(series(kase, contender, x, y, inside, top));
  if (now?.oracle) {
    const px = x(Math.max(LEAST_MISSED, 1 - now.oracle.attainment_fraction)), py = y(now.oracle.gpu_hours);
    plot.append(svg("line", { class: "oracle-mark", x1: px - 7, x2: px + 7, y1: py, y2: py }, titled(`clairvoyant: ${number(now.oracle.gpu_hours)} GPU-hours`)));
  }
  for (const one of ours) {
    const px = x(one.missed), py = Math.max(T + 4, y(one.hours)), main = one.target === state.target && one.name === state.ours, big = main ? 6 : 3.5;
    if (main) plot.append(svg("line", { class: "ours-now", x1: px, x2: px, y1: py, y2: H - B }));
    plot.append(svg("path", { class: `ours-mark${main ? "" : " aside"}`, d: `M${px} ${py - big}L${px + big} ${py}L${px} ${py + big}L${px - big} ${py}Z` }, titled(`${one.name}, asked for ${attainment(one.target)}: ${number(one.hours)} GPU-hours at ${attainment(1 - one.missed)}`)));
    if (one.hours <= top) continue;
    const label = svg("text", { x: px - 9, y: T + 8, "text-anchor": "end" });
    label.textContent = `${number(one.hours)} ↑`;
    plot.append(label);
  }
  art.append(plot);
  const axis = svg("text", { x: (L + W - R) / 2, y: H - 4, "text-anchor": "middle" });
  axis.textContent = "attained, against GPU-hours";
  art.append(axis);
  return art;
}

function series(kase, contender, x, y, inside, top) {
  const { colour, dash } = look[contender.name] ?? { colour: "var(--p7)", dash: "" };
  const group = svg("g", { class: `series${state.lit === contender.name ? " lit" : ""}`, "data-name": contender.name });
  group.style.setProperty("--c", colour);
  const kept = contender.test.filter((p) => p.frontier).sort((a, b) => b.violated - a.violated);
  if (kept.length > 1) group.append(svg("polyline", { class: "curve", "stroke-dasharray": dash, points: kept.map((p) => `${x(Math.min(0.9, p.violated)).toFixed(1)},${y(Math.min(p.gpu_hours, 3 * top)).toFixed(1)}`).join(" ") }));
  for (const point of contender.test) {
    if (!inside(point.violated) || point.gpu_hours > 1.05 * top) continue;
    group.append(svg("circle", { class: `dots${point.frontier ? "" : " beaten"}`, cx: x(point.violated), cy: y(point.gpu_hours), r: 2 }, titled(`${contender.name}, headroom ${number(point.knob)}: ${number(point.gpu_hours)} GPU-hours at ${attainment(1 - point.violated)}`)));
  }
  const shipped = lineOf(kase, contender.name)?.shipped;
  if (shipped && inside(1 - shipped.attainment_fraction) && shipped.gpu_hours < 1.05 * top) {
    group.append(svg("rect", { class: "as-shipped", x: x(1 - shipped.attainment_fraction) - 3.5, y: y(shipped.gpu_hours) - 3.5, width: 7, height: 7 }, titled(`${contender.name} as shipped: ${number(shipped.gpu_hours)} GPU-hours at ${attainment(shipped.attainment_fraction)}`)));
  }
  return group;
}

function titled(text) {
  const node = svg("title");
  node.textContent = text;
  return node;
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
}

function ticks(top) {
  const rough = top / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  return Array.from({ length: Math.floor(top / step) + 1 }, (_, i) => i * step);
}

function drawLegend() {
  const light = (name) => {
    state.lit = name;
    document.getElementById("frontiers").classList.toggle("quiet", name != null);
    for (const node of document.querySelectorAll(".series")) node.classList.toggle("lit", node.dataset.name === name);
  };
  document.getElementById("legend").replaceChildren(...rivals.map((name) => {
    const { colour, dash } = look[name];
    const stroke = svg("svg", { viewBox: "0 0 24 10" }, svg("line", { x1: 0, x2: 24, y1: 5, y2: 5, stroke: colour, "stroke-width": 2.2, "stroke-dasharray": dash }));
    return make("button", { type: "button", style: { "--c": colour }, "aria-pressed": String(state.pinned === name), on: {
      mouseenter: () => light(name), mouseleave: () => light(state.pinned ?? null),
      click: () => { state.pinned = state.pinned === name ? null : name; light(state.pinned); drawLegend(); },
    } }, stroke, name);
  }));
}

const VERDICTS = { "cheaper and better": ["ours cheaper, better", "less"], "dearer and worse": ["ours dearer, worse", "more"], "not comparable": ["not comparable", "none"] };

function againstCell(found) {
  if (!found) return make("td", {}, "");
  if (found.verdict !== "ratio") return make("td", { class: VERDICTS[found.verdict][1] }, VERDICTS[found.verdict][0]);
  return make("td", { class: found.ratio < 0.995 ? "less" : found.ratio > 1.005 ? "more" : "" }, ratioText(found.ratio));
}

const outcomeCells = (found) => [make("td", {}, found ? number(found.gpu_hours) : ""), make("td", {}, found ? attainment(found.attainment_fraction) : "")];

function drawDetail() {
  const kase = BENCH.cases[state.chosen], now = at(kase);
  document.getElementById("detail-title").textContent = kase.name;
  const days = (parts) => parts.map(([a, b]) => `${a.toFixed(1)} to ${b.toFixed(1)}`).join(", ");
  const told = [`Asked for ${attainment(state.target)}, compared at ${attainment(now?.place)}.`];
  if (now?.ours) told.push(`${state.ours}: ${number(now.ours.gpu_hours)} GPU-hours at ${attainment(now.ours.attainment_fraction)}.`);
  if (now?.over_cheapest != null) told.push(`That is ${ratioText(now.over_cheapest)} times the cheapest peer in hindsight at just the target (${now.cheapest_at_target}).`);
  if (now?.oracle) told.push(`Clairvoyant: ${number(now.oracle.gpu_hours)} GPU-hours (ours ${ratioText(now.over_oracle)} times that).`);
  if (now?.bound_gpu_hours != null) told.push(now.bound_holds === false ? `The lower bound of ${number(now.bound_gpu_hours)} GPU-hours is none: somebody did it for less.` : `Nobody does it below ${number(now.bound_gpu_hours)} GPU-hours.`);
  told.push(`Days of the trace run, first hour not scored: test ${days(kase.test_days)}${kase.train_days.length ? `, train ${days(kase.train_days)}` : ""}; seeds ${kase.test_seeds.join(", ")}; ${kase.engine}.`, ...kase.notes);
  document.getElementById("detail-setting").textContent = told.join(" ");
  const groups = make("tr", { class: "group" }, make("td", { class: "name" }), ...[["As shipped", 3], ["Tuned on train days", 4], ["Hindsight", 5]].map(([text, n]) => make("th", { colspan: n, scope: "colgroup" }, text)));
  const heads = ["GPU-hours", "attained", "ours / it", "headroom", "GPU-hours", "attained", "ours / it", "at target", "at ours", "ours / it", "interval", "claim"];
  const rows = (now?.lines ?? []).map((line) => {
    const found = line.ratio, cell = ratioCell(line);
    cell.style.removeProperty("--depth");
    return make("tr", {}, make("th", { class: "name", scope: "row" }, line.contender), ...outcomeCells(line.shipped), againstCell(line.shipped_against),
      make("td", {}, line.tuned ? number(line.tuned.knob) : ""), ...outcomeCells(line.tuned), againstCell(line.tuned_against),
      make("td", {}, line.target_gpu_hours == null ? "" : number(line.target_gpu_hours)), make("td", {}, line.hindsight_gpu_hours == null ? "" : number(line.hindsight_gpu_hours)), cell, make("td", {}, found ? span(found) : ""), make("td", {}, line.claim ? ({ cheaper: "ours cheaper", dearer: "ours dearer" })[line.claim] ?? line.claim : ""));
  });
  document.getElementById("detail").replaceChildren(make("thead", {}, groups, make("tr", {}, make("th", { class: "name", scope: "col" }, "Policy"), ...heads.map((text) => make("th", { scope: "col" }, text)))), make("tbody", {}, ...rows));
  document.getElementById("detail-note").textContent = "Headroom 2 asks for about twice the replicas of the shipped setting; tuned settings have the known traps of the originals removed. A ratio is given only where both attain the same to within a tenth of what may be violated; else who is both cheaper and better, if anybody.";
}

function choose(index) {
  state.chosen = index;
  draw();
}

function draw() {
  drawTargets();
  drawGlance();
  drawFrontiers();
  drawDetail();
  document.getElementById("frontiers").classList.toggle("quiet", state.lit != null);
}

BENCH.cases.forEach((kase, i) => { kase.index = i; });
document.getElementById("title").textContent = "Autoscalers at equal attainment";
document.getElementById("setting").textContent = `${BENCH.cases.length} case${BENCH.cases.length === 1 ? "" : "s"}, ${rivals.length} other policies${references.length ? `; "ours" is ${references.join(" or ")}, each run once, as it is` : ""}. Same requests, same simulated fleet, same seeds for all.`;
drawLegend();
draw();
window.benchReport = { state, draw };
