// Talks to the service: adds the token, and turns every failure into a `Problem` with a sentence.

const TOKEN_KEY = "lookalike-token";

export class Problem extends Error {
  constructor(detail, status = 0, parameter = null) {
    super(sentence(detail));
    this.status = status; // 0: the service did not answer
    this.parameter = parameter;
  }
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

export function token() {
  return sessionStorage.getItem(TOKEN_KEY);
}

export function storeToken(value) {
  if (value) sessionStorage.setItem(TOKEN_KEY, value);
  else sessionStorage.removeItem(TOKEN_KEY);
}

// Paths are relative, so that the page also works below a prefix of a reverse proxy.
export async function request(path, { method = "GET", body, signal, credential = token() } = {}) {
  const headers = {};
  if (credential) headers.Authorization = `Bearer ${credential}`;
  if (body !== undefined && !(body instanceof FormData)) {
    headers["Content-Type"] = "application/json";
    body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, { method, headers, body, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("the service does not answer. Check that it is running and that this machine is connected.");
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

async function problemOf(response) {
  let detail = `the service answered with status ${response.status}.`;
  let parameter = null;
  try {
    const body = await response.json();
    if (typeof body.detail === "string") detail = body.detail;
    if (typeof body.parameter === "string") parameter = body.parameter;
  } catch {
    // A proxy may answer with a page of its own.
  }
  return new Problem(detail, response.status, parameter);
}

export async function getJson(path, options) {
  return (await request(path, options)).json();
}

// The address of an item, or null for an id that no address can hold: a file name that is not valid Unicode.
export function itemPath(index, id) {
  try {
    return `v1/indexes/${encodeURIComponent(index)}/items/${id.split("/").map(encodeURIComponent).join("/")}`;
  } catch {
    return null;
  }
}

const KEPT_THUMBNAILS = 500;
const thumbnails = new Map(); // address: promise of a blob URL

// An <img> cannot send a token, so thumbnails are fetched and shown from memory.
export function thumbnailUrl(index, id) {
  const path = itemPath(index, id);
  if (path === null) return Promise.reject(new Problem("the item has no address."));
  const known = thumbnails.get(path);
  if (known) return known;
  const promise = request(`${path}/thumbnail`)
    .then((response) => response.blob())
    .then((blob) => URL.createObjectURL(blob));
  thumbnails.set(path, promise);
  promise.catch(() => thumbnails.delete(path));
  return promise;
}

export function forgetThumbnails(all = false) {
  for (const [path, promise] of thumbnails) {
    if (!all && thumbnails.size <= KEPT_THUMBNAILS) return;
    thumbnails.delete(path);
    promise.then(URL.revokeObjectURL, () => {});
  }
}
