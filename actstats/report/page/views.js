// The views: the network by layer, a layer with its units, the units of a class, and one unit.

let report; // the part "overview", once loaded
const findings = document.getElementById("findings");
const UNITS_PER_PAGE = 24;

// The current view, encoded in the address: see main.js.
const shown = { kind: "overview", index: 0, measure: 0, order: "unit", page: 1, base: 0 };
const laidOver = { marks: true, maps: true }; // what is drawn over images

const several = () => report.stores.length > 1;
const withUnit = (measure) => (measure.unit && measure.unit !== "1" ? `${measure.name}, ${measure.unit}` : measure.name);

/** A name shortened in the middle to `most` letters, since names of layers differ at both ends. */
function shortName(name, most) {
  const tail = Math.floor((most - 1) * 0.4);
  return name.length > most ? `${name.slice(0, most - 1 - tail)}…${tail ? name.slice(-tail) : ""}` : name;
}

const measure = () => report.measures[shown.measure];

/** The values of a layer's units of one store, a typed array. */
function unitValues(of, store, layer) {
  return report.arrays[`${of.key}:${store}`].subarray(layer.start, layer.start + layer.units);
}

const valueOf = (of, store, unit) => report.arrays[`${of.key}:${store}`][unit];

// Several networks: each view lists the units of one of them, `shown.base`, beside the units they are paired with.

/** The numbers of the other stores whose units are paired with those shown. */
const others = () => report.stores.map((_, store) => store).filter((store) =>
  store !== shown.base && (report.pairing === "index" || report.arrays[`counterpart:${shown.base}:${store}`]));

/** The unit of a store that is paired with a unit, or -1. */
function counterpart(store, unit) {
  if (store === shown.base || report.pairing === "index") return unit;
  return report.arrays[`counterpart:${shown.base}:${store}`]?.[unit] ?? -1;
}

const heldOut = (store, unit) => report.arrays[`held:${shown.base}:${store}`]?.[unit] ?? NaN;

/** The value of a unit's counterpart in a store; NaN without one. */
function pairedValue(of, store, unit) {
  const there = counterpart(store, unit);
  return there < 0 ? NaN : valueOf(of, store, there);
}

/** A unit's counterpart and their correlation, as text; empty where units are not matched. */
function pairWords(store, unit) {
  if (report.pairing !== "match" || store === shown.base) return "";
  const there = counterpart(store, unit);
  return there < 0 ? "no counterpart" : `${unitName(there)}, r ${format(heldOut(store, unit))}`;
}

/** A menu to choose the network whose units are listed; `changed` is called after a choice. */
function baseChoice(changed) {
  if (!others().length) return [];
  const select = h("select", { id: "base", onchange: () => {
    change({ base: select.selectedIndex, page: 1 });
    changed();
    document.getElementById("base")?.focus();
  } },
    report.stores.map((store, index) => h("option", { selected: index === shown.base }, store.name)));
  return [h("label", { for: "base" }, "Units of"), select];
}

const layerOf = (unit) => report.layers.findIndex((layer) => unit < layer.start + layer.units);

const unitName = (unit) => {
  const layer = report.layers[layerOf(unit)];
  return `${layer.name}/${unit - layer.start}`;
};

/** A store's name beside its colour and shape. */
const storeName = (store, most = Infinity) => h("span", { class: `key store${store}`, title: report.stores[store].name },
  h("i", { "aria-hidden": "true" }), shortName(report.stores[store].name, most));

const NAME_IN_TABLE = 24; // letters, so that tables stay narrower than the page

const legend = () => h("p", { class: "legend" }, [shown.base, ...others()].map((store) => storeName(store)));

/** A menu to choose the measure that is plotted; `changed` is called after a choice. */
function measureChoice(changed) {
  const about = h("span", { class: "about" }, measure().about);
  const select = h("select", { id: "measure", onchange: () => {
    change({ measure: select.selectedIndex, page: 1 });
    about.textContent = measure().about;
    changed();
  } }, report.measures.map((m, index) => h("option", { selected: index === shown.measure }, m.name)));
  return h("div", { class: "choice" }, h("label", { for: "measure" }, "Measure"), select, about);
}

// Images with their receptive fields.

/** The receptive field of a position: {rows, columns} in pixels of the input; `all` if it covers the whole input. */
function fieldAt(layer, row, column) {
  const { top, bottom, left, right } = layer.field;
  const [height, width] = [bottom[row] - top[row], right[column] - left[column]];
  const [rows, columns] = [height, width].map((share) => Math.round(share * report.crop));
  return { rows, columns, all: Math.min(rows, columns) > report.crop - report.fieldStep };
}

