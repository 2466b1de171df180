// The emulator's live page. Whatever an event holds reaches the document as text nodes only.

const KEEP_EVENTS = 5000;
const KEEP_REQUESTS = 1000;
const PREFIX = "/1.0/";
const BATCH = "visitorEvents";
const OVERSCAN = 8;
const JOURNEY = 500;
const ENVELOPES = 20;
const WINDOW = 60;

const FAMILIES = {
  view: "browse", categoryView: "browse", groupView: "browse", search: "browse",
  addToBasket: "basket", recomAddToBasket: "basket", order: "order",
  recomTap: "recom", recomBlockViewed: "recom", impressionContentClicked: "recom", impressionContentViewed: "recom",
  setContact: "contact",
};

const FAULTS = [
  ["503", { kind: "status", status: 503 }, "The answer 503; the request is not recorded"],
  ["500", { kind: "status", status: 500 }, "The answer 500; the request is not recorded"],
  ["429, wait 2 s", { kind: "status", status: 429, retry_after: "2" }, "The answer 429 with Retry-After: 2"],
  ["400", { kind: "status", status: 400 }, "The answer 400, whatever the request holds"],
  ["403 of a proxy", { kind: "status", status: 403, body: "<h1>Access denied</h1>" }, "A page of HTML that is not the API's"],
  ["Slow, 2 s", { kind: "latency", seconds: 2 }, "The usual answer, two seconds late"],
  ["Timeout", { kind: "stall" }, "No answer until the client gives up"],
  ["Broken before", { kind: "reset_before" }, "The connection is reset; the request is not recorded"],
  ["Broken after", { kind: "reset_after" }, "The request is recorded, then the connection is reset: its answer is lost"],
  ["Closed", { kind: "close_before" }, "The connection is closed in order without an answer"],
  ["Cut answer", { kind: "truncate" }, "The request is recorded; only the first bytes of the answer arrive"],
  ["Wrong answer", { kind: "garbage" }, "Bytes that are no HTTP"],
];

const byId = (id) => document.getElementById(id);
const list = byId("list");
const rows = byId("rows");
const detail = byId("detail");
const filters = { search: byId("search"), type: byId("type"), visitor: byId("visitor") };

const state = {
  events: [], // oldest first, those of refused requests too
  requests: [], // oldest first
  stats: { total_events: 0, requests: 0, refused: 0, over_limit: 0 },
  rates: new Map(), // second -> [arrivals, over the limit]
  limit: null,
  per: 1,
  faults: [],
  partner: "",
  skew: 0, // seconds that the emulator's clock is ahead of the browser's
  missed: 0,
  lastId: 0,
  view: "events",
  shown: [], // newest first: what the list shows
  hold: null, // the newest item shown while the list is held
  fresh: 0, // items that the held list leaves out
  selected: null,
  journey: null, // a visitor
};

// ---------------------------------------------------------------- small helpers

/** Make an element; strings among the children become text. */
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") made.addEventListener(name, value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function textOf(value) {
  if (typeof value === "string") return value;
  if (typeof value === "bigint") return String(value);
  return JSON.stringify(value, (_, inner) => (typeof inner === "bigint" ? String(inner) : inner));
}

const plural = (count, one) => `${count.toLocaleString("en")} ${one}${count === 1 ? "" : "s"}`;

const pad = (number, width) => String(number).padStart(width, "0");

function clock(seconds) {
  const at = new Date(seconds * 1000);
  return `${pad(at.getHours(), 2)}:${pad(at.getMinutes(), 2)}:${pad(at.getSeconds(), 2)}.${pad(at.getMilliseconds(), 3)}`;
}

function size(bytes) {
  return bytes < 1024 ? `${bytes} B` : `${(bytes / 1024).toFixed(1)} KiB`;
}

