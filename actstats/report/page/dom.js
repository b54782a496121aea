// Elements, made so that no text can ever become markup: what is not an element becomes a text node.

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

/** h("a", {href: "#/", onclick: f}, "text", child): an element; `on...` are listeners, `style` an object. */
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

/** A name that may break after its dots. */
const breakable = (name) => name.split(/(?<=[._])/).flatMap((piece, index) => (index ? [h("wbr"), piece] : [piece]));

/** How many units: "1 unit", "7,280 units". */
const plural = (count, noun) => `${grouped(count)} ${noun}${count === 1 ? "" : "s"}`;

/** The finite values, in increasing order. */
const sorted = (values) => Float64Array.from(values).filter(Number.isFinite).sort();

/** The q-quantile of sorted values, interpolated. */
function quantile(values, q) {
  if (!values.length) return NaN;
  const at = q * (values.length - 1), low = Math.floor(at);
  return values[low] + (at - low) * ((values[low + 1] ?? values[low]) - values[low]);
}

// One of several elements is in the tab order; arrow keys move between them.

/** Let arrow keys move the focus among `items`; `columns()` says how many lie in a row. */
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

// One tooltip for the page.

const tip = h("div", { id: "tip", role: "tooltip", hidden: true });

function showTip(lines, x, y) {
  tip.replaceChildren(...lines.map((line, index) => h(index ? "div" : "strong", null, line)));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - width - 8))}px`;
  tip.style.top = `${Math.max(8, y + 16 + height > innerHeight ? y - height - 12 : y + 16)}px`;
}

const hideTip = () => (tip.hidden = true);

/** Show `lines()` while the pointer is on `element` or it has the focus. */
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
