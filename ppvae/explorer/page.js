// The page of the explorer: what is shown of a datum, of the place where the sliders stand, and of the line between
// two data. E[x|z] comes from `decode`: here from the decoder in the page, or from the server behind it.
"use strict";

const STEPS = 9; // between A and B, both included
const GOOD = 0.7; // the largest k̂ with which an estimate of log p(x) can be trusted
const LEFT_OUT = 0.02; // of the data on each side of a colour scale: a few far values would leave it one colour

class Explorer {
  constructor(models, content) {
    Object.assign(this, models, { content });
    this.x = rowsOf(content.x);
    this.values = Object.fromEntries(Object.entries(content.terms).map(([name, t]) => [name, interpreter.floats(t.data)]));
    this.views = content.views.map((view) => ({
      ...view,
      inputs: view.inputs.map((input) => ({ ...input, rows: rowsOf(input.rows) })),
      maps: view.maps.map((map) => ({ ...map, points: rowsOf(map.points) })),
      run: view.graph ? interpreter.compiled(view.graph) : null,
    }));
    this.waiting = new Map(); // what was asked of the server, by number
    this.asked = 0;
    this.setting = false; // whether it is this code that moves the sliders
    document.getElementById("summary").textContent = content.summary;
    this.listen();
    this.showView(0);
  }

  on(model, property, then) {
    model.connect(model.properties[property].change, () => this.setting || then());
  }

  listen() {
    if (this.latent) this.on(this.latent, "value", () => this.showView(this.latent.options.indexOf(this.latent.value)));
    this.on(this.choice, "value", () => this.showMap());
    this.on(this.colour, "value", () => this.showColours());
    this.on(this.points.selected, "indices", () => {
      if (this.points.selected.indices.length) this.pick(this.points.selected.indices[0]);
    });
    this.sliders.forEach((slider, i) =>
      this.on(slider, "value", () => {
        this.code[this.view.units[i]] = slider.value;
        this.moved();
      }),
    );
    for (const select of this.conditions)
      this.on(select, "value", () => {
        this.chosen[select.name] = Number(select.value);
        this.moved(true);
      });
    this.on(this.line, "value", () => this.walk(this.line.value));
    if (this.answer) this.answer.connect(this.answer.properties.data.change, () => this.answered());
  }

  set(model, values) {
    this.setting = true;
    model.setv(values);
    this.setting = false;
  }

  // --- what is shown -------------------------------------------------------------------------------------------------

  showView(number) {
    this.view = this.views[number];
    this.number = number;
    this.codes = this.view.inputs[0].rows;
    this.set(this.choice, { options: this.view.maps.map((map) => map.name), value: this.view.maps[0].name });
    this.showMap();
    this.showColours();
    this.pick(this.datum ?? 0, this.other ?? Math.min(1, this.codes.length - 1));
  }

  showMap() {
    this.map = this.view.maps.find((map) => map.name === this.choice.value);
    const [x, y] = [0, 1].map((i) => Array.from(this.map.points, (point) => point[i]));
    this.points.data = { ...this.points.data, x, y };
    this.axes.forEach((axis, i) => axis.setv({ axis_label: this.map.axes[i], visible: this.map.axes[i] !== "" }));
    if (this.datum !== undefined) this.showPlaces();
  }

  showColours() {
    const name = this.colour.value;
    const categories = name === "label" ? [...new Set(this.content.labels)].sort((a, b) => a - b) : null;
    const { colours, legend } = categories
      ? byClass(this.content.labels, categories, this.content.palette, this.content.scale)
      : byValue(this.values[name], this.content.scale);
    this.points.data = { ...this.points.data, colour: colours };
    document.getElementById("legend").innerHTML = legend;
  }

  // A datum is A, the one before it B.
  pick(datum, other = this.datum) {
    [this.datum, this.other] = [datum, other];
    this.code = Float32Array.from(this.codes[datum]);
    this.chosen = {};
    for (const select of this.conditions) {
      const input = this.view.inputs.find((each) => each.name === select.name);
      this.set(select, { visible: input !== undefined, value: input ? String(input.rows[datum][0]) : select.value });
    }
    this.set(this.line, { value: 0 });
    const label = this.content.labels ? `, label ${this.content.labels[datum]}` : "";
    document.getElementById("datum").textContent = `Datum ${datum}${label}`;
    document.getElementById("moved").textContent =
      `${this.view.latent}: the most active of ${this.view.units.length} units`;
    document.getElementById("terms").innerHTML = termTable(this.values, datum);
    this.moved(true);
  }

  // The sliders stand elsewhere. `whole`: what does not depend on them is drawn anew too.
  moved(whole = false) {
    this.view.units.slice(0, this.sliders.length).forEach((unit, i) => {
      const [start, end] = this.view.ranges[unit];
      const value = this.code[unit];
      this.set(this.sliders[i], {
        ...{ title: this.view.names[unit], start: Math.min(start, value), end: Math.max(end, value) },
        ...{ step: (end - start) / 100, value, visible: true },
      });
    });
    this.sliders.slice(this.view.units.length).forEach((slider) => this.set(slider, { visible: false }));
    this.showPlaces();
    this.draw(whole);
  }