/** A field's size as text, with "about" if it is not exact to a pixel. */
const fieldSize = ({ rows, columns }) => `${report.fieldStep > 1 ? "about " : ""}${rows} × ${columns}`;

/** How much of the image a position depends on, as text; empty where receptive fields are not known. */
function fieldWords(layer, position) {
  if (!layer.field) return "";
  const field = fieldAt(layer, Math.floor(position / layer.width), position % layer.width);
  return field.all ? "sees the whole image" : `sees ${fieldSize(field)} of ${report.crop} × ${report.crop} pixels`;
}

/** How much of the image the positions of a layer's maps depend on, as text. */
function fieldsOfLayer(layer) {
  if (!layer.field) return "";
  const all = Array.from({ length: layer.height * layer.width }, (_, at) =>
    fieldAt(layer, Math.floor(at / layer.width), at % layer.width));
  const whole = all.filter((field) => field.all).length;
  if (whole === all.length) return "; each position sees the whole image";
  const area = (field) => field.rows * field.columns;
  const [least, most] = [Math.min, Math.max].map((pick) => all.find((field) => area(field) === pick(...all.map(area))));
  const of = `of ${report.crop} × ${report.crop} pixels`;
  if (whole) return `; ${whole} of ${all.length} positions see the whole image, the others at least ${fieldSize(least)} ${of}`;
  const alike = most.rows - least.rows <= report.fieldStep && most.columns - least.columns <= report.fieldStep && report.fieldStep > 1;
  return alike || area(least) === area(most) ? `; each position sees ${fieldSize(most)} ${of}`
    : `; positions see ${fieldSize(least)} (at the border) to ${fieldSize(most)} ${of}`;
}

/** Marks for a position of a layer's map: the frame of its receptive field, and the field's centre. */
function fieldMark(layer, position) {
  const row = Math.floor(position / layer.width), column = position % layer.width;
  const percent = (value) => `${(100 * value).toFixed(2)}%`;
  const framed = layer.field && !fieldAt(layer, row, column).all, { top, bottom, left, right } = layer.field ?? {};
  // Without a frame, the map is taken to cover the image evenly, which padded convolutions do.
  const [x, y] = framed ? [(left[column] + right[column]) / 2, (top[row] + bottom[row]) / 2]
    : [(column + 0.5) / layer.width, (row + 0.5) / layer.height];
  const marks = [h("b", { class: "centre", style: { left: percent(x), top: percent(y) } })];
  if (framed) {
    marks.unshift(h("b", { class: "field", style: {
      left: percent(left[column]), width: percent(right[column] - left[column]),
      top: percent(top[row]), height: percent(bottom[row] - top[row]) } }));
  }
  return marks;
}

/** One of a unit's top images; `found` is {picture, position, value}. */
function picture(layer, found) {
  const { path, label } = found.picture < 0 ? { path: "no image", label: -1 } : pictureNote(found.picture);
  const frame = h("span", { class: "frame" });
  pictureAddress(found.picture).then((address) => {
    if (address) frame.prepend(h("img", { src: address, alt: "", loading: "lazy", decoding: "async" }));
    else frame.classList.add("missing");
  }, () => frame.classList.add("missing"));
  if (found.picture >= 0) frame.append(...fieldMark(layer, found.position));
  return { frame, path, name: label < 0 ? "" : className(label) };
}

const className = (label) => report.classes[label] ?? `class ${label}`;

function pictureNote(index) {
  return { path: report.pictures.paths[index], label: report.arrays["picture:label"][index] };
}

/** The top images of a unit: [{picture, position, value}], greatest first. */
function topOf(data, store, channel) {
  const ranks = data.ranks[store];
  const { [`picture:${store}`]: pictures, [`position:${store}`]: positions, [`value:${store}`]: values } = data.arrays;
  if (!pictures) return [];
  return Array.from({ length: ranks }, (_, rank) => {
    const at = channel * ranks + rank;
    return { picture: pictures[at], position: positions[at], value: values[at], map: mapAt(data, store, at) };
  }).filter((found) => found.picture >= 0 && found.value !== 0); // images without activation are not ranked
}

/** The activation map of one of a layer's top images: {shares, height, width}, or null. */
function mapAt(data, store, at) {
  if (!data.maps[store]) return null;
  const [height, width] = data.maps[store], size = height * width;
  return { shares: data.arrays[`map:${store}`].subarray(at * size, (at + 1) * size), height, width };
}

