// The side panel: the facts of the index, and the card of its model.

import { Problem, getJson } from "./api.js";
import { byId, element } from "./dom.js";

const number = (value) => value.toLocaleString("en");

export async function showAbout(index) {
  const content = byId("about-content");
  const routes = element("p", {}, element("a", { href: "docs" }, "The routes of the service"));
  byId("about").showModal();
  if (!index) {
    content.replaceChildren(element("p", {}, "There is nothing to show: the service needs a token, or does not answer."), routes);
    return;
  }
  content.replaceChildren(
    element("h3", {}, "Index"),
    facts([["Name", index.name], ["Items", number(index.items)]]),
    element("h3", {}, "Model"),
    element("p", {}, "Loading…"),
  );
  try {
    const card = await getJson(`v1/indexes/${encodeURIComponent(index.name)}/model`);
    content.lastChild.replaceWith(...cardOf(card), routes);
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    content.lastChild.replaceWith(element("p", { class: "field-error" }, error.message), routes);
  }
}

function facts(pairs) {
  return element(
    "dl",
    { class: "facts-list" },
    ...pairs
      .filter(([, value]) => value !== null && value !== undefined)
      .map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))),
  );
}

function cardOf(card) {
  const trained = card.training_images === null
    ? null
    : `${number(card.training_images)} images of ${number(card.classes)} classes`;
  const parts = [
    facts([
      ["Name", card.name],
      ["State", card.state],
      ["Combination", card.combination],
      ["Input", card.members.map(({ width, height }) => `${width} × ${height} pixels`).join(", ")],
      ["Dimensions", number(card.dimensions)],
      ["Trained on", trained],
      ["Probabilities", card.calibrated ? "yes" : "no: the model has no calibration"],
      ["Runtime", card.runtime === "auto" ? null : card.runtime], // auto names none
      ["Precision", card.precision],
    ]),
  ];
  for (const [split, measures] of Object.entries(card.measures)) {
    if (Object.keys(measures).length) parts.push(element("h3", {}, `Measured on ${split}`), tableOf(measures));
  }
  if (card.reason) parts.push(element("h3", {}, "Why this model"), element("p", {}, card.reason));
  return parts;
}

function tableOf(measures) {
  const row = (cell, ...texts) => element("tr", {}, ...texts.map((text) => element(cell, cell === "th" ? { scope: "col" } : {}, text)));
  return element(
    "table",
    {},
    element("thead", {}, row("th", "Measure", "Mean", "95 % interval")),
    element(
      "tbody",
      {},
      ...Object.entries(measures).map(([name, { mean, low, high }]) =>
        row("td", name, mean.toFixed(3), `${low.toFixed(3)} to ${high.toFixed(3)}`)),
    ),
  );
}
