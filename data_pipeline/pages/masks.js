// Shows and hides the masks of a page, and shows one mask alone while its words are pointed at or have the focus.
"use strict";

function toggleMasks() {
  const without = document.body.classList.toggle("without-masks");
  document.getElementById("masks").setAttribute("aria-pressed", String(!without));
}

function point(event, on) {
  const words = event.target.closest?.("mark");
  if (!words) return;
  const record = words.closest(".sample, .review");
  record.classList.toggle("pointed", on);
  for (const layer of record.querySelectorAll(".layer")) {
    layer.classList.toggle("shown", on && layer.dataset.masks.split(" ").includes(words.dataset.mask));
  }
  for (const badge of record.querySelectorAll(".stack .badge")) {
    badge.classList.toggle("shown", on && Number(badge.textContent) - 1 === Number(words.dataset.mask));
  }
}

document.getElementById("masks")?.addEventListener("click", toggleMasks);
for (const kind of ["mouseover", "focusin"]) document.addEventListener(kind, (event) => point(event, true));
for (const kind of ["mouseout", "focusout"]) document.addEventListener(kind, (event) => point(event, false));