/** An activation map to draw over an image, more opaque where the activation is stronger. */
function heat({ shares, height, width }) {
  const canvas = h("canvas", { class: "heat", width, height }), context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  shares.forEach((share, at) => pixels.data.set([224, 0, 127, Math.round(0.75 * share)], 4 * at));
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// The overview.

const findingRows = () => [...findings.querySelectorAll(".findings tr")].map((row) => [...row.cells].flatMap((cell) => {
  const parts = cell.querySelectorAll(".claim, .how");
  return parts.length ? [...parts].map((part) => part.textContent) : cell.textContent.trim() === "Finding" ? ["Finding", "Measured by"]
    : cell.textContent.trim() === "Measure" ? ["Measure", "About"] : [cell.textContent.trim().replace(/\s+/g, " ")];
}));

function overview() {
  const heading = findings.querySelector("#findings-heading");
  if (!heading.querySelector(".save")) heading.append(saving("findings", { rows: findingRows }));
  const plot = h("div");
  const draw = () => {
    const of = measure();
    plot.replaceChildren(
      figure(`${of.name} by layer`, `${of.key} by layer`, (width) => layerPlot(of, width), () => boxRows(of),
        h("p", { class: "hint" }, "Boxes span the middle half of a layer's units, whiskers the 5th to the 95th percentile; the bar is the median. Select a layer to see its units.")),
      layerTable(of),
    );
    fillExtremes();
  };
  const extremes = h("ol", { class: "cards" }), differing = h("div");
  const fillExtremes = () => {
    differing.replaceChildren(h("h2", null, others().length ? "Units that differ most" : "Units that stand out"),
      h("p", { class: "hint" }, { match: "Units whose difference from their counterpart in the chosen measure is farthest from their layer's median.",
        index: "Units of the same index, which are not counterparts, whose difference in the chosen measure is farthest from their layer's median.",
      }[report.pairing] ?? "Units whose value of the chosen measure is farthest from their layer's median."),
      h("div", { class: "choice" }, baseChoice(fillExtremes)), legend());
    const scores = new Map();
    for (let unit = 0; unit < report.units; unit++) {
      const score = extremeness(unit);
      if (Number.isFinite(score)) scores.set(unit, score);
    }
    const units = [...scores.keys()].sort((a, b) => scores.get(b) - scores.get(a) || a - b);
    fillCards(extremes, units.slice(0, 12));
  };
  const view = h("section", { "aria-labelledby": "by-layer" },
    h("h2", { id: "by-layer" }, "Layer by layer"), measureChoice(draw), plot,
    differing, extremes);
  draw();
  return [findings, view];
}

const spreads = new Map();

/** Distance of a unit's value, or of its difference from a counterpart, from its layer's median, relative to the spread. */
function extremeness(unit) {
  const of = measure(), layer = report.layers[layerOf(unit)];
  const facing = others().length ? others() : [null];
  return Math.max(...facing.map((store) => {
    const value = (at) => (store === null ? 0 : pairedValue(of, store, at)) - valueOf(of, shown.base, at);
    const key = `${of.key}/${layer.start}/${shown.base}/${store}`;
    if (!spreads.has(key)) {
      const inOrder = sorted(Array.from({ length: layer.units }, (_, channel) => value(layer.start + channel)));
      const spread = quantile(inOrder, 0.84) - quantile(inOrder, 0.16);
      spreads.set(key, { middle: quantile(inOrder, 0.5), spread: spread > 0 ? spread : NaN });
    }
    const { middle, spread } = spreads.get(key), far = Math.abs(value(unit) - middle) / spread;
    return Number.isFinite(far) ? far : -Infinity;
  }));
}

/** The medians of the plot by layer as a table, built when it is opened. */
function layerTable(of) {
  const hold = h("div", { class: "wide" });
  const fill = () => hold.replaceChildren(h("table", null,
    h("caption", null, `Median of ${withUnit(of)} over each layer's units`),
    h("thead", null, h("tr", null, ["layer", "units", ...report.stores.map((store) => shortName(store.name, NAME_IN_TABLE))].map((name) =>
      h("th", { scope: "col" }, name)))),
    h("tbody", null, report.layers.map((layer, index) => h("tr", null,
      h("th", { scope: "row" }, h("a", to("layer", index), layer.name)), h("td", null, grouped(layer.units)),
      report.stores.map((_, store) => {
        const values = sorted(unitValues(of, store, layer)), some = values.length && values.length < layer.units;
        return h("td", null, format(quantile(values, 0.5)), some ? ` (${grouped(values.length)} of ${grouped(layer.units)})` : "");
      }))))));
  return h("details", { ontoggle: (event) => event.target.open && fill() }, h("summary", null, "Medians as a table"), hold);
}

// Units as cards, in an order, page by page.

/** The available orders: [key in the address, label, sort key of a unit, ascending]. */
function orders() {
  const shownStores = [shown.base, ...others()].sort((a, b) => a - b);
  const difference = (unit) => -Math.max(...others().map((store) => Math.abs(pairedValue(measure(), store, unit) - valueOf(measure(), shown.base, unit)))
    .filter(Number.isFinite));
  const agreement = (unit) => -Math.max(...others().map((store) => (counterpart(store, unit) < 0 ? NaN : heldOut(store, unit))).filter(Number.isFinite));
  return [
    ["unit", "unit number", null],
    ...shownStores.flatMap((store) => {
      const key = ["s", "r"][store] ?? `n${store}`, { name } = report.stores[store];
      return [[`${key}-high`, `${name}, highest first`, (unit) => -pairedValue(measure(), store, unit)],
        [`${key}-low`, `${name}, lowest first`, (unit) => pairedValue(measure(), store, unit)]];
    }),
    ...(others().length ? [["difference", "largest difference first", difference]] : []),
    ...(others().length && report.pairing === "match" ? [["match", "best matched first", agreement]] : []),
  ];
}

/** These units in the chosen order; those without a value come last. */
function inOrder(units) {
  const key = orders().find(([order]) => order === shown.order)?.[2];
  if (!key) return units;
  const values = new Map(units.map((unit) => [unit, key(unit)]));
  const orLast = (unit) => (Number.isFinite(values.get(unit)) ? values.get(unit) : Number.MAX_VALUE);
  return units.toSorted((c, d) => orLast(c) - orLast(d) || c - d);
}

const unitsOf = (layer) => Array.from({ length: layer.units }, (_, channel) => layer.start + channel);

/** The page of the layer's list that has this unit. */
const pageOf = (unit) => 1 + Math.floor(inOrder(unitsOf(report.layers[layerOf(unit)])).indexOf(unit) / UNITS_PER_PAGE);

/** A list of units: a menu of orders, one page of cards, and links to the other pages. */
function unitList(units, name) {
  const cards = h("ol", { class: "cards" });
  const pagers = ["Pages", "Pages, below the list"].map((words) => h("nav", { class: "pages", "aria-label": words }));
  const fill = () => {
    const ordered = inOrder(units), pages = Math.max(1, Math.ceil(ordered.length / UNITS_PER_PAGE));
    shown.page = Math.min(shown.page, pages);
    const first = (shown.page - 1) * UNITS_PER_PAGE;
    fillCards(cards, ordered.slice(first, first + UNITS_PER_PAGE), name);
    const range = `${grouped(Math.min(first + 1, ordered.length))}–${grouped(Math.min(first + UNITS_PER_PAGE, ordered.length))} of ${plural(ordered.length, "unit")}`;
    for (const pager of pagers) pager.replaceChildren(h("span", { class: "range" }, range), ...pageLinks(pages));
    pagers[1].hidden = pages === 1;
  };
  const sort = h("select", { id: "order", onchange: () => (change({ order: orders()[sort.selectedIndex][0], page: 1 }), fill()) },
    orders().map(([value, words]) => h("option", { selected: value === shown.order }, words)));
  const rows = () => {
    const stores = [shown.base, ...others()].sort((a, b) => a - b), matched = report.pairing === "match" ? others() : [];
    const names = stores.map((store) => report.stores[store].name);
    return [
      ["layer", "channel", ...matched.flatMap((store) => ["counterpart", "held_out"].map((key) => `${key} (${report.stores[store].name})`)),
        ...report.measures.flatMap((of) => names.map((name) => `${of.key} (${name})`))],
      ...inOrder(units).map((unit) => {
        const layer = report.layers[layerOf(unit)];
        return [layer.name, unit - layer.start,
          ...matched.flatMap((store) => [counterpart(store, unit) < 0 ? "" : unitName(counterpart(store, unit)), heldOut(store, unit)]),
          ...report.measures.flatMap((of) => stores.map((store) => pairedValue(of, store, unit)))];
      })];
  };
  const heading = h("h2", { id: "units", tabindex: -1 }, "Units", saving("all measures of the units", { rows }));
  return { fill, elements: [heading, legend(),
    h("div", { class: "choice" }, baseChoice(show), h("label", { for: "order" }, "Order"), sort, layChoice("marks", "Show receptive fields")), pagers[0], cards, pagers[1]] };
}

/** Links to the first, the last and the neighbouring pages. */
function pageLinks(pages) {
  if (pages === 1) return [];
  const near = [...new Set([1, shown.page - 1, shown.page, shown.page + 1, pages])].filter((page) => page >= 1 && page <= pages);
  return near.flatMap((page, at) => [
    at && page - near[at - 1] > 1 ? h("span", { "aria-hidden": "true" }, "…") : null,
    h("a", { class: "button", ...to(shown.kind, shown.index, page), "aria-label": `Page ${page} of ${pages}`,
      "aria-current": page === shown.page ? "page" : null }, String(page)),
  ]).filter(Boolean);
}

// A layer.

function layerView(index) {
  const layer = report.layers[index], plots = h("div", { class: "plots" });
  const list = unitList(unitsOf(layer), (unit) => `unit ${unit - layer.start}`);
  const draw = () => {
    const of = measure();
    const rows = () => [["channel", ...report.stores.map((store) => store.name)],
      ...unitsOf(layer).map((unit) => [unit - layer.start, ...report.stores.map((_, store) => valueOf(of, store, unit))])];
    const pairs = () => {
      const stores = [shown.base, ...others()].sort((a, b) => a - b), matched = report.pairing === "match" ? others() : [];
      return [["channel", ...stores.map((store) => report.stores[store].name), ...matched.map((store) => `counterpart in ${report.stores[store].name}`)],
        ...unitsOf(layer).map((unit) => [unit - layer.start, ...stores.map((store) => pairedValue(of, store, unit)),
          ...matched.map((store) => (counterpart(store, unit) < 0 ? "" : unitName(counterpart(store, unit))))])];
    };
    const some = report.stores.some((_, store) => unitValues(of, store, layer).some(Number.isFinite));
    if (!some) plots.replaceChildren(h("p", { class: "hint" }, `No unit of this layer has a value of ${of.name}.`));
    else plots.replaceChildren(
      figure(`Distribution of ${of.name}`, `${layer.name} ${of.key} distribution`, (width) => distribution(of, layer, width), rows),
      ...(others().length ? [figure(report.pairing === "index" ? `${of.name}, units of the same index` : `${of.name}, units and counterparts`,
        `${layer.name} ${of.key} unit by unit`, (width) => scatter(of, layer, width), pairs)] : []));
    part(`layer-${index}`).then((data) => {
      const spectra = report.stores.map((_, store) => data.arrays[`mean-spectrum:${store}`]); // none of a store without spectra
      if (spectra.some((power) => power?.some((value, bin) => bin > 0 && value > 0))) {
        plots.append(figure("Mean power spectrum", `${layer.name} mean spectrum`, (width) => spectrumPlot(spectra, layer, "share of power per coefficient", width,
          "Mean power by frequency over the layer's units, each normalised to a total power of 1"), () => spectrumRows(spectra, layer)));
      }
    }, complain);
    list.fill();
  };
  const view = h("section", null,
    h("nav", { class: "around", "aria-label": "Layers" }, step(index - 1, "layer", "previous layer"), step(index + 1, "layer", "next layer")),
    h("h1", { tabindex: -1 }, breakable(layer.name)),
    h("p", { class: "facts" }, `${plural(layer.units, "unit")}, maps of ${layer.height} × ${layer.width}${fieldsOfLayer(layer)}`),
    measureChoice(draw), plots, list.elements);
  draw();
  return [view];
}

function step(index, kind, words) {
  const all = kind === "layer" ? report.layers.length : report.units;
  const arrow = words.startsWith("previous") ? "←" : "→";
  if (index < 0 || index >= all) return h("span", { class: "button off", "aria-hidden": "true" }, arrow);
  const name = kind === "layer" ? report.layers[index].name : unitName(index);
  return h("a", { class: "button", ...to(kind, index), rel: words.startsWith("previous") ? "prev" : "next",
    title: name, "aria-label": `${words}: ${name}` }, arrow);
}

/** A choice of whether "marks" or "maps" are shown on images. */
function layChoice(what, words) {
  const box = h("input", { type: "checkbox", id: what, checked: laidOver[what], onchange: () => lay(what, box.checked) });
  return h("label", { class: "check", for: what }, box, words);
}

function lay(what, on) {
  laidOver[what] = on;
  document.body.classList.toggle(`no-${what}`, !on);
  const box = document.getElementById(what);
  if (box) box.checked = on;
}

// A class.

const preferring = (store, label, layer) => {
  const found = report.arrays[`preferred:${store}`];
  return found ? unitsOf(layer).filter((unit) => found[unit] === label) : [];
};

/** The units that respond most to one class. */
function classView(label) {
  const counts = report.layers.map((layer) => report.stores.map((_, store) => preferring(store, label, layer)));
  const units = report.layers.flatMap((layer) => preferring(shown.base, label, layer));
  const totals = report.stores.map((_, store) => counts.reduce((sum, of) => sum + of[store].length, 0));
  const list = unitList(units);
  const table = h("table", null,
    h("caption", null, "Units that prefer this class ", saving(`units that prefer ${className(label)}`, { rows: () =>
      [["layer", "units", ...report.stores.map((store) => store.name)],
        ...report.layers.map((layer, at) => [layer.name, layer.units, ...counts[at].map((found) => found.length)])] })),
    h("thead", null, h("tr", null, h("th", { scope: "col" }, "layer"), h("th", { scope: "col" }, "units"),
      report.stores.map((_, store) => h("th", { scope: "col" }, storeName(store, NAME_IN_TABLE))))),
    h("tbody", null, report.layers.map((layer, at) => h("tr", null, h("th", { scope: "row" }, h("a", to("layer", at), layer.name)),
      h("td", null, grouped(layer.units)), counts[at].map((found) => h("td", null, grouped(found.length)))))));
  const view = h("section", null,
    h("h1", { tabindex: -1 }, className(label)),
    h("p", { class: "facts" }, `A unit prefers the class with its greatest mean activation: ${report.stores
      .map((store, at) => `${plural(totals[at], "unit")} of ${store.name}`).join(", ")} prefer this one.`),
    h("div", { class: "wide" }, table), measureChoice(list.fill), list.elements);
  list.fill();
  return [view];
}

// Cards of units, filled when scrolled near the viewport.

const nearby = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    nearby.unobserve(target);
    fillCard(target, Number(target.dataset.unit));
  }
}, { rootMargin: "400px" });

