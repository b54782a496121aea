// Plots, drawn as SVG at the available width and redrawn when it changes.

/** An axis for these values: {low, high, ticks, at(value) in [0, 1]}. */
function scale(values, { log = false, zero = false, count = 5 } = {}) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (!Number.isFinite(value) || (log && value <= 0)) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (low > high) [low, high] = log ? [0.1, 1] : [0, 1];
  if (log) {
    const first = Math.log10(low), span = Math.max(Math.log10(high) - first, 0.2);
    const at = (value) => (Math.log10(value) - first + span * 0.03) / (span * 1.06);
    const within = (steps) => Array.from({ length: Math.ceil(span) + 2 }, (_, power) => Math.floor(first) + power)
      .flatMap((power) => steps.map((step) => step * 10 ** power)).filter((tick) => at(tick) >= 0 && at(tick) <= 1);
    // The coarsest steps with at least three ticks, thinned out over many decades.
    const choices = [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 7]].map(within);
    const ticks = choices.find((found) => found.length >= 3) ?? choices.at(-1);
    const few = Math.ceil(ticks.length / 7);
    return { at, low, high, ticks: ticks.filter((_, index) => index % few === 0) };
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

/** Whether the values are positive and span enough for a logarithmic axis. */
function spansMuch(values) {
  const inOrder = sorted(values), low = quantile(inOrder, 0.02);
  return low > 0 && inOrder[0] > 0 && quantile(inOrder, 0.98) / low > 30;
}

/** A figure that is redrawn when its width changes: `draw(width)` returns an <svg>, `rows()` the numbers in it. */
function figure(title, name, draw, rows, ...below) {
  const hold = h("div", { class: "plot" });
  let drawn = 0;
  new ResizeObserver(() => {
    const width = Math.floor(hold.clientWidth);
    if (width > 0 && width !== drawn) hold.replaceChildren(draw((drawn = width)));
  }).observe(hold);
  const buttons = saving(name, { drawing: () => hold.firstElementChild, rows });
  return h("figure", null, h("figcaption", null, h("span", null, title), buttons), hold, below);
}

function canvas(width, height, label, ...children) {
  const size = { width, height, viewBox: `0 0 ${width} ${height}` };
  return s("svg", { ...size, role: "img", "aria-label": label }, ...children);
}

const text = (x, y, content, attributes) => s("text", { x, y, ...attributes }, content);

/** The height of the legend at the top of a drawing; a single store needs none. */
const legendHeight = () => (several() ? 20 : 0);

/** The stores' names beside their colours and shapes. */
function legendIn(left, width) {
  if (!several()) return [];
  const most = Math.max(3, Math.floor(((width - left) / report.stores.length - 36) / 6.8));
  let x = left;
  return report.stores.map((store, index) => {
    const name = shortName(store.name, most), at = x;
    x += 34 + 6.8 * name.length;
    const mark = index % 2 ? { x: at, y: 2, width: 10, height: 10, rx: 2 } : { cx: at + 5, cy: 7, r: 5 };
    return [s(index % 2 ? "rect" : "circle", { class: `dot store${index}`, ...mark }), text(at + 16, 11, name, { class: "title" })];
  });
}

/** The area of a plot of this width, below the legend and the title of its vertical axis. */
const plotArea = (width, left) => ({ left, right: width - 12, top: 26 + legendHeight(), bottom: 236 + legendHeight() });

const PLOT_HEIGHT = 276;

