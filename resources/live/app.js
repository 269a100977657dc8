// The view of a host that shows MCP Apps: JSON-RPC with the host over postMessage (SEP-1865 of 2026-01-26).
const LOOK_MS = 3000;
const waiting = new Map();
let asked = 0, looks = 0, job = null, timer = null;

const send = (message) => parent.postMessage({ jsonrpc: "2.0", ...message }, "*");

function ask(method, params) {
  asked += 1;
  send({ id: asked, method, params });
  return new Promise((resolve, reject) => waiting.set(asked, { resolve, reject }));
}

async function look() {
  clearTimeout(timer);
  looks += 1;
  const mine = looks;
  const uri = "ui://tunewright/jobs/now" + (job ? `?job=${encodeURIComponent(job)}` : "");
  try {
    const { contents } = await ask("resources/read", { uri });
    // Another job may have been chosen meanwhile.
    if (mine !== looks) return;
    const fresh = new DOMParser().parseFromString(contents[0].text, "text/html").querySelector("main");
    show(fresh);
    tell("Live", false);
    if ("active" in fresh.dataset) timer = setTimeout(look, LOOK_MS);
  } catch (error) {
    tell(`The host shows no more: ${error.message}`, true);
  }
}

function dress(context) {
  if (context?.theme) document.documentElement.style.colorScheme = context.theme;
}

const heard = {
  "ui/notifications/tool-input": ({ arguments: given }) => { job = given?.job_id ?? null; },
  "ui/notifications/tool-result": ({ structuredContent }) => {
    job = structuredContent?.job?.job_id ?? job;
    look();
  },
  "ui/notifications/host-context-changed": dress,
};

addEventListener("message", ({ source, data }) => {
  if (source !== parent || data?.jsonrpc !== "2.0") return;
  const { id, method, params, result, error } = data;
  if (method === undefined) {
    const answered = waiting.get(id);
    waiting.delete(id);
    if (error) answered?.reject(new Error(error.message));
    else answered?.resolve(result);
  } else if (id !== undefined) {
    if (method === "ui/resource-teardown") clearTimeout(timer);
    if (["ui/resource-teardown", "ping"].includes(method)) send({ id, result: {} });
    else send({ id, error: { code: -32601, message: "Method not found" } });
  } else {
    heard[method]?.(params);
  }
});

// Inside a host there is no address to go to: a job is chosen in place.
addEventListener("click", (event) => {
  const link = event.target.closest("a[data-job]");
  if (!link) return;
  event.preventDefault();
  job = link.dataset.job;
  look();
});

ask("ui/initialize", {
  appInfo: { name: "tunewright-jobs", version: "1" },
  appCapabilities: { availableDisplayModes: ["inline", "fullscreen"] },
  protocolVersion: "2026-01-26",
}).then((host) => {
  dress(host.hostContext);
  send({ method: "ui/notifications/initialized", params: {} });
  // The body, not the document: that never becomes lower than the frame which the host has given it.
  new ResizeObserver(() => {
    const { width, height } = document.body.getBoundingClientRect();
    send({ method: "ui/notifications/size-changed", params: { width, height } });
  }).observe(document.body);
  look();
});
