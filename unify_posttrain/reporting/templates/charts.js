// Charts as SVG. Every chart can be read by pointer, by arrow keys and as a table.
const HEIGHT = 200,
  LEFT = 46,
  RIGHT = 10,
  TOP = 8,
  BOTTOM = 22,
  MOST_DOTS = 40;
const HEAT_KEY = [0.1, 0.25, 0.5, 0.75, 1];
const DASHES = [null, "8 3", "3 2.5", "10 3 2 3", "5 2", "2 4", "12 3 2 3 2 3", "6 6"]; // lines that coincide stay visible

function drawChart(chart, hidden) {
  const figure = document.getElementById(chart.id);
  const plot = figure.querySelector(".plot");
  const open = plot.querySelector("details")?.open;
  const series = chart.series.filter((one) => !hidden.has(one.run));
  plot.replaceChildren();
  const steps = chart.kind === "heat" ? chart.x : [...new Set(series.flatMap((one) => one.x))].sort((a, b) => a - b);
  if (!steps.length) {
    plot.append(make("p", { class: "advice" }, "hidden"));
    return;
  }
  const frame = axes(chart, series, steps, plot.clientWidth || 360);
  const painted = { lines: paintLines, areas: paintAreas, heat: paintHeat }[chart.kind];
  painted(chart, series, frame);
  frame.svg.append(frame.front);
  plot.append(frame.svg, legend(chart, series), valueTable(chart, series, steps, open));
  follow(chart, series, frame, plot);
}

// Scales, grid and labels. x(step) and y(value) give pixels.
function axes(chart, series, steps, width) {
  const svg = shape("svg", {
    height: HEIGHT,
    viewBox: `0 0 ${width} ${HEIGHT}`,
    role: "img",
    tabindex: 0,
    "aria-label": described(chart, series),
  });
  const last = chart.kind === "heat" ? chart.ends[chart.ends.length - 1] : steps[steps.length - 1];
  const [from, to] = steps[0] === last ? [last - 1, last + 1] : [steps[0], last];
  const [low, high] = range(chart, series);
  const room = width - LEFT - RIGHT,
    column = room / steps.length;
  const x =
    chart.kind === "heat"
      ? (step) => LEFT + (chart.ends.findIndex((end) => end >= step) + 0.5) * column
      : (step) => LEFT + ((step - from) / (to - from)) * room;
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const levels = chart.kind === "heat" ? countTicks(chart.rows) : ticks(low, high, 4);
  for (const value of levels) {
    const at = y(chart.kind === "heat" ? value + 0.5 : value);
    if (chart.kind !== "heat")
      svg.append(shape("line", { class: value === 0 ? "zero" : "grid", x1: LEFT, x2: width - RIGHT, y1: at, y2: at }));
    svg.append(
      shape(
        "text",
        { x: LEFT - 6, y: at + 4, "text-anchor": "end" },
        chart.kind === "heat" ? String(value) : shown(value, chart.unit),
      ),
    );
  }
  for (const step of ticks(from, to, Math.max(2, width / 90)).filter(Number.isInteger)) {
    if (step < steps[0] || step > last) continue;
    const anchor = x(step) > width - 3 * RIGHT ? "end" : "middle";
    svg.append(shape("text", { x: anchor === "end" ? width - 2 : x(step), y: HEIGHT - 6, "text-anchor": anchor }, String(step)));
  }
  for (const mark of chart.marks) {
    svg.append(
      shape("line", { class: "mark", x1: x(mark.x), x2: x(mark.x), y1: TOP, y2: HEIGHT - BOTTOM }),
      shape("text", { x: x(mark.x) + 3, y: TOP + 9 }, mark.label),
    );
  }
  return { svg, front: shape("g"), x, y, from, to, width, column, steps: chart.kind === "heat" ? chart.ends : steps };
}

function countTicks(rows) {
  const every = Math.max(1, Math.ceil((rows + 1) / 9));
  return Array.from({ length: rows + 1 }, (_, count) => count).filter((count) => count % every === 0);
}

