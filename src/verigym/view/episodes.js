// The list of episodes: filters, order, pages.

const PAGE = 50;
const FILTERS = ["text", "task", "env", "outcome", "truncation", "from", "to", "min", "max", "sort", "page"];
const COLUMNS = [
  ["step", "Step"],
  ["env", "Environment"],
  ["task", "Task"],
  ["group", "Group"],
  ["outcome", "Outcome"],
  ["reward", "Reward"],
  ["turns", "Turns"],
  ["tokens", "Tokens"],
  ["truncation", "Truncated"],
];
const NUMERIC = new Set(["step", "group", "reward", "turns", "tokens"]);

// What was listed last: an episode's neighbours are those of the list that it was opened from.
const Listing = { rows: null, address: "#view=episodes", searching: 0, refresh: null };

function episodesView(route) {
  if (!Data.run.count) return [el("p", { class: "empty" }, "No episodes yet: they are written as each step ends.")];
  const state = Object.fromEntries(FILTERS.map((name) => [name, route.get(name) || ""]));
  const list = el("div", { class: "list" });
  const update = async (changes = {}) => {
    Object.assign(state, { page: "" }, changes);
    Route.replace({ view: "episodes", ...state });
    Listing.address = location.hash;
    await showList(list, state, update);
  };
  Listing.refresh = () => update({ page: state.page });
  Listing.refresh();
  return [filterForm(state, update), list];
}

function filterForm(state, update) {
  const { names, index } = Data.run;
  const [first, last] = bounds(index.step);
  const input = (name, type, extra = {}) => {
    const node = el("input", { type, name, value: state[name], ...extra });
    node.addEventListener(
      "input",
      later(() => update({ [name]: node.value.trim() })),
    );
    return node;
  };
  const select = (name, any, options) => {
    const node = el(
      "select",
      { name },
      el("option", { value: "" }, any),
      options.map((option) => el("option", { value: option, selected: option === state[name] }, option)),
    );
    node.addEventListener("change", () => update({ [name]: node.value }));
    return node;
  };
  const cut = names.truncation.filter(Boolean);
  const form = el(
    "form",
    { class: "filters", role: "search", "aria-label": "Filter episodes" },
    field("Text", input("text", "search", { placeholder: "in messages" })),
    field("Task", input("task", "search", { placeholder: "part of its name" })),
    names.env.length > 1 ? field("Environment", select("env", "any", names.env)) : null,
    range(
      "Step",
      input("from", "number", { placeholder: first, "aria-label": "from step" }),
      input("to", "number", { placeholder: last, "aria-label": "to step" }),
    ),
    range(
      "Reward",
      input("min", "number", { step: "any", placeholder: "min", "aria-label": "least reward" }),
      input("max", "number", { step: "any", placeholder: "max", "aria-label": "highest reward" }),
    ),
    cut.length ? field("Truncated", select("truncation", "any", ["no", ...cut])) : null,
    outcomeChips(state, update),
  );
  form.addEventListener("submit", (event) => event.preventDefault());
  return form;
}

const range = (name, from, to) =>
  el(
    "div",
    { class: "field", role: "group", "aria-label": name },
    el("span", {}, name),
    el("span", { class: "range" }, from, "–", to),
  );

function outcomeChips(state, update) {
  const { names, index } = Data.run;
  const counts = names.outcome.map(() => 0);
  index.outcome.forEach((k) => counts[k]++);
  const chosen = () => new Set(state.outcome.split(",").filter(Boolean));
  const order = names.outcome
    .map((name, k) => k)
    .sort((a, b) => OUTCOMES.indexOf(names.outcome[a]) - OUTCOMES.indexOf(names.outcome[b]));
  const chips = order.map((k) => {
    const name = names.outcome[k];
    const chip = el(
      "button",
      { type: "button", class: "chip", "data-outcome": name, "aria-pressed": String(chosen().has(name)) },
      badge(name),
      ` ${counts[k].toLocaleString("en")}`,
    );
    chip.addEventListener("click", () => {
      const now = chosen();
      if (!now.delete(name)) now.add(name);
      chip.setAttribute("aria-pressed", String(now.has(name)));
      update({ outcome: [...now].join(",") });
    });
    return chip;
  });
  return el(
    "div",
    { class: "field chips", role: "group", "aria-label": "Outcome" },
    el("span", {}, "Outcome"),
    el("span", { class: "range" }, chips),
  );
}

async function showList(list, state, update) {
  const ticket = ++Listing.searching;
  let rows = sorted(filtered(state), state.sort);
  if (state.text) {
    rows = await searched(rows, state.text, ticket, (done, all) => {
      list.replaceChildren(
        el(
          "p",
          { class: "count", role: "status" },
          `Searching the text of ${plural(all, "episode")}: ${Math.floor((100 * done) / all)} %`,
        ),
      );
    });
    if (rows === null) return; // another search has begun
  }
  Listing.rows = rows;
  const pages = Math.max(1, Math.ceil(rows.length / PAGE));
  const page = Math.min(pages, Math.max(1, Number(state.page) || 1));
  const part = rows.slice((page - 1) * PAGE, page * PAGE);
  const active = FILTERS.some((name) => name !== "sort" && name !== "page" && state[name]);
  const clear = el("a", { href: "#view=episodes", class: "quiet" }, "Clear filters");
  const count =
    rows.length === Data.run.count
      ? plural(rows.length, "episode")
      : `${number(rows.length)} of ${plural(Data.run.count, "episode")}`;
  list.replaceChildren(
    el("div", { class: "count", role: "status" }, el("span", { id: "count" }, count), active ? clear : null),
    part.length ? table(part, state, update) : el("p", { class: "empty" }, "No episode matches these filters."),
    pages > 1 ? pager(page, pages, rows.length, update) : "",
  );
}

