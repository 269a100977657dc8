const connection = document.getElementById("connection");

function tell(text, isLost) {
  connection.textContent = text;
  connection.className = isLost ? "lost" : "";
}

// Puts `fresh`, a <main> of the server's, in the place of the one that is shown. Keeps what a reader holds on to: how
// far each part is scrolled, where the keyboard is, and the whole page while he marks text in it.
function show(fresh) {
  const old = document.querySelector("main");
  if (fresh.isEqualNode(old) || String(getSelection())) return;
  const focused = document.activeElement?.id;
  const places = new Map([...old.querySelectorAll(".keeps-scroll")].map((part) => [
    part.id,
    { top: part.scrollTop, isAtEnd: part.scrollTop + part.clientHeight >= part.scrollHeight - 4 },
  ]));
  old.replaceWith(document.adoptNode(fresh));
  for (const part of fresh.querySelectorAll(".keeps-scroll")) {
    const place = places.get(part.id);
    const follows = part.classList.contains("follows");
    part.scrollTop = follows && (place?.isAtEnd ?? true) ? part.scrollHeight : place?.top ?? 0;
  }
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  document.title = fresh.dataset.title;
}
