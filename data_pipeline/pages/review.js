// One row at a time: look, decide, go on. Decisions are kept by row id, in the form of the file that is downloaded.
const data = JSON.parse(document.getElementById("data").textContent);
const { rows } = data;
const PER_PAGE = 60;
const SIGNS = { accept: "✓", reject: "✗" };
const at = (id) => document.getElementById(id);

let decisions = new Map(); // row id -> {decision: "accept", "reject" or null while there is only a note, note}
let current = 0;
let kept = true; // whether the browser lets the page keep anything

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const decisionOf = (row) => decisions.get(row.id)?.decision ?? null;

function say(words) {
  at("message").textContent = words;
}

// ---- keeping ----

function save() {
  try {
    localStorage.setItem(data.key, JSON.stringify({ decisions: [...decisions], current }));
  } catch {
    if (kept) say("This browser keeps nothing for this page: download review.json before closing it.");
    kept = false;
  }
}

function load() {
  decisions = new Map(Object.entries(data.decisions));
  try {
    const stored = JSON.parse(localStorage.getItem(data.key));
    for (const [id, decision] of stored?.decisions ?? []) decisions.set(id, decision);
    if (rows[stored?.current]) current = stored.current;
  } catch {
    // Nothing kept, or nothing that can be read: the page starts with the decisions it was made with.
  }
}

function decided() {
  return [...decisions].filter(([, { decision }]) => decision !== null);
}

function download() {
  // fromEntries makes own properties, whatever an id is called.
  const content = { format: data.format, version: data.version, decisions: Object.fromEntries(decided()) };
  const blob = new Blob([JSON.stringify(content, null, 1) + "\n"], { type: "application/json" });
  const link = make("a", { href: URL.createObjectURL(blob), download: "review.json" });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  const loose = [...decisions.values()].filter(({ decision, note }) => decision === null && note).length;
  say(
    `review.json with ${decided().length} decisions: put it into the data set's folder.` +
      (loose ? ` ${loose} notes of undecided rows are not in it.` : "")
  );
}

async function importFile(event) {
  const [file] = event.target.files;
  event.target.value = "";
  if (!file) return;
  try {
    const content = JSON.parse(await file.text());
    if (content?.format !== data.format || content.version !== data.version) throw new Error(`it is no ${data.format} of version ${data.version}`);
    const read = Object.entries(content.decisions);
    for (const [id, value] of read) {
      if (!Object.hasOwn(SIGNS, value?.decision) || typeof (value.note ?? "") !== "string") throw new Error(`row ${id} holds no decision`);
    }
    for (const [id, { decision, note = "" }] of read) decisions.set(id, { decision, note });
    const known = new Set(rows.map((row) => row.id));
    const foreign = read.filter(([id]) => !known.has(id)).length;
    say(`${read.length} decisions read from ${file.name}` + (foreign ? `; ${foreign} are of rows that this page does not show, and are kept.` : "."));
    save();
    show();
  } catch (error) {
    say(`${file.name} was not read: ${error.message}.`);
  }
}

// ---- deciding ----

function visible() {
  const wanted = at("filter").value;
  return rows.map((row, index) => index).filter((index) => wanted === "all" || (decisionOf(rows[index]) ?? "undecided") === wanted);
}

function step(by, list = visible()) {
  const following = by > 0 ? list.find((index) => index > current) : list.findLast((index) => index < current);
  if (following !== undefined) current = following;
  save();
  show();
}

function decide(decision) {
  const list = visible(); // from before the decision: it may take the row out of what is shown
  if (!list.includes(current)) return;
  const { note = "" } = decisions.get(rows[current].id) ?? {};
  if (decision === null && !note) decisions.delete(rows[current].id);
  else decisions.set(rows[current].id, { decision, note });
  if (decision === null) step(0, []);
  else step(1, list);
}

function takeNote() {
  const { decision = null } = decisions.get(rows[current].id) ?? {};
  const note = at("note").value;
  if (decision === null && !note) decisions.delete(rows[current].id);
  else decisions.set(rows[current].id, { decision, note });
  save();
}

// ---- showing ----

function showPicture(row) {
  const [width, height] = row.size;
  const image = make("img", { src: row.image, width, height, alt: row.origin });
  const layers = row.layers.map(([src, numbers]) => {
    const layer = make("img", { src, alt: "", className: "layer" });
    layer.dataset.masks = numbers.join(" ");
    return layer;
  });
  const badges = row.places.flatMap((place, number) => {
    if (!place) return [];
    const badge = make("span", { className: `badge m${number % data.colours}`, textContent: number + 1 });
    badge.style.setProperty("--x", `${100 * place[0]}%`);
    badge.style.setProperty("--y", `${100 * place[1]}%`);
    return [badge];
  });
  at("stack").replaceChildren(image, ...layers, ...badges);
  // As large as the column and three quarters of the window allow.
  at("stack").style.width = `min(100%, ${(74 * width) / height}vh)`;
}