  walk(t) {
    const to = this.codes[this.other];
    this.code = Float32Array.from(this.codes[this.datum], (value, i) => value + t * (to[i] - value));
    this.moved();
  }

  showPlaces() {
    const [a, b] = [this.datum, this.other].map((i) => this.map.points[i]);
    this.ends.data = { x: [a[0], b[0]], y: [a[1], b[1]], name: a === b ? ["A", ""] : ["A", "B"] };
    this.here.data = { x: [], y: [] };
    if (this.map.plane) {
      const { mean, basis } = this.map.plane;
      const at = [0, 1].map((axis) => mean.reduce((sum, m, i) => sum + (this.code[i] - m) * basis[i][axis], 0));
      this.here.data = { x: [at[0]], y: [at[1]] };
    }
  }

  // --- decoding ------------------------------------------------------------------------------------------------------

  // All that a decoder takes: the code that is given, the rest of datum A, towards that of B where it is continuous.
  inputsAt(code, t = 0, chosen = this.chosen) {
    const inputs = {};
    for (const { name, kind, rows } of this.view.inputs.slice(1)) {
      const [from, to] = [rows[this.datum], rows[this.other]];
      inputs[name] = kind === "latent" ? from.map((value, i) => value + t * (to[i] - value)) : from;
      if (name in chosen) inputs[name] = Float32Array.of(chosen[name]);
    }
    return { ...inputs, [this.view.inputs[0].name]: code };
  }

  // E[x|z] for each of some inputs.
  async decode(rows) {
    const { run, inputs } = this.view;
    if (run) {
      const shapes = Object.fromEntries(inputs.map(({ name, shape }) => [name, [1, ...shape]]));
      const tensors = (row) =>
        Object.fromEntries(Object.entries(row).map(([name, data]) => [name, interpreter.tensor(shapes[name], data)]));
      return rows.map((row) => run(tensors(row)).data);
    }
    const number = ++this.asked;
    const answer = new Promise((resolve) => this.waiting.set(number, resolve));
    const plain = rows.map((row) =>
      Object.fromEntries(Object.entries(row).map(([name, data]) => [name, Array.from(data)])),
    );
    this.request.data = { content: [JSON.stringify({ number, view: this.number, rows: plain })] };
    return answer;
  }

  answered() {
    const { number, error, means } = JSON.parse(this.answer.data.content[0]);
    document.getElementById("error").textContent = error ?? "";
    const flat = interpreter.floats(means ?? "");
    const size = this.x[0].length;
    const rows = Array.from({ length: flat.length / size }, (_, i) => flat.subarray(i * size, (i + 1) * size));
    this.waiting.get(number)?.(rows);
    this.waiting.delete(number);
  }

  // One request at a time: while an answer is awaited the last wish alone is kept.
  async draw(whole) {
    this.wanted = { whole: whole || Boolean(this.wanted?.whole) };
    if (this.drawing) return;
    this.drawing = true;
    while (this.wanted) {
      const { whole: all } = this.wanted;
      this.wanted = null;
      const rows = [this.inputsAt(this.code, this.line.value)];
      if (all) {
        rows.push(this.inputsAt(this.codes[this.datum], 0, {}));
        const [from, to] = [this.codes[this.datum], this.codes[this.other]];
        for (let i = 0; i < STEPS; i++) {
          const t = i / (STEPS - 1);
          rows.push(this.inputsAt(Float32Array.from(from, (value, j) => value + t * (to[j] - value)), t));
        }
      }
      const [here, own, ...between] = await this.decode(rows);
      if (!here) break; // the server could not, and has said why
      this.means = { here, own: own ?? this.means.own, between: all ? between : this.means.between };
      this.show[this.content.kind].call(this);
    }
    this.drawing = false;
    document.body.dataset.drawn = String(Number(document.body.dataset.drawn ?? 0) + 1);
  }

  // --- drawing: pictures, lines, or the cells of a table ---------------------------------------------------------------