function span(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  return seconds < 60 ? `${seconds.toFixed(1)} s` : `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

let toastTimer = 0;

/** Say something once, to eyes and to screen readers. */
function announce(text) {
  byId("status").textContent = text;
  const toast = byId("toast");
  toast.textContent = text;
  toast.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { toast.hidden = true; }, 2500);
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Under an address that is not this machine's own a browser has no clipboard to offer.
    const area = el("textarea", { class: "sr" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  announce(`${what} copied`);
}

async function control(method, name, body) {
  try {
    const answer = await fetch(`/_control/${name}`, { method, body: body === undefined ? undefined : JSON.stringify(body) });
    if (answer.ok) return true;
    announce((await answer.json()).error);
  } catch {
    announce("The emulator does not answer");
  }
  return false;
}

// ---------------------------------------------------------------- the command of a request

const shellQuoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// Inside double quotes: what encodeURIComponent leaves alone, "!" alone means something to a shell.
const encoded = (text) => encodeURIComponent(text.toWellFormed?.() ?? text).replaceAll("!", "%21");

/** Return the command that sends the request again; the key is left to the environment. */
function curlOf(request) {
  const keyless = request.reasons.includes("apiKey is missing");
  const query = Object.entries(request.query).map(([name, value]) => `${encoded(name)}=${encoded(value)}`);
  if (!keyless) query.unshift("apiKey=$RETAILROCKET_API_KEY");
  const path = request.path.split("/").map(encoded).join("/");
  const method = /^[A-Z]+$/.test(request.method) ? request.method : shellQuoted(request.method);
  const how = method === "HEAD" ? "-I" : `-X ${method}`;
  const words = [`curl ${how} "${location.origin}${path}${query.length ? `?${query.join("&")}` : ""}"`];
  if (request.content_type !== null) words.push(`-H ${shellQuoted(`Content-Type: ${request.content_type}`)}`);
  else if (request.body) words.push("-H 'Content-Type:'");
  if (request.body) words.push(`--data-raw ${shellQuoted(request.body)}`);
  return words.join(" \\\n  ");
}

// ---------------------------------------------------------------- JSON with places

/** Parse JSON into nodes that keep the text of each value; throws a SyntaxError. */
function parseJson(text) {
  JSON.parse(text);
  let at = 0;
  const space = /[ \t\n\r]*/y;
  const string = /"[^"\\]*(?:\\.[^"\\]*)*"/y;
  const bare = /[^\s,\]}]+/y;

  function skip() {
    space.lastIndex = at;
    space.exec(text);
    at = space.lastIndex;
  }

  function token(pattern) {
    pattern.lastIndex = at;
    const [raw] = pattern.exec(text);
    at = pattern.lastIndex;
    return raw;
  }

  function value() {
    skip();
    if (text[at] === "{") {
      const entries = [];
      at += 1;
      for (skip(); text[at] !== "}"; skip()) {
        const raw = token(string);
        skip();
        at += 1;
        entries.push({ raw, key: JSON.parse(raw), node: value() });
        skip();
        if (text[at] === ",") at += 1;
      }
      at += 1;
      return { entries };
    }
    if (text[at] === "[") {
      const items = [];
      at += 1;
      for (skip(); text[at] !== "]"; skip()) {
        items.push(value());
        skip();
        if (text[at] === ",") at += 1;
      }
      at += 1;
      return { items };
    }
    return text[at] === '"' ? { raw: token(string), kind: "str" } : { raw: token(bare), kind: "lit" };
  }

  return value();
}

// The emulator cuts long names in its reasons.
const cutName = (name) => Array.from(name).slice(0, 50).join("");

/** Find what a reason such as "[3].view.productId: must be an integer" is about. */
function locate(root, reason) {
  let node = root;
  let rest = `.${reason}`;
  if (reason.startsWith("[")) rest = reason;
  else if (reason.startsWith("body: ") && !reason.endsWith("is no field of this event")) rest = reason.slice(4);
  let entry = null;
  const way = [root];
  for (;;) {
    if (rest.startsWith(": ")) return { way, node, entry, note: rest.slice(2) };
    const place = /^\[(\d+)\]/.exec(rest);
    if (place && node.items?.[Number(place[1])]) {
      node = node.items[Number(place[1])];
      entry = null;
      rest = rest.slice(place[0].length);
    } else if (rest.startsWith(".") && node.entries) {
      const fits = ({ key }) => rest.startsWith(cutName(key), 1) && ":.[".includes(rest[1 + cutName(key).length] ?? " ");
      const found = node.entries.filter(fits).sort((one, other) => one.key.length - other.key.length).at(-1);
      if (!found) return { way, node, entry: null, absent: rest.slice(1) };
      entry = found;
      node = found.node;
      rest = rest.slice(1 + cutName(found.key).length);
    } else {
      return null;
    }
    way.push(node);
  }
}

/** Return the nodes and entries to be marked, with what is to be said of them, and all nodes on the way there. */
function marksOf(root, reasons) {
  const marks = new Map();
  const ways = new Set();
  for (const reason of reasons) {
    const found = locate(root, reason);
    if (!found) continue;
    for (const node of found.way) ways.add(node);
    const whole = found.entry && /^is no /.test(found.note ?? "") ? found.entry : found.node;
    const mark = marks.get(whole) ?? { notes: [], absent: [] };
    if (found.absent) mark.absent.push(found.absent);
    else mark.notes.push(found.note);
    marks.set(whole, mark);
  }
  return { marks, ways };
}

/** Print a parsed body, what is wrong in it marked. */
function printBody(root, reasons) {
  const { marks, ways } = marksOf(root, reasons);
  const out = el("pre", { class: "code body", tabindex: "0", "aria-label": "Body" });

  function marked(into, thing, print) {
    const mark = marks.get(thing);
    if (!mark?.notes.length) {
      print(into);
      return [];
    }
    const made = el("mark");
    print(made);
    into.append(made);
    return mark.notes;
  }

  function note(into, notes) {
    if (notes.length) into.append(el("span", { class: "note" }, `  ← ${notes.join("; ")}`));
  }

  function members(into, indent, open, close, parts) {
    into.append(open);
    parts.forEach((part, index) => {
      into.append(`\n${indent}  `);
      const notes = part(into);
      if (index < parts.length - 1) into.append(",");
      note(into, notes);
    });
    into.append(`\n${indent}${close}`);
  }

  function value(into, node, indent) {
    return marked(into, node, (inner) => {
      if (node.entries) {
        const absent = (marks.get(node)?.absent ?? []).map((text) => (here) => {
          here.append(el("mark", { class: "absent" }, text));
          return [];
        });
        const parts = node.entries.map((entry) => (here) => [
          ...marked(here, entry, (within) => {
            within.append(el("span", { class: "key-name" }, entry.raw), ": ");
            entry.notes = value(within, entry.node, `${indent}  `);
          }),
          ...entry.notes,
        ]);
        if (parts.length + absent.length) members(inner, indent, "{", "}", [...parts, ...absent]);
        else inner.append("{}");
      } else if (node.items) {
        const plain = node.items.every((item) => item.kind && !marks.has(item));
        if (plain) inner.append(`[${node.items.map((item) => item.raw).join(", ")}]`);
        else if (node === root) envelopes(inner, node.items);
        else members(inner, indent, "[", "]", node.items.map((item) => (here) => value(here, item, `${indent}  `)));
      } else {
        inner.append(el("span", { class: node.kind }, node.raw));
      }
    });
  }

  /** Print the events of a batch; those in which nothing is wrong are folded where there are many. */
  function envelopes(into, items) {
    const bad = items.filter((item) => ways.has(item));
    const few = items.length <= ENVELOPES ? items : (bad.length ? bad : items).slice(0, ENVELOPES);
    const open = new Set(few);
    into.append("[");
    for (let index = 0; index < items.length; ) {
      const start = index;
      while (index < items.length && !open.has(items[index])) index += 1;
      if (index > start) into.append("\n  ", fold(items.slice(start, index)));
      if (index < items.length) one(into, items[index], index === items.length - 1);
      index += 1;
    }
    into.append("\n]");
  }

  function one(into, item, last) {
    into.append("\n  ");
    const notes = value(into, item, "  ");
    if (!last) into.append(",");
    note(into, notes);
  }

  function fold(items) {
    const button = el("button", { type: "button", click: () => {
      const shown = document.createDocumentFragment();
      items.slice(0, 5 * ENVELOPES).forEach((item, index) => one(shown, item, index === items.length - 1));
      const left = items.slice(5 * ENVELOPES);
      if (left.length) shown.append("\n  ", fold(left));
      button.replaceWith(shown);
    } }, `… ${plural(items.length, "more event")}`);
    return button;
  }

  note(out, value(out, root, ""));
  return out;
}

/** Print a body that is no JSON, the place where it stops being JSON marked. */
function printText(text, reasons) {
  const out = el("pre", { class: "code body", tabindex: "0", "aria-label": "Body" });
  const told = reasons.map((reason) => /\(char (\d+)\)$/.exec(reason)).find(Boolean);
  const characters = Array.from(text);
  const place = told ? Math.min(Number(told[1]), Math.max(0, characters.length - 1)) : characters.length;
  out.append(characters.slice(0, place).join(""));
  if (told) {
    out.append(el("mark", {}, characters[place] ?? " "), el("span", { class: "note" }, "  ← here it stops being JSON  "));
    out.append(characters.slice(place + 1).join(""));
  }
  return out;
}

// ---------------------------------------------------------------- what arrives

/** A reviver that keeps integers which a number of JavaScript would round. */
function exactly(_, value, context) {
  if (typeof value !== "number" || !Number.isInteger(value) || Number.isSafeInteger(value)) return value;
  return /^-?\d+$/.test(context?.source ?? "") ? BigInt(context.source) : value;
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** Return the (name, fields) pairs of a body, as far as it has any. */
function pairsOf(request) {
  if (!request.path.startsWith(PREFIX)) return [];
  let data;
  try {
    data = JSON.parse(request.body, exactly);
  } catch {
    return [];
  }
  const name = request.path.slice(PREFIX.length);
  if (name !== BATCH) return [[name, data]];
  return Array.isArray(data) ? data.filter(isObject).flatMap((envelope) => Object.entries(envelope)) : [];
}

/** Take one request; return it as an item of the list, its events with it. */
function take(request) {
  const item = { ...request, id: (state.lastId += 1), isRequest: true };
  item.accepted = request.events > 0;
  item.brought = pairsOf(request).map(([name, data]) => {
    const fields = isObject(data) ? data : {};
    const visitor = typeof fields.sessionExternalId === "string" ? fields.sessionExternalId : "";
    return { id: (state.lastId += 1), request: item, name, fields, visitor, accepted: item.accepted };
  });
  return item;
}

/** Return the text of an item that a search looks through. */
function haystack(item) {
  item.text ??= (item.isRequest
    ? `#${item.number} ${item.status} ${item.path} ${item.fault ?? ""} ${item.reasons.join(" ")} ${item.body}`
    : `${item.name} ${textOf(item.fields)}`
  ).toLowerCase();
  return item.text;
}