function filtered(state) {
  const { index, names, count } = Data.run;
  const limit = (text, otherwise) => (text === "" || Number.isNaN(Number(text)) ? otherwise : Number(text));
  const [from, to] = [limit(state.from, -Infinity), limit(state.to, Infinity)];
  const [min, max] = [limit(state.min, -Infinity), limit(state.max, Infinity)];
  const judged = state.min !== "" || state.max !== "";
  const outcomes = state.outcome ? new Set(state.outcome.split(",")) : null;
  const task = state.task.toLowerCase();
  const fits = (i) =>
    index.step[i] >= from &&
    index.step[i] <= to &&
    (!judged || (index.reward[i] !== null && index.reward[i] >= min && index.reward[i] <= max)) &&
    (!outcomes || outcomes.has(names.outcome[index.outcome[i]])) &&
    (!state.env || names.env[index.env[i]] === state.env) &&
    (!state.truncation || (names.truncation[index.truncation[i]] || "no") === state.truncation) &&
    (!task || names.task[index.task[i]].toLowerCase().includes(task));
  return Array.from({ length: count }, (_, i) => i).filter(fits);
}

function sorted(rows, sort) {
  if (!sort) return rows;
  const [name, sign] = [sort.replace(/^-/, ""), sort.startsWith("-") ? -1 : 1];
  const column = Data.run.index[name];
  if (!column) return rows;
  const texts = Data.run.names[name];
  const key = texts ? (i) => texts[column[i]] : (i) => column[i];
  const order = (a, b) => (a === b ? 0 : a === null ? 1 : b === null ? -1 : a < b ? -sign : sign);
  return rows.sort((i, k) => order(key(i), key(k)) || i - k);
}

// Chunk by chunk, so that a page of ten thousand episodes stays responsive; null if another search took over.
async function searched(rows, text, ticket, tell) {
  const wanted = text.toLowerCase();
  const found = new Set();
  const byChunk = Map.groupBy ? Map.groupBy(rows, (i) => Data.row(i).chunk) : grouped(rows, (i) => Data.row(i).chunk);
  let done = 0;
  for (const [, members] of byChunk) {
    tell(done, rows.length);
    for (const i of members)
      if (
        plainText(await Data.episode(i))
          .toLowerCase()
          .includes(wanted)
      )
        found.add(i);
    if (ticket !== Listing.searching) return null;
    done += members.length;
  }
  return rows.filter((i) => found.has(i));
}

function grouped(items, key) {
  const groups = new Map();
  for (const item of items) groups.set(key(item), [...(groups.get(key(item)) || []), item]);
  return groups;
}

const plainText = (episode) =>
  [...episode.messages.map((message) => message.content), episode.verdict.reason].join("\n");

function table(part, state, update) {
  const head = COLUMNS.map(([name, title]) => {
    const direction = state.sort === name ? "ascending" : state.sort === `-${name}` ? "descending" : "none";
    const next = direction === "ascending" ? `-${name}` : direction === "descending" ? "" : name;
    return el(
      "th",
      { scope: "col", "aria-sort": direction, class: NUMERIC.has(name) ? "number" : null },
      el("button", { type: "button", onclick: () => update({ sort: next }) }, title),
    );
  });
  return el(
    "div",
    { class: "scroll" },
    el("table", { class: "episodes" }, el("thead", {}, el("tr", {}, head)), el("tbody", {}, part.map(listRow))),
  );
}

function listRow(i) {
  const row = Data.row(i);
  const link = Route.link({ episode: row.id });
  const open = (event) => event.target.closest("a") || String(getSelection()) || (location.hash = link);
  return el(
    "tr",
    { onclick: open, "data-episode": row.id },
    cell("Step", number(row.step), "number"),
    cell("Environment", row.env, "soft"),
    el("td", { "data-label": "Task" }, el("a", { href: link }, row.task)),
    cell("Group", number(row.group), "number soft"),
    el("td", { "data-label": "Outcome" }, badge(row.outcome)),
    cell("Reward", number(row.reward), "number"),
    cell("Turns", number(row.turns), "number soft"),
    cell("Tokens", number(row.tokens), "number soft"),
    cell("Truncated", row.truncation, "soft"),
  );
}

const cell = (name, text, kind) => el("td", { "data-label": name, class: kind }, text);

function pager(page, pages, count, update) {
  const go = (to, text) =>
    el(
      "button",
      {
        type: "button",
        class: "button",
        disabled: to < 1 || to > pages,
        onclick: () => {
          update({ page: String(to) });
          scrollTo(0, 0);
        },
      },
      text,
    );
  const shown = `${number((page - 1) * PAGE + 1)}–${number(Math.min(count, page * PAGE))} of ${number(count)}`;
  return el(
    "nav",
    { class: "pager", "aria-label": "Pages" },
    go(1, "First"),
    go(page - 1, "Previous"),
    el("span", {}, shown),
    go(page + 1, "Next"),
    go(pages, "Last"),
  );
}

function later(action) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, 200);
  };
}
