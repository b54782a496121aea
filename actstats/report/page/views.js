// The views: the network by layer, a layer with its units, and one unit.

const state = { measure: 0, sort: "channel", marks: true };
let report; // the part "overview", once it is read
const findings = document.getElementById("findings");

const pair = () => report.stores.length === 2;
const withUnit = (measure) => (measure.unit && measure.unit !== "1" ? `${measure.name}, ${measure.unit}` : measure.name);

/** A name cut in its middle to so many letters: layers differ at both ends. */
function shortName(name, most) {
  const tail = Math.floor((most - 1) * 0.4);
  return name.length > most ? `${name.slice(0, most - 1 - tail)}…${name.slice(-tail)}` : name;
}

const measure = () => report.measures[state.measure];

/** The values of a layer's units of one store, a typed array. */
function unitValues(of, store, layer) {
  return report.arrays[`${of.key}:${store}`].subarray(layer.start, layer.start + layer.units);
}

const layerOf = (unit) => report.layers.findIndex((layer) => unit < layer.start + layer.units);

/** The store's name beside its colour and shape. */
const storeName = (store) =>
  h("span", { class: `key store${store}` }, h("i", { "aria-hidden": "true" }), report.stores[store].name);

const legend = () => h("p", { class: "legend" }, report.stores.map((_, store) => storeName(store)));

/** A choice of what is plotted; `changed` is called after the choice. */
function measureChoice(changed) {
  const about = h("span", { class: "about" }, measure().about);
  const select = h("select", { id: "measure", onchange: () => {
    state.measure = select.selectedIndex;
    about.textContent = measure().about;
    changed();
  } }, report.measures.map((m, index) => h("option", { selected: index === state.measure }, m.name)));
  return h("div", { class: "choice" }, h("label", { for: "measure" }, "Measure"), select, about);
}

// Images with their receptive fields.

/** Whether a position's receptive field is the whole image. */
function seesAll(layer, row, column) {
  const { top, bottom, left, right } = layer.field;
  return bottom[row] - top[row] > 0.999 && right[column] - left[column] > 0.999;
}

/** The mark of where in the image a position of a layer's map looks: what it sees, and its centre. */
function fieldMark(layer, position) {
  const row = Math.floor(position / layer.width), column = position % layer.width;
  const percent = (value) => `${(100 * value).toFixed(2)}%`;
  const marks = [h("b", { class: "centre", style: {
    left: percent((column + 0.5) / layer.width), top: percent((row + 0.5) / layer.height) } })];
  if (layer.field && !seesAll(layer, row, column)) {
    const { top, bottom, left, right } = layer.field;
    marks.unshift(h("b", { class: "field", style: {
      left: percent(left[column]), width: percent(right[column] - left[column]),
      top: percent(top[row]), height: percent(bottom[row] - top[row]) } }));
  }
  return marks;
}

/** One image among a unit's greatest; `found` is {picture, position, value}. */
function picture(layer, found) {
  const { path, label } = found.picture < 0 ? { path: "no image", label: -1 } : pictureNote(found.picture);
  const frame = h("span", { class: "frame" });
  pictureAddress(found.picture).then((address) => {
    if (address) frame.prepend(h("img", { src: address, alt: "", loading: "lazy", decoding: "async" }));
    else frame.classList.add("missing");
  }, () => frame.classList.add("missing"));
  if (found.picture >= 0) frame.append(...fieldMark(layer, found.position));
  return { frame, path, name: label < 0 ? "" : report.classes[label] ?? `class ${label}` };
}

function pictureNote(index) {
  return { path: report.pictures.paths[index], label: report.arrays["picture:label"][index] };
}

/** The top images of a unit: [{picture, position, value}], greatest first. */
function topOf(data, layer, store, channel) {
  const ranks = data.ranks[store];
  const { [`picture:${store}`]: pictures, [`position:${store}`]: positions, [`value:${store}`]: values } = data.arrays;
  if (!pictures) return [];
  return Array.from({ length: ranks }, (_, rank) => {
    const at = channel * ranks + rank;
    return { picture: pictures[at], position: positions[at], value: values[at] };
  }).filter((found) => found.picture >= 0 && found.value !== 0); // zero: all images are equal there
}

// The overview.

