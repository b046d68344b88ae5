// The page: what is searched for, the search, and its hits.

import { Problem, forgetThumbnails, getJson } from "./api.js";
import { showAbout } from "./about.js";
import { CropBox } from "./crop.js";
import { addDialog, removeDialog, tokenDialog } from "./dialogs.js";
import { byId, element } from "./dom.js";
import { hitCard, showMarks, showPlaceholders, showThumbnail, thumbnail } from "./hits.js";

const SLOW_AFTER_MS = 4000;
const FIRST_ITEMS = 15; // shown before the first search
const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

let indexes = [];
let index = null; // one of `indexes`
let access = null; // {scope}; null while the service lets nobody in
let query = null; // {images, crop}, each image {file, url}; or {id, index} for an item
let hits = [];
let running = null; // AbortController of the search
const examples = new Map(); // {kind, hit} by the hit's id, {kind, image} by the image; kind is positive or negative
const trail = new Map(); // queries by the key of their entry in the browser's history

const kindOf = (id) => examples.get(id)?.kind ?? null;
const examplesOf = (kind) => [...examples].filter(([, example]) => example.kind === kind);
const imagesOf = (files) => [...files].map((file) => ({ file, url: URL.createObjectURL(file) }));
const canWrite = () => access?.scope === "write";

// Start, and another index or token

async function start() {
  byId("status").textContent = "Loading…";
  hideMessages();
  try {
    access = await getJson("v1/access");
    await loadIndexes();
  } catch (error) {
    byId("status").textContent = "";
    if (error instanceof Problem && error.status === 401) access = null;
    showError(error, start);
    showWritable();
    return;
  }
  showWritable();
  const linked = queryOfAddress();
  if (query) search();
  else if (linked) setQuery(linked, { isNew: false });
  else browse();
}

async function loadIndexes() {
  ({ indexes } = await getJson("v1/indexes"));
  const [first] = indexes;
  index = indexes.find(({ name }) => name === index?.name) ?? first;
  byId("index").replaceChildren(
    ...indexes.map(({ name }) => element("option", { value: name }, name)),
  );
  byId("index-field").hidden = indexes.length < 2;
  useIndex(index);
}

function showWritable() {
  byId("open-add").hidden = !canWrite() || !index;
}

// The first items, so that there is something to search with.
async function browse() {
  clearHits();
  try {
    const { items } = await getJson(`v1/indexes/${encodeURIComponent(index.name)}/items?limit=${FIRST_ITEMS}`);
    if (query) return;
    byId("status").textContent = `${count(index.items, "item")} in ${index.name}`;
    if (!items.length) {
      showEmpty("The index is empty", canWrite() ? "Add an item to search for it." : "Add items with `lookalike add`.");
      return;
    }
    showEmpty("Which image are you looking for?", "Drop, paste or choose one, or start with an item below.");
    showHits(items, "Items");
  } catch (error) {
    showError(error, browse);
  }
}

// The query

function setQuery(next, { isNew = true, keepsExamples = false } = {}) {
  query = next;
  const itsIndex = indexes.find(({ name }) => name === query.index);
  if (itsIndex && itsIndex !== index) useIndex(itsIndex);
  if (!keepsExamples) examples.clear();
  showExamples();
  showQuery();
  if (isNew) {
    const key = `${performance.timeOrigin} ${trail.size}`; // entries of before a reload have other keys
    trail.set(key, query);
    history.pushState({ key }, "", query.id === undefined ? "#" : `#${addressOf(query.id)}`);
  }
  search();
}

function useIndex(other) {
  index = other;
  byId("index").value = index.name;
  byId("probability-field").hidden = !index.calibrated;
}

// The query of the address: an item that a link or the browser's history names.
function queryOfAddress() {
  const parts = new URLSearchParams(location.hash.slice(1));
  return parts.has("id") ? { id: parts.get("id"), index: parts.get("index") } : null;
}

function addressOf(id) {
  const parts = new URLSearchParams({ id });
  if (indexes.length > 1) parts.set("index", index.name);
  return parts;
}

