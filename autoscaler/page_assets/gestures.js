// Drag zooms, Shift-drag or one finger pans, two fingers pinch, Ctrl-wheel zooms, a click picks.
function gestures(plot) {
  const { stage, over } = plot, fingers = new Map();
  let start = null;
  const place = (event) => event.clientX - over.getBoundingClientRect().left;
  over.addEventListener("pointerdown", (event) => {
    if (event.button > 1) return;
    over.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, place(event));
    const pans = event.pointerType === "touch" || event.shiftKey || event.button === 1;
    start = { x: place(event), t: plot.time(place(event)), pans, moved: false, t0: stage.t0, t1: stage.t1 };
  });
  over.addEventListener("pointermove", (event) => {
    const x = place(event);
    if (event.pointerType !== "touch" || start) stage.point(plot.time(x));
    if (!start) return;
    const before = [...fingers.values()];
    fingers.set(event.pointerId, x);
    if (fingers.size === 2) {
      const now = [...fingers.values()], wide = Math.abs(now[0] - now[1]), was = Math.abs(before[0] - before[1]);
      start.moved = true;
      if (wide > 5 && was > 5) stage.zoom(was / wide, plot.time((now[0] + now[1]) / 2));
      return;
    }
    if (Math.abs(x - start.x) > 4) start.moved = true;
    if (!start.moved) return;
    if (start.pans) {
      const by = ((start.x - x) / plot.inner) * (start.t1 - start.t0);
      stage.show(...shifted(stage, start, by));
    } else {
      stage.band = [start.t, plot.time(x)];
      stage.point(plot.time(x));
    }
  });
  const finish = (event) => {
    fingers.delete(event.pointerId);
    if (!start || fingers.size) return;
    const { moved, pans } = start, band = stage.band;
    start = null;
    stage.band = null;
    if (event.type === "pointerup" && !moved) plot.clicked?.(plot.time(place(event)), place(event), plot);
    else if (band && !pans) stage.show(Math.min(...band), Math.max(...band));
    if (event.pointerType === "touch") stage.point(null);
  };
  over.addEventListener("pointerup", finish);
  over.addEventListener("pointercancel", finish);
  over.addEventListener("pointerleave", () => !start && stage.point(null));
  over.addEventListener("dblclick", () => stage.show(stage.low, stage.high));
  over.addEventListener("wheel", (event) => {
    const sideways = Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey;
    if (!event.ctrlKey && !event.metaKey && !sideways) return;
    event.preventDefault();
    const amount = event.deltaY || event.deltaX;
    if (sideways) stage.pan(((event.deltaX || event.deltaY) / plot.inner) * (stage.t1 - stage.t0));
    else stage.zoom(Math.exp(Math.max(-60, Math.min(60, amount)) / 150), plot.time(place(event)));
  }, { passive: false });
}

function shifted(stage, { t0, t1 }, by) {
  const most = Math.max(stage.low - t0, Math.min(by, stage.high - t1));
  return [t0 + most, t1 + most];
}
