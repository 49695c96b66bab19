// Keeps the panel and the list up to date while the page is looked at. Without it the page shows the moment it was loaded.
// A visible page asks every two seconds and stops by itself after ten minutes: an instance that is asked never scales to zero.
"use strict";
(() => {
  const EVERY_MS = 2000, AT_MOST_MS = 600000;
  const at = (id) => document.getElementById(id);
  const panel = at("panel"), list = at("list"), role = at("top-role"), announce = at("announce");
  const toggle = at("live-toggle"), state = at("live-state");
  let on = true, timer = 0, until = Date.now() + AT_MOST_MS;

  async function ask() {
    const newest = list.dataset.newest;
    const answer = await fetch(newest === "off" ? "/live" : `/live?newest=${newest}`, { cache: "no-store" });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const now = await answer.json();
    panel.innerHTML = now.panel;
    if (announce.dataset.role !== now.role) {
      announce.dataset.role = now.role;
      announce.textContent = `This instance is now: ${now.role_text}`;
      role.innerHTML = now.pill;
    }
    // An entry that somebody is reading with a link in focus stays where it is until the next time.
    if (now.list !== undefined && !list.contains(document.activeElement)) {
      list.innerHTML = now.list;
      list.dataset.newest = now.newest;
      announce.textContent = "New entries.";
    }
  }

  async function tick() {
    clearTimeout(timer);
    if (!on || document.hidden) return;
    if (Date.now() > until) return turn(false);
    try { await ask(); state.textContent = "Live"; }
    catch { state.textContent = "No answer; trying again"; }
    timer = setTimeout(tick, EVERY_MS);
  }

  function turn(to) {
    on = to;
    until = Date.now() + AT_MOST_MS;
    toggle.textContent = on ? "Pause updates" : "Resume updates";
    state.textContent = on ? "Live" : "Paused";
    tick();
  }

  toggle.hidden = false;
  toggle.addEventListener("click", () => turn(!on));
  document.addEventListener("visibilitychange", tick);
  turn(true);
})();