/** Axes of a plot area {left, top, right, bottom}, with grid lines and the legend; returns elements. */
function axes(area, x, y, titles) {
  const across = (value) => area.left + x.at(value) * (area.right - area.left);
  const down = (value) => area.bottom - y.at(value) * (area.bottom - area.top);
  return {
    across,
    down,
    marks: [
      legendIn(area.left, area.right),
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

/** Points as round dots, drawn as a single path. */
const dots = (points, attributes) => s("path", { d: points.map(([x, y]) => `M${x.toFixed(1)} ${y.toFixed(1)}h0`).join(""), ...attributes });

const BOX = [0.05, 0.25, 0.5, 0.75, 0.95];

/** The distribution of the units in every layer, by store: [store][layer] -> quantiles, or null without values. */
const boxesOf = (measure) => report.stores.map((_, store) => report.layers.map((layer) => {
  const values = sorted(unitValues(measure, store, layer));
  return values.length ? BOX.map((q) => quantile(values, q)) : null;
}));

function boxRows(measure) {
  const boxes = boxesOf(measure);
  const rows = report.layers.flatMap((layer, index) => report.stores.map((store, at) =>
    [layer.name, layer.units, store.name, ...(boxes[at][index] ?? BOX.map(() => NaN))]));
  return [["layer", "units", "store", ...BOX.map((q) => `${measure.key}_p${100 * q}`)], ...rows];
}

/** A box per layer and store, with quantiles of the units; each layer is a link. */
function layerPlot(measure, width) {
  const boxes = boxesOf(measure);
  const all = boxes.flat(2).filter((value) => value !== null);
  const value = scale(all, { log: spansMuch(all), zero: !all.some((v) => v < 0) && !spansMuch(all) });
  const count = report.layers.length, head = legendHeight();
  const upright = width / count >= 15;
  const letters = upright ? 26 : Math.floor((width * 0.42 - 14) / 6.6);
  const label = 14 + 6.6 * Math.min(letters, Math.max(...report.layers.map((layer) => layer.name.length)));
  const slot = upright ? (width - 64) / count : 24;
  const height = head + (upright ? 272 + label * 0.78 : count * slot + 44);
  const area = upright
    ? { left: 52, right: width - 12, top: head + 24, bottom: head + 264 }
    : { left: label, right: width - 14, top: head + 32, bottom: head + 32 + count * slot };
  const along = (v) =>
    upright ? area.bottom - value.at(v) * (area.bottom - area.top) : area.left + value.at(v) * (area.right - area.left);
  const place = (a0, a1, b0, b1, least = 1) => {
    const long = Math.max(Math.abs(b1 - b0), least), from = (b0 + b1 - long) / 2;
    return upright ? { x: a0, width: a1 - a0, y: from, height: long } : { y: a0, height: a1 - a0, x: from, width: long };
  };
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
      return [
        s("rect", { class: `whisker store${store}`, ...place(middle - 0.5, middle + 0.5, p5, p95) }),
        s("rect", { class: `box store${store}`, rx: 1, ...place(from, to, p25, p75, 6) }), // equal values show their colour beside the median
        s("rect", { class: "median", ...place(from, to, p50 - 1, p50 + 1) })];
    });
    const name = upright
      ? text(0, 0, shortName(layer.name, letters), { class: "tick", "text-anchor": "end",
          transform: `translate(${centre + 4} ${area.bottom + 14}) rotate(-50)` })
      : text(area.left - 8, centre + 4, shortName(layer.name, letters), { class: "tick", "text-anchor": "end" });
    const lines = () => [layer.name, ...report.stores.map((store, at) =>
      `${store.name}: median ${format(boxes[at][index]?.[2])}, middle half ${format(boxes[at][index]?.[1])} to ${format(boxes[at][index]?.[3])}`)];
    const hit = upright
      ? { x: centre - slot / 2, width: slot, y: area.top, height: area.bottom - area.top + label * 0.75 }
      : { x: 0, width, y: centre - slot / 2, height: slot };
    return tipped(
      s("a", { ...to("layer", index), "aria-label": lines().join(", ") }, s("rect", { class: "hit", ...hit }), shapes, name),
      lines,
    );
  });
  rove(links, () => 1);
  const drawing = canvas(width, height, "", legendIn(upright ? area.left : 0, width), grid,
    s("line", upright ? { class: "axis", x1: area.left, x2: area.right, y1: area.bottom, y2: area.bottom }
                      : { class: "axis", x1: area.left, x2: area.left, y1: area.top, y2: area.bottom }),
    text(upright ? 0 : area.left, head + 12, withUnit(measure), { class: "title" }), links);
  drawing.setAttribute("role", "group");
  drawing.setAttribute("aria-label", `${measure.name} by layer; arrow keys move between layers, Enter opens one`);
  return drawing;
}

