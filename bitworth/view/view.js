"use strict";

/* Keeps the page up to date without loading it again: words and counts from /state.json, tables from /figures, which
   come escaped from the server. */

const EVERY_MS = 2000;

function put(element, words) {
  if (element.textContent !== words) element.textContent = words;
}

function showStudy(card, study) {
  const part = (name) => card.querySelector('[data-part="' + name + '"]');
  const bar = card.querySelector("progress");
  bar.max = study.cells.total || 1;
  bar.value = study.cells.done;
  for (const name of ["says", "left", "headline", "lede", "problem"]) put(part(name), study[name]);
  part("problem").hidden = !study.problem;
  const lines = study.running.map((words) => {
    const line = document.createElement("li");
    line.textContent = words;
    return line;
  });
  part("running").replaceChildren(...lines);
}

function fill(select, values) {
  const kept = select.value;
  const first = select.options[0];
  const names = kept && !values.includes(kept) ? [...values, kept] : values;
  select.replaceChildren(first, ...names.map((name) => new Option(name, name)));
  select.value = kept;
}

/* Where the reader is in the tables: what has the focus, and how far each is scrolled. */
function placeIn(figures) {
  const regions = [...figures.querySelectorAll('[role="region"]')];
  const scrolled = new Map(regions.map((region) => [region.getAttribute("aria-label"), region.scrollLeft]));
  const focused = figures.contains(document.activeElement) ? document.activeElement : null;
  return { scrolled: scrolled, label: focused && focused.getAttribute("aria-label"), href: focused && focused.getAttribute("href") };
}

function returnTo(figures, place) {
  for (const region of figures.querySelectorAll('[role="region"]')) {
    region.scrollLeft = place.scrolled.get(region.getAttribute("aria-label")) || 0;
  }
  const candidates = [...figures.querySelectorAll('[role="region"], a')];
  const same = candidates.find((element) =>
    (place.label && element.getAttribute("aria-label") === place.label) || (place.href && element.getAttribute("href") === place.href));
  if (same) same.focus({ preventScroll: true });
}

function startHome(form, figures) {
  const fault = document.getElementById("fault");
  let asked = 0;

  function query() {
    const chosen = [...new FormData(form)].filter(([, value]) => value);
    return new URLSearchParams(chosen).toString();
  }

  async function get(path) {
    const answer = await fetch(path, { cache: "no-store" });
    if (!answer.ok) throw new Error("answered " + answer.status);
    return answer;
  }

  async function showFigures() {
    const turn = ++asked;
    figures.setAttribute("aria-busy", "true");
    try {
      const text = await (await get("/figures?" + query())).text();
      if (turn !== asked) return; /* a later question is on its way */
      const place = placeIn(figures);
      figures.innerHTML = text;
      returnTo(figures, place);
      const options = JSON.parse(figures.firstElementChild.dataset.options);
      for (const [name, values] of Object.entries(options)) fill(form.elements[name], values);
    } finally {
      if (turn === asked) figures.setAttribute("aria-busy", "false");
    }
  }

  async function look() {
    const state = await (await get("/state.json")).json();
    for (const study of state.studies) {
      showStudy(document.querySelector('[data-study="' + study.study + '"]'), study);
    }
    if (state.versions !== figures.firstElementChild.dataset.versions) await showFigures();
  }

  async function guarded(work) {
    try {
      await work();
      fault.classList.add("hidden");
    } catch (error) {
      put(fault, "The server does not answer (" + error.message + "); what is shown is as it was.");
      fault.classList.remove("hidden");
    }
  }

  async function again() {
    if (!document.hidden) await guarded(look);
    setTimeout(again, EVERY_MS);
  }

  form.addEventListener("change", () => {
    history.replaceState(null, "", query() ? "/?" + query() : "/");
    guarded(showFigures);
  });
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    for (const select of form.querySelectorAll("select")) select.value = "";
    form.dispatchEvent(new Event("change"));
  });
  for (const element of document.querySelectorAll(".unscripted")) element.hidden = true;
  for (const element of document.querySelectorAll(".scripted")) element.hidden = false;
  setTimeout(again, EVERY_MS);
}

const form = document.getElementById("filters");
if (form) startHome(form, document.getElementById("figures"));