function fillCards(list, units, name = unitName) {
  const links = units.map((unit) => h("a", { class: "card", ...to("unit", unit), "data-unit": unit, "aria-label": cardWords(unit) },
    h("span", { class: "name" }, breakable(name(unit))),
    cardStores().map((store) => h("span", { class: `strip store${store}`, "data-store": store }, h("i", { "aria-hidden": "true" }))),
    report.pairing === "match" && others().length ? h("span", { class: "pairs" }, others().map((store) =>
      h("div", null, `${others().length > 1 ? `${report.stores[store].name}: ` : ""}${pairWords(store, unit)}`))) : null,
    h("span", { class: "values" }, cardStores().map((store) =>
      h("span", { class: `store${store}` }, format(pairedValue(measure(), store, unit)))))));
  list.replaceChildren(...links.map((link) => h("li", null, link)));
  const at = Math.max(0, units.indexOf(lastUnit));
  const columns = () => (links[0] ? Math.max(1, Math.round(list.clientWidth / links[0].parentElement.offsetWidth)) : 1);
  rove(links, columns, at);
  links.forEach((link) => nearby.observe(link));
}

const cardStores = () => [shown.base, ...others()].sort((a, b) => a - b);

const cardWords = (unit) => `${unitName(unit)}, ${measure().name} ${cardStores()
  .map((store) => `${report.stores[store].name} ${format(pairedValue(measure(), store, unit))}`).join(", ")}`;