function overview() {
  const plot = h("div");
  const draw = () => {
    const of = measure();
    plot.replaceChildren(
      figure(`${of.name} of the units of each layer`, (width) => layerPlot(of, width),
        h("p", { class: "hint" }, "Boxes hold half of a layer's units, lines 5 to 95 %, the bar is the median. Choose a layer to see its units.")),
      layerTable(of),
    );
    fillExtremes();
  };
  const extremes = h("ol", { class: "cards" });
  const fillExtremes = () => {
    const units = [...Array(report.units).keys()].filter((unit) => Number.isFinite(extremeness(unit)));
    units.sort((a, b) => extremeness(b) - extremeness(a) || a - b);
    fillCards(extremes, units.slice(0, 12));
  };
  const view = h("section", { "aria-labelledby": "by-layer" },
    h("h2", { id: "by-layer" }, "Layer by layer"), legend(), measureChoice(draw), plot,
    h("h2", null, pair() ? "Units that differ most" : "Units that stand out"),
    h("p", { class: "hint" }, pair()
      ? "By the chosen measure, of units with the same index, against the spread of their layer."
      : "By the chosen measure, against the spread of their layer."), extremes);
  draw();
  return [findings, view];
}

const spreads = new Map();

/** How far a unit is from what is usual in its layer: its difference between the stores, or its value. */
function extremeness(unit) {
  const of = measure(), layer = report.layers[layerOf(unit)], key = `${of.key}/${layer.start}`;
  const values = report.stores.map((_, store) => unitValues(of, store, layer));
  const value = (channel) => (pair() ? values[1][channel] - values[0][channel] : values[0][channel]);
  if (!spreads.has(key)) {
    const inOrder = sorted(Array.from({ length: layer.units }, (_, channel) => value(channel)));
    const spread = quantile(inOrder, 0.84) - quantile(inOrder, 0.16);
    spreads.set(key, { middle: quantile(inOrder, 0.5), spread: spread > 0 ? spread : NaN });
  }
  const { middle, spread } = spreads.get(key);
  return Math.abs(value(unit - layer.start) - middle) / spread;
}

/** The same numbers as the plot by layer, to read and to copy. */
function layerTable(of) {
  const body = h("tbody", null, report.layers.map((layer, index) => h("tr", null,
    h("th", { scope: "row" }, h("a", { href: `#/layer/${index}` }, layer.name)), h("td", null, grouped(layer.units)),
    report.stores.map((_, store) => h("td", null, format(quantile(sorted(unitValues(of, store, layer)), 0.5)))))));
  return h("details", null, h("summary", null, "The same as a table"),
    h("div", { class: "wide" }, h("table", null,
      h("caption", null, `Median of ${withUnit(of)}`),
      h("thead", null, h("tr", null, ["layer", "units", ...report.stores.map((store) => store.name)].map((name) =>
        h("th", { scope: "col" }, name)))), body)));
}

// A layer.

const ORDERS = [
  ["channel", "channel"], ["first", "$0, greatest first"], ["first-", "$0, least first"],
  ["second", "$1, greatest first"], ["second-", "$1, least first"], ["difference", "difference, greatest first"],
];

/** The units of a layer in the chosen order. */
function inOrder(layer) {
  const [a, b] = report.stores.map((_, store) => unitValues(measure(), store, layer));
  const key = {
    first: (c) => -a[c], "first-": (c) => a[c], second: (c) => -b?.[c], "second-": (c) => b?.[c],
    difference: (c) => -Math.abs(b?.[c] - a[c]),
  }[state.sort];
  const channels = [...Array(layer.units).keys()];
  if (key) channels.sort((c, d) => orLast(key(c)) - orLast(key(d)) || c - d);
  return channels.map((channel) => layer.start + channel);
}

const orLast = (value) => (Number.isFinite(value) ? value : Number.MAX_VALUE);

