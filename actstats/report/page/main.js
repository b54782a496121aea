// Routing by the part of the address after #, the search, and the keyboard shortcuts.

let lastUnit = -1;

const main = document.getElementById("view");
const trail = document.getElementById("trail");
const alarm = document.getElementById("alarm");

function complain(error) {
  alarm.hidden = false;
  alarm.textContent = `This page cannot show its data: ${error.message}`;
}

// Addresses: #/layer/3?measure=centroid&order=r-high&page=2, and so on; defaults are left out.

/** The address of a view with the current measure and order. */
function addressOf(kind, index = 0, page = 1, base = shown.base) {
  const query = new URLSearchParams();
  if (base) query.set("of", base);
  if (shown.measure) query.set("measure", measure().key);
  if (shown.order !== "unit") query.set("order", shown.order);
  if (page > 1) query.set("page", page);
  return `#/${kind === "overview" ? "" : `${kind}/${index}`}${query.size ? `?${query}` : ""}`;
}

/** The attributes of a link to a view; `change` keeps it up to date. */
const to = (kind, index = 0, page = 1, base = undefined) =>
  ({ href: addressOf(kind, index, page, base), "data-to": [kind, index, page, ...(base === undefined ? [] : [base])].join(" ") });

/** The state that the address describes, with defaults for whatever is missing or invalid. */
function place() {
  const [, kind = "overview", number = "0", query = ""] = /^#\/(?:(layer|unit|class)\/(\d+))?(?:\?(.*))?$/.exec(location.hash) ?? [];
  const limits = { overview: 1, layer: report.layers.length, unit: report.units, class: report.classes.length };
  const asked = new URLSearchParams(query);
  // Whatever the address says, the state is one that the page can show; the orders depend on the network.
  shown.base = Math.max(0, report.stores.findIndex((_, store) => String(store) === asked.get("of")));
  return {
    ...(Number(number) < limits[kind] ? { kind, index: Number(number) } : { kind: "overview", index: 0 }),
    measure: Math.max(0, report.measures.findIndex((found) => found.key === asked.get("measure"))),
    base: shown.base,
    order: orders().some(([order]) => order === asked.get("order")) ? asked.get("order") : "unit",
    page: Math.max(1, Math.floor(Number(asked.get("page"))) || 1),
  };
}

/** Change the measure, order or page. Updates the address and all links without adding to the history. */
function change(changes) {
  Object.assign(shown, changes);
  location.replace(addressOf(shown.kind, shown.index, shown.page));
  document.documentElement.dataset.shown = location.hash;
  for (const link of document.querySelectorAll("[data-to]")) {
    const [kind, index, page, base] = link.dataset.to.split(" ");
    link.setAttribute("href", addressOf(kind, index, page, base === undefined ? shown.base : Number(base)));
  }
}

/** Navigate and render at once, so that a quick second key press acts on the new view. */
function go(address) {
  location.hash = address;
  showWhereItIs();
}

let before = null;

function show() {
  Object.assign(shown, place());
  const { kind, index } = shown;
  hideTip();
  const views = { overview: () => overview(), layer: () => layerView(index), class: () => classView(index), unit: () => unitView(index) };
  main.replaceChildren(...views[kind]());
  if (kind === "unit") lastUnit = index;
  const layer = kind === "unit" ? layerOf(index) : index;
  const current = (here) => ({ "aria-current": kind === here ? "page" : null });
  trail.replaceChildren(
    h("li", null, h("a", { ...to("overview"), ...current("overview") }, "Overview")),
    ...(kind === "class" ? [h("li", null, h("a", { ...to("class", index), ...current("class") }, className(index)))] : []),
    ...(kind === "layer" || kind === "unit" ? [h("li", null, h("a", { ...to("layer", layer, kind === "unit" ? pageOf(index) : shown.page), ...current("layer") }, report.layers[layer].name))] : []),
    ...(kind === "unit" ? [h("li", null, h("a", { ...to("unit", index), ...current("unit") }, String(index - report.layers[layer].start)))] : []));
  const name = { overview: null, layer: report.layers[layer]?.name, class: className(index), unit: kind === "unit" && unitName(index) }[kind];
  document.title = [name, report.title].filter(Boolean).join(" · ");
  if (before) {
    // Coming back from a unit, focus its card; on another page of the same list, focus the list.
    const card = before.kind === "unit" && before.base === shown.base && main.querySelector(`.card[data-unit="${before.index}"]`);
    const list = before.kind === kind && before.index === index && document.getElementById("units");
    if (card) {
      card.focus();
      card.scrollIntoView({ block: "center" });
    } else if (list) {
      list.focus({ preventScroll: true });
      list.scrollIntoView();
    } else {
      scrollTo(0, 0);
      (main.querySelector("h1") ?? document.querySelector("h1")).focus({ preventScroll: true });
    }
  }
  before = { kind, index, base: shown.base };
  document.documentElement.dataset.shown = location.hash;
}