function forget() {
  filters.type.length = 1;
  state.events = [];
  state.requests = [];
  state.rates.clear();
  state.missed = 0;
  state.selected = state.journey = state.hold = null;
  touch("detail");
}

function update(message) {
  state.skew = message.now - Date.now() / 1000;
  if (message.reset) forget();
  if (message.settings) {
    state.limit = message.settings.limit;
    state.per = message.settings.per;
    state.partner = message.settings.partner_id;
    touch("shop");
  }
  if (message.faults) {
    state.faults = message.faults;
    touch("faults");
  }
  if (message.missed) state.missed += message.missed;
  if (message.stats) state.stats = message.stats;
  if (message.rates) state.rates = new Map(message.rates.map(([second, arrived, over]) => [second, [arrived, over]]));
  const items = (message.requests ?? []).map(take);
  if (items.length) {
    state.requests = state.requests.concat(items).slice(-KEEP_REQUESTS);
    state.events = state.events.concat(items.flatMap((item) => item.brought)).slice(-KEEP_EVENTS);
    for (const item of items) item.brought = new Set(item.brought.map((event) => event.name));
    const visitor = state.journey;
    if (visitor !== null && items.some((item) => item.body.includes(visitor))) touch("detail");
  }
  touch("list", "counts", "plot");
}

