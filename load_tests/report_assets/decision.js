// The side panel: one decision, its reasons as sentences, and what the pool looked like.

function circumstances(series, t, slo) {
  const steps = series.steps, ttft = series.at("ttft_high", t);
  const facts = [
    ["Ready", number(steps.ready.at(t))], ["Starting", number(steps.starting.at(t))],
    ["Needed", number(series.at("need_high", t))], ["Arriving", `${number(series.at("arrivals", t))} /s`],
    ["Waiting", number(series.at("waiting", t))], ["TTFT p95", latency(ttft), ttft > slo.ttft],
  ];
  return make("dl", { class: "facts" }, ...facts.map(([name, value, bad]) => make("div", { class: bad ? "bad" : "" }, make("dt", {}, name), make("dd", {}, value))));
}

// Rows of the timeline may be coarser than decisions: say when the facts are from.
function seenAt(series, at, origin) {
  const row = series.start + Math.floor((at - series.start) / series.interval + 1e-9) * series.interval;
  return at - row < 0.5 ? [] : [make("p", { class: "fine" }, `As of ${instant(row, origin)}.`)];
}

function drawDecision(app) {
  const { state, group } = app, policy = state.policy, events = policy.events, event = events[state.event];
  const panel = document.getElementById("decision");
  panel.classList.toggle("open", event != null);
  if (!event) return void panel.replaceChildren(...invitation(app));
  const [at, before, after, kind, note] = event, reasons = reasonsOf(event);
  const button = (label, hint, target) => {
    const node = make("button", { type: "button", "aria-label": hint, title: hint, disabled: target < 0 || target >= events.length }, label);
    node.addEventListener("click", () => app.select(target));
    return node;
  };
  const close = make("button", { type: "button", class: "close", "aria-label": "Close", title: "Close (Esc)" }, "×");
  close.addEventListener("click", () => app.select(null));
  const same = before === after;
  panel.replaceChildren(
    make("header", {},
      make("div", { class: "steps" }, button("←", "Previous decision (left arrow)", state.event - 1), make("span", {}, `${state.event + 1} of ${events.length}`), button("→", "Next decision (right arrow)", state.event + 1), close),
      make("p", { class: "who" }, make("i", { class: "dot", style: { "--c": policy.colour } }), policy.name, !kind && note ? ` · ${note}` : "", make("span", {}, instant(at, group.origin))),
      make("h3", {}, kind ? `${kind[0].toUpperCase()}${kind.slice(1)}` : "", kind && !same ? ": " : "", ...(kind && same ? [] : [change(before, after), after === 1 ? " replica" : " replicas"]))),
    circumstances(seriesOf(policy), at, group.slo),
    ...seenAt(seriesOf(policy), at, group.origin),
    ...(kind && note ? [make("p", { class: "note" }, sentence(note))] : []),
    ...(reasons?.length ? [make("h5", {}, "Why, stage by stage"), make("ol", { class: "reasons" }, ...reasons.map(reasonItem))] : []),
    ...(reasons ? [] : [make("p", { class: "fine" }, "The reasons of this smaller change were left out to keep the file small; the step log has them.")]),
    ...(reasons && !reasons.length && !kind ? [make("p", { class: "fine" }, "This policy gave no reason.")] : []),
  );
}

// Nothing is selected: offer the largest changes.
function invitation(app) {
  const { policy } = app.state, { group } = app;
  const largest = policy.events.map((event, i) => [Math.abs(event[2] - event[1]), i, event[2]]).sort((a, b) => b[0] - a[0] || b[2] - a[2] || a[1] - b[1]).slice(0, 6);
  if (!largest.length) return [make("h3", {}, "No decision"), make("p", { class: "fine" }, `${policy.name} never changed its number.`)];
  return [
    make("h3", {}, "Why that many?"),
    make("p", {}, "Click a mark on the rail of the replicas chart, or step through them with ", make("kbd", {}, "←"), " ", make("kbd", {}, "→"), "."),
    make("h5", {}, `Largest of ${number(policy.events.length)} changes by ${policy.name}`),
    make("ul", { class: "largest" }, ...largest.map(([, i]) => {
      const [at, before, after, kind] = policy.events[i];
      const button = make("button", { type: "button" }, change(before, after), make("span", {}, `${instant(at, group.origin)}${kind ? ` · ${kind}` : ""}`));
      button.addEventListener("click", () => app.select(i, true));
      return make("li", {}, button);
    })),
  ];
}
