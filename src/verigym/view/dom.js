// Elements and numbers. Text is only ever set as text: nothing that a run says is read as markup.

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

function number(value, digits = 3) {
  if (!isNumber(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(Math.max(0, digits - 1));
  return value.toLocaleString("en", { maximumSignificantDigits: Math.max(digits, Math.ceil(Math.log10(size + 1))) });
}

const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

const OUTCOMES = ["correct", "wrong", "unparseable", "timeout", "error", "infra_error"];

function badge(outcome) {
  const known = OUTCOMES.includes(outcome) ? outcome : "other";
  return el("span", { class: `badge ${known}` }, outcome.replace("_", " "));
}

function field(label, control) {
  return el("label", { class: "field" }, el("span", {}, label), control);
}

// The address names what is shown, so that it can be sent to somebody: #view=episodes&outcome=wrong, #episode=12.3
const Route = {
  get: () => new URLSearchParams(location.hash.slice(1)),
  link: (values) => {
    const kept = Object.entries(values).filter(([, value]) => value !== "" && value !== null && value !== undefined);
    return `#${new URLSearchParams(kept)}`;
  },
  replace: (values) => history.replaceState(null, "", Route.link(values)),
};