let source = null;
let lastSeen = "";

function connect() {
  source = new EventSource(`/_control/stream${lastSeen ? `?after=${encodeURIComponent(lastSeen)}` : ""}`);
  source.addEventListener("open", () => connection("live"));
  source.addEventListener("update", (event) => {
    lastSeen = event.lastEventId;
    update(JSON.parse(event.data));
  });
  source.addEventListener("error", () => {
    connection("reconnecting");
    // The browser comes back by itself, except when it was answered something else than a stream.
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 2000);
  });
}

function connection(is) {
  const node = byId("connection");
  const was = node.dataset.state;
  if (was === is) return;
  node.dataset.state = is;
  setText(byId("connection-text"), is);
  if (was !== "connecting") byId("status").textContent = is === "live" ? "Connected again" : "Connection lost";
}

// ---------------------------------------------------------------- one render per frame

const dirty = new Set();
let scheduled = false;

function touch(...parts) {
  for (const part of parts) dirty.add(part);
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(render);
}

function render() {
  scheduled = false;
  const parts = new Set(dirty);
  dirty.clear();
  if (parts.has("shop")) renderShop();
  if (parts.has("counts")) renderCounts();
  if (parts.has("plot")) renderPlot();
  if (parts.has("faults")) renderFaults();
  if (parts.has("list")) filterList();
  if (parts.has("list") || parts.has("rows")) renderRows();
  if (parts.has("detail")) renderDetail();
}

function renderShop() {
  setText(byId("shop"), state.partner);
  setText(byId("base-url"), `RETAILROCKET_BASE_URL=${location.origin}${PREFIX}`);
  setText(byId("first-command"), firstCommand());
}

function firstCommand() {
  return curlOf({
    method: "POST", path: `${PREFIX}view`, query: { partnerId: state.partner }, content_type: "application/json",
    body: '{"sessionExternalId":"visitor1","productId":123456}', reasons: [],
  });
}

function renderCounts() {
  const { total_events: events, requests, refused, over_limit: over } = state.stats;
  setText(byId("count-events"), events.toLocaleString("en"));
  setText(byId("count-requests"), requests.toLocaleString("en"));
  setText(byId("count-refused"), refused.toLocaleString("en"));
  setText(byId("count-over"), over.toLocaleString("en"));
  byId("count-refused").dataset.bad = refused > 0;
  byId("count-over").dataset.bad = over > 0;
  setText(byId("missed"), state.missed ? `${plural(state.missed, "earlier request")} not shown` : "");
}

// ---------------------------------------------------------------- the plot

const plot = byId("plot");
const SVG = "http://www.w3.org/2000/svg";

function shape(parent, name, kind, attributes = {}) {
  const made = document.createElementNS(SVG, name);
  made.setAttribute("class", kind);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent.append(made);
  return made;
}

const moving = shape(plot, "g", "moving");
const bars = Array.from({ length: WINDOW + 1 }, (_, x) =>
  ["within", "beyond"].map((kind) => shape(moving, "rect", kind, { x, width: 0.8 })));
