// Building elements. Text can never become markup: any child that is not an element becomes a text node.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

/** h("a", {href: "#/", onclick: f}, "text", child): an element; `on...` are listeners, `style` is an object. */
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);

/** The same for SVG. */
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

/** A number to three significant digits; a dash where there is none. */
function format(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : String(+value.toPrecision(3));
  return text.replace(/\.?0*e\+?/, "e").replaceAll("-", "−");
}

const grouped = (count) => count.toLocaleString("en");

/** A name that may break across lines after its dots and underscores. */
const breakable = (name) => name.split(/(?<=[._])/).flatMap((piece, index) => (index ? [h("wbr"), piece] : [piece]));

/** A count with its noun: "1 unit", "7,280 units". */
const plural = (count, noun) => `${grouped(count)} ${noun}${count === 1 ? "" : "s"}`;

/** The finite values, in increasing order. */
const sorted = (values) => Float64Array.from(values).filter(Number.isFinite).sort();

/** The q-quantile of sorted values, interpolated. */
function quantile(values, q) {
  if (!values.length) return NaN;
  const at = q * (values.length - 1), low = Math.floor(at);
  return values[low] + (at - low) * ((values[low + 1] ?? values[low]) - values[low]);
}

// Roving focus: one of several elements is in the tab order, and arrow keys move between them.

/** Let arrow keys move the focus among `items`; `columns()` is the number of items in a row. */
function rove(items, columns, start = 0) {
  items.forEach((item, index) => item.setAttribute("tabindex", index === start ? 0 : -1));
  items.forEach((item, index) =>
    item.addEventListener("keydown", (event) => {
      const row = columns();
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: row, ArrowUp: -row }[event.key];
      const to = event.key === "Home" ? 0 : event.key === "End" ? items.length - 1 : step ? index + step : NaN;
      if (!items[to] || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      event.stopPropagation();
      item.setAttribute("tabindex", -1);
      items[to].setAttribute("tabindex", 0);
      items[to].focus();
    }),
  );
}

// One tooltip for the whole page.

const tip = h("div", { id: "tip", role: "tooltip", hidden: true });

function showTip(lines, x, y) {
  tip.replaceChildren(...lines.map((line, index) => h(index ? "div" : "strong", null, line)));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - width - 8))}px`;
  tip.style.top = `${Math.max(8, y + 16 + height > innerHeight ? y - height - 12 : y + 16)}px`;
}

const hideTip = () => (tip.hidden = true);

/** Show `lines()` while the pointer is over `element` or it has the focus. */
function tipped(element, lines) {
  element.addEventListener("pointermove", (event) => showTip(lines(), event.clientX, event.clientY));
  element.addEventListener("pointerleave", hideTip);
  element.addEventListener("focus", () => {
    const box = element.getBoundingClientRect();
    if (element.matches(":focus-visible")) showTip(lines(), box.left + box.width / 2, box.top + box.height / 2);
  });
  element.addEventListener("blur", hideTip);
  return element;
}

// Saving figures and tables as files.

function save(name, type, content) {
  const address = URL.createObjectURL(new Blob([content], { type }));
  h("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/** Format rows, the first being the header, as CSV (RFC 4180); numbers keep their precision, NaN is empty. */
function csv(rows) {
  const cell = (value) => {
    const text = value === null || value === undefined || Number.isNaN(value) ? "" : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => `${row.map(cell).join(",")}\r\n`).join("");
}

const DRAWN = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "stroke-linejoin", "opacity", "font-size"];

/** A drawing as standalone SVG: with its styles inlined, in the colours of the light theme. */
function standalone(drawing) {
  const root = document.documentElement, scheme = root.style.colorScheme;
  const copy = drawing.cloneNode(true), copies = copy.querySelectorAll("*");
  root.style.colorScheme = "light";
  drawing.querySelectorAll("*").forEach((element, index) => {
    const style = getComputedStyle(element);
    for (const name of DRAWN) copies[index].setAttribute(name, style.getPropertyValue(name));
  });
  root.style.colorScheme = scheme;
  copy.querySelectorAll(".hit, .ring").forEach((element) => element.remove());
  copy.querySelectorAll("a").forEach((link) => link.replaceWith(...link.childNodes));
  copy.querySelectorAll("*").forEach((element) => ["class", "tabindex", "style"].forEach((name) => element.removeAttribute(name)));
  copy.setAttribute("xmlns", SVG);
  copy.setAttribute("font-family", "Helvetica, Arial, sans-serif");
  return new XMLSerializer().serializeToString(copy);
}

/** Buttons that save `drawing()` as SVG and `rows()` as CSV under `name`; either may be missing. */
function saving(name, { drawing, rows }) {
  const file = `${report.title} ${name}`.replace(/[^\p{L}\p{N}.]+/gu, "-").replace(/^-+|-+$/g, "");
  const button = (format, onclick) => h("button", { type: "button", "aria-label": `Save as ${format}: ${name}`, onclick }, format);
  return h("span", { class: "save" },
    drawing && button("SVG", () => save(`${file}.svg`, "image/svg+xml", standalone(drawing()))),
    rows && button("CSV", () => save(`${file}.csv`, "text/csv", csv(rows()))));
}
