// The run's data: embedded in the page, or asked from its server.

const Data = {
  live: document.getElementById("data") === null,
  run: null,
  tag: "",
  chunks: new Map(),

  async load() {
    if (!this.live) return this.take(await unpack(embedded("data")));
    const answer = await fetch("/data", { headers: this.tag ? { "If-None-Match": this.tag } : {}, cache: "no-store" });
    if (answer.status === 304) return false;
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    const body = new Uint8Array(await answer.arrayBuffer());
    this.tag = answer.headers.get("ETag");
    return this.take(await unpack(body));
  },

  take(run) {
    const { names, ...columns } = run.index;
    run.names = names;
    run.count = columns.step.length;
    run.firsts = new Map(); // where each chunk begins
    for (let row = 0; row < run.count; row++) {
      const name = `${columns.step[row]}.${columns.chunk[row]}`;
      if (!run.firsts.has(name)) run.firsts.set(name, row);
    }
    this.run = run;
    this.chunks.clear();
    return true;
  },

  // What the index knows of an episode.
  row(i) {
    const { index, names } = this.run;
    return {
      i,
      id: `${index.step[i]}.${index.number[i]}`,
      step: index.step[i],
      chunk: `${index.step[i]}.${index.chunk[i]}`,
      env: names.env[index.env[i]],
      task: names.task[index.task[i]],
      group: index.group[i],
      reward: index.reward[i],
      outcome: names.outcome[index.outcome[i]],
      truncation: names.truncation[index.truncation[i]],
      turns: index.turns[i],
      tokens: index.tokens[i],
    };
  },

  find(id) {
    const [step, place] = id.split(".").map(Number);
    const { index, count } = this.run;
    for (let i = 0; i < count; i++) if (index.step[i] === step && index.number[i] === place) return i;
    return -1;
  },

  group(i) {
    const { index, count } = this.run;
    const members = [];
    for (let k = 0; k < count; k++)
      if (index.step[k] === index.step[i] && index.group[k] === index.group[i]) members.push(k);
    return members;
  },

  chunk(name) {
    if (!this.chunks.has(name)) {
      if (this.chunks.size >= 16) this.chunks.delete(this.chunks.keys().next().value);
      this.chunks.set(name, this.live ? fetched(name) : unpack(embedded(`chunk-${name}`)));
    }
    return this.chunks.get(name);
  },

  // The whole episode: messages, tokens, verdict.
  async episode(i) {
    const { chunk } = this.row(i);
    return (await this.chunk(chunk))[i - this.run.firsts.get(chunk)];
  },

  text(token) {
    const text = this.run.texts[token];
    return text === undefined ? `⟨${token}⟩` : text;
  },
};

function embedded(name) {
  const text = document.getElementById(name).textContent;
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

async function fetched(name) {
  const answer = await fetch(`/chunk/${name}`, { cache: "no-store" });
  if (!answer.ok) throw new Error(`the server answered ${answer.status} for the episodes ${name}`);
  return unpack(new Uint8Array(await answer.arrayBuffer()));
}

function unpack(bytes) {
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}
