"use strict";
// Answers are kept in the browser under the digest of the sheet, and leave it as a CSV file only.
const main = document.querySelector("main");
const items = [...document.querySelectorAll("article")];
const raterField = document.getElementById("rater");
const note = document.getElementById("note");
const key = "agentsafe-labels-" + main.dataset.sheet;
let state = { rater: "", at: 0, answers: {} };
let active = 0; // the metric that the keys 0 to 3 score

const metricsOf = (item) => [...item.querySelectorAll("fieldset")];
const nameOf = (fieldset) => fieldset.dataset.name;
const scoreOf = (fieldset) => fieldset.querySelector("input:checked")?.value ?? "";
const commentOf = (fieldset) => fieldset.querySelector("textarea").value.trim();

function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(key));
    if (kept && typeof kept === "object") state = { ...state, ...kept };
  } catch (error) {
    note.textContent = "This browser keeps nothing: download before you close the page.";
  }
  raterField.value = state.rater;
  for (const fieldset of document.querySelectorAll("fieldset")) {
    const answer = state.answers[nameOf(fieldset)] ?? {};
    for (const input of fieldset.querySelectorAll("input"))
      input.checked = input.value === answer.score;
    fieldset.querySelector("textarea").value = answer.comment ?? "";
  }
}

function save() {
  state.rater = raterField.value.trim();
  state.answers = {};
  for (const fieldset of document.querySelectorAll("fieldset")) {
    const answer = { score: scoreOf(fieldset), comment: commentOf(fieldset) };
    if (answer.score || answer.comment) state.answers[nameOf(fieldset)] = answer;
  }
  try {
    localStorage.setItem(key, JSON.stringify(state));
  } catch (error) {
    note.textContent = "This browser keeps nothing: download before you close the page.";
  }
  progress();
}

function progress() {
  const all = document.querySelectorAll("fieldset");
  const done = [...all].filter(scoreOf).length;
  document.getElementById("bar").value = done;
  document.getElementById("done").textContent = `${done} of ${all.length} scores`;
  document.getElementById("place").textContent = `rollout ${state.at + 1} of ${items.length}`;
  document.getElementById("printed").textContent = state.rater || "(no name)";
}

function show(number, top = true) {
  state.at = Math.min(Math.max(number, 0), items.length - 1);
  items.forEach((item, place) => { item.hidden = place !== state.at; });
  const open = metricsOf(items[state.at]).findIndex((fieldset) => !scoreOf(fieldset));
  activate(Math.max(open, 0));
  if (top) scrollTo(0, 0);
  save();
}

function activate(number) {
  const metrics = metricsOf(items[state.at]);
  active = (number + metrics.length) % metrics.length;
  metrics.forEach((fieldset, place) => fieldset.classList.toggle("active", place === active));
}

function score(value) {
  const metrics = metricsOf(items[state.at]);
  const input = metrics[active].querySelector(`input[value="${value}"]`);
  if (!input) return;
  input.checked = true;
  save();
  const open = metrics.findIndex((fieldset) => !scoreOf(fieldset));
  if (open >= 0) activate(open);
}

function unlabelled() {
  for (let step = 1; step <= items.length; step++) {
    const place = (state.at + step) % items.length;
    if (metricsOf(items[place]).some((fieldset) => !scoreOf(fieldset))) return show(place);
  }
  note.textContent = "Everything is labelled: download the labels.";
}

// A spreadsheet runs a cell that begins with one of these, unless an apostrophe is before it.
const escapeFormula = (text) => (/^[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20']/.test(text) ? "'" + text : text);
const cell = (text) => '"' + escapeFormula(text).replaceAll('"', '""') + '"';

function csv() {
  const columns = main.dataset.columns.split(" ");
  const lines = [columns.join(",")];
  for (const item of items)
    for (const fieldset of metricsOf(item)) {
      if (!scoreOf(fieldset)) continue;
      const row = {
        ...item.dataset,
        metric: fieldset.dataset.metric,
        score: scoreOf(fieldset),
        comment: commentOf(fieldset),
        rater: state.rater,
      };
      lines.push(columns.map((name) => cell(row[name])).join(","));
    }
  return "\ufeff" + lines.join("\r\n") + "\r\n";
}

function download() {
  save();
  const unscored = [...document.querySelectorAll("fieldset")].filter(
    (fieldset) => commentOf(fieldset) && !scoreOf(fieldset),
  );
  if (!state.rater) {
    note.textContent = "Write your name first.";
    return raterField.focus();
  }
  if (unscored.length) {
    note.textContent = "A comment without a score is not part of the labels: score it first.";
    return show(items.indexOf(unscored[0].closest("article")));
  }
  const link = document.createElement("a");
  const rater = state.rater.toLowerCase().replace(/[^a-z0-9]+/g, "-");
  link.download = ["labels", main.dataset.run, rater].filter(Boolean).join("-") + ".csv";
  link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  note.textContent = `${link.download} is written.`;
}

const actions = {
  n: () => show(state.at + 1),
  p: () => show(state.at - 1),
  u: unlabelled,
  m: () => activate(active + 1),
  c: () => metricsOf(items[state.at])[active].querySelector("textarea").focus(),
};

addEventListener("keydown", (event) => {
  const typing = event.target.matches("textarea, input[type=text]");
  if (event.key === "Escape" && typing) event.target.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const action = /^[0-3]$/.test(event.key) ? () => score(event.key) : actions[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});
main.addEventListener("input", save);
main.addEventListener("focusin", (event) => {
  const fieldset = event.target.closest("fieldset");
  if (fieldset) activate(metricsOf(items[state.at]).indexOf(fieldset));
});
raterField.addEventListener("input", save);
for (const details of document.querySelectorAll("details[data-of]"))
  details.querySelector("summary").addEventListener("click", () => {
    const same = document.querySelectorAll(`details[data-of="${details.dataset.of}"]`);
    for (const other of same) if (other !== details) other.open = !details.open;
  });
for (const button of document.querySelectorAll("button[data-key]"))
  button.addEventListener("click", () => actions[button.dataset.key]());
document.getElementById("download").addEventListener("click", download);

load();
show(state.at, false);