const limitLine = shape(plot, "line", "limit");
let drawnSecond = 0;

function bar(rect, from, to) {
  rect.setAttribute("y", (100 - to).toFixed(2));
  rect.setAttribute("height", Math.max(0, to - from).toFixed(2));
}

const now = () => Date.now() / 1000 + state.skew;

/** Move the plot on; it is drawn anew once a second, or when there is something new. */
function tick() {
  if (document.hidden) return;
  if (Math.floor(now()) !== drawnSecond) touch("plot");
  moving.setAttribute("transform", `translate(${(Math.floor(now()) - now()).toFixed(3)})`);
}

function renderPlot() {
  drawnSecond = Math.floor(now());
  const first = drawnSecond - WINDOW;
  const limit = state.limit === null ? null : state.limit / state.per;
  let most = 0;
  for (const [second, [arrived]] of state.rates) if (second >= first) most = Math.max(most, arrived);
  const top = Math.max(most, limit ?? 0, 1) * 1.15;
  bars.forEach(([within, beyond], index) => {
    const [arrived, over] = state.rates.get(first + index) ?? [0, 0];
    const lower = (100 * (arrived - over)) / top;
    bar(within, 0, lower);
    bar(beyond, lower, (100 * arrived) / top);
  });
  const y = limit === null ? -10 : 100 - (100 * limit) / top;
  for (const [name, at] of [["x1", 0], ["x2", WINDOW], ["y1", y], ["y2", y]]) limitLine.setAttribute(name, at);
  const [last] = state.rates.get(drawnSecond - 1) ?? [0];
  setText(byId("rate-now"), String(last));
  setText(byId("rate-most"), String(most));
  setText(byId("rate-limit"), limit === null ? "none" : `${Number(limit.toFixed(2))}`);
  plot.setAttribute("aria-label", `Requests per second in the last minute: ${last} in the last second, ${most} at most`);
}

// ---------------------------------------------------------------- the list

const visitorOf = (item) => (item.isRequest ? "" : item.visitor);

function matcher() {
  const text = filters.search.value.trim().toLowerCase();
  const type = filters.type.value;
  const visitor = filters.visitor.value.trim();
  return (item) => {
    if (type && !(item.isRequest ? item.brought.has(type) : item.name === type)) return false;
    if (visitor && !(item.isRequest ? item.body : item.visitor).includes(visitor)) return false;
    return !text || haystack(item).includes(text);
  };
}

const isFiltered = () => Object.values(filters).some((field) => field.value.trim() !== "");

const ofView = {
  events: () => state.events.filter((event) => event.accepted),
  refused: () => state.requests.filter((request) => request.reasons.length),
  requests: () => state.requests,
};

function filterList() {
  const fits = matcher();
  const found = ofView[state.view]().filter(fits).reverse();
  state.shown = state.hold === null ? found : found.filter((item) => item.id <= state.hold);
  state.fresh = found.length - state.shown.length;
  for (const view of Object.keys(ofView)) setText(byId(`n-${view}`), ofView[view]().length.toLocaleString("en"));
  const types = new Set(state.events.map((event) => event.name));
  const known = new Set(Array.from(filters.type.options, (option) => option.value));
  for (const type of [...types].sort()) if (!known.has(type)) filters.type.append(el("option", { value: type }, type));
  byId("clear").hidden = !isFiltered();
  byId("empty").hidden = state.requests.length > 0;
  byId("nothing").hidden = state.requests.length === 0 || state.shown.length > 0;
  byId("nothing").firstChild.textContent = isFiltered() ? "Nothing here matches. " : "Nothing here yet.";
  byId("nothing-clear").hidden = !isFiltered();
  const newest = byId("newest");
  newest.hidden = state.fresh === 0;
  setText(newest, `↑ ${state.fresh.toLocaleString("en")} new`);
}

const rowHeight = () => parseInt(getComputedStyle(list).getPropertyValue("--row"), 10);

const drawn = new Map(); // item -> row

function renderRows() {
  const height = rowHeight();
  const total = state.shown.length;
  rows.style.height = `${total * height}px`;
  const from = Math.max(0, Math.floor(list.scrollTop / height) - OVERSCAN);
  const to = Math.min(total, Math.ceil((list.scrollTop + list.clientHeight) / height) + OVERSCAN);
  const wanted = new Set(state.shown.slice(from, to));
  for (const [item, row] of drawn) {
    if (wanted.has(item)) continue;
    row.remove();
    drawn.delete(item);
  }
  let active = null;
  for (let index = from; index < to; index += 1) {
    const item = state.shown[index];
    let row = drawn.get(item);
    if (!row) {
      row = item.isRequest ? requestRow(item) : eventRow(item);
      drawn.set(item, row);
      rows.append(row);
    }
    row.style.transform = `translateY(${index * height}px)`;
    row.setAttribute("aria-posinset", index + 1);
    row.setAttribute("aria-setsize", total);
    row.setAttribute("aria-selected", item === state.selected);
    if (item === state.selected) active = row.id;
  }
  if (active) list.setAttribute("aria-activedescendant", active);
  else list.removeAttribute("aria-activedescendant");
}

