const USUAL_MS = 2000, IDLE_MS = 10000, TIMEOUT_MS = 20000;

// An XMLHttpRequest, as it parses the answer itself: no string ever becomes HTML here.
function look() {
  if (document.hidden) {
    document.addEventListener("visibilitychange", look, { once: true });
    return;
  }
  const began = performance.now();
  const request = new XMLHttpRequest();
  request.open("GET", location.href);
  request.responseType = "document";
  request.timeout = TIMEOUT_MS;
  request.onloadend = () => {
    const fresh = request.response?.querySelector("main");
    if (fresh) show(fresh);
    if (fresh) tell("Live", false);
    else if (request.status === 401) tell("Signed out: open the link with ?token= again.", true);
    else tell("The server does not answer; trying again.", true);
    // Never more than a fifth of the server's time, however long a job's curve has become.
    const isActive = "active" in document.querySelector("main").dataset;
    setTimeout(look, Math.max(isActive ? USUAL_MS : IDLE_MS, 4 * (performance.now() - began)));
  };
  request.send();
}

const log = document.getElementById("log");
if (log) log.scrollTop = log.scrollHeight;
document.title = document.querySelector("main").dataset.title;
tell("Live", false);
setTimeout(look, USUAL_MS);