async function fillCard(card, unit) {
  const found = await besideIt(unit).catch(complain);
  if (!found) return;
  for (const strip of card.querySelectorAll(".strip")) {
    const { layer, channel, data } = found[strip.dataset.store];
    if (layer) for (const image of topOf(data, strip.dataset.store, channel).slice(0, 4)) strip.append(picture(layer, image).frame);
  }
}

/** For each store, the unit paired with a unit, its layer, channel and the layer's part; {unit: -1} without one. */
function besideIt(unit) {
  return Promise.all(report.stores.map(async (_, store) => {
    const there = counterpart(store, unit);
    if (there < 0) return { unit: there };
    const index = layerOf(there), layer = report.layers[index];
    return { unit: there, layer, channel: there - layer.start, data: await part(`layer-${index}`) };
  }));
}

// A unit.

function unitView(unit) {
  const index = layerOf(unit), layer = report.layers[index], channel = unit - layer.start;
  const units = inOrder(unitsOf(layer)), at = units.indexOf(unit);
  const around = [units[at - 1] ?? layer.start - 1, units[at + 1] ?? layer.start + layer.units];
  const body = h("div", { class: "unit" }), maps = h("span");
  besideIt(unit).then((found) => {
    const slice = (name, length) => found.map(({ data, channel: of }, store) =>
      data?.arrays[`${name}:${store}`]?.subarray(of * length, (of + 1) * length));
    const spectra = slice("spectrum", report.frequency.length), histograms = slice("histogram", report.histogram.length - 1);
    const plots = h("div", { class: "plots" });
    if (spectra[shown.base] && spectra.some((power) => power?.some((value, bin) => bin > 0 && value > 0))) {
      plots.append(figure("Power spectrum", `${unitName(unit)} spectrum`, (width) => spectrumPlot(spectra, layer, "power per coefficient, activation²", width,
        `Mean power of ${unitName(unit)} by frequency`), () => spectrumRows(spectra, layer)));
    }
    if (histograms[shown.base]) {
      plots.append(figure("Histogram of activations", `${unitName(unit)} histogram`, (width) => histogramPlot(histograms, width,
        `Histogram of the activations of ${unitName(unit)}`), () => histogramRows(histograms)));
    }
    const order = cardStores();
    if (order.some((store) => found[store].data?.maps[store])) maps.replaceWith(layChoice("maps", "Show activation maps"));
    body.replaceChildren(h("div", { class: `sides${order.length > 2 ? " many" : ""}` }, order.map((store) => side(found[store], store, unit))),
      plots, valueTable(unit, found));
  }, complain);
  const of = several() ? ` of ${report.stores[shown.base].name}` : "";
  return [h("section", null,
    h("nav", { class: "around", "aria-label": "Units" }, step(around[0], "unit", "previous unit"), step(around[1], "unit", "next unit")),
    h("h1", { tabindex: -1 }, h("a", to("layer", index, pageOf(unit)), breakable(layer.name)), h("span", null, ` / ${channel}`)),
    h("p", { class: "facts" }, `unit ${channel}${of}, of ${grouped(layer.units)} in this layer (numbered from 0), maps of ${layer.height} × ${layer.width}`),
    others().length ? h("p", { class: "hint" }, report.pairing === "index"
      ? "Shown beside the unit of the same index. This pairs channels, not functions: the two need not have anything in common."
      : "Shown beside its counterpart: the unit that correlates best with it over the images. r is their correlation on held-out images.") : null,
    h("p", { class: "hint" }, layer.field ? "A yellow frame is the receptive field of the image's maximum, the dot its centre. There is no frame where the maximum sees the whole image."
      : "The dot is the centre of the receptive field of the image's maximum."),
    h("div", { class: "choice" }, layChoice("marks", "Show receptive fields"), maps), body)];
}

