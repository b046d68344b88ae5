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
    if (!Object.keys(measures).length) continue;
    const rows = Object.entries(measures).map(([name, estimate]) => [name, ...textsOf(estimate)]);
    parts.push(element("h3", {}, `Measured on ${split}`), tableOf(["Measure", "Mean", "95 % interval"], rows));
  }
  if (card.leaderboard) parts.push(...leaderboardOf(card.leaderboard));
  if (card.reason) parts.push(element("h3", {}, "Why this model"), element("p", {}, card.reason));
  return parts;
}

const textsOf = ({ mean, low, high }) => [mean.toFixed(3), `${low.toFixed(3)} to ${high.toFixed(3)}`];

function leaderboardOf({ measure, measured_on, candidates }) {
  const rows = candidates.map(({ name, type, accuracy, ms, winner }) => [
    withNote(winner ? element("b", {}, `${name} (winner)`) : name, type),
    withNote(...textsOf(accuracy)),
    ms === null ? "–" : ms.toFixed(1),
  ]);
  const split = measured_on === "test" ? "query and gallery" : measured_on;
  return [
    element("h3", {}, `Leaderboard, measured on ${split}`),
    tableOf(["Model", withNote(measure, "95 % interval"), withNote("ms", "per image")], rows),
  ];
}

const withNote = (content, note) => element("span", {}, content, element("small", {}, note));

function tableOf(header, rows) {
  return element(
    "table",
    {},
    element("thead", {}, element("tr", {}, ...header.map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...rows.map((cells) => element("tr", {}, ...cells.map((cell) => element("td", {}, cell))))),
  );
}
