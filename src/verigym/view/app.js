// What is shown follows the address; a live run is asked for what is new.

const VIEWS = [
  ["curves", "Curves", curvesView],
  ["episodes", "Episodes", episodesView],
  ["configuration", "Configuration", configurationView],
];
const POLL_MS = 2000;

function configurationView() {
  return [el("pre", { class: "config" }, Data.run.config.text)];
}

let shown = 0;

async function show({ keepFocus = false } = {}) {
  const ticket = ++shown;
  const route = Route.get();
  const view = route.has("episode")
    ? "episodes"
    : VIEWS.some(([name]) => name === route.get("view"))
      ? route.get("view")
      : "curves";
  const draw = route.has("episode") ? episodeView : VIEWS.find(([name]) => name === view)[2];
  document
    .getElementById("nav")
    .replaceChildren(
      ...VIEWS.map(([name, title]) =>
        el(
          "a",
          {
            href: name === "episodes" ? Listing.address : `#view=${name}`,
            "aria-current": name === view ? "page" : null,
          },
          title,
        ),
      ),
    );
  document.getElementById("notes").replaceChildren(...Data.run.notes.map((note) => el("p", {}, note)));
  let content;
  try {
    content = await draw(route);
  } catch (error) {
    content = [el("p", { class: "empty", role: "alert" }, `This could not be read: ${error.message}`)];
  }
  if (ticket !== shown) return;
  const main = document.getElementById("main");
  main.replaceChildren(...content);
  document.title = [route.get("episode") || VIEWS.find(([name]) => name === view)[1], Data.run.name, "verigym"].join(
    " · ",
  );
  Charts.size();
  if (!keepFocus) scrollTo(0, 0);
}

// What somebody reads or fills in stays as it is; curves and lists grow.
async function grow() {
  const active = document.activeElement;
  if (Route.get().has("episode") || document.querySelector(".picker[open]")) return;
  if (active.closest("form")) return Listing.refresh();
  await show({ keepFocus: true });
  if (active.dataset.metric)
    document.querySelector(`[data-metric="${CSS.escape(active.dataset.metric)}"]`)?.focus({ preventScroll: true });
}

function follow() {
  const light = document.getElementById("live");
  light.hidden = false;
  const tell = (state, text) => {
    light.className = `live ${state}`;
    if (light.textContent !== text) light.textContent = text;
  };
  tell("on", "live");
  const ask = async () => {
    try {
      if (await Data.load()) await grow();
      tell("on", "live");
    } catch {
      tell("off", "no answer from verigym view");
    }
    setTimeout(ask, POLL_MS);
  };
  setTimeout(ask, POLL_MS);
}

document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address is the view's
  document.getElementById("main").focus();
});
addEventListener("hashchange", async () => {
  await show();
  document.getElementById("main").focus({ preventScroll: true }); // the keyboard goes on in what is new
});
addEventListener("keydown", (event) => {
  const target = { j: "next", k: "prev" }[event.key];
  if (!target || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea"))
    return;
  document.getElementById(target)?.click();
});
Data.load()
  .then(async () => {
    await show();
    document.body.dataset.ready = "true";
    requestAnimationFrame(() => setTimeout(() => performance.mark("verigym-ready"))); // it has been painted
    if (Data.live) follow();
  })
  .catch((error) => {
    document
      .getElementById("main")
      .replaceChildren(el("p", { class: "empty", role: "alert" }, `The run could not be unpacked: ${error.message}`));
  });