function showQuery() {
  const images = query?.images ?? [];
  for (const id of ["image-query", "add-images"]) byId(id).hidden = !images.length;
  byId("item-query").hidden = query?.id === undefined;
  byId("example-images").hidden = query === null;
  byId("drop").classList.toggle("small", query !== null);
  for (const id of ["images", "images-help"]) byId(id).hidden = images.length < 2;
  cropBox.set(query?.crop ?? null);
  turnCrop(Boolean(query?.crop));
  if (images.length === 1) byId("preview").src = images[0].url;
  else if (images.length) {
    showStage(false);
    byId("no-preview").hidden = true;
    byId("images").replaceChildren(...images.map((image) => chip(previewOf(image), image.file.name, () => {
      setImages(images.filter((other) => other !== image));
      byId("more").focus({ preventScroll: true });
    })));
  } else if (query) {
    byId("item-id").textContent = query.id;
    showThumbnail(byId("item-thumbnail"), index.name, query.id);
  }
}

function setImages(images, options = { keepsExamples: true }) {
  if (images.length) setQuery({ images, crop: null }, options);
}

const cropBox = new CropBox({
  stage: byId("stage"),
  box: byId("box"),
  fields: { x: byId("crop-x"), y: byId("crop-y"), width: byId("crop-width"), height: byId("crop-height") },
  changed: () => {
    query.crop = cropBox.value;
    turnCrop(true);
    search();
  },
});

function turnCrop(on) {
  cropBox.turn(on);
  byId("crop").setAttribute("aria-pressed", String(on));
  byId("crop-fields").hidden = !on;
  byId("whole").hidden = !cropBox.value;
}

function showStage(isShown) {
  byId("stage").hidden = !isShown;
  byId("crop").hidden = !isShown;
  if (!isShown) turnCrop(false);
}

// The search

// A form where a file is sent; else JSON, which holds every id, also one that is not valid Unicode.
function bodyOf() {
  const fields = query.images ? { image: query.images.map(({ file }) => file), crop: cropBox.text } : { id: query.id };
  for (const kind of ["positive", "negative"]) fields[kind] = examplesOf(kind).map(([id, { image }]) => image?.file ?? id);
  fields.where = byId("where").value.trim();
  fields.min_probability = Number(minProbability());
  const sent = Object.entries(fields).filter(([, value]) => (Array.isArray(value) ? value.length : value));
  const parts = sent.flatMap(([name, value]) => [value].flat().map((one) => [name, one]));
  if (!parts.some(([, value]) => value instanceof File)) return Object.fromEntries(sent);
  const form = new FormData();
  for (const [name, value] of parts) form.append(name, value);
  return form;
}

const minProbability = () => (index.calibrated ? byId("min-probability").value : "");

// The service refuses more hits than the index can have.
function topK() {
  const inQuery = [...examples.values()].filter(({ hit }) => hit).length + (query.id === undefined ? 0 : 1);
  const most = index.items - inQuery;
  return most < 1 ? "" : `?k=${Math.min(Number(byId("top-k").value), most)}`;
}

async function search({ isRepeated = false } = {}) {
  if (!query || !index) return;
  running?.abort();
  const controller = new AbortController();
  running = controller;
  showBusy(true);
  const slow = setTimeout(() => { byId("slow").hidden = false; }, SLOW_AFTER_MS);
  try {
    const path = `v1/indexes/${encodeURIComponent(index.name)}/search${topK()}`;
    const answer = await getJson(path, { method: "POST", body: bodyOf(), signal: controller.signal });
    if (running !== controller) return;
    showAnswer(answer);
  } catch (error) {
    if (running !== controller) return;
    if (error.parameter === "k" && !isRepeated) {
      // Items were removed meanwhile.
      await loadIndexes().catch(() => {});
      search({ isRepeated: true });
      return;
    }
    showSearchError(error);
  } finally {
    clearTimeout(slow);
    if (running === controller) {
      running = null;
      showBusy(false);
    }
  }
}

function showBusy(isBusy) {
  byId("hits").setAttribute("aria-busy", String(isBusy));
  byId("progress").hidden = !isBusy;
  if (!isBusy) {
    byId("slow").hidden = true;
    return;
  }
  hideMessages();
  byId("status").textContent = "Searching…";
  if (!hits.length) showPlaceholders(byId("hits"), 10);
}

function showAnswer(answer) {
  byId("hits-title").textContent = "Hits";
  if (!answer.hits.length) {
    clearHits();
    byId("status").textContent = "No match";
    showEmpty(...noMatch());
    showTop();
    return;
  }
  byId("status").textContent = `${count(answer.hits.length, "hit")} in ${Math.max(1, Math.round(answer.took_ms))} ms`;
  showHits(answer.hits, "Hits");
}

