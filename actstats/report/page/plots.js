// Plots, drawn as SVG in the width that there is, and drawn again when that changes.

/** How values lie along an axis: {low, high, ticks, at(value) in [0, 1]}. */
function scale(values, { log = false, zero = false, count = 5 } = {}) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (!Number.isFinite(value) || (log && value <= 0)) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (low > high) [low, high] = log ? [0.1, 1] : [0, 1];
  if (log) {
    const first = Math.log10(low), span = Math.max(Math.log10(high) - first, 0.2), ticks = [];
    const steps = span > 2.5 ? [1] : span > 1 ? [1, 3] : [1, 2, 5];
    for (let power = Math.floor(first); power <= Math.ceil(first + span); power++) {
      for (const step of steps) ticks.push(step * 10 ** power);
    }
    const at = (value) => (Math.log10(value) - first + span * 0.03) / (span * 1.06);
    const few = span > 7 ? Math.ceil(span / 6) : 1;
    return { at, low, high, ticks: ticks.filter((tick, index) => index % few === 0 && at(tick) >= 0 && at(tick) <= 1) };
  }
  if (zero) [low, high] = [Math.min(low, 0), Math.max(high, 0)];
  const span = high - low || Math.abs(high) || 1;
  const raw = span / count, size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((factor) => factor * size >= raw) * size;
  const [start, end] = [zero && low === 0 ? 0 : low - span * 0.03, high + span * 0.03];
  const ticks = [];
  for (let tick = Math.ceil(start / step) * step; tick <= end; tick += step) ticks.push(Math.abs(tick) < step / 1e6 ? 0 : tick);
  return { at: (value) => (value - start) / (end - start), low, high, ticks };
}

/** Whether values, all positive, span so much that a logarithmic axis shows more. */
function spansMuch(values) {
  const inOrder = sorted(values), low = quantile(inOrder, 0.02);
  return low > 0 && inOrder[0] > 0 && quantile(inOrder, 0.98) / low > 30;
}

/** A figure with a title and a drawing that follows its width; `draw(width)` returns an <svg>. */
function figure(title, draw, ...below) {
  const hold = h("div", { class: "plot" });
  let drawn = 0;
  new ResizeObserver(() => {
    const width = Math.floor(hold.clientWidth);
    if (width > 0 && width !== drawn) hold.replaceChildren(draw((drawn = width)));
  }).observe(hold);
  return h("figure", null, h("figcaption", null, title), hold, below);
}

function canvas(width, height, label, ...children) {
  const size = { width, height, viewBox: `0 0 ${width} ${height}` };
  return s("svg", { ...size, role: "img", "aria-label": label }, ...children);
}

const text = (x, y, content, attributes) => s("text", { x, y, ...attributes }, content);

/** Axes of a plot area {left, top, right, bottom}, with grid lines; returns elements. */
function axes(area, x, y, titles) {
  const across = (value) => area.left + x.at(value) * (area.right - area.left);
  const down = (value) => area.bottom - y.at(value) * (area.bottom - area.top);
  return {
    across,
    down,
    marks: [
      y.ticks.map((tick) => [
        s("line", { class: "grid", x1: area.left, x2: area.right, y1: down(tick), y2: down(tick) }),
        text(area.left - 6, down(tick) + 4, format(tick), { class: "tick", "text-anchor": "end" }),
      ]),
      x.ticks.map((tick) => [
        s("line", { class: "axis", x1: across(tick), x2: across(tick), y1: area.bottom, y2: area.bottom + 4 }),
        text(across(tick), area.bottom + 17, format(tick), { class: "tick", "text-anchor": "middle" }),
      ]),
      s("line", { class: "axis", x1: area.left, x2: area.right, y1: area.bottom, y2: area.bottom }),
      text((area.left + area.right) / 2, area.bottom + 34, titles[0], { class: "title", "text-anchor": "middle" }),
      text(area.left, area.top - 8, titles[1], { class: "title", "text-anchor": "start" }),
    ],
  };
}

