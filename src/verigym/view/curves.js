// Learning curves: small charts drawn as SVG, with values under the pointer or the arrow keys.

const MAIN = ["reward", "pass_rate", "eval/pass_rate"];
const SHOWN = [
  "policy_tokens_per_episode",
  "turns",
  "truncated_share",
  "entropy",
  "kl",
  "grad_norm",
  "loss",
  "clip_share",
  "sampler_gap_mean",
  "explained_variance",
];
const HEIGHT = 190;
const MARGIN = { top: 10, right: 12, bottom: 24, left: 48 };

function curvesView(route) {
  const { series } = Data.run;
  const names = Object.keys(series).sort();
  if (!names.length) return [summary(), el("p", { class: "empty" }, "No metrics yet: the first step has not ended.")];
  const wanted = route.get("metrics");
  const chosen =
    wanted === null ? SHOWN.filter((name) => series[name]) : wanted.split(",").filter((name) => series[name]);
  const smoothing = Math.min(0.99, Math.max(0, Number(route.get("smooth")) || 0));
  const grid = el("div", { class: "charts" });
  const draw = (metrics, smooth) => {
    const main = MAIN.filter((name) => series[name]);
    const charts = main.length ? [chart("Reward and pass rate", main, smooth, true)] : [];
    grid.replaceChildren(...charts, ...metrics.map((name) => chart(name, [name], smooth)));
    Charts.size();
  };
  const state = { metrics: chosen, smooth: smoothing, edited: wanted !== null };
  const change = () => {
    Route.replace({
      view: "curves",
      smooth: state.smooth || "",
      metrics: state.edited ? state.metrics.join(",") : null,
    });
    draw(state.metrics, state.smooth);
  };
  draw(chosen, smoothing);
  return [summary(), curveTools(names, state, change), grid];
}

function summary() {
  const { series, count, config } = Data.run;
  const last = (name) => (series[name] ? series[name][1].at(-1) : null);
  const steps = Math.max(0, ...Object.values(series).map(([xs]) => xs.at(-1)));
  const facts = [
    ["steps", number(steps)],
    ["episodes", number(count)],
  ];
  if (series.reward) facts.push(["last reward", number(last("reward"))], ["last pass rate", number(last("pass_rate"))]);
  if (series["eval/pass_rate"]) {
    const [xs, ys] = series["eval/pass_rate"];
    const best = ys.indexOf(Math.max(...ys));
    facts.push([`best held-out pass rate, step ${xs[best]}`, number(ys[best])]);
  }
  if (config.learner) facts.push(["learner", config.learner.toUpperCase()]);
  return el(
    "dl",
    { class: "facts" },
    facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );
}

function curveTools(names, state, change) {
  const smooth = el("input", { type: "range", min: 0, max: 0.95, step: 0.05, value: state.smooth, id: "smooth" });
  smooth.addEventListener("input", () => {
    state.smooth = Number(smooth.value);
    change();
  });
  const boxes = names
    .filter((name) => !MAIN.includes(name))
    .map((name) => {
      const box = el("input", { type: "checkbox", value: name });
      box.checked = state.metrics.includes(name);
      box.addEventListener("change", () => {
        state.edited = true;
        state.metrics = box.checked ? [...state.metrics, name] : state.metrics.filter((other) => other !== name);
        change();
      });
      return el("label", { class: "check" }, box, " ", name);
    });
  return el(
    "div",
    { class: "tools" },
    field("Smoothing", smooth),
    el(
      "details",
      { class: "picker" },
      el("summary", {}, "Metrics"),
      el("div", { class: "checks" }, el("div", {}, boxes)),
    ),
  );
}

function chart(title, names, smooth, wide = false) {
  const readout = el("span", { class: "readout" });
  const canvas = svg("svg", { class: "plot", role: "img" });
  const legend =
    names.length > 1
      ? el(
          "ul",
          { class: "legend" },
          names.map((name, k) => el("li", { class: `s${k}` }, label(name))),
        )
      : null;
  const box = el(
    "figure",
    { class: wide ? "chart wide" : "chart", tabindex: 0, "data-metric": names.join(" ") },
    el("figcaption", {}, el("span", { class: "title" }, title), readout),
    canvas,
    legend,
  );
  Charts.add(box, new Chart(canvas, readout, names, smooth));
  return box;
}