/** A unit's counterpart, with a link to its page and their correlation, or why there is none. */
function pairHint(store, unit) {
  if (store === shown.base) return h("p", { class: "hint" }, "This unit");
  if (report.pairing !== "match") return null;
  const there = counterpart(store, unit), best = report.arrays[`best:${shown.base}:${store}`][unit];
  const link = (of) => h("a", to("unit", of, 1, store), breakable(unitName(of)));
  const agreement = format(heldOut(store, unit));
  if (there >= 0) return h("p", { class: "hint" }, "Counterpart ", link(there), `, r ${agreement}`);
  if (best < 0) return h("p", { class: "hint" }, "No counterpart: the unit does not vary.");
  const known = !Number.isNaN(heldOut(store, unit));
  const holds = (name) => report.arrays[`${name}:${shown.base}:${store}`][unit];
  const why = !holds("stable") ? ": the best match depends on the images"
    : !holds("reciprocal") ? ": the two are not each other's best match on both halves of the images"
      : known ? ": r on held-out images is too low, or not significant" : "";
  return h("p", { class: "hint" }, `No counterpart${why}. Best candidate `, link(best), known ? `, r ${agreement}` : "");
}

/** One store's column in the view of a unit: top images and classes of its unit. */
function side({ unit: there, layer, channel, data }, store, shownUnit) {
  if (there < 0) return h("div", { class: `side store${store}` }, h("h2", null, storeName(store)), pairHint(store, shownUnit));
  const top = topOf(data, store, channel), unit = unitName(there);
  const images = top.map((found, rank) => {
    const { frame, path, name } = picture(layer, found), seen = fieldWords(layer, found.position);
    if (found.map) frame.prepend(heat(found.map)); // over the image, which comes later, and under the marks
    const words = [`${rank + 1}: ${format(found.value)}`, name, path, seen].filter(Boolean).join(", ");
    return tipped(h("li", { tabindex: 0, "aria-label": words }, frame,
      h("span", { class: "caption" }, h("b", null, format(found.value)), " ", name || path)),
    () => [path, name, `activation ${format(found.value)}`, seen && `its maximum ${seen}`].filter(Boolean));
  });
  const rows = () => [["rank", "activation", "row", "column", "class", "path"], ...top.map((found, rank) => {
    const { path, label } = pictureNote(found.picture);
    return [rank + 1, found.value, Math.floor(found.position / layer.width), found.position % layer.width, label < 0 ? "" : className(label), path];
  })];
  return h("div", { class: `side store${store}` },
    h("h2", null, storeName(store), top.length ? saving(`${unit} top images ${report.stores[store].name}`, { rows }) : null),
    several() && report.pairing === "match" ? pairHint(store, shownUnit) : null,
    top.length ? h("ol", { class: "images", "aria-label": `Top images, ${report.stores[store].name}` }, images)
               : h("p", { class: "hint" }, "No image activates this unit, or its top images were not recorded."),
    classProfile(data, store, channel, unit));
}