function layerView(index) {
  const layer = report.layers[index];
  const plots = h("div", { class: "plots" }), cards = h("ol", { class: "cards" });
  const fillUnits = () => fillCards(cards, inOrder(layer), (unit) => `unit ${unit - layer.start}`);
  const orders = ORDERS.slice(0, pair() ? 6 : 3);
  const sort = h("select", { id: "sort", onchange: () => ((state.sort = orders[sort.selectedIndex][0]), fillUnits()) },
    orders.map(([value, name]) => h("option", { selected: value === state.sort },
      name.replace("$0", report.stores[0].name).replace("$1", report.stores[1]?.name ?? ""))));
  const draw = () => {
    const of = measure();
    plots.replaceChildren(
      figure(`${of.name} of the units`, (width) => distribution(of, layer, width)),
      ...(pair() ? [figure("Unit by unit", (width) => scatter(of, layer, width))] : []));
    part(`layer-${index}`).then((data) => {
      const spectra = report.stores.map((_, store) => data.arrays[`mean-spectrum:${store}`]).filter(Boolean);
      if (spectra.length === report.stores.length && spectra[0].some((value, bin) => bin > 0 && value > 0)) {
        plots.append(figure("Mean power spectrum", (width) => spectrumPlot(spectra, "power of a coefficient, share", width, "Mean over the layer's units of their power by frequency, each unit's total being 1")));
      }
    }, complain);
    fillUnits();
  };
  const view = h("section", null,
    h("nav", { class: "around", "aria-label": "Layers" }, step(index - 1, "layer", "previous layer"), step(index + 1, "layer", "next layer")),
    h("h1", { tabindex: -1 }, breakable(layer.name)),
    h("p", { class: "facts" }, `${plural(layer.units, "unit")}, maps of ${layer.height} × ${layer.width}${fieldSize(layer)}`),
    legend(), measureChoice(draw), plots,
    h("h2", null, "Units"),
    h("div", { class: "choice" }, h("label", { for: "sort" }, "Order"), sort, markChoice()), cards);
  draw();
  return [view];
}

/** In words, how much of the input a unit in the middle of the map sees. */
function fieldSize(layer) {
  if (!layer.field) return "";
  const row = layer.height >> 1, column = layer.width >> 1, { top, bottom, left, right } = layer.field;
  const [height, width] = [bottom[row] - top[row], right[column] - left[column]];
  if (seesAll(layer, row, column)) return ", each position sees the whole image";
  const [rows, columns] = [height, width].map((share) => Math.round(share * report.crop));
  return `, a position in the middle sees about ${rows} × ${columns} of ${report.crop} pixels`;
}

function step(index, kind, words) {
  const all = kind === "layer" ? report.layers.length : report.units;
  const arrow = words.startsWith("previous") ? "←" : "→";
  if (index < 0 || index >= all) return h("span", { class: "button off", "aria-hidden": "true" }, arrow);
  const name = kind === "layer" ? report.layers[index].name : unitName(index);
  return h("a", { class: "button", href: `#/${kind}/${index}`, rel: words.startsWith("previous") ? "prev" : "next",
    title: name, "aria-label": `${words}: ${name}` }, arrow);
}

const unitName = (unit) => {
  const layer = report.layers[layerOf(unit)];
  return `${layer.name}/${unit - layer.start}`;
};

function markChoice() {
  const box = h("input", { type: "checkbox", id: "marks", checked: state.marks, onchange: () => showMarks(box.checked) });
  return h("label", { class: "check", for: "marks" }, box, "receptive fields");
}

function showMarks(on) {
  state.marks = on;
  document.body.classList.toggle("unmarked", !on);
  const box = document.getElementById("marks");
  if (box) box.checked = on;
}

// Cards of units, filled when they come near the window.

const nearby = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    nearby.unobserve(target);
    fillCard(target, Number(target.dataset.unit));
  }
}, { rootMargin: "400px" });

function fillCards(list, units, name = unitName) {
  const links = units.map((unit) => h("a", { class: "card", href: `#/unit/${unit}`, "data-unit": unit, "aria-label": cardWords(unit) },
    h("span", { class: "name" }, breakable(name(unit))),
    report.stores.map((_, store) => h("span", { class: `strip store${store}` }, h("i", { "aria-hidden": "true" }))),
    h("span", { class: "values" }, report.stores.map((_, store) =>
      h("span", { class: `store${store}` }, format(report.arrays[`${measure().key}:${store}`][unit]))))));
  list.replaceChildren(...links.map((link) => h("li", null, link)));
  const at = Math.max(0, units.indexOf(lastUnit));
  const columns = () => (links[0] ? Math.max(1, Math.round(list.clientWidth / links[0].parentElement.offsetWidth)) : 1);
  rove(links, columns, at);
  links.forEach((link) => nearby.observe(link));
}

const cardWords = (unit) => `${unitName(unit)}, ${measure().name} ${report.stores
  .map((store, at) => `${store.name} ${format(report.arrays[`${measure().key}:${at}`][unit])}`).join(", ")}`;

async function fillCard(card, unit) {
  const index = layerOf(unit), layer = report.layers[index];
  const data = await part(`layer-${index}`).catch(complain);
  if (!data) return;
  card.querySelectorAll(".strip").forEach((strip, store) => {
    for (const found of topOf(data, layer, store, unit - layer.start).slice(0, 4)) strip.append(picture(layer, found).frame);
  });
}

// A unit.