/** The unit distribution in every layer, a box for each store: 5, 25, 50, 75 and 95 %; a link for each layer. */
function layerPlot(measure, width) {
  const boxes = report.stores.map((_, store) =>
    report.layers.map((layer) => {
      const values = sorted(unitValues(measure, store, layer));
      return values.length ? [0.05, 0.25, 0.5, 0.75, 0.95].map((q) => quantile(values, q)) : null;
    }),
  );
  const all = boxes.flat(2).filter((value) => value !== null);
  const value = scale(all, { log: spansMuch(all), zero: !all.some((v) => v < 0) && !spansMuch(all) });
  const count = report.layers.length;
  const upright = width / count >= 15;
  const letters = upright ? 26 : Math.floor((width * 0.42 - 14) / 6.6);
  const label = 14 + 6.6 * Math.min(letters, Math.max(...report.layers.map((layer) => layer.name.length)));
  const slot = upright ? (width - 64) / count : 24;
  const height = upright ? 272 + label * 0.78 : count * slot + 44;
  const area = upright
    ? { left: 52, right: width - 12, top: 24, bottom: 264 }
    : { left: label, right: width - 14, top: 28, bottom: 28 + count * slot };
  const along = (v) =>
    upright ? area.bottom - value.at(v) * (area.bottom - area.top) : area.left + value.at(v) * (area.right - area.left);
  const place = (a0, a1, b0, b1) =>
    upright
      ? { x: a0, width: a1 - a0, y: Math.min(b0, b1), height: Math.max(Math.abs(b1 - b0), 1) }
      : { y: a0, height: a1 - a0, x: Math.min(b0, b1), width: Math.max(Math.abs(b1 - b0), 1) };
  const grid = value.ticks.map((tick) => {
    const at = along(tick);
    return upright
      ? [s("line", { class: "grid", x1: area.left, x2: area.right, y1: at, y2: at }),
         text(area.left - 6, at + 4, format(tick), { class: "tick", "text-anchor": "end" })]
      : [s("line", { class: "grid", x1: at, x2: at, y1: area.top, y2: area.bottom }),
         text(at, area.top - 6, format(tick), { class: "tick", "text-anchor": "middle" })];
  });
  const thick = Math.min(12, (slot * 0.76) / boxes.length);
  const links = report.layers.map((layer, index) => {
    const centre = (upright ? area.left + 4 : area.top) + (index + 0.5) * slot;
    const shapes = boxes.map((byLayer, store) => {
      const box = byLayer[index];
      if (!box) return null;
      const from = centre + (store - boxes.length / 2) * thick + 0.5, to = from + thick - 1, middle = (from + to) / 2;
      const [p5, p25, p50, p75, p95] = box.map(along);
      return s("g", { class: `store${store}` },
        s("rect", { class: "whisker", ...place(middle - 0.5, middle + 0.5, p5, p95) }),
        s("rect", { class: "box", rx: 1, ...place(from, to, p25, p75) }),
        s("rect", { class: "median", ...place(from, to, p50 - 1, p50 + 1) }));
    });
    const name = upright
      ? text(0, 0, shortName(layer.name, letters), { class: "tick", "text-anchor": "end",
          transform: `translate(${centre + 4} ${area.bottom + 14}) rotate(-50)` })
      : text(area.left - 8, centre + 4, shortName(layer.name, letters), { class: "tick", "text-anchor": "end" });
    const lines = () => [layer.name, ...report.stores.map((store, at) =>
      `${store.name}: median ${format(boxes[at][index]?.[2])}, half in ${format(boxes[at][index]?.[1])} to ${format(boxes[at][index]?.[3])}`)];
    const hit = upright
      ? { x: centre - slot / 2, width: slot, y: area.top, height: area.bottom - area.top + label * 0.75 }
      : { x: 0, width, y: centre - slot / 2, height: slot };
    return tipped(
      s("a", { href: `#/layer/${index}`, "aria-label": lines().join(", ") }, s("rect", { class: "hit", ...hit }), shapes, name),
      lines,
    );
  });
  rove(links, () => 1);
  const drawing = canvas(width, height, "", grid,
    s("line", upright ? { class: "axis", x1: area.left, x2: area.right, y1: area.bottom, y2: area.bottom }
                      : { class: "axis", x1: area.left, x2: area.left, y1: area.top, y2: area.bottom }),
    text(upright ? 0 : area.left, 12, withUnit(measure), { class: "title" }), links);
  drawing.setAttribute("role", "group");
  drawing.setAttribute("aria-label", `${measure.name} by layer; arrow keys move between layers, Enter opens one`);
  return drawing;
}