function rowOf(item, kind, ...cells) {
  const row = el("div", { class: `row ${kind}`, role: "option", id: `item-${item.id}` }, ...cells);
  row.item = item;
  return row;
}

function typeOf(name) {
  return el("span", { class: "type", "data-family": Object.hasOwn(FAMILIES, name) ? FAMILIES[name] : undefined }, name);
}

function summary(fields) {
  const shown = Object.entries(fields).filter(([name]) => name !== "sessionExternalId").slice(0, 8);
  return el("span", { class: "fields" }, ...shown.map(([name, value]) => {
    const text = textOf(value);
    return el("span", {}, el("i", {}, name), ` ${text.length > 120 ? `${text.slice(0, 120)}…` : text}`);
  }));
}

function eventRow(event) {
  return rowOf(event, "event",
    el("span", { class: "time" }, clock(event.request.time)),
    typeOf(event.name),
    el("span", { class: "who", title: `Journey of ${event.visitor}` }, event.visitor),
    summary(event.fields));
}

function statusBadge(request) {
  const kind = request.accepted && request.status === 200 ? "good" : request.fault ? "warn" : "bad";
  return el("span", { class: `badge ${kind}` }, request.status === null ? "none" : String(request.status));
}

function requestRow(request) {
  const more = request.reasons.length > 1 ? ` (and ${request.reasons.length - 1} more)` : "";
  let what = [`${plural(request.events, "event")}, ${size(request.bytes)}`];
  if (request.fault) what = [el("span", { class: "why fault" }, `fault: ${request.fault}`), request.accepted ? `, ${what[0]}` : ""];
  if (request.reasons.length) what = [el("span", { class: "why" }, `${request.reasons[0]}${more}`)];
  return rowOf(request, "request",
    el("span", { class: "time" }, clock(request.time)),
    el("span", { class: "status" }, statusBadge(request)),
    el("span", { class: "kind" }, `#${request.number} ${request.path.startsWith(PREFIX) ? request.path.slice(PREFIX.length) : request.path}`),
    el("span", { class: "fields" }, ...what));
}

/** Stop the list where it is; what arrives meanwhile is counted. */
function hold() {
  state.hold ??= state.lastId;
}

function release() {
  state.hold = null;
  list.scrollTop = 0;
  touch("list");
}

function select(item, { reveal = false } = {}) {
  state.selected = item;
  state.journey = null;
  if (item) hold();
  if (item && reveal) {
    const top = state.shown.indexOf(item) * rowHeight();
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + rowHeight() > list.scrollTop + list.clientHeight) list.scrollTop = top + rowHeight() - list.clientHeight;
  }
  touch("rows", "detail");
}

function showJourney(visitor) {
  if (!visitor) return;
  state.journey = visitor;
  touch("detail");
}

function closeDetail() {
  state.selected = state.journey = null;
  if (list.scrollTop === 0) state.hold = null;
  touch("list", "detail");
}

function move(step) {
  if (!state.shown.length) return;
  const next = state.shown.indexOf(state.selected) + step;
  select(state.shown[Math.min(Math.max(next, 0), state.shown.length - 1)], { reveal: true });
}

function show(view) {
  state.view = view;
  state.hold = null;
  list.scrollTop = 0;
  const names = { events: "Events", refused: "Refused requests", requests: "Requests" };
  list.setAttribute("aria-label", `${names[view]}, newest first`);
  for (const button of document.querySelectorAll("[data-view]")) {
    button.setAttribute("aria-pressed", button.dataset.view === view);
  }
  touch("list");
}

function clearFilters() {
  for (const field of Object.values(filters)) field.value = "";
  touch("list");
}

// ---------------------------------------------------------------- the details

function heading(title, ...more) {
  return el("div", { class: "top" }, el("div", { class: "names" }, el("h2", {}, title), ...more),
    el("button", { type: "button", class: "quiet close", click: () => { closeDetail(); list.focus(); } }, "Close"));
}

const buttonsOf = (node) => [...node.querySelectorAll("button")];

let shownJourney = null;

function renderDetail() {
  const parts = state.journey !== null ? journeyParts(state.journey)
    : !state.selected ? [el("p", { class: "hint" }, "Choose an event or a request to see all of it. A click on a visitor shows the journey.")]
    : state.selected.isRequest ? requestParts(state.selected) : eventParts(state.selected);
  detail.dataset.open = state.journey !== null || state.selected !== null;
  const at = detail.scrollTop;
  const focused = detail.contains(document.activeElement) ? buttonsOf(detail).indexOf(document.activeElement) : null;
  const goesOn = state.journey !== null && state.journey === shownJourney;
  shownJourney = state.journey;
  detail.replaceChildren(...parts);
  detail.scrollTop = goesOn ? at : 0;
  // A journey grows at its end: each button stays where it was.
  if (focused !== null) ((goesOn && buttonsOf(detail)[focused]) || detail).focus({ preventScroll: true });
}

