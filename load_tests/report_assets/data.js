// What the page holds, decoded when it is first looked at.

const PAGE = JSON.parse(document.getElementById("data").textContent);
const LARGEST = 65000, NEVER = 65534, UNKNOWN = 65535;
const decoded = new Map();

function column(index) {
  if (decoded.has(index)) return decoded.get(index);
  const { low, high, log, codes } = PAGE.columns[index];
  const bytes = atob(codes), n = bytes.length / 2, values = new Float64Array(n);
  const a = log ? Math.log(low) : low, span = (log ? Math.log(high) : high) - a;
  for (let i = 0; i < n; i++) {
    const code = bytes.charCodeAt(2 * i) | (bytes.charCodeAt(2 * i + 1) << 8);
    const place = a + (span * code) / LARGEST;
    values[i] = code === UNKNOWN ? NaN : code === NEVER ? Infinity : log ? Math.exp(place) : place;
  }
  decoded.set(index, values);
  return values;
}

// A column of changes: value v[i] holds from t[i] on.
class Steps {
  constructor({ size, rows, values }, start, interval) {
    let row = 0;
    this.t = rows.map((delta) => start + (row += delta) * size * interval);
    this.v = values;
  }

  // The index that holds at `t`; -1 before the first.
  index(t) {
    let low = 0, high = this.t.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.t[middle] <= t) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  at(t) {
    const i = this.index(t);
    return i < 0 ? NaN : this.v[i];
  }

  extent(t0, t1) {
    let most = 0;
    for (let i = Math.max(0, this.index(t0)); i < this.t.length && this.t[i] < t1; i++) most = Math.max(most, this.v[i]);
    return [0, most];
  }

  static sum(a, b) {
    const result = Object.create(Steps.prototype);
    result.t = [...new Set([...a.t, ...b.t])].sort((x, y) => x - y);
    result.v = result.t.map((t) => (a.at(t) || 0) + (b.at(t) || 0));
    return result;
  }
}

// The series of one policy on its own grid of buckets.
class Series {
  constructor({ start, interval, rows, bucket, steps, columns }) {
    this.start = start;
    this.width = interval * bucket;
    this.interval = interval;
    this.rows = rows;
    this.end = start + rows * interval;
    this.indices = columns;
    this.steps = Object.fromEntries(Object.entries(steps).map(([k, v]) => [k, new Steps(v, start, interval)]));
    this.steps.coming = Steps.sum(this.steps.ready, this.steps.starting);
  }

  get(name) {
    return column(this.indices[name]);
  }

  at(name, t) {
    const values = this.get(name), i = Math.floor((t - this.start) / this.width + 1e-9);
    return i >= 0 && i < values.length ? values[i] : NaN;
  }

  // Least and largest finite value between two instants.
  extent(name, t0, t1) {
    const values = this.get(name);
    let low = Infinity, high = -Infinity;
    const last = Math.min(values.length, Math.ceil((t1 - this.start) / this.width));
    for (let i = Math.max(0, Math.floor((t0 - this.start) / this.width)); i < last; i++) {
      const value = values[i];
      if (value < low) low = value;
      if (value > high && value !== Infinity) high = value;
    }
    return low <= high ? [low, high] : null;
  }
}

function seriesOf(policy) {
  policy.made ??= new Series(policy.series);
  return policy.made;
}

// A decision's reasons, spelled out.
function reasonsOf(event) {
  if (!event[5]) return null;
  return event[5].map(([index, before, after]) => {
    const [shape, sentence, numbers, values] = PAGE.causes[index];
    const [rule, names] = PAGE.shapes[shape];
    let next = 0;
    const text = PAGE.words[sentence].replace(/\u241f/g, () => numbers[next++]);
    return { rule, before, after, text, inputs: names.map((name, i) => [name, values[i]]) };
  });
}
