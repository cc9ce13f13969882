// The page: which view is shown, and what the server is.

import { request } from "/static/api.js";
import { startChat } from "/static/chat.js";
import { byId } from "/static/format.js";
import { LiveView } from "/static/live.js";
import { showDefaults } from "/static/settings.js";

const VIEWS = ["chat", "live", "both"];
const wide = matchMedia("(min-width: 1100px)");
const live = new LiveView();

function showView() {
  let view = location.hash.slice(2);
  if (!VIEWS.includes(view)) view = wide.matches ? "both" : "chat";
  if (view === "both" && !wide.matches) view = "chat";
  document.body.dataset.view = view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  // The server works for the live view only while somebody sees it.
  live.watch(view !== "chat" && !document.hidden);
}

/** Says what is served; while the model loads, how far it is. */
async function introduce() {
  const notice = byId("notice");
  const health = await fetch("/health").then((response) => response.json()).catch(() => ({ status: "gone" }));
  const messages = {
    ready: "",
    loading: `The model is loading: ${health.stage} (${Math.round(100 * (health.progress ?? 0))} %)`,
    gone: "The server cannot be reached.",
  };
  notice.textContent = messages[health.status] ?? `The engine has failed: ${health.message ?? health.status}`;
  notice.hidden = health.status === "ready";
  if (health.status !== "ready") {
    setTimeout(introduce, 1000);
    return;
  }
  const info = await request("/model_info").then((response) => response.json());
  byId("model").textContent = `${info.served_model_name}, context of ${info.context_length.toLocaleString("en")} tokens`;
  showDefaults(info.sampling_defaults);
  showView();
}

startChat();
addEventListener("hashchange", showView);
document.addEventListener("visibilitychange", showView);
wide.addEventListener("change", showView);
showView();
introduce().catch((error) => {
  byId("notice").textContent = error.message;
  byId("notice").hidden = false;
});