function eventParts(event) {
  const cells = Object.entries(event.fields).map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name),
    el("td", {}, name === "sessionExternalId" && event.visitor ? visitorButton(event.visitor) : textOf(value))));
  return [
    heading(event.name, ...(event.accepted ? [] : [el("span", { class: "badge bad" }, "not accepted")])),
    el("table", { class: "fields-table" }, el("tbody", {}, ...cells)),
    ...(event.visitor ? [el("div", {}, el("button", { type: "button", click: () => showJourney(event.visitor) }, "Journey of this visitor"))] : []),
    el("h3", {}, "It came in"),
    el("div", {}, el("button", { type: "button", class: "link", click: () => select(event.request) },
      `request #${event.request.number}`), " ", statusBadge(event.request),
      el("span", { class: "faint" }, ` at ${clock(event.request.time)}`)),
    ...commandParts(event.request),
  ];
}

function visitorButton(visitor) {
  return el("button", { type: "button", class: "link", title: "Show the journey", click: () => showJourney(visitor) }, visitor);
}

function requestParts(request) {
  return [
    heading(`Request #${request.number}`, statusBadge(request),
      ...(request.fault ? [el("span", { class: "badge warn" }, `fault: ${request.fault}`)] : [])),
    el("p", {}, el("span", { class: "mono" }, `${request.method} ${request.path}`), el("span", { class: "faint" },
      ` · ${clock(request.time)} · ${size(request.bytes)} · ${plural(request.events, "event")} accepted`)),
    ...(request.reasons.length ? [
      el("h3", {}, "Refused because"),
      el("ul", { class: "reasons" }, ...request.reasons.map((reason) => el("li", {}, reason))),
    ] : []),
    ...(request.body ? [el("h3", {}, request.cut ? "Body, the beginning of it" : "Body"), bodyOf(request)] : []),
    ...commandParts(request),
  ];
}

function bodyOf(request) {
  try {
    return printBody(parseJson(request.body), request.reasons);
  } catch {
    return printText(request.body, request.cut ? [] : request.reasons);
  }
}

function commandParts(request) {
  if (request.cut) return [el("p", { class: "faint" }, "The body is too long to make a command of it.")];
  // What stands for bytes that are no text, and what a terminal takes for a key.
  if (/[\ufffd\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]/.test(request.body)) return [el("p", { class: "faint" }, "The body holds bytes that no command can.")];
  const command = curlOf(request);
  const shown = command.length > 2000 ? `${command.slice(0, 2000)}…` : command;
  return [
    el("h3", {}, "As a command", el("button", { type: "button", id: "copy-curl", click: () => copy(command, "Command") }, "Copy curl")),
    el("pre", { class: "code curl", tabindex: "0", "aria-label": "Command that sends the request again" }, shown),
  ];
}

function journeyParts(visitor) {
  const events = state.events.filter((event) => event.visitor === visitor);
  const shown = events.slice(-JOURNEY);
  const accepted = events.filter((event) => event.accepted).length;
  const back = state.selected ? [el("button", { type: "button", class: "quiet", click: () => select(state.selected) }, "← Back")] : [];
  return [
    heading("Journey", ...back),
    el("p", {}, el("span", { class: "mono" }, visitor), el("span", { class: "faint" },
      ` · ${plural(accepted, "event")}${accepted < events.length ? `, ${events.length - accepted} more not accepted` : ""}`)),
    el("ol", { class: "journey" }, ...shown.map((event, index) => {
      const gap = index ? event.request.time - shown[index - 1].request.time : null;
      const family = Object.hasOwn(FAMILIES, event.name) ? FAMILIES[event.name] : undefined;
      const { sessionExternalId: _, ...fields } = event.fields;
      return el("li", { "data-family": family },
        el("button", { type: "button", click: () => select(event) }, event.name),
        el("span", { class: "gap" }, gap === null ? clock(event.request.time) : `+${span(Math.max(0, gap))}`),
        ...(event.accepted ? [] : [" ", el("span", { class: "badge bad" }, "not accepted")]),
        el("div", { class: "what" }, Object.entries(fields).map(([name, value]) => `${name} ${textOf(value)}`).join(" · ")));
    })),
  ];
}

// ---------------------------------------------------------------- faults

