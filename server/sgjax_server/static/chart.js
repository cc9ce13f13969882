// Lines over the last minute, drawn as SVG.

import { short } from "/static/format.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 600;
const HEIGHT = 130;
const WINDOW_S = 60;

function svg(tag, attributes, parent) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  parent.append(made);
  return made;
}

/** One line with an area below for each name; colours come from the CSS classes of these names. */
export class Chart {
  #points = [];

  constructor(holder, names) {
    this.names = names;
    const box = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" };
    this.root = svg("svg", box, holder);
    this.grid = svg("g", { class: "grid" }, this.root);
    this.areas = names.map((name) => svg("path", { class: `area ${name}` }, this.root));
    this.lines = names.map((name) => svg("path", { class: `line ${name}`, "vector-effect": "non-scaling-stroke" }, this.root));
    this.top = holder.appendChild(document.createElement("span"));
    this.top.className = "chart-top muted";
  }

  /** @param values one number for each name */
  add(atS, values) {
    this.#points.push({ atS, values });
    while (this.#points[0].atS < atS - WINDOW_S) this.#points.shift();
    this.#draw(atS);
  }

  clear() {
    this.#points = [];
  }

  #draw(nowS) {
    const top = niceTop(Math.max(...this.#points.flatMap(({ values }) => values)));
    const x = (atS) => WIDTH * (1 - (nowS - atS) / WINDOW_S);
    const y = (value) => HEIGHT * (1 - (0.94 * value) / top);
    this.top.textContent = `${short(top)} tokens/s`;
    this.root.setAttribute("aria-label", `tokens per second in the last minute, up to ${short(top)}`);
    this.grid.replaceChildren();
    for (const share of [0.5, 1]) {
      const at = y(top * share);
      svg("line", { x1: 0, x2: WIDTH, y1: at, y2: at, "vector-effect": "non-scaling-stroke" }, this.grid);
    }
    this.names.forEach((_, i) => {
      const line = this.#points.map(({ atS, values }) => `${x(atS).toFixed(1)},${y(values[i]).toFixed(1)}`).join("L");
      this.lines[i].setAttribute("d", `M${line}`);
      this.areas[i].setAttribute("d", `M${x(this.#points[0].atS).toFixed(1)},${HEIGHT}L${line}L${WIDTH},${HEIGHT}Z`);
    });
  }
}

/** 1, 2 or 5 times a power of ten, so that the scale seldom changes. */
function niceTop(highest) {
  const power = 10 ** Math.floor(Math.log10(Math.max(highest, 10)));
  return [1, 2, 5, 10].map((factor) => factor * power).find((top) => top >= highest);
}