function range(chart, series) {
  if (chart.kind === "heat") return [0, chart.rows + 1];
  if (chart.kind === "areas") return [0, Math.max(...totals(series)) || 1];
  let [low, high] = extent(series.flatMap((one) => one.y));
  if (chart.unit === "share") return [0, high > 0.5 || high === 0 ? 1 : Math.max(high * 1.1, 0.02)];
  if (low > 0 && low < 0.6 * high) low = 0;
  if (low === high) {
    low = Math.min(0, low * 2);
    high = Math.max(high * 2, low + 1e-9, low === 0 && high === 0 ? 1 : -Infinity);
  }
  const margin = (high - low) * 0.05;
  return [low === 0 ? 0 : low - margin, high === 0 ? 0 : high + margin];
}

function totals(series) {
  return series[0].x.map((_, index) => series.reduce((sum, one) => sum + one.y[index], 0));
}

function paintLines(chart, series, frame) {
  for (const one of series) {
    const points = one.x.map((step, index) => `${frame.x(step).toFixed(1)},${frame.y(one.y[index]).toFixed(1)}`);
    const group = shape("g", { class: colourClass(one.colour) });
    group.append(shape("polyline", { class: "line", points: points.join(" "), "stroke-dasharray": dash(one.colour) }));
    if (one.x.length <= MOST_DOTS)
      for (const point of points) {
        const [cx, cy] = point.split(",");
        group.append(shape("circle", { class: "dot", cx, cy, r: 2.6 }));
      }
    frame.svg.append(group);
  }
}

function paintAreas(chart, series, frame) {
  const base = series[0].x.map(() => 0);
  const steps = series[0].x.length > 1 ? series[0].x : [frame.from, frame.to];
  for (const one of series) {
    const bottom = [...base];
    one.y.forEach((value, index) => {
      base[index] += value;
    });
    const at = (values, index) => frame.y(values[Math.min(index, values.length - 1)]).toFixed(1);
    const upper = steps.map((step, index) => `${frame.x(step).toFixed(1)},${at(base, index)}`);
    const lower = steps.map((step, index) => `${frame.x(step).toFixed(1)},${at(bottom, index)}`).reverse();
    frame.svg.append(shape("polygon", { class: `area ${colourClass(one.colour)}`, points: [...upper, ...lower].join(" ") }));
  }
}

function paintHeat(chart, series, frame) {
  const span = frame.column;
  chart.cells.forEach((column, index) =>
    column.forEach((share, count) => {
      if (share)
        frame.svg.append(
          shape("rect", {
            class: "cell",
            x: LEFT + index * span,
            y: frame.y(count + 1),
            width: Math.max(span - 0.6, 0.8),
            height: Math.max(frame.y(count) - frame.y(count + 1) - 0.6, 0.8),
            "fill-opacity": opacity(share),
          }),
        );
    }),
  );
}

function colourClass(colour) {
  return "colour-" + colour.replace(/\d+/, (digits) => String(Number(digits) % 8));
}

function dash(colour) {
  return DASHES[(Number(colour.replace(/\D/g, "")) || 0) % DASHES.length];
}

function lineKey(colour) {
  const line = shape("line", { class: "line", x1: 0, x2: 24, y1: 5, y2: 5, "stroke-dasharray": dash(colour) });
  return shape("svg", { class: `key-line ${colourClass(colour)}`, viewBox: "0 0 24 10", "aria-hidden": "true" }, line);
}

function areaKey(colour) {
  return make("span", { class: `key ${colourClass(colour)}` });
}

function legend(chart, series) {
  if (chart.kind === "heat") {
    const cells = HEAT_KEY.map((share) => {
      const cell = make("span", { class: "heat-key" });
      cell.style.opacity = opacity(share);
      return cell;
    });
    return make("div", { class: "legend" }, make("span", {}, "10 %", ...cells, "100 % of the prompts"));
  }
  const key = chart.kind === "lines" ? lineKey : areaKey;
  return make(
    "div",
    { class: "legend" },
    series.map((one) => make("span", {}, key(one.colour), one.label)),
  );
}

function opacity(share) {
  return (0.08 + 0.92 * share).toFixed(3);
}