/** How the values of one layer's units are distributed: a stepped outline per store. */
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
  const area = plotArea(width, 44);
  const { down, marks } = axes(area, x, y, [withUnit(measure), "number of units"]);
  const step = (area.right - area.left) / bins;
  const shapes = counts.map((found, store) => {
    let path = `M${area.left} ${area.bottom}`;
    found.forEach((count, bin) => (path += `V${down(count)}H${area.left + (bin + 1) * step}`));
    return s("path", { class: `store${store} outline`, d: `${path}V${area.bottom}Z` });
  });
  const label = report.stores.map((store, at) => `${store.name}: median ${format(quantile(values[at], 0.5))}`).join("; ");
  return canvas(width, PLOT_HEIGHT + legendHeight(), `Distribution of ${measure.name} over the layer's units. ${label}`, marks, shapes);
}

/** Each unit of a layer as a point: x is its own value, y its counterpart's; a click opens the unit. */
function scatter(measure, layer, width) {
  const own = unitValues(measure, shown.base, layer), many = others().length > 1;
  const facing = others().map((store) => Float64Array.from(own, (_, channel) => pairedValue(measure, store, layer.start + channel)));
  const all = [...own, ...facing.flatMap((of) => Array.from(of))], log = spansMuch(all);
  const [x, y] = [scale(all, { log }), scale(all, { log })];
  const area = many ? plotArea(width, 52) : { left: 52, right: width - 12, top: 26, bottom: 236 + legendHeight() };
  const letters = Math.max(6, Math.floor(width / 7) - withUnit(measure).length - 4);
  const title = (store) => `${shortName(report.stores[store].name, letters)}: ${withUnit(measure)}`;
  const { across, down, marks } = axes(area, x, y, [title(shown.base), many ? `counterparts: ${withUnit(measure)}` : title(others()[0])]);
  if (!many) marks.shift(); // the axes name the stores
  const { low, high } = x;
  const points = [];
  others().forEach((store, at) => own.forEach((value, channel) => {
    const [px, py] = [across(value), down(facing[at][channel])];
    if (Number.isFinite(px + py)) points.push([px, py, channel, store]);
  }));
  const ring = s("circle", { class: "ring", r: 6, visibility: "hidden" });
  const names = others().map((store) => report.stores[store].name).join(", ");
  const drawing = canvas(width, PLOT_HEIGHT + legendHeight(),
    `${measure.name} of each unit, ${report.stores[shown.base].name} against ${names}; the units are listed below`,
    marks, s("line", { class: "diagonal", x1: across(low), y1: down(low), x2: across(high), y2: down(high) }),
    text(across(high) - 8, down(high) + 4, "equal", { class: "tick", "text-anchor": "end" }),
    others().map((store) => dots(points.filter((point) => point[3] === store), { class: many ? `points store${store}` : "points" })), ring);
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
    const [, , channel, store] = point, unit = layer.start + channel;
    showTip([`unit ${channel}`, `${report.stores[shown.base].name}: ${format(own[channel])}`,
      `${report.stores[store].name}: ${format(pairedValue(measure, store, unit))}`, pairWords(store, unit)].filter(Boolean), event.clientX, event.clientY);
  });
  drawing.addEventListener("pointerleave", () => (ring.setAttribute("visibility", "hidden"), hideTip()));
  drawing.addEventListener("click", (event) => {
    const point = nearest(event);
    if (point) go(addressOf("unit", layer.start + point[2]));
  });
  return drawing;
}

/** The frequency of each radial bin in a layer's maps, between those of the coefficients that maps of this size have. */
const frequenciesOf = (layer) => layer.frequency ?? report.frequency;

