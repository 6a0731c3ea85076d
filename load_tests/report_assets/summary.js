// The table of policies and the picture of what each paid for what it kept.

const share = (value) => percent(value, Math.abs(value) < 0.1 ? 1 : 0);

const COLUMNS = [
  ["attainment_fraction", "Within SLO", "", attainment, "Share of requests whose TTFT and mean ITL kept the SLO"],
  ["gpu_hours", "GPU-hours", "", number, "Ready, starting, draining and sleeping replicas, times GPUs per replica"],
  ["ttft_p50_seconds", "p50", "TTFT", latency, "Time to first token, over all arrivals"],
  ["ttft_p95_seconds", "p95", "TTFT", latency, "Time to first token, over all arrivals"],
  ["ttft_p99_seconds", "p99", "TTFT", latency, "Time to first token, over all arrivals"],
  ["itl_p50_seconds", "p50", "Mean ITL", latency, "Mean inter-token latency of a request"],
  ["itl_p95_seconds", "p95", "Mean ITL", latency, "Mean inter-token latency of a request"],
  ["itl_p99_seconds", "p99", "Mean ITL", latency, "Mean inter-token latency of a request"],
  ["over_fraction", "over", "Against need", share, "Mean ready replicas beyond the least whole number that carries the work"],
  ["under_fraction", "under", "Against need", share, "Mean ready replicas short of the least whole number that carries the work"],
  ["starts", "starts", "Against need", number, "Replicas ordered in the scored window"],
];

function better(name, a, b) {
  return name === "attainment_fraction" ? b - a : a - b;
}

const rank = (value) => (value == null ? Infinity : value === "never" ? 1e300 : value);

// The best value as printed, of those that kept the SLO; attainment is a promise to keep, not a race to win.
function bestOf(group, name, form) {
  if (name === "attainment_fraction" || group.policies.filter((p) => p.met).length < 2) return null;
  const values = group.policies.filter((p) => p.met && p.numbers[name][0] != null).map((p) => rank(p.numbers[name][0]));
  return values.length && Math.min(...values) < 1e300 ? form(Math.min(...values)) : null;
}

function drawTable(group, state, choose) {
  const table = document.getElementById("summary");
  const spans = [];
  for (const [, , head] of COLUMNS) {
    if (spans.length && spans.at(-1)[0] === head) spans.at(-1)[1] += 1;
    else spans.push([head, 1]);
  }
  const best = Object.fromEntries(COLUMNS.map(([name, , , form]) => [name, bestOf(group, name, form)]));
  const dearest = Math.max(...group.policies.map((p) => rank(p.numbers.gpu_hours[0])));
  const order = [...group.policies];
  if (state.sort) {
    const [name, sign] = state.sort;
    order.sort((a, b) => sign * better(name, rank(a.numbers[name][0]), rank(b.numbers[name][0])));
  }
  const heads = make("tr", {}, make("td", { class: "name" }), ...spans.map(([head, n]) => make("th", { colspan: n, scope: "colgroup" }, head)));
  const names = make("tr", {}, make("th", { scope: "col", class: "name" }, "Policy"), ...COLUMNS.map(([name, title, , , hint]) => {
    const sorted = state.sort?.[0] === name;
    const button = make("button", { type: "button", title: hint }, title, make("i", { "aria-hidden": "true" }, sorted ? (state.sort[1] > 0 ? " ↑" : " ↓") : ""));
    button.addEventListener("click", () => {
      state.sort = sorted ? (state.sort[1] > 0 ? [name, -1] : null) : [name, 1];
      drawTable(group, state, choose);
    });
    return make("th", { scope: "col", "aria-sort": sorted ? (state.sort[1] > 0 ? "ascending" : "descending") : false }, button);
  }));
  const rows = order.map((policy) => {
    const button = make("button", { type: "button", class: "pick", title: "Show this run below" }, make("i", { class: "dot", style: { "--c": policy.colour } }), policy.name);
    button.addEventListener("click", () => choose(policy));
    const verdict = policy.met == null ? null : make("span", { class: policy.met ? "kept" : "missed" }, policy.met ? "kept" : "missed");
    return make("tr", { class: policy === state.policy ? "chosen" : "", "data-policy": policy.name },
      make("th", { scope: "row", class: "name" }, button),
      ...COLUMNS.map(([name, , , form]) => cell(policy, name, form, best[name], dearest, verdict)));
  });
  table.replaceChildren(make("thead", {}, heads, names), make("tbody", {}, ...rows));
}

