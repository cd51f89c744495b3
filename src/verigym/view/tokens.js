// An episode token by token: whose it is, how likely it was, and what the learner made of it.

const MEASURES = [
  ["mask", "Mask"],
  ["logprob", "Log-prob., sampler"],
  ["learner", "Log-prob., learner"],
  ["gap", "Learner − sampler"],
  ["advantage", "Advantage"],
  ["value", "Value"],
  ["version", "Version"],
];
const TOKENS_PAGE = 2000;
const PROMPT_SHOWN = 60; // of a longer prompt its last tokens

async function tokensTab(row, episode) {
  const tokens = tokenRows(episode);
  const present = MEASURES.filter(([name]) => tokens.some((token) => token.mask && isNumber(token[name])));
  const first = tokens.findIndex((token) => token.mask);
  const route = Route.get();
  const state = {
    color: present.some(([name]) => name === route.get("color"))
      ? route.get("color")
      : present.some(([name]) => name === "advantage")
        ? "advantage"
        : "logprob",
    table: route.get("as") === "table",
    page: 1,
    skipped: first > 2 * PROMPT_SHOWN ? first - PROMPT_SHOWN : 0,
  };
  const area = el("div", {});
  const legend = el("div", { class: "scale" });
  const draw = () => {
    const paint = painter(state.color, tokens);
    legend.replaceChildren(...paint.legend);
    const shown = tokens.slice(state.skipped);
    const part = shown.slice((state.page - 1) * TOKENS_PAGE, state.page * TOKENS_PAGE);
    const unfold = el(
      "button",
      {
        type: "button",
        class: "button unfold",
        onclick: () => {
          state.skipped = 0;
          draw();
        },
      },
      `Show the ${plural(state.skipped, "token")} before`,
    );
    area.replaceChildren(
      state.skipped ? unfold : "",
      state.table ? tokenTable(part, present, paint) : tokenFlow(part, present, paint),
      tokenPager(shown.length, state, draw),
    );
  };
  const change = (values) => {
    Object.assign(state, values);
    Route.replace({ episode: row.id, tab: "tokens", color: state.color, as: state.table ? "table" : "" });
    draw();
  };
  const color = el(
    "select",
    { id: "color", onchange: () => change({ color: color.value }) },
    present.map(([name, title]) => el("option", { value: name, selected: name === state.color }, title)),
  );
  const as = el(
    "select",
    { id: "as", onchange: () => change({ table: as.value === "table" }) },
    el("option", { value: "text" }, "Text"),
    el("option", { value: "table", selected: state.table }, "Table"),
  );
  draw();
  return el(
    "section",
    { class: "tokens", "aria-label": "Tokens" },
    el("div", { class: "tools" }, field("Colour", color), field("Show as", as), legend),
    present.some(([name]) => name === "learner") ? null : el("p", { class: "hint" }, missing(episode)),
    area,
  );
}

const missing = (episode) =>
  episode.learner.advantages
    ? "The learner needed no forward on this episode (its advantage is 0), so it has no log-probabilities of its own."
    : "This episode was not learned from, or its run kept no figures of the learner: there are those of the sampler.";

function tokenRows(episode) {
  const { logprobs, advantages, values } = episode.learner;
  const turns = new Map(episode.turns.map(([start], k) => [start, k + 1]));
  let own = 0;
  return episode.token_ids.map((id, k) => {
    const token = { place: k, id, text: Data.text(id), mask: episode.mask[k] ? 1 : 0, turn: turns.get(k) };
    if (!token.mask) return token;
    const at = (column) => (column ? column[own] : undefined);
    Object.assign(token, {
      logprob: episode.logprobs[k],
      learner: at(logprobs),
      advantage: at(advantages),
      value: at(values),
      version: episode.versions[k],
    });
    if (isNumber(token.learner) && isNumber(token.logprob)) token.gap = token.learner - token.logprob;
    own++;
    return token;
  });
}

// Colours: from faint to strong for what has one direction, two hues for what has two.
function painter(name, tokens) {
  const values = tokens
    .filter((token) => token.mask)
    .map((token) => token[name])
    .filter(isNumber);
  const [low, high] = bounds(values);
  const strength = (share) => Math.min(6, Math.max(0, Math.round(share * 6)));
  const signed = ["gap", "advantage", "value"].includes(name);
  const size = Math.max(Math.abs(low), Math.abs(high)) || 1;
  const tint =
    {
      mask: () => "up3",
      logprob: (value) => `down${strength(Math.min(1, -value / 5))}`,
      learner: (value) => `down${strength(Math.min(1, -value / 5))}`,
      version: (value) => `up${high === low ? 3 : strength((value - low) / (high - low))}`,
    }[name] || ((value) => `${value < 0 ? "down" : "up"}${strength(Math.abs(value) / size)}`);
  const of = (token) => (token.mask && isNumber(token[name]) ? tint(token[name]) : "");
  const sample = (kind, text) => el("span", {}, el("i", { class: `swatch ${kind}`, "aria-hidden": "true" }), text);
  const ends =
    name === "mask"
      ? [sample("up3", "sampled by the policy")]
      : name === "logprob" || name === "learner"
        ? [sample("down0", "likely"), sample("down6", "unlikely, −5 or less")]
        : signed
          ? [
              ...(low < 0 ? [sample("down6", number(-size))] : []),
              ...(high > 0 ? [sample("up6", number(size))] : []),
              ...(low === 0 && high === 0 ? [sample("up0", "0")] : []),
            ]
          : [sample(tint(low), number(low)), ...(high > low ? [sample(tint(high), number(high))] : [])];
  return { of, legend: [...ends, sample("given", "given, not sampled")] };
}

