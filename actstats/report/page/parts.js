// Parts: the page's data, unpacked when first asked for. contents.py packs them.

const folder = document.documentElement.dataset.folder || "";
const loading = new Map();
const arrivals = new Map();

// Loaded by script tags, because a page opened from disk may not fetch files. Where the browser supports trusted types, a
// script's address must come from this policy, and setting innerHTML to text is refused.
const rules = window.trustedTypes
  ? window.trustedTypes.createPolicy("parts", { createScriptURL: (address) => checked(address) })
  : { createScriptURL: (address) => checked(address) };

function checked(address) {
  if (!/^[\w%.~-]+\/[a-z]+-?\d*\.js$/.test(address)) throw new TypeError(`not a part: ${address}`);
  return address;
}

// Called by each file of the folder.
window.actstatsPart = (name, text) => arrivals.get(name)?.(text);

function textOf(name) {
  const embedded = document.getElementById(`part-${name}`);
  if (embedded) return Promise.resolve(embedded.textContent);
  return new Promise((resolve, reject) => {
    arrivals.set(name, resolve);
    const script = document.createElement("script");
    script.src = rules.createScriptURL(`${folder}/${name}.js`);
    script.onerror = () => reject(new Error(`${folder}/${name}.js is missing: keep the folder beside the page`));
    document.head.append(script);
  });
}

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const content = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const start = Math.ceil((4 + length) / 8) * 8;
  const types = { Float32Array, Int32Array, Uint16Array, Uint8Array };
  for (const [name, [type, offset, count]] of Object.entries(content.arrays)) {
    content.arrays[name] = new types[type](buffer, start + offset, count);
  }
  return content;
}

/** A part by name: {..., arrays: {name: typed array}}. */
function part(name) {
  if (!loading.has(name)) loading.set(name, textOf(name).then(unpack));
  return loading.get(name);
}

// Pictures: a single page has one part with all of them, a folder one file per picture.

const addresses = new Map();

/** The address of picture number `index` for an <img>, or null where there is no thumbnail. */
async function pictureAddress(index) {
  if (index < 0 || !report.pictures.kept[index]) return null;
  if (folder) return `${folder}/pictures/${index}.jpg`;
  if (!addresses.has(index)) {
    const { ends, bytes } = (await part("pictures")).arrays;
    const data = bytes.subarray(index ? ends[index - 1] : 0, ends[index]);
    addresses.set(index, URL.createObjectURL(new Blob([data], { type: "image/jpeg" })));
  }
  return addresses.get(index);
}