function cell(policy, name, form, best, dearest, verdict) {
  const [mean, low, high] = policy.numbers[name], shown = form(mean);
  const wins = policy.met && best != null && shown === best;
  const node = make("td", { class: wins ? "best" : "", title: wins ? "best of those that kept the SLO" : null });
  if (name === "attainment_fraction") {
    node.append(verdict ?? "", " ");
    node.title = howViolated(policy.numbers);
  }
  node.append(shown);
  if (policy.seeds.length > 1 && mean != null) node.append(make("small", {}, range(form(low), form(high))));
  if (name === "gpu_hours" && mean != null && dearest > 0) node.append(costBar(policy, dearest));
  return node;
}

// How many requests broke the SLO, and in which way (one request may in several).
function howViolated(numbers) {
  const ways = [["violated_ttft", "late"], ["violated_itl", "slow"], ["failed", "failed"], ["unfinished", "unfinished"]];
  const said = ways.filter(([name]) => numbers[name][0] > 0).map(([name, word]) => `${number(Math.round(numbers[name][0]))} ${word}`);
  return `${number(Math.round(numbers.violated[0]))} of ${number(Math.round(numbers.requests[0]))} requests violated the SLO${said.length ? `: ${said.join(", ")}` : ""}`;
}

// The unit is said once where both ends have the same.
function range(low, high) {
  const unit = / [^ ]+$/.exec(low)?.[0];
  if (low === high) return low;
  return unit && high.endsWith(unit) ? `${low.slice(0, -unit.length)}–${high}` : `${low} – ${high}`;
}

function costBar(policy, dearest) {
  const parts = ["ready", "starting", "draining", "sleeping"].map((stage) => [stage, policy.numbers[`${stage}_gpu_hours`][0] ?? 0]);
  const title = parts.filter(([, hours]) => hours > 0).map(([stage, hours]) => `${stage} ${number(hours)}`).join(", ");
  return make("span", { class: "bar", title: `GPU-hours: ${title}` },
    ...parts.map(([stage, hours]) => make("i", { class: stage, style: { width: `${(100 * hours) / dearest}%`, "--c": policy.colour } })));
}