function noMatch() {
  if (!index.items) return ["The index is empty", "There is nothing to find yet."];
  const reasons = [];
  if (byId("where").value.trim()) reasons.push("fits the filter");
  if (minProbability()) reasons.push(`is a match with a probability of at least ${Math.round(100 * minProbability())} %`);
  if (!reasons.length) return ["No match", "There is no other item in the index."];
  return ["No match", `No item ${reasons.join(" and ")}. Change this to see more.`];
}

function showSearchError(error) {
  if (error.name === "AbortError") {
    clearHits();
    byId("status").textContent = "Stopped";
    return;
  }
  byId("status").textContent = "";
  if (error.parameter === "where") {
    byId("where-error").textContent = error.message.replace("`where`", "The filter");
    byId("where").setAttribute("aria-invalid", "true");
    byId("where-error").scrollIntoView({ block: "nearest" });
    if (!hits.length) clearHits(); // the placeholders
    return;
  }
  clearHits();
  showError(error, search);
  showTop();
}

// Messages

function hideMessages() {
  for (const id of ["error", "empty", "slow"]) byId(id).hidden = true;
  byId("where-error").textContent = "";
  byId("where").removeAttribute("aria-invalid");
}

function showEmpty(title, text) {
  byId("empty").hidden = false;
  byId("empty-title").textContent = title;
  byId("empty-text").textContent = text;
}

function showError(error, again) {
  if (!(error instanceof Problem)) throw error;
  const needsToken = error.status === 401 || error.status === 403;
  byId("error").hidden = false;
  byId("error-text").textContent = error.message;
  const button = byId("error-action");
  button.hidden = false;
  button.textContent = needsToken ? "Enter a token" : "Try again";
  button.onclick = needsToken ? () => openToken(access) : () => again();
}

// Hits

function clearHits() {
  hits = [];
  byId("hits").replaceChildren();
}

function showHits(next, title) {
  const list = byId("hits");
  const hadFocus = list.contains(document.activeElement);
  forgetThumbnails();
  hits = next;
  byId("hits-title").textContent = title;
  list.replaceChildren(...hits.map((hit, number) => hitCard(index.name, hit, number + 1, actions())));
  showMarks(list, kindOf);
  if (hadFocus) list.focus({ preventScroll: true });
  showTop();
}

// Scrolls back to the first hit or the message, if it is above the window.
function showTop() {
  const title = byId("hits-title");
  if (title.getBoundingClientRect().top < 0) title.scrollIntoView();
}

function actions() {
  return {
    search: (hit) => setQuery({ id: hit.id, index: index.name }),
    toggle: toggleExample,
    remove: canWrite() ? openRemove : null,
    kindOf,
  };
}

function toggleExample(hit, kind) {
  if (kindOf(hit.id) === kind) examples.delete(hit.id);
  else examples.set(hit.id, { hit, kind });
  showExamples();
}

function showExamples() {
  for (const kind of ["positive", "negative"]) {
    const chips = examplesOf(kind).map(([key, { hit, image }]) => {
      const name = `the ${kind} example ${image ? image.file.name : hit.label ?? hit.id}`;
      return chip(image ? previewOf(image) : thumbnail(index.name, hit.id), name, () => {
        examples.delete(key);
        showExamples();
        (examples.size ? byId("search-examples") : byId("hits")).focus({ preventScroll: true });
      });
    });
    byId(kind).replaceChildren(...chips);
    byId(kind).parentElement.hidden = !chips.length;
  }
  byId("examples").hidden = !examples.size;
  document.body.classList.toggle("has-examples", examples.size > 0);
  showMarks(byId("hits"), kindOf);
}

function previewOf({ url }) {
  const image = element("img", { src: url, alt: "", class: "thumbnail", draggable: "false" });
  image.addEventListener("error", () => image.classList.add("no-image"));
  return image;
}

// A small image that a click removes.
function chip(image, name, onclick) {
  return element("li", {}, element("button", { type: "button", "aria-label": `Remove ${name}`, title: "Remove", onclick }, image));
}

// Without a query, the first positive example is the query.
function searchAgain() {
  if (query) {
    search();
    return;
  }
  const [first] = examplesOf("positive");
  if (!first) {
    byId("status").textContent = "Choose an image or an item to search with.";
    return;
  }
  examples.delete(first[0]);
  setQuery({ id: first[0], index: index.name }, { keepsExamples: true });
}