function tokenFlow(part, present, paint) {
  const details = el("dl", { class: "details", "aria-live": "polite" });
  const marks = part.map((token) =>
    el(
      "span",
      { class: `token ${token.mask ? paint.of(token) : "given"}`, id: `token-${token.place}` },
      visible(token.text),
    ),
  );
  const flow = el("div", {
    class: "flow",
    tabindex: 0,
    role: "listbox",
    "aria-label": "Tokens; arrow keys move between them",
  });
  part.forEach((token, k) => {
    if (token.turn) flow.append(el("span", { class: "turn-mark" }, `turn ${token.turn}`));
    flow.append(marks[k]);
    marks[k].setAttribute("role", "option");
    if (token.text.endsWith("\n")) flow.append(el("br"));
  });
  let chosen = -1;
  const choose = (k) => {
    if (k < 0 || k >= part.length) return;
    if (chosen >= 0) marks[chosen].removeAttribute("aria-selected");
    chosen = k;
    marks[k].setAttribute("aria-selected", "true");
    flow.setAttribute("aria-activedescendant", marks[k].id);
    details.replaceChildren(...tokenDetails(part[k], present));
  };
  const under = (event) => marks.indexOf(event.target.closest(".token"));
  flow.addEventListener("pointerover", (event) => choose(under(event)));
  flow.addEventListener("click", (event) => choose(under(event)));
  flow.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10, Home: -Infinity, End: Infinity }[event.key];
    if (!by) return;
    event.preventDefault();
    choose(Math.min(part.length - 1, Math.max(0, chosen + by)));
    marks[chosen].scrollIntoView({ block: "nearest" });
  });
  choose(
    Math.max(
      0,
      part.findIndex((token) => token.mask),
    ),
  );
  return el("div", { class: "columns" }, flow, el("aside", { "aria-label": "The chosen token" }, details));
}

function tokenDetails(token, present) {
  const rows = [
    ["token", el("code", {}, visible(token.text))],
    ["id", number(token.id)],
    ["position", number(token.place)],
  ];
  for (const [name, title] of present) {
    if (name === "mask") rows.push(["mask", token.mask ? "1 · sampled" : "0 · given"]);
    else rows.push([title.toLowerCase(), token.mask ? number(token[name], 4) : "–"]);
    if (name === "logprob" && token.mask && isNumber(token.logprob))
      rows.push(["prob., sampler", number(Math.exp(token.logprob), 3)]);
  }
  return rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
}

function tokenTable(part, present, paint) {
  const head = ["Position", "Token", "Id", ...present.map(([, title]) => title)];
  const rows = part.map((token) =>
    el(
      "tr",
      { class: token.mask ? null : "given" },
      el("td", { class: "number soft" }, number(token.place)),
      el("td", {}, el("code", { class: `token ${paint.of(token)}` }, visible(token.text))),
      el("td", { class: "number soft" }, number(token.id)),
      present.map(([name]) =>
        el("td", { class: "number" }, name === "mask" ? String(token.mask) : token.mask ? number(token[name], 4) : ""),
      ),
    ),
  );
  return el(
    "div",
    { class: "scroll" },
    el(
      "table",
      { class: "dense" },
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          head.map((title) => el("th", { scope: "col", class: title === "Token" ? null : "number" }, title)),
        ),
      ),
      el("tbody", {}, rows),
    ),
  );
}

function tokenPager(count, state, draw) {
  if (count <= TOKENS_PAGE) return "";
  const pages = Math.ceil(count / TOKENS_PAGE);
  const go = (to, text) =>
    el(
      "button",
      {
        type: "button",
        class: "button",
        disabled: to < 1 || to > pages,
        onclick: () => {
          state.page = to;
          draw();
        },
      },
      text,
    );
  const [first, last] = [(state.page - 1) * TOKENS_PAGE + 1, Math.min(count, state.page * TOKENS_PAGE)];
  return el(
    "nav",
    { class: "pager", "aria-label": "Pages of tokens" },
    go(state.page - 1, "Previous"),
    el("span", {}, `tokens ${number(first)}–${number(last)} of ${number(count)}`),
    go(state.page + 1, "Next"),
  );
}

const visible = (text) => (text === "" ? "∅" : text.replaceAll("\n", "↵").replaceAll("\t", "⇥"));
