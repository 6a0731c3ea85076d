// What has come so far of the chosen pool: rows by name, merged over reconnects; sums over windows.

const PAGE = JSON.parse(document.getElementById("data").textContent);
const MOST_ROWS = 20000;
const COLUMN = Object.fromEntries(PAGE.columns.map((name, i) => [name, i]));

class Store {
  constructor(name) {
    Object.assign(this, { name, rows: [], changes: [], settings: null, last: null, burn: [], starts: [], coming: [], beliefs: [], missing: [] });
  }

  // Rows of a stream that began anew are merged with those that are here: what was seen stays.
  take(data) {
    this.rows = merged(this.rows, data.rows, (row) => row[COLUMN.at]).slice(-MOST_ROWS);
    this.changes = merged(this.changes, [...data.changes].reverse(), (change) => change.at).slice(-200);
    for (const key of ["settings", "last", "burn", "starts", "coming", "beliefs", "missing"]) if (data[key] !== undefined) this[key] = data[key];
  }

  get newest() {
    return this.rows[this.rows.length - 1] ?? null;
  }

  value(name, row = this.newest) {
    return row?.[COLUMN[name]] ?? null;
  }

  // The row that holds at `t`: none inside a gap.
  at(t) {
    const i = this.index(t);
    return i >= 0 && t - this.rows[i][COLUMN.at] <= this.gap ? this.rows[i] : null;
  }

  index(t) {
    let low = 0, high = this.rows.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.rows[middle][COLUMN.at] <= t) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  // Longer than this between two rows, and nothing is known of the time between.
  get gap() {
    return 3 * (this.settings?.interval ?? 10);
  }

  // Rows that a view from t0 to t1 touches.
  inView(t0, t1) {
    return this.rows.slice(Math.max(0, this.index(t0)), this.index(t1) + 2);
  }

  extent(name, t0, t1) {
    let low = Infinity, high = -Infinity;
    for (const row of this.inView(t0, t1)) {
      const value = row[COLUMN[name]];
      if (value == null) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
    return low <= high ? [low, high] : null;
  }

  // The forecast whose window holds `t`.
  forecast(t) {
    for (let i = this.rows.length - 1; i >= 0; i--) {
      const row = this.rows[i];
      if (row[COLUMN.from] != null && row[COLUMN.from] <= t && t < row[COLUMN.to]) return row;
      if (row[COLUMN.at] < t - 7200) break;
    }
    return null;
  }

  // Burn over the last `seconds` before each row: [at, low, high], null where nobody was served.
  burns(seconds) {
    const allowed = 1 - this.settings.attainment, result = [];
    let first = 0, served = 0, low = 0, high = 0;
    for (const row of this.rows) {
      const add = (r, sign) => {
        served += sign * (r[COLUMN.served] ?? 0);
        low += sign * (r[COLUMN.bad_low] ?? 0);
        high += sign * (r[COLUMN.bad_high] ?? 0);
      };
      add(row, 1);
      while (this.rows[first][COLUMN.at] <= row[COLUMN.at] - seconds) add(this.rows[first++], -1);
      const known = served > 1e-6;
      result.push([row[COLUMN.at], known ? Math.max(0, low) / served / allowed : null, known ? Math.max(0, high) / served / allowed : null]);
    }
    return result;
  }
}

function merged(old, fresh, at) {
  if (!fresh.length) return old;
  const all = new Map(old.map((each) => [at(each), each]));
  for (const each of fresh) all.set(at(each), each);
  return [...all.values()].sort((a, b) => at(a) - at(b));
}