/** How the values of one layer's units are distributed: a stepped outline for each store. */
function distribution(measure, layer, width) {
  const values = report.stores.map((_, store) => sorted(unitValues(measure, store, layer)));
  const all = values.flatMap((of) => Array.from(of)), log = spansMuch(all);
  const x = scale(all, { log });
  const bins = Math.max(8, Math.min(40, Math.ceil(2 * Math.cbrt(layer.units) * 1.6)));
  const counts = values.map((of) => {
    const found = new Array(bins).fill(0);
    for (const value of of) found[Math.max(0, Math.min(bins - 1, Math.floor(x.at(value) * bins)))]++;
    return found;
  });
  const y = scale(counts.flat(), { zero: true, count: 4 });
  const area = { left: 44, right: width - 12, top: 26, bottom: 236 };
  const { down, marks } = axes(area, x, y, [withUnit(measure), "units"]);
  const step = (area.right - area.left) / bins;
  const shapes = counts.map((found, store) => {
    let path = `M${area.left} ${area.bottom}`;
    found.forEach((count, bin) => (path += `V${down(count)}H${area.left + (bin + 1) * step}`));
    return s("path", { class: `store${store} outline`, d: `${path}V${area.bottom}Z` });
  });
  const label = report.stores.map((store, at) => `${store.name}: median ${format(quantile(values[at], 0.5))}`).join("; ");
  return canvas(width, 276, `Distribution of ${measure.name} over the layer's units. ${label}`, marks, shapes);
}

/** Each unit of a layer as a point: the first store across, the second upwards; a click opens the unit. */
function scatter(measure, layer, width) {
  const [a, b] = [0, 1].map((store) => unitValues(measure, store, layer));
  const all = [...a, ...b], log = spansMuch(all);
  const [x, y] = [scale(all, { log }), scale(all, { log })];
  const area = { left: 52, right: width - 12, top: 26, bottom: 236 };
  const { across, down, marks } = axes(area, x, y, [report.stores[0].name, report.stores[1].name]);
  const { low, high } = x;
  const points = [];
  const circles = Array.from(a, (value, channel) => {
    const [px, py] = [across(value), down(b[channel])];
    if (!Number.isFinite(px + py)) return null;
    points.push([px, py, channel]);
    return s("circle", { class: "point", cx: px, cy: py, r: 3 });
  });
  const ring = s("circle", { class: "ring", r: 6, visibility: "hidden" });
  const drawing = canvas(width, 276,
    `${measure.name} of each unit, ${report.stores[0].name} against ${report.stores[1].name}; the units below are the same`,
    marks, s("line", { class: "diagonal", x1: across(low), y1: down(low), x2: across(high), y2: down(high) }), circles, ring);
  const nearest = (event) => {
    const box = drawing.getBoundingClientRect(), [px, py] = [event.clientX - box.left, event.clientY - box.top];
    const best = points.reduce((found, point) => {
      const far = (point[0] - px) ** 2 + (point[1] - py) ** 2;
      return far < found[0] ? [far, point] : found;
    }, [400, null]);
    return best[1];
  };
  drawing.addEventListener("pointermove", (event) => {
    const point = nearest(event);
    ring.setAttribute("visibility", point ? "visible" : "hidden");
    drawing.classList.toggle("clickable", Boolean(point));
    if (!point) return hideTip();
    ring.setAttribute("cx", point[0]);
    ring.setAttribute("cy", point[1]);
    const lines = [0, 1].map((store) => `${report.stores[store].name}: ${format([a, b][store][point[2]])}`);
    showTip([`unit ${point[2]}`, ...lines], event.clientX, event.clientY);
  });
  drawing.addEventListener("pointerleave", () => (ring.setAttribute("visibility", "hidden"), hideTip()));
  drawing.addEventListener("click", (event) => {
    const point = nearest(event);
    if (point) go(`#/unit/${layer.start + point[2]}`);
  });
  return drawing;
}