// Dialogs

const openToken = tokenDialog((next) => {
  access = next;
  forgetThumbnails(true);
  clearHits();
  start();
});
const openAdd = addDialog({
  index: () => index.name,
  queryImage: () => (query?.images?.length === 1 ? query.images[0].file : null),
  added: async (item) => {
    await loadIndexes().catch(() => {});
    byId("status").textContent = `Added ${item.id}`;
    if (!query) await browse();
    byId("status").textContent = `Added ${item.id}`;
  },
});
const openRemove = removeDialog({
  index: () => index.name,
  removed: (item) => {
    const cards = [...byId("hits").children];
    const position = cards.findIndex((card) => card.dataset.id === item.id);
    cards[position]?.remove();
    const neighbour = cards[position + 1] ?? cards[position - 1];
    (neighbour?.querySelector("button") ?? byId("hits")).focus({ preventScroll: true });
    hits = hits.filter((hit) => hit.id !== item.id);
    examples.delete(item.id);
    showExamples();
    loadIndexes().catch(() => {});
    byId("status").textContent = `Removed ${item.id}`;
  },
});

byId("open-token").addEventListener("click", () => openToken(access));
byId("open-add").addEventListener("click", openAdd);
byId("open-about").addEventListener("click", async () => {
  if (index) await loadIndexes().catch(() => {});
  showAbout(index);
});
// As a link it would change the address, which holds the query.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("hits").focus();
});
for (const dialog of document.querySelectorAll("dialog")) {
  // A click beside a dialog closes it.
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}

// Inputs

function onFiles(input, use) {
  input.addEventListener("change", () => {
    use(imagesOf(input.files));
    input.value = ""; // so that the same file can be chosen again
  });
}
for (const id of ["file", "camera"]) onFiles(byId(id), (images) => setImages(images, {}));
onFiles(byId("more"), (images) => setImages([...query.images, ...images]));
for (const input of document.querySelectorAll("[data-kind]")) {
  onFiles(input, (images) => {
    for (const image of images) examples.set(image, { kind: input.dataset.kind, image });
    showExamples();
  });
}
for (const [type, isShown] of [["load", true], ["error", false]]) {
  byId("preview").addEventListener(type, () => {
    if (query?.images?.length !== 1) return;
    showStage(isShown);
    byId("no-preview").hidden = isShown;
  });
}
byId("crop").addEventListener("click", () => {
  const on = !cropBox.isOn;
  if (on && !cropBox.value) cropBox.set({ x: 10, y: 10, width: 80, height: 80 });
  turnCrop(on);
  if (on) byId("box").focus({ preventScroll: true });
});
byId("whole").addEventListener("click", () => {
  cropBox.set(null);
  query.crop = null;
  turnCrop(false);
  byId("crop").focus();
  search();
});
byId("query").addEventListener("submit", (event) => {
  event.preventDefault();
  searchAgain();
});
for (const id of ["top-k", "min-probability"]) byId(id).addEventListener("change", () => search());
byId("stop").addEventListener("click", () => running?.abort());
byId("search-examples").addEventListener("click", searchAgain);
byId("clear-examples").addEventListener("click", () => {
  examples.clear();
  showExamples();
  byId("hits").focus({ preventScroll: true });
});
byId("index").addEventListener("change", async () => {
  useIndex(indexes.find(({ name }) => name === byId("index").value));
  examples.clear();
  showExamples();
  clearHits();
  hideMessages();
  if (!query?.images) {
    query = null; // an item of another index
    showQuery();
    history.replaceState(null, "", "#");
    await browse();
  } else await search();
});

document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
  if (!files.length || document.querySelector("dialog[open]")) return;
  event.preventDefault();
  setImages(imagesOf(files), {});
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  if (document.querySelector("dialog[open]")) return;
  const { files } = event.dataTransfer;
  if (files.length) setImages(imagesOf(files), {});
  else byId("status").textContent = "Only files can be dropped. Save the image first.";
});
window.addEventListener("popstate", (event) => {
  const earlier = trail.get(event.state?.key) ?? queryOfAddress();
  if (earlier) setQuery(earlier, { isNew: false });
  else {
    query = null;
    examples.clear();
    showExamples();
    showQuery();
    hideMessages();
    browse();
  }
});

start();
