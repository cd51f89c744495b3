// One episode: its facts, its verdict, and three ways to look at it.

const TABS = [
  ["chat", "Conversation"],
  ["tokens", "Tokens"],
  ["group", "Group"],
];

async function episodeView(route) {
  const i = Data.find(route.get("episode"));
  if (i < 0) return [el("p", { class: "empty" }, `This run has no episode ${route.get("episode")}.`)];
  const row = Data.row(i);
  const episode = await Data.episode(i);
  const tab = TABS.some(([name]) => name === route.get("tab")) ? route.get("tab") : "chat";
  const body = { chat: chatTab, tokens: tokensTab, group: groupTab }[tab];
  return [
    episodeHead(row, episode, tab),
    el(
      "nav",
      { class: "tabs", "aria-label": "Ways to look at the episode" },
      TABS.map(([name, title]) =>
        el(
          "a",
          {
            href: Route.link({ episode: row.id, tab: name === "chat" ? "" : name }),
            "aria-current": name === tab ? "page" : null,
          },
          title,
        ),
      ),
    ),
    await body(row, episode),
  ];
}

function episodeHead(row, episode, tab) {
  const versions = episode.versions.filter((version, k) => episode.mask[k]);
  const [old, young] = bounds(versions);
  const facts = [
    ["step", number(row.step)],
    ["environment", row.env],
    ["group", number(row.group)],
    ["seed", episode.seed],
    ...(episode.sampling_seed === null ? [] : [["sampling seed", episode.sampling_seed]]),
    ["turns", number(row.turns)],
    ["policy tokens", number(row.tokens)],
    ["all tokens", number(episode.token_ids.length)],
    ["weights", !versions.length ? "–" : old === young ? `version ${old}` : `versions ${old} to ${young}`],
    ["ended", row.truncation ? `cut: ${row.truncation}` : "by the task"],
  ];
  if (episode.forked_turn !== null) facts.push(["forked at", `turn ${episode.forked_turn + 1}`]);
  return el(
    "div",
    { class: `head ${tab}` },
    el("div", { class: "crumbs" }, el("a", { href: Listing.address }, "← Episodes"), neighbours(row, tab)),
    el("h1", {}, row.task),
    verdictBox(episode.verdict, row),
    el(
      "dl",
      { class: "facts small" },
      facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
    ),
  );
}

// The episodes before and after it in the list.
function neighbours(row, tab) {
  const rows = Listing.rows;
  const at = rows ? rows.indexOf(row.i) : row.i;
  const place = (k) => (rows ? rows[k] : k >= 0 && k < Data.run.count ? k : undefined);
  const link = (k, text, key) => {
    const other = at < 0 ? undefined : place(k);
    return other === undefined
      ? el("span", { class: "quiet" }, text)
      : el(
          "a",
          { href: Route.link({ episode: Data.row(other).id, tab: tab === "chat" ? "" : tab }), id: key, rel: key },
          text,
        );
  };
  return el("span", { class: "neighbours" }, link(at - 1, "Previous", "prev"), link(at + 1, "Next", "next"));
}

function verdictBox(verdict, row) {
  const parts = Object.entries(verdict.components || {});
  return el(
    "div",
    { class: `verdict ${OUTCOMES.includes(verdict.outcome) ? verdict.outcome : "other"}` },
    el(
      "p",
      {},
      badge(verdict.outcome),
      el("strong", { class: "reward" }, `reward ${number(row.reward)}`),
      el("span", { class: "reason" }, verdict.reason),
    ),
    parts.length
      ? el(
          "dl",
          { class: "components" },
          parts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, number(value)))),
        )
      : null,
  );
}

// Conversation.

function chatTab(row, episode) {
  return el("section", { class: "chat", "aria-label": "Conversation" }, conversation(episode));
}

// Turns of the agent are the last of its messages: those before them, if any, are the task's own.
function conversation(episode, from = 0) {
  const agents = episode.messages.filter((message) => message.turn).length;
  let turn = episode.turns.length - agents;
  return episode.messages.map((message, k) => {
    const own = message.turn ? turn++ : -1;
    return k < from ? null : messageBox(message, own >= 0 ? [own, episode.turns[own]] : null);
  });
}

const ROLES = { assistant: "Agent", user: "User", system: "System", tool: "Tool" };

function messageBox(message, turn) {
  const name = message.role === "tool" && message.name ? `Tool · ${message.name}` : ROLES[message.role] || message.role;
  return el(
    "article",
    { class: `message ${ROLES[message.role] ? message.role : "other"}` },
    el("h3", {}, name, turn ? turnFacts(...turn) : null),
    message.turn ? agentTurn(message) : el("div", { class: "text" }, message.content || el("em", {}, "(empty)")),
  );
}