function unitView(unit) {
  const index = layerOf(unit), layer = report.layers[index], channel = unit - layer.start;
  const units = inOrder(layer), at = units.indexOf(unit);
  const around = [units[at - 1] ?? layer.start - 1, units[at + 1] ?? layer.start + layer.units];
  const body = h("div", { class: "unit" });
  part(`layer-${index}`).then((data) => {
    const { arrays } = data, stores = report.stores.map((_, store) => store);
    const slice = (name, length) => stores.map((store) => arrays[`${name}:${store}`]?.subarray(channel * length, (channel + 1) * length));
    const spectra = slice("spectrum", report.frequency.length), histograms = slice("histogram", report.histogram.length - 1);
    const plots = h("div", { class: "plots" });
    if (spectra.every(Boolean) && spectra.some((power) => power.some((value, bin) => bin > 0 && value > 0))) {
      plots.append(figure("Power spectrum", (width) => spectrumPlot(spectra, "power of a coefficient, activation²", width, `Mean power of ${unitName(unit)} by frequency`)));
    }
    if (histograms.every(Boolean)) {
      plots.append(figure("Histogram of activations", (width) => histogramPlot(histograms, width, `Shares of the activations of ${unitName(unit)}`)));
    }
    body.replaceChildren(h("div", { class: "sides" }, stores.map((store) => side(data, layer, store, channel))), plots, valueTable(unit));
  }, complain);
  return [h("section", null,
    h("nav", { class: "around", "aria-label": "Units" }, step(around[0], "unit", "previous unit"), step(around[1], "unit", "next unit")),
    h("h1", { tabindex: -1 }, h("a", { href: `#/layer/${index}` }, breakable(layer.name)), h("span", null, ` / ${channel}`)),
    h("p", { class: "facts" }, `unit ${grouped(unit + 1)} of ${grouped(report.units)}, maps of ${layer.height} × ${layer.width}${fieldSize(layer)}`),
    h("div", { class: "choice" }, markChoice()), body)];
}

/** One store's half of a unit: its top images and its classes. */
function side(data, layer, store, channel) {
  const top = topOf(data, layer, store, channel);
  const images = top.map((found, rank) => {
    const { frame, path, name } = picture(layer, found);
    const words = `${rank + 1}: ${format(found.value)}${name ? `, ${name}` : ""}, ${path}`;
    return tipped(h("li", { tabindex: 0, "aria-label": words }, frame,
      h("span", { class: "caption" }, h("b", null, format(found.value)), " ", name || path)),
    () => [path, ...(name ? [name] : []), `activation ${format(found.value)}`]);
  });
  return h("div", { class: `side store${store}` },
    h("h2", null, storeName(store)),
    top.length ? h("ol", { class: "images", "aria-label": `Top images, ${report.stores[store].name}` }, images)
               : h("p", { class: "hint" }, "No image excites this unit, or none were recorded."),
    classProfile(data, store, channel));
}

/** Mean activation by class, the greatest classes as bars. */
function classProfile(data, store, channel) {
  const count = data.classes?.[store] ?? 0;
  if (!count) return null;
  const classes = data.arrays[`class:${store}`].subarray(channel * count, (channel + 1) * count);
  const means = data.arrays[`class-mean:${store}`].subarray(channel * count, (channel + 1) * count);
  const rest = data.arrays[`class-rest:${store}`]?.[channel];
  const rows = Array.from(classes, (label, rank) => [report.classes[label] ?? `class ${label}`, means[rank]]);
  if (Number.isFinite(rest)) rows.push([`mean of the other ${grouped(data.others[store])}`, rest]);
  const most = Math.max(...rows.map(([, value]) => Math.abs(value))) || 1;
  return h("table", { class: "bars" }, h("caption", null, "Mean activation by class"), h("tbody", null, rows.map(([name, value]) =>
    h("tr", null, h("th", { scope: "row", title: name }, name),
      h("td", { class: "bar" }, h("i", { style: { width: `${(100 * Math.max(0, value)) / most}%` } })),
      h("td", null, format(value))))));
}

/** Every measure of the unit. */
function valueTable(unit) {
  return h("div", { class: "wide" }, h("table", { class: "values" }, h("caption", null, "Measures"),
    h("thead", null, h("tr", null, h("th", { scope: "col" }, "measure"), report.stores.map((_, store) => h("th", { scope: "col" }, storeName(store))))),
    h("tbody", null, report.measures.map((of) => h("tr", null,
      h("th", { scope: "row", title: of.about }, withUnit(of)),
      report.stores.map((_, store) => h("td", null, format(report.arrays[`${of.key}:${store}`][unit]))))))));
}
