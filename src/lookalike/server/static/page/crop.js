// The crop box on the image of a query: drawn with mouse or finger, moved by keys, or set in number fields.
// A crop is `{x, y, width, height}` in % of the image's sides.

const SMALLEST = 2; // % of a side
const STEP = 2; // % per arrow key
const KEY_PAUSE_MS = 500; // after the last key, before the search

const within = (value, low, high) => Math.min(Math.max(value, low), high);

export class CropBox {
  // `fields` are the number inputs by name; `changed` is called when a crop is complete.
  constructor({ stage, box, fields, changed }) {
    this.stage = stage;
    this.box = box;
    this.fields = fields;
    this.changed = changed;
    this.value = null;
    this.isOn = false; // a finger draws only then, so that the page still scrolls
    stage.addEventListener("pointerdown", (event) => this.#start(event));
    box.addEventListener("keydown", (event) => this.#key(event));
    for (const field of Object.values(fields)) field.addEventListener("change", () => this.#readFields());
  }

  turn(on) {
    this.isOn = on;
    this.stage.classList.toggle("cropping", on);
    this.#show();
  }

  set(value) {
    this.value = value && tidy(value);
    this.#show();
  }

  // As the service reads it.
  get text() {
    if (!this.value) return null;
    const { x, y, width, height } = this.value;
    return [x, y, width, height].map((side) => `${round(side)}%`).join(",");
  }

  #show() {
    const value = this.value;
    this.box.hidden = !value;
    if (!value) return;
    for (const [property, name] of [["left", "x"], ["top", "y"], ["width", "width"], ["height", "height"]]) {
      this.box.style[property] = `${value[name]}%`;
      this.fields[name].value = round(value[name]);
    }
  }

  #point(event) {
    const area = this.stage.getBoundingClientRect();
    return {
      x: within((100 * (event.clientX - area.left)) / area.width, 0, 100),
      y: within((100 * (event.clientY - area.top)) / area.height, 0, 100),
    };
  }

  #start(event) {
    if (event.button !== 0 || (event.pointerType === "touch" && !this.isOn)) return;
    event.preventDefault();
    const start = this.#point(event);
    const before = this.value;
    const corner = event.target.dataset.corner;
    const isInside = event.target === this.box;
    // The corner opposite to the one that is dragged stays.
    const anchor = corner
      ? {
          x: corner.endsWith("w") ? before.x + before.width : before.x,
          y: corner.startsWith("n") ? before.y + before.height : before.y,
        }
      : start;
    const move = (next) => {
      const point = this.#point(next);
      this.set(isInside ? moved(before, point.x - start.x, point.y - start.y) : between(anchor, point));
    };
    const end = (last) => {
      this.stage.removeEventListener("pointermove", move);
      this.stage.removeEventListener("pointerup", end);
      this.stage.removeEventListener("pointercancel", end);
      const point = this.#point(last);
      const isClick = Math.abs(point.x - start.x) < 1 && Math.abs(point.y - start.y) < 1;
      if (isClick || last.type === "pointercancel") this.set(before);
      else this.changed();
      if (this.value) this.box.focus({ preventScroll: true });
    };
    this.stage.setPointerCapture(event.pointerId);
    this.stage.addEventListener("pointermove", move);
    this.stage.addEventListener("pointerup", end);
    this.stage.addEventListener("pointercancel", end);
  }

  #key(event) {
    const [across, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    if (!this.value || (!across && !down)) return;
    event.preventDefault();
    if (event.shiftKey) {
      const { x, y, width, height } = this.value;
      this.set({ x, y, width: width + STEP * across, height: height + STEP * down });
    } else this.set(moved(this.value, STEP * across, STEP * down));
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.value && this.changed(), KEY_PAUSE_MS);
  }

  #readFields() {
    const value = {};
    for (const [name, field] of Object.entries(this.fields)) {
      if (!Number.isFinite(field.valueAsNumber)) return;
      value[name] = field.valueAsNumber;
    }
    this.set(value);
    this.changed();
  }
}

function between(one, other) {
  return {
    x: Math.min(one.x, other.x),
    y: Math.min(one.y, other.y),
    width: Math.abs(one.x - other.x),
    height: Math.abs(one.y - other.y),
  };
}

// Moves a crop, which keeps its size, as far as the image goes.
function moved({ x, y, width, height }, across, down) {
  return { x: within(x + across, 0, 100 - width), y: within(y + down, 0, 100 - height), width, height };
}

// Ends a crop at the edges of the image.
function tidy({ x, y, width, height }) {
  const left = within(x, 0, 100 - SMALLEST);
  const top = within(y, 0, 100 - SMALLEST);
  return {
    x: left,
    y: top,
    width: within(width, SMALLEST, 100 - left),
    height: within(height, SMALLEST, 100 - top),
  };
}

function round(side) {
  return Math.round(10 * side) / 10;
}
