// Shows hits as cards.

import { thumbnailUrl } from "./api.js";
import { element } from "./dom.js";

const SHOWN_METADATA = 3; // names per card; the rest is one click away

export function thumbnail(index, id) {
  const image = element("img", { alt: "", class: "thumbnail", draggable: "false" });
  showThumbnail(image, index, id);
  return image;
}

const latest = new WeakMap(); // <img>: the promise of what it shall show

export function showThumbnail(image, index, id) {
  image.classList.remove("no-image");
  image.removeAttribute("src");
  const promise = thumbnailUrl(index, id);
  latest.set(image, promise);
  promise.then(
    (url) => { if (latest.get(image) === promise) image.src = url; },
    () => { if (latest.get(image) === promise) image.classList.add("no-image"); },
  );
}

export function percent(probability) {
  // Rounding never says that a probability is certain.
  if (probability > 0.99 && probability < 1) return "> 99 %";
  if (probability < 0.01 && probability > 0) return "< 1 %";
  return `${Math.round(100 * probability)} %`;
}

function scoreOf(hit) {
  if (typeof hit.score !== "number") return null; // an item that is shown without a search
  const cosine = hit.score.toFixed(3);
  if (typeof hit.probability !== "number") return element("p", { class: "score" }, element("b", {}, cosine), "cosine");
  return element(
    "p",
    { class: "score" },
    element("b", { title: "Probability that it has the label of the query" }, percent(hit.probability)),
    `cosine ${cosine}`,
  );
}

function metadataOf(metadata) {
  const pairs = Object.entries(metadata ?? {}).filter(([, value]) => value !== null);
  if (!pairs.length) return null;
  const list = (some) =>
    element("dl", {}, ...some.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, String(value)))));
  const rest = pairs.slice(SHOWN_METADATA);
  return element(
    "div",
    { class: "metadata" },
    list(pairs.slice(0, SHOWN_METADATA)),
    rest.length ? element("details", {}, element("summary", {}, `${rest.length} more`), list(rest)) : null,
  );
}

// `actions` are functions of a hit: search, toggle(hit, kind), remove (null where it is not allowed),
// and kindOf(id): "positive", "negative" or null.
export function hitCard(index, hit, rank, actions) {
  const name = hit.label ?? hit.id;
  const mark = (kind, text, sign) =>
    element(
      "button",
      {
        type: "button",
        class: `mark ${kind}`,
        "data-mark": kind,
        "aria-pressed": String(actions.kindOf(hit.id) === kind),
        "aria-label": `${text}: hit ${rank}, ${name}`,
        title: text,
        onclick: () => actions.toggle(hit, kind),
      },
      sign,
    );
  return element(
    "li",
    { class: "hit", "data-id": hit.id },
    element(
      "button",
      {
        type: "button",
        class: "open",
        "aria-label": `Search with hit ${rank}, ${name}`,
        title: "Search with this item",
        onclick: () => actions.search(hit),
      },
      thumbnail(index, hit.id),
    ),
    element(
      "div",
      { class: "facts" },
      scoreOf(hit),
      hit.label === null || hit.label === undefined ? null : element("p", { class: "label" }, hit.label),
      element("p", { class: "id", title: hit.id }, hit.id),
      metadataOf(hit.metadata),
    ),
    element(
      "div",
      { class: "marks" },
      mark("positive", "Positive example", "+"),
      mark("negative", "Negative example", "−"),
      actions.remove
        ? element(
            "button",
            { type: "button", class: "remove", "aria-label": `Remove hit ${rank}, ${name}`, onclick: () => actions.remove(hit) },
            "Remove",
          )
        : null,
    ),
  );
}

export function showMarks(list, kindOf) {
  for (const card of list.children) {
    const kind = kindOf(card.dataset.id);
    card.classList.toggle("is-positive", kind === "positive");
    card.classList.toggle("is-negative", kind === "negative");
    for (const button of card.querySelectorAll("[data-mark]")) {
      button.setAttribute("aria-pressed", String(button.dataset.mark === kind));
    }
  }
}

// Grey cards while the first hits are on their way.
export function showPlaceholders(list, count) {
  list.replaceChildren(...Array.from({ length: count }, () => element("li", { class: "hit placeholder", "aria-hidden": "true" })));
}
