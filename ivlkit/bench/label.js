// Labels pictures by keys: shows what Python sends ahead, never waits for it, and queues what it has not saved yet.
// `show` and the key table `COMMANDS` are the places to begin. All text from data goes in as text, never as HTML.

const AHEAD = 5, KEPT = 16, SILENCE_MS = 1500, ZOOM = 1.25, MOST_ZOOM = 40;
const STYLE = `
.ivl-label { border: 1px solid #8886; border-left: 6px solid #d55e00; border-radius: 6px; padding: 8px 10px;
  font: 14px/1.45 var(--jp-ui-font-family, system-ui, sans-serif); max-width: 1000px; box-sizing: border-box; }
.ivl-label.typing { border-left-color: #0072b2; }
.ivl-label .bar { display: flex; flex-wrap: wrap; gap: 4px 16px; align-items: baseline; min-height: 1.5em; }
.ivl-label .state { font-weight: 600; } .ivl-label .file { opacity: .75; overflow-wrap: anywhere; }
.ivl-label .said { flex-basis: 100%; min-height: 1.45em; overflow-wrap: anywhere; white-space: pre-wrap; }
.ivl-label .said.bad { border-left: 4px solid #d55e00; padding-left: 8px; }
.ivl-label .stage { position: relative; height: 420px; overflow: hidden; background: #8882; border-radius: 4px;
  margin: 6px 0; touch-action: none; user-select: none; }
.ivl-label.boxes .stage { cursor: crosshair; }
.ivl-label .stage img, .ivl-label .layer { position: absolute; max-width: none; margin: 0; }
.ivl-label .stage .over { inset: 0; width: 100%; height: 100%; object-fit: contain; background: #fff; }
.ivl-label .layer { pointer-events: none; }
.ivl-label .box { position: absolute; box-sizing: border-box; border: 2px solid #e69f00; box-shadow: 0 0 0 1px #000a; }
.ivl-label .box.now { border-color: #56b4e9; }
.ivl-label .box span { position: absolute; background: #000c; color: #fff; font-size: 12px; white-space: nowrap; }
.ivl-label .error { position: absolute; inset: 0; padding: 1em; overflow: auto; overflow-wrap: anywhere; }
.ivl-label label { display: block; margin: 4px 0; } .ivl-label label > span { display: block; font-weight: 600; }
.ivl-label textarea, .ivl-label .choices { border: 2px solid #8888; border-radius: 4px; padding: 5px 8px; }
.ivl-label textarea { width: 100%; box-sizing: border-box; font: inherit; font-size: 17px; resize: vertical;
  color: inherit; background: transparent; }
.ivl-label textarea:focus, .ivl-label .choices:focus { outline: 2px solid #0072b2; border-color: #0072b2; }
.ivl-label .choices { display: flex; flex-wrap: wrap; gap: 6px; }
.ivl-label button { font: inherit; color: inherit; background: #8882; border: 1px solid #8888; border-radius: 4px;
  padding: 3px 10px; cursor: pointer; text-align: start; }
.ivl-label button.chosen { background: #0072b2; color: #fff; }
.ivl-label .keys { opacity: .8; font-size: 12px; display: flex; flex-wrap: wrap; gap: 0 14px; margin-top: 4px; }`;

const put = (each, left, top, right, bottom, unit = "%") => Object.assign(each.style, { left: `${left}${unit}`,
  top: `${top}${unit}`, width: `${right - left}${unit}`, height: `${bottom - top}${unit}` });
const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
const make = (parent, tag, name = "", text = "") => {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.textContent = text;
  parent.append(made);
  return made;
};