/** Mean activation by class, as bars for the classes with the greatest means. */
function classProfile(data, store, channel, unit) {
  const count = data.classes?.[store] ?? 0;
  if (!count) return null;
  const classes = data.arrays[`class:${store}`].subarray(channel * count, (channel + 1) * count);
  const means = data.arrays[`class-mean:${store}`].subarray(channel * count, (channel + 1) * count);
  const rest = data.arrays[`class-rest:${store}`]?.[channel];
  const rows = Array.from(classes, (label, rank) => [className(label), means[rank], label]);
  if (Number.isFinite(rest)) rows.push([`mean of the other ${grouped(data.others[store])}`, rest]);
  const most = Math.max(...rows.map(([, value]) => Math.abs(value))) || 1;
  const buttons = saving(`${unit} mean activation by class ${report.stores[store].name}`,
    { rows: () => [["class", "mean_activation"], ...rows.map((row) => row.slice(0, 2))] });
  return h("table", { class: "bars" }, h("caption", null, "Mean activation by class ", buttons), h("tbody", null, rows.map(([name, value, label]) =>
    h("tr", null, h("th", { scope: "row", title: name }, label === undefined ? name : h("a", to("class", label), name)),
      h("td", { class: "bar" }, h("i", { style: { width: `${(100 * Math.max(0, value)) / most}%` } })),
      h("td", null, format(value))))));
}