// Cost against the share of requests within the SLO, on the scale of what was missed.
function drawFrontier(group, state, choose) {
  const box = document.getElementById("frontier"), width = 352, height = 262;
  const left = 50, right = 12, top = 14, bottom = 42;
  const points = group.policies.filter((p) => p.numbers.attainment_fraction[0] != null);
  box.replaceChildren();
  if (!points.length) return;
  const missed = (p, i = 0) => 1 - p.numbers.attainment_fraction[i];
  const goal = 1 - group.slo.attainment;
  const positive = [...points.flatMap((p) => [missed(p), missed(p, 1), missed(p, 2)]), goal].filter((v) => v > 1e-12);
  const least = Math.min(...positive) / 3, most = Math.min(1, Math.max(...positive) * 1.8);
  const hours = points.flatMap((p) => p.numbers.gpu_hours), room = 0.12 * (Math.max(...hours) - Math.min(...hours)) || 0.1 * Math.max(...hours) || 1;
  const low = Math.max(0, Math.min(...hours) - room), high = Math.max(...hours) + 1.6 * room;
  const x = (v) => left + ((v - low) / (high - low)) * (width - left - right);
  const y = (v) => top + (Math.log(Math.max(v, least) / least) / Math.log(most / least)) * (height - top - bottom);
  const art = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `GPU-hours against the share of requests within the SLO: ${points.map((p) => `${p.name} ${number(p.numbers.gpu_hours[0])} GPU-hours, ${attainment(p.numbers.attainment_fraction[0])}`).join("; ")}` });
  art.append(svg("rect", { class: "kept-zone", x: left, y: top, width: width - left - right, height: y(goal) - top }));
  for (let power = 0; power >= -7; power--) {
    const v = 10 ** power;
    if (v > most * 1.001 || v < least) continue;
    art.append(svg("line", { class: "gridline", x1: left, x2: width - right, y1: y(v), y2: y(v) }),
      svg("text", { x: left - 7, y: y(v) + 4, "text-anchor": "end" }, `${Number((100 - 100 * v).toFixed(5))} %`));
  }
  if (points.some((p) => missed(p) < least)) art.append(svg("text", { x: left - 7, y: top + 5, "text-anchor": "end" }, "100 %"));
  const step = niceStep(high - low, 5);
  for (let v = Math.ceil(low / step) * step; v < high; v += step) {
    art.append(svg("line", { class: "gridline", x1: x(v), x2: x(v), y1: top, y2: height - bottom }),
      svg("text", { x: x(v), y: height - bottom + 16, "text-anchor": "middle" }, number(v)));
  }
  const inTheWay = (x0) => points.some((p) => Math.abs(y(missed(p)) - y(goal) + 8) < 15 && x(p.numbers.gpu_hours[0]) > x0 - 8 && x(p.numbers.gpu_hours[0]) < x0 + 62);
  const goalX = [left + 5, width - right - 58, left + 110].find((x0) => !inTheWay(x0)) ?? left + 5;
  art.append(svg("line", { class: "goal", x1: left, x2: width - right, y1: y(goal), y2: y(goal) }),
    svg("text", { class: "goal-text", x: goalX, y: y(goal) - 5 }, `SLO ${number(100 * group.slo.attainment)} %`),
    svg("text", { x: left + (width - left - right) / 2, y: height - 6, "text-anchor": "middle" }, "GPU-hours (left is cheaper)"));
  labels(points.map((p) => ({ p, x: x(p.numbers.gpu_hours[0]), y: y(missed(p)) })), width - right, [top, height - bottom], [[goalX, goalX + 54, y(goal) - 15, y(goal) + 1]]).forEach((spot) => {
    const { p } = spot, mark = svg("g", { class: `mark${p === state.policy ? " chosen" : ""}`, style: `--c:${p.colour}` });
    if (p.seeds.length > 1) {
      const [, a, b] = p.numbers.gpu_hours;
      mark.append(svg("line", { class: "range", x1: x(a), x2: x(b), y1: spot.y, y2: spot.y }),
        svg("line", { class: "range", x1: spot.x, x2: spot.x, y1: y(missed(p, 1)), y2: y(missed(p, 2)) }));
    }
    mark.append(svg("circle", { cx: spot.x, cy: spot.y, r: p === state.policy ? 6.5 : 5 }, svg("title", {}, `${p.name}: ${number(p.numbers.gpu_hours[0])} GPU-hours, ${attainment(p.numbers.attainment_fraction[0])}`)),
      svg("text", { x: spot.lx, y: spot.ly }, spot.text));
    mark.addEventListener("click", () => choose(p));
    art.append(mark);
  });
  box.append(art, make("figcaption", {}, "Each policy as it ran: up is fewer requests missed, left is cheaper."));
}

// Labels beside their points, moved where they would cover one another or leave the frame.
function labels(spots, edge, [top, bottom], more = []) {
  const taken = [...more, ...spots.map((s) => [s.x - 7, s.x + 7, s.y - 6, s.y + 6])];
  const shifts = [4, 16, -8, 28, -20, 40, -32, 52, -44];
  for (const spot of [...spots].sort((a, b) => a.y - b.y)) {
    spot.text = spot.p.name.length > 26 ? `${spot.p.name.slice(0, 25)}…` : spot.p.name;
    const wide = 6 * spot.text.length;
    const places = shifts.flatMap((dy) => [1, -1, 0].map((side) => {
      const x0 = side > 0 ? spot.x + 9 : side < 0 ? spot.x - 9 - wide : Math.max(52, Math.min(spot.x - wide / 2, edge - wide));
      return { lx: x0, ly: spot.y + dy, box: [x0, x0 + wide, spot.y + dy - 9, spot.y + dy + 2] };
    })).filter(({ box }) => box[0] >= 50 && box[1] <= edge + 4 && box[3] < bottom && box[2] > top - 12);
    const free = places.find(({ box }) => taken.every((t) => box[1] < t[0] || box[0] > t[1] || box[3] < t[2] || box[2] > t[3]));
    Object.assign(spot, free ?? places[0] ?? { lx: spot.x + 9, ly: spot.y + 4, box: [0, 0, 0, 0] });
    taken.push(spot.box);
  }
  return spots;
}