function nameOf(fault) {
  const known = FAULTS.find(([, facts]) => facts.kind === fault.kind && (fault.kind !== "status"
    || (facts.status === fault.status && (facts.retry_after ?? null) === fault.retry_after && (facts.body ?? null) === fault.body)));
  const name = known && fault.kind !== "latency" ? known[0] : fault.kind === "status" ? String(fault.status) : fault.kind;
  const where = [fault.path, fault.contains && `with ${fault.contains}`].filter(Boolean).join(", ");
  return `${name}${fault.kind === "latency" ? ` ${fault.seconds} s` : ""}${where ? ` (${where})` : ""}`;
}

function renderFaults() {
  const left = (fault) => (fault.times === null ? "until dropped" : `${fault.times.toLocaleString("en")} left`);
  byId("pending").replaceChildren(...state.faults.map((fault) => el("li", {}, el("span", {}, nameOf(fault)), " ", el("span", {}, left(fault)))));
  byId("faults-clear").hidden = byId("faults-count").hidden = state.faults.length === 0;
  setText(byId("faults-count"), `${state.faults.length} pending`);
}

async function addFault(name, facts) {
  const times = Math.min(Math.max(1, Math.floor(Number(byId("times").value) || 1)), 9999);
  byId("times").value = times;
  if (await control("POST", "faults", [{ ...facts, times }])) announce(`Fault added: ${name}, ${plural(times, "time")}`);
}

// ---------------------------------------------------------------- hands on it

const THEMES = ["system", "light", "dark"];
const THEME = "retailrocket-emulator-theme";

function useTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  setText(byId("theme-name"), theme);
  byId("theme").setAttribute("aria-label", `Theme: ${theme}`);
  try {
    localStorage.setItem(THEME, theme);
  } catch {
    // A browser that keeps nothing forgets the choice with the page.
  }
}

function storedTheme() {
  try {
    const theme = localStorage.getItem(THEME);
    return THEMES.includes(theme) ? theme : "system";
  } catch {
    return "system";
  }
}

function listen() {
  byId("theme").addEventListener("click", () => {
    const theme = document.documentElement.dataset.theme ?? "system";
    useTheme(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]);
  });
  byId("reset").addEventListener("click", async () => {
    if (await control("POST", "reset")) announce("Everything forgotten");
  });
  byId("faults-clear").addEventListener("click", async () => {
    if (await control("DELETE", "faults")) announce("All faults dropped");
  });
  byId("fault-buttons").append(...FAULTS.map(([name, facts, told]) =>
    el("button", { type: "button", title: told, "data-kind": facts.kind, click: () => addFault(name, facts) }, name)));
  for (const button of document.querySelectorAll("[data-view]")) button.addEventListener("click", () => show(button.dataset.view));
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const field of Object.values(filters)) {
    field.addEventListener("input", () => {
      list.scrollTop = 0;
      touch("list");
    });
  }
  byId("clear").addEventListener("click", () => { clearFilters(); filters.search.focus(); });
  byId("nothing-clear").addEventListener("click", () => { clearFilters(); filters.search.focus(); });
  byId("newest").addEventListener("click", () => { release(); list.focus(); });
  byId("copy-first").addEventListener("click", () => copy(firstCommand(), "Command"));
  list.addEventListener("scroll", () => {
    if (list.scrollTop > 4) hold();
    else if (!state.selected) state.hold = null;
    touch("list");
  }, { passive: true });
  rows.addEventListener("click", (event) => {
    const item = event.target.closest(".row")?.item;
    if (!item) return;
    select(item);
    if (event.target.closest(".who")) showJourney(visitorOf(item));
  });
  list.addEventListener("keydown", onListKey);
  document.addEventListener("keydown", onKey);
  new ResizeObserver(() => touch("rows")).observe(list);
  setInterval(tick, matchMedia("(prefers-reduced-motion: reduce)").matches ? 1000 : 100);
  if (matchMedia("(max-width: 900px)").matches) byId("faults").open = false;
}

function onListKey(event) {
  const page = Math.max(1, Math.floor(list.clientHeight / rowHeight()) - 1);
  const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -state.shown.length, End: state.shown.length };
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (Object.hasOwn(steps, event.key)) move(steps[event.key]);
  else if (event.key === "Enter" && state.selected) detail.focus();
  else if (event.key.toLowerCase() === "v" && state.selected) showJourney(visitorOf(state.selected));
  else return;
  event.preventDefault();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const typing = event.target.closest("input, select, textarea");
  if (event.key === "/" && !typing) {
    filters.search.focus();
    filters.search.select();
  } else if (event.key === "ArrowDown" && event.target === filters.search) {
    list.focus();
    move(1);
  } else if (event.key === "Escape") {
    if (detail.contains(document.activeElement)) {
      closeDetail();
      list.focus();
    } else if (isFiltered()) {
      clearFilters();
    } else {
      closeDetail();
    }
  } else {
    return;
  }
  event.preventDefault();
}

useTheme(storedTheme());
listen();
renderDetail();
renderFaults();
connect();
