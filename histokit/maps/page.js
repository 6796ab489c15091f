"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const page = JSON.parse(at("data").textContent);
  const { genes, extra } = page;
  const KEPT = 30; // blocks of values in memory
  const LISTED = 60; // genes in the list
  const LONGEST = 2400; // pixels of a painted map
  const DASH = "\u2013";

  // ---- values ----

  function bytes(text) {
    const binary = atob(text), found = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i++) found[i] = binary.charCodeAt(i);
    return found;
  }

  // [lowest, 2nd and 98th percentile, highest, codes] as numbers; NaN where there is no value
  function unpack([low, robustLow, robustHigh, high, text], bits) {
    const raw = bytes(text), codes = bits === 16 ? new Uint16Array(raw.buffer) : raw;
    const none = 2 ** bits - 1, step = (high - low) / (none - 1);
    const values = new Float64Array(codes.length);
    for (let i = 0; i < codes.length; i++) {
      values[i] = codes[i] === none ? NaN : low + codes[i] * step;
    }
    return { values, full: [low, high], robust: [robustLow, robustHigh], empty: low === null };
  }

  const blocks = new Map();
  window.histokitBlock = (name, columns) => {
    blocks.set(name, columns);
    if (blocks.size > KEPT) blocks.delete(blocks.keys().next().value);
  };

  let asked = 0; // an answer that comes after a later question is dropped
  function withBlock(name, use) {
    const mine = ++asked;
    if (blocks.has(name)) return use(blocks.get(name));
    const script = document.createElement("script");
    script.src = `${name}.js`;
    script.onload = () => {
      script.remove();
      if (mine === asked) use(blocks.get(name));
    };
    script.onerror = () => {
      say(`${name}.js beside this page cannot be read: copy the whole folder.`);
    };
    document.head.append(script);
  }

  const block = (kind, number) => `${kind}/${String(number).padStart(3, "0")}`;

  // ---- words ----

  function figure(value, digits) {
    const how = { minimumFractionDigits: digits, maximumFractionDigits: digits };
    return value.toLocaleString("en-US", how)
      .replace(/^-(0(\.0*)?)$/, "$1").replace("-", "\u2212");
  }
  const digitsFor = (span, more) => (
    Math.max(0, Math.min(8, more - Math.floor(Math.log10(span || 1)))));
  const say = (text) => { at("message").textContent = text; };

  // What a gene is called: its name, and its symbol where that is another one
  function label(i) {
    const { name, symbol } = genes;
    return symbol[i] && symbol[i] !== name[i] ? `${symbol[i]} (${name[i]})` : name[i];
  }

  function heldOut(i) {
    const pcc = genes.pcc[i];
    if (pcc === null) return "not evaluated";
    let text = `PCC ${figure(pcc, 2)}`;
    if (genes.pcc_low[i] !== null && genes.pcc_high[i] !== null) {
      text += ` (${figure(genes.pcc_low[i], 2)} to ${figure(genes.pcc_high[i], 2)})`;
    }
    if (genes.rank[i] === null) return text;
    return `${text}, rank ${figure(genes.rank[i], 0)} of ${figure(page.ranked, 0)}`;
  }

  // ---- patches ----

  const centers = new Float32Array(bytes(page.centers).buffer);
  const half = page.side / 2;
  const box = [Infinity, Infinity, -Infinity, -Infinity]; // left, top, right, bottom at level 0
  for (let i = 0; i < centers.length; i += 2) {
    box[0] = Math.min(box[0], centers[i] - half);
    box[1] = Math.min(box[1], centers[i + 1] - half);
    box[2] = Math.max(box[2], centers[i] + half);
    box[3] = Math.max(box[3], centers[i + 1] + half);
  }
  const grain = Math.min(LONGEST / Math.max(box[2] - box[0], box[3] - box[1]), 32 / page.side);
  const width = Math.ceil((box[2] - box[0]) * grain), height = Math.ceil((box[3] - box[1]) * grain);

  // The patch of every pixel of a map, counted from 1; 0 is none
  const owner = new Uint32Array(width * height);
  for (let i = 0; i < centers.length / 2; i++) {
    const left = Math.round((centers[2 * i] - half - box[0]) * grain);
    const top = Math.round((centers[2 * i + 1] - half - box[1]) * grain);
    const right = Math.max(left + 1, Math.round((centers[2 * i] + half - box[0]) * grain));
    const bottom = Math.max(top + 1, Math.round((centers[2 * i + 1] + half - box[1]) * grain));
    for (let y = top; y < Math.min(bottom, height); y++) {
      owner.fill(i + 1, y * width + left, y * width + Math.min(right, width));
    }
  }

  function patchAt(x, y) {
    const column = Math.floor((x - box[0]) * grain), row = Math.floor((y - box[1]) * grain);
    if (column < 0 || row < 0 || column >= width || row >= height) return -1;
    return owner[row * width + column] - 1;
  }

  function newCanvas(w, h) {
    return Object.assign(document.createElement("canvas"), { width: w, height: h });
  }

  const panels = [0, 1].map((k) => ({
    canvas: at(`map${k}`), caption: at(`caption${k}`), frame: at(`map${k}`).parentElement,
    painted: newCanvas(width, height), map: null,
  }));

  function paint(panel, colors) {
    const { column: { values, empty }, range: [low, high] } = panel.map;
    const inks = new Uint32Array(values.length + 1); // the first stays transparent
    const table = colors.map(([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0);
    const factor = high > low ? 255.999 / (high - low) : 0;
    for (let i = 0; i < values.length && !empty; i++) {
      const place = (values[i] - low) * factor;
      if (place === place) inks[i + 1] = table[place < 0 ? 0 : place > 255 ? 255 : place | 0];
    }
    const context = panel.painted.getContext("2d", { willReadFrequently: true });
    const image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    for (let i = 0; i < pixels.length; i++) pixels[i] = inks[owner[i]];
    context.putImageData(image, 0, 0);
  }

  // ---- the view ----

  const picture = at("picture");
  let pale = null, bare = false; // the picture in pale gray once it is needed; no map for a while
  // Place of the upper left corner at level 0, and pixels of the window for one of level 0
  const view = { x: 0, y: 0, zoom: 1 };
  let hovered = -1;

  function paleTissue() {
    const canvas = newCanvas(picture.naturalWidth, picture.naturalHeight);
    const context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0);
    const image = context.getImageData(0, 0, canvas.width, canvas.height), d = image.data;
    for (let i = 0; i < d.length; i += 4) {
      d[i] = d[i + 1] = d[i + 2] = 255 - 0.55 * (255 - (d[i] + d[i + 1] + d[i + 2]) / 3);
    }
    context.putImageData(image, 0, 0);
    return canvas;
  }

  const sizeNow = () => [panels[0].canvas.clientWidth, panels[0].canvas.clientHeight];
  const fitZoom = ([w, h]) => Math.min(w / (box[2] - box[0]), h / (box[3] - box[1])) * 0.94;
  let size = sizeNow();

  function lookAt(x, y) {
    size = sizeNow();
    view.x = x - size[0] / view.zoom / 2;
    view.y = y - size[1] / view.zoom / 2;
    drawAll();
  }

  function fit() {
    view.zoom = fitZoom(sizeNow());
    lookAt((box[0] + box[2]) / 2, (box[1] + box[3]) / 2);
  }

  // After a change of size the same tissue is seen as before
  function resize() {
    const x = view.x + size[0] / view.zoom / 2, y = view.y + size[1] / view.zoom / 2;
    view.zoom *= fitZoom(sizeNow()) / fitZoom(size);
    lookAt(x, y);
  }

  function zoom(factor, px, py) {
    const least = fitZoom(sizeNow()), most = Math.max(300 / page.side, least);
    const next = Math.min(Math.max(view.zoom * factor, least / 4), most);
    const x = px ?? size[0] / 2, y = py ?? size[1] / 2;
    view.x += x / view.zoom - x / next;
    view.y += y / view.zoom - y / next;
    view.zoom = next;
    drawAll();
  }

  function move(dx, dy) {
    view.x -= dx / view.zoom;
    view.y -= dy / view.zoom;
    drawAll();
  }

  function draw({ canvas, painted, map }) {
    const ratio = window.devicePixelRatio || 1;
    const w = Math.round(canvas.clientWidth * ratio), h = Math.round(canvas.clientHeight * ratio);
    if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
    const context = canvas.getContext("2d"), k = view.zoom * ratio;
    const opacity = bare ? 0 : at("opacity").value / 100;
    const whole = [0, 0, picture.naturalWidth / page.scale, picture.naturalHeight / page.scale];
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "white";
    context.fillRect(0, 0, w, h);
    context.setTransform(k, 0, 0, k, -view.x * k, -view.y * k);
    context.imageSmoothingEnabled = true;
    context.drawImage(picture, ...whole);
    if (map && opacity) {
      context.globalAlpha = Math.min(1, 2 * opacity); // the colors of the tissue return with it
      if (at("pale").checked) context.drawImage(pale ??= paleTissue(), ...whole);
      context.globalAlpha = opacity;
      context.imageSmoothingEnabled = k < grain; // squares stay sharp when they are enlarged
      context.drawImage(painted, box[0], box[1], width / grain, height / grain);
      context.globalAlpha = 1;
    }
    if (hovered >= 0) {
      context.lineWidth = 2 / view.zoom;
      context.strokeStyle = "black";
      const x = centers[2 * hovered], y = centers[2 * hovered + 1];
      context.strokeRect(x - half, y - half, page.side, page.side);
    }
  }

  function drawAll() {
    at("percent").textContent = `${at("opacity").value} %`;
    panels.filter((panel) => !panel.frame.hidden).forEach(draw);
    drawRuler();
  }

  function drawRuler() {
    at("ruler").hidden = !page.mpp;
    if (!page.mpp) return;
    const most = 160 * page.mpp / view.zoom, power = 10 ** Math.floor(Math.log10(most));
    const length = power * (most >= 5 * power ? 5 : most >= 2 * power ? 2 : 1);
    const round = Number(length.toPrecision(1));
    const text = round >= 1000 ? `${round / 1000} mm` : `${round} \u00b5m`;
    const line = document.createElement("span");
    line.style.width = `${length / page.mpp * view.zoom}px`;
    at("ruler").replaceChildren(text, line);
  }

  // ---- what is shown ----

  let gene = 0;

  function show() {
    const [kind, number] = at("layer").value.split(":");
    if (kind === "extra") {
      const { file, place } = extra[number];
      withBlock(block("scores", file), (columns) => {
        showExtra(extra[number], unpack(columns[place][0], 16));
      });
    } else {
      const i = gene;
      withBlock(block("genes", genes.file[i]), (columns) => {
        showGene(kind, i, columns[genes.place[i]]);
      });
    }
  }

  function showGene(kind, i, parts) {
    const part = (title, k) => (
      { title, column: unpack(parts.at(k), page.bits), unit: page.unit });
    const maps = [kind === "spread"
      ? part("standard deviation over the folds", 1) : part("predicted", 0)];
    if (kind === "both") maps.push(part("measured", -1));
    at("title").textContent = label(i);
    at("warning").hidden = genes.trusted[i];
    at("warning").textContent = `Drawn in gray: ${genes.pcc[i] === null
      ? "this gene was not evaluated on held-out slides, so nothing vouches for its map."
      : "the held-out PCC of this gene is not above the control, so do not read its map."}`;
    at("note").textContent = geneNote(kind, maps);
    const rows = [["Held-out", heldOut(i)], ["Training", training(i)]];
    facts([...rows, ["Ensembl id", genes.id[i] || DASH]]);
    present(maps, label(i), genes.trusted[i]);
  }

  function geneNote(kind, maps) {
    if (maps[0].column.empty) return "The prediction has no value for this gene.";
    if (kind === "both" && maps[1].column.empty) return "This gene was not measured on this slide.";
    if (kind !== "spread") return "";
    return "Where the models of the folds disagree; a high value marks an uncertain prediction.";
  }

  function training(i) {
    const [mean, sd] = [genes.train_mean[i], genes.train_sd[i]].map(
      (value) => (value === null ? DASH : figure(value, 2)));
    return `mean ${mean}, sd ${sd}`;
  }

  function showExtra({ kind, name }, column) {
    const values = column.values.filter((value) => value === value);
    const over = values.filter((value) => value > 1).length / (values.length || 1);
    at("title").textContent = name;
    at("warning").hidden = true;
    at("note").textContent = kind === "novelty"
      ? "How far a patch lies from the training features. 1 is the 95th percentile of held-out "
        + `training patches; ${figure(100 * over, 0)} % of the patches of this slide lie above 1, `
        + "where predictions are extrapolated."
      : "A score of a pathway or signature; compare patches of this slide with one another.";
    facts([]);
    present([{ title: kind, column, unit: kind }], name, true);
  }

  function facts(rows) {
    at("legend").hidden = !rows.length;
    at("facts").replaceChildren(...rows.flatMap(([term, text]) => {
      const dt = document.createElement("dt"), dd = document.createElement("dd");
      dt.textContent = term;
      dd.textContent = text;
      return [dt, dd];
    }));
  }

  // A robust range without any width, as of a gene found in few patches, gives way to the full one
  function rangeOf({ robust, full }) {
    return at("range").value === "robust" && robust[1] > robust[0] ? robust : full;
  }

  function present(maps, name, colored) {
    for (const map of maps) map.range = rangeOf(map.column);
    const known = maps.filter((map) => !map.column.empty);
    at("sharing").hidden = maps.length < 2;
    const joined = maps.length > 1 && at("shared").checked;
    if (joined) {
      const ends = known.flatMap((map) => map.range);
      for (const map of known) map.range = [Math.min(...ends), Math.max(...ends)];
    }
    const colors = page.colors[colored ? "color" : "gray"];
    panels.forEach((panel, k) => {
      panel.map = maps[k] || null;
      panel.frame.hidden = !maps[k];
      if (!maps[k]) return;
      paint(panel, colors);
      const caption = panelName(name, maps[k].title);
      panel.caption.textContent = caption;
      panel.canvas.setAttribute("aria-label", `Map of ${caption}, ${said(maps[k])}`);
    });
    at("bars").replaceChildren(...(joined ? known.slice(0, 1) : known).map((map) => (
      bar(map, joined ? known : [map], colors, maps.length > 1 && !joined))));
    drawAll();
  }

  const panelName = (name, title) => (name.toLowerCase() === title ? name : `${name}, ${title}`);

  function said({ column: { empty, full }, unit }) {
    if (empty) return "no values";
    const [low, high] = full.map((value) => figure(value, digitsFor(full[1] - full[0], 2)));
    return `${unit} from ${low} to ${high}`;
  }

  function bar({ title, range: [low, high], unit }, maps, colors, titled) {
    const element = document.createElement("div"), ramp = document.createElement("div");
    const ends = document.createElement("div"), digits = digitsFor(high - low, 1);
    element.className = "bar";
    ramp.className = "ramp";
    ends.className = "ends";
    const stops = colors.filter((_, k) => k % 8 === 0 || k === 255)
      .map((color) => `rgb(${color.join(" ")})`);
    ramp.style.background = high > low ? `linear-gradient(to right, ${stops.join(",")})` : stops[0];
    const below = maps.some((map) => map.column.full[0] < low);
    const above = maps.some((map) => map.column.full[1] > high);
    const texts = [(below ? "\u2264 " : "") + figure(low, digits), figure((low + high) / 2, digits),
      (above ? "\u2265 " : "") + figure(high, digits)];
    for (const text of high > low ? texts : [`${texts[0]} everywhere`]) {
      ends.append(Object.assign(document.createElement("span"), { textContent: text }));
    }
    element.append(titled ? `${title}, ${unit}` : unit, ramp, ends);
    return element;
  }

  // ---- the gene field ----

  const field = at("gene"), list = at("list");
  const lower = ["name", "symbol", "id"].map((key) => genes[key].map((text) => text.toLowerCase()));
  let listed = [], active = -1;

  // Genes by how well they match, then by rank, in which they are stored
  function search(text) {
    const found = [[], [], []];
    for (let i = 0; i < genes.name.length; i++) {
      const texts = [lower[0][i], lower[1][i], lower[2][i]];
      if (texts.includes(text)) found[0].push(i);
      else if (texts.some((t) => t.startsWith(text))) found[1].push(i);
      else if (texts.some((t) => t.includes(text))) found[2].push(i);
    }
    return { exact: found[0], all: found.flat() };
  }

  const typed = () => field.value.trim().toLowerCase().replace(/^(ens[a-z]*\d+)\.\d+$/, "$1");

  function openList(text) {
    const { all } = search(text);
    listed = all.slice(0, LISTED);
    list.replaceChildren(...listed.map(option));
    at("more").textContent = all.length > listed.length
      ? `and ${figure(all.length - listed.length, 0)} more: type to narrow down` : "";
    activate(-1);
    at("drop").hidden = !listed.length;
    field.setAttribute("aria-expanded", String(listed.length > 0));
  }

  function option(i, k) {
    const item = Object.assign(document.createElement("li"), { id: `option${k}` });
    const pcc = genes.pcc[i] === null ? "not evaluated" : `PCC ${figure(genes.pcc[i], 2)}`;
    const texts = { name: label(i), id: genes.id[i], pcc };
    for (const [className, textContent] of Object.entries(texts)) {
      item.append(Object.assign(document.createElement("span"), { className, textContent }));
    }
    item.setAttribute("role", "option");
    item.classList.toggle("doubted", !genes.trusted[i]);
    item.addEventListener("pointerdown", (event) => {
      event.preventDefault(); // the field keeps the focus
      choose(i);
    });
    return item;
  }

  function activate(k) {
    list.children[active]?.removeAttribute("aria-selected");
    active = k;
    const item = list.children[k];
    if (!item) return field.removeAttribute("aria-activedescendant");
    item.setAttribute("aria-selected", "true");
    item.scrollIntoView({ block: "nearest" });
    field.setAttribute("aria-activedescendant", item.id);
  }

  function closeList() {
    at("drop").hidden = true;
    activate(-1);
    field.setAttribute("aria-expanded", "false");
  }

  const chosenText = () => genes.symbol[gene] || genes.name[gene];

  function choose(i) {
    gene = i;
    field.value = chosenText();
    say("");
    closeList();
    if (at("layer").value.startsWith("extra")) at("layer").value = "predicted";
    show();
  }

  function enter() {
    const text = typed();
    if (active >= 0) return choose(listed[active]);
    if (!text) return;
    const { exact, all } = search(text), asWritten = field.value.trim();
    const quoted = `\u201c${asWritten}\u201d`;
    const named = exact.find((i) => genes.name[i] === asWritten);
    if (named !== undefined) return choose(named);
    const only = exact.length ? exact : all;
    if (only.length === 1) return choose(only[0]);
    if (only.length) {
      openList(text);
      const what = exact.length ? "are called" : "match";
      return say(`${figure(only.length, 0)} genes ${what} ${quoted}: choose one in the list.`);
    }
    closeList();
    const predicted = page.elsewhere.flat().some((name) => name.toLowerCase() === text);
    say(predicted
      ? `${quoted} is predicted but not on this page; the files of the prediction hold it.`
      : `No gene ${quoted} was predicted; try another symbol or an Ensembl id.`);
  }

  field.addEventListener("input", () => openList(typed()));
  field.addEventListener("focus", () => { field.select(); openList(""); });
  field.addEventListener("blur", closeList);
  field.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      if (at("drop").hidden) openList(field.value === chosenText() ? "" : typed());
      const next = active < 0 && step < 0 ? listed.length - 1 : active + step;
      activate(Math.min(next, listed.length - 1));
    } else if (event.key === "Enter") enter();
    else if (event.key === "Escape") closeList();
  });

  // ---- controls ----

  function layerMenu() {
    const menu = at("layer"), groups = [["Gene", [["predicted", "predicted expression"]]]];
    if (page.measured) groups[0][1].push(["both", "predicted beside measured"]);
    if (page.spread) groups[0][1].push(["spread", "standard deviation over the folds"]);
    const kinds = { score: "Pathways and signatures", novelty: "Reliability" };
    for (const [kind, title] of Object.entries(kinds)) {
      const rows = extra.map((layer, k) => [layer.kind, `extra:${k}`, layer.name]);
      groups.push([title, rows.filter((row) => row[0] === kind).map((row) => row.slice(1))]);
    }
    for (const [title, rows] of groups.filter((group) => group[1].length)) {
      const group = Object.assign(document.createElement("optgroup"), { label: title });
      group.append(...rows.map(([value, text]) => new Option(text, value)));
      menu.append(group);
    }
  }

  function hover(panel, event) {
    const tip = at("tip"), shown = panels.filter((p) => p.map);
    const patch = event
      ? patchAt(view.x + event.offsetX / view.zoom, view.y + event.offsetY / view.zoom) : -1;
    tip.hidden = patch < 0;
    if (patch !== hovered) {
      hovered = patch;
      drawAll();
    }
    if (patch < 0) return;
    const lines = shown.map(({ map: { title, unit, column } }) => {
      const value = column.values[patch], digits = digitsFor(column.full[1] - column.full[0], 3);
      if (column.empty || value !== value) return `${title}: no value`;
      return `${title}: ${figure(value, digits)}${unit === title ? "" : ` ${unit}`}`;
    });
    tip.textContent = [page.barcodes[patch], ...lines].join("\n");
    const area = tip.offsetParent.getBoundingClientRect();
    const x = event.clientX - area.left + 16, y = event.clientY - area.top + 16;
    tip.style.left = `${Math.max(0, Math.min(x, area.width - tip.offsetWidth))}px`;
    tip.style.top = `${y + tip.offsetHeight > area.height ? y - tip.offsetHeight - 28 : y}px`;
  }

  const STEPS = {
    ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60],
  };

  for (const panel of panels) {
    const { canvas } = panel;
    let grip = null;
    canvas.addEventListener("pointerdown", (event) => {
      grip = [event.clientX, event.clientY];
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!grip) return hover(panel, event);
      move(event.clientX - grip[0], event.clientY - grip[1]);
      grip = [event.clientX, event.clientY];
    });
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, () => { grip = null; });
    }
    canvas.addEventListener("pointerleave", () => hover(panel, null));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoom(2 ** (-event.deltaY / (event.deltaMode ? 8 : 300)), event.offsetX, event.offsetY);
      hover(panel, event);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const by = STEPS[event.key];
      if (!by) return;
      event.preventDefault();
      move(...by);
    });
  }

  function toggleMap() {
    bare = !bare;
    at("bare").setAttribute("aria-pressed", String(bare));
    drawAll();
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input:not([type=checkbox]), select")) return;
    if (event.key === "+" || event.key === "=") zoom(1.4);
    else if (event.key === "-") zoom(1 / 1.4);
    else if (event.key === "0") fit();
    else if (event.key === "t") toggleMap();
  });
  at("in").addEventListener("click", () => zoom(1.4));
  at("out").addEventListener("click", () => zoom(1 / 1.4));
  at("fit").addEventListener("click", fit);
  at("bare").addEventListener("click", toggleMap);
  at("pale").addEventListener("change", drawAll);
  for (const id of ["layer", "range", "shared"]) at(id).addEventListener("change", show);
  at("opacity").addEventListener("input", drawAll);

  layerMenu();
  picture.decode().then(() => {
    fit();
    new ResizeObserver(resize).observe(panels[0].canvas);
    choose(0);
  });
})();
