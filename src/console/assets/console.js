// Refreshes the page, and copies ids. Every page can be read without it.
"use strict";
document.documentElement.classList.add("js");

// One refresh after another, never two at once; none while the page is hidden, stopped, or somebody is in the midst of something.
const refresh = document.getElementById("refresh");
if (refresh && window.htmx) {
  const button = refresh.querySelector("button"), status = refresh.querySelector("span");
  const every = () => Number(refresh.dataset.every);
  let stopped = false, failures = 0;
  try { stopped = sessionStorage.getItem("stopped") === "yes"; } catch {}

  const isBusy = () => {
    const active = document.activeElement;
    return document.querySelector("#page details.act[open], #page input[name=ids]:checked, #page input[name=entries]:checked") !== null
      || (active && active.closest("#page") && active.matches("input, select, textarea"))
      || !document.getSelection().isCollapsed;
  };
  const show = () => {
    button.textContent = stopped ? "Refresh again" : "Stop refreshing";
    button.setAttribute("aria-pressed", String(stopped));
    status.textContent = failures ? "Herald does not answer: this is the last that was seen."
      : !stopped && isBusy() ? "Waits while you are at work here." : "";
  };
  const look = async () => {
    if (!stopped && !document.hidden && !isBusy()) {
      // A page that left the URL behind would refresh into another one.
      await htmx.ajax("GET", location.pathname + location.search, { target: "#page", select: "#page", swap: "outerMorph" }).catch(() => {});
      count();
    }
    show();
    setTimeout(look, every() * Math.min(1 + failures, 12));
  };
  document.addEventListener("htmx:error", () => { failures += 1; show(); });
  document.addEventListener("htmx:after:request", () => { failures = 0; show(); });
  button.addEventListener("click", () => {
    stopped = !stopped;
    try { sessionStorage.setItem("stopped", stopped ? "yes" : "no"); } catch {}
    show();
  });
  refresh.hidden = false;
  show();
  setTimeout(look, every());
}

// Without TLS browsers give pages no clipboard, but still copy what is selected.
const copy = async (text) => {
  if (navigator.clipboard && window.isSecureContext) {
    try { await navigator.clipboard.writeText(text); return true; } catch {}
  }
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "unseen";
  area.setAttribute("aria-hidden", "true");
  document.body.append(area);
  area.select();
  let copied = false;
  try { copied = document.execCommand("copy"); } catch {}
  area.remove();
  return copied;
};

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button.copy");
  if (button) {
    const copied = await copy(button.dataset.copy);
    button.focus();
    button.classList.add(copied ? "copied" : "failed");
    setTimeout(() => button.classList.remove("copied", "failed"), 1500);
    return;
  }
  // A form that opens closes the others, and takes the keyboard.
  const summary = event.target.closest("details.act > summary");
  if (summary) {
    for (const other of document.querySelectorAll("details.act[open]")) if (other !== summary.parentElement) other.open = false;
    setTimeout(() => { if (summary.parentElement.open) summary.parentElement.querySelector("form input:not([type=hidden])")?.focus(); });
  }
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    const open = document.activeElement?.closest("details.act[open]");
    if (open) { open.open = false; open.querySelector("summary").focus(); }
  }
  if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.altKey && !document.activeElement?.matches("input, select, textarea")) {
    const find = document.querySelector("form.find input");
    if (find) { event.preventDefault(); find.focus(); }
  }
});

// How many are chosen, and all of them at once.
function count() {
  for (const all of document.querySelectorAll("input[data-all]")) all.hidden = false;
  for (const output of document.querySelectorAll("output[data-count]")) {
    output.textContent = String(document.querySelectorAll(`input[name=${output.dataset.count}]:checked`).length);
  }
}
document.addEventListener("change", (event) => {
  const name = event.target.dataset.all;
  if (name) for (const box of document.querySelectorAll(`input[name=${name}]`)) box.checked = event.target.checked;
  count();
});

// What takes a while is not sent twice.
document.addEventListener("submit", (event) => {
  if (event.target.method !== "post") return;
  if (event.target.dataset.sent) { event.preventDefault(); return; }
  event.target.dataset.sent = "yes";
});
addEventListener("pageshow", () => { for (const form of document.forms) delete form.dataset.sent; });
count();
