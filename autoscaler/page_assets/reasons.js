// Rules by name, and one stage of a decision as a list item: what it changed, its sentence, its inputs.

const RULES = {
  reactive: "Work that arrives", predictive: "Forecast", in_flight: "Requests in flight", keep: "Keep", bounds: "Bounds",
  rate: "Rate limit", tolerance: "Tolerance", unknown_hold: "Hold: unknown", silent: "Silent replicas", schedule: "Schedule",
  backlog: "Backlog", saturation: "Saturation", wake: "Wake from zero", hold: "Hold", stabilization: "Stabilization",
  spare: "Spare capacity", observer: "Observer", sick: "Sick replicas", ratio: "Ratio to another pool", groups: "Placement groups",
  deferrable: "Work that may wait", power_down: "Power-down",
};

function ruleName(rule) {
  if (rule.startsWith("target:")) return `Target: ${rule.slice(7).replaceAll("_", " ")}`;
  if (RULES[rule]) return RULES[rule];
  const [law, ...rest] = rule.replaceAll("_", " ").split(":");
  const name = law.length <= 3 ? law.toUpperCase() : law[0].toUpperCase() + law.slice(1);
  return [name, ...rest].join(": ");
}

function sentence(text) {
  if (!text) return "";
  return `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}

function change(before, after, unit = "") {
  return make("span", { class: "change" }, String(before), make("i", { "aria-label": "to" }, "→"), make("b", {}, String(after)), unit);
}

function reasonItem(reason) {
  const inputs = reason.inputs.length
    ? make("table", { class: "inputs" }, make("tbody", {}, ...reason.inputs.map(([name, value]) =>
        make("tr", {}, make("th", { scope: "row" }, name.replace(/_(seconds|fraction)$/, "").replaceAll("_", " ")), make("td", { title: `${name} = ${value}` }, input(name, value))))))
    : null;
  const moved = reason.before === reason.after ? make("span", { class: "change same" }, "stays ", make("b", {}, String(reason.after))) : change(reason.before, reason.after);
  return make("li", { class: "reason", "data-rule": reason.rule },
    make("h4", {}, ruleName(reason.rule), moved), reason.text ? make("p", {}, sentence(reason.text)) : null, inputs);
}