function described(chart, series) {
  const title = document.querySelector(`#${chart.id} h3`).textContent;
  const ends = series.map(
    (one) => `${one.label} from ${shown(one.y[0], chart.unit)} to ${shown(one.y[one.y.length - 1], chart.unit)}`,
  );
  return `${title}. ${ends.join("; ")}. Arrow keys read single steps.`;
}

// What the chart says at position `index` of its steps: [label, text, colour].
function reading(chart, series, step, index) {
  if (chart.kind === "heat") {
    return chart.cells[index]
      .map((share, count) => [`${count} solved`, share, null])
      .filter(([, share]) => share)
      .reverse()
      .map(([label, share]) => [label, shown(share, "share") + " of prompts", null]);
  }
  const found = [];
  for (const one of series) {
    const at = one.x.indexOf(step);
    if (at >= 0) found.push([one.label, shown(one.y[at], chart.unit), one.colour]);
  }
  return chart.kind === "areas" ? found.reverse() : found;
}

// Crosshair and tooltip, by pointer and by keyboard.
function follow(chart, series, frame, plot) {
  const tip = make("div", { class: "tip", role: "status", hidden: "" });
  const cursor = shape("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  frame.front.append(cursor);
  plot.append(tip);
  let current = frame.steps.length - 1;
  const hide = () => {
    tip.hidden = true;
    cursor.setAttribute("visibility", "hidden");
  };
  const show = (index) => {
    current = Math.max(0, Math.min(frame.steps.length - 1, index));
    const step = frame.steps[current],
      at = frame.x(step);
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    cursor.setAttribute("visibility", "visible");
    const head = chart.kind === "heat" && chart.x[current] !== step ? `steps ${chart.x[current]} to ${step}` : `step ${step}`;
    tip.replaceChildren(
      make("strong", {}, head),
      ...reading(chart, series, step, current).map(([label, text, colour]) =>
        make("div", {}, colour ? (chart.kind === "lines" ? lineKey : areaKey)(colour) : null, label, make("b", {}, text)),
      ),
    );
    tip.hidden = false;
    const right = at > frame.width / 2;
    tip.style.left = right ? "auto" : `${at + 10}px`;
    tip.style.right = right ? `${frame.width - at + 10}px` : "auto";
  };
  frame.svg.addEventListener("pointermove", (event) => {
    const at = event.clientX - frame.svg.getBoundingClientRect().left;
    let nearest = 0;
    frame.steps.forEach((step, index) => {
      if (Math.abs(frame.x(step) - at) < Math.abs(frame.x(frame.steps[nearest]) - at)) nearest = index;
    });
    show(nearest);
  });
  frame.svg.addEventListener("pointerleave", hide);
  frame.svg.addEventListener("blur", hide);
  frame.svg.addEventListener("keydown", (event) => {
    const goal = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: frame.steps.length - 1 }[event.key];
    if (event.key === "Escape") hide();
    if (goal === undefined) return;
    event.preventDefault();
    show(goal);
  });
}

function valueTable(chart, series, steps, open) {
  const details = make("details", { class: "values" }, make("summary", {}, "values"));
  const fill = () => {
    if (!details.open || details.children.length > 1) return;
    const counts =
      chart.kind === "heat"
        ? Array.from({ length: chart.rows + 1 }, (_, count) => `${count} solved`)
        : series.map((one) => one.label);
    const body = steps.map((step, index) =>
      make(
        "tr",
        {},
        make("th", { scope: "row" }, String(step)),
        chart.kind === "heat"
          ? chart.cells[index].map((share) => make("td", {}, shown(share, "share")))
          : series.map((one) => {
              const at = one.x.indexOf(step);
              return make("td", {}, at < 0 ? "" : shown(one.y[at], chart.unit));
            }),
      ),
    );
    const head = make(
      "tr",
      {},
      ["step", ...counts].map((name) => make("th", { scope: "col" }, name)),
    );
    details.append(make("div", { class: "scroll" }, make("table", {}, make("thead", {}, head), make("tbody", {}, body))));
  };
  details.addEventListener("toggle", fill);
  if (open) details.open = true;
  return details;
}