/** Power by radial frequency, DC apart, a line for each store; a bin that the map has not is left out. */
function spectrumPlot(spectra, title, width, label) {
  const frequency = report.frequency.slice(1);
  const shares = spectra.map((power) => Array.from(power.subarray(1)));
  const x = scale([0, ...frequency], { zero: true }), y = scale(shares.flat(), { log: true });
  const area = { left: 60, right: width - 12, top: 26, bottom: 236 };
  const { across, down, marks } = axes(area, x, y, ["frequency, cycles a pixel of the map", title]);
  const lines = shares.map((power, store) => {
    const points = power.map((value, bin) => (value > 0 ? [across(frequency[bin]), down(value)] : null)).filter(Boolean);
    return s("g", { class: `store${store}` },
      s("polyline", { class: "line", points: points.map((point) => point.join(" ")).join(",") }),
      points.map(([cx, cy]) => s("circle", { class: "dot", cx, cy, r: 2.5 })));
  });
  return canvas(width, 276, label, marks, lines);
}

/** How often a unit has each activation: bars of shares on a logarithmic axis, zero apart in the middle or left. */
function histogramPlot(histograms, width, label) {
  const edges = report.histogram; // signed edges of the shown bins; the bin around zero is the middle one
  const bins = edges.length - 1, middle = (bins - 1) / 2;
  const used = [...Array(bins).keys()].filter((bin) => histograms.some((shares) => shares[bin] > 0));
  const first = Math.min(middle, ...used), last = Math.max(middle + 1, ...used);
  const area = { left: 52, right: width - 12, top: 26, bottom: 236 };
  const step = (area.right - area.left) / (last - first + 1);
  const top = Math.max(1e-9, ...histograms.map((shares) => Math.max(...shares.subarray(first, last + 1))));
  const y = scale([0, Math.sqrt(top)], { zero: true }); // a root axis: rare activations are seen beside the zeros
  const down = (share) => area.bottom - y.at(Math.sqrt(share)) * (area.bottom - area.top);
  const ticks = [1, 0.5, 0.2, 0.05, 0.01, 0.001, 1e-4].filter((share) => share <= top * 1.05)
    .reduce((kept, share) => (kept.length && down(share) - down(kept.at(-1)) < 15 ? kept : [...kept, share]), []);
  const bars = histograms.map((shares, store) => {
    let path = `M${area.left} ${area.bottom}`;
    for (let bin = first; bin <= last; bin++) path += `V${down(shares[bin])}H${area.left + (bin - first + 1) * step}`;
    return s("path", { class: `store${store} outline`, d: `${path}V${area.bottom}Z` });
  });
  const every = Math.max(2, Math.ceil(58 / step / 2) * 2); // two bins an octave
  const names = [];
  for (let bin = first; bin <= last; bin++) {
    if (bin === middle) names.push([bin + 0.5, "0"]);
    else if ((bin > middle ? bin - middle - 1 : middle - bin) % every === 0 && Math.abs(bin - middle) * step > 36) {
      names.push([bin > middle ? bin : bin + 1, format(edges[bin > middle ? bin : bin + 1])]);
    }
  }
  return canvas(width, 276, label,
    ticks.map((share) => [
      s("line", { class: "grid", x1: area.left, x2: area.right, y1: down(share), y2: down(share) }),
      text(area.left - 6, down(share) + 4, `${format(share * 100)} %`, { class: "tick", "text-anchor": "end" })]),
    s("line", { class: "axis", x1: area.left, x2: area.right, y1: area.bottom, y2: area.bottom }),
    names.map(([bin, name]) => text(area.left + (bin - first) * step, area.bottom + 17, name, { class: "tick", "text-anchor": "middle" })),
    text((area.left + area.right) / 2, area.bottom + 34, "activation", { class: "title", "text-anchor": "middle" }),
    text(area.left, area.top - 8, "share of positions", { class: "title" }),
    bars);
}
