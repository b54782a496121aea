// Which view is shown, by the address after #; the search; the keys.

let lastUnit = -1;
let layerFocused = -1;

const main = document.getElementById("view");
const trail = document.getElementById("trail");
const alarm = document.getElementById("alarm");

function complain(error) {
  alarm.hidden = false;
  alarm.textContent = `This page cannot show its data: ${error.message}`;
}

/** Go there and show it at once: of two quick keys the second must find what the first led to. */
function go(address) {
  location.hash = address;
  showWhereItIs();
}

/** Where the page is: {kind: "overview" | "layer" | "unit", index}. */
function place() {
  const [, kind, number] = /^#\/(layer|unit)\/(\d+)$/.exec(location.hash) ?? [];
  const index = Number(number);
  if (kind === "layer" && index < report.layers.length) return { kind, index };
  if (kind === "unit" && index < report.units) return { kind, index };
  return { kind: "overview", index: 0 };
}

let before = null;

function show() {
  const { kind, index } = place();
  hideTip();
  const elements = { overview: () => overview(), layer: () => layerView(index), unit: () => unitView(index) }[kind]();
  if (kind === "unit") lastUnit = index;
  main.replaceChildren(...elements);
  const layer = kind === "unit" ? layerOf(index) : index;
  trail.replaceChildren(
    h("li", null, h("a", { href: "#/", "aria-current": kind === "overview" ? "page" : null }, "Overview")),
    ...(kind === "overview" ? [] : [h("li", null, h("a", { href: `#/layer/${layer}`, "aria-current": kind === "layer" ? "page" : null }, report.layers[layer].name))]),
    ...(kind === "unit" ? [h("li", null, h("a", { href: location.hash, "aria-current": "page" }, String(index - report.layers[layer].start)))] : []));
  document.title = [kind === "unit" ? unitName(index) : kind === "layer" ? report.layers[index].name : null, report.title].filter(Boolean).join(" · ");
  if (before) {
    // Back from a unit the focus is on its card again, else at the top of what is new.
    const card = before.kind === "unit" && main.querySelector(`.card[data-unit="${before.index}"]`);
    if (card) {
      card.focus();
      card.scrollIntoView({ block: "center" });
    } else {
      scrollTo(0, 0);
      (main.querySelector("h1") ?? document.querySelector("h1")).focus({ preventScroll: true });
    }
  }
  before = { kind, index };
  document.documentElement.dataset.shown = location.hash;
}

/** One step up: from a unit to its layer, from a layer to the overview. */
function back() {
  const { kind, index } = place();
  if (kind === "unit") go(`#/layer/${layerOf(index)}`);
  else if (kind === "layer") go("#/");
}

// The search: layers by any part of their name, units as LAYER/CHANNEL.

const searching = document.getElementById("search");
const box = document.getElementById("query");
const results = document.getElementById("results");
let chosen = 0;

function matches(query) {
  const words = query.trim().toLowerCase();
  const [, name, channel] = /^(.*?)(?:[/\s]+(\d*))?$/.exec(words);
  const layers = report.layers.map((layer, index) => ({ layer, index })).filter(({ layer }) => layer.name.toLowerCase().includes(name));
  if (channel) {
    return layers.filter(({ layer }) => Number(channel) < layer.units)
      .map(({ layer }) => [`${layer.name}/${Number(channel)}`, `#/unit/${layer.start + Number(channel)}`]);
  }
  return layers.map(({ layer, index }) => [layer.name, `#/layer/${index}`, plural(layer.units, "unit")]);
}

function search() {
  const found = matches(box.value).slice(0, 40);
  chosen = Math.max(0, Math.min(chosen, found.length - 1));
  results.replaceChildren(...found.map(([name, address, note], index) =>
    h("li", { role: "option", id: `result-${index}`, "aria-selected": String(index === chosen), onclick: () => (searching.close(), go(address)) },
      h("span", null, name), h("small", null, note))));
  if (!found.length) results.append(h("li", { class: "none" }, "No layer of that name. A unit is LAYER/CHANNEL."));
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

box.addEventListener("input", () => ((chosen = 0), search()));
box.addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    chosen += event.key === "ArrowDown" ? 1 : -1;
    search();
  } else if (event.key === "Escape") {
    event.preventDefault(); // a search field would only be emptied
    event.stopPropagation();
    searching.close();
  } else if (event.key === "Enter") {
    event.preventDefault();
    const found = search()[chosen];
    if (found) (searching.close(), go(found[1]));
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
    o: () => go("#/"),
    r: () => showMarks(!state.marks),
  }[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

// Light, dark, or what the system says.

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
