// Filters the samples by their tags, shows and hides masks, and shows one mask alone while its words are pointed at.
"use strict";

const samples = [...document.querySelectorAll(".sample")];
const buttons = [...document.querySelectorAll("[data-dimension]")];
const count = document.getElementById("count");

// Within a dimension any chosen value will do; every dimension with a choice has to fit.
function filter() {
  const chosen = new Map();
  for (const button of buttons) {
    if (button.getAttribute("aria-pressed") !== "true") continue;
    const { dimension, value } = button.dataset;
    chosen.set(dimension, [...(chosen.get(dimension) ?? []), value]);
  }
  let shown = 0;
  for (const sample of samples) {
    sample.hidden = ![...chosen].every(([dimension, values]) => values.includes(sample.dataset[dimension]));
    shown += !sample.hidden;
  }
  count.textContent = `${shown} of ${samples.length} shown`;
}

for (const button of buttons) {
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    filter();
  });
}

document.getElementById("masks")?.addEventListener("click", (event) => {
  const without = document.body.classList.toggle("without-masks");
  event.currentTarget.setAttribute("aria-pressed", String(!without));
});

function point(event, on) {
  const words = event.target.closest?.("mark");
  if (!words) return;
  const sample = words.closest(".sample");
  sample.classList.toggle("pointed", on);
  for (const layer of sample.querySelectorAll(".layer")) {
    layer.classList.toggle("shown", on && layer.dataset.masks.split(" ").includes(words.dataset.mask));
  }
  for (const badge of sample.querySelectorAll(".stack .badge")) {
    badge.classList.toggle("shown", on && Number(badge.textContent) - 1 === Number(words.dataset.mask));
  }
}

for (const kind of ["mouseover", "focusin"]) document.addEventListener(kind, (event) => point(event, true));
for (const kind of ["mouseout", "focusout"]) document.addEventListener(kind, (event) => point(event, false));