/** The percentage of the layer's units whose value is below a unit's; ties count half. */
function percentile(of, store, { unit, layer }) {
  const value = unit < 0 ? NaN : valueOf(of, store, unit);
  if (!Number.isFinite(value)) return NaN;
  const values = unitValues(of, store, layer).filter(Number.isFinite);
  const below = values.reduce((count, other) => count + (other < value ? 1 : other === value ? 0.5 : 0), 0);
  return (100 * below) / values.length;
}

/** A table of all measures of a unit and of those paired with it, with percentiles within the layer. */
function valueTable(unit, found) {
  const stores = cardStores();
  const rows = () => [
    ["measure", "unit", ...stores.flatMap((store) => [report.stores[store].name, `${report.stores[store].name}, percentile in layer`])],
    ...report.measures.map((of) => [of.key, of.unit, ...stores.flatMap((store) => [pairedValue(of, store, unit), percentile(of, store, found[store])])])];
  return h("div", { class: "wide" }, h("table", { class: "values" },
    h("caption", null, "Measures. The percentile is the share of the layer's units with a lower value. ", saving(`${unitName(unit)} measures`, { rows })),
    h("thead", null, h("tr", null, h("th", { scope: "col" }, "measure"), stores.map((store) => [
      h("th", { scope: "col" }, storeName(store, NAME_IN_TABLE)), h("th", { scope: "col" }, "percentile")]))),
    h("tbody", null, report.measures.map((of) => h("tr", null,
      h("th", { scope: "row", title: of.about }, withUnit(of)),
      stores.map((store) => {
        const place = percentile(of, store, found[store]);
        return [h("td", null, format(pairedValue(of, store, unit))), h("td", { class: "percentile" }, Number.isFinite(place) ? `${Math.round(place)} %` : "–")];
      }))))));
}