const label = (name) =>
  ({ reward: "training reward", pass_rate: "training pass rate", "eval/pass_rate": "held-out pass rate" })[name] ||
  name;

class Chart {
  constructor(canvas, readout, names, smooth) {
    Object.assign(this, { canvas, readout, names, smooth });
    this.raw = names.map((name) => Data.run.series[name]);
    this.lines = this.raw.map(([xs, ys]) => [xs, smooth ? smoothed(ys, smooth) : ys]);
    this.steps = [...new Set(this.raw.flatMap(([xs]) => xs))].sort((a, b) => a - b);
    this.at = null;
    const latest = names.map((name, k) => `${label(name)} ${number(this.raw[k][1].at(-1))}`).join(", ");
    canvas.setAttribute("aria-label", `${latest} at step ${this.steps.at(-1)}; arrow keys read single steps`);
    this.tell();
  }

  draw(width) {
    this.width = width;
    const band = this.names.includes("eval/pass_rate")
      ? ["eval/low", "eval/high"].map((name) => Data.run.series[name])
      : [];
    const ys = [...this.raw, ...band].filter(Boolean).flatMap(([, values]) => bounds(values));
    let [low, high] = bounds(ys);
    if (low === high) [low, high] = [Math.min(0, 2 * low), Math.max(0, 2 * high) || 1];
    const ticks = niceTicks(low, high, 4);
    [low, high] = [Math.min(low, ticks[0]), Math.max(high, ticks.at(-1))];
    const [first, last] = [this.steps[0], Math.max(this.steps.at(-1), this.steps[0] + 1)];
    this.x = (step) => MARGIN.left + ((step - first) / (last - first)) * (width - MARGIN.left - MARGIN.right);
    this.y = (value) => HEIGHT - MARGIN.bottom - ((value - low) / (high - low)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
    this.canvas.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.cursor = svg("g", { class: "cursor" });
    this.canvas.replaceChildren(
      ...ticks.flatMap((tick) => [
        svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: this.y(tick), y2: this.y(tick) }),
        svg(
          "text",
          { class: "tick", x: MARGIN.left - 8, y: this.y(tick) + 4, "text-anchor": "end" },
          short(tick, ticks),
        ),
      ]),
      ...niceTicks(first, last, Math.max(3, Math.floor(width / 110)))
        .filter((t) => t >= first && t <= last && Number.isInteger(t))
        .map((tick) =>
          svg(
            "text",
            { class: "tick", x: this.x(tick), y: HEIGHT - 6, "text-anchor": "middle" },
            tick.toLocaleString("en"),
          ),
        ),
      ...(band[0] && band[1] ? [this.band(...band)] : []),
      ...(this.smooth ? this.raw.map((line, k) => this.line(line, `${k} faint`)) : []),
      ...this.lines.map((line, k) => this.line(line, k)),
      this.cursor,
    );
    this.point();
  }

  line([xs, ys], k) {
    if (xs.length === 1) return svg("circle", { class: `s${k}`, cx: this.x(xs[0]), cy: this.y(ys[0]), r: 3 });
    const points = thinned(xs, ys, this.width).map(
      ([step, value]) => `${this.x(step).toFixed(1)},${this.y(value).toFixed(1)}`,
    );
    return svg("polyline", { class: `s${k}`, points: points.join(" ") });
  }

  band([xs, lows], [, highs]) {
    const there = xs.map((step, k) => `${this.x(step).toFixed(1)},${this.y(highs[k]).toFixed(1)}`);
    const back = xs.map((step, k) => `${this.x(step).toFixed(1)},${this.y(lows[k]).toFixed(1)}`).reverse();
    return svg("polygon", {
      class: `band s${this.names.indexOf("eval/pass_rate")}`,
      points: [...there, ...back].join(" "),
    });
  }

  hover(clientX) {
    const box = this.canvas.getBoundingClientRect();
    const wanted = ((clientX - box.left) / box.width) * this.width;
    this.at = this.steps.reduce((best, step) =>
      Math.abs(this.x(step) - wanted) < Math.abs(this.x(best) - wanted) ? step : best,
    );
    this.point();
  }

  move(by) {
    const now = this.at === null ? this.steps.length - 1 : this.steps.indexOf(this.at);
    this.at = this.steps[Math.min(this.steps.length - 1, Math.max(0, now + by))];
    this.point();
  }

  leave() {
    this.at = null;
    this.point();
  }

  point() {
    this.tell();
    if (!this.cursor) return;
    this.cursor.replaceChildren();
    if (this.at === null) return;
    const x = this.x(this.at);
    this.cursor.append(svg("line", { x1: x, x2: x, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }));
    this.lines.forEach(([xs, ys], k) => {
      const place = xs.indexOf(this.at);
      if (place >= 0) this.cursor.append(svg("circle", { class: `s${k}`, cx: x, cy: this.y(ys[place]), r: 3.5 }));
    });
  }

  tell() {
    const step = this.at === null ? this.steps.at(-1) : this.at;
    const values = this.raw.map(([xs, ys]) => ys[xs.indexOf(step)]).map((value) => number(value));
    const named = this.names.length > 1 ? this.names.map((name, k) => `${label(name)} ${values[k]}`) : values;
    this.readout.textContent = `${named.join(" · ")}   step ${step.toLocaleString("en")}`;
  }
}

