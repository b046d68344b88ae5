// The dialogs: the token, adding an item, removing one.

import { Problem, getJson, itemPath, request, storeToken, token } from "./api.js";
import { byId } from "./dom.js";

// Shows a problem below a form; an interrupted request is not one.
function showIn(node, error) {
  if (!(error instanceof Problem)) throw error;
  node.textContent = error.message;
}

// `changed(access)` is called after another token is used, or none.
export function tokenDialog(changed) {
  const dialog = byId("token");
  const value = byId("token-value");
  const error = byId("token-error");

  async function use(credential) {
    error.textContent = "";
    value.removeAttribute("aria-invalid");
    try {
      const access = await getJson("v1/access", { credential });
      storeToken(credential);
      value.value = "";
      dialog.close();
      changed(access);
    } catch (problem) {
      value.setAttribute("aria-invalid", "true");
      showIn(error, problem);
    }
  }

  byId("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (value.value.trim()) use(value.value.trim());
    else error.textContent = "Paste a token first.";
  });
  byId("forget").addEventListener("click", () => {
    storeToken(null);
    dialog.close();
    changed(null);
  });
  const open = (access) => {
    error.textContent = "";
    byId("forget").hidden = !token();
    byId("token-state").textContent = stateOf(access);
    dialog.showModal();
    value.focus();
  };
  return open;
}

function stateOf(access) {
  if (!access) return "This service needs a token.";
  if (access.scope === "write") return "Your token may search, add and remove items.";
  if (token()) return "Your token may search, but not change the index.";
  return "You can search without a token. A write token lets you add and remove items.";
}

// `queryImage()` is the image of the search or null; `added(item)` is called with the new item.
export function addDialog({ index, queryImage, added }) {
  const dialog = byId("add");
  const error = byId("add-error");
  const submit = byId("add-submit");
  const useQuery = byId("add-query");

  useQuery.addEventListener("change", () => { byId("add-image").disabled = useQuery.checked; });
  byId("add-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    error.textContent = "";
    const form = new FormData();
    const image = useQuery.checked ? queryImage() : byId("add-image").files[0];
    if (!image) {
      error.textContent = "Choose an image first.";
      return;
    }
    form.append("image", image);
    for (const name of ["id", "label"]) {
      const text = byId(`add-${name}`).value.trim();
      if (text) form.append(name, text);
    }
    await run(submit, error, async () => {
      const metadata = parseMetadata(byId("add-metadata").value);
      if (metadata) form.append("metadata", JSON.stringify(metadata));
      const path = `v1/indexes/${encodeURIComponent(index())}/items`;
      const item = await getJson(path, { method: "POST", body: form });
      dialog.close();
      added(item);
    });
  });
  return () => {
    byId("add-form").reset();
    byId("add-image").disabled = false;
    byId("add-query-field").hidden = !queryImage();
    error.textContent = "";
    dialog.showModal();
  };
}

// Disables the button during the work, and shows why it failed.
async function run(button, error, work) {
  button.disabled = true;
  try {
    await work();
  } catch (problem) {
    showIn(error, problem);
  } finally {
    button.disabled = false;
  }
}

export function parseMetadata(text) {
  const lines = text.split("\n").filter((line) => line.trim());
  if (!lines.length) return null;
  const pairs = lines.map((line) => {
    const at = line.indexOf("=");
    if (at < 1 || !line.slice(0, at).trim()) throw new Problem(`write "${line.trim()}" as name = value.`);
    return [line.slice(0, at).trim(), valueOf(line.slice(at + 1).trim())];
  });
  return Object.fromEntries(pairs);
}

function valueOf(text) {
  if (text === "true" || text === "false") return text === "true";
  // Codes such as 007 stay text.
  return /^-?(0|[1-9]\d{0,14})(\.\d+)?$/.test(text) ? Number(text) : text;
}

// `removed(item)` is called with the item that is gone.
export function removeDialog({ index, removed }) {
  const dialog = byId("remove");
  const confirm = byId("remove-confirm");
  const error = byId("remove-error");
  let item = null;

  byId("remove-cancel").addEventListener("click", () => dialog.close());
  confirm.addEventListener("click", async () => {
    error.textContent = "";
    await run(confirm, error, async () => {
      const path = itemPath(index(), item.id);
      if (path === null) throw new Problem("its id is not valid Unicode; remove it with 'lookalike remove'.");
      await request(path, { method: "DELETE" });
      dialog.close();
      removed(item);
    });
  });
  return (next) => {
    item = next;
    byId("remove-id").textContent = item.id;
    error.textContent = "";
    dialog.showModal();
    byId("remove-cancel").focus();
  };
}
