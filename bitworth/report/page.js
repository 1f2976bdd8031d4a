"use strict";

/* The rule of bitworth.recommendation for a changed tolerance. Options come most queries per dollar first, with ties
   broken, and no tolerance changes that order. A bound that is null is not known, or unbounded. */

function verdictOf(option, least) {
  const low = option.low === null ? -Infinity : option.low;
  const high = option.high === null ? Infinity : option.high;
  if (low >= least) return "holds";
  return high < least ? "loses" : "undecided";
}

function stateOf(option, least) {
  if (option.blocked.length) return "out";
  const verdict = option.judged ? verdictOf(option, least) : "holds";
  return verdict === "holds" ? "feasible" : verdict;
}

function decide(options, least) {
  const feasible = options.filter((option) => stateOf(option, least) === "feasible");
  const choice = feasible.length ? feasible[0] : null;
  const cheaper = (option) => choice === null || option.usd_per_1k_queries < choice.usd_per_1k_queries;
  const contender = options.find((option) => stateOf(option, least) === "undecided" && cheaper(option));
  return { choice: choice, runnerUp: feasible.length > 1 ? feasible[1] : null, contender: contender || null };
}

/* What follows needs a page. */

function figure(value) {
  if (value === null) return "–";
  return new Intl.NumberFormat("en", { minimumSignificantDigits: 3, maximumSignificantDigits: 3 }).format(value);
}

function percent(value) {
  return value === null ? "–" : value.toFixed(1) + "\u00a0%";
}

function fill(select, names) {
  const kept = select.value;
  select.replaceChildren(...names.map((name) => new Option(name, name)));
  if (names.includes(kept)) select.value = kept;
}

function distinct(values) {
  return [...new Set(values)];
}

function cell(tag, text, kind) {
  const found = document.createElement(tag);
  found.textContent = text;
  if (kind) found.className = kind;
  if (tag === "th") found.scope = "row";
  return found;
}

function rowOf(option, role, why) {
  const row = document.createElement("tr");
  const bounds = option.low === null || option.high === null ? "" : option.low.toFixed(1) + " to " + option.high.toFixed(1);
  const kept = cell("td", percent(option.recovery_pct), "num");
  if (bounds) kept.append(cell("small", bounds));
  const outcome = cell("td", "", "outcome");
  outcome.append(cell("span", role, "tag " + ({ choice: "choice", contender: "contender", out: "out" }[role] || "plain")));
  if (why) outcome.append(cell("small", why, "under"));
  const source = option.queries_per_usd === null ? "–" : option.source + (option.recovery_source === "predicted" ? ", recovery predicted" : "");
  row.append(
    cell("th", option.format, "name"), cell("td", option.hardware), cell("td", option.load),
    cell("td", figure(option.queries_per_usd), "num"), cell("td", figure(option.times_baseline), "num"),
    kept, cell("td", figure(option.latency_s), "num"), cell("td", source), outcome,
  );
  return row;
}

function roleOf(option, found, least) {
  if (option === found.choice) return "choice";
  if (option === found.runnerUp) return "runner-up";
  if (option === found.contender) return "contender";
  return stateOf(option, least) === "feasible" ? "feasible" : "out";
}

function whyOut(option, least) {
  if (option.blocked.length) return option.blocked.join("; ");
  const state = stateOf(option, least);
  if (state === "loses") return "recovers less than " + least + " %";
  return state === "undecided" ? "recovery is not settled against " + least + " %" : "";
}

function answerOf(found, least) {
  if (found.choice === null) return "Nothing meets the constraint at " + least + " %.";
  const name = found.choice.format + " on " + found.choice.hardware;
  const rate = figure(found.choice.queries_per_usd) + " queries per dollar";
  const also = found.contender ? " Cheaper, but not settled: " + found.contender.format + "." : "";
  return name + ": " + rate + ", recovery " + percent(found.choice.recovery_pct) + "." + also;
}

function start(data) {
  const part = (name) => document.getElementById("ask-" + name);
  const everywhere = "all hardware";
  const scenesOf = () => data.scenes.filter((scene) => scene.use_case === part("use-case").value);

  function show() {
    fill(part("load"), distinct(scenesOf().map((scene) => scene.load)));
    const scene = scenesOf().find((row) => row.load === part("load").value);
    fill(part("hardware"), [everywhere, ...distinct(scene.options.map((option) => option.hardware))]);
    const place = part("hardware").value;
    const options = scene.options.filter((option) => place === everywhere || option.hardware === place);
    const least = part("least").valueAsNumber;
    if (!Number.isFinite(least)) {
      part("answer").textContent = "Give the least recovery as a number.";
      part("rows").replaceChildren();
      return;
    }
    const found = decide(options, least);
    part("answer").textContent = answerOf(found, least);
    part("rows").replaceChildren(
      ...options.map((option) => rowOf(option, roleOf(option, found, least), whyOut(option, least))),
    );
  }

  function ask(least) {
    part("least").value = least;
    part("slider").value = least;
    show();
  }

  part("slider").min = data.slider.low;
  part("slider").max = data.slider.high;
  fill(part("use-case"), distinct(data.scenes.map((scene) => scene.use_case)));
  for (const name of ["use-case", "load", "hardware"]) part(name).addEventListener("change", show);
  part("slider").addEventListener("input", () => ask(part("slider").value));
  part("least").addEventListener("input", () => { part("slider").value = part("least").value; show(); });
  part("reset").addEventListener("click", () => ask(data.least));
  part("form").addEventListener("submit", (event) => event.preventDefault());
  ask(data.least);
  for (const element of document.querySelectorAll(".scripted")) element.hidden = false;
}

if (typeof document !== "undefined") {
  const data = document.getElementById("options");
  if (data) start(JSON.parse(data.textContent));
}