  show = {
    image() {
      const { own, here, between } = this.means;
      const { shape, range } = this.content;
      const shown = { x: this.x[this.datum], "E[x|z] at its code": own, "E[x|z] at the sliders": here };
      const pictures = document.getElementById("pictures");
      pictures.replaceChildren(
        ...Object.entries(shown).map(([caption, values]) => {
          const figure = document.createElement("figure");
          const text = document.createElement("figcaption");
          text.textContent = caption;
          figure.append(picture([values], shape, range), text);
          return figure;
        }),
      );
      const ends = [this.x[this.datum], this.x[this.other]];
      const strip = picture([ends[0], ...between, ends[1]], shape, range);
      document.getElementById("strip").replaceChildren(strip);
    },

    series() {
      const { own, here } = this.means;
      const [channels, length] = this.content.shape;
      const steps = Array.from({ length }, (_, i) => i);
      const shown = [this.x[this.datum], own, here];
      const rows = shown.flatMap((values) =>
        Array.from({ length: channels }, (_, c) => steps.map((i) => values[i * channels + c])),
      );
      const of = (each) => shown.flatMap((_, i) => new Array(channels).fill(each[i]));
      this.series.data = {
        ...{ x: rows.map(() => steps), y: rows, name: of(["x", "E[x|z] at its code", "E[x|z] at the sliders"]) },
        colour: of(this.content.palette),
      };
    },

    table() {
      const { own, here, between } = this.means;
      const cells = (values) => this.content.columns.map(({ levels }, i) => shownCell(values[i], levels));
      const few = between.filter((_, i) => i % 4 === 0);
      const shown = { x: this.x[this.datum], "at its code": own, "at the sliders": here };
      const names = this.content.columns.map(({ name }) => name);
      document.getElementById("cells").innerHTML = cellTable(
        names,
        Object.keys(shown),
        Object.values(shown).map(cells),
      );
      const line = [this.x[this.datum], ...few, this.x[this.other]].map(cells);
      document.getElementById("strip").innerHTML = cellTable(names, ["A", "0", "½", "1", "B"], line);
    },
  };
}

// The rows of a tensor, each flat.
function rowsOf({ shape, data }) {
  const all = interpreter.floats(data);
  const size = all.length / shape[0];
  return Array.from({ length: shape[0] }, (_, i) => all.subarray(i * size, (i + 1) * size));
}

function byClass(labels, categories, palette, scale) {
  const colour = (i) =>
    categories.length <= palette.length
      ? palette[i]
      : scale[Math.round((i / (categories.length - 1)) * (scale.length - 1))];
  const place = new Map(categories.map((category, i) => [category, i]));
  const entry = (category, i) => `<span><i style="background:${colour(i)}"></i>${category}</span>`;
  return { colours: labels.map((label) => colour(place.get(label))), legend: categories.map(entry).join("") };
}

function byValue(values, scale) {
  const known = Array.from(values).filter(Number.isFinite).sort((a, b) => a - b);
  const at = (share) => known[Math.round(share * (known.length - 1))] ?? 0;
  const [low, high] = [at(LEFT_OUT), at(1 - LEFT_OUT)];
  const part = (value) => Math.min(Math.max((value - low) / (high - low || 1), 0), 1);
  const colour = (value) => (Number.isNaN(value) ? "#cccccc" : scale[Math.round(part(value) * (scale.length - 1))]);
  const gradient = scale.filter((_, i) => i % 16 === 0).join(",");
  const legend =
    `<span>${shownNumber(low)}</span><span class="scale" style="background:linear-gradient(90deg,${gradient})"></span>` +
    `<span>${shownNumber(high)} (the ends: 2 % of the data lie beyond each)</span>`;
  return { colours: Array.from(values, colour), legend };
}

function shownNumber(value) {
  if (value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const text = Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(2) : value.toFixed(3);
  return (text.includes("e") ? text : Number(text).toFixed(Math.abs(value) >= 100 ? 1 : 3)).replace("-", "−");
}

const escaped = (text) => String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);

function termTable(values, datum) {
  const mean = (all) => all.reduce((sum, value) => sum + value, 0) / all.length;
  const beside = (name, all) =>
    name !== "k̂" ? shownNumber(mean(all)) : all[datum] > GOOD ? `above ${GOOD}: log p(x) is likely higher` : "";
  const row = ([name, all]) =>
    `<tr><td>${escaped(name)}</td><td class="number">${shownNumber(all[datum])}</td>` +
    `<td class="number">${beside(name, all)}</td></tr>`;
  const head = '<tr><th>nats</th><th class="number">this datum</th><th class="number">mean of all</th></tr>';
  return head + Object.entries(values).map(row).join("");
}

function cellTable(names, heads, columns) {
  const cell = (text) => `<td class="number">${escaped(text)}</td>`;
  const head = `<tr><th></th>${heads.map((text) => `<th class="number">${text}</th>`).join("")}</tr>`;
  const rows = names.map((name, i) => `<tr><td>${escaped(name)}</td>${columns.map((cells) => cell(cells[i])).join("")}</tr>`);
  return `<table>${head}${rows.join("")}</table>`;
}

const shownCell = (value, levels) => (levels.length && !Number.isNaN(value) ? levels[value] : shownNumber(value));

// Images (c, h, w) side by side on one canvas, a pixel each; a pixel that is not known is amber.
function picture(images, [c, h, w], [low, high]) {
  const gap = images.length > 1 ? Math.max(1, Math.round(w / 14)) : 0;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [images.length * (w + gap) - gap, h];
  const context = canvas.getContext("2d");
  images.forEach((values, k) => {
    const pixels = context.createImageData(w, h);
    for (let i = 0; i < h * w; i++) {
      const grey = [0, 1, 2].map((channel) => (255 * (values[(c === 3 ? channel : 0) * h * w + i] - low)) / (high - low));
      pixels.data.set([...(Number.isNaN(grey[0]) ? [255, 169, 14] : grey), 255], 4 * i);
    }
    context.putImageData(pixels, k * (w + gap), 0);
  });
  return canvas;
}