function render({ model, el }) {
  const rows = model.get("rows"), setup = model.get("setup"), hasBoxes = setup.boxes, choices = setup.choices;
  const store = `ivl.label ${setup.key}`, session = Math.random().toString(36).slice(2);
  const pictures = new Map(), suggestions = new Map(), asked = new Set(), trail = [], done = [];
  let at = setup.start, now = {}, pending = [], count = 0, beat = Date.now(), stopped = "", note = "", late = 0;
  let zoom = { scale: 1, x: 0, y: 0 }, boxes = [], current = -1, word = "", drag = null, over = null;

  // What is on the page

  make(el, "style", "", STYLE);
  const root = make(el, "div", "ivl-label");
  root.dataset.lmSuppressShortcuts = "true";  // JupyterLab's command mode would take "00" for a restart
  root.classList.toggle("boxes", hasBoxes);
  const bar = make(root, "div", "bar"), state = make(bar, "span", "state"), counted = make(bar, "span", "counted");
  const file = make(bar, "span", "file"), queued = make(bar, "span", "queued");
  const stage = make(root, "div", "stage"), said = make(root, "div", "said"), fields = [];
  said.setAttribute("aria-live", "polite");
  stage.title = "wheel or Alt and +: zoom into the original";
  const question = make(root, "label"), asks = make(question, "span");
  asks.dir = "auto";
  let list = null;
  if (choices.length && !hasBoxes) {
    list = make(root, "div", "choices");
    list.tabIndex = 0;
    choices.forEach((choice, place) => {
      const button = make(list, "button", "", (place < 9 ? `${place + 1}  ` : "") + choice);
      button.tabIndex = -1;
      button.onmousedown = (event) => event.preventDefault();  // the focus stays where keys are heard
      button.onclick = () => { list.focus({ preventScroll: true }); choose(place); };
    });
  } else for (const column of setup.columns.length ? setup.columns : [""]) {
    const around = column ? make(root, "label") : question;
    if (column) make(around, "span", "", column);
    const field = make(around, "textarea");
    Object.assign(field, { rows: 1, dir: "auto", spellcheck: false, autocomplete: "off" });
    field.oninput = () => edit();
    fields.push(field);
  }
  const main = list ?? fields[0];
  const keys = make(root, "div", "keys");
  const told = {
    Enter: "save, next", "↓": "skip", "↑": "back", Esc: "empty, again: suggestion", "Ctrl+Z": "take back",
    "Ctrl+D": "unusable", "Alt +/−": "zoom", ...(setup.tiles && { "Alt+T": "tiles" }),
    ...(choices.length && { "1–9": list ? "choose" : choices.slice(0, 9).join(", ") }),
    ...(list ? { "← →": "choose another" } : { "Shift+Enter": "new line" }),
    ...(fields.length > 1 && { Tab: "next column" }),
    ...(hasBoxes && { drag: "box", "Alt+B": "box by keys", "Alt+arrows": "move, with Shift size", "Alt+N": "next box",
      "Alt+Backspace": "delete it or the last" }),
  };
  for (const [key, does] of Object.entries(told)) {
    const each = make(keys, "span");
    make(each, "b", "", key);
    each.append(` ${does}`);
  }

  // From row to row

  const isOpen = (number) => !rows[number].how;
  const following = (from, most) => {
    const order = rows.map((_, step) => (from + 1 + step) % rows.length);
    return order.filter((number) => number !== at && isOpen(number)).slice(0, most);
  };
  const want = () => {
    const near = [at, ...following(at, AHEAD)], kept = [...near, ...trail.slice(-AHEAD)];
    for (const number of pictures.keys())
      if (pictures.size > KEPT && !kept.includes(number)) forget(number);
    const numbers = near.filter((number) => !pictures.has(number) && !asked.has(number));
    numbers.forEach((number) => asked.add(number));
    model.send({ do: "want", at, numbers });
  };
  const forget = (number) => {
    const { image, original, tiles: cut } = pictures.get(number);
    for (const each of [image, original, cut]) if (each) URL.revokeObjectURL(each.src);
    pictures.delete(number);
    asked.delete(number);
  };

  function show(number) {
    at = number;
    now = { shown: false, edited: false, complete: rows.every((row) => row.how) };
    [zoom, over, note] = [{ scale: 1, x: 0, y: 0 }, null, ""];
    fill(rows[at].values);
    suggest();
    drawPicture();
    want();
    draw();
    focus();
  }

  function suggest(again = false) {  // a late suggestion never takes the place of what was typed
    const known = suggestions.get(at);
    if (!known || (!again && (rows[at].how || now.edited || boxes.length))) return;
    now.shown = true;
    fill(known.suggestion);
    draw();
  }

  function fill(values) {
    boxes = hasBoxes && Array.isArray(values?.[0]) ? values.map((box) => [...box]) : [];
    current = -1;
    if (list) now.chosen = choices.indexOf(values?.[0]);
    fields.forEach((field, place) => write(field, boxes.length ? "" : values?.[place] ?? ""));
    drawBoxes();
  }

  const write = (field, text) => {
    field.value = text;
    field.setSelectionRange(0, text.length);  // select() would take the focus
  };
  const isEmpty = () => !boxes.length && (list ? now.chosen < 0 : !typed().some(Boolean));
  const edit = () => { now.edited = true; draw(); };
  const typed = () => fields.map((field) => field.value.trim());
  const values = () => (list ? [choices[now.chosen]] : boxes.length ? boxes : typed());
  const isSuggested = () => same(values(), suggestions.get(at)?.suggestion);
  const focus = () => { if (root.isConnected) main.focus({ preventScroll: true }); };

  function go(number = following(at, 1)[0]) {
    now.complete = rows.every((row) => row.how);
    if (number === undefined) return say(now.complete ? "" : "No other is left.");
    trail.push(at);
    show(number);
  }

  function keep(how, kept) {
    const { values: before, how: was } = rows[at];
    queue(rows[at], how, kept);
    if (how === "skipped") return;
    done.push({ number: at, values: before, how: was });
    Object.assign(rows[at], { values: kept, how });
    now.edited = false;  // the last row stays: what Ctrl+Z takes back there is the answer
  }

  function howSaved() {
    if (!now.shown && !["accepted", "corrected"].includes(rows[at].how)) return "typed";
    return isSuggested() ? "accepted" : "corrected";
  }

  function queue({ file: name, question: asked }, how, kept) {
    pending.push({ do: "answer", id: `${session}-${count++}`, file: name, question: asked, how, values: kept });
    late = late || Date.now();
    remember();
    model.send(pending.at(-1));
  }

  function remember() {  // kept in the browser until saved: a kernel may die in between
    try {
      if (pending.length) localStorage.setItem(store, JSON.stringify(pending)); else localStorage.removeItem(store);
    } catch { /* a browser without storage keeps them on the page */ }
  }

  // What keys do; a command gets the event and returns false where the key stays the box's own

  function enter(event) {
    if (hasBoxes && boxes.length && (current >= 0 || fields[0].value.trim())) return nameBox();
    if (!pictures.has(at)) return say("The picture is on its way.");
    if (isEmpty()) return say("Nothing to save: type an answer, or press ↓ to skip.");
    if (!same(rows[at].values, values())) keep(howSaved(), values());
    go();
  }

  function nameBox() {
    const name = fields[0].value.trim();
    if (current < 0) current = boxes.length - 1;
    if (!name) return say("The box needs a word.");
    boxes[current][0] = word = name;
    pick(boxes.findIndex((box) => !box[0]));
  }

  function choose(place) {
    if (stopped || place >= choices.length) return;
    if (hasBoxes) { fields[0].value = choices[place]; return nameBox(); }
    now.chosen = place;
    enter();
  }

  function pick(number) {
    current = number;
    write(fields[0], number < 0 ? "" : boxes[number][0] || word);
    drawBoxes();
  }

  function addBox(box) {
    boxes.push(["", ...box]);
    edit();
    pick(boxes.length - 1);
    focus();
  }

  function deleteBox() {
    if (!boxes.length) return;
    boxes.splice(current < 0 ? -1 : current, 1);
    edit();
    pick(-1);
  }

  function moveBox(right, down, resize) {
    if (current < 0) current = boxes.length - 1;
    const box = boxes[current];
    if (!box) return;
    const by = resize ? [0, 0, right, down] : [right, down, right, down];
    const [left, top, x, y] = by.map((step, place) => box[place + 1] + step);
    const isInside = 0 <= left && left < x && x <= 1000 && 0 <= top && top < y && y <= 1000;
    if (isInside) boxes[current] = [box[0], left, top, x, y];
    edit();
    drawBoxes();
  }

  function empty() {
    if (isEmpty()) return suggest(true);
    fill(null);
    edit();
  }

  function takeBack(event) {
    if (event.target.value !== undefined && now.edited && !isEmpty()) return false;  // the box's own: what was typed
    if (!done.length) return say("Nothing to take back.");
    const { number, values: before, how: was } = done.pop();
    queue(rows[number], was ?? "undone", before);
    Object.assign(rows[number], { values: before, how: was });
    if (trail.at(-1) === number) trail.pop();
    show(number);
  }

  function arrow(event, step) {
    const { value, selectionStart: start, selectionEnd: end } = event.target;
    if (value !== undefined && (step < 0 ? value.slice(0, start) : value.slice(end)).includes("\n")) return false;
    if (step > 0) { keep("skipped", null); return go(); }
    const back = trail.pop() ?? at - 1;
    if (back >= 0) show(back);
  }

  function tiles() {
    over = over ? null : "tiles";
    if (over && !pictures.get(at)?.tiles) model.send({ do: "tiles", number: at });
    drawPicture();
  }

  function zoomBy(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
    const known = pictures.get(at), scale = Math.min(MOST_ZOOM, Math.max(1, zoom.scale * factor));
    const move = scale / zoom.scale;
    zoom = scale === 1 ? { scale, x: 0, y: 0 } : { scale, x: x - (x - zoom.x) * move, y: y - (y - zoom.y) * move };
    if (scale > 1 && known?.image && !known.asksOriginal) {
      known.asksOriginal = true;
      model.send({ do: "original", number: at });
    }
    place();
  }

  function pan(right, down) {
    if (zoom.scale === 1) return false;
    [zoom.x, zoom.y] = [zoom.x - 4 * right, zoom.y - 4 * down];
    place();
  }

  const MOVES = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, -10], ArrowDown: [0, 10] };
  const COMMANDS = {
    Enter: enter, ArrowDown: (event) => arrow(event, 1), ArrowUp: (event) => arrow(event, -1), Escape: empty,
    "Ctrl+z": takeBack, "Ctrl+d": () => { keep("unusable", null); go(); }, "Alt+KeyT": () => setup.tiles && tiles(),
    "Alt++": () => zoomBy(ZOOM), "Alt+-": () => zoomBy(1 / ZOOM),
    ...(list && { "+": () => zoomBy(ZOOM), "-": () => zoomBy(1 / ZOOM) }),
    ...(list && { ArrowLeft: () => lean(-1), ArrowRight: () => lean(1) }),
    ...(hasBoxes && { "Alt+KeyB": () => addBox([400, 400, 600, 600]), "Alt+Backspace": deleteBox,
      "Alt+KeyN": () => boxes.length && pick((current + 1) % boxes.length) }),
  };

  function lean(step) {
    now.chosen = (Math.max(now.chosen, step < 0 ? 0 : -1) + step + choices.length) % choices.length;
    edit();
  }

  const SIGNS = { Equal: "+", NumpadAdd: "+", BracketRight: "+", Minus: "-", NumpadSubtract: "-", Slash: "-" };
  function nameOf(event) {  // "a", "Ctrl+z", "Alt+KeyT": with Alt a Mac's keys give other letters, so their place counts
    const control = event.ctrlKey || event.metaKey;
    if (control === event.altKey) return control ? "AltGr" : event.key;
    if (control) return `Ctrl+${event.key.toLowerCase()}`;
    const place = SIGNS[event.code] ?? (event.code.startsWith("Key") ? event.code : event.key);
    return `Alt+${/^[+-]$/.test(event.key) ? event.key : place}`;
  }

  root.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.isComposing || event.keyCode === 229) return;  // an input method's own Enter
    const name = nameOf(event), moves = name.startsWith("Alt+") && MOVES[event.key];
    let command = event.key === "Enter" && event.shiftKey ? null : COMMANDS[name];
    if (moves) command = () => (hasBoxes ? moveBox : pan)(...moves, event.shiftKey);
    if (/^[1-9]$/.test(name) && choices.length && (list || current >= 0)) command = () => choose(name - 1);
    if (!command) return;
    const isHeld = event.repeat && !moves && !/[+-]$/.test(name);  // a held Enter accepts once
    if (isHeld || stopped || command(event) !== false) event.preventDefault();
  });
  for (const kind of ["keyup", "keypress"]) root.addEventListener(kind, (event) => event.stopPropagation());

  // The picture

  function drawPicture() {
    const known = pictures.get(at), shown = over ? known?.[over] : known?.original ?? known?.image;
    stage.replaceChildren();
    if (known?.error) make(stage, "div", "error", known.error);
    else if (shown) {
      shown.alt = rows[at].file;
      shown.draggable = false;
      shown.classList.toggle("over", Boolean(over));
      stage.append(shown);
    } else make(stage, "div", "error", over ? "The tiles are being drawn." : "The picture is on its way.");
    if (!over) stage.append(layer);
    place();
  }

  const layer = document.createElement("div");
  layer.className = "layer";
  const size = () => {
    const image = pictures.get(at)?.image;
    if (!image) return [0, 0];
    const fit = Math.min(stage.clientWidth / image.naturalWidth, stage.clientHeight / image.naturalHeight);
    return [image.naturalWidth * fit, image.naturalHeight * fit];
  };

  function place() {
    const [width, height] = size();
    const left = zoom.x + ((stage.clientWidth - width) / 2) * zoom.scale;
    const top = zoom.y + ((stage.clientHeight - height) / 2) * zoom.scale;
    for (const each of over ? [layer] : stage.querySelectorAll("img, .layer"))
      put(each, left, top, left + width * zoom.scale, top + height * zoom.scale, "px");
  }

  function drawBoxes() {
    layer.replaceChildren();
    boxes.forEach(([name, x1, y1, x2, y2], number) => {
      const box = make(layer, "div", number === current ? "box now" : "box");
      put(box, x1 / 10, y1 / 10, x2 / 10, y2 / 10);
      if (name) make(box, "span", "", name);
    });
  }

  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    const { left, top } = stage.getBoundingClientRect();
    zoomBy(event.deltaY < 0 ? ZOOM : 1 / ZOOM, event.clientX - left, event.clientY - top);
  }, { passive: false });
  const share = (event) => {  // where on the picture, in thousandths
    const { left, top, width, height } = layer.getBoundingClientRect();
    const within = (value) => Math.round(1000 * Math.min(1, Math.max(0, value)));
    return [within((event.clientX - left) / width), within((event.clientY - top) / height)];
  };
  stage.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    focus();
    if (stopped || over || !pictures.get(at)?.image) return;
    stage.setPointerCapture(event.pointerId);
    drag = { from: share(event), x: event.clientX - zoom.x, y: event.clientY - zoom.y };
  });
  const corners = (event) => {
    const [x, y] = share(event), [left, top] = drag.from;
    return [Math.min(x, left), Math.min(y, top), Math.max(x, left), Math.max(y, top)];
  };
  stage.addEventListener("pointermove", (event) => {
    if (!drag) return;
    if (hasBoxes) {
      drawBoxes();
      put(make(layer, "div", "box now"), ...corners(event).map((value) => value / 10));
    } else if (zoom.scale > 1) {
      [zoom.x, zoom.y] = [event.clientX - drag.x, event.clientY - drag.y];
      place();
    }
  });
  stage.addEventListener("pointerup", (event) => {
    if (drag && hasBoxes) {
      const box = corners(event);
      if (box[2] - box[0] > 3 && box[3] - box[1] > 3) addBox(box);
      else drawBoxes();
    }
    drag = null;
  });

  // What is said

  const say = (text) => { note = text; draw(); };

  function draw() {
    const has = root.contains(document.activeElement), row = rows[at], known = suggestions.get(at);
    root.classList.toggle("typing", has && !stopped);
    state.textContent = stopped ? "stopped" : !has ? "click to type" : list ? "keys are heard here" : "typing here";
    const labelled = rows.filter((each) => each.how && each.how !== "unusable").length;
    counted.textContent = `${labelled} of ${rows.length} labelled`;
    file.textContent = row.file;
    const isLate = pending.length && (stopped || Date.now() - late > 300);
    queued.textContent = isLate ? `${pending.length} not saved yet` : "";
    const sure = known?.confidence == null ? "" : ` (${Math.round(100 * known.confidence)} % sure)`;
    const kept = row.how === "unusable" ? "Called unusable." : "Saved.";
    const about = row.how ? kept : now.shown && isSuggested() ? `Suggested${sure}.` : "";
    said.textContent = stopped || note || (now.complete ? "All are labelled; ↑ goes back. " : "") + about;
    said.classList.toggle("bad", Boolean(stopped));
    asks.textContent = row.question;
    main.setAttribute("aria-label", row.question);
    [...(list?.children ?? [])].forEach((button, place) => button.classList.toggle("chosen", place === now.chosen));
    fields.forEach((field) => { field.readOnly = Boolean(stopped); });
  }

  // What Python sends

  async function receive(message, buffers) {
    beat = Date.now();
    if (stopped === SILENT) { stopped = ""; pending.forEach((each) => model.send(each)); }
    if (message.stop) stopped = message.stop;
    if (message.note) note = message.note;
    for (const kind of ["picture", "original", "tiles"]) if (kind in message) await arrive(kind, message, buffers);
    if ("suggest" in message) keepSuggestion(message);
    if (message.saved) saved(message);
    draw();
  }

  function keepSuggestion({ suggest: number, suggestion, confidence }) {
    if (suggestion) suggestions.set(number, { suggestion, confidence });
    if (suggestion && number === at) suggest();
  }

  function saved({ saved: id, number, row, reply }) {
    pending = pending.filter((each) => each.id !== id);
    if (!pending.length) late = 0;
    remember();
    const isOf = (each) => each.file === rows[number].file && each.question === rows[number].question;
    if (number === null || pending.some(isOf)) return;
    if (reply) note = `The reply to ${rows[number].file}: ${reply}`;
    Object.assign(rows[number], row);
  }

  async function arrive(kind, message, buffers) {
    const number = message[kind], isFirst = kind === "picture", known = pictures.get(number) ?? {};
    if (message.error) {
      note = message.error;
      if (isFirst) known.error = message.error;
    } else {
      const image = new Image();
      image.src = URL.createObjectURL(new Blob([buffers[0]], { type: "image/jpeg" }));
      await image.decode().catch(() => {});  // ahead, so that Enter finds it ready
      known[isFirst ? "image" : kind] = image;
    }
    if (isFirst) pictures.set(number, known);
    if (number === at) drawPicture();
    if (isFirst) keepSuggestion({ ...message, suggest: number });
  }

  const SILENT = "The kernel does not answer. What is not saved yet is kept in this browser: run the cell again.";
  let ticks = 0;
  const watch = setInterval(() => {
    if (++ticks % (pictures.has(at) ? 25 : 5) === 0) {  // what was asked may wait behind a cell; and this page is alive
      if (!pictures.has(at)) asked.clear();
      try { want(); } catch { /* a dead kernel's model can't send */ }
    }
    if (!stopped && Date.now() - beat > SILENCE_MS) stopped = SILENT;
    draw();
  }, 200);
  for (const kind of ["focusin", "focusout"]) root.addEventListener(kind, () => setTimeout(draw));
  root.addEventListener("click", (event) => {
    if (!root.contains(document.activeElement) || event.target === root) focus();
  });
  const resized = new ResizeObserver(place);
  resized.observe(stage);
  const begin = () => (root.isConnected ? focus() : requestAnimationFrame(begin));
  model.on("msg:custom", receive);
  try { pending = JSON.parse(localStorage.getItem(store) ?? "[]"); } catch { pending = []; }
  for (const each of pending) {
    const row = rows.find((one) => one.file === each.file && one.question === each.question);
    const how = each.how === "undone" ? null : each.how;
    if (row && how !== "skipped") Object.assign(row, { values: how && each.values, how });
    model.send(each);
  }
  show(isOpen(at) ? at : following(at, 1)[0] ?? at);
  begin();
  return () => { clearInterval(watch); resized.disconnect(); model.off("msg:custom", receive); };
}

export default { render };