/** Power by radial frequency without DC, on logarithmic axes, as a line per store that has it; unresolved bins are left out. */
function spectrumPlot(spectra, layer, title, width, label) {
  const frequency = frequenciesOf(layer).slice(1);
  const shares = spectra.map((power) => Array.from(power?.subarray(1) ?? []));
  const resolved = frequency.filter((_, bin) => shares.some((power) => power[bin] > 0));
  const x = scale(resolved, { log: true }), y = scale(shares.flat(), { log: true });
  const area = plotArea(width, 60);
  const { across, down, marks } = axes(area, x, y, ["frequency, cycles/pixel of the map", title]);
  const lines = shares.map((power, store) => {
    const points = power.map((value, bin) => (value > 0 ? [across(frequency[bin]), down(value)] : null)).filter(Boolean);
    return [
      s("polyline", { class: `line store${store}`, points: points.map((point) => point.join(" ")).join(",") }),
      dots(points, { class: `ends store${store}` })];
  });
  return canvas(width, PLOT_HEIGHT + legendHeight(), label, marks, lines);
}

/** The data of `spectrumPlot` as rows. */
const spectrumRows = (spectra, layer) => [["frequency_cycles_per_pixel", ...report.stores.map((store) => store.name)],
  ...frequenciesOf(layer).map((frequency, bin) => [frequency, ...spectra.map((power) => power?.[bin])]).slice(1)];

/** Histogram of a unit's activations: shares on a square-root axis, in bins of half an octave, with zero in its own bin. */
function histogramPlot(histograms, width, label) {
  const edges = report.histogram; // signed edges of the bins; the one around zero is in the middle
  const bins = edges.length - 1, middle = (bins - 1) / 2;
  const used = [...Array(bins).keys()].filter((bin) => histograms.some((shares) => shares?.[bin] > 0));
  const first = Math.min(middle, ...used), last = Math.max(middle + 1, ...used);
  const area = plotArea(width, 52);
  const step = (area.right - area.left) / (last - first + 1);
  const top = Math.max(1e-9, ...histograms.filter(Boolean).map((shares) => Math.max(...shares.subarray(first, last + 1))));
  const y = scale([0, Math.sqrt(top)], { zero: true }); // so that rare activations are visible beside the zeros
  const down = (share) => area.bottom - y.at(Math.sqrt(share)) * (area.bottom - area.top);
  const ticks = [1, 0.5, 0.2, 0.05, 0.01, 0.001, 1e-4].filter((share) => share <= top * 1.05)
    .reduce((kept, share) => (kept.length && down(share) - down(kept.at(-1)) < 15 ? kept : [...kept, share]), []);
  const bars = histograms.map((shares, store) => {
    if (!shares) return null;
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
  return canvas(width, PLOT_HEIGHT + legendHeight(), label, legendIn(area.left, area.right),
    ticks.map((share) => [
      s("line", { class: "grid", x1: area.left, x2: area.right, y1: down(share), y2: down(share) }),
      text(area.left - 6, down(share) + 4, `${format(share * 100)} %`, { class: "tick", "text-anchor": "end" })]),
    s("line", { class: "axis", x1: area.left, x2: area.right, y1: area.bottom, y2: area.bottom }),
    names.map(([bin, name]) => text(area.left + (bin - first) * step, area.bottom + 17, name, { class: "tick", "text-anchor": "middle" })),
    text((area.left + area.right) / 2, area.bottom + 34, "activation", { class: "title", "text-anchor": "middle" }),
    text(area.left, area.top - 8, "share of positions (square-root scale)", { class: "title" }),
    bars);
}

/** The data of `histogramPlot` as rows, without bins that are empty in every store. */
const histogramRows = (histograms) => [["bin_left", "bin_right", ...report.stores.map((store) => store.name)],
  ...report.histogram.slice(1).map((right, bin) => [report.histogram[bin], right, ...histograms.map((shares) => shares?.[bin])])
    .filter(([, , ...shares]) => shares.some((share) => share > 0))];