// The charts on the page: drawn when their width is known, and again when it changes.
const Charts = {
  known: new Map(),
  observer: new ResizeObserver((entries) =>
    entries.forEach(({ target }) => (target.isConnected ? Charts.fit(target) : Charts.drop(target))),
  ),

  add(box, drawn) {
    this.known.set(box, drawn);
    const canvas = drawn.canvas;
    canvas.addEventListener("pointermove", (event) => drawn.hover(event.clientX));
    canvas.addEventListener("pointerleave", () => drawn.leave());
    canvas.addEventListener("click", () => drawn.at !== null && openStep(drawn.at));
    box.addEventListener("blur", () => drawn.leave());
    box.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) drawn.move(by);
      else if (event.key === "Enter" && drawn.at !== null) openStep(drawn.at);
      else return;
      event.preventDefault();
    });
    this.observer.observe(box);
  },

  drop(box) {
    this.observer.unobserve(box);
    this.known.delete(box);
  },

  fit(box) {
    const width = Math.round(this.known.get(box).canvas.clientWidth);
    if (width && width !== this.known.get(box).width) this.known.get(box).draw(width);
  },

  size() {
    for (const box of [...this.known.keys()]) this.fit(box);
  },

  // Paper is narrower than the screen: drawn for its width, letters keep their size.
  print(paper) {
    for (const [box, drawn] of this.known)
      if (box.isConnected) drawn.draw(paper ? (box.classList.contains("wide") ? 660 : 320) : drawn.canvas.clientWidth);
  },
};

addEventListener("beforeprint", () => Charts.print(true));
addEventListener("afterprint", () => Charts.print(false));

const openStep = (step) => (location.hash = Route.link({ view: "episodes", from: step, to: step }));

function bounds(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) [low, high] = [Math.min(low, value), Math.max(high, value)];
  return [low, high];
}

// An exponential mean that begins unbiased.
function smoothed(values, weight) {
  let [sum, mass] = [0, 0];
  return values.map((value) => {
    [sum, mass] = [sum * weight + value, mass * weight + 1];
    return sum / mass;
  });
}

// Of many points the lowest and highest of each pixel or two are kept: peaks stay.
function thinned(xs, ys, width) {
  const points = xs.map((step, k) => [step, ys[k]]);
  if (points.length <= 2 * width) return points;
  const size = Math.ceil(points.length / width);
  const kept = [];
  for (let start = 0; start < points.length; start += size) {
    const part = points.slice(start, start + size);
    const low = part.reduce((a, b) => (b[1] < a[1] ? b : a));
    const high = part.reduce((a, b) => (b[1] > a[1] ? b : a));
    kept.push(...(low[0] <= high[0] ? [low, high] : [high, low]));
  }
  return kept;
}

function niceTicks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= rough);
  const ticks = [];
  for (let k = Math.floor(low / size); k <= Math.ceil(high / size); k++) ticks.push(Number((k * size).toPrecision(12)));
  return ticks;
}

function short(value, ticks) {
  const size = Math.max(...ticks.map(Math.abs));
  if (size >= 1e6) return `${value / 1e6}M`;
  if (size >= 1e4) return `${value / 1e3}k`;
  return size < 1e-3 && value ? value.toExponential(0) : String(value);
}