function showWords(row) {
  at("instruction").textContent = row.instruction;
  at("answer").replaceChildren(
    ...row.answer.map(([text, mask]) => {
      if (mask === null) return text;
      const words = make("mark", { className: `m${mask % data.colours}`, tabIndex: 0 }, text, make("span", { className: "badge", textContent: mask + 1 }));
      words.dataset.mask = mask;
      return words;
    })
  );
  if (!row.places.length) at("answer").append(make("span", { className: "note", textContent: " No mask." }));
  at("tags").replaceChildren(...Object.entries(row.tags).map(([name, value]) => make("li", { textContent: value, title: name })));
  at("origin").textContent = row.origin;
}

function showStrip(list) {
  const place = Math.max(0, list.indexOf(current));
  const first = place - (place % PER_PAGE);
  const turn = (words, to, disabled) => make("button", { type: "button", textContent: words, disabled, onclick: () => ((current = list[to]), save(), show()) });
  const last = Math.min(first + PER_PAGE, list.length);
  at("pages").replaceChildren(
    turn("‹ earlier", first - PER_PAGE, first === 0),
    make("span", { textContent: list.length ? `${first + 1} to ${last} of ${list.length}` : "none" }),
    turn("later ›", last, last >= list.length)
  );
  at("strip").replaceChildren(
    ...list.slice(first, last).map((index) => {
      const decision = decisionOf(rows[index]);
      const button = make("button", { type: "button", textContent: SIGNS[decision] ?? index + 1, title: rows[index].id, className: decision ?? "" });
      button.setAttribute("aria-label", `row ${index + 1}, ${rows[index].id}: ${decision ?? "undecided"}`);
      if (index === current) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => ((current = index), save(), show()));
      return button;
    })
  );
}

function show() {
  const list = visible();
  if (list.length && !list.includes(current)) current = list.find((index) => index > current) ?? list.at(-1);
  const done = rows.filter((row) => decisionOf(row)).length;
  const rejected = rows.filter((row) => decisionOf(row) === "reject").length;
  at("progress").max = rows.length;
  at("progress").value = done;
  at("count").textContent = `${done} of ${rows.length} decided, ${rejected} rejected`;
  at("review").hidden = !list.length;
  showStrip(list);
  if (!list.length) return say(at("filter").value === "undecided" ? "Every row is decided: download review.json." : "There is no such row.");
  const row = rows[current];
  at("place").textContent = `row ${current + 1} of ${rows.length} · ${row.id}`;
  showPicture(row);
  showWords(row);
  for (const decision of ["accept", "reject"]) at(decision).setAttribute("aria-pressed", String(decisionOf(row) === decision));
  at("note").value = decisions.get(row.id)?.note ?? "";
  at("previous").disabled = list.indexOf(current) === 0;
  at("next").disabled = list.indexOf(current) === list.length - 1;
  const following = rows[list[list.indexOf(current) + 1]];
  if (following) new Image().src = following.image; // so that the next row stands there at once
}

const KEYS = {
  a: () => decide("accept"),
  r: () => decide("reject"),
  u: () => decide(null),
  m: toggleMasks,
  n: () => at("note").focus(),
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
};

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && event.target === at("note")) return at("note").blur();
  if (event.ctrlKey || event.metaKey || event.altKey || ["TEXTAREA", "SELECT", "INPUT"].includes(event.target.tagName)) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (!Object.hasOwn(KEYS, key)) return;
  event.preventDefault();
  KEYS[key]();
});
for (const [id, action] of [
  ["accept", () => decide(decisionOf(rows[current]) === "accept" ? null : "accept")],
  ["reject", () => decide(decisionOf(rows[current]) === "reject" ? null : "reject")],
  ["previous", () => step(-1)],
  ["next", () => step(1)],
  ["download", download],
]) at(id).addEventListener("click", action);
at("note").addEventListener("input", takeNote);
at("import").addEventListener("change", importFile);
at("filter").addEventListener("change", () => (say(""), show()));
// Another tab of the same page decides about the same rows.
window.addEventListener("storage", (event) => {
  if (event.key !== data.key) return;
  const here = current;
  load();
  current = here;
  show();
});

load();
show();
