"use strict";

// Tables: a column's button sorts by it, again by the other direction; cells without a value last.
for (const button of document.querySelectorAll(".sortable button[data-sort]")) {
  button.addEventListener("click", () => {
    const header = button.closest("th");
    const index = header.cellIndex;
    const numeric = button.dataset.sort === "number";
    const first = numeric ? "descending" : "ascending";
    const second = numeric ? "ascending" : "descending";
    const order = header.getAttribute("aria-sort") === first ? second : first;
    for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const body = header.closest("table").tBodies[0];
    const value = (row) => row.cells[index].dataset.value;
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (!numeric) return sign * x.localeCompare(y);
      if (x === "" || y === "") return (x === "") - (y === "");
      return sign * (Number(x) - Number(y));
    };
    body.append(...[...body.rows].sort(compare));
  });
}

// The confusion matrix, on a canvas: with 150 classes it has 22,500 cells.
const heat = document.getElementById("heat");
if (heat) {
  const data = JSON.parse(document.getElementById("data").textContent);
  const count = data.classes.length;
  const readout = document.getElementById("cell");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let name = Object.keys(data.confusions)[0];
  let chosen = null;
  let cell = 0;
  let gutter = 0;

  const shares = () => data.confusions[name].map((row) => {
    const sum = row.reduce((a, b) => a + b, 0);
    return row.map((pixels) => (sum ? pixels / sum : 0));
  });

  const draw = () => {
    const width = heat.parentNode.clientWidth;
    const pixel = window.devicePixelRatio || 1;
    const context = heat.getContext("2d");
    context.font = "12px system-ui, sans-serif";
    const longest = Math.max(...data.classes.map((text) => context.measureText(text).width));
    const most = Math.min(width / 3, 130);
    gutter = Math.min(Math.ceil(longest) + 10, most);
    cell = Math.max(Math.min((width - gutter) / count, 44), 1);
    const labelled = cell >= 10;
    if (!labelled) {
      gutter = 2;
      cell = Math.min((width - gutter) / count, 44);
    }
    const side = gutter + cell * count;
    heat.width = Math.round(side * pixel);
    heat.height = Math.round(side * pixel);
    heat.style.width = `${side}px`;
    heat.style.height = `${side}px`;
    context.scale(pixel, pixel);
    const ink = getComputedStyle(document.body).color;
    const table = shares();
    for (let i = 0; i < count; i++) {
      for (let j = 0; j < count; j++) {
        const depth = Math.sqrt(table[i][j]);
        const light = dark.matches ? 15 + 50 * depth : 97 - 62 * depth;
        context.fillStyle = `hsl(204 ${20 + 70 * depth}% ${light}%)`;
        context.fillRect(gutter + j * cell, gutter + i * cell, cell - (cell > 6), cell - (cell > 6));
        if (cell >= 26 && table[i][j] >= 0.005) {
          context.fillStyle = depth > 0.55 ? (dark.matches ? "#000" : "#fff") : ink;
          context.font = "11px system-ui, sans-serif";
          context.textAlign = "center";
          context.textBaseline = "middle";
          const text = Math.round(100 * table[i][j]);
          context.fillText(text, gutter + (j + 0.5) * cell, gutter + (i + 0.5) * cell);
        }
      }
    }
    if (labelled) {
      context.fillStyle = ink;
      context.font = `${Math.min(12, cell)}px system-ui, sans-serif`;
      context.textBaseline = "middle";
      data.classes.forEach((text, i) => {
        const middle = gutter + (i + 0.5) * cell;
        context.textAlign = "right";
        context.fillText(text, gutter - 6, middle, gutter - 8);
        context.save();
        context.translate(middle, gutter - 6);
        context.rotate(-Math.PI / 2);
        context.textAlign = "left";
        context.fillText(text, 0, 0, gutter - 8);
        context.restore();
      });
    }
    if (chosen) {
      context.strokeStyle = "#d55e00";
      context.lineWidth = 2;
      context.strokeRect(gutter + chosen[1] * cell, gutter + chosen[0] * cell, cell, cell);
      const [i, j] = chosen;
      const pixels = data.confusions[name][i][j].toLocaleString("en");
      const share = (100 * table[i][j]).toFixed(2);
      readout.textContent =
        `${data.classes[i]} taken for ${data.classes[j]}: ${share} % of its pixels, ${pixels} pixels`;
    }
  };

  const choose = (i, j) => {
    if (i < 0 || j < 0 || i >= count || j >= count) return;
    if (chosen && chosen[0] === i && chosen[1] === j) return;
    chosen = [i, j];
    draw();
  };
  const point = (event) => {
    const box = heat.getBoundingClientRect();
    const at = (distance) => Math.floor((distance - gutter) / cell);
    choose(at(event.clientY - box.top), at(event.clientX - box.left));
  };
  heat.addEventListener("pointermove", point);
  heat.addEventListener("pointerdown", point);
  heat.addEventListener("keydown", (event) => {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    if (chosen) choose(chosen[0] + move[0], chosen[1] + move[1]);
    else choose(0, 0);
  });
  for (const radio of document.querySelectorAll("input[name=confusion]")) {
    radio.addEventListener("change", () => {
      name = radio.value;
      draw();
    });
  }
  let drawn = 0;
  new ResizeObserver(() => {
    if (heat.parentNode.clientWidth === drawn) return;
    drawn = heat.parentNode.clientWidth;
    draw();
  }).observe(heat.parentNode);
  dark.addEventListener("change", draw);
}

// Pictures: what all of them show, and for each where truth ends and prediction begins.
const gallery = document.getElementById("gallery");
if (gallery) {
  const tool = (id) => document.getElementById(id);
  const figures = [...gallery.querySelectorAll("figure")];
  const show = () => {
    const errors = tool("errors").checked;
    const refined = Boolean(tool("crf")?.checked);
    for (const text of gallery.querySelectorAll("[data-view]")) {
      text.hidden = (text.dataset.view === "errors") !== errors;
    }
    for (const figure of figures) {
      figure.hidden = Boolean(tool("kinds").value) && figure.dataset.kind !== tool("kinds").value;
      const right = 100 - figure.querySelector(".slider").value;
      figure.querySelector(".line").style.left = `${100 - right}%`;
      figure.querySelector(".line").hidden = errors;
      figure.querySelector(".stack").classList.toggle("faded", errors);
      for (const mask of figure.querySelectorAll(".mask")) {
        const [truth, wrong] = ["truth", "wrong"].map((kind) => mask.classList.contains(kind));
        const version = truth || mask.classList.contains("refined") === refined;
        mask.hidden = wrong !== errors || !version;
        if (wrong) continue;
        mask.style.opacity = tool("opacity").value / 100;
        mask.style.clipPath = truth ? `inset(0 ${right}% 0 0)` : `inset(0 0 0 ${100 - right}%)`;
      }
    }
  };
  // Not every browser reports a choice from a list as "input".
  for (const kind of ["input", "change"]) gallery.addEventListener(kind, show);
  gallery.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  show();
}