/** One step up: from a unit to its layer, from a layer or a class to the overview. */
function back() {
  const { kind, index } = shown;
  if (kind === "unit") go(addressOf("layer", layerOf(index), pageOf(index)));
  else if (kind !== "overview") go(addressOf("overview"));
}

// The search finds layers and classes by any part of their name, and units by LAYER/CHANNEL or channel.

const searching = document.getElementById("search");
const box = document.getElementById("query");
const results = document.getElementById("results");
const MOST_RESULTS = 40;
let chosen = 0;

/** The results for a query, as [name, address, note]. */
function matches(query) {
  const words = query.trim().toLowerCase();
  const layers = report.layers.map((layer, index) => ({ layer, index }));
  const named = (name) => layers.filter(({ layer }) => layer.name.toLowerCase().includes(name));
  const unit = (channel) => ({ layer }) => channel < layer.units
    ? [[`${layer.name}/${channel}`, addressOf("unit", layer.start + channel), "unit"]] : [];
  const [, name, channel] = /^(.*?)[/\s]+(\d+)$/.exec(words) ?? [];
  const found = named(words.replace(/[/\s]+$/, "")).map(({ layer, index }) => [layer.name, addressOf("layer", index), plural(layer.units, "unit")]);
  report.classes.forEach((label, index) => {
    if (words && report.arrays[`preferred:${shown.base}`] && label.toLowerCase().includes(words)) found.push([label, addressOf("class", index), "class"]);
  });
  if (channel) found.push(...named(name).flatMap(unit(Number(channel))));
  if (/^\d+$/.test(words)) found.push(...layers.flatMap(unit(Number(words))));
  return found;
}

function search() {
  const all = matches(box.value), found = all.slice(0, MOST_RESULTS);
  chosen = Math.max(0, Math.min(chosen, found.length - 1));
  results.replaceChildren(...found.map(([name, address, note], index) =>
    h("li", { role: "option", id: `result-${index}`, "aria-selected": String(index === chosen), onclick: () => (closeSearch(), go(address)) },
      h("span", null, name), h("small", null, note))));
  if (!found.length) results.append(h("li", { class: "none" }, "No layer, class or unit matches. Enter a unit as LAYER/CHANNEL, or by its channel."));
  if (all.length > found.length) results.append(h("li", { class: "none" }, `${grouped(all.length - found.length)} more: keep typing to narrow the search.`));
  box.setAttribute("aria-activedescendant", found.length ? `result-${chosen}` : "");
  results.children[chosen]?.scrollIntoView({ block: "nearest" });
  return found;
}

function openSearch() {
  box.value = "";
  chosen = 0;
  search();
  searching.showModal();
  box.focus();
}

/** Close the search. The field would keep the focus, and so the next key, until the page is drawn again. */
function closeSearch() {
  searching.close();
  box.blur();
}

box.addEventListener("input", () => ((chosen = 0), search()));
box.addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    chosen += event.key === "ArrowDown" ? 1 : -1;
    search();
  } else if (event.key === "Escape") {
    event.preventDefault(); // the default action only clears the field
    event.stopPropagation();
    closeSearch();
  } else if (event.key === "Enter") {
    event.preventDefault();
    const found = search()[chosen];
    if (found) (closeSearch(), go(found[1]));
  }
});
document.getElementById("open-search").addEventListener("click", openSearch);

const help = document.getElementById("help");
document.getElementById("open-help").addEventListener("click", () => help.showModal());
for (const dialog of [searching, help]) {
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || searching.open || help.open) return;
  if (/^(input|select|textarea)$/i.test(event.target.tagName) && event.key !== "Escape" && event.target.type !== "checkbox") return;
  const turn = (which) => {
    const link = main.querySelector(`.around a[rel=${which}]`);
    if (link) go(link.hash);
  };
  const action = {
    "/": openSearch,
    "?": () => help.showModal(),
    Escape: back,
    ArrowLeft: () => turn("prev"),
    ArrowRight: () => turn("next"),
    o: () => go(addressOf("overview")),
    r: () => lay("marks", !laidOver.marks),
    m: () => lay("maps", !laidOver.maps),
  }[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

// Theme: light, dark, or the system's.

const themes = document.getElementById("theme");
themes.addEventListener("change", () => {
  document.documentElement.style.colorScheme = { light: "light", dark: "dark" }[themes.value] ?? "light dark";
});

function showWhereItIs() {
  if (document.documentElement.dataset.shown !== location.hash) show();
}

addEventListener("hashchange", showWhereItIs);
document.body.append(tip);
part("overview").then((read) => {
  report = read;
  show();
  document.documentElement.dataset.ready = "yes";
}).catch(complain);