function turnFacts(k, [start, end, reward, stop, limit]) {
  const earned = reward ? ` · reward ${number(reward)}` : "";
  const ended = stop === "stop" ? "" : ` · ${stop === "length" ? `cut at ${number(limit)} tokens` : stop}`;
  return el("span", { class: "soft" }, `turn ${k + 1} · ${plural(end - start, "token")}${earned}${ended}`);
}

function agentTurn({ content, turn }) {
  const plain = turn.content.trim();
  const empty = !plain && !turn.reasoning && !turn.calls.length && !turn.errors.length;
  return [
    turn.reasoning
      ? el(
          "details",
          { class: "reasoning", open: turn.reasoning.length < 600 },
          el("summary", {}, "Reasoning"),
          el("div", { class: "text" }, turn.reasoning.trim()),
        )
      : null,
    plain ? el("div", { class: "text" }, plain) : null,
    turn.calls.map((call) =>
      el(
        "div",
        { class: "call" },
        el("div", { class: "name" }, call.name),
        el("pre", {}, JSON.stringify(call.arguments, null, 2)),
      ),
    ),
    turn.errors.map((error) => el("p", { class: "malformed" }, error)),
    turn.errors.length ? el("pre", { class: "text" }, content) : null,
    empty ? el("em", {}, "(empty)") : null,
  ];
}

// The group side by side.

async function groupTab(row, episode) {
  const members = Data.group(row.i);
  const episodes = await Promise.all(members.map((i) => Data.episode(i)));
  const shared = sharedMessages(episodes);
  const whole = members.filter((_, k) => episodes[k].forked_turn === null); // forks are no part of its baseline
  const rewards = whole.map((i) => Data.row(i).reward).filter(isNumber);
  const mean = rewards.reduce((sum, value) => sum + value, 0) / rewards.length;
  const spread = Math.sqrt(rewards.reduce((sum, value) => sum + (value - mean) ** 2, 0) / rewards.length);
  const forks = whole.length < members.length ? ` and ${plural(members.length - whole.length, "fork")} of them` : "";
  const order = members
    .map((_, k) => k)
    .sort((a, b) => (Data.row(members[b]).reward ?? -Infinity) - (Data.row(members[a]).reward ?? -Infinity) || a - b);
  return el(
    "section",
    { class: "group", "aria-label": "Group side by side" },
    el(
      "p",
      { class: "count" },
      `${plural(whole.length, "episode")} from one start${forks} · mean reward ${number(mean)} · standard deviation ${number(spread)}`,
    ),
    shared
      ? el(
          "div",
          { class: "chat" },
          episodes[0].messages.slice(0, shared).map((message) => messageBox(message, null)),
        )
      : null,
    el(
      "div",
      { class: "members", tabindex: 0, role: "group", "aria-label": "Members; scroll sideways" },
      order.map((k) => member(members[k], episodes[k], shared, row.i)),
    ),
  );
}

function sharedMessages(episodes) {
  const [first] = episodes;
  let count = first.messages.findIndex((message) => message.turn);
  if (count < 0) count = first.messages.length;
  const same = (k) =>
    episodes.every(
      (other) =>
        other.messages[k] &&
        other.messages[k].role === first.messages[k].role &&
        other.messages[k].content === first.messages[k].content,
    );
  for (let k = 0; k < count; k++) if (!same(k)) return k;
  return count;
}

function member(i, episode, shared, current) {
  const row = Data.row(i);
  const advantages = (episode.learner.advantages || []).filter(isNumber);
  const mean = advantages.reduce((sum, value) => sum + value, 0) / advantages.length;
  return el(
    "div",
    { class: i === current ? "member current" : "member" },
    el(
      "h2",
      {},
      badge(row.outcome),
      el(
        "a",
        { href: Route.link({ episode: row.id, tab: "group" }), "aria-current": i === current ? "true" : null },
        `Episode ${row.id}`,
      ),
    ),
    el(
      "dl",
      { class: "facts small" },
      [
        ["reward", number(row.reward)],
        ...(advantages.length
          ? [[bounds(advantages)[0] === bounds(advantages)[1] ? "advantage" : "mean advantage", number(mean)]]
          : []),
        ["tokens", number(row.tokens)],
        ["turns", number(row.turns)],
        ...(row.truncation ? [["cut", row.truncation]] : []),
        ...(episode.forked_turn === null ? [] : [["forked at", `turn ${episode.forked_turn + 1}`]]),
      ].map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
    ),
    el("div", { class: "chat" }, conversation(episode, shared)),
    el("p", { class: "reason soft" }, episode.verdict.reason),
  );
}
