// What the pages do by themselves: look for news, tell times, keys, light and dark. Every page
// works without it too.
"use strict";

const root = document.documentElement;
const byId = (id) => document.getElementById(id);

// News, while somebody looks.
const TICK = 3000;
setInterval(() => {
  if (document.visibilityState === "visible") htmx.trigger(document.body, "tick");
}, TICK);
document.body.addEventListener("htmx:sendError", () => { root.dataset.offline = ""; });
document.body.addEventListener("htmx:afterRequest", (event) => {
  if (event.detail.successful) delete root.dataset.offline;
});

// Times as distances, in the words of the server.
function distance(seconds) {
  if (seconds < 1) return "now";
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= size) return `${Math.round(seconds / size)} ${unit} ago`;
  }
  return `${Math.round(seconds)} s ago`;
}
setInterval(() => {
  for (const time of document.querySelectorAll("time[datetime]")) {
    const told = distance((Date.now() - Date.parse(time.dateTime)) / 1000);
    if (time.textContent !== told) time.textContent = told;
  }
}, 1000);

// Light and dark: as the system has it, until somebody chooses.
function turn() {
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  document.cookie = `theme=${root.dataset.theme}; path=/; max-age=31536000; samesite=strict`;
}

// A row that had the focus keeps it when the list is drawn anew.
let focused = "";
document.body.addEventListener("htmx:beforeSwap", () => {
  focused = document.activeElement?.id ?? "";
});
document.body.addEventListener("htmx:afterSettle", () => {
  if (focused && document.activeElement?.id !== focused) byId(focused)?.focus();
});

function step(by) {
  const rows = [...document.querySelectorAll("[data-row]")];
  const at = rows.indexOf(document.activeElement);
  const next = at < 0 ? (by > 0 ? 0 : rows.length - 1) : at + by;
  rows[Math.min(Math.max(next, 0), rows.length - 1)]?.focus();
}

const PLACES = { o: "/", s: "/sessions", p: "/projects", r: "/runs", f: "/findings" };
const KEYS = {
  "/": () => { byId("search")?.focus(); byId("search")?.select(); },
  j: () => step(1),
  k: () => step(-1),
  t: turn,
  "?": () => byId("help")?.showModal(),
};

let going = 0;  // when g was pressed
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const writing = event.target.closest("input, textarea, select");
  if (writing && event.key === "Escape") {
    event.preventDefault();  // which would empty a search
    writing.blur();
  }
  if (writing?.id === "search" && event.key === "ArrowDown") step(1);
  if (writing || byId("help")?.open) return;
  const place = Date.now() - going < 1500 && PLACES[event.key];
  going = event.key === "g" ? Date.now() : 0;
  if (place) location.assign(place);
  else if (KEYS[event.key]) {
    event.preventDefault();
    KEYS[event.key]();
  }
});

byId("theme")?.addEventListener("click", turn);
byId("keys")?.addEventListener("click", KEYS["?"]);
